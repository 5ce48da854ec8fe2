//! How much is logged of tunnels that peers make and break.

use std::time::SystemTime;

use super::*;
use crate::identity::authority::Authority;
use crate::identity::certificate::CertificateFacts;

fn about(role: Role) -> About {
    let (authority, _) = Authority::new_root("t", SystemTime::now(), Duration::from_secs(600)).expect("a root");
    let identity = PeerIdentity {
        id: "spiffe://cluster.local/ns/a/sa/b".parse().expect("an id"),
        serial: "1".into(),
        not_after: SystemTime::now(),
        root: Arc::new(CertificateFacts::of(authority.certificate()).expect("facts")),
    };
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    About { role, peer, local: peer, identity: Arc::new(identity), chain: Vec::new(), generation: 1 }
}

/// What a peer can cause without end is a few lines a second, and the rest is counted; nothing else is left out.
#[test]
fn a_peer_that_makes_and_breaks_tunnels_floods_no_log() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for (role, carries, end, left_out) in [
            (Role::Server, false, TunnelEnd::PeerClosed, Some(15)),
            (Role::Server, false, TunnelEnd::Idle, Some(15)),
            (Role::Server, true, TunnelEnd::Broken, Some(15)),
            (Role::Server, true, TunnelEnd::Http2, Some(15)),
            (Role::Server, true, TunnelEnd::PeerClosed, None),
            (Role::Server, true, TunnelEnd::Revoked, None),
            (Role::Server, false, TunnelEnd::Untrusted, None),
            (Role::Client, false, TunnelEnd::Broken, None),
        ] {
            let tunnels = Tunnels::new(Arc::default());
            let begun = Instant::now();
            for _ in 0..20 {
                let (_, meter) = Metered::new(tokio::io::empty());
                let tunnel = Tunnel::new(about(role), meter);
                let _listed = tunnels.list(&tunnel);
                if carries {
                    drop(tunnel.lease());
                }
                tunnel.ended(end, None).await;
                assert_eq!(tunnel.end(), Some(end));
            }
            assert!(begun.elapsed() < Duration::from_secs(1), "too slow to say anything");
            assert_eq!(
                tunnels.left_out(Instant::now() + Duration::from_secs(1)),
                left_out,
                "{role:?} {end}",
                end = end.as_str()
            );
        }
    });
}
