//! The file tree of an initramfs, and its form as a `newc` cpio archive.
//!
//! Linux `Documentation/driver-api/early-userspace/buffer-format.rst` describes the format. Entries come out sorted, so that
//! every folder precedes what is in it; everything belongs to root, inode numbers count up, and all times are one given value.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// What a path of the initramfs is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Dir {
        /// Permission bits.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Permission bits.
        mode: u32,
        /// Its content.
        content: Vec<u8>,
    },
    /// A symbolic link.
    Link {
        /// What it points to.
        target: String,
    },
    /// A character device.
    Device {
        /// Permission bits.
        mode: u32,
        /// Device number.
        major: u32,
        /// Device number.
        minor: u32,
    },
}

const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

impl Node {
    /// File type and permission bits, as in `st_mode`.
    #[must_use]
    pub fn mode(&self) -> u32 {
        match self {
            Self::Dir { mode } => S_IFDIR | mode,
            Self::File { mode, .. } => S_IFREG | mode,
            Self::Link { .. } => S_IFLNK | 0o777,
            Self::Device { mode, .. } => S_IFCHR | mode,
        }
    }

    /// What the archive stores for it: a file's content, a link's target.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        match self {
            Self::File { content, .. } => content,
            Self::Link { target } => target.as_bytes(),
            Self::Dir { .. } | Self::Device { .. } => &[],
        }
    }
}

/// The tree. Paths have no leading slash.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Adds a node at an absolute path, with the folders above it. A folder may be added again; anything else that is there
    /// already is an error.
    pub fn insert(&mut self, path: &str, node: Node) -> Result<()> {
        let bad = |why| Error::BadPath { path: path.to_owned(), why };
        let inner = path.strip_prefix('/').ok_or_else(|| bad("must begin with /"))?;
        if inner.is_empty() || inner.contains('\0') {
            return Err(bad("names no file"));
        }
        for part in inner.split('/') {
            match part {
                "" => {
                    return Err(bad(
                        "has an empty part: write single slashes, and none at the end",
                    ));
                }
                "." | ".." => return Err(bad("must not contain . or ..")),
                _ => {}
            }
        }
        for (at, _) in inner.match_indices('/') {
            match self.nodes.get(&inner[..at]) {
                None => {
                    self.nodes.insert(inner[..at].to_owned(), Node::Dir { mode: 0o755 });
                }
                Some(Node::Dir { .. }) => {}
                Some(_) => return Err(bad("lies below something that is not a folder")),
            }
        }
        match (self.nodes.get(inner), &node) {
            (None, _) => {}
            (Some(Node::Dir { .. }), Node::Dir { .. }) => return Ok(()),
            (Some(_), _) => {
                return Err(bad("is there already: the initramfs holds one file of each name"));
            }
        }
        self.nodes.insert(inner.to_owned(), node);
        Ok(())
    }

    /// Looks a path up, following links in its parts as the kernel would; `None` if it leads nowhere.
    #[must_use]
    pub fn resolve(&self, path: &str) -> Option<&Node> {
        /// As many as the kernel follows.
        const MAX_LINKS: usize = 40;
        let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(part),
            }
            if let Node::Link { target } = self.nodes.get(&done.join("/"))? {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                done.pop();
                if target.starts_with('/') {
                    done.clear();
                }
                rest.extend(target.split('/').rev().map(str::to_owned));
            }
        }
        self.nodes.get(&done.join("/"))
    }

    /// Every node with its path, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// The archive. `mtime` is the time of every entry, in seconds since 1970.
    pub fn to_cpio(&self, mtime: u32) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let too_large = |path: &str| Error::BadPath {
            path: format!("/{path}"),
            why: "is 4 GiB or larger, which a cpio archive cannot hold",
        };
        for ((path, node), ino) in self.nodes.iter().zip(1u32..) {
            let content = node.content();
            let len = u32::try_from(content.len()).map_err(|_| too_large(path))?;
            let mut entry = cpio::newc::Builder::new(path)
                .ino(ino)
                .mode(node.mode())
                .nlink(if matches!(node, Node::Dir { .. }) { 2 } else { 1 })
                .mtime(mtime);
            if let Node::Device { major, minor, .. } = node {
                entry = entry.rdev_major(*major).rdev_minor(*minor);
            }
            let mut writer = entry.write(out, len);
            out = std::io::Write::write_all(&mut writer, content)
                .and_then(|()| writer.finish())
                .map_err(Error::io("archiving", path.as_ref()))?;
        }
        cpio::newc::trailer(out).map_err(Error::io("archiving", "TRAILER!!!".as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Node {
        Node::File { mode: 0o644, content: text.as_bytes().to_vec() }
    }

    #[test]
    fn folders_come_first_and_once() {
        let mut tree = Tree::default();
        tree.insert("/a/b/c", file("1")).unwrap();
        tree.insert("/a-x", file("2")).unwrap();
        tree.insert("/a/b/d", file("3")).unwrap();
        let paths: Vec<_> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["a", "a-x", "a/b", "a/b/c", "a/b/d"]);
    }

    #[test]
    fn paths_that_would_leave_or_clash_are_refused() {
        let mut tree = Tree::default();
        tree.insert("/init", file("agent")).unwrap();
        for path in [
            "init2", "/", "/../etc", "/a/../b", "/a//b", "/a/", "/./a", "/init", "/init/x", "/a\0b",
        ] {
            assert!(tree.insert(path, file("x")).is_err(), "{path:?}");
        }
    }

    #[test]
    fn links_are_followed() {
        let mut tree = Tree::default();
        tree.insert("/usr/bin/busybox", file("b")).unwrap();
        tree.insert("/bin", Node::Link { target: "usr/bin".into() }).unwrap();
        tree.insert("/usr/bin/sh", Node::Link { target: "busybox".into() }).unwrap();
        tree.insert("/loop", Node::Link { target: "/loop".into() }).unwrap();
        assert_eq!(tree.resolve("/bin/sh"), Some(&file("b")));
        assert_eq!(tree.resolve("/bin/ash"), None);
        assert_eq!(tree.resolve("/loop"), None);
    }

    #[test]
    fn gnu_cpio_reads_it() {
        let mut tree = Tree::default();
        tree.insert("/dev/console", Node::Device { mode: 0o600, major: 5, minor: 1 }).unwrap();
        tree.insert("/init", Node::File { mode: 0o755, content: vec![7; 1001] }).unwrap();
        tree.insert("/sbin/modprobe", Node::Link { target: "../init".into() }).unwrap();
        let archive = tree.to_cpio(0).unwrap();
        assert_eq!(archive.len() % 4, 0);
        let mut child = std::process::Command::new("cpio")
            .args(["-itvn", "--quiet"])
            .env("TZ", "UTC")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("this test needs cpio: apt-get install cpio");
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), &archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> =
            listing.lines().map(|l| l.split_whitespace().collect()).collect();
        let has = |first: &str, last: &str| {
            lines.iter().any(|l| l[0] == first && *l.last().unwrap() == last)
        };
        assert!(has("crw-------", "dev/console"), "{listing}");
        assert!(has("-rwxr-xr-x", "init"), "{listing}");
        assert!(has("lrwxrwxrwx", "../init"), "{listing}");
        assert!(has("drwxr-xr-x", "sbin"), "{listing}");
        assert!(listing.contains("5,   1") && listing.contains("1001"), "{listing}");
    }
}
