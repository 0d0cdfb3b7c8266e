//! Puts an image together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::archive::{Node, Tree};
use crate::elf::Elf;
use crate::firmware::Firmware;
use crate::kernel_image::KernelImage;
use crate::manifest::{self, FileSum, Manifest, MissingFirmware};
use crate::module_tree::{ModuleTree, name_of};
use crate::{Compression, Error, ModuleSet, Result, extras};

/// What to build.
#[derive(Debug, Clone)]
pub struct Options {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The module tree of that kernel, named after its version.
    pub modules_dir: PathBuf,
    /// The static agent.
    pub agent: PathBuf,
    /// The set to begin with.
    pub module_set: ModuleSet,
    /// More modules, folders of modules, or aliases.
    pub modules: Vec<String>,
    /// Where firmware files are.
    pub firmware_dir: Option<PathBuf>,
    /// More files: here, and in the initramfs.
    pub add: Vec<(PathBuf, String)>,
    /// Scripts or programs that the agent runs before work.
    pub hooks: Vec<PathBuf>,
    /// Lines for `agent.conf`.
    pub settings: Vec<String>,
    /// Compression of the archive.
    pub compression: Compression,
    /// Time of every entry, in seconds since 1970.
    pub mtime: u32,
}

/// A finished image, in memory.
#[derive(Debug)]
pub struct Built {
    /// What is in it.
    pub manifest: Manifest,
    /// The kernel, as it was.
    pub kernel: Vec<u8>,
    /// The initramfs.
    pub initrd: Vec<u8>,
    /// The tree that the modules came from.
    pub tree: ModuleTree,
}

/// Builds an image.
///
/// # Errors
/// Anything that would make an image that does not boot, or that lacks what was asked for by name.
pub fn build(options: &Options) -> Result<Built> {
    let kernel = std::fs::read(&options.kernel).map_err(Error::reading(&options.kernel))?;
    let image = KernelImage::parse(&options.kernel, &kernel)?;
    let tree = ModuleTree::open(&options.modules_dir)?;
    if let Some(version) = image.version.as_ref().filter(|v| *v != tree.version()) {
        return Err(Error::VersionMismatch {
            path: options.kernel.clone(),
            kernel: version.clone(),
            dir: options.modules_dir.clone(),
            modules: tree.version().to_owned(),
        });
    }
    let agent = std::fs::read(&options.agent).map_err(Error::reading(&options.agent))?;
    check_agent(&options.agent, &agent, image.machine)?;
    let agent_sum = FileSum::of(&agent);

    let mut root = skeleton(agent)?;
    let chosen = choose(&tree, options)?;
    let inside = tree.closure(&chosen.wanted);
    let (modules_bytes, firmware_names) = add_modules(&mut root, &tree, &inside, image.machine)?;
    let firmware = Firmware::collect(options.firmware_dir.as_deref(), &firmware_names)?;
    let mut firmware_bytes = 0;
    for (name, content) in &firmware.files {
        firmware_bytes += content.len() as u64;
        root.insert(
            &format!("/lib/firmware/{name}"),
            Node::File { mode: 0o644, content: content.clone() },
        )?;
    }
    let load: String = chosen.load.iter().map(|name| format!("{name}\n")).collect();
    root.insert("/etc/imprint/modules", Node::File { mode: 0o644, content: load.into_bytes() })?;
    let hooks = add_extras(&mut root, options, image.machine)?;

    let archive = root.to_cpio(options.mtime)?;
    let unpacked_bytes = archive.len() as u64;
    let initrd =
        options.compression.pack(archive).map_err(Error::io("compressing", "initrd".as_ref()))?;
    let manifest = Manifest {
        version: 1,
        machine: image.machine.to_owned(),
        kernel_version: tree.version().to_owned(),
        kernel: FileSum::of(&kernel),
        initrd: FileSum::of(&initrd),
        compression: options.compression,
        unpacked_bytes,
        agent: agent_sum,
        module_set: options.module_set,
        modules: inside.into_iter().collect(),
        modules_bytes,
        load: chosen.load,
        firmware: firmware.files.into_keys().collect(),
        firmware_bytes,
        missing_firmware: firmware
            .missing
            .into_iter()
            .map(|(name, modules)| MissingFirmware { name, modules })
            .collect(),
        settings: options.settings.clone(),
        hooks,
        files: manifest::files(&root),
    };
    Ok(Built { manifest, kernel, initrd, tree })
}

impl Built {
    /// Writes `kernel`, `initrd` and `manifest.json` into a folder. Each file is replaced as a whole, the manifest last, so that
    /// a controller that serves the folder never reads half a file.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(Error::io("making folder", dir))?;
        let mut manifest =
            serde_json::to_vec_pretty(&self.manifest).expect("plain data becomes JSON");
        manifest.push(b'\n');
        for (name, content) in
            [("kernel", &self.kernel), ("initrd", &self.initrd), ("manifest.json", &manifest)]
        {
            let path = dir.join(name);
            let partial = dir.join(format!(".{name}.partial"));
            std::fs::write(&partial, content).map_err(Error::io("writing", &partial))?;
            std::fs::rename(&partial, &path).map_err(Error::io("writing", &path))?;
        }
        Ok(())
    }
}

/// Whether a program runs without any library or interpreter.
///
/// # Errors
/// If the file cannot be read, or is no 64-bit ELF program.
pub fn is_static_program(path: &Path) -> Result<bool> {
    let bytes = std::fs::read(path).map_err(Error::reading(path))?;
    let Some(elf) = Elf::parse(&bytes) else {
        let why = "is not a 64-bit ELF program".to_owned();
        return Err(Error::BadAgent { path: path.to_owned(), why });
    };
    Ok(elf.interpreter().is_none())
}

fn check_agent(path: &Path, bytes: &[u8], machine: &str) -> Result<()> {
    let bad = |why: String| Err(Error::BadAgent { path: path.to_owned(), why });
    let Some(elf) = Elf::parse(bytes) else {
        return bad("is not a 64-bit ELF program".into());
    };
    if elf.machine() != machine {
        return bad(format!("is for {}, the kernel is for {machine}", elf.machine()));
    }
    if let Some(interpreter) = elf.interpreter() {
        return bad(format!(
            "is linked dynamically (it wants {}), but there are no libraries in the initramfs: build a static one with \
             `cargo xtask agent`",
            String::from_utf8_lossy(interpreter)
        ));
    }
    Ok(())
}

fn skeleton(agent: Vec<u8>) -> Result<Tree> {
    let mut root = Tree::default();
    root.insert("/init", Node::File { mode: 0o755, content: agent })?;
    // The kernel runs this path when it wants a module by itself; the agent answers to the name.
    root.insert("/sbin/modprobe", Node::Link { target: "../init".into() })?;
    root.insert("/bin/imprint-agent", Node::Link { target: "../init".into() })?;
    root.insert("/dev/console", Node::Device { mode: 0o600, major: 5, minor: 1 })?;
    root.insert("/dev/null", Node::Device { mode: 0o666, major: 1, minor: 3 })?;
    for (path, mode) in
        [("/proc", 0o555), ("/sys", 0o555), ("/run", 0o755), ("/tmp", 0o1777), ("/root", 0o700)]
    {
        root.insert(path, Node::Dir { mode })?;
    }
    root.insert(extras::HOOKS_DIR, Node::Dir { mode: 0o755 })?;
    Ok(root)
}

struct Chosen {
    wanted: BTreeSet<String>,
    /// The modules that were asked for by name: loaded even if no device asks for them.
    load: Vec<String>,
}

fn choose(tree: &ModuleTree, options: &Options) -> Result<Chosen> {
    let mut wanted = options.module_set.modules(tree);
    let mut load: Vec<String> = Vec::new();
    for name in &options.modules {
        let found = tree.find(name).ok_or_else(|| {
            let near = match tree.near(name).as_slice() {
                [] => String::new(),
                names => format!("; near names: {}", names.join(", ")),
            };
            Error::NoSuchModule { name: name.clone(), near }
        })?;
        match found.first() {
            Some(module) if *module == name_of(name) && !load.contains(module) => {
                load.push(module.clone())
            }
            _ => {}
        }
        wanted.extend(found);
    }
    Ok(Chosen { wanted, load })
}

/// Adds module files and the lists that `modprobe` reads; the bytes of the files, and the firmware names of each module.
fn add_modules(
    root: &mut Tree,
    tree: &ModuleTree,
    inside: &BTreeSet<String>,
    machine: &str,
) -> Result<(u64, BTreeMap<String, Vec<String>>)> {
    let base = format!("/lib/modules/{}", tree.version());
    let mut total = 0;
    let mut firmware = BTreeMap::new();
    for name in inside {
        let module = &tree.modules()[name];
        let content = tree.read(module)?;
        let info = tree.info(module, &content)?;
        let bad = |why| Error::BadModule { path: tree.dir().join(&module.path), why };
        if info.machine != machine {
            return Err(bad(format!("is for {}, the kernel is for {machine}", info.machine)));
        }
        if let Some(version) = info.version.filter(|v| v != tree.version()) {
            return Err(bad(format!("was built for kernel {version}, not {}", tree.version())));
        }
        if !info.firmware.is_empty() {
            firmware.insert(name.clone(), info.firmware);
        }
        total += content.len() as u64;
        root.insert(
            &format!("{base}/{}", module.plain_path()),
            Node::File { mode: 0o644, content },
        )?;
    }
    for (name, text) in [
        ("modules.dep", tree.write_dep(inside)),
        ("modules.alias", tree.write_alias(inside)),
        ("modules.softdep", tree.write_softdep(inside)),
        ("modules.builtin", tree.write_builtin()),
    ] {
        root.insert(
            &format!("{base}/{name}"),
            Node::File { mode: 0o644, content: text.into_bytes() },
        )?;
    }
    Ok((total, firmware))
}

/// Adds the user's files, hooks and settings; the hooks' names in the order they run.
fn add_extras(root: &mut Tree, options: &Options, machine: &str) -> Result<Vec<String>> {
    for setting in &options.settings {
        extras::check_setting(setting)?;
    }
    if !options.settings.is_empty() {
        let lines: String = options.settings.iter().map(|line| format!("{line}\n")).collect();
        root.insert(
            "/etc/imprint/agent.conf",
            Node::File { mode: 0o644, content: lines.into_bytes() },
        )?;
    }
    for (file, inside) in &options.add {
        extras::add(root, file, inside)?;
    }
    let mut hooks = Vec::new();
    for hook in &options.hooks {
        hooks.push((extras::add_hook(root, hook)?, hook));
    }
    for (inside, hook) in &hooks {
        extras::check_hook(root, hook, inside, machine)?;
    }
    let mut names: Vec<String> = hooks
        .iter()
        .filter_map(|(inside, _)| inside.rsplit('/').next())
        .map(str::to_owned)
        .collect();
    names.sort_unstable();
    Ok(names)
}
