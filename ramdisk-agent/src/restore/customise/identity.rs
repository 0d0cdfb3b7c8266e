//! What makes a machine that machine: its name, its machine-id, its SSH host keys.

use rustix::fs::FileType;

use super::hosts;
use super::system::System;
use crate::error::Result;

const HOST_NAME: &str = "/etc/hostname";
const HOSTS: &str = "/etc/hosts";
const MACHINE_ID: &str = "/etc/machine-id";
/// D-Bus' own copy, which Debian has as a link.
const DBUS_MACHINE_ID: &str = "/var/lib/dbus/machine-id";
const SSH: &str = "/etc/ssh";

/// Names the machine.
pub fn set_host_name(system: &mut System<'_>, name: &str) -> Result<()> {
    let old = system.read(HOST_NAME)?.unwrap_or_default();
    let old = String::from_utf8_lossy(&old);
    let old = old.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let old = old.unwrap_or_default().to_owned();
    system.write(HOST_NAME, format!("{name}\n").as_bytes(), None)?;
    // Bytes that are no text are somebody's; the file stays as it is then.
    let known = system.read(HOSTS)?.and_then(|bytes| String::from_utf8(bytes).ok());
    match known.and_then(|text| hosts::renamed(&text, &old, name)) {
        Some(text) => system.write(HOSTS, text.as_bytes(), None),
        None => Ok(()),
    }
}

/// Makes the restored system give itself a new machine-id. The file is empty and not `uninitialized`, which would declare the next start the
/// first one of all: systemd would then enable and disable services by its presets, and may ask questions on the console
/// (`machine-id(5)`, "First Boot Semantics").
pub fn clear_machine_id(system: &mut System<'_>) -> Result<()> {
    system.write(MACHINE_ID, b"", None)?;
    if let Some(point) = system.hidden_by(DBUS_MACHINE_ID)? {
        system.note(&format!(
            "{point} is another filesystem, which cannot be changed here: if {DBUS_MACHINE_ID} is a file of its own, it stays"
        ));
    } else if system.link_kind(DBUS_MACHINE_ID)? == Some(FileType::RegularFile) {
        system.remove(DBUS_MACHINE_ID)?;
    }
    Ok(())
}

/// Removes `ssh_host_*_key` and their public halves.
pub fn remove_ssh_host_keys(system: &mut System<'_>) -> Result<()> {
    for name in system.names(SSH)? {
        let key = name.strip_suffix(".pub").unwrap_or(&name);
        if key.starts_with("ssh_host_") && key.ends_with("_key") {
            system.remove(&format!("{SSH}/{name}"))?;
        }
    }
    Ok(())
}
