//! The used-block maps against real filesystems.
//!
//! Filesystems are made by their own mkfs, filled, thinned out by their own tools or by the kernel, and mapped. The *true
//! oracle*: every byte that the map calls free is overwritten with noise; then the filesystem's own check must find nothing and
//! every file must be what it was. Beside it the map is compared with what the filesystem's tools print, and mutations of the
//! metadata must never make a map smaller without a word.
//!
//! Everything follows from a seed that a failure names. `IMPRINT_MAP_ROUNDS` sets how many filesystems of each kind are made,
//! `IMPRINT_MAP_SEED` the first seed, `IMPRINT_MAP_MUTATIONS` how many mutations each filesystem gets at least. Needs e2fsprogs, dosfstools, mtools, util-linux, xfsprogs, btrfs-progs, ntfs-3g,
//! exfatprogs, exfat-fuse, lvm2; the tests that mount need root.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]
#![allow(clippy::cast_possible_truncation, reason = "volumes of some MiB, on hosts of 64 bits")]

mod btrfs;
mod crashed;
mod device;
mod driven;
mod elsewhere;
mod exchanged;
mod exfat;
mod ext;
mod fat;
mod live;
mod lvm2;
mod mounted;
mod mutation;
mod noise;
mod ntfs;
mod oracle;
mod swap;
mod tools;
mod tree;
mod xfs;
