//! Boot entries of UEFI firmware: what is in them, where they are kept, and which loader on an EFI system partition one is for.

pub mod load_option;
pub mod loader;
pub mod variables;
