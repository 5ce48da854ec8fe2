//! TLS configurations, built once per generation of credentials.
//!
//! TLS 1.3 only. ALPN is `h2`; a client that offers none is accepted, one that offers only others is not. Key exchange
//! is hybrid post-quantum first, with classical fallback. AES-128-GCM comes first where the processor has AES. Nothing
//! is resumed: no tickets, no session store, since a resumed handshake would skip the verification of the client.
//! No name is sent or checked: peers are known by SPIFFE id.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig, version};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::certificate::CertificateFacts;
use crate::identity::credentials::{Credentials, KnownRoot, Root, TrustBundle};
use crate::identity::handshake::{self, Core, REMEMBERED, TargetVerifier, WorkloadVerifier};
use crate::identity::provider::PROVIDER;
use crate::identity::spiffe::{SpiffeId, TrustDomain};
use crate::identity::status::RetiredRoot;
use crate::identity::verify::{self, Look, PeerError, PeerIdentity, Usage, unix};

const ALPN: &[u8] = b"h2";

/// What time it is; an argument wherever it matters.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// One generation: credentials and the configurations made of them.
pub struct TlsGeneration {
    pub number: u64,
    pub credentials: Arc<Credentials>,
    core: Arc<Core>,
    server: Arc<ServerConfig>,
    client: ClientConfig,
    accepted: Arc<[TrustDomain]>,
    retired: Arc<[RetiredRoot]>,
    /// Of `retired`, with what is revoked now.
    formerly: TrustBundle,
    /// By what was presented: connections often have the same peer, and workers ask for the same.
    judged: Mutex<HashMap<(Usage, [u8; 32]), Verdict>>,
}

/// What becomes of a live connection when a generation has come, given what its peer once presented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It ends at this root, which is trusted; the connection may stay.
    Good { root: Root },
    /// Its root is no longer trusted: no new streams, and an end at this time (which may be now).
    RootRemoved { until: SystemTime },
    /// To be cut now.
    Revoked,
    /// To be cut now.
    TrustDomainRemoved,
    /// It cannot be verified at all, though it could once; to be cut now.
    Refused(PeerError),
}

/// The library refused to build a configuration: a bug, or a provider without TLS 1.3.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS")]
pub struct TlsError(#[source] rustls::Error);

/// The real time.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(SystemTime::now)
}

impl TlsGeneration {
    /// `accepted`: the trust domains whose workloads may connect to us.
    pub fn new(
        number: u64,
        credentials: Arc<Credentials>,
        accepted: Arc<[TrustDomain]>,
        clock: &Clock,
    ) -> Result<Self, TlsError> {
        Self::with_provider(&PROVIDER, number, credentials, accepted, clock)
    }

    /// As [`Self::new`], with other cryptography.
    pub(crate) fn with_provider(
        provider: &Arc<CryptoProvider>,
        number: u64,
        credentials: Arc<Credentials>,
        accepted: Arc<[TrustDomain]>,
        clock: &Clock,
    ) -> Result<Self, TlsError> {
        let time: Arc<dyn TimeProvider> = Arc::new(Time(Arc::clone(clock)));
        let core = Arc::new(Core::new(Arc::clone(credentials.bundle()), Arc::clone(&time)));
        let key = credentials.certified_key();
        let verifier = Arc::new(WorkloadVerifier { core: Arc::clone(&core), accepted: Arc::clone(&accepted) });
        let mut server = ServerConfig::builder_with_details(Arc::clone(provider), Arc::clone(&time))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(TlsError)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Always(Arc::clone(&key))));
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.ignore_client_order = true;
        // Records are sealed and opened outside of the library. Set here once: to set it later is to copy all of this.
        server.enable_secret_extraction = true;
        let nobody = Arc::new(TargetVerifier { core: Arc::clone(&core), wanted: [].into() });
        let mut client = ClientConfig::builder_with_details(Arc::clone(provider), time)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(TlsError)?
            .dangerous()
            .with_custom_certificate_verifier(nobody)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        client.enable_secret_extraction = true;
        let formerly = TrustBundle::of_known(Vec::new(), Arc::clone(&credentials.bundle().revoked));
        let retired = [].into();
        let (server, judged) = (Arc::new(server), Mutex::default());
        Ok(Self { number, credentials, core, server, client, accepted, retired, formerly, judged })
    }

    /// With roots that are no longer trusted for handshakes, but for what lives, until their grace ends.
    #[must_use]
    pub fn with_retired(mut self, retired: Arc<[RetiredRoot]>) -> Self {
        let known = retired.iter().map(|it| KnownRoot { root: Arc::clone(&it.root), anchor: it.anchor.clone() });
        self.formerly = TrustBundle::of_known(known.collect(), Arc::clone(&self.credentials.bundle().revoked));
        self.retired = retired;
        self.judged = Mutex::default();
        self
    }

    /// Until when what hangs on a retired root may live, which may have passed; nothing: it is not retired.
    #[must_use]
    pub fn grace_until(&self, root: &Root) -> Option<SystemTime> {
        self.retired.iter().find(|retired| retired.root == *root).map(|retired| retired.until)
    }

    /// Whether both judge alike, so that live connections need not be judged again.
    #[must_use]
    pub fn same_trust(&self, other: &Self) -> bool {
        self.credentials.bundle().digest() == other.credentials.bundle().digest()
            && self.accepted == other.accepted
            && self.retired == other.retired
    }

    /// Judges a live connection by what its peer presented in its handshake (under an earlier generation). That
    /// certificates have expired since is no reason to cut. `usage`: what the peer is to us; trust domains are asked
    /// of clients only, as in a handshake. Costs a verification of the chain, once for all that presented the same; see
    /// [`Self::same_trust`].
    #[must_use]
    pub fn judge(&self, presented: &[CertificateDer<'_>], usage: Usage, now: SystemTime) -> Verdict {
        let key = (usage, handshake::key(presented));
        if let Some(known) = self.judged.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return known.clone();
        }
        let verdict = self.judge_anew(presented, usage, now);
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        if judged.len() >= REMEMBERED {
            judged.clear();
        }
        judged.insert(key, verdict.clone());
        verdict
    }

    fn judge_anew(&self, presented: &[CertificateDer<'_>], usage: Usage, now: SystemTime) -> Verdict {
        let Some((leaf, above)) = presented.split_first() else { return Verdict::Refused(PeerError::Malformed) };
        let (Some(at), Ok(facts)) = (verify::while_valid(presented, now), CertificateFacts::of(leaf)) else {
            return Verdict::Refused(PeerError::Malformed);
        };
        let root = |bundle| verify::chain_to_root(bundle, leaf, above, at, usage, Look::AGAIN);
        let found = match root(self.credentials.bundle()) {
            Ok(root) => Verdict::Good { root },
            Err(PeerError::Revoked) => Verdict::Revoked,
            // Whatever the error: a root that was replaced by one of the same name is not unknown, its signatures are bad.
            Err(error) => match root(&self.formerly) {
                Ok(root) => Verdict::RootRemoved { until: self.grace_until(&root).unwrap_or(now) },
                Err(PeerError::Revoked) => Verdict::Revoked,
                Err(PeerError::UnknownIssuer) if error == PeerError::UnknownIssuer => {
                    Verdict::RootRemoved { until: now }
                }
                Err(_) => Verdict::Refused(error),
            },
        };
        match (facts.spiffe_id(), found) {
            (_, Verdict::Revoked) => Verdict::Revoked,
            (Err(error), _) => Verdict::Refused(error.into()),
            (Ok(id), _) if usage == Usage::Client && !self.accepted.contains(id.trust_domain()) => {
                Verdict::TrustDomainRemoved
            }
            (Ok(_), found) => found,
        }
    }

    /// Whether the own certificate is still valid: with one that is not, no handshake should be begun.
    #[must_use]
    pub fn is_current(&self, now: SystemTime) -> bool {
        now <= self.credentials.not_after()
    }

    /// For accepting connections of any workload of an accepted trust domain.
    #[must_use]
    pub const fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// For connecting to a target that is one of `wanted`. Cheap, but keep it beside the target: nothing is rebuilt.
    #[must_use]
    pub fn client(&self, wanted: Arc<[SpiffeId]>) -> Arc<ClientConfig> {
        let verifier: Arc<dyn ServerCertVerifier> = Arc::new(TargetVerifier { core: Arc::clone(&self.core), wanted });
        let mut config = self.client.clone();
        config.dangerous().set_certificate_verifier(verifier);
        Arc::new(config)
    }

    /// Who is at the other end of a connection whose handshake is complete: `presented` is its `peer_certificates()`,
    /// `usage` what it is to us. Ask right after the handshake; nothing means that the connection must be refused.
    #[must_use]
    pub fn peer(&self, presented: Option<&[CertificateDer<'_>]>, usage: Usage) -> Option<Arc<PeerIdentity>> {
        self.core.peer(presented?, usage)
    }
}

/// The name that the library asks for and that nothing looks at.
#[must_use]
pub fn no_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

impl fmt::Debug for TlsGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, credentials, .. } = self;
        f.debug_struct("TlsGeneration")
            .field("number", number)
            .field("credentials", credentials)
            .finish_non_exhaustive()
    }
}

/// One certificate, whatever name is asked for.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

struct Time(Clock);

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix((self.0)()))
    }
}

#[cfg(test)]
mod tests;
