//! Which file on an EFI system partition a boot entry is to start.

use std::io::{self, Read, Seek};

use crate::fs::fat::folder::{Entry, folder};

/// What UEFI calls this machine's architecture in the names of files.
#[cfg(target_arch = "x86_64")]
const ARCH: &str = "x64";
#[cfg(target_arch = "aarch64")]
const ARCH: &str = "aa64";
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the name of this architecture in boot loaders' file names is not known");

/// The folder of the loader that firmware starts without an entry.
const FALLBACK: &str = "BOOT";

/// The loader on a partition, with backslashes, or why there is none. Of a distribution's loaders the one that checks signatures comes
/// first, then GRUB, systemd-boot, Windows, and last the one that firmware would start by itself. `label` is what the entry is to be
/// called: it decides between distributions.
pub fn find(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
    label: &str,
) -> io::Result<Result<String, String>> {
    let vendors = match folder(src, len_bytes, &["EFI"])? {
        Ok(vendors) => vendors.unwrap_or_default(),
        Err(doubt) => return Ok(Err(doubt)),
    };
    let mut found: Vec<(usize, String, String)> = Vec::new();
    for vendor in vendors.iter().filter(|entry| entry.is_folder && !entry.name.starts_with('.')) {
        for (rank, (inside, file)) in wanted(&vendor.name).into_iter().enumerate() {
            let path: Vec<&str> = ["EFI", vendor.name.as_str()].into_iter().chain(inside).collect();
            let entries = match folder(src, len_bytes, &path)? {
                Ok(entries) => entries.unwrap_or_default(),
                Err(doubt) => return Ok(Err(doubt)),
            };
            let is_it = |e: &&Entry| !e.is_folder && e.name.eq_ignore_ascii_case(&file);
            if let Some(entry) = entries.iter().find(is_it) {
                let rank =
                    if vendor.name.eq_ignore_ascii_case(FALLBACK) { usize::MAX } else { rank };
                let path = format!("\\{}\\{}", path.join("\\"), entry.name);
                found.push((rank, vendor.name.clone(), path));
                break;
            }
        }
    }
    Ok(choose(found, label))
}

/// The files that are looked for in a vendor's folder, in this order; some lie in a folder of their own.
fn wanted(vendor: &str) -> Vec<(Option<&'static str>, String)> {
    if vendor.eq_ignore_ascii_case(FALLBACK) {
        return vec![(None, format!("boot{ARCH}.efi"))];
    }
    vec![
        (None, format!("shim{ARCH}.efi")),
        (None, format!("grub{ARCH}.efi")),
        (None, format!("systemd-boot{ARCH}.efi")),
        (Some("Boot"), "bootmgfw.efi".to_owned()),
    ]
}

fn choose(mut found: Vec<(usize, String, String)>, label: &str) -> Result<String, String> {
    found.sort();
    let Some(best) = found.first().map(|(rank, ..)| *rank) else {
        return Err(format!(
            "it has no boot loader for {ARCH}: no EFI/*/shim, GRUB, systemd-boot, Windows or EFI/BOOT"
        ));
    };
    found.retain(|(rank, ..)| *rank == best);
    let named = found.iter().find(|(_, vendor, _)| vendor.eq_ignore_ascii_case(label));
    match (found.as_slice(), named) {
        (_, Some((.., path))) | ([(.., path)], None) => Ok(path.clone()),
        (several, None) => {
            let names: Vec<&str> = several.iter().map(|(_, vendor, _)| vendor.as_str()).collect();
            Err(format!(
                "it has boot loaders of {}: give the entry the name of one of them",
                names.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(list: &[(usize, &str)]) -> Vec<(usize, String, String)> {
        list.iter().map(|(rank, vendor)| (*rank, (*vendor).into(), format!("\\{vendor}"))).collect()
    }

    #[test]
    fn the_best_loader_is_chosen_and_two_equals_are_told_apart_by_name() {
        let boot = usize::MAX;
        for (list, label, wanted) in [
            (&[(0, "debian"), (boot, "BOOT")][..], "x", "\\debian"),
            (&[(3, "Microsoft"), (0, "debian")], "Microsoft", "\\debian"),
            (&[(0, "debian"), (0, "ubuntu")], "Ubuntu", "\\ubuntu"),
            (&[(boot, "BOOT")], "x", "\\BOOT"),
        ] {
            assert_eq!(choose(found(list), label).unwrap(), wanted);
        }
        let error = choose(found(&[(0, "debian"), (0, "ubuntu")]), "x").unwrap_err();
        assert!(error.contains("debian, ubuntu"), "{error}");
        assert!(choose(Vec::new(), "x").unwrap_err().contains("no boot loader"));
    }

    #[test]
    fn loaders_on_a_real_partition() {
        let run = |tool: &str, args: &[&str]| {
            let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
            let mut command = std::process::Command::new(tool);
            let output =
                command.args(args).env("PATH", path).env("MTOOLS_SKIP_CHECK", "1").output();
            let output = output.expect("apt-get install mtools dosfstools");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let (esp, empty) =
            (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
        esp.as_file().set_len(40 << 20).unwrap();
        let (esp, from) = (esp.path().to_str().unwrap(), empty.path().to_str().unwrap());
        run("mkfs.vfat", &["-F", "32", esp]);
        let found = || {
            let mut file = std::fs::File::open(esp).unwrap();
            find(&mut file, 40 << 20, "Imprint").unwrap()
        };
        assert!(found().unwrap_err().contains("no boot loader"));
        run("mmd", &["-i", esp, "::/EFI", "::/EFI/BOOT", "::/EFI/almalinux", "::/EFI/tools"]);
        for (file, wanted) in [
            (
                format!("BOOT/BOOT{}.EFI", ARCH.to_uppercase()),
                format!("BOOT\\BOOT{}.EFI", ARCH.to_uppercase()),
            ),
            (format!("almalinux/grub{ARCH}.efi"), format!("almalinux\\grub{ARCH}.efi")),
            (format!("almalinux/shim{ARCH}.efi"), format!("almalinux\\shim{ARCH}.efi")),
        ] {
            run("mcopy", &["-i", esp, from, &format!("::/EFI/{file}")]);
            let path = found().unwrap();
            assert!(path.eq_ignore_ascii_case(&format!("\\EFI\\{wanted}")), "{path}");
        }
    }
}
