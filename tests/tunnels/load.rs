//! Many streams, slow ones and stalled ones in one tunnel between two adits.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

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

/// Also where a test fails: else its threads would go on for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
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

/// A stalled stream holds up none of its nine neighbours in the same tunnel: they carry as much, give or take a fifth, as nine
/// streams in another tunnel without one, at the same time and on the same worker.
#[test]
fn one_stalled_stream_among_ten() {
    isolated_within(LONG, || {
        let world = World::adit_to_adit(KINDS[0], ONE_TUNNEL);
        let door = Door::open(world.far_host(), APP);
        let nine = Family::BOTH.map(|family| (0..9).map(|_| world.pair(family, &door)).collect::<Vec<_>>());
        let (stalled, unread) = world.pair(Family::V4, &door);
        stalled.set_nonblocking(true).expect("O_NONBLOCK");
        relay::fill(&stalled, &random(12, 1 << 20));
        let (carried, stop) = ([AtomicU64::new(0), AtomicU64::new(0)], AtomicBool::new(false));
        let now = || carried.each_ref().map(|bytes| bytes.load(Ordering::Relaxed));
        thread::scope(|scope| {
            for (streams, carried) in nine.iter().zip(&carried) {
                for (client, server) in streams {
                    scope.spawn(|| busy(client, server, carried, &stop));
                }
            }
            let _stopped = Stop(&stop);
            until(LIMIT, "the neighbours of a stalled stream to keep pace", || {
                let before = now();
                pause(Duration::from_millis(500));
                let after = now();
                let [beside, elsewhere] = [after[0] - before[0], after[1] - before[1]];
                (elsewhere > 1 << 20 && beside * 5 >= elsewhere * 4).then_some(())
            });
        });
        assert_eq!(world.tunnels(), 2);
        drop((nine, stalled, unread));
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
            let _stopped = Stop(&stop);
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
        });
        assert_eq!(world.tunnels(), 1);
        drop((client, server, near, far));
        world.stop();
    });
}
