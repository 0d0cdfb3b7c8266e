//! Which web servers are believed to be who they say, and why one is not, in words.
//!
//! A server's certificate has to come from an authority of Mozilla's list, which is compiled in, or of a file that the user names; or
//! the server's key is known beforehand (the crate `key_pin`). Nothing turns the check off.

use std::io;
use std::path::Path;
use std::sync::Arc;

use agent_api::CA_FILE_VARIABLES;
use key_pin::{Pin, WrongKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error as TlsError, OtherError, RootCertStore,
};

use super::super::{Result, StoreError};

/// A configuration that believes the known authorities.
pub(super) fn by_authorities() -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    for variable in CA_FILE_VARIABLES {
        if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
            add_file(&mut roots, variable, Path::new(&path))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// A configuration that believes one key.
pub(super) fn by_key(pin: Pin, wrong: &WrongKey) -> Arc<ClientConfig> {
    Arc::new(key_pin::client_config(pin, wrong).expect("ring has the default versions of TLS"))
}

fn add_file(roots: &mut RootCertStore, variable: &str, path: &Path) -> Result<()> {
    let failed = |reason: String| StoreError::Io {
        doing: "reading the certificates in",
        url: path.display().to_string(),
        source: io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{reason} ({variable} names it)"),
        ),
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|error| failed(error.to_string()))?;
    if roots.add_parsable_certificates(certificates).0 == 0 {
        return Err(failed("there is none in it that is valid; it has to be in PEM".to_owned()));
    }
    Ok(())
}

/// Why a handshake failed for good, in words; `None` if another attempt may succeed.
pub(super) fn refusal(error: &TlsError, wrong: Option<Pin>) -> Option<String> {
    let text = match error {
        TlsError::InvalidCertificate(error) => certificate_refusal(error, wrong),
        TlsError::AlertReceived(AlertDescription::CertificateRequired) => {
            "it wants a certificate of its clients, which this version has none of".to_owned()
        }
        TlsError::AlertReceived(
            alert @ (AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity
            | AlertDescription::UnrecognisedName),
        ) => {
            format!("it refuses the handshake ({alert:?}); TLS 1.2 and 1.3 are spoken here")
        }
        TlsError::PeerIncompatible(why) => {
            format!("it speaks no TLS that is still safe ({why:?}); 1.2 and 1.3 are spoken here")
        }
        _ => return None,
    };
    Some(text)
}

fn certificate_refusal(error: &CertificateError, wrong: Option<Pin>) -> String {
    const CLOCK: &str = "renew it, or correct this machine's clock";
    match error {
        CertificateError::Expired => format!("its certificate has expired: {CLOCK}"),
        CertificateError::ExpiredContext { time, not_after } => format!(
            "its certificate has expired: it was good until {}, and here it is {}: {CLOCK}",
            date(not_after.as_secs()),
            date(time.as_secs())
        ),
        CertificateError::NotValidYet => format!("its certificate is not valid yet: {CLOCK}"),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate is not valid before {}, and here it is {}: {CLOCK}",
            date(not_before.as_secs()),
            date(time.as_secs())
        ),
        CertificateError::UnknownIssuer => "no authority that is known here has signed its certificate: name the file with the authority's \
             certificate in IMPRINT_CA_FILE, or give the server's own key as tls_key"
            .to_owned(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name: use the name that stands in it, or give the server's own key as tls_key".to_owned()
        }
        CertificateError::Revoked => "its certificate was revoked".to_owned(),
        CertificateError::ApplicationVerificationFailure if wrong.is_some() => {
            let found = wrong.map(|pin| pin.to_string()).unwrap_or_default();
            format!("it has the key {found}, not the one that was given as tls_key")
        }
        // webpki's own words for one that signs others: "CaUsedAsEndEntity".
        CertificateError::Other(OtherError(source)) => {
            format!("its certificate is refused ({source}); its own key can be given as tls_key")
        }
        other => format!("its certificate is refused ({other:?})"),
    }
}

fn date(unix_secs: u64) -> String {
    let seconds = i64::try_from(unix_secs).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time.to_string(),
        Err(_) => format!("second {unix_secs}"),
    }
}
