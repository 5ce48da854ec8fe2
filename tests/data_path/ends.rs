//! How connections end: by halves, by resets with data before them, and cleanly where the end was clean.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;

use adit::net::redirect::Kind;

use crate::bytes::{End, delivered, expect, random, read_to_end, reset, send_and_finish};
use crate::kit::door::talk;
use crate::kit::{Family, isolated};
use crate::scene::{KINDS, MESH, Scene};

const IN_FLIGHT: usize = 8 << 20;
/// More than a socket buffer that nobody reads would be filled with at once, less than both sides' buffers together.
const BEFORE_RESET: usize = 400_000;

/// A connection through adit, seen from one of its ends.
struct Pair {
    near: TcpStream,
    far: TcpStream,
    client: SocketAddr,
    far_is_client: bool,
    /// Where the access record says how much came from `far`.
    bytes_key: &'static str,
}

/// Runs `body` with connections through adit by each kind of capture and for each family, outbound and inbound, with the
/// client at either end.
fn both_ways(more: &str, body: impl Fn(&Scene, Pair)) {
    for kind in KINDS {
        let scene = Scene::new(kind, more, MESH);
        for family in Family::BOTH {
            for (inbound, far_is_client) in [(false, false), (false, true), (true, false), (true, true)] {
                let (client, server) = if inbound { scene.inward(family) } else { scene.through(family) };
                let address = client.local_addr().expect("an address");
                let (near, far) = if far_is_client { (server, client) } else { (client, server) };
                let bytes_key = if inbound == far_is_client { "bytes_recv" } else { "bytes_sent" };
                body(&scene, Pair { near, far, client: address, far_is_client, bytes_key });
            }
        }
        scene.wait_metric("adit_connections_open", &[], 0.0);
        scene.adit.stop();
    }
}

pub(crate) fn half_closed(kind: Kind) {
    let scene = Scene::new(kind, "", MESH);
    let (there, back) = (random(1, IN_FLIGHT), random(2, IN_FLIGHT));
    for family in Family::BOTH {
        for (inbound, first_is_client) in [(false, true), (false, false), (true, true), (true, false)] {
            let (client, server) = if inbound { scene.inward(family) } else { scene.through(family) };
            let (mut first, mut second) = if first_is_client { (client, server) } else { (server, client) };
            thread::scope(|scope| {
                scope.spawn(|| send_and_finish(&mut first, &there));
                expect(&mut second, &there, End::Fin);
            });
            thread::scope(|scope| {
                scope.spawn(|| send_and_finish(&mut second, &back));
                expect(&mut first, &back, End::Fin);
            });
        }
        // Both halves end at the same time.
        let (mut application, mut server) = scene.through(family);
        let address = application.local_addr().expect("an address");
        thread::scope(|scope| {
            for (stream, out, back) in [(&mut application, &there, &back), (&mut server, &back, &there)] {
                let mut writing = stream.try_clone().expect("a second descriptor");
                scope.spawn(move || send_and_finish(&mut writing, out));
                scope.spawn(move || expect(stream, back, End::Fin));
            }
        });
        let record = scene.record(address);
        assert_eq!(record["close_reason"], "finished", "{record}");
        assert_eq!(record["bytes_sent"], IN_FLIGHT, "{record}");
        assert_eq!(record["bytes_recv"], IN_FLIGHT, "{record}");
    }
    scene.adit.stop();
}

#[test]
fn half_a_connection_outlives_the_other_half_redirect() {
    isolated(|| half_closed(Kind::Redirect));
}

#[test]
fn half_a_connection_outlives_the_other_half_tproxy() {
    isolated(|| half_closed(Kind::Tproxy));
}

/// The reader starts only after the reset: what was received before it must come first, all of it.
fn reset_after_data(zero_copy: &str) {
    let data = random(3, BEFORE_RESET);
    both_ways(&format!("relay: {{ zeroCopy: {zero_copy}, resetFlush: 10s }}"), |scene, pair| {
        let Pair { mut near, mut far, client, far_is_client, bytes_key } = pair;
        far.write_all(&data).expect("write");
        delivered(&far);
        reset(far);
        expect(&mut near, &data, End::Reset);
        let record = scene.record(client);
        let want = if far_is_client { "downstream_reset" } else { "upstream_reset" };
        assert_eq!(record["close_reason"], want, "{record}");
        assert_eq!(record[bytes_key], BEFORE_RESET, "{record}");
    });
}

#[test]
fn a_reset_comes_after_all_that_was_sent_before_it() {
    isolated(|| reset_after_data("auto"));
}

#[test]
fn a_reset_comes_after_all_that_was_sent_before_it_without_splice() {
    isolated(|| reset_after_data("off"));
}

#[test]
fn a_reset_of_an_idle_connection_is_a_reset() {
    isolated(|| {
        both_ways("", |_, Pair { mut near, mut far, .. }| {
            // Before that, adit may not know yet that it is connected.
            talk(&mut near, &mut far);
            reset(far);
            expect(&mut near, &[], End::Reset);
        });
    });
}

/// The end was a clean one; that the other direction is then cut does not make it less complete.
#[test]
fn data_and_fin_and_then_a_reset_is_a_clean_end() {
    isolated(|| {
        let data = random(4, BEFORE_RESET);
        both_ways("relay: { resetFlush: 10s }", |_, Pair { mut near, mut far, .. }| {
            send_and_finish(&mut far, &data);
            delivered(&far);
            reset(far);
            expect(&mut near, &data, End::Fin);
        });
    });
}

/// The reset comes when the end of the other half has long been read.
#[test]
fn a_reset_after_an_end_is_noticed() {
    isolated(|| {
        both_ways("", |scene, Pair { mut near, mut far, .. }| {
            send_and_finish(&mut far, b"last words");
            let (bytes, end) = read_to_end(&mut near);
            assert_eq!((&*bytes, end), (&b"last words"[..], End::Fin));
            let open = scene.metric("adit_connections_open", &[]);
            assert_eq!(open, 1.0);
            reset(far);
            scene.wait_metric("adit_connections_open", &[], 0.0);
            drop(near);
        });
    });
}
