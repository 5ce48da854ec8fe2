//! Who the peer is: its chain ends at a root of the bundle, nothing in it is revoked, its leaf names exactly one
//! SPIFFE id.
//!
//! In: the certificates that a peer presents, the time of the handshake. Out: the root that they end at, or
//! a [`PeerError`]. Fails closed. Host names play no part. Deliberately absent: OCSP, fetching anything; who of those that
//! verify is wanted (`handshake`).

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
    #[error("a certificate expired at {not_after}, and now it is {now}")]
    Expired { not_after: String, now: String },
    #[error("a certificate is not valid before {not_before}, and now it is {now}")]
    NotYetValid { not_before: String, now: String },
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
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
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
                Some(Self::Expired { not_after: shown(*not_after), now: shown(*time) })
            }
            Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
                Some(Self::NotYetValid { not_before: shown(*not_before), now: shown(*time) })
            }
            _ => None,
        }
    }
}

pub(super) fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn system(time: UnixTime) -> SystemTime {
    UNIX_EPOCH + std::time::Duration::from_secs(time.as_secs())
}

fn shown(time: UnixTime) -> String {
    Rfc3339(system(time)).to_string()
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
        let path = path.map_err(|error| of_webpki(&error))?;
        let root = index_of(path.anchor()).and_then(|index| bundle.roots().get(index));
        root.cloned().ok_or(PeerError::UnknownIssuer)
    };
    if look.revoked { bundle.revoked.with_options(verify) } else { verify(None) }
}

fn of_webpki(error: &webpki::Error) -> PeerError {
    use webpki::Error as E;
    match error {
        E::CertExpired { time, not_after } => PeerError::Expired { not_after: shown(*not_after), now: shown(*time) },
        E::CertNotValidYet { time, not_before } => {
            PeerError::NotYetValid { not_before: shown(*not_before), now: shown(*time) }
        }
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
