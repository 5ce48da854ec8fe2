//! The verifiers that TLS asks during a handshake: any workload of an accepted trust domain for the side that
//! is connected to, exactly the wanted identities for the side that connects.
//!
//! In: what a peer presents. Out: yes, or the alert that fits; and for the connection, who the peer is. A certificate is
//! read once per generation: what was read is kept by the hash of what was presented (bounded), and the connection
//! asks for it after the handshake; what was forgotten in between is verified again. The chain itself is verified at every handshake. Fails closed.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};

use crate::identity::certificate::CertificateFacts;
use crate::identity::credentials::TrustBundle;
use crate::identity::spiffe::{SpiffeId, TrustDomain};
use crate::identity::verify::{Look, PeerError, PeerIdentity, Usage, algorithms, chain_to_root, unix};

/// Certificates of peers that are remembered per generation.
pub(super) const REMEMBERED: usize = 4096;

/// The part that both directions share; one per generation.
#[derive(Debug)]
pub(super) struct Core {
    bundle: Arc<TrustBundle>,
    now: Arc<dyn TimeProvider>,
    read: Mutex<HashMap<[u8; 32], Arc<PeerIdentity>>>,
}

impl Core {
    pub(super) fn new(bundle: Arc<TrustBundle>, now: Arc<dyn TimeProvider>) -> Self {
        Self { bundle, now, read: Mutex::default() }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<Arc<PeerIdentity>, PeerError> {
        let root = chain_to_root(&self.bundle, leaf, intermediates, now, usage, Look::HANDSHAKE)?;
        let key = key(std::iter::once(leaf).chain(intermediates));
        if let Some(known) = self.known(key)
            && known.root == root
        {
            return Ok(known);
        }
        let facts = CertificateFacts::of(leaf).map_err(|_detail| PeerError::Malformed)?;
        let not_after = facts.validity.not_after;
        let peer = Arc::new(PeerIdentity { id: facts.spiffe_id()?, serial: facts.serial, not_after, root });
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.len() >= REMEMBERED {
            read.clear();
        }
        read.insert(key, Arc::clone(&peer));
        Ok(peer)
    }

    fn known(&self, key: [u8; 32]) -> Option<Arc<PeerIdentity>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    /// The peer whose handshake has succeeded; `presented` is what the connection says it presented, `usage` what it is
    /// to us. Others may have driven it out of what is remembered since it was verified.
    pub(super) fn peer(&self, presented: &[CertificateDer<'_>], usage: Usage) -> Option<Arc<PeerIdentity>> {
        self.known(key(presented)).or_else(|| {
            let (leaf, intermediates) = presented.split_first()?;
            self.verify(leaf, intermediates, self.now.current_time()?, usage).ok()
        })
    }
}

pub(super) fn key<'a, 'b: 'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'b>>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for certificate in certificates {
        hash.update(certificate.len().to_be_bytes());
        hash.update(certificate);
    }
    hash.finalize().into()
}

/// Accepts any workload of an accepted trust domain: for the side that is connected to.
pub(super) struct WorkloadVerifier {
    pub(super) core: Arc<Core>,
    pub(super) accepted: Arc<[TrustDomain]>,
}

/// Accepts exactly the wanted identities: for the side that connects.
pub(super) struct TargetVerifier {
    pub(super) core: Arc<Core>,
    pub(super) wanted: Arc<[SpiffeId]>,
}

impl fmt::Debug for WorkloadVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadVerifier").field("accepted", &self.accepted).finish_non_exhaustive()
    }
}

impl fmt::Debug for TargetVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetVerifier").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

fn listed<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What both traits ask in the same words.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is never negotiated".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            algorithms().supported_schemes()
        }
    };
}

impl ClientCertVerifier for WorkloadVerifier {
    /// No hints: they would tell a stranger our roots, and workloads have one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let peer = self.core.verify(end_entity, intermediates, now, Usage::Client);
        let peer = peer.map_err(|error| tls_error(error, now))?;
        if !self.accepted.contains(peer.id.trust_domain()) {
            let refused = PeerError::TrustDomain { presented: peer.id.clone(), accepted: listed(&self.accepted) };
            return Err(tls_error(refused, now));
        }
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

impl ServerCertVerifier for TargetVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let peer = self.core.verify(end_entity, intermediates, now, Usage::Server);
        let peer = peer.map_err(|error| tls_error(error, now))?;
        if !self.wanted.contains(&peer.id) {
            let refused = PeerError::NotWanted { presented: peer.id.clone(), wanted: listed(&self.wanted) };
            return Err(tls_error(refused, now));
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// What the peer of a refused handshake is told: the alert that fits.
fn tls_error(error: PeerError, now: UnixTime) -> Error {
    Error::InvalidCertificate(match &error {
        PeerError::Revoked => CertificateError::Revoked,
        PeerError::UnknownIssuer => CertificateError::UnknownIssuer,
        PeerError::Malformed => CertificateError::BadEncoding,
        PeerError::BadSignature => CertificateError::BadSignature,
        PeerError::Expired(dated) => {
            PeerError::keep(dated);
            CertificateError::ExpiredContext { time: now, not_after: unix(dated.validity.not_after) }
        }
        PeerError::NotYetValid(dated) => {
            PeerError::keep(dated);
            CertificateError::NotValidYetContext { time: now, not_before: unix(dated.validity.not_before) }
        }
        _ => CertificateError::Other(OtherError(Arc::new(error))),
    })
}
