//! Where things are: the checkout, and the folders under its target folder.

use std::path::PathBuf;

/// The checkout.
#[must_use]
pub fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("this package lies in the workspace").to_owned()
}

/// Cargo's target folder.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// What is kept between runs of the lab: kernels, the template's tree, finished disks.
#[must_use]
pub fn cache() -> PathBuf {
    target().join("lab")
}

/// What `xtask` built and the lab uses: the agent, boot folders.
#[must_use]
pub fn artifacts() -> PathBuf {
    target().join("imprint")
}
