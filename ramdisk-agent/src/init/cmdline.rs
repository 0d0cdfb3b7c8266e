//! What the kernel command line and `/etc/imprint/agent.conf` say.
//!
//! The file is baked into the initramfs and gives defaults; the command line overrides it. Keys are the same in both. A wrong
//! value or an unknown `imprint.` key is reported and otherwise ignored: a spelling mistake must not strand a machine.

use std::time::Duration;

use agent_api::{KERNEL_PARAM_CONTROLLER, KERNEL_PARAM_PIN};

use super::controller::Pin;
use super::net::Mac;

/// How long a DHCP round lasts before its failure is reported and it starts over: spanning trees take up to 50 s.
const DHCP_TIMEOUT: Duration = Duration::from_secs(120);

/// The agent's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// HTTPS base URL of the controller.
    pub controller: Option<String>,
    /// Hash of the controller's TLS key.
    pub pin: Option<Pin>,
    /// The network card that the firmware booted from.
    pub boot_mac: Option<Mac>,
    /// Never reboot or power off by itself: stay for debugging.
    pub hold: bool,
    /// How long one round of DHCP may take before it starts over.
    pub dhcp_timeout: Duration,
    /// Parameters of kernel modules, `module.name=value`, as (module, `name=value`).
    pub module_params: Vec<(String, String)>,
    /// What could not be understood, for the console.
    pub complaints: Vec<String>,
}

impl Settings {
    /// Reads the defaults in `conf` (one `key=value` a line, `#` comments), then the kernel command line.
    #[must_use]
    pub fn parse(conf: &str, cmdline: &str) -> Self {
        let mut settings = Self {
            controller: None,
            pin: None,
            boot_mac: None,
            hold: false,
            dhcp_timeout: DHCP_TIMEOUT,
            module_params: Vec::new(),
            complaints: Vec::new(),
        };
        for line in conf.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            settings.take(line);
        }
        for word in words(cmdline) {
            settings.take(&word);
        }
        settings
    }

    fn take(&mut self, word: &str) {
        let (key, value) =
            word.split_once('=').map_or((word, None), |(k, v)| (k.trim(), Some(v.trim())));
        match (key, value) {
            (KERNEL_PARAM_CONTROLLER, Some(url)) => match check_url(url) {
                Ok(()) => self.controller = Some(url.trim_end_matches('/').to_owned()),
                Err(why) => self.complain(word, why),
            },
            (KERNEL_PARAM_PIN, Some(hex)) => match hex.parse() {
                Ok(pin) => self.pin = Some(pin),
                Err(_) => self.complain(word, "not 64 hexadecimal digits"),
            },
            ("BOOTIF", Some(text)) => match text.parse() {
                Ok(mac) => self.boot_mac = Some(mac),
                Err(_) => {
                    self.complain(word, "not a hardware address such as 01-52-54-00-77-00-01")
                }
            },
            ("imprint.hold", value) => match value {
                None | Some("1" | "yes" | "true" | "on") => self.hold = true,
                Some("0" | "no" | "false" | "off") => self.hold = false,
                Some(_) => self.complain(word, "neither 1 nor 0"),
            },
            ("imprint.dhcp_timeout", Some(text)) => match text.trim_end_matches('s').parse() {
                Ok(secs @ 1..=3600) => self.dhcp_timeout = Duration::from_secs(secs),
                _ => self.complain(word, "not a number of seconds from 1 to 3600"),
            },
            (key, _) if key.starts_with("imprint.") => {
                self.complain(word, "this agent knows no such parameter")
            }
            (key, Some(value)) => {
                if let Some((module, name)) = key.split_once('.') {
                    self.module_params.push((module.replace('-', "_"), format!("{name}={value}")));
                }
            }
            _ => {}
        }
    }

    fn complain(&mut self, word: &str, why: &str) {
        self.complaints.push(format!("ignoring '{word}': {why}"));
    }
}

fn check_url(url: &str) -> Result<(), &'static str> {
    let parsed: reqwest::Url = url.parse().map_err(|_| "not a URL")?;
    match parsed {
        _ if parsed.scheme() != "https" => Err("the controller is reached by https:// only"),
        _ if parsed.host().is_none() => Err("the URL names no host"),
        _ if !parsed.username().is_empty() || parsed.password().is_some() => {
            Err("credentials do not belong in a URL")
        }
        _ => Ok(()),
    }
}

/// Splits a command line at blanks; double quotes hold blanks together, as the kernel does it.
fn words(cmdline: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in cmdline.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn the_controllers_own_command_line() {
        let line = format!(
            "initrd=ticket initrd=initrd console=ttyS0 imprint.controller=https://10.77.0.1:8443 imprint.pin={PIN} \
             BOOTIF=01-52-54-00-77-00-01 panic=30 quiet\n"
        );
        let settings = Settings::parse("", &line);
        assert_eq!(settings.controller.as_deref(), Some("https://10.77.0.1:8443"));
        assert_eq!(settings.pin.unwrap().to_string(), PIN);
        assert_eq!(settings.boot_mac.unwrap().to_string(), "52:54:00:77:00:01");
        assert!(!settings.hold);
        assert_eq!(settings.complaints, Vec::<String>::new());
    }

    #[test]
    fn the_command_line_overrides_the_baked_in_defaults() {
        let conf = "# site defaults\nimprint.controller = https://old:1/\nimprint.dhcp_timeout=30\n\nimprint.hold\n";
        let settings = Settings::parse(conf, "imprint.controller=https://new:2/ imprint.hold=0");
        assert_eq!(settings.controller.as_deref(), Some("https://new:2"));
        assert_eq!(settings.dhcp_timeout, Duration::from_secs(30));
        assert!(!settings.hold);
    }

    #[test]
    fn mistakes_are_reported_and_ignored() {
        let settings = Settings::parse(
            "",
            "imprint.controller=http://10.0.0.1 imprint.pin=abc imprint.dance=1 BOOTIF=xyz imprint.dhcp_timeout=0 imprint.hold=maybe",
        );
        assert_eq!(settings.complaints.len(), 6, "{:?}", settings.complaints);
        assert_eq!((settings.controller, settings.pin, settings.boot_mac), (None, None, None));
    }

    #[test]
    fn a_url_with_a_password_is_refused() {
        let settings = Settings::parse("", "imprint.controller=https://u:p@host");
        assert_eq!(settings.controller, None);
    }

    #[test]
    fn quotes_hold_blanks_and_modules_get_their_parameters() {
        let settings =
            Settings::parse("", r#"dyndbg="file a.c +p" virtio-net.napi_tx=0 root=/dev/sda1"#);
        assert_eq!(settings.module_params, vec![("virtio_net".into(), "napi_tx=0".into())]);
        assert_eq!(words(r#"a "b c"d  e"#), vec!["a", "b cd", "e"]);
    }
}
