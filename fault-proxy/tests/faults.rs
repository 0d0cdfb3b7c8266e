//! The proxy in front of a server that sends back what it gets.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use fault_proxy::{Ending, Proxy, Script, Way};

/// A server that sends back what it gets; it lives as long as the test's process.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..count]).is_err() {
                        return;
                    }
                }
                // Its end is told, whatever became of the client.
                let _ = stream.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
}

/// Sends, and reads until the end.
fn exchange(stream: &mut TcpStream, data: &[u8]) -> (Vec<u8>, Option<ErrorKind>) {
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // It may be cut off.
            if writer.write_all(data).is_ok() {
                let _ = writer.shutdown(Shutdown::Write);
            }
        });
        let mut back = Vec::new();
        let error = stream.read_to_end(&mut back).err();
        (back, error.map(|error| error.kind()))
    })
}

#[test]
fn a_connection_without_a_fault_is_as_if_it_were_direct() {
    let proxy = Proxy::start(echo(), []).unwrap();
    proxy.record();
    let data = bytes(3_000_000);
    assert_eq!(exchange(&mut connect(&proxy), &data), (data.clone(), None));
    assert!(proxy.recorded(Way::ToServer) == data && proxy.recorded(Way::ToClient) == data);
    let count = data.len() as u64;
    assert_eq!((proxy.bytes(Way::ToServer), proxy.bytes(Way::ToClient)), (count, count));
    assert_eq!((proxy.connections(), proxy.faults()), (1, 0));
}

#[test]
fn a_cut_is_at_its_byte_either_way() {
    for way in [Way::ToServer, Way::ToClient] {
        for after in [0, 1, 4095, 4096, 70_001] {
            let proxy = Proxy::start(echo(), [Script::ends(way, after, Ending::Close)]).unwrap();
            let (back, error) = exchange(&mut connect(&proxy), &bytes(200_000));
            assert_eq!(error, None, "{way:?} {after}");
            assert_eq!(proxy.bytes(way), after, "{way:?}");
            assert!(back == bytes(200_000)[..back.len()]);
            if way == Way::ToClient {
                assert_eq!(back.len() as u64, after);
            }
            assert_eq!(proxy.faults(), 1);
            // The next one lives.
            assert_eq!(exchange(&mut connect(&proxy), b"again"), (b"again".to_vec(), None));
        }
    }
}

#[test]
fn a_reset_is_a_reset() {
    let script = Script::ends(Way::ToClient, 1000, Ending::Reset);
    let proxy = Proxy::start(echo(), [script]).unwrap();
    let (_, error) = exchange(&mut connect(&proxy), &bytes(200_000));
    assert_eq!(error, Some(ErrorKind::ConnectionReset));
    let mut stream = connect(&proxy);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    proxy.end_all(Ending::Reset);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_silent_connection_stays_open_and_says_nothing() {
    let proxy = Proxy::start(echo(), [Script::ends(Way::ToServer, 5, Ending::Silence)]).unwrap();
    let mut stream = connect(&proxy);
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    stream.write_all(b"1234567").unwrap();
    stream.write_all(&bytes(100_000)).unwrap();
    assert_eq!(stream.read(&mut [0; 5]).unwrap_err().kind(), ErrorKind::WouldBlock);

    proxy.set_silent(true);
    let mut other = connect(&proxy);
    other.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    other.write_all(b"x").unwrap();
    assert_eq!(other.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    proxy.set_silent(false);
    assert_eq!(exchange(&mut connect(&proxy), b"again"), (b"again".to_vec(), None));
}

#[test]
fn a_slow_close_ends_one_side_first() {
    let time = Duration::from_millis(500);
    let script = Script::ends(Way::ToClient, 3, Ending::SlowClose(time));
    let proxy = Proxy::start(echo(), [script]).unwrap();
    let mut stream = connect(&proxy);
    let start = Instant::now();
    stream.write_all(b"12345").unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert_eq!(back, b"123");
    // The other side takes bytes still, and then no more.
    while stream.write_all(&bytes(1000)).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(20), "it never ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(start.elapsed() >= time, "it ended after {:?}", start.elapsed());
}

#[test]
fn delay_and_bandwidth() {
    let delay = Duration::from_millis(40);
    let slow = Script { delay, bytes_per_second: Some(1_000_000), fault: None };
    let proxy = Proxy::start(echo(), [slow]).unwrap();
    let mut stream = connect(&proxy);
    let start = Instant::now();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    assert!(start.elapsed() >= 2 * delay, "{:?}", start.elapsed());
    let start = Instant::now();
    let data = bytes(500_000);
    assert!(exchange(&mut stream, &data) == (data, None));
    assert!(start.elapsed() >= Duration::from_millis(490), "{:?}", start.elapsed());
}

#[test]
fn refused_for_a_time() {
    let proxy = Proxy::start(echo(), []).unwrap();
    let mut before = connect(&proxy);
    before.write_all(b"x").unwrap();
    before.read_exact(&mut [0]).unwrap();
    proxy.set_refusing(true);
    let error = TcpStream::connect(proxy.address()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    proxy.set_refusing(false);
    assert_eq!(exchange(&mut connect(&proxy), b"again"), (b"again".to_vec(), None));
    before.write_all(b"y").unwrap();
    before.read_exact(&mut [0]).unwrap();
}

#[test]
fn scripts_are_taken_in_turn_and_the_rest_can_be_said() {
    let cut = |after| Script::ends(Way::ToClient, after, Ending::Close);
    let proxy = Proxy::start(echo(), [cut(1), cut(2)]).unwrap();
    proxy.set_rest(cut(3));
    for expected in [1, 2, 3, 3] {
        assert_eq!(exchange(&mut connect(&proxy), b"abcdef").0.len(), expected);
    }
}
