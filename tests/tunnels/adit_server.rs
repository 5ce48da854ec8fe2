//! Envoy opens tunnels to adit.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;

use rustix::process::{Signal, kill_process};

use crate::bytes::{End, expect, reset};
use crate::envoy::Envoy;
use crate::envoy_config::{Entrance, HBONE, Tweaks};
use crate::kit::door::{Dial, talk};
use crate::kit::{Door, Family, LIMIT, Lab, isolated, isolated_within, until};
use crate::relay::{self, LONG, relay_cases};
use crate::world::{APP, CLOSED, Ground, KINDS, Manner, NO_RECORDS, Side, World};

fn from_envoy(more: &str, case: fn(&World)) {
    for kind in KINDS {
        let world = World::envoy_to_adit(kind, more, &Tweaks::default());
        case(&world);
        world.stop();
    }
}

relay_cases!(from_envoy);

#[test]
fn a_hundred_streams() {
    isolated_within(LONG, || {
        from_envoy("", |world| assert_eq!(relay::many_streams(world), 2, "one tunnel to each address"));
    });
}

/// Envoy honours the number of streams that adit announces.
#[test]
fn streams_beyond_a_limit() {
    isolated_within(LONG, || {
        from_envoy("tunnel: { maxStreams: 20 }", |world| assert_eq!(relay::many_streams(world), 6));
    });
}

/// The application sees the client's address, not adit's.
#[test]
fn the_source_address_is_the_clients() {
    isolated(|| {
        from_envoy("", |world| {
            let door = Door::open(world.far_host(), APP);
            for family in Family::BOTH {
                let _client = world.dial(family, APP);
                assert_eq!(door.accept().peer.ip(), world.near_host().address(family));
            }
        });
    });
}

/// The code of the RST_STREAM by which an application's reset comes to the client.
#[test]
fn a_reset_application_is_connect_error() {
    isolated(|| {
        for kind in KINDS {
            let world = World::envoy_to_adit(kind, "", &Tweaks { frames: true, ..Tweaks::default() });
            let door = Door::open(world.far_host(), APP);
            let (mut client, mut server) = world.pair(Family::V4, &door);
            talk(&mut client, &mut server);
            reset(server);
            expect(&mut client, b"", End::Fin);
            let line = world.near.envoy().wait_log("remote reset: ");
            assert!(line.ends_with(" 10"), "{line}");
            drop(client);
            world.stop();
        }
    });
}

/// Entrances for authorities that adit must refuse, and how.
fn refusals(lab: &Lab) -> Vec<(Entrance, &'static str)> {
    let adit = lab.adit.v4;
    let authorities = [
        (format!("{}:{APP}", lab.server.v4), "400"),
        (format!("10.77.0.99:{APP}"), "400"),
        (format!("127.0.0.1:{APP}"), "400"),
        (format!("[::1]:{APP}"), "400"),
        (format!("0.0.0.0:{APP}"), "400"),
        (format!("169.254.169.254:{APP}"), "400"),
        (format!("224.0.0.1:{APP}"), "400"),
        (adit.to_string(), "400"),
        (format!("{adit}:0"), "400"),
        (format!("{adit}:70000"), "400"),
        ("nobody.test.svc:80".to_owned(), "503"),
        (format!("{adit}:15000"), "503"),
        (format!("{adit}:15001"), "503"),
        (format!("{adit}:15006"), "503"),
        (format!("{adit}:15008"), "503"),
        (format!("{adit}:{CLOSED}"), "503"),
    ];
    let peer = SocketAddr::from((adit, HBONE));
    let entrance = |(port, (authority, status))| (Entrance { port, peer, authority }, status);
    (20_000..).zip(authorities).map(entrance).collect()
}

/// Authorities that are not this workload's, adit's own doors, and ports where nobody listens: all refused with the status that
/// ztunnel sends, and nothing reaches an application.
#[test]
fn what_is_refused_and_how() {
    isolated_within(LONG, || {
        let ground = Ground::new();
        let kind = KINDS[0];
        let mesh = crate::world::mesh(&ground.lab.client, &ground.lab.adit);
        let settings = crate::world::settings(kind, "far", &ground.far, NO_RECORDS);
        let far = crate::world::adit(&ground.lab.adit, kind, &settings, &mesh);
        let all = refusals(&ground.lab);
        let entrances: Vec<_> = all.iter().map(|(entrance, _)| entrance.clone()).collect();
        let tweaks = Tweaks::default();
        let near = Envoy::hbone_client(&ground.lab.client, &ground.near, &ground.far.id, &entrances, &tweaks);
        let doors = [Door::open(&ground.lab.adit, APP), Door::open(&ground.lab.server, APP)];
        for (entrance, status) in &all {
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, entrance.port));
            let mut client = Dial::default().connect(&ground.lab.client, to).expect("an entrance");
            client.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
            relay::ended(&mut client);
            assert_eq!(near.wait_status(&entrance.authority), *status, "{}", entrance.authority);
        }
        assert!(doors.iter().all(Door::is_quiet));
        let manner = Manner { refused: End::Fin, ..World::ENVOYS };
        ground.world(["client", "adit"], Side::Envoy(near), Side::Adit(far), manner).stop();
    });
}

/// The ports that probes and scrapers use can be reached through a tunnel.
#[test]
fn metrics_and_readiness_are_reachable() {
    isolated(|| {
        let ground = Ground::new();
        let kind = KINDS[0];
        let mesh = crate::world::mesh(&ground.lab.client, &ground.lab.adit);
        let settings = crate::world::settings(kind, "far", &ground.far, "");
        let far = crate::world::adit(&ground.lab.adit, kind, &settings, &mesh);
        let peer = SocketAddr::from((ground.lab.adit.v4, HBONE));
        let entrance = |port: u16| Entrance { port: 10_000 + port, peer, authority: format!("{}:{port}", peer.ip()) };
        let entrances = [entrance(15020), entrance(15021)];
        let tweaks = Tweaks::default();
        let near = Envoy::hbone_client(&ground.lab.client, &ground.near, &ground.far.id, &entrances, &tweaks);
        for (port, path) in [(25020, "/metrics"), (25021, "/healthz/ready")] {
            let answer = crate::kit::daemon::get(&ground.lab.client, port, path).expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        }
        ground.world(["client", "adit"], Side::Envoy(near), Side::Adit(far), World::ENVOYS).stop();
    });
}

/// GOAWAY, and the stream that is open is carried to its end, and then adit is gone.
#[test]
fn drain() {
    isolated(|| {
        for kind in KINDS {
            let world = World::envoy_to_adit(kind, "", &Tweaks { frames: true, ..Tweaks::default() });
            let door = Door::open(world.far_host(), APP);
            let (mut client, mut server) = world.pair(Family::V4, &door);
            talk(&mut client, &mut server);
            kill_process(world.far.adit().pid(), Signal::TERM).expect("a running daemon");
            world.near.envoy().wait_log("recv frame type=GOAWAY");
            for _ in 0..3 {
                talk(&mut client, &mut server);
            }
            drop((client, server));
            let Side::Adit(mut far) = world.far else { panic!("the far end is adit") };
            assert!(far.wait(LIMIT).success(), "{}", far.log().join("\n"));
        }
    });
}

/// What is still open at the deadline is cut, and the client must not take that for an end: CANCEL, which Envoy makes a reset.
#[test]
fn a_cut_is_a_reset() {
    isolated(|| {
        let world = World::envoy_to_adit(KINDS[0], "shutdown: { deadline: 1s }", &Tweaks::default());
        let door = Door::open(world.far_host(), APP);
        let (mut client, mut server) = world.pair(Family::V4, &door);
        talk(&mut client, &mut server);
        kill_process(world.far.adit().pid(), Signal::TERM).expect("a running daemon");
        expect(&mut client, b"", End::Reset);
        expect(&mut server, b"", End::Reset);
    });
}

/// A killed adit is a lost tunnel, and its successor takes new ones.
#[test]
fn envoy_comes_back_after_adit_was_killed() {
    isolated(|| {
        let mut world = World::envoy_to_adit(KINDS[0], "", &Tweaks::default());
        let door = Door::open(world.far_host(), APP);
        let (mut client, mut server) = world.pair(Family::V4, &door);
        talk(&mut client, &mut server);
        kill_process(world.far.adit().pid(), Signal::KILL).expect("a running daemon");
        relay::ended(&mut client);
        relay::ended(&mut server);
        // Its connections end before its listeners do.
        if let Side::Adit(killed) = &mut world.far {
            killed.wait(LIMIT);
        }
        drop(door);
        let mesh = crate::world::mesh(&world.lab.client, &world.lab.adit);
        let leaf = world.pki.leaf_for(&world.root, "again", &crate::pki::spiffe("far"));
        let settings = crate::world::settings(KINDS[0], "far", &leaf, "");
        let mut again = crate::kit::Adit::start(&world.lab.adit, &settings, &mesh);
        again.wait_ready(&world.lab.adit);
        world.far = Side::Adit(again);
        relay::words(&world);
        world.stop();
    });
}

/// Short streams, one after another and many at a time, over one tunnel.
#[test]
fn two_thousand_short_streams() {
    isolated_within(LONG, || {
        let world = World::envoy_to_adit(KINDS[0], NO_RECORDS, &Tweaks::default());
        crate::serve::echo(world.far_host(), APP);
        thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        relay::echoed(&world, Family::V4);
                    }
                });
            }
        });
        assert_eq!(world.tunnels(), 1);
        until(LIMIT, "no stream to be left", || {
            (world.near.envoy().stat(world.near_host(), "upstream_rq_active") == 0).then_some(())
        });
        world.stop();
    });
}
