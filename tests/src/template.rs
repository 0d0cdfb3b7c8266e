//! The template: a small real Debian system on a GPT disk that boots by BIOS and by UEFI.
//!
//! The tree comes from the machine's own Debian mirror and is kept between runs. The disk has a BIOS boot partition, an ESP, an
//! ext4 root and swap, and is made without mounting anything. Then it boots once, to its login prompt, and is shut down from
//! inside, so that its filesystems have been used: journals replayed, blocks freed, times changed.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::machine::{Firmware, Machine};
use crate::{command, packages, project};

/// What the console shows when the template is up.
pub const LOGIN_PROMPT: &str = "template login:";
/// Seven times what a boot to the prompt took on a loaded machine, with UEFI; where two of them share two cores with other tests and the firmware
/// tries all of its network devices first, five times was not enough.
pub const LOGIN_LIMIT: Duration = Duration::from_secs(420);
/// Five times what a shutdown took.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_secs(120);

/// Beyond what every Debian has.
const PACKAGES: [&str; 9] = [
    "systemd-sysv",
    "udev",
    "dbus",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "zstd",
    "e2fsprogs",
    "kmod",
    "iproute2",
];
/// Documentation and translations would be half of the tree.
const LEFT_OUT: [&str; 5] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
];
/// Grows when the tree's or the disk's making changes, so that kept ones are made anew.
const RECIPE: u32 = 2;

const SECTOR: u64 = 512;
/// Size of the disk.
pub const DISK_BYTES: u64 = 1 << 30;
const BIOS_START: u64 = 2048;
const BIOS_LEN: u64 = 2048;
const ESP_START: u64 = BIOS_START + BIOS_LEN;
const ESP_LEN: u64 = (64 << 20) / SECTOR;
const ROOT_START: u64 = ESP_START + ESP_LEN;
const SWAP_LEN: u64 = (64 << 20) / SECTOR;
/// The last MiB holds the backup table.
const SWAP_START: u64 = DISK_BYTES / SECTOR - 2048 - SWAP_LEN;
const ROOT_LEN: u64 = SWAP_START - ROOT_START;

/// The template's disk, booted once and shut down; kept between runs. `accel` is how QEMU runs it.
///
/// # Errors
/// If a step of its making fails.
pub fn disk(accel: &str, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let folder = project::cache().join("template");
    let disk = folder.join("disk.img");
    let stamp = folder.join("disk.recipe");
    if disk.is_file() && is_current(&stamp) {
        return Ok(disk);
    }
    let tree = tree(&folder, say)?;
    say("making a GPT disk: BIOS boot, ESP, ext4 root, swap");
    let partial = folder.join("disk.partial");
    make_disk(&tree, &partial)?;
    say("booting it once to its login prompt, and shutting it down");
    live_once(&partial, accel)?;
    std::fs::rename(&partial, &disk).with_context(|| format!("writing {}", disk.display()))?;
    mark_current(&stamp)?;
    Ok(disk)
}

/// A copy of a disk that takes no more room than its data.
///
/// # Errors
/// If it cannot be copied.
pub fn copy_disk(from: &Path, to: &Path) -> Result<()> {
    let mut cp = Command::new("cp");
    command::output(cp.args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to)).map(drop)
}

fn recipe() -> String {
    format!("{RECIPE} {} {}", PACKAGES.join(" "), LEFT_OUT.join(" "))
}

fn is_current(stamp: &Path) -> bool {
    std::fs::read_to_string(stamp).is_ok_and(|text| text == recipe())
}

fn mark_current(stamp: &Path) -> Result<()> {
    std::fs::write(stamp, recipe()).with_context(|| format!("writing {}", stamp.display()))
}

/// The tree of files.
fn tree(folder: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let tree = folder.join("tree");
    let stamp = folder.join("tree.recipe");
    if tree.is_dir() && is_current(&stamp) {
        return Ok(tree);
    }
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    if tree.exists() {
        std::fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    say("making a small Debian tree (once; it is kept)");
    packages::update_lists()?;
    debootstrap(&tree)?;
    configure(&tree)?;
    add_zoo(&tree)?;
    mark_current(&stamp)?;
    Ok(tree)
}

fn debootstrap(tree: &Path) -> Result<()> {
    let release = std::fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.context("finding VERSION_CODENAME in /etc/os-release")?.trim_matches('"');
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--mode=root", "--variant=minbase", "--components=main"]);
    mmdebstrap.arg(format!("--include={}", PACKAGES.join(",")));
    for path in LEFT_OUT {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    for option in apt_options()? {
        mmdebstrap.arg(format!("--aptopt={option}"));
    }
    mmdebstrap.arg(suite).arg(tree).args(debian_sources()?);
    command::output(&mut mmdebstrap).context("making a Debian tree").map(drop)
}

/// The machine's own Debian sources, as lines of a sources.list.
fn debian_sources() -> Result<Vec<String>> {
    let mut apt = Command::new("apt-get");
    let format = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)";
    let listing =
        command::output(apt.args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let mut sources: Vec<String> = listing
        .lines()
        .filter_map(|line| line.strip_prefix("Debian|"))
        .filter_map(|line| line.split('|').collect::<Vec<_>>().try_into().ok())
        .filter(|[_, _, component]: &[&str; 3]| *component == "main")
        .map(|[uri, release, component]| format!("deb {uri} {release} {component}"))
        .collect();
    sources.sort_unstable();
    sources.dedup();
    ensure!(!sources.is_empty(), "apt has no Debian source: see /etc/apt/sources.list");
    Ok(sources)
}

/// How this machine's apt reaches its sources: proxies, and which dates it believes.
fn apt_options() -> Result<Vec<String>> {
    let listing = command::output(Command::new("apt-config").arg("dump"))?;
    let wanted = ["Acquire::http", "Acquire::Check-", "Acquire::Retries"];
    let lines = listing.lines().filter(|line| wanted.iter().any(|key| line.starts_with(key)));
    Ok(lines.filter(|line| !line.contains("\"\"")).map(str::to_owned).collect())
}

fn configure(tree: &Path) -> Result<()> {
    write(tree, "etc/hostname", "template\n")?;
    write(
        tree,
        "etc/systemd/network/10-dhcp.network",
        "[Match]\nName=en* eth*\n[Network]\nDHCP=ipv4\n",
    )?;
    write(tree, "etc/systemd/system/life.service", LIFE_UNIT)?;
    write(tree, "usr/local/sbin/life", LIFE)?;
    let life = tree.join("usr/local/sbin/life");
    std::fs::set_permissions(&life, PermissionsExt::from_mode(0o755)).context("setting a mode")?;
    let mut chroot = Command::new("chroot");
    chroot.arg(tree).args(["sh", "-ec", SET_UP]);
    command::output(&mut chroot).context("configuring the template")?;
    for folder in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        let path = tree.join(folder);
        std::fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        std::fs::create_dir_all(path.join("partial"))
            .with_context(|| format!("making {}", path.display()))?;
    }
    Ok(())
}

/// Run in the tree. The password is for whoever looks at a machine of the lab through its serial console.
const SET_UP: &str = "\
echo root:root | chpasswd
systemctl enable systemd-networkd life
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
mkdir -p /boot/efi
rm -f /etc/machine-id
touch /etc/machine-id
";

const LIFE_UNIT: &str = "\
[Unit]
Description=A little use of the filesystem, once
ConditionPathExists=!/var/lib/lived
Before=getty.target systemd-user-sessions.service
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/life
[Install]
WantedBy=multi-user.target
";

/// Writes files of growing size and deletes every other one: holes among used blocks, and freed blocks that still hold data.
const LIFE: &str = "\
#!/bin/sh
set -e
mkdir -p /var/tmp/life
cd /var/tmp/life
n=0
while [ $n -lt 40 ]; do n=$((n + 1)); head -c $((n * 30011)) /dev/urandom > $n; done
sync
n=0
while [ $n -lt 40 ]; do n=$((n + 2)); rm $n; done
touch /var/lib/lived
";

/// Files of every kind that a copy could get wrong.
fn add_zoo(tree: &Path) -> Result<()> {
    let zoo = tree.join("opt/zoo");
    std::fs::create_dir_all(zoo.join("deep/er")).context("making the zoo")?;
    let script = "\
        echo plain > plain; chmod 0640 plain; chown 1234:5678 plain; ln plain hard-link; ln -s plain soft-link
        ln -s \"$(printf 'x%.0s' $(seq 200))\" long-link; mkfifo fifo; mknod null-device c 1 3; mknod loop-device b 7 0
        cp /bin/true setuid; chmod 4755 setuid; mkdir -m 1777 sticky; : > empty; truncate -s 64M sparse
        printf tail | dd of=sparse bs=1 seek=40000000 conv=notrunc status=none; touch -d '1999-12-31 23:59:59 UTC' old
        touch \"name with blanks and ü\"; head -c 3000000 /dev/urandom > deep/er/random
        n=0; while [ $n -lt 300 ]; do n=$((n + 1)); echo $n > deep/$n; done";
    command::output(Command::new("sh").args(["-ec", script]).current_dir(&zoo))
        .context("filling the zoo")?;
    let attributes = [("user.imprint", "a value"), ("user.long", &"v".repeat(900))];
    for (name, value) in attributes {
        let mut python = Command::new("python3");
        python.args([
            "-c",
            "import os,sys; os.setxattr(sys.argv[1], sys.argv[2], sys.argv[3].encode())",
        ]);
        command::output(python.arg(zoo.join("plain")).args([name, value]))
            .context("setting extended attributes")?;
    }
    Ok(())
}

/// Makes the disk from the tree.
fn make_disk(tree: &Path, disk: &Path) -> Result<()> {
    let work = tempfile::tempdir_in(project::cache()).context("making a folder")?;
    let (root_uuid, swap_uuid) = (new_uuid(), new_uuid());
    let esp_id = new_uuid()[..8].to_uppercase();
    write_boot_files(tree, &root_uuid, &swap_uuid, &esp_id)?;
    let file = File::create(disk).with_context(|| format!("making {}", disk.display()))?;
    file.set_len(DISK_BYTES).with_context(|| format!("making {}", disk.display()))?;
    partition(disk)?;

    let offset = format!("offset={}", ROOT_START * SECTOR);
    let size = format!("{}k", ROOT_LEN * SECTOR / 1024);
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-L", "root", "-U", &root_uuid, "-E", &offset, "-d"])
        .arg(tree)
        .arg(disk)
        .arg(size);
    command::output(&mut mkfs).context("making the root filesystem")?;

    let swap = sized_file(&work.path().join("swap"), SWAP_LEN * SECTOR)?;
    command::output(Command::new("mkswap").args(["-U", &swap_uuid]).arg(&swap))
        .context("making swap")?;
    splice(&swap, &file, SWAP_START * SECTOR)?;

    let early = work.path().join("early.cfg");
    let text = format!(
        "search --no-floppy --fs-uuid --set=root {root_uuid}\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"
    );
    std::fs::write(&early, text).with_context(|| format!("writing {}", early.display()))?;
    let esp = make_esp(work.path(), &early, &esp_id)?;
    splice(&esp, &file, ESP_START * SECTOR)?;
    install_bios_grub(work.path(), &early, &file)?;
    file.sync_all().with_context(|| format!("flushing {}", disk.display()))
}

fn new_uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// The files of the installed system that name its disk.
fn write_boot_files(tree: &Path, root_uuid: &str, swap_uuid: &str, esp_id: &str) -> Result<()> {
    let esp_uuid = format!("{}-{}", &esp_id[..4], &esp_id[4..]);
    write(
        tree,
        "etc/fstab",
        &format!(
            "UUID={root_uuid} / ext4 errors=remount-ro 0 1\nUUID={esp_uuid} /boot/efi vfat umask=0077 0 1\n\
             UUID={swap_uuid} none swap sw 0 0\n"
        ),
    )?;
    let boot = tree.join("boot");
    let names = std::fs::read_dir(&boot).with_context(|| format!("reading {}", boot.display()))?;
    let versions = names
        .filter_map(|e| Some(e.ok()?.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()));
    let version = versions.max().context("finding the template's kernel in its /boot")?;
    write(
        tree,
        "boot/grub/grub.cfg",
        &format!(
            "serial --unit=0 --speed=115200\nterminal_input serial console\nterminal_output serial console\nset timeout=0\n\
             menuentry debian {{\n search --no-floppy --fs-uuid --set=root {root_uuid}\n \
             linux /boot/vmlinuz-{version} root=UUID={root_uuid} ro console=ttyS0 quiet\n initrd /boot/initrd.img-{version}\n}}\n"
        ),
    )
}

fn partition(disk: &Path) -> Result<()> {
    const BIOS_BOOT: &str = "21686148-6449-6E6F-744E-656564454649";
    let script = format!(
        "label: gpt\n\
         start={BIOS_START}, size={BIOS_LEN}, type={BIOS_BOOT}, name=bios\n\
         start={ESP_START}, size={ESP_LEN}, type=U, name=esp\n\
         start={ROOT_START}, size={ROOT_LEN}, type=L, name=root\n\
         start={SWAP_START}, size={SWAP_LEN}, type=S, name=swap\n"
    );
    let mut sfdisk = Command::new("sh");
    sfdisk.args(["-c", "printf %s \"$1\" | sfdisk -q \"$2\"", "sh", &script]).arg(disk);
    command::output(&mut sfdisk).context("partitioning the template's disk").map(drop)
}

/// The ESP with GRUB at the fallback path, which firmware starts when its NVRAM names nothing.
fn make_esp(work: &Path, early: &Path, id: &str) -> Result<PathBuf> {
    let esp = sized_file(&work.join("esp"), ESP_LEN * SECTOR)?;
    let mut mkfs = Command::new("mkfs.vfat");
    command::output(mkfs.args(["-F32", "-n", "ESP", "-i", id]).arg(&esp))
        .context("making the ESP")?;
    let grub = work.join("BOOTX64.EFI");
    let modules = [
        "part_gpt",
        "ext2",
        "fat",
        "search",
        "search_fs_uuid",
        "configfile",
        "normal",
        "linux",
        "serial",
        "terminal",
        "echo",
        "boot",
    ];
    grub_image("x86_64-efi", early, &grub, &modules)?;
    let mtool = |program: &str, args: &[&str]| {
        command::output(Command::new(program).arg("-i").arg(&esp).args(args))
    };
    mtool("mmd", &["::/EFI", "::/EFI/BOOT"]).context("filling the ESP")?;
    mtool("mcopy", &[&grub.to_string_lossy(), "::/EFI/BOOT/BOOTX64.EFI"])
        .context("filling the ESP")?;
    Ok(esp)
}

fn grub_image(format: &str, early: &Path, output: &Path, modules: &[&str]) -> Result<()> {
    let mut grub = Command::new("grub-mkimage");
    grub.args(["-O", format, "-p", "/boot/grub", "-c"])
        .arg(early)
        .arg("-o")
        .arg(output)
        .args(modules);
    command::output(&mut grub).with_context(|| format!("making GRUB for {format}")).map(drop)
}

/// Puts GRUB for BIOS into the boot sector and the BIOS boot partition, as grub-install does: offsets from GRUB's
/// `include/grub/i386/pc/boot.h` and `diskboot.h`.
fn install_bios_grub(work: &Path, early: &Path, disk: &File) -> Result<()> {
    const BOOT_CODE_LEN: usize = 440;
    const KERNEL_SECTOR_AT: usize = 0x5c;
    const DRIVE_CHECK_AT: usize = 0x66;
    const BLOCK_LIST_AT: usize = 0x1f4;
    const SEGMENT: u16 = 0x820;
    let core_path = work.join("core.img");
    let modules = [
        "biosdisk",
        "part_gpt",
        "ext2",
        "search",
        "search_fs_uuid",
        "configfile",
        "normal",
        "linux",
        "serial",
        "terminal",
        "echo",
        "boot",
    ];
    grub_image("i386-pc", early, &core_path, &modules)?;
    let mut boot =
        std::fs::read("/usr/lib/grub/i386-pc/boot.img").context("reading GRUB's boot.img")?;
    let mut core = std::fs::read(&core_path).context("reading GRUB's core.img")?;
    core.resize(core.len().next_multiple_of(512), 0);
    let sectors = core.len() as u64 / SECTOR;
    ensure!(
        sectors <= BIOS_LEN && boot.len() >= BOOT_CODE_LEN,
        "GRUB does not fit the BIOS boot partition"
    );
    boot[KERNEL_SECTOR_AT..KERNEL_SECTOR_AT + 8].copy_from_slice(&BIOS_START.to_le_bytes());
    // Two no-ops: boot from the drive that the BIOS says.
    boot[DRIVE_CHECK_AT..DRIVE_CHECK_AT + 2].copy_from_slice(&[0x90, 0x90]);
    let list = [
        (BIOS_START + 1).to_le_bytes().to_vec(),
        u16::try_from(sectors - 1)?.to_le_bytes().to_vec(),
        SEGMENT.to_le_bytes().to_vec(),
    ];
    core[BLOCK_LIST_AT..BLOCK_LIST_AT + 12].copy_from_slice(&list.concat());
    disk.write_all_at(&boot[..BOOT_CODE_LEN], 0).context("writing the boot sector")?;
    disk.write_all_at(&core, BIOS_START * SECTOR).context("writing GRUB")
}

fn live_once(disk: &Path, accel: &str) -> Result<()> {
    let folder = tempfile::tempdir_in(project::cache()).context("making a folder")?;
    let machine = Machine {
        name: "template-first-boot".into(),
        number: 0,
        firmware: Firmware::Bios,
        memory_mib: 512,
        disk: Some(disk.to_owned()),
        tap: None,
        direct: None,
        accel: accel.to_owned(),
        folder: folder.path().to_owned(),
    };
    machine.save()?;
    let console = machine.console();
    machine.power_on()?;
    let lived = console
        .wait_for(LOGIN_PROMPT, &["Kernel panic", "emergency mode"], LOGIN_LIMIT)
        .and_then(|()| {
            machine.press_power_button()?;
            machine.wait_off(SHUTDOWN_LIMIT)
        });
    machine.power_off()?;
    lived
}

fn sized_file(path: &Path, len: u64) -> Result<PathBuf> {
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    file.set_len(len).with_context(|| format!("making {}", path.display()))?;
    Ok(path.to_owned())
}

/// Copies a file's data into the disk; its holes stay holes.
fn splice(from: &Path, disk: &File, offset: u64) -> Result<()> {
    const CHUNK: usize = 64 << 10;
    let bytes = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    for (chunk, at) in bytes.chunks(CHUNK).zip((offset..).step_by(CHUNK)) {
        if chunk.iter().any(|byte| *byte != 0) {
            disk.write_all_at(chunk, at).with_context(|| format!("copying {}", from.display()))?;
        }
    }
    Ok(())
}

fn write(tree: &Path, name: &str, text: &str) -> Result<()> {
    let path = tree.join(name);
    let folder = path.parent().expect("a path below the tree");
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}
