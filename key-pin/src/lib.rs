//! TLS with one known key: the server is who it should be if its public key has the hash that the client was given.
//!
//! Names, dates and chains say nothing here: the certificate is the controller's own, the machine's clock may be wrong, and its
//! address may be a number. What is checked is the key's hash, and, by the handshake's signature, that the server holds that key.
//!
//! Agents have the pin from their kernel command line, the command line of the controller has it from `client.json`, and users may
//! give one for a web server. Deliberately absent: certificate authorities, and the server's side.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use ring::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, ring as provider, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};

/// SHA-256 of a key's SubjectPublicKeyInfo, as RFC 7469 pins keys; its text is lower-case hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// The pin of a certificate's key.
    ///
    /// # Errors
    /// If it is no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        let hash = digest(&SHA256, key.as_ref());
        Ok(Self(hash.as_ref().try_into().expect("SHA-256 has 32 bytes")))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not 64 hexadecimal digits")]
pub struct PinError;

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(PinError);
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| PinError)?;
        }
        Ok(Self(bytes))
    }
}

/// Where the verifier leaves the key of a server that it refused, for the message.
pub type WrongKey = Arc<Mutex<Option<Pin>>>;

/// A TLS configuration that accepts only the server whose key has this pin, and leaves another server's in `wrong`.
///
/// # Errors
/// If the provider has none of TLS's default versions.
pub fn client_config(pin: Pin, wrong: &WrongKey) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(provider::default_provider());
    let verifier = Verifier { pin, wrong: Arc::clone(wrong), provider: Arc::clone(&provider) };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

#[derive(Debug)]
struct Verifier {
    pin: Pin,
    wrong: WrongKey,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Pin::of(end_entity)?;
        if found == self.pin {
            return Ok(ServerCertVerified::assertion());
        }
        *self.wrong.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_the_hash_of_the_key_in_the_certificate() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        let expected: String =
            digest(&SHA256, &spki).as_ref().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(Pin::of(certificate.der()).unwrap().to_string(), expected);
        assert!(Pin::of(&CertificateDer::from(vec![1, 2, 3])).is_err());
    }

    #[test]
    fn a_pin_is_64_digits() {
        let text = "00112233445566778899AABBCCDDEEFF00112233445566778899aabbccddeeff";
        assert_eq!(text.parse::<Pin>().unwrap().to_string(), text.to_lowercase());
        for bad in ["", "00", &text[1..], &format!("{}é", &text[..62])] {
            assert_eq!(bad.parse::<Pin>(), Err(PinError), "{bad}");
        }
    }
}
