//! Many streams, slow ones and stalled ones in one tunnel between two adits.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::bytes::random;
use crate::kit::door::talk;
use crate::kit::wait::pause;
use crate::kit::{Door, Family, LIMIT, isolated_within, until};
use crate::relay::{self, LONG};
use crate::serve::echo;
use crate::world::{APP, KINDS, World, metric, wait_metric};

const ONE_TUNNEL: &str = "workers: 1\ntunnel: { maxPerPeer: 1 }\nlog: { access: false }";

#[test]
fn ten_thousand_short_streams() {
    isolated_within(LONG, || {
        let world = World::adit_to_adit(KINDS[0], ONE_TUNNEL);
        echo(world.far_host(), APP);
        thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| (0..1_000).for_each(|_| relay::echoed(&world, Family::V4)));
            }
        });
        world.wait_idle();
        for (host, role) in [(world.near_host(), "client"), (world.far_host(), "server")] {
            assert_eq!(metric(host, &format!("adit_tunnels_opened_total{{role=\"{role}\"}}")), 1.0, "{role}");
            wait_metric(host, &format!("adit_tunnel_streams_open{{role=\"{role}\"}}"), 0.0);
        }
        world.stop();
    });
}

/// How much all of them carry in a fifth of a second.
fn pace(carried: &AtomicU64) -> u64 {
    let before = carried.load(Ordering::Relaxed);
    let begun = Instant::now();
    pause(Duration::from_millis(200));
    let bytes = carried.load(Ordering::Relaxed) - before;
    bytes * 200 / u64::try_from(begun.elapsed().as_millis()).expect("a short time").max(1)
}

/// Writes and reads at both ends of a stream until told to stop.
fn busy(client: &TcpStream, server: &TcpStream, carried: &AtomicU64, stop: &AtomicBool) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let piece = random(21, 64 * 1024);
            while !stop.load(Ordering::Relaxed) {
                (&*client).write_all(&piece).expect("write");
            }
            client.shutdown(std::net::Shutdown::Write).expect("shutdown");
        });
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match (&*server).read(&mut buffer).expect("read") {
                0 => return,
                count => carried.fetch_add(count as u64, Ordering::Relaxed),
            };
        }
    });
}

/// A stalled stream holds up none of its nine neighbours in the same tunnel: they carry as much in the same time, give or take
/// a fifth. The best of several short times, since other things run on this machine.
#[test]
fn one_stalled_stream_among_ten() {
    isolated_within(LONG, || {
        let world = World::adit_to_adit(KINDS[0], ONE_TUNNEL);
        let door = Door::open(world.far_host(), APP);
        let others: Vec<_> = (0..9).map(|_| world.pair(Family::V4, &door)).collect();
        let (stalled, unread) = world.pair(Family::V4, &door);
        let (carried, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for (client, server) in &others {
                scope.spawn(|| busy(client, server, &carried, &stop));
            }
            until(LIMIT, "bytes to flow", || (carried.load(Ordering::Relaxed) > 1 << 20).then_some(()));
            let before = (0..5).map(|_| pace(&carried)).max().expect("five times");
            stalled.set_nonblocking(true).expect("O_NONBLOCK");
            relay::fill(&stalled, &random(12, 1 << 20));
            let mut best = 0;
            until(LIMIT, "the others to keep four fifths of their pace", || {
                best = pace(&carried).max(best);
                (best * 5 >= before * 4).then_some(())
            });
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(world.tunnels(), 1);
        drop((others, stalled, unread));
        world.stop();
    });
}

/// A reader at 1 Mbit/s: what waits for it in adit is at most one stream window, and its sender is held back to its pace within
/// seconds; another stream of the same tunnel does not notice.
#[test]
fn a_slow_reader() {
    const STEP: Duration = Duration::from_millis(100);
    const BYTES_PER_STEP: usize = 12_500;
    const WINDOW: f64 = 256.0 * 1024.0;
    isolated_within(LONG, || {
        let settings = "workers: 1\ntunnel: { maxPerPeer: 1, streamWindow: 256KiB }\nlog: { access: false }";
        let world = World::adit_to_adit(KINDS[0], settings);
        let door = Door::open(world.far_host(), APP);
        let (client, mut server) = world.pair(Family::V4, &door);
        client.set_nonblocking(true).expect("O_NONBLOCK");
        let (mut near, mut far) = world.pair(Family::V4, &door);
        let stop = AtomicBool::new(false);
        let written = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = vec![0; BYTES_PER_STEP];
                while !stop.load(Ordering::Relaxed) {
                    server.read_exact(&mut buffer).expect("read");
                    pause(STEP);
                }
            });
            scope.spawn(|| {
                let piece = random(22, 64 * 1024);
                while !stop.load(Ordering::Relaxed) {
                    match (&client).write(&piece) {
                        Ok(count) => drop(written.fetch_add(count as u64, Ordering::Relaxed)),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => pause(Duration::from_millis(5)),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            // Kernels' buffers are full at some time; from then on the sender has the reader's pace, in bursts.
            until(LIMIT, "the sender to be held back", || {
                let before = written.load(Ordering::Relaxed);
                pause(Duration::from_secs(1));
                (written.load(Ordering::Relaxed) - before < 1 << 20).then_some(())
            });
            let mut most: f64 = 0.0;
            for _ in 0..20 {
                most = most.max(metric(world.far_host(), "adit_tunnel_buffered_bytes"));
                assert!(most <= WINDOW, "{most} bytes are held for one stream");
                talk(&mut near, &mut far);
                pause(STEP);
            }
            assert!(most > 0.0, "nothing was ever held: the reader was not slow");
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(world.tunnels(), 1);
        drop((client, server, near, far));
        world.stop();
    });
}
