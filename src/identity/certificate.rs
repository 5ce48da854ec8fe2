//! What one certificate says, read once: identity, serial, dates, names, fingerprint.
//!
//! In: DER. Out: [`CertificateFacts`]. Fails closed: what cannot be read whole is refused. Nothing is verified here.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::spiffe::{SpiffeError, SpiffeId};
use crate::telemetry::text::Rfc3339;

/// From and until when, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Lower-case hexadecimal.
    pub serial: Arc<str>,
    serial_bytes: Vec<u8>,
    pub subject: Arc<str>,
    pub issuer: Arc<str>,
    pub validity: Validity,
    pub is_ca: bool,
    /// SHA-256 of the whole certificate, lower-case hexadecimal.
    pub fingerprint: Arc<str>,
    /// Every URI among the subject's alternative names.
    uris: Vec<String>,
}

/// Why a certificate is not a workload's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    #[error("the certificate has {0} URI names and must have exactly one")]
    UriCount(usize),
    #[error("the certificate's URI name {uri:?} is not a SPIFFE id: {error}")]
    NotSpiffe { uri: String, error: SpiffeError },
    #[error("the certificate is an authority's, not a workload's")]
    Authority,
}

/// The bytes are not one whole certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a well-formed X.509 certificate")]
pub struct Malformed;

impl CertificateFacts {
    pub fn of(der: &CertificateDer<'_>) -> Result<Self, Malformed> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_detail| Malformed)?;
        if !rest.is_empty() {
            return Err(Malformed);
        }
        let mut uris = Vec::new();
        let mut is_ca = false;
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    uris.extend(names.general_names.iter().filter_map(|name| match name {
                        GeneralName::URI(uri) => Some((*uri).to_owned()),
                        _ => None,
                    }));
                }
                ParsedExtension::BasicConstraints(constraints) => is_ca = constraints.ca,
                ParsedExtension::ParseError { .. } => return Err(Malformed),
                _ => {}
            }
        }
        Ok(Self {
            serial: hex(certificate.raw_serial()).into(),
            serial_bytes: certificate.raw_serial().to_vec(),
            subject: certificate.subject().to_string().into(),
            issuer: certificate.issuer().to_string().into(),
            validity: Validity::of(&certificate),
            is_ca,
            fingerprint: hex(&Sha256::digest(der)).into(),
            uris,
        })
    }

    /// Only the dates, for less work.
    pub(super) fn validity_of(der: &CertificateDer<'_>) -> Option<Validity> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Validity::of(&certificate))
    }

    /// As a revocation list names it.
    #[must_use]
    pub fn serial_bytes(&self) -> Vec<u8> {
        self.serial_bytes.clone()
    }

    /// The identity of a workload's certificate.
    pub fn spiffe_id(&self) -> Result<SpiffeId, LeafError> {
        if self.is_ca {
            return Err(LeafError::Authority);
        }
        let [uri] = self.uris.as_slice() else { return Err(LeafError::UriCount(self.uris.len())) };
        uri.parse().map_err(|error| LeafError::NotSpiffe { uri: uri.chars().take(200).collect(), error })
    }
}

impl Validity {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self { not_before: time(validity.not_before.timestamp()), not_after: time(validity.not_after.timestamp()) }
    }

    #[must_use]
    pub fn holds(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// For messages: both ends.
    #[must_use]
    pub fn words(&self) -> String {
        format!("valid from {} to {}", Rfc3339(self.not_before), Rfc3339(self.not_after))
    }
}

pub(super) fn time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
