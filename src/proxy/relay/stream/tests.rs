//! The relay between a real loopback socket and a stream of a real HTTP/2 connection, on either side; at the far end a
//! bare HTTP/2 peer that sees every frame's meaning.

mod peer;

use std::cell::Cell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use h2::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::*;
use crate::config::settings::Keepalive;
use crate::net::buffers;
use crate::net::sockopt::unacknowledged;
use crate::proxy::relay::{finish, reset};

use peer::{Between, Far, Options, between, between_in, between_with, eventually, tunnel};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// Runs `test` with the stream on each side, with a time limit.
fn both_sides<F: Future<Output = ()>>(test: impl Fn(Side) -> F) {
    for side in [Side::Upstream, Side::Downstream] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        LocalSet::new().block_on(&runtime, async {
            timeout(LIMIT, test(side)).await.unwrap_or_else(|_| panic!("time is up, stream {side:?}"));
        });
    }
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut noise = vec![0; bytes];
    random.fill(&mut noise);
    noise
}

async fn read_all(socket: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut all = Vec::new();
    let error = socket.read_to_end(&mut all).await.err().map(|error| error.kind());
    (all, error)
}

/// What a reader that stalls holds at least: the library announces window in large pieces, so up to a third of it may
/// be free and not announced.
fn full(window: u32) -> u64 {
    u64::from(window) * 2 / 3
}

fn code(reason: Reason) -> Option<u32> {
    Some(reason.into())
}

/// The close reason of a reset by the stream's side, and by the socket's.
fn resets(side: Side) -> (CloseReason, CloseReason) {
    let (down, up) = (CloseReason::DownstreamReset, CloseReason::UpstreamReset);
    if side == Side::Downstream { (down, up) } else { (up, down) }
}

#[test]
fn half_close_is_half_close_and_every_byte_arrives() {
    both_sides(|side| async move {
        for socket_first in [true, false] {
            let Between { mut socket, mut far, entry, relay, directions: [from_socket, from_far], .. } =
                between(side).await;
            let (out, back) = (noise(8 * MIB, 1), noise(8 * MIB, 2));
            // The second one answers only after the end of the first has arrived.
            if socket_first {
                let socket_side = async {
                    socket.write_all(&out).await.expect("write");
                    socket.shutdown().await.expect("shutdown");
                    read_all(&mut socket).await
                };
                let far_side = async {
                    let got = far.read_all().await;
                    far.write_all(&back).await;
                    far.finish();
                    got
                };
                let ((at_socket, error), (at_far, ended)) = tokio::join!(socket_side, far_side);
                assert_eq!((at_socket == back, error, at_far == out, ended), (true, None, true, None));
            } else {
                let far_side = async {
                    far.write_all(&back).await;
                    far.finish();
                    far.read_all().await
                };
                let socket_side = async {
                    let got = read_all(&mut socket).await;
                    socket.write_all(&out).await.expect("write");
                    socket.shutdown().await.expect("shutdown");
                    got
                };
                let ((at_socket, error), (at_far, ended)) = tokio::join!(socket_side, far_side);
                assert_eq!((at_socket == back, error, at_far == out, ended), (true, None, true, None));
            }
            assert_eq!(relay.await.expect("relay"), Outcome::Finished);
            assert_eq!((entry.bytes(from_socket), entry.bytes(from_far)), (8 << 20, 8 << 20));
            // Nothing else was said on the stream.
            assert!(far.is_quiet().await);
        }
    });
}

#[test]
fn random_sizes_both_ways_at_once_conserve_bytes() {
    both_sides(|side| async move {
        for seed in 0..6 {
            let Between { socket, far, entry, relay, directions, tunnel, .. } = between(side).await;
            let mut random = fastrand::Rng::with_seed(seed);
            let (out, back) = (noise(random.usize(..3 * MIB), seed), noise(random.usize(..3 * MIB), seed + 100));
            let mut size = || {
                let most = 1 << random.u32(0..18);
                random.usize(1..=most)
            };
            let sizes: Vec<usize> = (0..64).map(|_| size()).collect();
            let (mut read, mut write) = socket.into_split();
            let Far { mut send, mut receive, .. } = far;
            let write_socket = async {
                for (piece, size) in peer::pieces(&out, &sizes) {
                    write.write_all(piece).await.expect("write");
                    if size % 3 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                write.shutdown().await.expect("shutdown");
            };
            let write_far = async {
                for (piece, _) in peer::pieces(&back, &sizes) {
                    peer::write_all(&mut send, piece).await;
                }
                send.send_data(bytes::Bytes::new(), true).expect("end");
            };
            let mut at_socket = Vec::new();
            let (_, _, result, (at_far, ended)) =
                tokio::join!(write_socket, write_far, read.read_to_end(&mut at_socket), peer::read_all(&mut receive));
            result.expect("read");
            assert!(at_socket == back && at_far == out && ended.is_none(), "seed {seed}");
            assert_eq!(relay.await.expect("relay"), Outcome::Finished);
            let moved = directions.map(|direction| entry.bytes(direction));
            assert_eq!(moved, [out.len() as u64, back.len() as u64]);
            assert_eq!(tunnel.buffered(), 0);
        }
    });
}

#[test]
fn a_reset_of_the_socket_is_connect_error_after_everything_before_it() {
    both_sides(|side| async move {
        let Between { mut socket, mut far, entry, relay, directions, .. } = between(side).await;
        let data = noise(400_000, 5);
        let send = async {
            socket.write_all(&data).await.expect("write");
            finish::acknowledged(&socket).await;
            reset(socket);
        };
        // A reader that starts late still gets all of it.
        let receive = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            far.read_all().await
        };
        let ((), (got, ended)) = tokio::join!(send, receive);
        assert_eq!((got.len(), ended), (data.len(), code(Reason::CONNECT_ERROR)));
        assert!(got == data);
        assert_eq!(relay.await.expect("relay").close_reason(), resets(side).1);
        assert_eq!(entry.bytes(directions[0]), data.len() as u64);
    });
}

#[test]
fn a_reset_behind_bytes_that_wait_for_window_does_not_overtake_them() {
    both_sides(|side| async move {
        let Between { mut socket, mut far, entry, relay, directions: [from_socket, _], .. } = between(side).await;
        let data = noise(peer::WINDOW as usize + 30_000, 18);
        let (fits, waits) = data.split_at(peer::WINDOW as usize);
        socket.write_all(fits).await.expect("write");
        eventually(|| entry.bytes(from_socket) == u64::from(peer::WINDOW)).await;
        socket.write_all(waits).await.expect("write");
        finish::acknowledged(&socket).await;
        eventually(|| entry.blocked_for(from_socket, Instant::now()).is_some()).await;
        reset(socket);
        // Now the rest and the reset are read in one go, and the rest is still queued when the reset is met.
        let (got, ended) = far.read_all().await;
        assert_eq!((got.len(), ended), (data.len(), code(Reason::CONNECT_ERROR)));
        assert!(got == data);
        assert_eq!(relay.await.expect("relay").close_reason(), resets(side).1);
        assert_eq!(entry.bytes(from_socket), data.len() as u64);
    });
}

#[test]
fn a_reset_is_noticed_while_the_stream_takes_nothing() {
    both_sides(|side| async move {
        let Between { mut socket, mut far, entry, relay, directions: [from_socket, _], .. } = between(side).await;
        let data = noise(peer::WINDOW as usize + 30_000, 18);
        socket.write_all(&data).await.expect("write");
        eventually(|| entry.is_blocked(from_socket)).await;
        // The kernel does not take more for whom it has no room; that is lost with the reset.
        let lost = unacknowledged(&socket).expect("SIOCOUTQ");
        reset(socket);
        eventually(|| entry.state() == State::Flushing).await;
        let (got, ended) = far.read_all().await;
        assert_eq!(ended, code(Reason::CONNECT_ERROR));
        assert!(data.starts_with(&got) && got.len() + lost >= data.len(), "{} bytes, {lost} lost", got.len());
        assert_eq!(relay.await.expect("relay").close_reason(), resets(side).1);
    });
}

/// The kernel would give up a peer whose window is closed, though it lives; bytes that block nothing included.
#[test]
fn a_pause_of_the_sockets_reader_loses_nothing() {
    both_sides(|side| async move {
        for both_ended in [false, true] {
            let (between, user_timeout) = peer::between_impatient(side).await;
            let Between { mut socket, mut far, entry, relay, .. } = between;
            let sweeping = {
                let entry = Rc::clone(&entry);
                tokio::task::spawn_local(async move {
                    loop {
                        crate::proxy::sweep::sweep(&entry, Instant::now());
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                })
            };
            let data = noise(60_000, 30);
            far.write_all(&data).await;
            far.finish();
            if both_ended {
                socket.shutdown().await.expect("shutdown");
                eventually(|| relay.is_finished()).await;
            }
            tokio::time::sleep(user_timeout * 3).await;
            let (got, error) = read_all(&mut socket).await;
            assert_eq!((got == data, error), (true, None), "{} bytes, both ended: {both_ended}", got.len());
            drop(socket);
            assert_eq!(relay.await.expect("relay"), Outcome::Finished);
            sweeping.abort();
        }
    });
}

#[test]
fn a_reset_of_the_stream_is_a_reset_after_everything_before_it() {
    both_sides(|side| async move {
        for reason in [Reason::CANCEL, Reason::CONNECT_ERROR, Reason::INTERNAL_ERROR, Reason::STREAM_CLOSED] {
            let Between { mut socket, mut far, relay, .. } = between(side).await;
            let data = noise(400_000, 6);
            let send = async {
                far.write_all(&data).await;
                far.flushed().await;
                far.reset(reason);
            };
            let receive = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                read_all(&mut socket).await
            };
            let ((), (got, error)) = tokio::join!(send, receive);
            assert_eq!((got.len(), error), (data.len(), Some(ErrorKind::ConnectionReset)), "{reason}");
            assert!(got == data);
            assert_eq!(relay.await.expect("relay").close_reason(), resets(side).0);
        }
    });
}

#[test]
fn data_and_fin_before_a_reset_stay_a_clean_end() {
    both_sides(|side| async move {
        let data = noise(400_000, 7);
        let Between { mut socket, mut far, relay, .. } = between(side).await;
        let send = async {
            socket.write_all(&data).await.expect("write");
            socket.shutdown().await.expect("shutdown");
            finish::acknowledged(&socket).await;
            reset(socket);
        };
        let ((), (got, ended)) = tokio::join!(send, far.read_all());
        assert_eq!((got == data, ended), (true, None), "a clean end");
        assert_eq!(far.last_word().await, code(Reason::CONNECT_ERROR), "and then the reset");
        assert_eq!(relay.await.expect("relay").close_reason(), resets(side).1);

        let Between { mut socket, mut far, relay, .. } = between(side).await;
        let send = async {
            far.write_all(&data).await;
            far.finish();
            far.flushed().await;
            far.reset(Reason::CANCEL);
        };
        let ((), (got, error)) = tokio::join!(send, read_all(&mut socket));
        assert_eq!((got == data, error), (true, None), "a clean end");
        assert_eq!(relay.await.expect("relay").close_reason(), resets(side).0);
    });
}

#[test]
fn a_reset_after_the_other_half_has_ended_is_noticed_while_idle() {
    both_sides(|side| async move {
        let Between { mut socket, mut far, relay, .. } = between(side).await;
        socket.shutdown().await.expect("shutdown");
        assert_eq!(far.read_all().await, (Vec::new(), None));
        reset(socket);
        assert_eq!(far.last_word().await, code(Reason::CONNECT_ERROR));
        assert_eq!(relay.await.expect("relay").close_reason(), resets(side).1);

        let Between { mut socket, mut far, relay, .. } = between(side).await;
        far.finish();
        assert_eq!(read_all(&mut socket).await, (Vec::new(), None));
        far.reset(Reason::CANCEL);
        assert_eq!(relay.await.expect("relay").close_reason(), resets(side).0);
    });
}

#[test]
fn no_error_is_an_orderly_end_with_and_without_end_stream() {
    both_sides(|side| async move {
        for end_stream in [true, false] {
            let Between { mut socket, mut far, relay, .. } = between_with(side, Duration::from_secs(1)).await;
            // More than the kernel takes: the end must not cut the rest, however slow the reader starts. And the
            // peer did not want what the socket was sending.
            socket.write_all(&noise(100_000, 8)).await.expect("write");
            let data = noise(900_000, 9);
            let send = async {
                far.write_all(&data).await;
                if end_stream {
                    far.finish();
                }
                far.flushed().await;
                far.reset(Reason::NO_ERROR);
            };
            let receive = async {
                tokio::time::sleep(Duration::from_millis(1500)).await;
                read_all(&mut socket).await
            };
            let ((), (got, error)) = tokio::join!(send, receive);
            assert_eq!((got.len(), error), (data.len(), None), "end_stream {end_stream}");
            assert!(got == data);
            assert_eq!(relay.await.expect("relay"), Outcome::Finished);
        }
    });
}

#[test]
fn what_adit_ends_is_cancel_and_a_reset() {
    both_sides(|side| async move {
        for reason in [CloseReason::Drain, CloseReason::IdleTimeout, CloseReason::MaxAge, CloseReason::HalfCloseLinger]
        {
            let Between { mut socket, mut far, entry, relay, .. } = between(side).await;
            socket.write_all(b"hello").await.expect("write");
            assert_eq!(far.read(5).await, b"hello");
            entry.kill(reason);
            assert_eq!(relay.await.expect("relay"), Outcome::Killed(reason));
            assert_eq!(far.read_all().await, (Vec::new(), code(Reason::CANCEL)));
            let error = socket.read(&mut [0; 8]).await.expect_err("not a clean end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        // A server that has finished its answer would say NO_ERROR by itself.
        let Between { mut socket, mut far, entry, relay, .. } = between(side).await;
        socket.shutdown().await.expect("shutdown");
        assert_eq!(far.read_all().await, (Vec::new(), None));
        entry.kill(CloseReason::HalfCloseLinger);
        assert_eq!(relay.await.expect("relay"), Outcome::Killed(CloseReason::HalfCloseLinger));
        assert_eq!(far.last_word().await, code(Reason::CANCEL));
    });
}

#[test]
fn a_lost_tunnel_is_a_reset_after_what_it_had_brought() {
    both_sides(|side| async move {
        let Between { mut socket, mut far, relay, .. } = between(side).await;
        let data = noise(300_000, 10);
        far.write_all(&data).await;
        far.flushed().await;
        far.vanish();
        let (got, error) = read_all(&mut socket).await;
        assert_eq!((got == data, error), (true, Some(ErrorKind::ConnectionReset)));
        let outcome = relay.await.expect("relay");
        assert_eq!(outcome, Outcome::TunnelLost { side });
        let want = if side == Side::Downstream { CloseReason::TunnelGone } else { CloseReason::TunnelLost };
        assert_eq!(outcome.close_reason(), want);
    });
}

#[test]
fn a_tunnel_that_we_cut_says_why() {
    both_sides(|side| async move {
        for (end, want) in [
            (TunnelEnd::Revoked, Outcome::Killed(CloseReason::PeerRevoked)),
            (TunnelEnd::Untrusted, Outcome::Killed(CloseReason::PeerUntrusted)),
            (TunnelEnd::Drain, Outcome::Killed(CloseReason::Drain)),
            (TunnelEnd::MaxAge, Outcome::TunnelLost { side }),
        ] {
            let Between { mut socket, far: _far, relay, tunnel, .. } = between(side).await;
            tunnel.cut(end);
            let error = socket.read(&mut [0; 8]).await.expect_err("not a clean end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert_eq!(relay.await.expect("relay"), want);
        }
    });
}

#[test]
fn a_slow_reader_holds_one_stream_window_and_loses_nothing() {
    both_sides(|side| async move {
        let Between { mut socket, mut far, entry, relay, tunnel, window, directions: [_, from_far], .. } =
            between(side).await;
        let data = noise(16 * MIB, 11);
        let most = Rc::new(Cell::new(0));
        let watch = {
            let (tunnel, most) = (Rc::clone(&tunnel), Rc::clone(&most));
            tokio::task::spawn_local(async move {
                loop {
                    most.set(tunnel.buffered().max(most.get()));
                    tokio::task::yield_now().await;
                }
            })
        };
        let send = async {
            far.write_all(&data).await;
            far.finish();
        };
        let receive = async {
            // The socket is full, and so is the window.
            eventually(|| tunnel.buffered() >= full(window)).await;
            assert!(entry.blocked_for(from_far, Instant::now()).is_some());
            assert!(entry.bytes(from_far) < data.len() as u64);
            read_all(&mut socket).await
        };
        let ((), (got, error)) = tokio::join!(send, receive);
        assert_eq!((got == data, error), (true, None));
        socket.shutdown().await.expect("shutdown");
        assert_eq!(relay.await.expect("relay"), Outcome::Finished);
        watch.abort();
        assert!(most.get() <= window.into(), "{}", most.get());
        assert_eq!(tunnel.buffered(), 0);
    });
}

#[test]
fn a_peer_that_gives_no_window_holds_its_sender_back_and_loses_nothing() {
    both_sides(|side| async move {
        let Between { mut socket, mut far, entry, relay, directions: [from_socket, _], .. } = between(side).await;
        let data = noise(16 * MIB, 12);
        let send = async {
            socket.write_all(&data).await.expect("write");
            socket.shutdown().await.expect("shutdown");
        };
        let receive = async {
            eventually(|| entry.blocked_for(from_socket, Instant::now()).is_some()).await;
            assert!(entry.bytes(from_socket) <= peer::WINDOW.into());
            assert!(buffers::lent() <= 2, "{} buffers", buffers::lent());
            let got = far.read_all().await;
            far.finish();
            got
        };
        let ((), (got, ended)) = tokio::join!(send, receive);
        assert_eq!((got == data, ended), (true, None));
        assert_eq!(relay.await.expect("relay"), Outcome::Finished);
        assert_eq!(entry.bytes(from_socket), data.len() as u64);
    });
}

#[test]
fn an_end_needs_no_window() {
    both_sides(|side| async move {
        let Between { mut socket, mut far, entry, relay, directions: [from_socket, _], .. } = between(side).await;
        // Exactly what the peer takes without reading.
        socket.write_all(&noise(peer::WINDOW as usize, 13)).await.expect("write");
        eventually(|| entry.bytes(from_socket) == u64::from(peer::WINDOW)).await;
        assert!(entry.blocked_for(from_socket, Instant::now()).is_none(), "nothing waits");
        socket.shutdown().await.expect("shutdown");
        eventually(|| entry.state() == State::HalfClosed(from_socket)).await;
        let (got, ended) = far.read_all().await;
        assert_eq!((got.len(), ended), (peer::WINDOW as usize, None));
        far.finish();
        assert_eq!(relay.await.expect("relay"), Outcome::Finished);
    });
}

#[test]
fn one_stalled_stream_among_ten_leaves_the_others_alone() {
    both_sides(|side| async move {
        let shared = tunnel(side, Options::default()).await;
        let mut stalled = between_in(&shared).await;
        let jam = noise(8 * MIB, 14);
        let jammed = async {
            stalled.far.write_all(&jam).await;
            stalled.far.finish();
        };
        let others = async {
            eventually(|| shared.tunnel.buffered() >= full(stalled.window)).await;
            for seed in 0..9 {
                let Between { mut socket, mut far, relay, .. } = between_in(&shared).await;
                let data = noise(4 * MIB, seed);
                let send = async {
                    far.write_all(&data).await;
                    far.finish();
                };
                let ((), (got, error)) = tokio::join!(send, read_all(&mut socket));
                assert_eq!((got == data, error), (true, None));
                socket.shutdown().await.expect("shutdown");
                assert_eq!(relay.await.expect("relay"), Outcome::Finished);
            }
            assert!(shared.tunnel.buffered() <= stalled.window.into(), "only the stalled one holds any");
            // It has lost nothing either.
            let mut socket = stalled.socket;
            let (got, error) = read_all(&mut socket).await;
            assert_eq!((got == jam, error), (true, None));
        };
        tokio::join!(jammed, others);
    });
}

#[test]
fn a_flood_of_tiny_frames_towards_a_stalled_reader_does_not_end_the_tunnel() {
    both_sides(|side| async move {
        let Between { mut socket, mut far, tunnel, window, .. } = between(side).await;
        // Fill the socket, then the window byte by byte: far more frames than the library would keep.
        let jam = noise(8 * MIB, 15);
        let mut at = 0;
        while tunnel.buffered() < u64::from(window / 4) {
            let end = (at + 64 * 1024).min(jam.len());
            peer::write_all(&mut far.send, jam.get(at..end).expect("enough to fill the socket")).await;
            at = end;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let tiny = 100_000;
        for byte in jam.iter().take(tiny) {
            peer::write_all(&mut far.send, std::slice::from_ref(byte)).await;
        }
        far.finish();
        let (got, error) = read_all(&mut socket).await;
        assert_eq!((got.len(), error), (at + tiny, None));
        let want = jam.get(..at).into_iter().chain(jam.get(..tiny)).flatten();
        assert!(got.iter().eq(want));
        assert_eq!(tunnel.end(), None);
    });
}

#[test]
fn aborts_in_mid_transfer_leave_nothing_behind() {
    both_sides(|side| async move {
        let shared = tunnel(side, Options::default()).await;
        let data = noise(MIB, 16);
        for round in 0..120 {
            let Between { mut socket, mut far, relay, entry, .. } = between_in(&shared).await;
            // Both directions full, nobody reads. Neither write can end.
            let full = async { tokio::join!(far.write_all(&data), far_from_done(&mut socket)) };
            let _ = timeout(Duration::from_millis(5), full).await;
            // Whoever survives reads what came before the end.
            let reader = match round % 3 {
                0 => {
                    reset(socket);
                    tokio::task::spawn_local(async move { drop(far.read_all().await) })
                }
                1 => {
                    far.reset(Reason::CANCEL);
                    tokio::task::spawn_local(async move { drop(read_all(&mut socket).await) })
                }
                _ => {
                    entry.kill(CloseReason::MaxAge);
                    tokio::task::spawn_local(async move { drop((socket, far)) })
                }
            };
            relay.await.expect("relay");
            reader.await.expect("reader");
        }
        eventually(|| shared.tunnel.streams() == 0 && buffers::lent() == 0).await;
        assert_eq!((shared.tunnel.buffered(), shared.tunnel.end()), (0, None));
        // No window has been lost on the way.
        let Between { mut socket, mut far, .. } = between_in(&shared).await;
        let more = noise(20 * MIB, 17);
        let send = async {
            far.write_all(&more).await;
            far.finish();
        };
        let ((), (got, error)) = tokio::join!(send, read_all(&mut socket));
        assert_eq!((got == more, error), (true, None));
    });
}

/// Writes for as long as anybody takes it.
async fn far_from_done(socket: &mut TcpStream) {
    while socket.write_all(&[3; 10_000]).await.is_ok() {}
}

#[test]
fn an_idle_stream_holds_nothing() {
    both_sides(|side| async move {
        // The peer takes 64 KiB on all streams together.
        let shared = tunnel(side, Options { connection_window: 65_535 }).await;
        let mut idle = Vec::new();
        for seed in 0..20 {
            let mut one = between_in(&shared).await;
            let (out, back) = (noise(50_000, seed), noise(50_000, seed));
            let socket = async {
                one.socket.write_all(&out).await.expect("write");
                let mut got = vec![0; back.len()];
                one.socket.read_exact(&mut got).await.expect("read");
                assert!(got == back);
            };
            let far = async {
                assert!(one.far.read(out.len()).await == out);
                one.far.write_all(&back).await;
            };
            tokio::join!(socket, far);
            idle.push(one);
        }
        // If only one of them kept a buffer's worth of capacity, nothing would be left for the next.
        eventually(|| buffers::lent() == 0).await;
        assert_eq!(shared.tunnel.buffered(), 0);
        for one in &mut idle {
            one.socket.write_all(&[1; 60_000]).await.expect("write");
            assert!(one.far.read(60_000).await.iter().all(|byte| *byte == 1));
        }
        for one in idle {
            one.relay.abort();
        }
    });
}

#[test]
fn the_relay_itself_is_small() {
    both_sides(|side| async move {
        let shared = tunnel(side, Options::default()).await;
        let (mut stream, _far) = shared.stream().await;
        let (socket, _app) = peer::socket_pair().await;
        let entry = peer::entry();
        let options =
            RelayOptions { zero_copy: true, reset_flush: Duration::from_secs(1), keepalive: Keepalive::default() };
        let future = relay_stream(&socket, &mut stream, side, &entry, &options);
        assert!(size_of_val(&future) <= 512, "{} bytes", size_of_val(&future));
        drop(future);
        assert!(size_of::<Stream>() <= 128, "{} bytes", size_of::<Stream>());
    });
}

#[test]
fn a_stream_that_is_dropped_unfinished_is_cancelled() {
    both_sides(|side| async move {
        let shared = tunnel(side, Options::default()).await;
        let (stream, mut far) = shared.stream().await;
        drop(stream);
        assert_eq!(far.read_all().await, (Vec::new(), code(Reason::CANCEL)));
    });
}

/// What is sent ahead comes first, whole, and is not the connection's.
#[test]
fn what_is_sent_first_does_not_count() {
    both_sides(|side| async move {
        for length in [0, 1, 52, 4112, 200_000] {
            let shared = tunnel(side, Options::default()).await;
            let (mut stream, mut far) = shared.stream().await;
            let (ahead, own) = (noise(length, 3), noise(1000, 4));
            stream.send_first(&ahead).await.expect("sent");
            assert_eq!((stream.take_moved(), stream.queued()), (0, 0), "{length} bytes ahead");
            let mut buffer = buffers::lend();
            buffer[..own.len()].copy_from_slice(&own);
            poll_fn(|cx| stream.poll_capacity(cx)).await.expect("capacity");
            stream.send(buffer, own.len()).expect("send");
            stream.finish().expect("finish");
            let got = far.read_all().await;
            assert!(got.0 == [ahead, own].concat(), "{length} bytes ahead");
            poll_fn(|cx| stream.poll_taken(cx)).await.expect("taken");
            assert_eq!(stream.take_moved(), 1000);
        }
    });
}

#[test]
fn nothing_is_sent_first_into_a_stream_that_is_over() {
    both_sides(|side| async move {
        let shared = tunnel(side, Options::default()).await;
        let (mut stream, mut far) = shared.stream().await;
        far.send.send_reset(Reason::CANCEL);
        poll_fn(|cx| match stream.poll_receive(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            _ => Poll::Pending,
        })
        .await;
        assert!(stream.send_first(b"PROXY UNKNOWN\r\n").await.is_err());
    });
}
