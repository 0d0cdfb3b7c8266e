//! What a job asks for that this version does not know.
//!
//! A job may come from a newer controller, or from somebody's editor. An option that is left out of account could be the one that keeps a
//! disk from being overwritten, so it is kept, handed on, and refused before anything is done. One that asks for nothing is let pass: options
//! are in the JSON whatever their value, and those that a newer controller has stand there with their defaults.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Options without a meaning here, by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Unknown(BTreeMap<String, Value>);

impl Unknown {
    /// Refuses an option that asks for something.
    ///
    /// # Errors
    /// A sentence that names it.
    pub fn check(&self) -> Result<(), String> {
        match self.0.iter().find(|(_, value)| asks(value)) {
            Some((name, _)) => Err(format!(
                "the job has an option {} that this version of imprint-agent does not know: correct its name, or use an agent as new as what made the job",
                name.escape_debug()
            )),
            None => Ok(()),
        }
    }
}

/// Whether a value asks for something: all options are off by default.
fn asks(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is_on) => *is_on,
        Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CaptureOptions, RestoreOptions};

    #[test]
    fn what_is_not_known_is_kept_and_refused_if_it_asks_for_something() {
        for given in
            [r#"{"hostnam":"y","delta":true}"#, r#"{"require-signature":"k"}"#, r#"{"x":0}"#]
        {
            let options: RestoreOptions = serde_json::from_str(given).unwrap();
            let text = serde_json::to_string(&options).unwrap();
            assert_eq!(serde_json::from_str::<RestoreOptions>(&text).unwrap(), options);
            assert!(options.unknown.check().unwrap_err().contains("does not know"), "{given}");
        }
        let capture: CaptureOptions = serde_json::from_str(r#"{"levle":9}"#).unwrap();
        assert!(capture.check().unwrap_err().contains("option levle"));
        let off =
            r#"{"newer":false,"other":null,"list":[],"hostname":"h","limit":"4M","delta":true}"#;
        let options: RestoreOptions = serde_json::from_str(off).unwrap();
        options.unknown.check().unwrap();
        assert!(options.delta && options.limit.is_some());
        assert_eq!(options.customise.hostname.as_deref(), Some("h"));
        assert_eq!(RestoreOptions::default().unknown, super::Unknown::default());
    }
}
