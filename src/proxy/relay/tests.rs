//! The relay over real loopback sockets: a client and a server, and the relay between them.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::*;
use crate::net::address::PeerAddr;
use crate::net::descriptors::Budget;
use crate::net::listen::{ListenOptions, bind};
use crate::proxy::registry::{Registered, Registry};
use crate::telemetry::Door;

mod turns;

const LIMIT: Duration = Duration::from_secs(30);

struct Between {
    client: TcpStream,
    server: TcpStream,
    entry: Rc<Registered>,
    pool: Rc<Pool>,
    budget: Budget,
    relay: tokio::task::JoinHandle<Outcome>,
}

async fn socket_pair() -> (TcpStream, TcpStream) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = bind("test", any, ListenOptions::PLAIN).expect("bind").remove(0);
    let address = listener.local_addr().expect("address");
    let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
    let socket = tokio::net::TcpSocket::new_v4().expect("socket");
    let (client, accepted) = tokio::join!(socket.connect(address), listener.accept());
    (client.expect("connect"), accepted.expect("accept").0)
}

async fn between(zero_copy: bool) -> Between {
    let (client, downstream) = socket_pair().await;
    let (upstream, server) = socket_pair().await;
    let budget = Budget::new(10_000, 0);
    let pool = Pool::new(budget.clone());
    let registry = Rc::new(Registry::new(0));
    let peer = PeerAddr::new(client.local_addr().expect("address"));
    let entry = Rc::new(registry.register(Door::Outbound, peer, Rc::default()));
    // Long enough for a reader that the machine holds up.
    let options = RelayOptions { zero_copy, reset_flush: Duration::from_secs(15), keepalive: Keepalive::default() };
    let relay = {
        let (entry, pool) = (Rc::clone(&entry), Rc::clone(&pool));
        tokio::task::spawn_local(async move {
            let sockets = Sockets { downstream, upstream };
            relay(&sockets, &entry, &pool, &options).await
        })
    };
    Between { client, server, entry, pool, budget, relay }
}

/// Runs `test` with splice off and on, with a time limit.
fn both_ways<F: Future<Output = ()>>(test: impl Fn(bool) -> F) {
    for zero_copy in [false, true] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        LocalSet::new().block_on(&runtime, async {
            timeout(LIMIT, test(zero_copy)).await.unwrap_or_else(|_| panic!("time is up, zero_copy {zero_copy}"));
        });
    }
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut noise = vec![0; bytes];
    random.fill(&mut noise);
    noise
}

async fn read_all(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut all = Vec::new();
    let error = stream.read_to_end(&mut all).await.err().map(|error| error.kind());
    (all, error)
}

#[test]
fn half_close_is_half_close_and_every_byte_arrives() {
    both_ways(|zero_copy| async move {
        let Between { mut client, mut server, entry, pool, budget, relay } = between(zero_copy).await;
        let (up, down) = (noise(8 << 20, 1), noise(8 << 20, 2));
        // The server answers only after the client's FIN has arrived.
        let server_side = async {
            let (got, error) = read_all(&mut server).await;
            assert_eq!((got == up, error), (true, None));
            server.write_all(&down).await.expect("write");
            server.shutdown().await.expect("shutdown");
        };
        let client_side = async {
            client.write_all(&up).await.expect("write");
            client.shutdown().await.expect("shutdown");
            let (got, error) = read_all(&mut client).await;
            assert_eq!((got == down, error), (true, None));
        };
        tokio::join!(server_side, client_side);
        assert_eq!(relay.await.expect("relay"), Outcome::Finished);
        assert_eq!((entry.bytes(Direction::Up), entry.bytes(Direction::Down)), (8 << 20, 8 << 20));
        drop(entry);
        pool.shrink();
        for _ in 0..8 {
            pool.shrink();
        }
        assert_eq!(budget.used(), 0, "no pipe is left behind");
    });
}

#[test]
fn large_messages_are_spliced_and_small_ones_copied() {
    both_ways(|zero_copy| async move {
        for (size, is_large) in [(4 * 1024, false), (16 * 1024, true)] {
            let Between { mut client, mut server, budget, relay, .. } = between(zero_copy).await;
            let (sent, mut received) = (noise(size, 1), vec![0; size]);
            // One after the other, so that each is a read of its own.
            for _ in 0..4 {
                client.write_all(&sent).await.expect("send");
                server.read_exact(&mut received).await.expect("receive");
                assert!(received == sent);
            }
            assert_eq!(budget.used() > 0, zero_copy && is_large, "a pipe for messages of {size}");
            drop((client, server));
            relay.await.expect("relay");
        }
    });
}

/// Writes the pieces, with a pause now and then, and ends; meanwhile reads `want` in pieces of `most` until the end.
async fn converse(stream: TcpStream, pieces: Vec<Vec<u8>>, most: usize, want: Vec<u8>) -> bool {
    let (mut read, mut write) = stream.into_split();
    let writer = async {
        for piece in pieces {
            write.write_all(&piece).await.expect("write");
            tokio::task::yield_now().await;
        }
        write.shutdown().await.expect("shutdown");
    };
    let reader = async {
        let (mut got, mut buffer) = (Vec::new(), vec![0; most]);
        loop {
            match read.read(&mut buffer).await.expect("read") {
                0 => return got == want,
                count => got.extend_from_slice(&buffer[..count]),
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(writer, reader).1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However it is cut, and by whichever way it goes, what arrives is what was sent.
    #[test]
    fn the_copy_conserves_bytes(
        zero_copy: bool,
        up in prop::collection::vec(1..150_000_usize, 0..12),
        down in prop::collection::vec(1..150_000_usize, 0..12),
        at_server in 1_000..200_000_usize,
        at_client in 1_000..200_000_usize,
        seed: u64,
    ) {
        let pieces = |sizes: &[usize], seed: u64| -> Vec<Vec<u8>> {
            (seed..).zip(sizes).map(|(seed, size)| noise(*size, seed)).collect()
        };
        let (up, down) = (pieces(&up, seed / 2), pieces(&down, seed / 3));
        let (all_up, all_down) = (up.concat(), down.concat());
        let lengths = (all_up.len() as u64, all_down.len() as u64);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let exchange = async {
            let Between { client, server, entry, relay, .. } = between(zero_copy).await;
            let arrived = tokio::join!(
                converse(client, up, at_client, all_down),
                converse(server, down, at_server, all_up),
            );
            let outcome = relay.await.expect("relay");
            (arrived, outcome, (entry.bytes(Direction::Up), entry.bytes(Direction::Down)))
        };
        let exchanged = LocalSet::new().block_on(&runtime, async { timeout(LIMIT, exchange).await });
        prop_assert_eq!(exchanged.expect("in time"), ((true, true), Outcome::Finished, lengths));
    }
}

#[test]
fn both_ways_at_once_carries_the_same_bytes() {
    both_ways(|zero_copy| async move {
        let Between { client, server, relay, .. } = between(zero_copy).await;
        let (up, down) = (noise(3_000_000, 3), noise(5_000_000, 4));
        let exchange = |stream: TcpStream, send: Vec<u8>| async move {
            let (mut read, mut write) = stream.into_split();
            let writer = async {
                write.write_all(&send).await.expect("write");
                write.shutdown().await.expect("shutdown");
            };
            let mut got = Vec::new();
            let (result, ()) = tokio::join!(read.read_to_end(&mut got), writer);
            result.expect("read");
            got
        };
        let (at_client, at_server) = tokio::join!(exchange(client, up.clone()), exchange(server, down.clone()));
        assert!(at_client == down && at_server == up);
        assert_eq!(relay.await.expect("relay"), Outcome::Finished);
    });
}

#[test]
fn a_reset_is_a_reset_after_everything_before_it() {
    both_ways(|zero_copy| async move {
        for server_resets in [true, false] {
            let Between { client, server, relay, .. } = between(zero_copy).await;
            let (mut sender, mut receiver) = if server_resets { (server, client) } else { (client, server) };
            let data = noise(400_000, 5);
            let send = async {
                sender.write_all(&data).await.expect("write");
                // Everything must have left for the relay before the reset discards it here.
                finish::acknowledged(&sender).await;
                reset(sender);
            };
            // A reader that starts late still gets all of it.
            let receive = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                read_all(&mut receiver).await
            };
            let ((), (got, error)) = tokio::join!(send, receive);
            assert_eq!((got.len(), error), (data.len(), Some(ErrorKind::ConnectionReset)));
            assert!(got == data);
            let side = if server_resets { Side::Upstream } else { Side::Downstream };
            let outcome = relay.await.expect("relay");
            assert!(matches!(outcome, Outcome::Broken { side: s, .. } if s == side), "{outcome:?}");
        }
    });
}

#[test]
fn data_and_fin_before_a_reset_stay_a_clean_end() {
    both_ways(|zero_copy| async move {
        let Between { mut client, mut server, relay, .. } = between(zero_copy).await;
        let data = noise(400_000, 6);
        let send = async {
            server.write_all(&data).await.expect("write");
            server.shutdown().await.expect("shutdown");
            finish::acknowledged(&server).await;
            reset(server);
        };
        let ((), (got, error)) = tokio::join!(send, read_all(&mut client));
        assert_eq!((got == data, error), (true, None), "a clean end");
        assert_eq!(relay.await.expect("relay").close_reason(), CloseReason::UpstreamReset);
    });
}

#[test]
fn a_reset_after_the_other_half_has_ended_is_noticed_while_idle() {
    both_ways(|zero_copy| async move {
        let Between { mut client, mut server, relay, .. } = between(zero_copy).await;
        client.shutdown().await.expect("shutdown");
        assert_eq!(server.read(&mut [0; 8]).await.expect("read"), 0);
        // Nothing is being written anywhere when the client goes away for good.
        reset(client);
        let error = server.read(&mut [0; 8]).await;
        // The FIN came first, so reading ends cleanly; writing shows that the connection is gone.
        assert!(matches!(error, Ok(0)), "{error:?}");
        assert_eq!(relay.await.expect("relay").close_reason(), CloseReason::DownstreamReset);
        let gone = async {
            loop {
                if let Err(error) = server.write(b"x").await {
                    return error.kind();
                }
                tokio::task::yield_now().await;
            }
        };
        assert!(matches!(gone.await, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset));
    });
}

#[test]
fn what_adit_ends_is_a_reset_on_both_sides() {
    both_ways(|zero_copy| async move {
        let Between { mut client, mut server, entry, relay, .. } = between(zero_copy).await;
        client.write_all(b"hello").await.expect("write");
        let mut got = [0; 5];
        server.read_exact(&mut got).await.expect("read");
        entry.kill(CloseReason::Drain);
        assert_eq!(relay.await.expect("relay"), Outcome::Killed(CloseReason::Drain));
        for stream in [&mut client, &mut server] {
            let error = stream.read(&mut [0; 8]).await.expect_err("not a clean end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn a_reader_that_pauses_holds_its_sender_back_and_loses_nothing() {
    both_ways(|zero_copy| async move {
        let Between { mut client, mut server, entry, relay, .. } = between(zero_copy).await;
        let data = noise(32 << 20, 7);
        let send = async {
            client.write_all(&data).await.expect("write");
            client.shutdown().await.expect("shutdown");
        };
        let receive = async {
            while entry.blocked_for(Direction::Up, std::time::Instant::now()).is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(entry.bytes(Direction::Up) < data.len() as u64);
            let (got, error) = read_all(&mut server).await;
            assert_eq!((got == data, error), (true, None));
            server.shutdown().await.expect("shutdown");
        };
        tokio::join!(send, receive);
        assert_eq!(relay.await.expect("relay"), Outcome::Finished);
    });
}

#[test]
fn a_reset_is_noticed_while_the_other_side_takes_nothing() {
    both_ways(|zero_copy| async move {
        for by_client in [true, false] {
            let Between { client, server, entry, relay, .. } = between(zero_copy).await;
            let (mut going, mut staying, direction) =
                if by_client { (client, server, Direction::Up) } else { (server, client, Direction::Down) };
            let data = vec![7; 1 << 20];
            // Until the relay holds bytes that nobody takes; what it has not read is lost with the reset.
            while !entry.is_blocked(direction) {
                let _full = timeout(Duration::from_millis(10), going.write_all(&data)).await;
            }
            reset(going);
            timeout(Duration::from_secs(5), async {
                while entry.state() != State::Flushing {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
            .await
            .expect("the reset is noticed though nobody reads");
            let (_, error) = read_all(&mut staying).await;
            assert_eq!(error, Some(ErrorKind::ConnectionReset), "after what came before it");
            let side = if by_client { Side::Downstream } else { Side::Upstream };
            let outcome = relay.await.expect("relay");
            assert!(matches!(outcome, Outcome::Broken { side: s, .. } if s == side), "{outcome:?}");
        }
    });
}

#[test]
fn an_idle_relay_is_small_and_holds_nothing() {
    both_ways(|zero_copy| async move {
        let Between { mut client, mut server, pool, budget, relay, .. } = between(zero_copy).await;
        client.write_all(&noise(1 << 20, 8)).await.expect("write");
        let mut got = vec![0; 1 << 20];
        server.read_exact(&mut got).await.expect("read");
        tokio::task::yield_now().await;
        for _ in 0..8 {
            pool.shrink();
        }
        assert_eq!(budget.used(), 0, "an idle relay holds a pipe");
        relay.abort();
    });
}

#[tokio::test]
async fn the_relay_itself_is_small() {
    let (downstream, _client) = socket_pair().await;
    let (upstream, _server) = socket_pair().await;
    let registry = Rc::new(Registry::new(0));
    let entry =
        registry.register(Door::Outbound, PeerAddr::new(upstream.local_addr().expect("address")), Rc::default());
    let pool = Pool::new(Budget::new(1000, 0));
    let options =
        RelayOptions { zero_copy: true, reset_flush: Duration::from_secs(1), keepalive: Keepalive::default() };
    let sockets = Sockets { downstream, upstream };
    let future = relay(&sockets, &entry, &pool, &options);
    assert!(size_of_val(&future) <= 512, "{} bytes", size_of_val(&future));
}

#[test]
fn outcomes_become_close_reasons() {
    let broken = |side, errno: Errno| Outcome::Broken { side, errno: Some(errno.raw_os_error()) }.close_reason();
    for (side, errno, want) in [
        (Side::Downstream, Errno::CONNRESET, CloseReason::DownstreamReset),
        (Side::Upstream, Errno::PIPE, CloseReason::UpstreamReset),
        (Side::Upstream, Errno::TIMEDOUT, CloseReason::UpstreamUserTimeout),
        (Side::Downstream, Errno::HOSTUNREACH, CloseReason::DownstreamUserTimeout),
        (Side::Downstream, Errno::NOMEM, CloseReason::DownstreamError),
        (Side::Upstream, Errno::NOMEM, CloseReason::UpstreamError),
    ] {
        assert_eq!(broken(side, errno), want);
    }
    assert_eq!(Outcome::Finished.close_reason(), CloseReason::Finished);
    let _: io::Error = Errno::PIPE.into();
}
