//! The kit proven on foreign peers alone: Envoy to Envoy, and OpenSSL to Envoy. Whatever fails here is no fault of adit's
//! data path; its certificates, which all of this rests on, are tried too.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::Value;

use crate::bytes::{End, end, expect, reset};
use crate::envoy::Envoy;
use crate::envoy_config::{HBONE, Tweaks};
use crate::kit::door::{Dial, talk};
use crate::kit::{Door, Family, LIMIT, Lab, isolated, isolated_within};
use crate::openssl::{Handshake, SClient};
use crate::pki::{Leaf, Pki, Root, spiffe};
use crate::relay::{self, LONG, relay_cases};
use crate::resetter::{ENDED, resetter};
use crate::world::{APP, CLOSED, Ground, Side, World};

fn between_envoys(_no_adit: &str, case: fn(&World)) {
    let world = World::envoy_to_envoy(&Tweaks::default());
    case(&world);
    world.stop();
}

relay_cases!(between_envoys);

#[test]
fn the_client_is_told_that_nobody_listens() {
    isolated(|| {
        between_envoys("", |world| {
            assert_eq!(world.fate(Family::V4, CLOSED), End::Fin);
            assert_eq!(world.near.envoy().wait_status(&format!("{}:{CLOSED}", world.far_host().v4)), "503");
        });
    });
}

/// One tunnel per address of the peer.
#[test]
fn a_hundred_streams() {
    isolated_within(LONG, || {
        between_envoys("", |world| assert_eq!(relay::many_streams(world), 2));
    });
}

/// A limit of the server's makes the client open more tunnels.
#[test]
fn streams_beyond_a_limit() {
    isolated_within(LONG, || {
        let world = World::envoy_to_envoy(&Tweaks { max_streams: Some(20), ..Tweaks::default() });
        assert_eq!(relay::many_streams(&world), 6, "3 tunnels to each address for 50 streams");
        world.stop();
    });
}

/// The facts of `envoy.rs` that matter to whoever speaks with it.
#[test]
fn what_envoy_says_is_what_we_wrote_down() {
    isolated(|| {
        let world = World::envoy_to_envoy(&Tweaks { frames: true, ..Tweaks::default() });
        let door = Door::open(world.far_host(), APP);
        let (mut client, mut server) = world.pair(Family::V4, &door);
        talk(&mut client, &mut server);
        reset(server);
        expect(&mut client, b"", End::Fin);
        drop(client);
        {
            let far = world.far.envoy();
            assert!(far.wait_log("sent reset code=").ends_with("=10"), "CONNECT_ERROR for an application's reset");
            let records = far.wait_records(1);
            let record = &records[0];
            assert_eq!(record["method"], "CONNECT", "{record}");
            assert_eq!(record["authority"], world.far_host().v4.to_string() + ":8080", "{record}");
            assert_eq!(record["peer"], spiffe("near"), "{record}");
            assert_eq!(record["path"], Value::Null, "{record}");
            assert_eq!(record["tls"], "TLSv1.3", "{record}");
        }
        world.stop();
    });
}

/// Which codes an Envoy client hands on as a reset: not CONNECT_ERROR (10), which its own server sends for one.
#[test]
fn what_envoy_makes_of_reset_codes() {
    isolated(|| {
        let ground = Ground::new();
        resetter(&ground.lab.server, &ground.far);
        let near = ground.near_envoy(&ground.lab.server, &Tweaks::default());
        let hello = |code: u8| {
            let entrance = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_000 + APP));
            let mut client = Dial::default().connect(&ground.lab.client, entrance).expect("an entrance");
            client.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
            let mut got = [0; 5];
            client.read_exact(&mut got).expect("an answer");
            assert_eq!(&got, b"hello");
            client.write_all(&[code]).expect("write");
            end(&mut client)
        };
        for (code, want) in [
            (0, End::Reset),
            (1, End::Fin),
            (2, End::Reset),
            (5, End::Reset),
            (7, End::Reset),
            (8, End::Reset),
            (10, End::Fin),
            (11, End::Reset),
            (ENDED, End::Fin),
        ] {
            assert_eq!(hello(code), want, "code {code}");
        }
        drop(near);
    });
}

/// A drained server says GOAWAY with the answer to the next stream, and lets both streams go on.
#[test]
fn a_drained_envoy_says_goaway() {
    isolated(|| {
        let world = World::envoy_to_envoy(&Tweaks { frames: true, ..Tweaks::default() });
        let door = Door::open(world.far_host(), APP);
        let (mut client, mut server) = world.pair(Family::V4, &door);
        talk(&mut client, &mut server);
        world.far.envoy().drain(world.far_host());
        let (mut second, mut accepted) = world.pair(Family::V4, &door);
        assert!(world.far.envoy().wait_log("sent goaway code=").ends_with("=0"));
        talk(&mut second, &mut accepted);
        talk(&mut client, &mut server);
        drop((client, server, second, accepted));
        world.stop();
    });
}

/// An Envoy that serves, and certificates of all kinds.
struct Gate {
    lab: Lab,
    pki: Pki,
    root: Root,
    near: Leaf,
    _envoy: Envoy,
}

impl Gate {
    fn new() -> Self {
        let Ground { lab, pki, root, near, far } = Ground::new();
        let envoy = Envoy::hbone_server(&lab.server, &far, &Tweaks::default());
        Self { lab, pki, root, near, _envoy: envoy }
    }

    fn try_with(&self, client: SClient) -> Handshake {
        client.run(&self.lab.client, (self.lab.server.v4, HBONE).into())
    }
}

#[test]
fn openssl_is_accepted_by_envoy() {
    isolated(|| {
        let gate = Gate::new();
        for cipher in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
            let met = gate.try_with(SClient::new().leaf(&gate.near).with(&["-ciphersuites", cipher])).accepted();
            assert!(met.says(&format!("TLSv1.3, Cipher is {cipher}")) && met.says("ALPN protocol: h2"), "{}", met.said);
        }
        for protocol in [&["-alpn", "http/1.1"][..], &[]] {
            let client = SClient::bare().with(&["-tls1_3"]).with(protocol).leaf(&gate.near);
            let met = gate.try_with(client).accepted();
            assert!(met.says("No ALPN negotiated"), "{}", met.said);
        }
        let met = gate.try_with(SClient::new().leaf(&gate.near).with(&["-groups", "P-256"])).accepted();
        assert!(met.says("Server Temp Key: ECDH, prime256v1"), "{}", met.said);
    });
}

/// The numbers are those of RFC 8446: 42 bad, 45 expired, 46 unknown certificate, 48 unknown CA, 70 version, 116 certificate missing.
#[test]
fn openssl_is_refused_by_envoy() {
    isolated(|| {
        let gate = Gate::new();
        let other = gate.pki.root("root-b");
        let mut stranger = gate.pki.leaf(&other, "near");
        stranger.roots = gate.root.cert();
        let elsewhere = gate.pki.leaf_for(&gate.root, "elsewhere", "spiffe://elsewhere.test/ns/test/sa/near");
        let nameless = gate.pki.named(&gate.root, "nameless", &[]);
        let version = SClient::bare().with(&["-tls1_2", "-alpn", "h2"]);
        for (what, client, alert) in [
            ("TLS 1.2", version.leaf(&gate.near), 70),
            ("no certificate", SClient::new(), 116),
            ("expired", SClient::new().leaf(&gate.pki.expired(&gate.root, "old")), 45),
            ("another root's", SClient::new().leaf(&stranger), 48),
            ("another trust domain's", SClient::new().leaf(&elsewhere), 46),
            ("without an identity", SClient::new().leaf(&nameless), 46),
        ] {
            assert_eq!(gate.try_with(client).alert(), alert, "{what}");
        }
    });
}

/// Bundles and revocation lists of `adit certs issue`, as another implementation reads them.
#[test]
fn openssl_with_two_roots_and_a_revocation_list() {
    isolated(|| {
        let Ground { lab, pki, root, near, mut far } = Ground::new();
        let other = pki.root("root-b");
        let mut newer = pki.leaf(&other, "near");
        let mut revoked = pki.leaf(&root, "revoked");
        far.roots = pki.bundle("both", &[&root, &other]);
        let lists = [pki.revocations("a", &root, &[&revoked]), pki.revocations("b", &other, &[])];
        let list = pki.concatenated("both", &lists);
        let envoy = Envoy::hbone_server(&lab.server, &far, &Tweaks { revocations: Some(list), ..Tweaks::default() });
        (newer.roots, revoked.roots) = (root.cert(), root.cert());
        let try_with = |leaf: &Leaf| SClient::new().leaf(leaf).run(&lab.client, (lab.server.v4, HBONE).into());
        try_with(&near).accepted();
        try_with(&newer).accepted();
        assert_eq!(try_with(&revoked).alert(), 44, "certificate_revoked");
        drop(envoy);
    });
}

/// The tunnel's end is its streams' end.
#[test]
fn a_killed_envoy_ends_its_streams() {
    isolated(|| {
        let mut world = World::envoy_to_envoy(&Tweaks::default());
        let door = Door::open(world.far_host(), APP);
        let (mut client, mut server) = world.pair(Family::V4, &door);
        talk(&mut client, &mut server);
        let Side::Envoy(far) = &mut world.far else { panic!("the far end is no Envoy") };
        far.kill();
        relay::ended(&mut client);
        relay::ended(&mut server);
    });
}

/// A client that trusts nobody else notices that the server is not the one that it wants.
#[test]
fn envoy_refuses_the_wrong_server() {
    isolated(|| {
        let ground = Ground::new();
        let wrong = ground.pki.leaf(&ground.root, "somebody");
        let far = Envoy::hbone_server(&ground.lab.server, &wrong, &Tweaks::default());
        let near = ground.near_envoy(&ground.lab.server, &Tweaks::default());
        let world = ground.world(["client", "server"], Side::Envoy(near), Side::Envoy(far), World::ENVOYS);
        let _nobody_asks = Door::open(world.far_host(), APP);
        assert_eq!(world.fate(Family::V4, APP), End::Fin);
        assert!(world.near.envoy().stat(world.near_host(), "ssl.fail_verify_san") > 0);
    });
}
