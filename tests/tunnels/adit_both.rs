//! adit opens tunnels to adit: everything that holds for a plain connection holds through them.

use std::thread;

use crate::bytes::{End, expect, random, read_to_end, reset};
use crate::envoy_config::HBONE;
use crate::kit::door::talk;
use crate::kit::{Door, Family, isolated, isolated_within};
use crate::relay::{self, LONG, relay_cases};
use crate::world::{APP, KINDS, NO_RECORDS, World, wait_metric};

fn between_adits(more: &str, case: fn(&World)) {
    for kind in KINDS {
        let world = World::adit_to_adit(kind, more);
        case(&world);
        assert!(world.tunnels() > 0, "it went another way");
        world.stop();
    }
}

relay_cases!(between_adits);

/// One tunnel to each of the two addresses; or several while all are busy, up to `tunnel.maxPerPeer`, which is 4.
#[test]
fn a_hundred_streams() {
    isolated_within(LONG, || {
        between_adits("workers: 1\ntunnel: { maxPerPeer: 1 }", |world| assert_eq!(relay::many_streams(world), 2));
        between_adits("workers: 1", |world| assert!((2..=8).contains(&relay::many_streams(world))));
    });
}

/// Whoever finds all tunnels full gets another one: 50 streams to each address, 20 in each tunnel.
#[test]
fn streams_beyond_a_limit() {
    isolated_within(LONG, || {
        between_adits("workers: 1\ntunnel: { maxStreams: 20, maxPerPeer: 1 }", |world| {
            assert_eq!(relay::many_streams(world), 6);
        });
    });
}

/// Nothing between the two hosts but tunnels: the application's port is closed to everything that comes from outside.
#[test]
fn nothing_goes_in_the_clear() {
    isolated(|| {
        between_adits("", |world| {
            world.far_host().black_hole(&format!("iifname eth0 tcp dport {APP}"));
            relay::words(world);
            world.far_host().heal();
        });
    });
}

/// Not the near adit's, nor the far one's.
#[test]
fn the_source_address_is_the_clients() {
    isolated(|| {
        between_adits("", |world| {
            let door = Door::open(world.far_host(), APP);
            for family in Family::BOTH {
                let _client = world.dial(family, APP);
                assert_eq!(door.accept().peer.ip(), world.near_host().address(family));
            }
        });
    });
}

/// The kernel gives the port of a tunnel to clients too, if they go elsewhere: such a client is no loop.
#[test]
fn a_client_with_the_port_of_a_tunnel() {
    const PORTS: &str = "ipv4/ip_local_port_range";
    isolated(|| {
        between_adits("workers: 1\ntunnel: { maxPerPeer: 1 }", |world| {
            let (near, door) = (world.near_host(), Door::open(world.far_host(), APP));
            let (mut client, mut server) = world.pair(Family::V4, &door);
            talk(&mut client, &mut server);
            let filter = format!("dport = :{HBONE}");
            let tunnel = near.output("ss", &["-Htn", "state", "established", &filter]);
            let local = tunnel.split_whitespace().nth(2).expect("one tunnel");
            let port: u16 = local.rsplit(':').next().expect("a port").parse().expect("a port");
            // Nothing else is left to choose.
            near.sysctl(PORTS, &format!("{port} {port}"));
            let (mut same, mut other) = world.pair(Family::V4, &door);
            near.sysctl(PORTS, "32768 60999");
            assert_eq!(same.local_addr().expect("an address").port(), port);
            talk(&mut same, &mut other);
            talk(&mut client, &mut server);
        });
    });
}

/// Aborts in mid-transfer, by either end, leave no stream behind, and the tunnel goes on.
#[test]
fn a_thousand_aborts() {
    isolated_within(LONG, || {
        let world = World::adit_to_adit(KINDS[0], NO_RECORDS);
        let door = Door::open(world.far_host(), APP);
        let data = random(11, 200_000);
        for index in 0..1_000 {
            let (client, server) = world.pair(Family::BOTH[index % 2], &door);
            let (mut near, far) = if index % 4 < 2 { (client, server) } else { (server, client) };
            thread::scope(|scope| {
                let reader = scope.spawn(|| read_to_end(&mut near));
                // It may be full; what counts is that it is cut.
                let _ = std::io::Write::write(&mut &far, &data);
                reset(far);
                let (got, ended) = reader.join().expect("a reader");
                assert!(data.starts_with(&got));
                assert_eq!(ended, End::Reset, "abort {index}");
            });
        }
        drop(door);
        world.wait_idle();
        for (host, role) in [(world.near_host(), "client"), (world.far_host(), "server")] {
            wait_metric(host, &format!("adit_tunnel_streams_open{{role=\"{role}\"}}"), 0.0);
        }
        relay::words(&world);
        world.stop();
    });
}

/// The far adit goes away: the near one's applications see resets, never a clean end, and come back with it.
#[test]
fn a_killed_adit_resets_its_streams() {
    isolated(|| {
        let world = World::adit_to_adit(KINDS[0], NO_RECORDS);
        let door = Door::open(world.far_host(), APP);
        let mut pairs: Vec<_> = (0..10).map(|index| world.pair(Family::BOTH[index % 2], &door)).collect();
        for (client, server) in &mut pairs {
            talk(client, server);
        }
        rustix::process::kill_process(world.far.adit().pid(), rustix::process::Signal::KILL).expect("a daemon");
        for (client, _) in &mut pairs {
            expect(client, b"", End::Reset);
        }
    });
}
