//! A NoCloud seed for cloud-init, where it looks for one at every start, and nothing of what it knows of the machine that the image was
//! taken from.

use agent_api::CloudInitSeed;
use rustix::fs::Mode;

use super::system::System;
use crate::error::Result;

/// Both files that must be there are (`ds-identify`), so that this is the data source.
const SEED: &str = "/var/lib/cloud/seed/nocloud";
/// What `cloud-init clean` removes: which instance this is, what was done for it, and what was done once for all. The administrator's
/// own scripts, which lie beside it, stay.
const STATE: [&str; 4] = [
    "/var/lib/cloud/instance",
    "/var/lib/cloud/instances",
    "/var/lib/cloud/sem",
    "/var/lib/cloud/data",
];

/// Puts the seed there and makes cloud-init take the next start for the first.
pub fn plant(system: &mut System<'_>, seed: &CloudInitSeed) -> Result<()> {
    for path in STATE {
        system.remove(path)?;
    }
    for (name, content) in seed.files() {
        let path = format!("{SEED}/{name}");
        match content {
            // Passwords and keys may be in it.
            Some(content) => {
                system.write(&path, content.bytes(), Some(Mode::RUSR | Mode::WUSR))?;
            }
            None => system.remove(&path)?,
        }
    }
    if !system.is_there("/etc/cloud") && !system.is_there("/usr/bin/cloud-init") {
        system.note("the restored system seems to have no cloud-init, which the seed is for");
    }
    Ok(())
}
