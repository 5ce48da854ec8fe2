//! adit opens tunnels to Envoy.

use std::io::{Read, Write};
use std::net::SocketAddr;

use crate::bytes::{End, end, expect, reset};
use crate::envoy_config::{HBONE, Tweaks};
use crate::kit::door::{Dial, talk};
use crate::kit::{Door, Family, LIMIT, isolated, isolated_within};
use crate::pki::Leaf;
use crate::relay::{self, LONG, relay_cases};
use crate::resetter::{ENDED, resetter};
use crate::world::{APP, FAR, Ground, KINDS, NEAR, NO_RECORDS, World, metric};

fn to_envoy(more: &str, case: fn(&World)) {
    for kind in KINDS {
        let world = World::adit_to_envoy(kind, more, &Tweaks::default());
        case(&world);
        world.stop();
    }
}

relay_cases!(to_envoy);

/// Each worker has tunnels of its own, to each of the two addresses: one, or while all are busy up to `tunnel.maxPerPeer`.
#[test]
fn a_hundred_streams() {
    isolated_within(LONG, || {
        let one = "tunnel: { maxPerPeer: 1 }";
        to_envoy("workers: 1\ntunnel: { maxPerPeer: 1 }", |world| assert_eq!(relay::many_streams(world), 2));
        to_envoy(one, |world| assert!((2..=4).contains(&relay::many_streams(world))));
        to_envoy("workers: 1", |world| assert!((2..=8).contains(&relay::many_streams(world))));
    });
}

/// The limit is Envoy's: whoever finds all tunnels full gets another one, and three to each address are enough.
#[test]
fn streams_beyond_a_limit() {
    isolated_within(LONG, || {
        let tweaks = Tweaks { max_streams: Some(20), ..Tweaks::default() };
        let world = World::adit_to_envoy(KINDS[0], "workers: 1\ntunnel: { maxPerPeer: 1 }", &tweaks);
        assert_eq!(relay::many_streams(&world), 6);
        world.stop();
    });
}

/// Envoy ends everything when its application does, by END_STREAM and NO_ERROR: the client has all of it, and a clean end.
#[test]
fn a_server_ends_first() {
    isolated_within(LONG, || {
        to_envoy("", |world| {
            let door = Door::open(world.far_host(), APP);
            for family in Family::BOTH {
                for bytes in [&b""[..], b"all there is"] {
                    let (mut client, mut server) = world.pair(family, &door);
                    relay::half(&mut server, &mut client, bytes);
                }
            }
        });
    });
}

/// What Envoy sees of us: the request as ztunnel makes it, and nothing else.
#[test]
fn the_request() {
    isolated(|| {
        for kind in KINDS {
            let world = World::adit_to_envoy(kind, "", &Tweaks { frames: true, ..Tweaks::default() });
            let door = Door::open(world.far_host(), APP);
            let near = world.near_host();
            for (count, family) in (1..).zip(Family::BOTH) {
                let (mut client, mut server) = world.pair(family, &door);
                talk(&mut client, &mut server);
                let from = client.local_addr().expect("an address").to_string();
                drop((client, server));
                let records = world.far.envoy().wait_records(count);
                let record = &records[count - 1];
                let text = |key: &str| record[key].as_str().unwrap_or_default();
                assert_eq!(record["method"], "CONNECT", "{record}");
                assert_eq!(text("authority"), world.target(family, APP).to_string(), "{record}");
                assert_eq!(record["peer"], crate::pki::spiffe("near"), "{record}");
                assert!(text("baggage").contains("k8s.namespace.name=test"), "{record}");
                assert_eq!(text("forwarded"), format!("for=\"{from}\""), "{record}");
                let trace: Vec<_> = text("traceparent").split('-').collect();
                assert_eq!(trace.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2], "{record}");
                let remote: SocketAddr = text("from").parse().expect("an address");
                assert_eq!(remote.ip(), near.address(family), "{record}");
            }
            let log = world.far.envoy().log();
            // Not one to Envoy's own port.
            let is_ours =
                |lines: &[String]| lines[0].contains("request headers complete") && lines[1].contains("CONNECT");
            let start = log.windows(2).position(is_ours).expect("a request");
            let names = log[start + 1..].iter().map_while(|line| line.strip_prefix('\'')?.split('\'').next());
            let mut names: Vec<_> = names.collect();
            names.sort_unstable();
            assert_eq!(names, [":authority", ":method", "baggage", "forwarded", "traceparent"]);
            world.stop();
        }
    });
}

/// The code of the RST_STREAM by which a client's reset comes to the server.
#[test]
fn a_reset_client_is_connect_error() {
    isolated(|| {
        let world = World::adit_to_envoy(KINDS[0], "", &Tweaks { frames: true, ..Tweaks::default() });
        let door = Door::open(world.far_host(), APP);
        let (mut client, mut server) = world.pair(Family::V4, &door);
        talk(&mut client, &mut server);
        reset(client);
        expect(&mut server, b"", End::Fin);
        let line = world.far.envoy().wait_log("remote reset: ");
        assert!(line.ends_with(" 10"), "{line}");
        drop(server);
        world.stop();
    });
}

/// NO_ERROR is an orderly end, as servers send it after complete answers; every other code is a reset.
#[test]
fn what_becomes_of_reset_codes() {
    isolated(|| {
        let ground = Ground::new();
        resetter(&ground.lab.server, &ground.far);
        let kind = KINDS[0];
        let mesh = crate::world::mesh(&ground.lab.adit, &ground.lab.server);
        let settings = crate::world::settings(kind, NEAR, &ground.near, NO_RECORDS);
        let adit = crate::world::adit(&ground.lab.adit, kind, &settings, &mesh);
        let hello = |code: u8| {
            let to = SocketAddr::from((ground.lab.server.v4, APP));
            let mut client = Dial::default().connect(&ground.lab.adit, to).expect("captured");
            client.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
            let mut got = [0; 5];
            client.read_exact(&mut got).expect("an answer");
            assert_eq!(&got, b"hello");
            client.write_all(&[code]).expect("write");
            end(&mut client)
        };
        for code in 1..=13 {
            assert_eq!(hello(code), End::Reset, "code {code}");
        }
        for code in [0, ENDED] {
            assert_eq!(hello(code), End::Fin, "code {code}");
        }
        adit.stop();
    });
}

/// A peer that is not who it should be, in each way in which it can be somebody else: refused, counted by why, and never
/// dialled in the clear.
#[test]
fn the_wrong_server() {
    type Wrong = (fn(&Ground) -> Leaf, &'static str);
    let wrong: [Wrong; 4] = [
        (|ground| ground.pki.leaf(&ground.root, "somebody"), "not_wanted"),
        (
            |ground| ground.pki.leaf_for(&ground.root, "elsewhere", "spiffe://elsewhere.test/ns/test/sa/far"),
            "not_wanted",
        ),
        (
            |ground| Leaf { roots: ground.root.cert(), ..ground.pki.leaf(&ground.pki.root("root-b"), FAR) },
            "unknown_issuer",
        ),
        (|ground| ground.pki.expired(&ground.root, FAR), "expired"),
    ];
    isolated_within(LONG, || {
        for (leaf, reason) in wrong {
            let world = World::adit_to_envoy_as(leaf, KINDS[0], NO_RECORDS, &Tweaks::default());
            let door = Door::open(world.far_host(), APP);
            for family in Family::BOTH {
                assert_eq!(world.fate(family, APP), End::Reset);
            }
            assert!(door.is_quiet(), "it was dialled all the same");
            let near = world.near_host();
            let of = |labels: &str| metric(near, &format!("adit_tls_handshake_failures_total{{{labels}}}"));
            assert!(of(&format!("role=\"client\",reason=\"{reason}\"")) >= 2.0, "one for each address: {reason}");
            assert_eq!(of("role=\"client\""), of(&format!("reason=\"{reason}\"")), "and none for any other reason");
            assert_eq!(of("role=\"server\""), 0.0);
            world.wait_idle();
        }
    });
}

/// Where no tunnel can be had, nothing goes in the clear.
#[test]
fn nobody_takes_tunnels() {
    isolated(|| {
        let settings =
            format!("{NO_RECORDS}\nconnect: {{ timeout: 1s, deadline: 3s }}\ntunnel: {{ connectTimeout: 1s }}");
        let mut world = World::adit_to_envoy(KINDS[0], &settings, &Tweaks::default());
        let crate::world::Side::Envoy(far) = &mut world.far else { panic!("the far end is Envoy") };
        far.kill();
        let door = Door::open(world.far_host(), APP);
        assert_eq!(world.fate(Family::V4, APP), End::Reset);
        world.far_host().black_hole(&format!("tcp dport {HBONE}"));
        assert_eq!(world.fate(Family::V4, APP), End::Reset);
        assert!(door.is_quiet(), "it was dialled in the clear");
    });
}

/// Streams of a lost tunnel are reset; they did not end.
#[test]
fn a_killed_envoy_resets_its_streams() {
    isolated(|| {
        let mut world = World::adit_to_envoy(KINDS[0], NO_RECORDS, &Tweaks::default());
        let door = Door::open(world.far_host(), APP);
        let mut pairs: Vec<_> = (0..10).map(|index| world.pair(Family::BOTH[index % 2], &door)).collect();
        for (client, server) in &mut pairs {
            talk(client, server);
        }
        let crate::world::Side::Envoy(far) = &mut world.far else { panic!("the far end is Envoy") };
        far.kill();
        for (client, _) in &mut pairs {
            expect(client, b"", End::Reset);
        }
    });
}

/// GOAWAY: old streams go on, new ones go to a new tunnel, and none fails.
#[test]
fn a_drained_envoy() {
    isolated(|| {
        let world = World::adit_to_envoy(KINDS[0], "", &Tweaks { frames: true, ..Tweaks::default() });
        let door = Door::open(world.far_host(), APP);
        let mut pairs = vec![world.pair(Family::V4, &door)];
        let (client, server) = &mut pairs[0];
        talk(client, server);
        world.far.envoy().drain(world.far_host());
        for _ in 0..5 {
            pairs.push(world.pair(Family::V4, &door));
            for (client, server) in &mut pairs {
                talk(client, server);
            }
        }
        world.far.envoy().wait_log("sent goaway code=");
        drop(pairs);
        world.stop();
    });
}
