//! The NTSTATUS values (MS-ERREF, section 2.3) that mean something to this client, and their names.

use std::fmt;

/// A status as the server sent it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Status(pub(super) u32);

macro_rules! statuses {
    ($($name:ident = $value:literal,)*) => {
        impl Status {
            $(pub(super) const $name: Self = Self($value);)*
        }

        const NAMES: &[(Status, &str)] = &[$((Status::$name, stringify!($name)),)*];
    };
}

statuses! {
    SUCCESS = 0x0000_0000,
    PENDING = 0x0000_0103,
    BUFFER_OVERFLOW = 0x8000_0005,
    NO_MORE_FILES = 0x8000_0006,
    UNSUCCESSFUL = 0xC000_0001,
    INFO_LENGTH_MISMATCH = 0xC000_0004,
    INVALID_PARAMETER = 0xC000_000D,
    NO_SUCH_FILE = 0xC000_000F,
    INVALID_DEVICE_REQUEST = 0xC000_0010,
    END_OF_FILE = 0xC000_0011,
    MORE_PROCESSING_REQUIRED = 0xC000_0016,
    NO_MEMORY = 0xC000_0017,
    ACCESS_DENIED = 0xC000_0022,
    OBJECT_NAME_INVALID = 0xC000_0033,
    OBJECT_NAME_NOT_FOUND = 0xC000_0034,
    OBJECT_NAME_COLLISION = 0xC000_0035,
    OBJECT_PATH_INVALID = 0xC000_0039,
    OBJECT_PATH_NOT_FOUND = 0xC000_003A,
    OBJECT_PATH_SYNTAX_BAD = 0xC000_003B,
    SHARING_VIOLATION = 0xC000_0043,
    QUOTA_EXCEEDED = 0xC000_0044,
    DELETE_PENDING = 0xC000_0056,
    NO_SUCH_USER = 0xC000_0064,
    WRONG_PASSWORD = 0xC000_006A,
    LOGON_FAILURE = 0xC000_006D,
    ACCOUNT_RESTRICTION = 0xC000_006E,
    INVALID_LOGON_HOURS = 0xC000_006F,
    PASSWORD_EXPIRED = 0xC000_0071,
    ACCOUNT_DISABLED = 0xC000_0072,
    DISK_FULL = 0xC000_007F,
    INSUFFICIENT_RESOURCES = 0xC000_009A,
    MEDIA_WRITE_PROTECTED = 0xC000_00A2,
    FILE_IS_A_DIRECTORY = 0xC000_00BA,
    NOT_SUPPORTED = 0xC000_00BB,
    NETWORK_BUSY = 0xC000_00BF,
    NETWORK_NAME_DELETED = 0xC000_00C9,
    NETWORK_ACCESS_DENIED = 0xC000_00CA,
    BAD_NETWORK_NAME = 0xC000_00CC,
    REQUEST_NOT_ACCEPTED = 0xC000_00D0,
    NAME_TOO_LONG = 0xC000_0106,
    NOT_A_DIRECTORY = 0xC000_0103,
    CANCELLED = 0xC000_0120,
    FILE_CLOSED = 0xC000_0128,
    TOO_MANY_OPENED_FILES = 0xC000_011F,
    LOGON_TYPE_NOT_GRANTED = 0xC000_015B,
    ACCOUNT_EXPIRED = 0xC000_0193,
    USER_SESSION_DELETED = 0xC000_0203,
    INSUFF_SERVER_RESOURCES = 0xC000_0205,
    PASSWORD_MUST_CHANGE = 0xC000_0224,
    ACCOUNT_LOCKED_OUT = 0xC000_0234,
    NETWORK_SESSION_EXPIRED = 0xC000_035C,
    SERVER_UNAVAILABLE = 0xC000_0466,
    DISK_QUOTA_EXCEEDED = 0xC000_0802,
}

impl Status {
    /// The session, the share's connection or the file's handle is no more: the same on a new session may work.
    pub(super) fn is_session_lost(self) -> bool {
        matches!(
            self,
            Self::USER_SESSION_DELETED
                | Self::NETWORK_SESSION_EXPIRED
                | Self::NETWORK_NAME_DELETED
                | Self::FILE_CLOSED
                | Self::CANCELLED
        )
    }

    /// The server could not do it just now.
    pub(super) fn is_passing(self) -> bool {
        matches!(
            self,
            Self::INSUFFICIENT_RESOURCES
                | Self::INSUFF_SERVER_RESOURCES
                | Self::NO_MEMORY
                | Self::NETWORK_BUSY
                | Self::REQUEST_NOT_ACCEPTED
                | Self::SERVER_UNAVAILABLE
                | Self::TOO_MANY_OPENED_FILES
        )
    }

    /// No such name, or no such folder on the way to it.
    pub(super) fn is_not_found(self) -> bool {
        matches!(
            self,
            Self::OBJECT_NAME_NOT_FOUND | Self::OBJECT_PATH_NOT_FOUND | Self::NO_SUCH_FILE
        )
    }

    pub(super) fn is_no_space(self) -> bool {
        matches!(self, Self::DISK_FULL | Self::QUOTA_EXCEEDED | Self::DISK_QUOTA_EXCEEDED)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(status, _)| status == self) {
            Some((_, name)) => write!(f, "STATUS_{name}"),
            None => write!(f, "status {:#010x}", self.0),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
