//! Frames that are in order and far too many, and windows that stay closed: refused or harmless, and nobody else waits.

use std::time::{Duration, Instant};

use crate::kit::isolated;
use crate::kit::wait::pause;
use crate::raw::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, Peer, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    connect_request, frame,
};
use crate::siege::{DEAF, ECHO, Siege, TALKER};

/// How long each goes on.
const FLOOD: Duration = Duration::from_millis(400);
/// What one tunnel may make adit hold for a while: its windows, and what the library keeps for its frames.
const PEAK: u64 = 64 << 20;

/// Sends what `batch` makes until the time is over or the tunnel is; whether it lives.
fn flood(peer: &mut Peer, mut batch: impl FnMut(&mut Peer) -> Vec<u8>) -> bool {
    let start = Instant::now();
    while start.elapsed() < FLOOD {
        let bytes = batch(peer);
        if !peer.write(&bytes) {
            return !peer.is_over();
        }
        peer.discard();
    }
    true
}

fn many(count: usize, one: &[u8]) -> Vec<u8> {
    one.repeat(count)
}

fn connect(stream: u32, flags: u8, authority: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &connect_request(authority.as_bytes()))
}

type Flood = (&'static str, fn(&mut Peer, &Siege));

const FLOODS: &[Flood] = &[
    ("rapid reset", |peer, siege| {
        let authority = siege.authority(ECHO);
        flood(peer, |peer| {
            let streams = (0..100).map(|_| peer.number());
            let pair = |stream| [connect(stream, 0, &authority), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat();
            streams.flat_map(pair).collect()
        });
    }),
    ("resets a moment later", |peer, siege| {
        let authority = siege.authority(ECHO);
        flood(peer, |peer| {
            let streams: Vec<_> = (0..50).map(|_| peer.number()).collect();
            let open: Vec<u8> = streams.iter().flat_map(|stream| connect(*stream, 0, &authority)).collect();
            peer.write(&open);
            pause(Duration::from_millis(3));
            streams.iter().flat_map(|stream| frame(RST_STREAM, 0, *stream, &[0, 0, 0, 8])).collect()
        });
    }),
    ("empty CONNECTs", |peer, _| {
        flood(peer, |peer| (0..50).flat_map(|_| connect(peer.number(), END_STREAM, "")).collect());
    }),
    ("CONNECTs to nowhere", |peer, _| {
        flood(peer, |peer| (0..50).flat_map(|_| connect(peer.number(), 0, "10.99.0.1:80")).collect());
    }),
    ("CONNECTs beyond the limit of streams", |peer, siege| {
        let authority = siege.authority(ECHO);
        flood(peer, |peer| (0..50).flat_map(|_| connect(peer.number(), 0, &authority)).collect());
    }),
    ("SETTINGS", |peer, _| {
        flood(peer, |_| many(500, &frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])));
    }),
    ("SETTINGS, unread", |peer, _| {
        peer.reads_never();
        flood(peer, |_| many(500, &frame(SETTINGS, 0, 0, &[])));
    }),
    ("ACKs of nothing", |peer, _| {
        flood(peer, |_| many(500, &frame(SETTINGS, ACK, 0, &[])));
    }),
    ("PING", |peer, _| {
        flood(peer, |_| many(500, &frame(PING, 0, 0, b"at home?")));
    }),
    ("PING, unread", |peer, _| {
        peer.reads_never();
        flood(peer, |_| many(500, &frame(PING, 0, 0, b"at home?")));
    }),
    ("answers to no PING", |peer, _| {
        flood(peer, |_| many(500, &frame(PING, ACK, 0, b"at home!")));
    }),
    ("windows wider by a byte", |peer, siege| {
        let stream = peer.open(&siege.authority(TALKER));
        let one = 1_u32.to_be_bytes();
        let pair = [frame(WINDOW_UPDATE, 0, 0, &one), frame(WINDOW_UPDATE, 0, stream, &one)].concat();
        flood(peer, |_| many(250, &pair));
    }),
    ("PRIORITY", |peer, _| {
        flood(peer, |_| many(500, &frame(PRIORITY, 0, 77, &[0, 0, 0, 1, 16])));
    }),
    ("GOAWAY", |peer, _| {
        flood(peer, |_| many(500, &frame(GOAWAY, 0, 0, &[0; 8])));
    }),
    ("frames of nothing", |peer, siege| {
        let stream = peer.open(&siege.authority(ECHO));
        flood(peer, |_| many(500, &frame(DATA, 0, stream, b"")));
    }),
    ("frames of a byte to an application that never reads", |peer, siege| {
        let stream = peer.open(&siege.authority(DEAF));
        flood(peer, |_| many(500, &frame(DATA, 0, stream, b"x")));
    }),
    ("frames of padding", |peer, siege| {
        let stream = peer.open(&siege.authority(DEAF));
        let mut padded = vec![255];
        padded.extend([0; 255]);
        flood(peer, |_| many(100, &frame(DATA, 8, stream, &padded)));
    }),
    ("DATA of a closed stream", |peer, _| {
        let stream = peer.ask("nowhere");
        peer.answer(stream);
        peer.send(RST_STREAM, 0, stream, &[0; 4]);
        flood(peer, |_| many(200, &frame(DATA, 0, stream, b"too late")));
    }),
    ("frames of a kind that nobody knows", |peer, _| {
        flood(peer, |_| many(100, &frame(0x42, 0, 0, &[0; 1000])));
    }),
    ("an application that sends, and a client that never reads", |peer, siege| {
        for _ in 0..20 {
            let stream = peer.open(&siege.authority(TALKER));
            peer.send(WINDOW_UPDATE, 0, stream, &0x7000_0000_u32.to_be_bytes());
        }
        peer.send(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes());
        peer.reads_never();
        pause(FLOOD);
    }),
    ("an application that sends, and a window that stays closed", |peer, siege| {
        for _ in 0..50 {
            peer.open(&siege.authority(TALKER));
        }
        pause(FLOOD);
    }),
    ("tunnels that come and go", |_, siege| {
        let start = Instant::now();
        while start.elapsed() < FLOOD {
            let mut peer = siege.peer();
            peer.ask(&siege.authority(ECHO));
        }
    }),
];

/// Each, while a friend is served by the same worker.
#[test]
fn floods() {
    isolated(|| {
        let siege = Siege::new("");
        siege.applications();
        // So that what is only made once is not taken for what is left behind.
        drop((siege.peer(), siege.friend().well("nothing")));
        for (what, attack) in FLOODS {
            let friend = siege.friend();
            let before = siege.calm(1);
            siege.forget_peak();
            let mut peer = siege.peer();
            let cpu = siege.cpu_time();
            attack(&mut peer, &siege);
            let cpu = siege.cpu_time() - cpu;
            let peak = siege.memory("VmHWM:");
            assert!(peak <= before.resident + PEAK, "{what}: {} MiB", (peak - before.resident) >> 20);
            drop(peer);
            siege.settled(what, &before);
            let took = friend.well(what);
            note(what, cpu, &took, peak - before.resident.min(peak));
        }
        siege.finish();
    });
}

#[expect(clippy::print_stderr, reason = "seen when it fails, or by who asks")]
fn note(what: &str, cpu: Duration, took: &[Duration], peak: u64) {
    let longest = took.iter().max().copied().unwrap_or_default();
    eprintln!(
        "{what}: {} round trips, the longest {longest:?}; {} KiB more at the peak, {cpu:?} of a core",
        took.len(),
        peak >> 10
    );
}
