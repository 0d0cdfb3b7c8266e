//! Faults of the network: a proxy does something to the connections of a job, and the job succeeds.

use std::time::Duration;

use fault_proxy::{Ending, Proxy, Script, Way};
use ramdisk_agent::store::Options;

use crate::job::{Numbers, check_folder, new_name, pattern, read, write};
use crate::report::{Ended, Report, SAME, chosen};
use crate::store::Store;

/// A scenario whose fault is over at once may take this long, on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
const IMAGE_BYTES: usize = 3 << 20;
const WAYS: [Way; 2] = [Way::ToServer, Way::ToClient];

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Write,
    Read,
}

/// What the jobs of this store do.
fn directions<S: Store>() -> Vec<Direction> {
    if S::WRITES { vec![Direction::Write, Direction::Read] } else { vec![Direction::Read] }
}

/// Runs a job by way of a proxy.
fn run<S: Store>(
    store: &S,
    proxy: &Proxy,
    direction: Direction,
    data: &[u8],
    options: &Options,
) -> Ended {
    let name = new_name();
    let (url, path) = (store.url(proxy.port(), &name), store.folder().join(&name));
    match direction {
        Direction::Write => {
            let (ended, _) = write(&url, data, options, || ());
            check_folder(&store.folder(), &name, data, &ended);
            ended
        }
        Direction::Read => {
            std::fs::write(&path, data).unwrap();
            let ended = read(&url, data, options);
            std::fs::remove_file(path).unwrap();
            ended
        }
    }
}

/// What a job's only connection carries each way when nothing happens to it.
fn dialogue<S: Store>(store: &S, direction: Direction, data: &[u8]) -> [Vec<u8>; 2] {
    let proxy = Proxy::start(store.address(), []).unwrap();
    let url = store.url(proxy.port(), &new_name());
    proxy.record();
    match direction {
        // The re-read has a connection of its own, which is not part of it.
        Direction::Write => {
            let mut writer =
                ramdisk_agent::store::create(&url, uuid::Uuid::new_v4(), &store.options()).unwrap();
            data.chunks(crate::job::FRAME).for_each(|frame| writer.append(frame).unwrap());
            writer.commit().unwrap();
            writer.abort().unwrap();
        }
        Direction::Read => {
            assert_eq!(run(store, &proxy, direction, data, &store.options()), Ended::Same);
        }
    }
    WAYS.map(|way| proxy.recorded(way))
}

/// Runs the scenarios in which the first connection ends in these ways.
fn cut<S: Store>(report: &mut Report, store: &S, cuts: Vec<(Direction, Script)>) {
    let data = pattern(IMAGE_BYTES, 1);
    let (mut happened, count) = (0, cuts.len());
    for (direction, script) in cuts {
        let proxy = Proxy::start(store.address(), [script]).unwrap();
        let fault = script.fault.unwrap();
        let what = format!(
            "{direction:?}: {:?} after {} bytes {:?}",
            fault.ending, fault.after_bytes, fault.way
        );
        report.scenario(&what, SAME, LIMIT, || {
            run(store, &proxy, direction, &data, &store.options())
        });
        happened += proxy.faults();
    }
    // A dialogue is not the same to the byte each time: its last bytes may not come.
    assert!(happened * 10 >= count * 9, "only {happened} of {count} connections were cut");
}

fn ending(index: usize) -> Ending {
    if index.is_multiple_of(2) { Ending::Close } else { Ending::Reset }
}

/// Before, at and behind the ends of messages.
pub fn cuts_around_messages<S: Store>() {
    let store = S::start(None);
    let data = pattern(IMAGE_BYTES, 1);
    let mut cuts = Vec::new();
    for direction in directions::<S>() {
        for (way, stream) in WAYS.into_iter().zip(dialogue(&store, direction, &data)) {
            let ends = S::message_ends(&stream);
            let ends = ends.into_iter().filter(|end| *end < stream.len() as u64);
            // The first ones open the image; then data follow, all alike.
            let first: Vec<u64> = ends.collect();
            let step = (first.len() / 12).max(1);
            let picked = first.iter().take(8).chain(first.iter().skip(8).step_by(step));
            for end in picked {
                for at in [end - 1, *end, end + 1] {
                    cuts.push((direction, Script::ends(way, at, ending(cuts.len()))));
                }
            }
        }
    }
    let mut report = Report::new(S::NAME, "cut around messages");
    cut(&mut report, &store, chosen(cuts, 16));
}

/// At 200 random bytes each way of each job.
pub fn cuts_anywhere<S: Store>() {
    let store = S::start(None);
    let data = pattern(IMAGE_BYTES, 1);
    let mut numbers = Numbers::new("cuts anywhere");
    let mut cuts = Vec::new();
    for direction in directions::<S>() {
        for (way, stream) in WAYS.into_iter().zip(dialogue(&store, direction, &data)) {
            for index in 0..200 {
                let at = numbers.up_to(stream.len() as u64 - 1);
                cuts.push((direction, Script::ends(way, at, ending(index))));
            }
        }
    }
    let mut report = Report::new(S::NAME, "cut anywhere");
    cut(&mut report, &store, chosen(cuts, 20));
}

/// Connections that hang at once or later, and those that end on one side first.
pub fn silence_and_slow_closes<S: Store>() {
    let store = S::start(None);
    let data = pattern(IMAGE_BYTES, 1);
    let mut numbers = Numbers::new("silence");
    let mut cuts = Vec::new();
    for direction in directions::<S>() {
        for (way, stream) in WAYS.into_iter().zip(dialogue(&store, direction, &data)) {
            // Accepted, and never answered.
            cuts.push((direction, Script::ends(way, 0, Ending::Silence)));
            for _ in 0..8 {
                let at = numbers.up_to(stream.len() as u64 - 1);
                cuts.push((direction, Script::ends(way, at, Ending::Silence)));
                let slow = Ending::SlowClose(Duration::from_millis(300));
                cuts.push((direction, Script::ends(way, at, slow)));
            }
        }
    }
    let mut report = Report::new(S::NAME, "silence and slow close");
    cut(&mut report, &store, chosen(cuts, 7));
}

/// Latency, little bandwidth, and fifty drops in one job.
pub fn slow_networks_and_many_drops<S: Store>() {
    let store = S::start(None);
    let data = pattern(IMAGE_BYTES, 1);
    let mut report = Report::new(S::NAME, "slow networks and many drops");
    for direction in directions::<S>() {
        let networks = vec![(1, None), (20, None), (0, Some(4 << 20)), (5, Some(8 << 20))];
        for (delay_ms, bytes_per_second) in chosen(networks, 2) {
            let delay = Duration::from_millis(delay_ms);
            let script = Script { delay, bytes_per_second, fault: None };
            let proxy = Proxy::start(store.address(), []).unwrap();
            proxy.set_rest(script);
            let what = format!("{direction:?}: {delay_ms} ms each way, {bytes_per_second:?} B/s");
            report.scenario(&what, SAME, LIMIT, || {
                run(&store, &proxy, direction, &data, &store.options())
            });
        }
        fifty_drops(&mut report, &store, direction);
    }
}

const DROPS: usize = 50;

fn fifty_drops<S: Store>(report: &mut Report, store: &S, direction: Direction) {
    let data = pattern(40 << 20, 2);
    // About every 600 KB of what matters, so that each connection gets something done.
    let way = if direction == Direction::Write { Way::ToServer } else { Way::ToClient };
    let script = |index| Script::ends(way, 600_000 + index as u64 * 1_237, ending(index));
    let proxy = Proxy::start(store.address(), (0..DROPS).map(script)).unwrap();
    let options = Options { budget: Duration::from_secs(60), ..store.options() };
    let what = format!("{direction:?}: {DROPS} drops");
    report.scenario(&what, SAME, 4 * LIMIT, || run(store, &proxy, direction, &data, &options));
    assert_eq!(proxy.faults(), DROPS, "{what}: not all happened");
    // What was under way is sent again, never what was committed: at most the uncommitted window for each drop, and far less
    // than that here, where the whole image is smaller than the window.
    let again = proxy.bytes(way).saturating_sub(data.len() as u64);
    let under_way = (DROPS as u64) * (2 << 20) + data.len() as u64 / 4;
    assert!(again <= under_way, "{what}: {again} bytes more than the image went {way:?}");
}
