//! For tests: authorities, leaves and credentials made on the spot. No key is ever in the source tree.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::identity::authority::{Authority, Issued};
use crate::identity::certificate::CertificateFacts;
use crate::identity::credentials::{Credentials, CredentialsError, TrustBundle};
use crate::identity::crl::RevocationSet;
use crate::identity::spiffe::{SpiffeId, TrustDomain};

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn id(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{name}").parse().unwrap()
}

pub(super) fn domains(names: &[&str]) -> Arc<[TrustDomain]> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

pub(super) fn root(name: &str) -> Authority {
    Authority::new_root(name, SystemTime::now(), DAY * 365).unwrap().0
}

pub(super) fn leaf(authority: &Authority, id: &SpiffeId) -> Issued {
    authority.issue(id, SystemTime::now(), DAY).unwrap()
}

pub(super) fn key(issued: &Issued) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap()
}

pub(super) fn serial(certificate: &CertificateDer<'_>) -> Vec<u8> {
    CertificateFacts::of(certificate).unwrap().serial_bytes()
}

pub(super) fn lists(pem: &[&str]) -> Arc<RevocationSet> {
    let files = pem.iter().map(|pem| (std::path::Path::new("crl.pem"), pem.as_bytes()));
    Arc::new(RevocationSet::read(files).unwrap())
}

pub(super) fn bundle(roots: &[&Authority], revoked: Arc<RevocationSet>) -> Arc<TrustBundle> {
    Arc::new(TrustBundle::new(roots.iter().map(|root| root.certificate()), revoked).unwrap())
}

pub(super) fn credentials(
    issued: &Issued,
    above: &[&Authority],
    bundle: Arc<TrustBundle>,
    id: &SpiffeId,
) -> Result<Credentials, CredentialsError> {
    let chain = std::iter::once(&issued.certificate).chain(above.iter().map(|it| it.certificate())).cloned().collect();
    Credentials::new(chain, &key(issued), bundle, id, SystemTime::now())
}
