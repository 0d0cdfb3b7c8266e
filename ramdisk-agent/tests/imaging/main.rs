//! Capture and restore as a user has them: the program, disks with real filesystems on them, and other people's tools as judges.
//!
//! Disks are files; where the kernel must see partitions they become loop devices. Needs root, e2fsprogs, dosfstools, mtools,
//! util-linux, fdisk, gdisk, zstd, minisign, lvm2, busybox-static, qemu-system-common; a missing tool fails the test with its package's name.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]
#![allow(clippy::cast_possible_truncation, reason = "disks of some MiB, on hosts of 64 bits")]

mod agent;
mod also;
mod copies;
mod custom;
mod custom_files;
mod custom_script;
mod custom_volumes;
mod damage;
mod delta;
mod deltas;
mod devices;
mod disks;
mod faulty;
mod fresh_ids;
mod gaps;
mod grow;
mod layout_file;
mod limit;
mod lvm;
mod meeting;
mod partition;
mod pieces;
mod power_cut;
mod refusals;
mod rescue;
mod resumed;
mod retarget;
mod round_trip;
mod scarce;
mod signals;
mod signatures;
mod smaller;
mod sources;
mod targets;
mod tools;
