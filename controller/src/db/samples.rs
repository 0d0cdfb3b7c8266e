//! What unit tests enter.

use super::{BmcRow, NewHost};
use crate::host::{Finish, Firmware};

/// A host that is switched on by hand.
pub(crate) fn host() -> NewHost {
    NewHost {
        name: "node7".into(),
        macs: vec!["52:54:00:77:00:01".parse().expect("a MAC address")],
        ip: None,
        firmware: Firmware::Bios,
        finish: Finish::Disk,
        kernel_args: String::new(),
        notes: String::new(),
        uuid: None,
        bmc: BmcRow::Manual,
    }
}
