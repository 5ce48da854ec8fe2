//! Descriptors that are used up while tunnels are open, and peers that vanish.

use std::time::Duration;

use crate::kit::wait::pause;
use crate::kit::{LIMIT, isolated, until};
use crate::raw::{DATA, END_STREAM, Frame, HEADERS, Next, Peer};
use crate::siege::{DEAF, ECHO, Siege};

/// `:status: 503`, as a literal in HPACK: the index of the name 8, and digits in Huffman's code (or not).
fn is_503(frame: &Frame) -> bool {
    frame.kind == HEADERS && frame.flags & END_STREAM != 0 && frame.payload.first() != Some(&0x88)
}

/// Streams for which there is no descriptor are refused; tunnels, and the streams in them, go on; and it heals.
#[test]
fn no_descriptor_for_a_stream() {
    isolated(|| {
        let siege = Siege::after("ulimit -n 128", "limits: { connections: off }");
        siege.applications();
        let friend = siege.friend();
        let before = siege.calm(1);
        let mut peer = siege.peer();
        let (mut taken, mut refused) = (Vec::new(), 0);
        // A tunnel takes 100, and there are two.
        let mut second = siege.peer();
        for index in 0..160 {
            let peer = if index % 2 == 0 { &mut peer } else { &mut second };
            let stream = peer.ask(&siege.authority(DEAF));
            let answer = peer.answer(stream);
            if is_503(&answer) {
                refused += 1;
            } else {
                assert_eq!(answer.payload.first(), Some(&0x88), "{answer:?}");
                taken.push((index % 2, stream));
            }
        }
        assert!(taken.len() > 20 && refused > 20, "{} taken, {refused} refused", taken.len());
        // One that ends makes room for one.
        let (of, stream) = taken.pop().expect("some");
        let peer_of = if of == 0 { &mut peer } else { &mut second };
        peer_of.send(crate::raw::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
        until(LIMIT, "room for a stream", || {
            let stream = peer_of.ask(&siege.authority(ECHO));
            let open = !is_503(&peer_of.answer(stream));
            if open {
                peer_of.ping_pong(stream, b"healed");
            } else {
                pause(Duration::from_millis(50));
            }
            open.then_some(())
        });
        drop((peer, second));
        siege.settled("a want of descriptors", &before);
        friend.well("a want of descriptors");
        let mut peer = siege.peer();
        let stream = peer.open(&siege.authority(ECHO));
        peer.ping_pong(stream, b"as ever");
        drop(peer);
        siege.finish();
    });
}

/// The interface of a peer goes down: found by a PING, and nothing of it is kept.
#[test]
fn a_peer_that_vanishes() {
    isolated(|| {
        let siege = Siege::new("tunnel: { pingInterval: 1s, pingTimeout: 2s }");
        siege.applications();
        let friend = siege.friend();
        let before = siege.calm(1);
        let mut peers: Vec<Peer> = (0..5).map(|_| siege.peer()).collect();
        for peer in &mut peers {
            let idle = peer.open(&siege.authority(DEAF));
            let busy = peer.open(&siege.authority(ECHO));
            peer.ping_pong(busy, b"still here");
            peer.send(DATA, 0, idle, b"to nobody");
        }
        siege.camp().ip("link set eth0 down\n");
        siege.settled("a peer that has vanished", &before);
        let lost = siege.adit.log().iter().filter(|line| line.contains("cause=\"ping_timeout\"")).count();
        assert_eq!(lost, peers.len());
        friend.well("a peer that has vanished");
        // When it is back it learns that all is over.
        siege.camp().ip("link set eth0 up\n");
        for peer in &mut peers {
            peer.write(b"anybody?");
            while matches!(peer.next(LIMIT), Next::Frame(_)) {
                peer.write(b"anybody?");
            }
        }
        siege.finish();
    });
}
