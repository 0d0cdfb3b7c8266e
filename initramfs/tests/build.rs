//! Builds whole images from made-up kernels and looks at what comes out.

#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use initramfs::{Compression, ModuleSet, Options};

const VERSION: &str = "6.1.0-test";
const X86_64: u16 = 62;
const AARCH64: u16 = 183;

/// An ELF file with one section and, if asked for, an interpreter.
fn elf(machine: u16, modinfo: &str, interpreter: Option<&str>) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let interp = interpreter.map(|path| format!("{path}\0")).unwrap_or_default();
    let interp_at = 64 + 56;
    let modinfo_at = interp_at + interp.len();
    let names_at = modinfo_at + modinfo.len();
    let sections_at = names_at + names.len();
    let mut out = vec![0u8; 64];
    out[..6].copy_from_slice(b"\x7fELF\x02\x01");
    out[18..20].copy_from_slice(&machine.to_le_bytes());
    out[32..40].copy_from_slice(&64u64.to_le_bytes());
    out[40..48].copy_from_slice(&(sections_at as u64).to_le_bytes());
    for (at, value) in
        [(54, 56u16), (56, u16::from(interpreter.is_some())), (58, 64), (60, 3), (62, 2)]
    {
        out[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    let mut header = vec![0u8; 56];
    header[..4].copy_from_slice(&3u32.to_le_bytes());
    header[8..16].copy_from_slice(&(interp_at as u64).to_le_bytes());
    header[32..40].copy_from_slice(&(interp.len() as u64).to_le_bytes());
    out.extend(header);
    out.extend(interp.as_bytes());
    out.extend(modinfo.as_bytes());
    out.extend(names);
    out.extend([0; 64]);
    for (name, offset, len) in [(1u32, modinfo_at, modinfo.len()), (10, names_at, names.len())] {
        let mut section = vec![0u8; 64];
        section[..4].copy_from_slice(&name.to_le_bytes());
        section[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
        section[32..40].copy_from_slice(&(len as u64).to_le_bytes());
        out.extend(section);
    }
    out
}

fn bzimage(version: &str) -> Vec<u8> {
    let mut bytes = vec![0; 0x400];
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    bytes[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
    bytes
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        bench.write("vmlinuz", &bzimage(VERSION));
        bench.write("agent", &elf(X86_64, "", None));
        let modules = format!("modules/{VERSION}");
        let module = |name: &str, path: &str, fields: &str| {
            let info = format!("name={name}\0vermagic={VERSION} SMP mod_unload\0{fields}");
            let bytes = elf(X86_64, &info, None);
            let bytes = if path.ends_with(".zst") {
                zstd::encode_all(&bytes[..], 3).unwrap()
            } else {
                bytes
            };
            bench.write(&format!("{modules}/{path}"), &bytes);
        };
        module("virtio_net", "kernel/drivers/net/virtio_net.ko", "");
        module("failover", "kernel/net/core/failover.ko.zst", "");
        module("igb", "kernel/drivers/net/ethernet/intel/igb/igb.ko", "firmware=intel/igb.bin\0");
        module(
            "tg3",
            "kernel/drivers/net/ethernet/broadcom/tg3.ko",
            "firmware=tigon/tg3.bin\0firmware=tigon/gone.bin\0",
        );
        module("snd_hda", "kernel/sound/pci/snd-hda.ko", "");
        bench.write(
            &format!("{modules}/modules.dep"),
            b"kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko.zst\nkernel/net/core/failover.ko.zst:\n\
              kernel/drivers/net/ethernet/intel/igb/igb.ko:\nkernel/drivers/net/ethernet/broadcom/tg3.ko:\nkernel/sound/pci/snd-hda.ko:\n",
        );
        bench.write(
            &format!("{modules}/modules.alias"),
            b"alias virtio:d00000001v* virtio_net\nalias pci:v00008086d00001533sv*sd*bc*sc*i* igb\n\
              alias pci:v000014E4d00001657sv*sd*bc*sc*i* tg3\nalias pci:v*d*sv*sd*bc04sc03i* snd_hda\n",
        );
        bench.write(&format!("{modules}/modules.builtin"), b"kernel/drivers/nvme/host/nvme.ko\n");
        bench.write(
            &format!("{modules}/modules.builtin.modinfo"),
            b"nvme.alias=pci:v*d*sv*sd*bc01sc08i02*\0",
        );
        bench.write("firmware/tigon/tg3.bin", b"firmware of tg3");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    fn options(&self) -> Options {
        Options {
            kernel: self.path("vmlinuz"),
            modules_dir: self.path("modules").join(VERSION),
            agent: self.path("agent"),
            module_set: ModuleSet::Default,
            modules: Vec::new(),
            firmware_dir: Some(self.path("firmware")),
            add: Vec::new(),
            hooks: Vec::new(),
            settings: Vec::new(),
            compression: Compression::None,
            mtime: 0,
        }
    }
}

/// Every entry of an uncompressed archive: path to mode and content.
fn unpack(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut entries = BTreeMap::new();
    let mut rest = archive;
    loop {
        let mut reader = cpio::newc::Reader::new(rest).unwrap();
        if reader.entry().is_trailer() {
            return entries;
        }
        let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut content).unwrap();
        assert!(entries.insert(name.clone(), (mode, content)).is_none(), "{name} twice");
        rest = reader.finish().unwrap();
    }
}

#[test]
fn the_image_holds_what_was_asked_for() {
    let bench = Bench::new();
    let mut options = bench.options();
    let hook = bench.write("10-raid", b"#!/bin/sh\ntrue\n");
    for program in [&hook, &options.agent] {
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    options.hooks = vec![hook];
    options.add =
        vec![(bench.path("agent"), "/bin/sh".into()), (bench.path("firmware"), "/opt/fw".into())];
    options.modules = vec!["snd-hda".into()];
    options.settings = vec!["imprint.dhcp_timeout=30".into()];
    let built = initramfs::build(&options).unwrap();
    let files = unpack(&built.initrd);
    let text = |path: &str| String::from_utf8(files[path].1.clone()).unwrap();

    assert_eq!(files["init"].0, 0o100_755);
    assert_eq!(text("sbin/modprobe"), "../init");
    assert_eq!(files["dev/console"].0, 0o020_600);
    assert_eq!(files["etc/imprint/hooks.d/10-raid"].0, 0o100_755);
    assert_eq!(text("etc/imprint/modules"), "snd_hda\n");
    assert_eq!(text("etc/imprint/agent.conf"), "imprint.dhcp_timeout=30\n");
    assert_eq!(text("opt/fw/tigon/tg3.bin"), "firmware of tg3");
    assert_eq!(text("lib/firmware/tigon/tg3.bin"), "firmware of tg3");
    // Packed modules are plain inside, in file and list.
    let base = format!("lib/modules/{VERSION}");
    assert!(files[&format!("{base}/kernel/net/core/failover.ko")].1.starts_with(b"\x7fELF"));
    assert!(
        text(&format!("{base}/modules.dep"))
            .contains("virtio_net.ko: kernel/net/core/failover.ko\n")
    );
    assert!(
        text(&format!("{base}/modules.alias")).contains("alias virtio:d00000001v* virtio_net\n")
    );

    assert_eq!(built.manifest.modules, ["failover", "igb", "snd_hda", "tg3", "virtio_net"]);
    assert_eq!(built.manifest.firmware, ["tigon/tg3.bin"]);
    let missing: Vec<&str> =
        built.manifest.missing_firmware.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(missing, ["intel/igb.bin", "tigon/gone.bin"]);
    assert_eq!(built.manifest.files.len(), files.len());
    assert_eq!(built.manifest.initrd.bytes, built.initrd.len() as u64);
}

#[test]
fn two_builds_are_identical() {
    for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
        let build = || {
            // Another folder with other times, and files made in another order.
            let bench = Bench::new();
            let mut options = bench.options();
            options.compression = compression;
            options.add = vec![(bench.path("firmware"), "/opt".into())];
            let built = initramfs::build(&options).unwrap();
            built.write(&bench.path("out")).unwrap();
            ["kernel", "initrd", "manifest.json"]
                .map(|name| std::fs::read(bench.path("out").join(name)).unwrap())
        };
        let (first, second) = (build(), build());
        assert_eq!(first, second, "{compression:?}");
        assert!(
            !String::from_utf8_lossy(&first[2]).contains("/tmp/"),
            "the manifest names paths of this machine"
        );
    }
}

#[test]
fn smaller_sets_hold_less() {
    let bench = Bench::new();
    let modules = |set| {
        let options = Options { module_set: set, ..bench.options() };
        initramfs::build(&options).unwrap().manifest.modules
    };
    assert_eq!(modules(ModuleSet::None), Vec::<String>::new());
    assert_eq!(modules(ModuleSet::Minimal), ["failover", "virtio_net"]);
    assert_eq!(modules(ModuleSet::Default), ["failover", "igb", "tg3", "virtio_net"]);
}

#[test]
fn mistakes_are_named() {
    let bench = Bench::new();
    let other_kernel = bench.write("other-vmlinuz", &bzimage("6.12.0"));
    let dynamic = bench.write("dynamic", &elf(X86_64, "", Some("/lib64/ld-linux-x86-64.so.2")));
    let foreign = bench.write("foreign", &elf(AARCH64, "", None));
    let script = bench.write("script", b"#!/bin/sh\n");
    let cases: [(&str, Options); 9] = [
        ("is version 6.12.0", Options { kernel: other_kernel, ..bench.options() }),
        ("is not a Linux kernel", Options { kernel: script.clone(), ..bench.options() }),
        ("linked dynamically", Options { agent: dynamic, ..bench.options() }),
        ("is for aarch64, the kernel is for x86_64", Options { agent: foreign, ..bench.options() }),
        ("near names: igb", Options { modules: vec!["igbb".into()], ..bench.options() }),
        ("chmod +x", Options { hooks: vec![script.clone()], ..bench.options() }),
        (
            "must not contain . or ..",
            Options { add: vec![(script.clone(), "/a/../b".into())], ..bench.options() },
        ),
        ("is there already", Options { add: vec![(script, "/init".into())], ..bench.options() }),
        ("run depmod", Options { modules_dir: bench.path("firmware"), ..bench.options() }),
    ];
    for (word, options) in cases {
        let error = initramfs::build(&options).unwrap_err().to_string();
        assert!(error.contains(word), "'{word}' is not in: {error}");
    }
}

#[test]
fn a_module_of_another_kernel_is_refused() {
    let bench = Bench::new();
    let path = format!("modules/{VERSION}/kernel/drivers/net/virtio_net.ko");
    for (modinfo, machine, word) in [
        ("vermagic=5.10.0 SMP\0", X86_64, "built for kernel 5.10.0"),
        ("license=GPL\0", AARCH64, "is for aarch64"),
    ] {
        bench.write(&path, &elf(machine, modinfo, None));
        let error = initramfs::build(&bench.options()).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("virtio_net.ko"), "{error}");
    }
}

const MACHINE: &str = "\
virtio:d00000001v00001AF4
pci:v00008086d00001533sv00008086sd00001533bc02sc00i00
pci:v000014E4d00001657sv0sd0bc02sc00i00
pci:v00001000d00000097sv0sd0bc01sc07i00
pci:v0000144Dd0000A808sv0sd0bc01sc08i02
pci:v00008086d0000A348sv0sd0bc04sc03i00
acpi:PNP0C0C:
acpi:PNP0C0C:
";

#[test]
fn the_audit_names_what_is_missing() {
    let bench = Bench::new();
    let built =
        initramfs::build(&Options { module_set: ModuleSet::Minimal, ..bench.options() }).unwrap();
    let audit = initramfs::audit(&built, MACHINE);
    assert!(audit.has_gaps());
    assert_eq!((audit.devices, audit.covered), (7, 2));
    let text = audit.to_string();
    for line in [
        "MISSING   pci:v00008086d00001533sv00008086sd00001533bc02sc00i00: the kernel has a driver, the initramfs does not: --module igb",
        "MISSING   pci:v00001000d00000097sv0sd0bc01sc07i00: kernel 6.1.0-test has no driver for it",
        "unneeded  acpi:PNP0C0C:: kernel 6.1.0-test has no driver for it",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert!(text.lines().any(|l| l.starts_with("unneeded") && l.contains("snd_hda")), "{text}");

    // With the drivers inside, the firmware is what is left.
    let built = initramfs::build(&bench.options()).unwrap();
    let text = initramfs::audit(&built, MACHINE).to_string();
    assert!(text.contains("tg3 may ask for firmware that is not inside: tigon/gone.bin"), "{text}");
    assert!(!initramfs::audit(&built, "virtio:d00000001v00001AF4\n").has_gaps());
}
