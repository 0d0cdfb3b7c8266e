//! What lets the agent into a store.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// A text that no log, error or `{:?}` shows. On the wire it is the plain text: only what is inside TLS carries it.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde's own error repeats what it found: a password may be a number.
        String::deserialize(deserializer)
            .map(Self)
            .map_err(|_| D::Error::custom("it is not a text: put it in quotes"))
    }
}

impl SecretText {
    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// Environment variables that name files, in PEM, with certificates of further authorities that web servers' ones may come from. The
/// controller hands them on to the agents that it starts on its own machine.
pub const CA_FILE_VARIABLES: [&str; 2] = ["IMPRINT_CA_FILE", "SSL_CERT_FILE"];

/// Credentials for one store, or for one server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreAccess {
    /// The URL of the server, share or folder that they are for, with everything beneath. Empty: the server of the job's own image.
    pub prefix: String,
    /// Who the agent is to the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The Windows domain or workgroup of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretText>,
    /// A bearer token (HTTPS), in place of user and password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretText>,
    /// HTTPS: the server is the one with this key, whoever vouches for it or not: lower-case hex SHA-256 of the certificate's
    /// SubjectPublicKeyInfo, as in [`KERNEL_PARAM_PIN`](crate::KERNEL_PARAM_PIN).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_cross_the_wire_and_do_not_show() {
        let access = StoreAccess {
            prefix: "smb://nas/images".into(),
            user: Some("imprint".into()),
            password: Some(SecretText::from("hunter2".to_owned())),
            token: Some(SecretText::from("hunter3".to_owned())),
            ..StoreAccess::default()
        };
        let text = serde_json::to_string(&access).unwrap();
        assert_eq!(serde_json::from_str::<StoreAccess>(&text).unwrap(), access);
        assert!(!format!("{access:?}").contains("hunter"));
    }

    #[test]
    fn what_is_no_text_is_not_repeated() {
        for secret in ["777123", "-777123", "777123.5", "777123000000000000000000", "true", "[7]"] {
            let given = format!(r#"{{"password":{secret}}}"#);
            let error = serde_json::from_str::<StoreAccess>(&given).unwrap_err().to_string();
            assert!(!error.contains("777123") && !error.contains("true"), "{error}");
            // As a part of something that is read twice, such as a kind of BMC.
            let value: serde_json::Value = serde_json::from_str(&given).unwrap();
            let error = serde_json::from_value::<StoreAccess>(value).unwrap_err().to_string();
            assert!(!error.contains("777123") && !error.contains("true"), "{error}");
        }
    }
}
