//! What goes wrong with a mount and on it, in words.

use std::io;

use rustix::io::Errno;

use super::super::{Nfs4Url, StoreError};

/// Why there is no mount.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) at: At,
    pub(super) errno: Errno,
    /// What the kernel's client says.
    pub(super) said: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// Making a namespace for it, or putting it there.
    Namespace,
    /// Asking this kernel for its client.
    FileSystem,
    /// Asking the client for the mount.
    Mount,
}

/// Whether an error says that the server did not answer.
pub(super) fn is_silence(code: i32) -> bool {
    /// What a request that was made to fail ends in, where no signal is to be handled.
    const ERESTARTSYS: i32 = 512;
    matches!(
        code,
        libc::ETIMEDOUT
            | libc::ECONNREFUSED
            | libc::ECONNRESET
            | libc::ECONNABORTED
            | libc::ENOTCONN
            | libc::EPIPE
            | libc::EHOSTUNREACH
            | libc::EHOSTDOWN
            | libc::ENETUNREACH
            | libc::ENETDOWN
            | ERESTARTSYS
    )
}

/// Why a server refuses, as far as that can be told.
pub(super) fn not_allowed(folder: &Nfs4Url) -> String {
    let (uid, gid) = (folder.uid, folder.gid);
    format!(
        "the server does not let uid {uid}, gid {gid} of this machine: look at the export's clients and options; with root_squash give ?uid= and &gid= of the folder's owner"
    )
}

/// What is said of a mount that did not come about.
pub(super) fn in_words(folder: &Nfs4Url, failed: Failed) -> StoreError {
    let url = folder.to_string();
    let Failed { at, errno, said } = failed;
    let unsupported =
        |reason: &str| StoreError::Unsupported { url: url.clone(), reason: reason.to_owned() };
    let no_client = "this machine's kernel has no client for NFS version 4 (its modules nfs and nfsv4); add them, or use nfs:// if the server has version 3, which needs none";
    match (at, errno) {
        (At::Namespace | At::FileSystem, Errno::PERM | Errno::ACCESS) => StoreError::Denied {
            doing: "mounting",
            url,
            reason: "nfs4:// is mounted, which needs root; nfs:// does not".to_owned(),
        },
        (At::FileSystem, Errno::NODEV) => unsupported(no_client),
        (At::FileSystem, Errno::NOSYS) => unsupported(
            "this machine's kernel is older than Linux 5.2; use nfs:// if the server has version 3",
        ),
        (At::Mount, Errno::PROTONOSUPPORT) if said.contains("Version unavailable") => {
            unsupported(no_client)
        }
        (At::Mount, Errno::PROTONOSUPPORT) => unsupported(
            "the server speaks no NFS version 4 that this machine's kernel knows (4.0 to 4.2); nfs:// is for version 3",
        ),
        (At::Mount, Errno::NOENT | Errno::NOTDIR) => StoreError::NotFound { url },
        (At::Mount, Errno::PERM | Errno::ACCESS) => {
            StoreError::Denied { doing: "mounting", url, reason: not_allowed(folder) }
        }
        _ => {
            let source = io::Error::from(errno);
            let source = io::Error::new(source.kind(), format!("{source}{said}"));
            StoreError::Io { doing: "mounting", url, source }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        let folder = Nfs4Url { host: "h".into(), port: None, path: "/i".into(), uid: 0, gid: 0 };
        let words = |at, errno, said: &str| {
            let error = in_words(&folder, Failed { at, errno, said: said.to_owned() });
            (error.kind(), error.to_string())
        };
        use agent_api::ErrorKind::{NotFound, Refused, Store};
        for (at, errno, said, kind, text) in [
            (At::FileSystem, Errno::NODEV, "", Refused, "modules nfs and nfsv4"),
            (
                At::Mount,
                Errno::PROTONOSUPPORT,
                "; NFS: Version unavailable",
                Refused,
                "modules nfs",
            ),
            (At::Mount, Errno::PROTONOSUPPORT, "", Refused, "nfs:// is for version 3"),
            (At::Namespace, Errno::PERM, "", Refused, "needs root"),
            (At::Mount, Errno::ACCESS, "", Refused, "root_squash"),
            (At::Mount, Errno::NOENT, "", NotFound, "nfs4://h/i does not exist"),
            (At::Mount, Errno::IO, "; NFS: odd", Store, "mounting nfs4://h/i"),
        ] {
            let (got, message) = words(at, errno, said);
            assert!(got == kind && message.contains(text), "{got:?} {message}");
        }
    }
}
