//! Credentials for stores on the command line: from a file, or from the environment, since what is an argument is in every process
//! list.
//!
//! The file is what `mount.cifs` reads, with sections where it is for several servers:
//!
//! ```text
//! user=imprint
//! password=…
//! [https://images.example/]
//! token=…
//! ```

use std::io::{Read, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use agent_api::{SecretText, StoreAccess};

use crate::error::{Error, Result};
use crate::store::{Access, StoreUrl};

/// The variable that names the file.
pub const FILE_VARIABLE: &str = "IMPRINT_CREDENTIALS";

/// More than anybody has servers for.
const MAX_FILE_LEN: u64 = 64 << 10;

/// What of a file's mode is for those who are neither its owner nor of its group.
const OTHERS: u32 = 0o007;

/// The credentials that a command has been given: those of the file, then those of the environment.
pub fn read(file: Option<&Path>, images: &[&str]) -> Result<Access> {
    let mut list = match file {
        Some(path) => {
            parse(&read_file(path)?).map_err(|e| e.context(path.display().to_string()))?
        }
        None => Vec::new(),
    };
    let access = StoreAccess {
        user: variable("IMPRINT_STORE_USER")?,
        domain: variable("IMPRINT_STORE_DOMAIN")?,
        password: variable("IMPRINT_STORE_PASSWORD")?.map(SecretText::from),
        token: variable("IMPRINT_STORE_TOKEN")?.map(SecretText::from),
        ..StoreAccess::default()
    };
    say_as_well(&mut list, access);
    // What is no URL is refused where it is opened.
    let own: Vec<StoreUrl> = images.iter().filter_map(|text| text.parse().ok()).collect();
    Access::new(list, &own)
}

/// Adds what the environment says to what the lines above the first `[URL]` say; where both say something, the file counts.
fn say_as_well(list: &mut Vec<StoreAccess>, access: StoreAccess) {
    if access == StoreAccess::default() {
        return;
    }
    match list.iter_mut().find(|own| own.prefix.is_empty()) {
        Some(own) => {
            own.user = own.user.take().or(access.user);
            own.domain = own.domain.take().or(access.domain);
            own.password = own.password.take().or(access.password);
            own.token = own.token.take().or(access.token);
        }
        None => list.push(access),
    }
}

/// A variable of the environment. One that is no text is an error, not nothing: the job would go on as somebody else.
fn variable(name: &str) -> Result<Option<String>> {
    let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let text = value.into_string();
    text.map(Some).map_err(|_| Error::refused(format!("the variable {name} is not UTF-8 text")))
}

fn read_file(path: &Path) -> Result<String> {
    let failed = |e: std::io::Error| {
        Error::refused(format!("reading the credentials in {}", path.display())).because(e)
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_file() && metadata.mode() & OTHERS != 0 {
        // Where nobody reads it there is nobody to warn.
        let _ = writeln!(
            std::io::stderr(),
            "imprint-agent: every user of this machine may read the credentials in {path}: chmod 600 {path}",
            path = path.display()
        );
    }
    let mut text = String::new();
    file.take(MAX_FILE_LEN + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE_LEN {
        return Err(Error::refused(format!(
            "{} is longer than {MAX_FILE_LEN} bytes: it holds no credentials",
            path.display()
        )));
    }
    Ok(text)
}

/// Errors name the line and never quote it.
fn parse(text: &str) -> Result<Vec<StoreAccess>> {
    let mut list = vec![StoreAccess::default()];
    // Editors of Windows put a mark before the first line.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let is_empty = |access: &StoreAccess| {
        *access == StoreAccess { prefix: access.prefix.clone(), ..StoreAccess::default() }
    };
    for (index, line) in text.lines().enumerate() {
        let bad = |what: &str| Error::refused(format!("line {} {what}", index + 1));
        let start = line.trim_start();
        if start.is_empty() || start.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = start.strip_prefix('[') {
            let prefix = section.trim_end().strip_suffix(']').unwrap_or_default();
            if prefix.is_empty() {
                return Err(bad("begins with [ and is no [URL]"));
            }
            list.push(StoreAccess { prefix: prefix.to_owned(), ..StoreAccess::default() });
            continue;
        }
        // A password may begin or end with blanks.
        let (key, value) =
            start.split_once('=').ok_or_else(|| bad("is no key=value and no [URL]"))?;
        let access = list.last_mut().expect("it began with one");
        let taken = match key.trim_end() {
            "user" | "username" => access.user.replace(value.to_owned()).is_some(),
            "domain" | "dom" | "workgroup" => access.domain.replace(value.to_owned()).is_some(),
            "password" | "pass" => {
                access.password.replace(SecretText::from(value.to_owned())).is_some()
            }
            "token" => access.token.replace(SecretText::from(value.to_owned())).is_some(),
            "tls_key" => access.tls_key.replace(value.trim().to_lowercase()).is_some(),
            _ => return Err(bad("has none of the keys user, domain, password, token, tls_key")),
        };
        if taken {
            return Err(bad("says again what an earlier line of its section says"));
        }
    }
    if let Some(section) = list[1..].iter().position(is_empty) {
        // What it is for may hold a secret: it is told by its number.
        return Err(Error::refused(format!(
            "the section that begins with the {}. line [URL] says nothing: give its user, password or token, or remove it",
            section + 1
        )));
    }
    list.retain(|access| !is_empty(access));
    Ok(list)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_mount_cifs_reads_and_sections() {
        let text =
            "# for images\nusername=me\n password= p=w \r\n\n[https://h/x]\ntoken=t\ntls_key=AB\n";
        let list = parse(text).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(parse(&format!("\u{feff}{text}")).unwrap(), list);
        let error = parse(&format!("{text}[smb://me:hunter2@e/]\n# \n")).unwrap_err().to_string();
        assert!(
            error.contains("2. line [URL] says nothing") && !error.contains("hunter2"),
            "{error}"
        );
        assert_eq!(list[0].user.as_deref(), Some("me"));
        assert_eq!(list[0].password.as_ref().unwrap().expose(), " p=w ");
        assert_eq!(
            (list[1].prefix.as_str(), list[1].tls_key.as_deref()),
            ("https://h/x", Some("ab"))
        );
        assert_eq!(list[1].token.as_ref().unwrap().expose(), "t");
    }

    #[test]
    fn errors_name_the_line_and_do_not_quote_it() {
        for (text, line) in [
            ("user=a\nhunter2", "line 2"),
            ("passwort=hunter2", "line 1"),
            ("[hunter2\n", "line 1"),
            ("\npassword=hunter2\npassword=hunter2", "line 3"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(line) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_environment_completes_what_the_file_says() {
        let environment = StoreAccess {
            user: Some("other".into()),
            password: Some("pw".to_owned().into()),
            ..StoreAccess::default()
        };
        let mut list = parse("user=me\n[smb://h/s]\nuser=you\n").unwrap();
        say_as_well(&mut list, environment.clone());
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].user.as_deref(), Some("me"));
        assert_eq!(list[0].password, environment.password);
        assert_eq!(list[1].password, None, "that is for its own URL only");
        let mut list = parse("[smb://h/s]\nuser=you\n").unwrap();
        say_as_well(&mut list, environment.clone());
        assert_eq!(list[1], environment);
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_or_an_error(text in "[\\[\\]=#a-z \\n]{0,60}") {
            let _ = parse(&text);
        }
    }
}
