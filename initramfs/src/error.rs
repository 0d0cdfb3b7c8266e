//! What can go wrong when an initramfs is built.

use std::path::{Path, PathBuf};

/// An error of the builder. Every message names the file or option and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{what} {}", path.display())]
    Io {
        /// What was being done: "reading", "writing".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The folder is no module tree.
    #[error("{} has no modules.dep: give the folder of one kernel version, such as /lib/modules/6.1.0, and run depmod for it first", .0.display())]
    NoModuleTree(PathBuf),
    /// Kernel and modules do not belong together.
    #[error("kernel {} is version {kernel}, but the modules in {} are for {modules}", path.display(), dir.display())]
    VersionMismatch {
        /// The kernel file.
        path: PathBuf,
        /// Its version.
        kernel: String,
        /// The module folder.
        dir: PathBuf,
        /// The version that the folder is named after.
        modules: String,
    },
    /// The file is no kernel that a boot loader could start.
    #[error("{} is not a Linux kernel image: {why}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is missing.
        why: &'static str,
    },
    /// The agent cannot run in this initramfs.
    #[error("agent {}: {why}", path.display())]
    BadAgent {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// `--module` names something that the tree does not have.
    #[error("no module, folder or alias '{name}' in the kernel's module tree{near}")]
    NoSuchModule {
        /// What was asked for.
        name: String,
        /// "; near names: …", or empty.
        near: String,
    },
    /// A file of the module tree is damaged.
    #[error("{}: {why}", path.display())]
    BadModule {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A hook would not start.
    #[error("hook {}: {why}", path.display())]
    BadHook {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A path inside the initramfs is not allowed.
    #[error("path '{path}' in the initramfs: {why}")]
    BadPath {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An option has a value that cannot be used.
    #[error("{option} {value}: {why}")]
    BadOption {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Error {
    pub(crate) fn reading(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        Self::io("reading", path)
    }

    pub(crate) fn io<'a>(
        what: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}
