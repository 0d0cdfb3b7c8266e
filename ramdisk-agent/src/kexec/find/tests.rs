use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

const FEDORA: &str = include_str!("../grub/samples/fedora-41.cfg");
const DEBIAN: &str = include_str!("../grub/samples/debian-12.cfg");
const DEBIAN_UUID: &str = "1b3a1c9e-5f0a-4f53-9a52-6d6f2f5c7e11";
const FEDORA_UUID: &str = "C2D9C6A5-0E2F-43E8-8F7E-8C2B87B1F2AA";

/// A filesystem with these files.
fn volume(at: &Path, uuid: &str, files: &[(&str, &str)]) -> Volume {
    fs::create_dir_all(at).unwrap();
    for (path, text) in files {
        let path = at.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    Volume {
        name: at.file_name().unwrap().to_string_lossy().into_owned(),
        uuid: Some(uuid.into()),
        is_btrfs: false,
        root: File::open(at).unwrap().into(),
    }
}

fn refusal(volumes: &[Volume]) -> String {
    find(volumes).unwrap_err()
}

#[test]
fn a_debian_is_started_from_its_root() {
    let dir = tempfile::tempdir().unwrap();
    let esp = volume(&dir.path().join("esp"), "AB-CD", &[("EFI/debian/grub.cfg", "configfile x")]);
    let root = volume(&dir.path().join("root"), DEBIAN_UUID, &[("boot/grub/grub.cfg", DEBIAN)]);
    let volumes = [esp, root];
    let found = find(&volumes).unwrap();
    assert_eq!(
        (found.volume.name.as_str(), found.entry.name.as_str()),
        ("root", "Debian GNU/Linux")
    );

    let other = [volume(&dir.path().join("other"), "1-2", &[("grub/grub.cfg", DEBIAN)])];
    assert!(refusal(&other).contains(&format!("has the UUID {DEBIAN_UUID}")));
    let [esp, root] = volumes;
    let [other] = other;
    assert!(refusal(&[esp, root, other]).contains("which of these"));
    let custom = [volume(
        &dir.path().join("root"),
        DEBIAN_UUID,
        &[("boot/grub/custom.cfg", "set default=1")],
    )];
    assert!(refusal(&custom).contains("custom.cfg"));
}

#[test]
fn a_fedora_is_started_by_its_entries() {
    let dir = tempfile::tempdir().unwrap();
    let entry = |version: &str| {
        format!(
            "title Fedora {version}\nversion {version}\nlinux /vmlinuz-{version}\n\
             initrd /initramfs-{version}.img $tuned_initrd\noptions root=UUID=4a0b ro rhgb $tuned_params\n"
        )
    };
    let kept = "# GRUB Environment Block\nsaved_entry=b0c1-6.11.4\n";
    let files = [
        ("grub2/grub.cfg", FEDORA.to_owned()),
        ("grub2/grubenv", kept.to_owned()),
        ("loader/entries/b0c1-0-rescue.conf", entry("0-rescue")),
        ("loader/entries/b0c1-6.11.4.conf", entry("6.11.4")),
        ("loader/entries/b0c1-6.12.1.conf", entry("6.12.1")),
    ];
    let files: Vec<(&str, &str)> =
        files.iter().map(|(path, text)| (*path, text.as_str())).collect();
    let at = dir.path().join("boot");
    let volumes = [volume(&at, FEDORA_UUID, &files)];
    let found = find(&volumes).unwrap().entry;
    assert_eq!(found.kernel, "/vmlinuz-6.11.4");
    assert_eq!(found.initrds, ["/initramfs-6.11.4.img"]);
    assert_eq!(found.command_line, "root=UUID=4a0b ro rhgb");

    fs::remove_file(at.join("grub2/grubenv")).unwrap();
    assert_eq!(find(&volumes).unwrap().entry.kernel, "/vmlinuz-6.12.1");
    fs::write(at.join("grub2/grubenv"), kept.replace("6.11", "7")).unwrap();
    assert!(refusal(&volumes).contains("no Boot Loader Specification entry 'b0c1-7.4'"));
    fs::write(at.join("loader/entries/b0c1-7.4.conf"), "linux /k\noptions a$b\n").unwrap();
    assert!(refusal(&volumes).contains("variable in it"));
}

#[test]
fn without_grub_the_specification_counts() {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        ("loader/loader.conf", "timeout 3\ndefault arch-lts*\n"),
        (
            "loader/entries/arch.conf",
            "title Arch\nlinux /vmlinuz\ninitrd /ucode.img\ninitrd /i.img\noptions a=$b\n",
        ),
        ("loader/entries/arch-lts.conf", "linux /lts\n"),
    ];
    let esp = dir.path().join("esp");
    let volumes = [volume(&esp, "AB", &files)];
    let found = find(&volumes).unwrap().entry;
    assert_eq!((found.name.as_str(), found.kernel.as_str()), ("arch-lts", "/lts"));
    fs::write(esp.join("loader/loader.conf"), "default arch.conf").unwrap();
    let found = find(&volumes).unwrap().entry;
    assert_eq!(found.initrds, ["/ucode.img", "/i.img"]);
    assert_eq!(found.command_line, "a=$b");
    fs::write(esp.join("loader/loader.conf"), "default nothing").unwrap();
    assert!(refusal(&volumes).contains("no entry fits"));
    fs::create_dir_all(esp.join("EFI/Linux")).unwrap();
    fs::write(esp.join("EFI/Linux/a.efi"), "").unwrap();
    assert!(refusal(&volumes).contains("unified kernel images"));
    assert!(refusal(&[]).contains("no filesystem that can be read"));
    assert!(refusal(&[volume(&dir.path().join("empty"), "1", &[])]).contains("neither a grub.cfg"));
}

#[test]
fn a_hostile_disk_leads_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("grub.cfg"), "menuentry a {\nlinux /k\n}\n").unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("boot")).unwrap();
    symlink(&outside, root.join("boot/grub")).unwrap();
    symlink("../../../../../../../../outside", root.join("grub")).unwrap();
    let volumes = [volume(&root, "1", &[])];
    assert!(refusal(&volumes).contains("neither"));

    fs::remove_file(root.join("boot/grub")).unwrap();
    fs::create_dir(root.join("boot/grub")).unwrap();
    let config = root.join("boot/grub/grub.cfg");
    File::create(&config).unwrap().set_len(MAX_CONFIG + 1).unwrap();
    assert!(refusal(&volumes).contains("more than"));
    fs::write(&config, b"\xff\xfe").unwrap();
    assert!(refusal(&volumes).contains("no text"));
    fs::remove_file(&config).unwrap();
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(refusal(&volumes).contains("no regular file"));
    fs::remove_file(&config).unwrap();
    symlink("grub.cfg", &config).unwrap();
    refusal(&volumes);

    let entries = root.join("loader/entries");
    fs::create_dir_all(&entries).unwrap();
    fs::remove_file(&config).unwrap();
    for n in 0..=MAX_ENTRIES {
        fs::write(entries.join(format!("{n}.conf")), "linux /k").unwrap();
    }
    assert!(refusal(&volumes).contains("more than 256"));
}

#[test]
fn a_btrfs_has_its_root_in_a_subvolume() {
    let dir = tempfile::tempdir().unwrap();
    let config = "menuentry a {\nsearch -u --set=root AA\nlinux /@/boot/k root=UUID=AA rootflags=subvol=@\n}\n";
    let mut volume = volume(&dir.path().join("b"), "AA", &[("@/boot/grub/grub.cfg", config)]);
    volume.is_btrfs = true;
    let volumes = [volume];
    assert_eq!(find(&volumes).unwrap().entry.kernel, "/@/boot/k");
}
