//! Key, chain and trust bundle as one unit, which exists only if everything fits together.
//!
//! In: DER from a source, the identity that is expected, the time. Out: [`Credentials`]. The key is the leaf's, the
//! chain ends at a root of the bundle, there is exactly one URI name and it is the expected SPIFFE id, and the dates
//! hold; otherwise a [`CredentialsError`] that says which of them is not so. The bundle is never empty.
//!
//! An own certificate that is revoked does not keep new revocation lists from being enforced: the credentials say
//! so ([`Credentials::revoked`]) and the daemon is not ready. Nothing shows the key.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor};
use sha2::{Digest as _, Sha256};

use crate::identity::certificate::{CertificateFacts, LeafError, hex};
use crate::identity::crl::RevocationSet;
use crate::identity::pem::PemError;
use crate::identity::spiffe::SpiffeId;
use crate::identity::verify::{self, PeerError, Usage};
use crate::telemetry::text::Rfc3339;

/// One root of a bundle.
pub type Root = Arc<CertificateFacts>;

/// Whom to trust: at least one root, and what has been revoked.
#[derive(Debug)]
pub struct TrustBundle {
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    /// Beside `anchors`.
    roots: Vec<Root>,
    pub revoked: Arc<RevocationSet>,
}

/// Who we are and whom we trust.
pub struct Credentials {
    id: SpiffeId,
    key: Arc<CertifiedKey>,
    chain: Vec<CertificateFacts>,
    root: Root,
    bundle: Arc<TrustBundle>,
    revoked: bool,
    digest: String,
}

/// Why material is not usable. `reason` is its metric label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    #[error("cannot read {file}: {error}", file = .file.display())]
    Unreadable { file: PathBuf, error: String },
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("the chain has no certificate in it")]
    NoCertificate,
    #[error("certificate {index} of the chain is malformed")]
    Malformed { index: usize },
    #[error("the trust bundle has no root in it")]
    NoRoots,
    #[error("root {index} cannot be trusted: {why}")]
    BadRoot { index: usize, why: &'static str },
    #[error("the private key is of a kind that is not supported")]
    UnsupportedKey,
    #[error("the private key is not the certificate's: is one of the files still to be written?")]
    KeyMismatch,
    #[error(transparent)]
    Leaf(#[from] LeafError),
    #[error("the certificate is for {found}, and {expected} is configured")]
    WrongIdentity { found: SpiffeId, expected: SpiffeId },
    #[error("the certificate of {id} is {words}, and now it is {now}")]
    Dates { id: SpiffeId, words: String, now: String },
    #[error("the certificate of {id} does not verify against the trust bundle: {error}")]
    Chain { id: SpiffeId, error: PeerError },
    #[error("the authority failed: {0}")]
    Authority(String),
}

impl CredentialsError {
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "unreadable",
            Self::Pem(_) | Self::Malformed { .. } | Self::NoCertificate | Self::UnsupportedKey => "malformed",
            Self::NoRoots | Self::BadRoot { .. } => "roots",
            Self::KeyMismatch => "key_mismatch",
            Self::Leaf(_) | Self::WrongIdentity { .. } => "identity",
            Self::Dates { .. } => "dates",
            Self::Chain { .. } => "chain",
            Self::Authority(_) => "authority",
        }
    }
}

impl TrustBundle {
    /// Duplicates count once. Roots whose dates do not hold are kept, and trusted only while they do.
    pub fn new<'a>(
        roots: impl IntoIterator<Item = &'a CertificateDer<'static>>,
        revoked: Arc<RevocationSet>,
    ) -> Result<Self, CredentialsError> {
        let mut bundle = Self { anchors: Vec::new(), roots: Vec::new(), revoked };
        for (index, der) in roots.into_iter().enumerate() {
            let bad = |why| CredentialsError::BadRoot { index: index + 1, why };
            let facts = CertificateFacts::of(der).map_err(|_detail| bad("it is malformed"))?;
            if bundle.roots.iter().any(|root| root.fingerprint == facts.fingerprint) {
                continue;
            }
            if !facts.is_ca {
                return Err(bad("it is not an authority's certificate"));
            }
            let anchor = webpki::anchor_from_trusted_cert(der).map_err(|_detail| bad("it is malformed"))?;
            bundle.anchors.push(anchor.to_owned());
            bundle.roots.push(Arc::new(facts));
        }
        if bundle.roots.is_empty() { Err(CredentialsError::NoRoots) } else { Ok(bundle) }
    }

    #[must_use]
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    fn digest(&self) -> String {
        let roots = self.roots.iter().map(|root| &*root.fingerprint).collect::<Vec<_>>();
        format!("{} {}", roots.join(" "), self.revoked.digest())
    }
}

impl Credentials {
    /// Checks everything; `now` is an argument.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'static>,
        bundle: Arc<TrustBundle>,
        expected: &SpiffeId,
        now: SystemTime,
    ) -> Result<Self, CredentialsError> {
        let facts = chain
            .iter()
            .enumerate()
            .map(|(index, der)| {
                CertificateFacts::of(der).map_err(|_same| CredentialsError::Malformed { index: index + 1 })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (leaf, rest) = chain.split_first().ok_or(CredentialsError::NoCertificate)?;
        let leaf_facts = facts.first().ok_or(CredentialsError::NoCertificate)?;
        let signer = any_supported_type(key).map_err(|_detail| CredentialsError::UnsupportedKey)?;
        let certified = CertifiedKey::new(chain.clone(), signer);
        certified.keys_match().map_err(|_detail| CredentialsError::KeyMismatch)?;
        let id = leaf_facts.spiffe_id()?;
        if id != *expected {
            return Err(CredentialsError::WrongIdentity { found: id, expected: expected.clone() });
        }
        if !leaf_facts.validity.holds(now) {
            let words = leaf_facts.validity.words();
            return Err(CredentialsError::Dates { id, words, now: Rfc3339(now).to_string() });
        }
        let at = verify::unix(now);
        let mut revoked = false;
        let mut root = None;
        // As either side of a connection: a leaf that is good for one only would fail half of them.
        for usage in [Usage::Client, Usage::Server] {
            let plain = verify::chain_to_root(&bundle, leaf, rest, at, usage, false);
            root = Some(plain.map_err(|error| CredentialsError::Chain { id: id.clone(), error })?);
            revoked |= verify::chain_to_root(&bundle, leaf, rest, at, usage, true).is_err();
        }
        let root = root.ok_or(CredentialsError::NoCertificate)?;
        let mut digest = Sha256::new();
        chain.iter().for_each(|der| digest.update(der));
        digest.update(bundle.digest());
        let digest = hex(&digest.finalize());
        Ok(Self { id, key: Arc::new(certified), chain: facts, root, bundle, revoked, digest })
    }

    #[must_use]
    pub const fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The leaf and what stands between it and the root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateFacts] {
        &self.chain
    }

    /// The leaf alone.
    #[must_use]
    pub fn leaf(&self) -> &CertificateFacts {
        // The constructor refuses an empty chain.
        self.chain.first().unwrap_or(&self.root)
    }

    /// Which root the own chain ends at.
    #[must_use]
    pub const fn root(&self) -> &Root {
        &self.root
    }

    #[must_use]
    pub const fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    /// The own chain is revoked by a list of the own bundle.
    #[must_use]
    pub const fn revoked(&self) -> bool {
        self.revoked
    }

    /// Until when the whole own chain is valid, the root included.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        let ends = self.chain.iter().map(|certificate| certificate.validity.not_after);
        ends.fold(self.root.validity.not_after, SystemTime::min)
    }

    /// Equal digests, equal credentials (the key is the leaf's).
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub(super) fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.key)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leaf = self.leaf();
        f.debug_struct("Credentials")
            .field("id", &self.id)
            .field("serial", &leaf.serial)
            .field("validity", &leaf.validity)
            .field("key", &"(not shown)")
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
