//! Devices that appear after the start: the kernel announces them by netlink, and their modules are loaded then.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};

/// The kernel's own announcements, not udev's.
const KERNEL_GROUP: u32 = 1;
/// A shelf of disks announces hundreds of devices at once.
const BUFFER_LEN: usize = 4 << 20;
/// The kernel's limit for one announcement is 2 KiB of variables and a path.
const MAX_EVENT_LEN: usize = 8192;

/// The kernel's announcements of devices.
#[derive(Debug)]
pub struct Uevents(OwnedFd);

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Uevent {
    /// A device with this alias has appeared.
    Alias(String),
    /// Announcements were lost: look at all devices.
    Lost,
}

impl Uevents {
    /// Starts to listen. What is announced from now on is kept until it is asked for.
    pub fn listen() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let fd =
            socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
        // A smaller buffer only means that `Lost` comes sooner.
        let _: Result<(), Errno> = setsockopt(&fd, sockopt::RcvBufForce, &BUFFER_LEN);
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Self(fd))
    }

    /// Waits for the next device.
    pub fn next(&self) -> io::Result<Uevent> {
        let mut buffer = [0; MAX_EVENT_LEN];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(len) => {
                    if let Some(alias) = added_alias(buffer.get(..len).unwrap_or_default()) {
                        return Ok(Uevent::Alias(alias));
                    }
                }
                Err(Errno::ENOBUFS) => return Ok(Uevent::Lost),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The alias of a device that was added: the message is `add@PATH` and variables, each ended by a NUL.
fn added_alias(message: &[u8]) -> Option<String> {
    let mut fields = message.split(|b| *b == 0);
    if !fields.next()?.starts_with(b"add@") {
        return None;
    }
    let alias = fields.find_map(|f| f.strip_prefix(b"MODALIAS="))?;
    Some(std::str::from_utf8(alias).ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_devices_with_an_alias_count() {
        let message = b"add@/devices/pci0000:00/0000:00:03.0\0ACTION=add\0SUBSYSTEM=pci\0MODALIAS=pci:v00001AF4\0SEQNUM=7\0";
        assert_eq!(added_alias(message).as_deref(), Some("pci:v00001AF4"));
        assert_eq!(added_alias(b"remove@/devices/x\0MODALIAS=pci:v1\0"), None);
        assert_eq!(added_alias(b"add@/devices/x\0ACTION=add\0"), None);
        assert_eq!(added_alias(b""), None);
        assert_eq!(added_alias(b"libudev\0\xfe\xed"), None);
    }

    #[test]
    fn listening_works_here() {
        Uevents::listen().unwrap();
    }
}
