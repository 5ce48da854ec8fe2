//! What there is to see of an identity: the document of `GET /certs`, and its metrics. Never a key.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use rustls_pki_types::TrustAnchor;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::identity::certificate::CertificateFacts;
use crate::identity::credentials::{Credentials, KnownRoot, Root};
use crate::identity::failures::HandshakeFailures;
use crate::identity::peers::Peers;
use crate::identity::source::Fault;
use crate::telemetry::family;
use crate::telemetry::text::Rfc3339;

const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A root that is no longer trusted for new connections; what still lives may do so until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetiredRoot {
    pub root: Root,
    pub until: SystemTime,
    pub(super) anchor: TrustAnchor<'static>,
}

/// When a grace that begins now ends; one that no clock can count is a century.
pub(super) fn end_of(grace: Duration, now: SystemTime) -> SystemTime {
    now.checked_add(grace).unwrap_or(now + CENTURY)
}

/// Roots that were trusted and no longer are, with what is left of earlier ones. One that was on notice has had its grace.
pub(super) fn retired(
    before: &IdentityStatus,
    now_used: &Credentials,
    now: SystemTime,
    grace: Duration,
) -> Vec<RetiredRoot> {
    let trusted = now_used.bundle().roots();
    let until = end_of(grace, now);
    let gone = before.credentials.iter().flat_map(|credentials| {
        credentials.bundle().known().map(move |KnownRoot { root, anchor }| {
            let notice = credentials.notice().filter(|_| root == *credentials.root());
            RetiredRoot { root, until: notice.unwrap_or(until), anchor }
        })
    });
    let mut retired: Vec<RetiredRoot> =
        before.retired.iter().cloned().chain(gone).filter(|retired| !trusted.contains(&retired.root)).collect();
    retired.retain(|retired| retired.until >= now);
    retired
}

/// The last failure to get credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub at: SystemTime,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Debug, Clone, Default)]
pub struct IdentityStatus {
    pub source: &'static str,
    /// Zero: there are no credentials yet.
    pub generation: u64,
    pub credentials: Option<Arc<Credentials>>,
    pub published_at: Option<SystemTime>,
    pub retired: Vec<RetiredRoot>,
    pub last_failure: Option<Failure>,
    /// In a row.
    pub failures: u32,
    /// By reason, since the start.
    pub failed: BTreeMap<&'static str, u64>,
    pub faults: Vec<Fault>,
}

impl IdentityStatus {
    /// Why there can be no handshakes; nothing: there can.
    #[must_use]
    pub fn blocked(&self, now: SystemTime) -> Option<String> {
        let last = || self.last_failure.as_ref().map_or_else(String::new, |failure| format!(": {}", failure.message));
        let Some(credentials) = &self.credentials else {
            return Some(format!("there is no certificate yet{}", last()));
        };
        let until = credentials.not_after();
        if until < now {
            let until = Rfc3339(until);
            return Some(format!("the certificate of {} expired at {until}{}", credentials.id(), last()));
        }
        credentials.revoked().then(|| format!("the certificate of {} is revoked", credentials.id()))
    }

    /// How many live peers hang on each root: those of the bundle, the retired ones, and any other that has some.
    #[must_use]
    pub fn live_peers(&self, peers: &Peers) -> Vec<(Root, u64)> {
        let trusted = self.credentials.iter().flat_map(|credentials| credentials.bundle().roots());
        let known = trusted.chain(self.retired.iter().map(|retired| &retired.root));
        let mut live: Vec<(Root, u64)> = known.map(|root| (Arc::clone(root), 0)).collect();
        for (root, count) in peers.counts() {
            match live.iter_mut().find(|(known, _)| *known == root) {
                Some((_, known)) => *known = count,
                None => live.push((root, count)),
            }
        }
        live
    }

    /// The document of `GET /certs`.
    #[must_use]
    pub fn to_json(&self, now: SystemTime, peers: &Peers) -> Value {
        let mut live = self.live_peers(peers);
        let mut with_peers = |root: &Root, mut document: Value| {
            let at = live.iter().position(|(known, _)| known == root);
            let count = at.map_or(0, |at| live.swap_remove(at).1);
            set(&mut document, "livePeers", json!(count));
            document
        };
        let retired = self.retired.iter().map(|retired| {
            let mut document = certificate_json(&retired.root);
            set(&mut document, "trustedUntil", json!(shown(retired.until)));
            with_peers(&retired.root, document)
        });
        let retired: Vec<Value> = retired.collect();
        let roots = self.credentials.iter().flat_map(|credentials| {
            let own = credentials.root();
            credentials.bundle().roots().iter().map(move |root| (root, root == own))
        });
        let roots: Vec<Value> = roots.map(|(root, own)| with_peers(root, root_json(root, own))).collect();
        let other = live.iter().filter(|(_, count)| *count > 0).map(|(root, count)| {
            let mut document = certificate_json(root);
            set(&mut document, "livePeers", json!(count));
            document
        });
        let mut document = json!({
            "source": self.source,
            "generation": self.generation,
            "publishedAt": self.published_at.map(shown),
            "blocked": self.blocked(now),
            "retiredRoots": retired,
            "otherRoots": other.collect::<Vec<_>>(),
            "failuresInARow": self.failures,
            "lastFailure": self.last_failure.as_ref().map(|failure| {
                json!({ "at": shown(failure.at), "reason": failure.reason, "message": failure.message })
            }),
            "faults": self.faults.iter().map(|fault| {
                json!({ "reason": fault.reason, "message": fault.message })
            }).collect::<Vec<_>>(),
        });
        if let (Some(credentials), Some(document)) = (&self.credentials, document.as_object_mut())
            && let Value::Object(parts) = credentials_json(credentials)
        {
            document.extend(parts);
            document.insert("roots".to_owned(), json!(roots));
        }
        document
    }
}

/// Identity, chain, which root it ends at, and the bundle.
#[must_use]
pub fn credentials_json(credentials: &Credentials) -> Value {
    let root = credentials.root();
    let roots = credentials.bundle().roots().iter().map(|known| root_json(known, known == root));
    let lists = credentials.bundle().revoked.facts.iter().map(|list| {
        json!({
            "issuer": list.issuer,
            "thisUpdate": shown(list.this_update),
            "nextUpdate": list.next_update.map(shown),
            "revoked": list.revoked,
        })
    });
    json!({
        "identity": credentials.id().as_str(),
        "notAfter": shown(credentials.not_after()),
        "chain": credentials.chain().iter().map(certificate_json).collect::<Vec<_>>(),
        "root": &*root.fingerprint,
        "roots": roots.collect::<Vec<_>>(),
        "revocationLists": lists.collect::<Vec<_>>(),
        "revoked": credentials.revoked(),
    })
}

fn root_json(root: &Root, signed_own: bool) -> Value {
    let mut document = certificate_json(root);
    set(&mut document, "signedOwn", json!(signed_own));
    document
}

#[must_use]
pub fn certificate_json(facts: &CertificateFacts) -> Value {
    json!({
        "subject": &*facts.subject,
        "issuer": &*facts.issuer,
        "serial": &*facts.serial,
        "notBefore": shown(facts.validity.not_before),
        "notAfter": shown(facts.validity.not_after),
        "fingerprint": &*facts.fingerprint,
    })
}

fn set(document: &mut Value, key: &str, value: Value) {
    if let Some(document) = document.as_object_mut() {
        document.insert(key.to_owned(), value);
    }
}

fn shown(time: SystemTime) -> String {
    Rfc3339(time).to_string()
}

/// Shows the status, the peers and the failed handshakes at every scrape.
#[derive(Debug)]
pub struct IdentityMetrics {
    pub(super) status: watch::Receiver<Arc<IdentityStatus>>,
    pub(super) peers: Peers,
    pub(super) handshakes: Arc<HandshakeFailures>,
}

impl Collector for IdentityMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = Arc::clone(&self.status.borrow());
        let encoder = &mut encoder;
        let mut certificates: Vec<(&'static str, String, &CertificateFacts)> = Vec::new();
        if let Some(credentials) = &status.credentials {
            for (index, certificate) in credentials.chain().iter().enumerate() {
                match index {
                    0 => certificates.push(("leaf", credentials.id().to_string(), certificate)),
                    _ => certificates.push(("intermediate", certificate.subject.to_string(), certificate)),
                }
            }
            let roots = credentials.bundle().roots().iter();
            certificates.extend(roots.map(|root| ("root", root.subject.to_string(), &**root)));
        }
        let samples = certificates.iter().map(|(kind, identity, certificate)| {
            let labels = [("kind", *kind), ("identity", identity.as_str()), ("serial", &*certificate.serial)];
            (labels, unix(certificate.validity.not_after))
        });
        let help = "When a certificate of ours or a trusted root expires, since the Unix epoch in seconds";
        family::gauges(encoder, "adit_cert_expiry_timestamp_seconds", help, samples)?;
        family::counters(
            encoder,
            "adit_identity_failures",
            "Failures to get or renew credentials, and faults in what was got",
            status.failed.iter().map(|(reason, count)| ([("reason", *reason)], *count)),
        )?;
        family::gauge(
            encoder,
            "adit_identity_generation",
            "How often credentials were published; zero: there are none",
            status.generation,
        )?;
        family::gauge(
            encoder,
            "adit_identity_not_for_production",
            "Whether the identity comes from the dev source",
            u64::from(status.source == super::dev::NAME),
        )?;
        family::gauges(
            encoder,
            "adit_identity_live_peers",
            "Live connections whose peer's certificate ends at the root, by the root's fingerprint",
            status.live_peers(&self.peers).iter().map(|(root, live)| ([("root", &*root.fingerprint)], *live)),
        )?;
        let failed = self.handshakes.counts();
        family::counters(
            encoder,
            "adit_tls_handshake_failures",
            "TLS handshakes that failed, by our role in them and the reason",
            failed.iter().map(|(role, reason, count)| ([("role", role.as_str()), ("reason", *reason)], *count)),
        )
    }
}

fn unix(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests;
