//! A small certificate authority, for the dev source and `adit certs issue`: for tests, demos and small meshes.
//!
//! In: names, times, an authority's PEM. Out: PEM of certificates (ECDSA P-256) and revocation lists. Every key is made
//! fresh. Where files go and with which permissions is the caller's to decide.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::identity::spiffe::SpiffeId;

/// Clocks differ: what is issued is valid since a little before.
pub const BACKDATED: Duration = Duration::from_secs(300);

/// A key and the certificate that says what it may sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
}

/// A certificate and its key.
pub struct Issued {
    pub certificate: CertificateDer<'static>,
    pub certificate_pem: String,
    /// Secret.
    pub key_pem: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot make a certificate: {0}")]
    Make(String),
    #[error("the authority's {0} cannot be read")]
    Read(&'static str),
    #[error("the identity cannot be put into a certificate")]
    Identity,
}

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Make(error.to_string())
    }
}

impl Authority {
    /// A new root; the second part is its key in PEM, which is secret.
    pub fn new_root(name: &str, now: SystemTime, lifetime: Duration) -> Result<(Self, String), AuthorityError> {
        let key = KeyPair::generate()?;
        let key_pem = key.serialize_pem();
        let params = authority_params(name, now, lifetime, BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key)?;
        Ok((Self::of(&certificate, params, key), key_pem))
    }

    /// An authority below this one.
    pub fn intermediate(
        &self,
        name: &str,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<(Self, String), AuthorityError> {
        let key = KeyPair::generate()?;
        let key_pem = key.serialize_pem();
        let mut params = authority_params(name, now, lifetime, BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((Self::of(&certificate, params, key), key_pem))
    }

    fn of(certificate: &Certificate, params: CertificateParams, key: KeyPair) -> Self {
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Self { issuer: Issuer::new(params, key), certificate: der, certificate_pem: pem }
    }

    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_secret| AuthorityError::Read("key"))?;
        let key = KeyPair::try_from(&key).map_err(|_secret| AuthorityError::Read("key"))?;
        let unreadable = AuthorityError::Read("certificate");
        let certificate =
            CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_detail| unreadable.clone())?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|_detail| unreadable)?;
        Ok(Self { issuer, certificate, certificate_pem: certificate_pem.to_owned() })
    }

    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A leaf for a workload, good for both sides of a connection.
    pub fn issue(&self, id: &SpiffeId, now: SystemTime, lifetime: Duration) -> Result<Issued, AuthorityError> {
        let uri = id.as_str().to_owned().try_into().map_err(|_detail| AuthorityError::Identity)?;
        self.issue_with(vec![SanType::URI(uri)], now, lifetime)
    }

    /// As [`Self::issue`], for any names.
    pub fn issue_with(
        &self,
        names: Vec<SanType>,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Issued, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = dated(now, lifetime);
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// A revocation list with these serial numbers in it (as bytes), in PEM.
    pub fn revoke(&self, serials: &[Vec<u8>], now: SystemTime, lifetime: Duration) -> Result<String, AuthorityError> {
        let epoch = date_time_ymd(1970, 1, 1);
        let revoked = |serial: &Vec<u8>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: epoch + since_epoch(now),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: epoch + since_epoch(now),
            next_update: epoch + since_epoch(now + lifetime),
            crl_number: SerialNumber::from(since_epoch(now).as_secs()),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }
}

/// As the library's dates are made, without its library for dates.
fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn dated(now: SystemTime, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(now - BACKDATED);
    params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(now + lifetime);
    params
}

fn authority_params(name: &str, now: SystemTime, lifetime: Duration, path: BasicConstraints) -> CertificateParams {
    let mut params = dated(now, lifetime);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Issued")
    }
}
