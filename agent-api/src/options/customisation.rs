//! What a restore is to change in the system that it restores, before the disk can boot: options of a restore like any other, in a
//! file of their own.

use serde::{Deserialize, Serialize};

/// The longest name that Linux takes (`__NEW_UTS_LEN`).
const MAX_HOST_NAME: usize = 64;
/// The longest part of a name between dots (RFC 1123).
const MAX_LABEL: usize = 63;

/// Changes to the restored system. All of them are made, or the restore fails and the disk does not boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Customisation {
    /// Give the restored system this name: in /etc/hostname, and in /etc/hosts where its old one is the machine's own
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    pub hostname: Option<String>,
    /// Empty /etc/machine-id, so that the restored system makes itself a new one when it starts
    #[arg(long)]
    pub clear_machine_id: bool,
    /// Remove the SSH server's host keys from the restored system
    #[arg(long)]
    pub remove_ssh_host_keys: bool,
    /// The partition that holds the system to change, where it is not the only one that can
    #[arg(long, value_name = "N")]
    pub root_partition: Option<u32>,
}

impl Customisation {
    /// Whether nothing is to be changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        Self { root_partition: None, ..self.clone() } == Self::default()
    }

    /// Refuses what no agent would do.
    ///
    /// # Errors
    /// A sentence that names the option and what it may be.
    pub fn check(&self) -> Result<(), String> {
        if let Some(name) = &self.hostname {
            host_name(name).map_err(|e| format!("hostname {e}"))?;
        }
        if self.root_partition.is_some() && self.is_empty() {
            return Err(
                "root_partition says where to change something, and nothing is to be changed"
                    .into(),
            );
        }
        Ok(())
    }
}

/// A name as RFC 1123 has them, short enough for Linux.
fn host_name(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= MAX_HOST_NAME && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "'{}' is no name for a machine: letters, digits and hyphens, in parts of at most {MAX_LABEL} with dots between, \
         {MAX_HOST_NAME} characters in all",
        text.escape_debug()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_machines() {
        for good in ["a", "node7", "Node-7.example.com", &"x".repeat(63)] {
            let named =
                Customisation { hostname: Some(good.to_owned()), ..Customisation::default() };
            named.check().unwrap();
            assert!(!named.is_empty());
        }
        for bad in
            ["", ".", "a.", "-a", "a-", "a_b", "a b", "a\n", "ü", &"x".repeat(64), &"x.".repeat(33)]
        {
            let named =
                Customisation { hostname: Some(bad.to_owned()), ..Customisation::default() };
            assert!(named.check().unwrap_err().starts_with("hostname "), "{bad}");
        }
    }

    #[test]
    fn a_place_without_a_change_is_a_mistake() {
        let place = Customisation { root_partition: Some(2), ..Customisation::default() };
        assert!(place.is_empty());
        assert!(place.check().unwrap_err().starts_with("root_partition "));
    }
}
