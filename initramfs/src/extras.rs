//! What the user puts into the image: files, hooks, settings.

use std::path::{Path, PathBuf};

use crate::archive::{Node, Tree};
use crate::elf::Elf;
use crate::{Error, Result};

/// Where the agent looks for hooks.
pub(crate) const HOOKS_DIR: &str = "/etc/imprint/hooks.d";

/// Adds a file, a link or a whole folder of this machine at `inside`.
///
/// A file is 0755 if its owner may execute it, otherwise 0644; owners, times and other attributes are not kept.
pub(crate) fn add(tree: &mut Tree, file: &Path, inside: &str) -> Result<()> {
    let meta = std::fs::symlink_metadata(file).map_err(Error::reading(file))?;
    // The named file itself may be a link to what is meant; links inside a folder are meant as links.
    let meta = if meta.is_symlink() {
        std::fs::metadata(file).map_err(Error::reading(file))?
    } else {
        meta
    };
    if meta.is_dir() { add_folder(tree, file, inside) } else { add_file(tree, file, inside) }
}

fn add_folder(tree: &mut Tree, folder: &Path, inside: &str) -> Result<()> {
    tree.insert(inside, Node::Dir { mode: 0o755 })?;
    for entry in std::fs::read_dir(folder).map_err(Error::reading(folder))? {
        let entry = entry.map_err(Error::reading(folder))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::reading(&path))?;
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| Error::BadPath {
            path: path.display().to_string(),
            why: "is not UTF-8, which names in the initramfs must be",
        })?;
        let inside = format!("{}/{name}", inside.trim_end_matches('/'));
        if kind.is_symlink() {
            let target = std::fs::read_link(&path).map_err(Error::reading(&path))?;
            tree.insert(&inside, Node::Link { target: target.to_string_lossy().into_owned() })?;
        } else if kind.is_dir() {
            add_folder(tree, &path, &inside)?;
        } else {
            add_file(tree, &path, &inside)?;
        }
    }
    Ok(())
}

fn add_file(tree: &mut Tree, file: &Path, inside: &str) -> Result<()> {
    let mode = if is_executable(file)? { 0o755 } else { 0o644 };
    tree.insert(inside, Node::File { mode, content: read_regular(file)? })
}

/// Adds a hook under its own file name.
pub(crate) fn add_hook(tree: &mut Tree, file: &Path) -> Result<String> {
    let bad = |why: &str| Error::BadHook { path: file.to_owned(), why: why.to_owned() };
    let content = read_regular(file)?;
    if !is_executable(file)? {
        return Err(bad("is not executable: chmod +x it"));
    }
    if !content.starts_with(b"#!") && Elf::parse(&content).is_none() {
        return Err(bad("is neither a script that begins with #! nor a program"));
    }
    let name = file
        .file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(|| bad("has a name that is not UTF-8"))?;
    let inside = format!("{HOOKS_DIR}/{name}");
    tree.insert(&inside, Node::File { mode: 0o755, content })?;
    Ok(inside)
}

/// Checks that what a hook needs to start is in the finished tree.
pub(crate) fn check_hook(tree: &Tree, file: &Path, inside: &str, machine: &str) -> Result<()> {
    let bad = |why: String| Error::BadHook { path: file.to_owned(), why };
    let Some(Node::File { content, .. }) = tree.resolve(inside) else {
        return Err(bad("is not in the initramfs".into()));
    };
    let interpreter = match Elf::parse(content) {
        Some(elf) if elf.machine() != machine => {
            return Err(bad(format!("is for {}, the kernel is for {machine}", elf.machine())));
        }
        Some(elf) => elf.interpreter().map(|path| String::from_utf8_lossy(path).into_owned()),
        None => Some(script_interpreter(content)),
    };
    let Some(interpreter) = interpreter else { return Ok(()) };
    match tree.resolve(&interpreter) {
        Some(Node::File { mode, .. }) if mode & 0o111 != 0 => Ok(()),
        _ => Err(bad(format!(
            "is run by '{interpreter}', which is not in the initramfs: add it, for example \
             --add /bin/busybox:/bin/sh with a static busybox, or give a static program as the hook"
        ))),
    }
}

fn script_interpreter(content: &[u8]) -> String {
    let line = content.split(|b| *b == b'\n').next().unwrap_or_default();
    let text = String::from_utf8_lossy(line.strip_prefix(b"#!").unwrap_or(line)).into_owned();
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// One `KEY=VALUE` for the agent's settings file.
pub(crate) fn check_setting(text: &str) -> Result<()> {
    let bad = |why| Error::BadOption { option: "--set", value: text.to_owned(), why };
    let key = text.split('=').next().unwrap_or_default();
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err(bad("must look like imprint.dhcp_timeout=30"));
    }
    if text.chars().any(char::is_control) {
        return Err(bad("holds a control character"));
    }
    Ok(())
}

/// Splits `FILE:PATH` at the last colon.
pub(crate) fn split_add(text: &str) -> Result<(PathBuf, String)> {
    match text.rsplit_once(':') {
        Some((file, inside)) if !file.is_empty() && inside.starts_with('/') => {
            Ok((file.into(), inside.to_owned()))
        }
        _ => Err(Error::BadOption {
            option: "--add",
            value: text.to_owned(),
            why: "must look like FILE:PATH, with PATH the absolute path inside the initramfs",
        }),
    }
}

fn read_regular(file: &Path) -> Result<Vec<u8>> {
    let meta = std::fs::metadata(file).map_err(Error::reading(file))?;
    if !meta.is_file() {
        let source = std::io::Error::other("it is neither a regular file nor a folder");
        return Err(Error::reading(file)(source));
    }
    std::fs::read(file).map_err(Error::reading(file))
}

fn is_executable(file: &Path) -> Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    let meta = std::fs::metadata(file).map_err(Error::reading(file))?;
    Ok(meta.permissions().mode() & 0o100 != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn hook(path: &Path, shell: bool) -> Result<()> {
        let mut tree = Tree::default();
        if shell {
            tree.insert("/bin/sh", Node::File { mode: 0o755, content: Vec::new() })?;
        }
        let inside = add_hook(&mut tree, path)?;
        check_hook(&tree, path, &inside, "x86_64")
    }

    #[test]
    fn hooks_that_could_not_start_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let good = script(dir.path(), "10-good", "#! /bin/sh -e\ntrue\n", 0o755);
        assert!(hook(&good, true).is_ok());
        for (path, shell, word) in [
            (good.clone(), false, "'/bin/sh', which is not in the initramfs"),
            (script(dir.path(), "plain", "#!/bin/sh\n", 0o644), true, "chmod +x"),
            (script(dir.path(), "bare", "true\n", 0o755), true, "#!"),
            (PathBuf::from("/bin/true"), true, "ld-linux"),
        ] {
            let error = hook(&path, shell).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn folders_are_added_with_their_links() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        script(dir.path(), "sub/tool", "x", 0o700);
        script(dir.path(), "sub/data", "y", 0o600);
        std::os::unix::fs::symlink("tool", dir.path().join("sub/link")).unwrap();
        let mut tree = Tree::default();
        add(&mut tree, dir.path(), "/opt").unwrap();
        let list: Vec<_> =
            tree.iter().map(|(path, node)| format!("{path} {:o}", node.mode())).collect();
        assert_eq!(
            list,
            [
                "opt 40755",
                "opt/sub 40755",
                "opt/sub/data 100644",
                "opt/sub/link 120777",
                "opt/sub/tool 100755"
            ]
        );
        assert!(add(&mut tree, &dir.path().join("sub/data"), "/opt/../x").is_err());
        assert!(add(&mut tree, Path::new("/dev/null"), "/null").is_err());
    }

    #[test]
    fn options_are_checked() {
        assert_eq!(split_add("a:b:/c").unwrap(), ("a:b".into(), "/c".into()));
        for text in ["a", "a:", ":/c", "a:c"] {
            assert!(split_add(text).is_err(), "{text}");
        }
        assert!(check_setting("imprint.hold=1").is_ok() && check_setting("imprint.hold").is_ok());
        for text in ["", "=1", "a b=1", "a=1\nb=2"] {
            assert!(check_setting(text).is_err(), "{text:?}");
        }
    }
}
