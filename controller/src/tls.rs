//! The controller's TLS identity, and the client side that trusts exactly this identity.
//!
//! There is no certificate authority: the controller makes an ECDSA P-256 key and a self-signed certificate at its first start, and
//! whoever talks to it knows the SHA-256 of the key (RFC 7469's pin, in hex): agents from the kernel command line, the command
//! line from `client.json`.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use key_pin::{Pin, WrongKey};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ServerConfig};

use crate::data_dir::{DataDir, DataDirError, write_private};

/// Why the identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file operation on the data folder failed.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A file cannot be read.
    #[error("reading {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no usable {what}: restore it from a backup, or remove tls.key and tls.crt (agents and clients must then learn the new pin)", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Key or certificate.
        what: &'static str,
    },
    /// A certificate could not be made.
    #[error("making the controller's certificate")]
    Make(#[source] rcgen::Error),
    /// rustls refused key and certificate.
    #[error("setting up TLS")]
    Setup(#[source] rustls::Error),
    /// Not a pin.
    #[error("{0:?} is not a pin: 64 lower-case hex digits, the SHA-256 of the controller's key")]
    Pin(String),
}

/// Key, certificate and their pin.
#[derive(Debug, Clone)]
pub struct Identity {
    /// For the HTTPS listener.
    pub server: Arc<ServerConfig>,
    /// Lower-case hex SHA-256 of the SubjectPublicKeyInfo.
    pub pin: String,
}

impl Identity {
    /// The identity in the data folder, made if there is none.
    ///
    /// # Errors
    /// When the files cannot be read, written or used.
    pub fn load_or_make(data: &DataDir) -> Result<Self, TlsError> {
        let key_path = data.path().join("tls.key");
        let certificate_path = data.path().join("tls.crt");
        if !key_path.exists() {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
                .map_err(TlsError::Make)?;
            write_private(&key_path, key.serialize_pem().as_bytes())?;
        }
        let pem = fs::read_to_string(&key_path)
            .map_err(|source| TlsError::Read { path: key_path.clone(), source })?;
        let key = rcgen::KeyPair::from_pem(&pem)
            .map_err(|_| TlsError::Content { path: key_path.clone(), what: "private key" })?;
        if !certificate_path.exists() {
            let mut params = rcgen::CertificateParams::new(vec!["imprint".to_owned()])
                .map_err(TlsError::Make)?;
            params.distinguished_name.push(rcgen::DnType::CommonName, "imprint controller");
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2120, 1, 1);
            let certificate = params.self_signed(&key).map_err(TlsError::Make)?;
            write_private(&certificate_path, certificate.pem().as_bytes())?;
        }
        let pem = fs::read(&certificate_path)
            .map_err(|source| TlsError::Read { path: certificate_path.clone(), source })?;
        let certificate = CertificateDer::from_pem_slice(&pem).map_err(|_| TlsError::Content {
            path: certificate_path.clone(),
            what: "certificate",
        })?;
        let pin = Pin::of(&certificate)
            .map_err(|_| TlsError::Content { path: certificate_path, what: "certificate" })?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|_| TlsError::Content { path: key_path, what: "private key" })?;
        let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .map_err(TlsError::Setup)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { server: Arc::new(server), pin: pin.to_string() })
    }
}

/// A client configuration that trusts the key with this pin only; another server's pin is left in `wrong`.
///
/// # Errors
/// When the pin has not the form of one.
pub fn pinned_client(pin: &str, wrong: &WrongKey) -> Result<ClientConfig, TlsError> {
    let pin = pin.parse().map_err(|_| TlsError::Pin(pin.to_owned()))?;
    key_pin::client_config(pin, wrong).map_err(TlsError::Setup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_stays_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let first = Identity::load_or_make(&data).unwrap().pin;
        assert!(first.parse::<Pin>().is_ok());
        assert_eq!(Identity::load_or_make(&data).unwrap().pin, first);
        // A new certificate for the same key keeps the pin.
        fs::remove_file(data.path().join("tls.crt")).unwrap();
        assert_eq!(Identity::load_or_make(&data).unwrap().pin, first);
        fs::write(data.path().join("tls.key"), "x").unwrap();
        assert!(matches!(Identity::load_or_make(&data), Err(TlsError::Content { .. })));
    }

    #[test]
    fn a_pin_is_64_hex_digits() {
        assert!(pinned_client(&"0".repeat(64), &WrongKey::default()).is_ok());
        assert!(matches!(pinned_client("abc", &WrongKey::default()), Err(TlsError::Pin(_))));
    }
}
