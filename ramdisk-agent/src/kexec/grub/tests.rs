use super::*;

fn env(text: &str) -> Environment {
    Environment::parse(&format!("# GRUB Environment Block\n{text}")).unwrap()
}

fn chosen(config: &str, kept: &str) -> Result<Choice, String> {
    parse(config)?.choose(&env(kept))
}

fn entry(config: &str, kept: &str) -> (Entry, Option<String>) {
    match chosen(config, kept).unwrap() {
        Choice { what: What::Menu(entry), root_uuid } => (entry, root_uuid),
        other => panic!("{other:?}"),
    }
}

const DEBIAN: &str = include_str!("samples/debian-12.cfg");
const UBUNTU: &str = include_str!("samples/ubuntu-24.04.cfg");
const FEDORA: &str = include_str!("samples/fedora-41.cfg");

#[test]
fn debian_starts_its_newest_kernel() {
    let (entry, root) = entry(DEBIAN, "");
    assert_eq!(entry.name, "Debian GNU/Linux");
    assert_eq!(entry.kernel, "/boot/vmlinuz-6.1.0-28-amd64");
    assert_eq!(entry.initrds, ["/boot/initrd.img-6.1.0-28-amd64"]);
    let uuid = "1b3a1c9e-5f0a-4f53-9a52-6d6f2f5c7e11";
    assert_eq!(entry.command_line, format!("root=UUID={uuid} ro quiet console=ttyS0,115200n8"));
    assert_eq!(root.as_deref(), Some(uuid));
}

#[test]
fn ubuntu_hands_no_screen_over() {
    let (entry, root) = entry(UBUNTU, "");
    assert_eq!(entry.name, "Ubuntu");
    // A filesystem of its own for /boot.
    assert_eq!(entry.kernel, "/vmlinuz-6.8.0-49-generic");
    assert_eq!(entry.initrds, ["/initrd.img-6.8.0-49-generic"]);
    assert_eq!(entry.command_line, "root=/dev/mapper/ubuntu--vg-ubuntu--lv ro quiet splash");
    assert_eq!(root.as_deref(), Some("7deefe43-3a38-414b-9f9f-6f54e63ff46e"));
}

#[test]
fn a_saved_default_leads_through_submenus() {
    let saved = DEBIAN.replace("set default=\"0\"", "set default=\"${saved_entry}\"");
    let advanced = "gnulinux-advanced-1b3a1c9e-5f0a-4f53-9a52-6d6f2f5c7e11>gnulinux-6.1.0-26-amd64-advanced-1b3a1c9e-5f0a-4f53-9a52-6d6f2f5c7e11";
    let kernel = |kept: &str| entry(&saved, kept).0.kernel;
    assert_eq!(kernel(&format!("saved_entry={advanced}\n")), "/boot/vmlinuz-6.1.0-26-amd64");
    assert_eq!(kernel("saved_entry=1>2\n"), "/boot/vmlinuz-6.1.0-26-amd64");
    let titles =
        "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-26-amd64";
    assert_eq!(kernel(&format!("saved_entry={titles}\n")), "/boot/vmlinuz-6.1.0-26-amd64");
    assert_eq!(kernel(""), "/boot/vmlinuz-6.1.0-28-amd64");
    for bad in ["1", "7", "nothing", "0>0", "1>9", "UEFI Firmware Settings", "1>"] {
        chosen(&saved, &format!("saved_entry={bad}\n")).unwrap_err();
    }
    chosen(&saved, "next_entry=1>2\n").unwrap_err();
}

#[test]
fn fedora_leaves_it_to_its_entries() {
    let config = parse(FEDORA).unwrap();
    let kept = env("saved_entry=b0c1-6.11.4-301.fc41.x86_64\nboot_success=1\n");
    let choice = config.choose(&kept).unwrap();
    assert_eq!(choice.what, What::Bls("b0c1-6.11.4-301.fc41.x86_64".into()));
    assert_eq!(choice.root_uuid.as_deref(), Some("c2d9c6a5-0e2f-43e8-8f7e-8c2b87b1f2aa"));
    assert_eq!(config.choose(&env("")).unwrap().what, What::Bls("0".into()));
    let words = |text: &str| config.expand_text(text, &kept);
    assert_eq!(words("ro  quiet $tuned_params").unwrap(), ["ro", "quiet"]);
    assert!(words("$kernelopts").unwrap_err().contains("$kernelopts"));
    assert!(words("root=$x").is_err());
}

const PLAIN: &str = "menuentry a {\n linux /k root=$r x\n initrd /i /j\n}\n";

#[test]
fn variables_are_believed_when_they_are_sure() {
    let line = |text: &str, kept: &str| chosen(&format!("{text}\n{PLAIN}"), kept);
    let ok = |text: &str, kept: &str| entry(&format!("{text}\n{PLAIN}"), kept).0.command_line;
    assert_eq!(ok("set r=/dev/sda1", ""), "root=/dev/sda1 x");
    assert_eq!(ok("r='a b'", ""), "root=a b x");
    assert_eq!(ok("", "r=kept"), "root=kept x");
    for unsure in [
        "",
        "set r=1\nset r=2",
        "if [ a ]; then set r=1; fi",
        "set r=$other",
        "set r=1\nif true; then\n set r=2\nfi",
    ] {
        let error = line(unsure, "").unwrap_err();
        assert!(error.contains("$r is not sure"), "{unsure}: {error}");
    }
    assert_eq!(entry(&format!("set r=1\n{PLAIN}"), "").0.initrds, ["/i", "/j"]);
}

#[test]
fn words_with_blanks_are_quoted_as_grub_does() {
    let (entry, root) = entry("menuentry a { linux ($root)/k 'dyndbg=file x +p' a\\\"b; }", "");
    assert_eq!((entry.kernel.as_str(), root), ("/k", None));
    assert_eq!(entry.command_line, r#""dyndbg=file x +p" a\"b"#);
}

#[test]
fn what_is_not_sure_is_refused() {
    for (config, words) in [
        ("", "no entry '0'"),
        ("menuentry a { chainloader +1; }", "not known: chainloader"),
        ("menuentry a { insmod linux; }", "starts no Linux"),
        ("menuentry a { linux; }", "names no kernel"),
        ("menuentry a { linux k; }", "is no path"),
        ("menuentry a { linux (hd1,1)/k; }", "is no path"),
        ("menuentry a { set root=hd0,1; linux /k; }", "GRUB's number"),
        ("menuentry a { search --label --set=root x; linux /k; }", "something else than a UUID"),
        (
            "menuentry a { search -u --set=root x; search -u --set=root y; linux /k; }",
            "depends on a condition",
        ),
        ("menuentry a { linux /k; linux /j; }", "said twice"),
        ("menuentry a { if [ $x ]; then linux /k; fi; }", "depends on a condition"),
        ("menuentry a { multiboot2 /xen; module2 /k; }", "multiboot2"),
        ("menuentry a { $x /k; }", "not known"),
        ("if [ $x ]; then\nmenuentry a { linux /k; }\nfi", "depends on a condition"),
        (
            "if [ $x ]; then set default=0; else set default=1; fi\nmenuentry a { linux /k; }",
            "depends on a condition",
        ),
        ("set default=$x\nmenuentry a { linux /k; }", "depends on $x"),
        ("source /other.cfg\nmenuentry a { linux /k; }", "another configuration"),
        ("function f {\nmenuentry a { linux /k; }\n}", "a function of it"),
        ("menuentry a { menuentry b { linux /k; }\n}", "in another"),
        ("if [ x ]; then blscfg; fi", "blscfg depends"),
        ("menuentry a { linux /k; }\nblscfg", "in front of"),
        ("linux /k\nboot", "outside of"),
        ("menuentry a {", "not closed"),
        ("}", "not open"),
        ("fi", "has not begun"),
        ("x {\n}", "neither menu entry"),
        ("submenu a { menuentry b { linux /k; }\n}", "is a submenu"),
    ] {
        let error = chosen(config, "").unwrap_err();
        assert!(error.contains(words), "{config}: {error}");
    }
    let deep = format!("{}{}", "if true; then\n".repeat(100), "fi\n".repeat(100));
    assert!(chosen(&deep, "").unwrap_err().contains("deeper"));
}

proptest::proptest! {
    /// Whatever it reads, it ends with a value or a reason.
    #[test]
    fn any_text_is_read_to_its_end(pieces in proptest::collection::vec(0_usize..24, 0..60), noise in ".{0,20}") {
        const PIECES: [&str; 22] = [
            "menuentry ", "submenu ", "'a' ", "{", "}", "\n", "; ", " ", "if ", "then ", "fi ", "linux /k ", "initrd /i ",
            "set default=", "$x", "${y}", "\"", "search -u --set=root u ", "set ", "blscfg", "function f ", "x=1 ",
        ];
        let text: String = pieces.iter().map(|n| PIECES.get(*n).copied().unwrap_or(&noise)).collect();
        if let Ok(config) = parse(&text) {
            let _ = config.choose(&Environment::default());
            let _ = config.expand_text(&noise, &Environment::default());
        }
    }
}
