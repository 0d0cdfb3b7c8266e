//! What a restore is to change in the system that it restores, before the disk can boot: options of a restore like any other, in a
//! file of their own.

use serde::{Deserialize, Serialize};

use super::content::{CloudInitSeed, Content, MAX_CONTENT, NewFile};

/// The longest name that Linux takes (`__NEW_UTS_LEN`).
const MAX_HOST_NAME: usize = 64;
/// The longest part of a name between dots (RFC 1123).
const MAX_LABEL: usize = 63;

/// The longest name of a boot entry: menus are narrow.
const MAX_BOOT_LABEL: usize = 64;
/// How many files a job may bring along.
const MAX_FILES: usize = 256;

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
    /// Put a NoCloud seed into the restored system, and make cloud-init start afresh: a folder with user-data, meta-data and, if
    /// wanted, network-config and vendor-data
    #[arg(long, value_name = "FOLDER", value_parser = CloudInitSeed::read)]
    pub cloud_init_seed: Option<CloudInitSeed>,
    /// Put a file into the restored system: its path there, the file here, and if wanted its mode, as in 0600; can be given again
    #[arg(long, value_name = "PATH=SOURCE[:MODE]", value_parser = NewFile::read)]
    pub file: Vec<NewFile>,
    /// Run this script, which begins with #!, in the restored system when all else is done: as root, in a chroot; if it fails, the
    /// restore does
    #[arg(long, value_name = "FILE", value_parser = script)]
    pub post_script: Option<Content>,
    /// How many seconds the script may take, 600 unless given
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub post_script_limit: Option<u32>,
    /// Make a boot entry of this name in UEFI firmware for the restored disk, and remove those that led to what was on it
    #[arg(long, value_name = "LABEL", value_parser = boot_label)]
    pub efi_boot_entry: Option<String>,
    /// Where in the boot order it comes
    #[arg(long, value_enum, default_value_t)]
    pub efi_boot_order: BootOrder,
    /// The partition that holds the system to change, where it is not the only one that can
    #[arg(long, value_name = "N")]
    pub root_partition: Option<u32>,
}

/// Where a new boot entry comes in firmware's boot order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BootOrder {
    /// In front of all others, the network too
    First,
    /// Behind all others
    Last,
    /// Where the disk's old entry was, or behind all others
    #[default]
    Keep,
}

impl Customisation {
    /// Whether nothing is to be changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.efi_boot_entry.is_none() && !self.changes_files()
    }

    /// Whether anything is to be changed in the restored system itself.
    #[must_use]
    pub fn changes_files(&self) -> bool {
        let asked = Self {
            efi_boot_entry: None,
            efi_boot_order: BootOrder::default(),
            root_partition: None,
            post_script_limit: None,
            ..self.clone()
        };
        asked != Self::default()
    }

    fn contents(&self) -> impl Iterator<Item = &Content> {
        let seed = self.cloud_init_seed.iter().flat_map(CloudInitSeed::files);
        let files = self.file.iter().map(|file| &file.content);
        seed.filter_map(|(_, content)| content).chain(files).chain(&self.post_script)
    }

    /// Refuses what no agent would do.
    ///
    /// # Errors
    /// A sentence that names the option and what it may be.
    pub fn check(&self) -> Result<(), String> {
        if let Some(name) = &self.hostname {
            host_name(name).map_err(|e| format!("hostname {e}"))?;
        }
        self.file.iter().try_for_each(NewFile::check).map_err(|e| format!("file {e}"))?;
        if self.file.len() > MAX_FILES {
            return Err(format!("file can be given {MAX_FILES} times at most"));
        }
        let bytes = self.contents().map(|content| content.bytes().len()).sum::<usize>();
        if bytes > MAX_CONTENT {
            return Err(format!(
                "the files of a job have at most {MAX_CONTENT} bytes together, and these have {bytes}"
            ));
        }
        if let Some(content) = &self.post_script {
            is_script(content).map_err(|e| format!("post_script {e}"))?;
        }
        if self.post_script_limit == Some(0) {
            return Err("post_script_limit is 0, which is no time for a script".into());
        }
        if self.post_script_limit.is_some() && self.post_script.is_none() {
            return Err("post_script_limit is for a post_script, and there is none".into());
        }
        if let Some(label) = &self.efi_boot_entry {
            boot_label(label).map_err(|e| format!("efi_boot_entry {e}"))?;
        }
        if self.efi_boot_order != BootOrder::default() && self.efi_boot_entry.is_none() {
            return Err("efi_boot_order is for an efi_boot_entry, and there is none".into());
        }
        if self.root_partition.is_some() && !self.changes_files() {
            return Err(
                "root_partition says where to change something, and nothing is to be changed"
                    .into(),
            );
        }
        Ok(())
    }
}

/// What a firmware's menu can show.
fn boot_label(text: &str) -> Result<String, String> {
    let is_shown = |c: char| !c.is_control();
    if (1..=MAX_BOOT_LABEL).contains(&text.chars().count()) && text.chars().all(is_shown) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "'{}' is no name of a boot entry: those have 1 to {MAX_BOOT_LABEL} characters",
        text.escape_debug()
    ))
}

/// Reads a script.
fn script(path: &str) -> Result<Content, String> {
    let content = Content::read(std::path::Path::new(path))?;
    is_script(&content).map_err(|e| format!("{path} {e}"))?;
    Ok(content)
}

fn is_script(content: &Content) -> Result<(), String> {
    let is_script = content.bytes().starts_with(b"#!/");
    is_script.then_some(()).ok_or_else(|| "does not begin with #!/, as in #!/bin/sh".to_owned())
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
    fn files_have_a_limit_together() {
        let file = |path: &str, len: usize| NewFile {
            path: path.to_owned(),
            content: vec![0; len].into(),
            mode: None,
        };
        let with = |file| Customisation { file, ..Customisation::default() };
        with(vec![file("/a", MAX_CONTENT / 2), file("/b", MAX_CONTENT / 2)]).check().unwrap();
        with(vec![file("/a", MAX_CONTENT), file("/b", 1)]).check().unwrap_err();
        with(vec![file("/a", 0); MAX_FILES + 1]).check().unwrap_err();
        assert!(with(vec![file("a", 0)]).check().unwrap_err().starts_with("file 'a'"));
    }

    #[test]
    fn a_script_says_what_runs_it() {
        let with = |script: &str, limit| Customisation {
            post_script: Some(script.as_bytes().to_vec().into()),
            post_script_limit: limit,
            ..Customisation::default()
        };
        with("#!/bin/sh\n", Some(5)).check().unwrap();
        for (script, limit) in [("true", None), ("", None), ("#!/bin/sh", Some(0))] {
            let error = with(script, limit).check().unwrap_err();
            assert!(error.starts_with("post_script"), "{error}");
        }
        let limit = Customisation { post_script_limit: Some(1), ..Customisation::default() };
        assert!(limit.check().unwrap_err().contains("there is none"));
    }

    #[test]
    fn a_boot_entry_changes_no_file() {
        let with = |label: &str, order| Customisation {
            efi_boot_entry: Some(label.to_owned()),
            efi_boot_order: order,
            ..Customisation::default()
        };
        let entry = with("Debian", BootOrder::First);
        entry.check().unwrap();
        assert!(!entry.is_empty() && !entry.changes_files());
        for bad in ["", "a\nb", &"x".repeat(65)] {
            assert!(with(bad, BootOrder::Keep).check().is_err(), "{bad}");
        }
        let order = Customisation { efi_boot_order: BootOrder::Last, ..Customisation::default() };
        assert!(order.check().unwrap_err().contains("there is none"));
    }

    #[test]
    fn a_place_without_a_change_is_a_mistake() {
        let place = Customisation { root_partition: Some(2), ..Customisation::default() };
        assert!(place.is_empty());
        assert!(place.check().unwrap_err().starts_with("root_partition "));
    }
}
