//! What new trust means for tunnels that are open, and when old ones end.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::hbone::tunnel::{About, Metered};
use crate::identity::PeerIdentity;
use crate::identity::tls::Verdict;

fn tunnel() -> Rc<Tunnel> {
    tunnel_from(1)
}

fn tunnel_from(port: u16) -> Rc<Tunnel> {
    let (authority, _) =
        crate::identity::authority::Authority::new_root("t", SystemTime::now(), Duration::from_secs(600))
            .expect("a root");
    let root = crate::identity::certificate::CertificateFacts::of(authority.certificate()).expect("facts");
    let identity = PeerIdentity {
        id: "spiffe://cluster.local/ns/a/sa/b".parse().expect("an id"),
        serial: "1".into(),
        not_after: SystemTime::now(),
        root: Arc::new(root),
    };
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let (_, meter) = Metered::new(tokio::io::empty());
    let about = About {
        role: Role::Server,
        peer: address,
        local: address,
        identity: Arc::new(identity),
        chain: Vec::new(),
        generation: 1,
    };
    Tunnel::new(about, meter)
}

fn good(tunnel: &Tunnel) -> Verdict {
    Verdict::Good { root: Arc::clone(&tunnel.about.identity.root) }
}

#[test]
fn what_each_verdict_does() {
    let now = SystemTime::now();
    let later = now + Duration::from_secs(60);
    for (verdict, retiring, cutting, doomed) in [
        (good(&tunnel()), None, None, None),
        (Verdict::Revoked, Some(TunnelEnd::Revoked), Some(TunnelEnd::Revoked), None),
        (Verdict::TrustDomainRemoved, Some(TunnelEnd::Untrusted), Some(TunnelEnd::Untrusted), None),
        (Verdict::RootRemoved { until: later }, Some(TunnelEnd::Untrusted), None, Some(later)),
        (Verdict::RootRemoved { until: now }, Some(TunnelEnd::Untrusted), Some(TunnelEnd::Untrusted), None),
    ] {
        let tunnel = tunnel();
        tunnel.execute(&verdict, now);
        assert_eq!((tunnel.retiring(), tunnel.cutting(), tunnel.doomed()), (retiring, cutting, doomed), "{verdict:?}");
    }
}

#[test]
fn a_root_that_comes_back_lets_its_tunnels_end_by_themselves() {
    let (tunnel, now) = (tunnel(), SystemTime::now());
    tunnel.execute(&Verdict::RootRemoved { until: now + Duration::from_secs(1) }, now);
    tunnel.execute(&good(&tunnel), now);
    assert_eq!((tunnel.retiring(), tunnel.cutting(), tunnel.doomed()), (Some(TunnelEnd::Untrusted), None, None));
}

#[test]
fn tunnels_of_peers_grow_old_at_different_times() {
    let limit = Duration::from_secs(1000);
    let mut ends = std::collections::BTreeSet::new();
    for port in 1000..1256 {
        let tunnel = tunnel_from(port);
        let is_too_old = |seconds| is_too_old(&tunnel, tunnel.opened + Duration::from_secs(seconds), Some(limit));
        assert!(!is_too_old(999) && is_too_old(1100));
        ends.insert((1000..=1100).find(|seconds| is_too_old(*seconds)));
    }
    assert!(ends.len() > 90, "{}", ends.len());
    assert!(!is_too_old(&tunnel(), Instant::now() + limit * 100, None));
}
