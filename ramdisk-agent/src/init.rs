//! The agent as PID 1 of the initramfs.
//!
//! [`main`] brings the machine up (mounts, modules, network), redeems the ticket that the boot brought along, runs the owner's
//! hooks, and then asks the controller for work until it is told to leave ([`session`]). Each job runs in a child of the same
//! binary ([`worker`]), so that nothing that happens to a job happens to PID 1: a machine whose job failed or crashed still
//! answers its controller. There is no shell and no open port. A machine that nobody asked to be here, or whose ticket is
//! refused, reboots after a minute, so that no host is ever stuck in the agent; `imprint.hold` keeps it for debugging.

pub mod children;
pub mod clock;
pub mod cmdline;
pub mod console;
pub mod controller;
pub mod dhcp;
pub mod hooks;
pub mod kernel;
pub mod machine;
pub mod modules;
pub mod mounts;
pub mod net;
mod netlink;
pub mod power;
pub mod session;
pub mod ticket;
pub mod uevents;
pub mod worker;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use agent_api::{Finish, TICKET_PATH};

use cmdline::Settings;
use console::Log;
use controller::Controller;
use modules::Loader;
use net::chain;
use session::Session;
use uevents::{Uevent, Uevents};
use worker::WorkerCommand;

/// Defaults that the builder bakes in.
const CONF: &str = "/etc/imprint/agent.conf";
/// How long a message stays on the console before the machine leaves by itself.
const PARTING: Duration = Duration::from_secs(60);
/// The supervisor is the last that the kernel ends when memory runs out.
const OOM_SCORE: i32 = -1000;

/// What the binary was started as, if not as the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// PID 1.
    Init,
    /// The kernel's module loader.
    Modprobe,
}

/// What this process is to be: the kernel starts the same file as `/init` and, through a link, as `modprobe`. A container's first
/// process that was given a command is that command.
#[must_use]
pub fn role() -> Option<Role> {
    let mut args = std::env::args_os();
    let called = args.next()?;
    match Path::new(&called).file_name()?.to_str()? {
        "modprobe" => Some(Role::Modprobe),
        "init" => Some(Role::Init),
        _ if std::process::id() == 1 && args.next().is_none() => Some(Role::Init),
        _ => None,
    }
}

/// Answers the kernel's `modprobe -q -- NAME`.
#[must_use]
pub fn modprobe_main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if modules::modprobe(&args) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Is PID 1. Returns only when it is not, or when the kernel refuses to let the machine go.
#[must_use]
pub fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("imprint-agent: 'init' works only as the first process of an initramfs");
        return ExitCode::from(2);
    }
    let complaints = mounts::mount_all();
    let log = Log::on_consoles();
    log.say(format!("agent {} starts", env!("CARGO_PKG_VERSION")));
    for complaint in complaints {
        log.say(complaint);
    }
    loop {
        // A panic is a bug; the machine still must not hang, nor the kernel panic with it.
        let attempt = std::panic::catch_unwind(|| live(&log));
        let how = attempt.unwrap_or_else(|_| {
            log.say("the supervisor has panicked: rebooting in a minute");
            std::thread::sleep(PARTING);
            Finish::Reboot
        });
        let errno = power::leave(how, &log);
        log.say(format!("this machine cannot leave by itself: {}; power it off", errno.desc()));
        std::thread::sleep(PARTING);
    }
}

/// Everything from the first module to the last order; how to leave.
fn live(log: &Log) -> Finish {
    if let Err(e) = children::start_reaper() {
        log.say(format!("cannot start the reaper: {e}"));
    }
    if let Err(e) = children::set_oom_score(1, OOM_SCORE) {
        log.say(format!("cannot ask the kernel to spare the supervisor when memory runs out: {e}"));
    }
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let settings = Settings::parse(&fs::read_to_string(CONF).unwrap_or_default(), &cmdline);
    for complaint in mounts::apply_sysctls(&cmdline).iter().chain(&settings.complaints) {
        log.say(complaint);
    }
    // Read and deleted before anything else is started.
    let ticket = ticket::take(Path::new(TICKET_PATH));
    load_modules(&settings, log);
    if let Some(complaint) = mounts::mount_efivarfs() {
        log.say(complaint);
    }
    let wanted = match (&settings.controller, settings.pin, ticket) {
        (None, ..) => {
            Err(format!("no {} on the kernel command line", agent_api::KERNEL_PARAM_CONTROLLER))
        }
        (_, None, _) => {
            Err(format!("no {} on the kernel command line", agent_api::KERNEL_PARAM_PIN))
        }
        (.., Err(e)) => Err(e.to_string()),
        (Some(url), Some(pin), Ok(ticket)) => Controller::new(url, pin)
            .map(|controller| (controller, ticket))
            .map_err(|e| e.to_string()),
    };
    let (controller, ticket) = match wanted {
        Ok(wanted) => wanted,
        Err(why) => {
            log.say(&why);
            return part(&settings, log);
        }
    };
    net::bring_up(&settings, log);
    let session = Session {
        controller,
        ticket,
        redeem_limit: session::REDEEM_LIMIT,
        boot_mac: settings.boot_mac,
        hooks: hooks::FOLDER.into(),
        worker: WorkerCommand::this_binary(),
        kernel_loader: WorkerCommand::this_binary_as_kernel_loader(),
        log: log.clone(),
    };
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => {
                log.say(format!("cannot start the supervisor's threads: {e}"));
                return part(&settings, log);
            }
        };
    match runtime.block_on(session.live()) {
        Ok(how) if settings.hold => {
            log.say(format!(
                "the controller says to leave ({how:?}); imprint.hold keeps this machine here"
            ));
            hold()
        }
        Ok(how) => how,
        Err(refusal) => {
            log.say(chain(&refusal));
            part(&settings, log)
        }
    }
}

/// Loads what the devices ask for, and goes on doing so for those that come later.
fn load_modules(settings: &Settings, log: &Log) {
    let mut loader = match Loader::for_running_kernel(settings.module_params.clone()) {
        Ok(loader) => loader,
        Err(e) => {
            log.say(format!("no kernel modules: {e}"));
            return;
        }
    };
    // Listening begins before the devices are looked at, so that none is missed between the two.
    let uevents = Uevents::listen();
    loader.load_listed();
    loader.load_for_devices();
    for complaint in loader.take_complaints() {
        log.say(complaint);
    }
    log.say(format!("{} kernel modules", loader.loaded()));
    match uevents {
        Ok(uevents) => {
            let log = log.clone();
            std::thread::spawn(move || follow_devices(&uevents, &mut loader, &log));
        }
        Err(e) => log.say(format!("cannot hear of new devices: {e}")),
    }
}

fn follow_devices(uevents: &Uevents, loader: &mut Loader, log: &Log) {
    loop {
        match uevents.next() {
            Ok(Uevent::Alias(alias)) => {
                loader.load_for_alias(&alias);
            }
            Ok(Uevent::Lost) => loader.load_for_devices(),
            Err(e) => {
                log.say(format!("cannot hear of new devices any more: {e}"));
                return;
            }
        }
        for complaint in loader.take_complaints() {
            log.say(complaint);
        }
    }
}

/// Nothing can be done here: back to the machine's own disk, after time to read why.
fn part(settings: &Settings, log: &Log) -> Finish {
    if settings.hold {
        log.say("imprint.hold keeps this machine here");
        hold();
    }
    log.say(format!("rebooting in {} s", PARTING.as_secs()));
    std::thread::sleep(PARTING);
    Finish::Reboot
}

fn hold() -> ! {
    loop {
        std::thread::sleep(PARTING);
    }
}
