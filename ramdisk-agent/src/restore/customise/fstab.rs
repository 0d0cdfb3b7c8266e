//! Where a system's `fstab` mounts other filesystems over its root: what is changed beneath such a place would not be seen. Pure.

/// A line: what is mounted by itself when the system starts, over its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What is mounted, as it is written there.
    pub device: String,
    /// Where.
    pub point: String,
    options: String,
}

impl Entry {
    /// The subvolume of a btrfs that is mounted, if one is named; why it cannot be told.
    pub fn subvolume(&self) -> Result<Option<&str>, &'static str> {
        let option =
            |name: &str| self.options.split(',').rev().find_map(|option| option.strip_prefix(name));
        match (option("subvol="), option("subvolid=")) {
            (None, Some(_)) => Err("whose subvolume it has by number"),
            (name, _) => Ok(name),
        }
    }
}

/// What is mounted over the root, line by line.
pub fn entries(text: &str) -> Vec<Entry> {
    let entry = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (device, point) = (fields.next()?, fields.next()?);
        let options = fields.nth(1).unwrap_or_default();
        let is_mounted = !options.split(',').any(|option| option == "noauto")
            || options.contains("x-systemd.automount");
        let point = normal(&unescaped(point));
        let counts = !device.starts_with('#') && is_mounted && point.len() > 1;
        counts.then(|| Entry { device: unescaped(device), point, options: unescaped(options) })
    };
    text.lines().filter_map(entry).collect()
}

/// Whether a path is a mount point or lies below it.
pub fn is_below(path: &str, point: &str) -> bool {
    normal(path).strip_prefix(point).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The path from a mount point on: `.` is the point itself.
pub fn path_below(path: &str, point: &str) -> String {
    let path = normal(path);
    match path.strip_prefix(point).map(|rest| rest.trim_start_matches('/')) {
        None | Some("") => ".".to_owned(),
        Some(rest) => rest.to_owned(),
    }
}

/// A path without empty parts and those that lead nowhere; `none` and the like become empty.
fn normal(path: &str) -> String {
    if !path.starts_with('/') {
        return String::new();
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `\040` is a space: `fstab(5)` writes what would end a field like that.
pub fn unescaped(field: &str) -> String {
    let mut text = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(u8::is_ascii) {
            Some(byte) => {
                text.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                text.push('\\');
                rest = after;
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_that_are_mounted_over_the_root() {
        let text = "# /dev/sda1 /old ext4\n\
                    UUID=1 / ext4 errors=remount-ro 0 1\n\
                    UUID=2\t/boot/efi//  vfat umask=0077 0 1\n\
                    UUID=3 none swap sw 0 0\n\
                    #UUID=4 /var ext4\n\
                    /dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0\n\
                    UUID=5 /data xfs noauto,x-systemd.automount\n\
                    /swapfile\n\
                    tmpfs /with\\040space tmpfs\n";
        let points: Vec<String> = entries(text).into_iter().map(|entry| entry.point).collect();
        assert_eq!(points, ["/boot/efi", "/data", "/with space"]);
    }

    #[test]
    fn subvolumes_by_name() {
        let subvolume = |options: &str| {
            let text = format!("UUID=1 /var btrfs {options} 0 0");
            entries(&text)[0].subvolume().map(|name| name.map(str::to_owned))
        };
        assert_eq!(subvolume("defaults"), Ok(None));
        assert_eq!(subvolume("noatime,subvol=/@/var"), Ok(Some("/@/var".into())));
        assert_eq!(subvolume("subvolid=257,subvol=@var"), Ok(Some("@var".into())));
        assert!(subvolume("subvolid=257").is_err());
    }

    #[test]
    fn paths_below_a_place() {
        for (path, point, below) in [
            ("/var/lib/x", "/var", true),
            ("/var", "/var", true),
            ("/variable", "/var", false),
            ("/etc/../var/x", "/var", true),
            ("//var/./x", "/var", true),
            ("/", "/var", false),
        ] {
            assert_eq!(is_below(path, point), below, "{path}");
        }
        for (path, rest) in [("/var/lib/x", "lib/x"), ("//var//", "."), ("/etc/../var/x", "x")] {
            assert_eq!(path_below(path, "/var"), rest, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_text_has_places(text in "\\PC{0,60}|[ /\\\\0-9\n.nova]{0,60}") {
            for Entry { point, .. } in entries(&text) {
                prop_assert!(is_below(&point, &point));
                prop_assert_eq!(path_below(&point, &point), ".");
            }
        }
    }
}
