//! Where the password of a secret key comes from: a file, the environment, or somebody at a terminal. Never an argument, which
//! every process could read.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::secret_key::read_key_file;
use crate::error::{Error, IoContext, Result};

/// The environment variable that may hold the password.
pub const PASSWORD_VARIABLE: &str = "IMPRINT_KEY_PASSWORD";

/// minisign's own limit.
const MAX_PASSWORD_LEN: usize = 1024;

/// Where to look for a password.
#[derive(Debug, Clone, Copy)]
pub struct PasswordFrom<'a> {
    /// A file whose first line it is.
    pub file: Option<&'a Path>,
}

impl PasswordFrom<'_> {
    /// The password of a key that exists.
    ///
    /// # Errors
    /// `refused` if there is none to be had.
    pub fn get(self) -> Result<String> {
        self.without_asking()?.map_or_else(|| ask("Password of the secret key: "), Ok)
    }

    /// The password for a new key: whoever types it types it twice.
    ///
    /// # Errors
    /// As [`PasswordFrom::get`]; `refused` also if it is empty or the two differ.
    pub fn new_one(self) -> Result<String> {
        let password = match self.without_asking()? {
            Some(password) => password,
            None => {
                let first = ask("Password for the new secret key: ")?;
                if ask("Once more: ")? != first {
                    return Err(Error::refused("the two passwords differ; no key was made"));
                }
                first
            }
        };
        if password.is_empty() {
            return Err(Error::refused(
                "the password is empty; a key that is not to be encrypted is made with --no-password",
            ));
        }
        Ok(password)
    }

    fn without_asking(self) -> Result<Option<String>> {
        let password = if let Some(path) = self.file {
            let text = read_key_file(path)?;
            Some(text.lines().next().unwrap_or_default().to_owned())
        } else {
            std::env::var_os(PASSWORD_VARIABLE)
                .map(|value| {
                    value.into_string().map_err(|_| {
                        Error::refused(format!("{PASSWORD_VARIABLE} does not hold UTF-8"))
                    })
                })
                .transpose()?
        };
        if password.as_ref().is_some_and(|password| password.len() > MAX_PASSWORD_LEN) {
            return Err(Error::refused(format!(
                "the password is longer than {MAX_PASSWORD_LEN} bytes"
            )));
        }
        Ok(password)
    }
}

/// Asks at the terminal that controls this process, without showing what is typed.
fn ask(question: &str) -> Result<String> {
    let nobody = || {
        Error::refused(format!(
            "the secret key needs a password, and nobody is there to type it: give --password-file or {PASSWORD_VARIABLE}"
        ))
    };
    let mut terminal =
        File::options().read(true).write(true).open("/dev/tty").map_err(|e| nobody().because(e))?;
    let doing = || "asking for the password".to_owned();
    terminal.write_all(question.as_bytes()).internal(doing)?;
    let silent = Silent::new(&terminal).map_err(|e| nobody().because(e))?;
    let mut line = String::new();
    let read = BufReader::new(&terminal).read_line(&mut line);
    drop(silent);
    terminal.write_all(b"\n").internal(doing)?;
    read.internal(doing)?;
    if line.len() > MAX_PASSWORD_LEN {
        return Err(Error::refused(format!(
            "the password is longer than {MAX_PASSWORD_LEN} bytes"
        )));
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// The terminal that does not show what is typed, and how it was before: for whoever ends the program meanwhile.
static SILENCED: Mutex<Option<(File, Termios)>> = Mutex::new(None);

fn silenced() -> MutexGuard<'static, Option<(File, Termios)>> {
    SILENCED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the terminal show again what is typed. For a program that ends at once, whatever its threads are at: none of them can silence
/// it from now on.
pub fn give_back_terminal() {
    let mut silenced = silenced();
    give_back(&mut silenced);
    std::mem::forget(silenced);
}

fn give_back(silenced: &mut Option<(File, Termios)>) {
    if let Some((terminal, before)) = silenced.take() {
        // A terminal that is gone needs no echo.
        let _ = tcsetattr(&terminal, OptionalActions::Flush, &before);
    }
}

/// A terminal that does not show what is typed, for as long as this lives.
struct Silent;

impl Silent {
    fn new(terminal: &File) -> std::io::Result<Self> {
        let (held, before) = (terminal.try_clone()?, tcgetattr(terminal)?);
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        let mut silenced = silenced();
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        *silenced = Some((held, before));
        Ok(Self)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        give_back(&mut silenced());
    }
}
