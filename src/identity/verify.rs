//! Who the peer is: its chain ends at a root of the bundle, nothing in it is revoked, its leaf names exactly one
//! SPIFFE id.
//!
//! In: the certificates that a peer presents, the time of the handshake. Out: the root that they end at, or
//! a [`PeerError`]. Fails closed. Host names play no part. Deliberately absent: OCSP, fetching anything; who of those that
//! verify is wanted (`handshake`).

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::{CertificateError, Error, OtherError};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, RevocationOptions};

use crate::identity::certificate::{CertificateFacts, LeafError, Validity};
use crate::identity::credentials::{Root, TrustBundle};
use crate::identity::provider::PROVIDER;
use crate::identity::spiffe::SpiffeId;
use crate::telemetry::text::Rfc3339;

/// A peer that has proved who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    pub id: SpiffeId,
    /// Lower-case hexadecimal.
    pub serial: Arc<str>,
    pub not_after: SystemTime,
    /// Which root its chain ends at.
    pub root: Root,
}

/// Why a peer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("a certificate is malformed")]
    Malformed,
    #[error(transparent)]
    Leaf(#[from] LeafError),
    #[error("{0}")]
    Expired(Box<Dated>),
    #[error("{0}")]
    NotYetValid(Box<Dated>),
    #[error("no trusted root has signed it")]
    UnknownIssuer,
    #[error("a certificate of the chain is revoked")]
    Revoked,
    #[error("a signature does not hold")]
    BadSignature,
    #[error("the chain breaks a rule of its own: {0}")]
    Rule(&'static str),
    #[error("{presented} is of no accepted trust domain; accepted: {accepted}")]
    TrustDomain { presented: SpiffeId, accepted: String },
    #[error("it is {presented}, and wanted is {wanted}")]
    NotWanted { presented: SpiffeId, wanted: String },
}

/// A certificate whose dates do not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dated {
    /// Whose chain it is in, as far as the leaf says.
    pub id: Option<SpiffeId>,
    /// Which of the chain: leaf, intermediate, root.
    pub which: &'static str,
    pub validity: Validity,
    pub now: SystemTime,
}

impl fmt::Display for Dated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, which, validity, now } = self;
        let id = id.as_ref().map_or("an unknown identity", SpiffeId::as_str);
        write!(f, "the {which} certificate of {id} is {}, and now it is {}", validity.words(), Rfc3339(*now))
    }
}

/// What the peer is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Usage {
    /// It connected to us.
    Client,
    /// We connected to it.
    Server,
}

impl PeerError {
    /// A metric label.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Leaf(_) => "no_identity",
            Self::Expired(_) => "expired",
            Self::NotYetValid(_) => "not_yet_valid",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Revoked => "revoked",
            Self::BadSignature => "bad_signature",
            Self::Rule(_) => "chain",
            Self::TrustDomain { .. } => "trust_domain",
            Self::NotWanted { .. } => "not_wanted",
        }
    }

    /// The reason inside an error of a handshake, if it was one of these.
    #[must_use]
    pub fn of(error: &Error) -> Option<Self> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref().cloned(),
            Error::InvalidCertificate(CertificateError::Revoked) => Some(Self::Revoked),
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => Some(Self::UnknownIssuer),
            Error::InvalidCertificate(CertificateError::BadEncoding) => Some(Self::Malformed),
            Error::InvalidCertificate(CertificateError::BadSignature) => Some(Self::BadSignature),
            Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
                let validity = Validity { not_before: UNIX_EPOCH, not_after: system(*not_after) };
                Some(Self::Expired(dated(validity, system(*time))))
            }
            Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
                let validity = Validity { not_before: system(*not_before), not_after: system(*not_before) };
                Some(Self::NotYetValid(dated(validity, system(*time))))
            }
            _ => None,
        }
    }

    /// The library's error for dates has room for one of them, and no other makes it tell the peer what is wrong: the rest is
    /// kept for [`Self::of`], which whoever drives the handshake calls next, on the same thread.
    pub(super) fn keep(dated: &Dated) {
        DATED.set(Some(dated.clone()));
    }
}

thread_local! {
    static DATED: Cell<Option<Dated>> = const { Cell::new(None) };
}

/// What was kept, if it is about these dates.
fn dated(validity: Validity, now: SystemTime) -> Box<Dated> {
    let fits =
        |kept: &Dated| kept.validity.not_after == validity.not_after || kept.validity.not_before == validity.not_before;
    let kept = DATED.take().filter(fits);
    Box::new(kept.unwrap_or(Dated { id: None, which: "presented", validity, now }))
}

pub(super) fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn system(time: UnixTime) -> SystemTime {
    UNIX_EPOCH + std::time::Duration::from_secs(time.as_secs())
}

/// Which root a leaf's chain ends at, whatever is revoked; an authority's own certificate is looked for in the bundle.
pub fn root_of(
    bundle: &TrustBundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<Root, PeerError> {
    let facts = CertificateFacts::of(leaf).map_err(|_detail| PeerError::Malformed)?;
    if let Some(root) = bundle.roots().iter().find(|root| root.fingerprint == facts.fingerprint) {
        return Ok(Arc::clone(root));
    }
    chain_to_root(bundle, leaf, intermediates, unix(now), Usage::Server, Look::OWN)
}

/// What counts beside the signatures, and the dates of all but the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) revoked: bool,
    pub(super) root_dates: bool,
}

impl Look {
    pub(super) const HANDSHAKE: Self = Self { revoked: true, root_dates: true };
    /// Our own, before it is used: revoked is a state of it, not an error.
    pub(super) const OWN: Self = Self { revoked: false, root_dates: true };
    /// What was good once; see [`while_valid`].
    pub(super) const AGAIN: Self = Self { revoked: true, root_dates: false };
    pub(super) const BARE: Self = Self { revoked: false, root_dates: false };
}

/// The time at which to look again at a chain that was good once: now, or when it was last (or is first) valid. `None`:
/// a certificate cannot be read.
pub(super) fn while_valid(chain: &[CertificateDer<'_>], now: SystemTime) -> Option<UnixTime> {
    let (mut at, mut last) = (now, None);
    for der in chain {
        let Validity { not_before, not_after } = CertificateFacts::validity_of(der)?;
        at = at.max(not_before);
        last = Some(last.map_or(not_after, |last| not_after.min(last)));
    }
    Some(unix(last.map_or(at, |last| at.min(last))))
}

/// Builds the chain from the leaf to a root, and says which.
pub(super) fn chain_to_root(
    bundle: &TrustBundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    usage: Usage,
    look: Look,
) -> Result<Root, PeerError> {
    let certificate = EndEntityCert::try_from(leaf).map_err(|error| of_webpki(&error))?;
    let usage = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let index_of = |anchor: &TrustAnchor<'_>| {
        bundle
            .anchors
            .iter()
            .position(|known| std::ptr::from_ref(known).cast::<()>() == std::ptr::from_ref(anchor).cast())
    };
    let in_date = |path: &webpki::VerifiedPath<'_>| {
        let root = index_of(path.anchor()).and_then(|index| bundle.roots().get(index));
        let validity = root.ok_or(webpki::Error::UnknownIssuer)?.validity;
        if !look.root_dates {
            return Ok(());
        }
        if validity.not_after < system(now) {
            return Err(webpki::Error::CertExpired { time: now, not_after: unix(validity.not_after) });
        }
        if system(now) < validity.not_before {
            return Err(webpki::Error::CertNotValidYet { time: now, not_before: unix(validity.not_before) });
        }
        Ok(())
    };
    let algorithms = algorithms().all;
    let verify = |revocation: Option<RevocationOptions<'_>>| {
        let path = certificate.verify_for_usage(
            algorithms,
            &bundle.anchors,
            intermediates,
            now,
            usage,
            revocation,
            Some(&in_date),
        );
        let path = path.map_err(|error| of_path(&error, leaf, intermediates, bundle))?;
        let root = index_of(path.anchor()).and_then(|index| bundle.roots().get(index));
        root.cloned().ok_or(PeerError::UnknownIssuer)
    };
    if look.revoked { bundle.revoked.with_options(verify) } else { verify(None) }
}

/// Dates by the certificate that they are of.
fn of_path(
    error: &webpki::Error,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
) -> PeerError {
    use webpki::Error as E;
    let find = |now: UnixTime, fits: &dyn Fn(&Validity) -> bool| {
        let above = intermediates.iter().filter_map(CertificateFacts::validity_of).map(|it| ("intermediate", it));
        let roots = bundle.roots().iter().map(|root| ("root", root.validity));
        let all = CertificateFacts::validity_of(leaf).map(|it| ("leaf", it)).into_iter().chain(above).chain(roots);
        let (which, validity) = all.into_iter().find(|(_, validity)| fits(validity))?;
        let id = CertificateFacts::of(leaf).ok().and_then(|facts| facts.spiffe_id().ok());
        Some(Box::new(Dated { id, which, validity, now: system(now) }))
    };
    let dated = match error {
        E::CertExpired { time, not_after } => {
            find(*time, &|it| it.not_after == system(*not_after)).map(PeerError::Expired)
        }
        E::CertNotValidYet { time, not_before } => {
            find(*time, &|it| it.not_before == system(*not_before)).map(PeerError::NotYetValid)
        }
        _ => None,
    };
    dated.unwrap_or_else(|| of_webpki(error))
}

fn of_webpki(error: &webpki::Error) -> PeerError {
    use webpki::Error as E;
    match error {
        E::CertRevoked => PeerError::Revoked,
        E::UnknownIssuer => PeerError::UnknownIssuer,
        E::BadDer | E::BadDerTime | E::TrailingData(_) | E::MalformedExtensions => PeerError::Malformed,
        E::InvalidSignatureForPublicKey => PeerError::BadSignature,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => PeerError::Rule("extended key usage"),
        E::CaUsedAsEndEntity => PeerError::Rule("an authority's certificate as a leaf"),
        E::EndEntityUsedAsCa => PeerError::Rule("a leaf as an authority"),
        E::NameConstraintViolation => PeerError::Rule("name constraints"),
        E::PathLenConstraintViolated => PeerError::Rule("path length"),
        E::MaximumPathDepthExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumSignatureChecksExceeded
        | E::MaximumNameConstraintComparisonsExceeded => PeerError::Rule("too long to verify"),
        E::InvalidCrlSignatureForPublicKey => PeerError::Rule("the revocation list is not its issuer's"),
        _ => PeerError::Rule("not supported"),
    }
}

pub(super) fn algorithms() -> WebPkiSupportedAlgorithms {
    PROVIDER.signature_verification_algorithms
}
