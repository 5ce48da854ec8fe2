//! When ends of a tunnelled connection speak, and when they do not: who begins, who is silent for too long, who takes its time.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::bytes::{End, end, expect, read_to_end};
use crate::kit::door::talk;
use crate::kit::wait::pause;
use crate::kit::{Door, Family, LIMIT, isolated, until};
use crate::world::{APP, FAR, Ground, KINDS, NEAR, Side, World, adit, mesh, metric, settings};

/// What a busy machine may add to an upper limit of time; nothing is ever added to a lower one.
const SLACK: Duration = Duration::from_secs(3);

/// Two adits with settings of their own.
fn world(near: &str, far: &str) -> World {
    let ground = Ground::new();
    let (lab, kind) = (&ground.lab, KINDS[0]);
    let mesh = mesh(&lab.adit, &lab.server);
    let far = adit(&lab.server, kind, &settings(kind, FAR, &ground.far, far), &mesh);
    let near = adit(&lab.adit, kind, &settings(kind, NEAR, &ground.near, near), &mesh);
    ground.world(["adit", "server"], Side::Adit(near), Side::Adit(far), World::ADITS)
}

/// Where one end resets the other's record is an error; which of the two is first is the machine's to say.
fn tolerate(world: &mut World) {
    for side in [&mut world.near, &mut world.far] {
        let Side::Adit(adit) = side else { panic!("an adit") };
        adit.tolerate_log("\"scope\":\"access\"");
    }
}

fn records(side: &Side, reason: &str) -> usize {
    let text = format!("\"close_reason\":\"{reason}\"");
    side.adit().log().iter().filter(|line| line.contains(&text)).count()
}

/// As mail and database servers do: the client has nothing to say until it has been greeted.
#[test]
fn a_server_speaks_first() {
    isolated(|| {
        let world = world("", "");
        let door = Door::open(world.far_host(), APP);
        for family in Family::BOTH {
            let (mut client, mut server) = world.pair(family, &door);
            server.write_all(b"220 ready\r\n").expect("write");
            let mut greeting = [0; 11];
            client.read_exact(&mut greeting).expect("a greeting");
            assert_eq!(&greeting, b"220 ready\r\n");
            talk(&mut client, &mut server);
            // And a server that has said all that it will before it was asked.
            let (mut client, mut server) = world.pair(family, &door);
            server.write_all(b"421 closing\r\n").expect("write");
            server.shutdown(Shutdown::Write).expect("shutdown");
            expect(&mut client, b"421 closing\r\n", End::Fin);
            drop(client);
            assert_eq!(end(&mut server), End::Fin);
        }
        drop(door);
        world.stop();
    });
}

/// At either end of the tunnel: bytes either way push the end out, silence brings it, as a reset at both ends. The tunnel
/// is none the worse for it.
#[test]
fn an_idle_stream_is_ended() {
    const IDLE: &str = "relay: { idleTimeout: 3s }\n";
    isolated(|| {
        for (near, far) in [(IDLE, ""), ("", IDLE)] {
            let mut world = world(near, far);
            tolerate(&mut world);
            let door = Door::open(world.far_host(), APP);
            let (mut client, mut server) = world.pair(Family::V4, &door);
            // Two idle times in all, never one of them silent, even if the machine is for two seconds.
            for round in 0..12 {
                pause(Duration::from_millis(500));
                let (from, to) = if round % 2 == 0 { (&mut client, &mut server) } else { (&mut server, &mut client) };
                from.write_all(b".").expect("the connection lives");
                to.read_exact(&mut [0]).expect("the connection lives");
            }
            let silent = Instant::now();
            assert_eq!((end(&mut client), end(&mut server)), (End::Reset, End::Reset));
            let took = silent.elapsed();
            assert!(took >= Duration::from_millis(2500), "{took:?}");
            assert!(took <= Duration::from_millis(3500) + SLACK, "{took:?}");
            let ends = [(near, &world.near), (far, &world.far)];
            for (settings, side) in ends {
                let meant = usize::from(settings == IDLE);
                until(LIMIT, "its record", || (records(side, "idle_timeout") == meant).then_some(()));
            }
            let (mut client, mut server) = world.pair(Family::V4, &door);
            talk(&mut client, &mut server);
            let closed = metric(world.near_host(), "adit_tunnels_closed_total{role=\"client\"}");
            assert_eq!(closed, 0.0, "the tunnel has ended with its stream");
            drop((client, server, door));
            world.stop();
        }
    });
}

/// One half has ended. The other may take as long as it likes as long as it is not silent for `relay.halfCloseLinger`, and
/// ends cleanly; where it is, both ends meet a reset.
#[test]
fn a_half_that_is_left_may_trickle_but_not_be_silent() {
    const LINGER: &str = "relay: { halfCloseLinger: 3s }\n";
    isolated(|| {
        let mut world = world(LINGER, LINGER);
        tolerate(&mut world);
        let door = Door::open(world.far_host(), APP);
        thread::scope(|scope| {
            for (family, from_client) in [(Family::V4, true), (Family::V4, false), (Family::V6, true)] {
                let pair = || {
                    let (client, server) = world.pair(family, &door);
                    if from_client { (client, server) } else { (server, client) }
                };
                let (trickling, silent) = (pair(), pair());
                scope.spawn(move || trickle(trickling));
                scope.spawn(move || stay_silent(silent));
            }
        });
        let lingered = || records(&world.near, "half_close_linger") + records(&world.far, "half_close_linger");
        until(LIMIT, "records of the silent ones", || (lingered() >= 3).then_some(()));
        assert!(lingered() <= 6, "once at each end at most");
        until(LIMIT, "records of the others", || {
            (records(&world.near, "finished") == 3 && records(&world.far, "finished") == 3).then_some(())
        });
        drop(door);
        world.stop();
    });
}

fn trickle((mut ended, mut trickling): (TcpStream, TcpStream)) {
    ended.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(end(&mut trickling), End::Fin);
    // Three times as long as the linger in all.
    for _ in 0..15 {
        pause(Duration::from_millis(600));
        trickling.write_all(b".").expect("the connection lives");
    }
    trickling.shutdown(Shutdown::Write).expect("shutdown");
    expect(&mut ended, &[b'.'; 15], End::Fin);
}

fn stay_silent((mut ended, mut silent): (TcpStream, TcpStream)) {
    talk(&mut ended, &mut silent);
    ended.shutdown(Shutdown::Write).expect("shutdown");
    let start = Instant::now();
    assert_eq!(end(&mut silent), End::Fin);
    assert_eq!(read_to_end(&mut ended), (Vec::new(), End::Reset));
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(2500), "{took:?}");
    assert!(took <= Duration::from_millis(3500) + SLACK, "{took:?}");
    // The silent end meets it when it writes.
    let _first_write = silent.write_all(b"too late");
    until(LIMIT, "the silent end to see the reset", || silent.write_all(b"too late").err());
}
