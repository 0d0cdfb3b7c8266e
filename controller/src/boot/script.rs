//! iPXE scripts, built from values that need no quoting.
//!
//! A script is a list of lines; a line is a command with words. Words come from the types of [`crate::names`] or are literals here,
//! and are checked once more: iPXE expands `${…}`, splits at blanks and takes `#`, `;`, `|` and `&` as its own.

use std::fmt::Write;

use agent_api::{KERNEL_PARAM_CONTROLLER, KERNEL_PARAM_PIN};

use crate::context::BootSettings;
use crate::db::Host;
use crate::job::Job;
use crate::names::Mac;

/// Seconds after which a kernel that panicked restarts the machine.
const PANIC_SECS: u32 = 30;

/// Boots the next device in the firmware's order, which is the disk. With an error, since UEFI firmware takes a success for the end
/// of its list and shows its menu (UEFI specification, 3.1.1).
#[must_use]
pub fn local(why: &str) -> String {
    let why: String =
        why.chars().filter(|c| c.is_ascii_alphanumeric() || " .,:-".contains(*c)).collect();
    format!("#!ipxe\necho imprint: {why}: booting from disk\nexit 1\n")
}

/// A value that would mean something to iPXE; it was not checked where it came in.
#[derive(Debug, thiserror::Error)]
#[error("a boot script must not hold {0:?}")]
pub struct UnsafeWord(String);

/// Boots the agent; if a file does not come, the disk.
///
/// # Errors
/// When a value is not fit for a script.
pub fn agent(boot: &BootSettings, host: &Host, job: &Job, mac: Mac) -> Result<String, UnsafeWord> {
    let mut kernel = vec![
        "kernel".to_owned(),
        "--name".to_owned(),
        "kernel".to_owned(),
        format!("{}/boot/kernel", boot.http_url),
        // UEFI kernels ask the loader for these by name; BIOS loaders ignore it and pass all that was loaded, in order.
        "initrd=ticket".to_owned(),
        "initrd=initrd".to_owned(),
        format!("{KERNEL_PARAM_CONTROLLER}={}", boot.https_url),
        format!("{KERNEL_PARAM_PIN}={}", boot.pin),
        format!("BOOTIF=01-{}", mac.hyphenated()),
        format!("panic={PANIC_SECS}"),
        "quiet".to_owned(),
    ];
    kernel.extend(boot.kernel_args.as_str().split(' ').map(str::to_owned));
    kernel.extend(host.kernel_args.split(' ').map(str::to_owned));
    let mut script = String::from("#!ipxe\n");
    line(
        &mut script,
        &["echo".into(), "imprint:".into(), host.name.clone(), "job".into(), job.id.to_string()],
        None,
    )?;
    line(&mut script, &kernel, Some("failed"))?;
    let ticket = format!("{}/boot/ticket?mac={mac}", boot.http_url);
    line(
        &mut script,
        &["initrd".into(), "--name".into(), "ticket".into(), ticket],
        Some("failed"),
    )?;
    let initrd = format!("{}/boot/initrd", boot.http_url);
    line(
        &mut script,
        &["initrd".into(), "--name".into(), "initrd".into(), initrd],
        Some("failed"),
    )?;
    line(&mut script, &["boot".into()], Some("failed"))?;
    script.push_str(
        ":failed\necho imprint: the boot files did not come: booting from disk\nimgfree\nexit 1\n",
    );
    Ok(script)
}

fn line(script: &mut String, words: &[String], on_error: Option<&str>) -> Result<(), UnsafeWord> {
    let words: Vec<&str> =
        words.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
    if let Some(word) = words.iter().find(|word| !is_word(word)) {
        return Err(UnsafeWord((*word).to_owned()));
    }
    script.push_str(&words.join(" "));
    if let Some(label) = on_error {
        // Writing to a String does not fail.
        let _ = write!(script, " || goto {label}");
    }
    script.push('\n');
    Ok(())
}

fn is_word(word: &str) -> bool {
    word.bytes().all(|b| b.is_ascii_alphanumeric() || b"=,.:/_@+-?".contains(&b))
}
