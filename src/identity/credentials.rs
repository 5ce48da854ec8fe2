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
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
use sha2::{Digest as _, Sha256};

use crate::identity::certificate::{CertificateFacts, LeafError, hex};
use crate::identity::crl::RevocationSet;
use crate::identity::pem::PemError;
use crate::identity::spiffe::SpiffeId;
use crate::identity::verify::{self, Look, PeerError, Usage};
use crate::telemetry::text::Rfc3339;

/// One root of a bundle.
pub type Root = Arc<CertificateFacts>;

/// A root, and what chains are verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownRoot {
    pub(super) root: Root,
    pub(super) anchor: TrustAnchor<'static>,
}

/// Whom to trust: at least one root, and what has been revoked.
#[derive(Debug)]
pub struct TrustBundle {
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    /// Beside `anchors`.
    roots: Vec<Root>,
    pub revoked: Arc<RevocationSet>,
    digest: String,
}

/// Who we are and whom we trust.
pub struct Credentials {
    id: SpiffeId,
    key: Arc<CertifiedKey>,
    chain: Vec<CertificateFacts>,
    /// What the own chain ends at; not of the bundle if that has it no more.
    root: KnownRoot,
    bundle: Arc<TrustBundle>,
    /// Until when the bundle has a root that nobody wants there any more but the own chain.
    notice: Option<SystemTime>,
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
    /// Whether both say the same, if perhaps at another time.
    #[must_use]
    pub fn repeats(&self, earlier: &Self) -> bool {
        match (self, earlier) {
            (Self::Dates { id, words, .. }, Self::Dates { id: same_id, words: same_words, .. }) => {
                id == same_id && words == same_words
            }
            (Self::Chain { id, error }, Self::Chain { id: same_id, error: same }) => {
                id == same_id && error.reason() == same.reason()
            }
            _ => self == earlier,
        }
    }

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
        let mut bundle = Self { anchors: Vec::new(), roots: Vec::new(), revoked, digest: String::new() };
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
        if bundle.roots.is_empty() { Err(CredentialsError::NoRoots) } else { Ok(bundle.digested()) }
    }

    /// Of roots that were in other bundles.
    pub(super) fn of_known(roots: Vec<KnownRoot>, revoked: Arc<RevocationSet>) -> Self {
        let (roots, anchors) = roots.into_iter().map(|known| (known.root, known.anchor)).unzip();
        Self { anchors, roots, revoked, digest: String::new() }.digested()
    }

    fn digested(mut self) -> Self {
        let roots = self.roots.iter().map(|root| &*root.fingerprint).collect::<Vec<_>>();
        self.digest = format!("{} {}", roots.join(" "), self.revoked.digest());
        self
    }

    /// The roots, in a form that another bundle can be made of.
    pub(super) fn known(&self) -> impl Iterator<Item = KnownRoot> {
        let both = self.roots.iter().zip(&self.anchors);
        both.map(|(root, anchor)| KnownRoot { root: Arc::clone(root), anchor: anchor.clone() })
    }

    /// With one root more.
    fn and(&self, root: &KnownRoot) -> Self {
        Self::of_known(self.known().chain([root.clone()]).collect(), Arc::clone(&self.revoked))
    }

    fn known_root(&self, root: &Root) -> Result<KnownRoot, PeerError> {
        self.known().find(|known| known.root == *root).ok_or(PeerError::UnknownIssuer)
    }

    #[must_use]
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// Equal digests, equal bundles.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

impl Credentials {
    /// Checks everything; `now` is an argument.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'static>,
        bundle: Arc<TrustBundle>,
        expected: &SpiffeId,
        now: SystemTime,
    ) -> Result<Self, CredentialsError> {
        Self::examine(chain, key, bundle, expected, now)
            .map_err(|wrong| wrong.into_iter().next().unwrap_or(CredentialsError::NoCertificate))
    }

    /// As [`Self::new`], but says everything that is wrong.
    ///
    /// # Errors
    /// At least one.
    pub fn examine(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'static>,
        bundle: Arc<TrustBundle>,
        expected: &SpiffeId,
        now: SystemTime,
    ) -> Result<Self, Vec<CredentialsError>> {
        let Pair { certified, chain, id, mut wrong } = Pair::new(chain, key, expected, now).map_err(|it| vec![it])?;
        let dates_wrong = wrong.iter().any(|it| matches!(it, CredentialsError::Dates { .. }));
        let root = own_chain(&certified.cert, &bundle, verify::unix(now), Look::OWN);
        match root.and_then(|root| bundle.known_root(&root)) {
            Ok(root) if wrong.is_empty() => {
                return Ok(Self::of((id, Arc::new(certified), chain), root, (bundle, None), verify::unix(now)));
            }
            Ok(_) => {}
            // The dates of the leaf have said that already.
            Err(PeerError::Expired(_) | PeerError::NotYetValid(_)) if dates_wrong => {}
            Err(error) => wrong.push(CredentialsError::Chain { id, error }),
        }
        Err(wrong)
    }

    /// The same key and certificate with another bundle, for when no other certificate can be had. Dates play no part:
    /// what has expired is checked at use. If the bundle has no root for the own chain, the root that it had stays, beside
    /// the new ones, until `until` at most ([`Self::notice`]); then it is only what the own chain is checked with.
    #[must_use]
    pub fn with_bundle(&self, bundle: &Arc<TrustBundle>, now: SystemTime, until: SystemTime) -> Self {
        let chain = &self.key.cert;
        let at = verify::while_valid(chain, now).unwrap_or_else(|| verify::unix(now));
        let root = own_chain(chain, bundle, at, Look::BARE).and_then(|root| bundle.known_root(&root));
        let (root, trust) = match root {
            Ok(root) => (root, (Arc::clone(bundle), None)),
            Err(_orphan) => {
                let until = self.notice.unwrap_or(until);
                let trusted = if now < until { Arc::new(bundle.and(&self.root)) } else { Arc::clone(bundle) };
                (self.root.clone(), (trusted, Some(until)))
            }
        };
        Self::of((self.id.clone(), Arc::clone(&self.key), self.chain.clone()), root, trust, at)
    }

    fn of(
        (id, key, chain): (SpiffeId, Arc<CertifiedKey>, Vec<CertificateFacts>),
        root: KnownRoot,
        (bundle, notice): (Arc<TrustBundle>, Option<SystemTime>),
        at: UnixTime,
    ) -> Self {
        let revoked = own_chain(&key.cert, &bundle.and(&root), at, Look::AGAIN).is_err();
        let mut digest = Sha256::new();
        key.cert.iter().for_each(|der| digest.update(der));
        digest.update(bundle.digest());
        let digest = hex(&digest.finalize());
        Self { id, key, chain, root, bundle, notice, revoked, digest }
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
        self.chain.first().unwrap_or(&self.root.root)
    }

    /// Which root the own chain ends at.
    #[must_use]
    pub const fn root(&self) -> &Root {
        &self.root.root
    }

    /// The bundle that came last has no root for the own chain: until when peers of that root are still let in.
    #[must_use]
    pub const fn notice(&self) -> Option<SystemTime> {
        self.notice
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
        ends.fold(self.root.root.validity.not_after, SystemTime::min)
    }

    /// Whether both mean the same, the end of a root that is on notice included.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest && self.notice == other.notice
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

/// Key and chain, looked at by themselves.
pub(super) struct Pair {
    certified: CertifiedKey,
    chain: Vec<CertificateFacts>,
    /// As the certificate says, or what was expected if it says none.
    id: SpiffeId,
    /// Everything that is wrong with them.
    pub(super) wrong: Vec<CredentialsError>,
}

impl Pair {
    /// # Errors
    /// What keeps from looking at all.
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'static>,
        expected: &SpiffeId,
        now: SystemTime,
    ) -> Result<Self, CredentialsError> {
        let facts = chain.iter().enumerate().map(|(index, der)| {
            CertificateFacts::of(der).map_err(|_same| CredentialsError::Malformed { index: index + 1 })
        });
        let facts = facts.collect::<Result<Vec<_>, _>>()?;
        let leaf = facts.first().ok_or(CredentialsError::NoCertificate)?;
        let signer = any_supported_type(key).map_err(|_detail| CredentialsError::UnsupportedKey)?;
        let certified = CertifiedKey::new(chain, signer);
        let mut wrong = Vec::new();
        if certified.keys_match().is_err() {
            wrong.push(CredentialsError::KeyMismatch);
        }
        let id = match leaf.spiffe_id() {
            Ok(id) => id,
            Err(error) => {
                wrong.push(error.into());
                expected.clone()
            }
        };
        if id != *expected {
            wrong.push(CredentialsError::WrongIdentity { found: id.clone(), expected: expected.clone() });
        }
        if !leaf.validity.holds(now) {
            let (id, words) = (id.clone(), leaf.validity.words());
            wrong.push(CredentialsError::Dates { id, words, now: Rfc3339(now).to_string() });
        }
        Ok(Self { certified, chain: facts, id, wrong })
    }
}

/// Which root the own chain ends at, as either side of a connection: a leaf that is good for one only would fail half of
/// them.
fn own_chain(chain: &[CertificateDer<'_>], bundle: &TrustBundle, at: UnixTime, look: Look) -> Result<Root, PeerError> {
    let (leaf, rest) = chain.split_first().ok_or(PeerError::Malformed)?;
    let root = |usage| verify::chain_to_root(bundle, leaf, rest, at, usage, look);
    root(Usage::Client)?;
    root(Usage::Server)
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
