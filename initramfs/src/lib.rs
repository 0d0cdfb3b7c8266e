//! The builder of the agent initramfs.
