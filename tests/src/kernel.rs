//! The kernel that the agent runs on in the lab: Debian's, unpacked and not installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{command, packages, project};

/// A kernel and its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The image.
    pub image: PathBuf,
    /// The module tree, with `modules.dep`.
    pub modules: PathBuf,
}

/// A Debian kernel, by the name of the package that depends on the newest one.
///
/// # Errors
/// If apt does not have it.
pub fn debian(meta_package: &str) -> Result<Kernel> {
    let folder = project::cache().join("kernel").join(meta_package);
    if let Some(kernel) = unpacked(&folder) {
        return Ok(kernel);
    }
    let package = match newest(meta_package) {
        Ok(package) => package,
        Err(_) => {
            packages::update_lists()?;
            newest(meta_package)?
        }
    };
    let partial =
        tempfile::tempdir_in(make(&project::cache().join("kernel"))?).context("making a folder")?;
    command::output(
        Command::new("apt-get").args(["download", "-q", &package]).current_dir(partial.path()),
    )
    .with_context(|| format!("downloading {package}"))?;
    let deb = the_only(partial.path())?;
    let tree = partial.path().join("tree");
    command::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree))
        .context("unpacking the kernel")?;
    let version = the_only(&tree.join("lib/modules"))?;
    let version = version.file_name().expect("a folder's entry has a name");
    command::output(Command::new("depmod").arg("-b").arg(&tree).arg(version))
        .context("indexing modules")?;
    if folder.exists() {
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("removing {}", folder.display()))?;
    }
    std::fs::rename(&tree, &folder).with_context(|| format!("writing {}", folder.display()))?;
    unpacked(&folder).with_context(|| format!("{} holds no kernel", folder.display()))
}

fn unpacked(folder: &Path) -> Option<Kernel> {
    let modules = the_only(&folder.join("lib/modules")).ok()?;
    let version = modules.file_name()?.to_str()?;
    let image = folder.join(format!("boot/vmlinuz-{version}"));
    (image.is_file() && modules.join("modules.dep").is_file()).then_some(Kernel { image, modules })
}

/// The package with the kernel itself: what the meta package depends on.
fn newest(meta_package: &str) -> Result<String> {
    let listing = command::output(Command::new("apt-cache").args(["depends", meta_package]))?;
    let name = listing.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    name.map(|name| format!("linux-image-{name}"))
        .with_context(|| format!("apt knows no {meta_package}"))
}

fn make(folder: &Path) -> Result<&Path> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

fn the_only(folder: &Path) -> Result<PathBuf> {
    let reading = || format!("reading {}", folder.display());
    let mut entries = std::fs::read_dir(folder).with_context(reading)?;
    let first = entries.next().with_context(|| format!("{} is empty", folder.display()))?;
    Ok(first.with_context(reading)?.path())
}
