//! Boot Loader Specification entries, `loader/entries/*.conf`, and the order in which boot loaders offer them
//! (<https://uapi-group.org/specifications/specs/boot_loader_specification/>, and `version_format_specification/` beside it).
//!
//! Pure. Devicetrees, EFI programs and unified kernel images are read and refused: another kernel cannot start them.

use std::cmp::Ordering;

/// One entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlsEntry {
    /// The file's name without `.conf` and without the count of tries.
    pub id: String,
    /// What a menu shows.
    pub title: String,
    version: String,
    machine_id: String,
    sort_key: String,
    architecture: Option<String>,
    /// Whether its tries are used up.
    is_bad: bool,
    /// The kernel's path.
    pub linux: Option<String>,
    /// The initial RAM disks' paths.
    pub initrd: Vec<String>,
    /// The command line.
    pub options: String,
    /// A key that only a boot loader can follow.
    pub beyond: Option<&'static str>,
}

impl BlsEntry {
    /// Reads an entry; `None` if the file's name is not that of one.
    #[must_use]
    pub fn parse(file_name: &str, text: &str) -> Option<Self> {
        let stem = file_name.strip_suffix(".conf")?;
        let (id, is_bad) = match stem.rsplit_once('+') {
            Some((id, tries)) if is_count(tries) => (id, tries.split('-').next() == Some("0")),
            _ => (stem, false),
        };
        let mut entry = Self { id: id.to_owned(), is_bad, ..Self::default() };
        let mut options = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let value = value.trim();
            let own = || value.to_owned();
            match key {
                "title" => entry.title = own(),
                "version" => entry.version = own(),
                "machine-id" => entry.machine_id = own(),
                "sort-key" => entry.sort_key = own(),
                "architecture" => entry.architecture = Some(value.to_ascii_lowercase()),
                "linux" => entry.linux = Some(own()),
                // GRUB's distributions put several on one line.
                "initrd" => entry.initrd.extend(value.split_whitespace().map(str::to_owned)),
                "options" => options.push(value),
                "efi" | "uki" | "uki-url" => entry.beyond = Some("starts an EFI program"),
                "devicetree" | "devicetree-overlay" => {
                    entry.beyond = Some("comes with a devicetree");
                }
                _ => {}
            }
        }
        entry.options = options.join(" ");
        Some(entry)
    }

    /// Whether it is for the machine that this program runs on, and not given up.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let own = match std::env::consts::ARCH {
            "x86_64" => "x64",
            "aarch64" => "aa64",
            other => other,
        };
        !self.is_bad && self.architecture.as_deref().is_none_or(|wanted| wanted == own)
    }
}

/// `3` or `3-1`: tries that are left, and that were used.
fn is_count(text: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    text.splitn(2, '-').all(is_number)
}

/// As GRUB's `blscfg` offers them: by file name, the newest version first.
pub fn sort_for_grub(entries: &mut [BlsEntry]) {
    entries.sort_by(|a, b| compare_versions(&b.id, &a.id));
}

/// As systemd-boot offers them: those with a sort key first, then by version, the newest first.
pub fn sort_by_specification(entries: &mut [BlsEntry]) {
    entries.sort_by(|a, b| {
        let keys = a.sort_key.is_empty().cmp(&b.sort_key.is_empty());
        let by_key = || match a.sort_key.is_empty() {
            true => Ordering::Equal,
            false => a
                .sort_key
                .cmp(&b.sort_key)
                .then_with(|| a.machine_id.cmp(&b.machine_id))
                .then_with(|| compare_versions(&b.version, &a.version)),
        };
        keys.then_with(by_key).then_with(|| compare_versions(&b.id, &a.id))
    });
}

/// The default of systemd-boot's `loader.conf`: a pattern, or nothing.
///
/// # Errors
/// If it is one that firmware keeps.
pub fn loader_default(text: &str) -> Result<Option<String>, String> {
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if let Some(("default" | "preferred", value)) = line.split_once([' ', '\t']) {
            found = Some(value.trim().to_owned());
        }
    }
    match found {
        Some(value) if value.starts_with('@') => {
            Err(format!("loader.conf says '{}', which firmware keeps", value.escape_debug()))
        }
        found => Ok(found),
    }
}

/// Whether a text fits a pattern with `*` and `?`.
#[must_use]
pub fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last star is, and how far the text is that it stands for.
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, end)) = star else { return false };
                star = Some((at, end + 1));
                p = at + 1;
                t = end + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Compares versions as the version format specification says.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let counts = |c: &u8| c.is_ascii_alphanumeric() || b"~^.-".contains(c);
    loop {
        while let Some((_, rest)) = a.split_first().filter(|(c, _)| !counts(c)) {
            a = rest;
        }
        while let Some((_, rest)) = b.split_first().filter(|(c, _)| !counts(c)) {
            b = rest;
        }
        for (mark, order) in [
            (b'~', Ordering::Less),
            (0, Ordering::Equal),
            (b'-', Ordering::Less),
            (b'^', Ordering::Less),
            (b'.', Ordering::Less),
        ] {
            if mark == 0 {
                match (a.is_empty(), b.is_empty()) {
                    (true, true) => return Ordering::Equal,
                    (true, false) => return Ordering::Less,
                    (false, true) => return Ordering::Greater,
                    (false, false) => continue,
                }
            }
            match (a.first() == Some(&mark), b.first() == Some(&mark)) {
                (true, true) => (a, b) = (&a[1..], &b[1..]),
                (true, false) => return order,
                (false, true) => return order.reverse(),
                (false, false) => {}
            }
        }
        let digits = |text: &[u8]| text.iter().take_while(|c| c.is_ascii_digit()).count();
        let letters = |text: &[u8]| text.iter().take_while(|c| c.is_ascii_alphabetic()).count();
        let order;
        let ends = if digits(a) > 0 || digits(b) > 0 {
            let ends = (digits(a), digits(b));
            let number = |text: &[u8]| {
                let zeros = text.iter().take_while(|c| **c == b'0').count();
                text[zeros..].to_vec()
            };
            let (x, y) = (number(&a[..ends.0]), number(&b[..ends.1]));
            // A number beats none, whatever it is.
            order = (ends.0 > 0)
                .cmp(&(ends.1 > 0))
                .then_with(|| x.len().cmp(&y.len()))
                .then_with(|| x.cmp(&y));
            ends
        } else {
            let ends = (letters(a), letters(b));
            order = a[..ends.0].cmp(&b[..ends.1]);
            ends
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (&a[ends.0..], &b[ends.1..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEDORA: &str = "title Fedora Linux (6.11.4-301.fc41.x86_64) 41 (Forty One)\nversion 6.11.4-301.fc41.x86_64\n\
        linux /vmlinuz-6.11.4-301.fc41.x86_64\ninitrd /initramfs-6.11.4-301.fc41.x86_64.img $tuned_initrd\n\
        options root=UUID=4a0b ro rootflags=subvol=root rhgb quiet $tuned_params\n\
        grub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n";

    #[test]
    fn an_entry_is_read() {
        let entry = BlsEntry::parse("b0c1-6.11.4-301.fc41.x86_64.conf", FEDORA).unwrap();
        assert_eq!(entry.id, "b0c1-6.11.4-301.fc41.x86_64");
        assert_eq!(entry.linux.as_deref(), Some("/vmlinuz-6.11.4-301.fc41.x86_64"));
        assert_eq!(entry.initrd, ["/initramfs-6.11.4-301.fc41.x86_64.img", "$tuned_initrd"]);
        assert!(entry.options.ends_with("rhgb quiet $tuned_params"));
        assert!(entry.is_usable() && entry.beyond.is_none());
        assert_eq!(BlsEntry::parse("README", FEDORA), None);
        let other =
            BlsEntry::parse("a+0-3.conf", "linux /a\narchitecture x64\noptions a\noptions b\n");
        let other = other.unwrap();
        assert_eq!((other.id.as_str(), other.options.as_str()), ("a", "a b"));
        assert!(!other.is_usable());
        assert_eq!(
            BlsEntry::parse("a+3.conf", "efi /x.efi").unwrap().beyond,
            Some("starts an EFI program")
        );
        assert!(!BlsEntry::parse("a.conf", "architecture IA32").unwrap().is_usable());
    }

    #[test]
    fn the_newest_comes_first() {
        let named = |names: &[&str]| -> Vec<BlsEntry> {
            names.iter().map(|name| BlsEntry::parse(&format!("{name}.conf"), "").unwrap()).collect()
        };
        let ids = |entries: &[BlsEntry]| -> Vec<String> {
            entries.iter().map(|entry| entry.id.clone()).collect()
        };
        let mut entries = named(&["m-0-rescue", "m-6.9.1-1", "m-6.10.1-1", "m-6.10.1-1~rc1"]);
        sort_for_grub(&mut entries);
        assert_eq!(ids(&entries), ["m-6.10.1-1", "m-6.10.1-1~rc1", "m-6.9.1-1", "m-0-rescue"]);
        entries.reverse();
        entries[0].sort_key = "z".into();
        sort_by_specification(&mut entries);
        assert_eq!(entries[0].id, "m-0-rescue");
        assert_eq!(entries[1].id, "m-6.10.1-1");
    }

    /// The specification's own examples.
    #[test]
    fn versions_are_compared_as_specified() {
        for (less, greater) in [
            ("122.1", "123~rc1-1"),
            ("123~rc1-1", "123"),
            ("123", "123-a"),
            ("123-a", "123-a.1"),
            ("123-a.1", "123-1"),
            ("123-1", "123-1.1"),
            ("123-1.1", "123^post1"),
            ("123^post1", "123.a-1"),
            ("123.a-1", "123.1-1"),
            ("123.1-1", "123a-1"),
            ("123a-1", "124-1"),
        ] {
            assert_eq!(compare_versions(less, greater), Ordering::Less, "{less} {greater}");
            assert_eq!(compare_versions(greater, less), Ordering::Greater, "{less} {greater}");
        }
        assert_eq!(compare_versions("a_1", "a+01"), Ordering::Equal);
    }

    #[test]
    fn the_default_is_a_pattern() {
        assert_eq!(
            loader_default("timeout 3\n#default x\ndefault  arch-*\n").unwrap().unwrap(),
            "arch-*"
        );
        assert_eq!(loader_default("timeout 3\n").unwrap(), None);
        loader_default("default @saved").unwrap_err();
        for (pattern, text, good) in [
            ("arch-*", "arch-lts.conf", true),
            ("*", "", true),
            ("a?c", "abc", true),
            ("*.conf", "x.conf.old", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern, text), good, "{pattern} {text}");
        }
    }
}
