//! What goes wrong, who learns of it, and when.

use super::*;
use crate::telemetry::CloseReason;

async fn reason(world: &World, key: &TunnelKey) -> CloseReason {
    world.open(key).await.expect_err("cannot work").close_reason()
}

#[test]
fn a_failure_wakes_everybody_who_waited_for_it() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        peer.stop_listening().await;
        let key = key(peer.address);
        for result in world.open_many(&[&key; 500]).await {
            let error = result.expect_err("nobody listens");
            assert_eq!((error.close_reason(), error.retryable()), (CloseReason::ConnectRefused, true));
        }
        assert_eq!(world.pool.keys(), 0);
        assert!(world.tunnels.is_empty());
    });
}

#[test]
fn each_step_has_its_deadline() {
    on_worker(|| async {
        let mut world = World::new();
        let usual = world.limits.clone();
        world.limits.handshake_timeout = Duration::from_millis(200);
        let peer = world.peer();
        let key = key(peer.address);
        for (manners, connections) in [(Manners::NoTls, 1), (Manners::NoSettings, 2)] {
            peer.manners.set(manners);
            let started = Instant::now();
            assert_eq!(reason(&world, &key).await, CloseReason::TunnelHandshakeTimeout);
            assert!(started.elapsed() >= Duration::from_millis(200));
            assert_eq!(peer.connections(), connections, "it is not tried again");
            until("nothing is left", || world.tunnels.is_empty() && world.pool.keys() == 0).await;
            assert_eq!(world.failures(), [("timeout", connections as u64)], "wherever it got stuck");
        }
        peer.manners.set(Manners::Good);
        world.limits = usual.clone();
        drop(world.open(&key).await.expect("opened"));
        peer.always.set(Answer::Nothing);
        world.limits = Limits { response_timeout: Duration::from_millis(200), ..usual.clone() };
        assert_eq!(reason(&world, &key).await, CloseReason::TunnelResponseTimeout);
        until("the request is taken back", || peer.streams() == 0 && world.streams() == 0).await;
        peer.always.set(Answer::Ok);
        world.limits = usual;
        drop(world.open(&key).await.expect("in a tunnel that was heard since"));
        assert_eq!(peer.connections(), 4);
        // Now the other one speaks again, and is good again.
        peer.link(2).limit(50);
        until("it is heard", || {
            world.pool.rows().iter().flat_map(|row| row.clients()).all(|client| !client.is_doubtful())
        })
        .await;
        let total = peer.link(2).total.get();
        drop(world.open(&key).await.expect("opened"));
        assert_eq!((peer.connections(), peer.link(2).total.get()), (4, total + 1));
    });
}

#[test]
fn a_full_backlog_is_a_connect_timeout() {
    on_worker(|| async {
        let mut world = World::new();
        world.limits.connect_timeout = Duration::from_millis(200);
        // Nobody accepts, and there is room for no one.
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("bind");
        listener.listen(0).expect("listen");
        let address = listener.local_addr().expect("address").as_socket().expect("ip");
        let fill = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
            let done = socket.connect_timeout(&address.into(), Duration::from_millis(50)).is_ok();
            (socket, done)
        };
        let mut held = Vec::new();
        loop {
            let (socket, done) = fill();
            held.push(socket);
            if !done {
                break;
            }
        }
        assert_eq!(reason(&world, &key(address)).await, CloseReason::TunnelConnectTimeout);
    });
}

#[test]
fn the_callers_deadline_is_above_all() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        peer.manners.set(Manners::NoTls);
        let within = Duration::from_millis(1500);
        let error = world.open_until(&key(peer.address), within).await.expect_err("a black hole");
        assert_eq!(error.close_reason(), CloseReason::TunnelHandshakeTimeout);
        peer.manners.set(Manners::Good);
        peer.always.set(Answer::Nothing);
        let error = world.open_until(&key_of(peer.address, 2, ""), within).await.expect_err("no answer");
        assert_eq!(error.close_reason(), CloseReason::TunnelResponseTimeout);
    });
}

#[test]
fn without_an_identity_one_waits_for_it() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let key = key(peer.address);
        let ours = world.tls.send_replace(None);
        let error = world.open_until(&key, Duration::from_millis(100)).await.expect_err("no identity");
        assert!(matches!(error, OpenError::NoIdentity));
        assert_eq!((peer.connections(), world.pool.keys()), (0, 0));
        let (opened, ()) = tokio::join!(world.open(&key), async {
            tokio::task::yield_now().await;
            world.tls.send_replace(ours);
        });
        drop(opened.expect("opened"));
    });
}

#[test]
fn an_expired_identity_is_none() {
    on_worker(|| async {
        let World { authority, tls, limits, .. } = World::new();
        let peer = Peer::start(&generation(&authority, 1, "server"));
        let days = Arc::new(std::sync::atomic::AtomicU32::new(2));
        let now = Arc::clone(&days);
        let clock: Clock = Arc::new(move || SystemTime::now() + DAY * now.load(std::sync::atomic::Ordering::Relaxed));
        let parts = Parts {
            dial: Rc::new(dial_out(&Budget::new(u64::MAX, 0))),
            tls: tls.subscribe(),
            tunnels: Tunnels::new(Arc::default()),
            clock,
            idle_tunnels: 1,
            books: Books::default(),
        };
        let pool = Pool::new(parts);
        let open = async |within| {
            let by = tokio::time::Instant::now() + within;
            pool.open(&key(peer.address), request(), &limits, by).await
        };
        let error = open(Duration::from_millis(50)).await.expect_err("expired");
        assert!(matches!(error, OpenError::NoIdentity));
        days.store(0, std::sync::atomic::Ordering::Relaxed);
        assert!(open(Duration::from_secs(20)).await.is_ok());
    });
}

/// As any socket of the data path: its descriptor is accounted for, and a peer that is gone without a word is noticed.
#[test]
fn a_tunnels_socket_counts_and_is_watched() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let budget = Budget::new(34, 0);
        let dial = dial_out(&budget);
        let wanted = Settings::default().keepalive;
        let sockets = [dial.dial(peer.address).await.expect("one"), dial.dial(peer.address).await.expect("two")];
        for socket in &sockets {
            let socket = socket2::SockRef::from(&socket.dialled.stream);
            assert!(socket.keepalive().expect("keepalive"));
            assert_eq!(socket.tcp_keepalive_time().expect("time"), wanted.idle);
            assert_eq!(socket.tcp_keepalive_interval().expect("interval"), wanted.interval);
            assert_eq!(socket.tcp_keepalive_retries().expect("retries"), wanted.probes.get());
            assert_eq!(socket.tcp_user_timeout().expect("user timeout"), wanted.user_timeout);
        }
        assert_eq!(budget.used(), 2);
        let error = dial.dial(peer.address).await.expect_err("nothing is left");
        assert_eq!(error.close_reason(), CloseReason::ConnectError);
        drop(sockets);
        assert_eq!(budget.used(), 0);
    });
}

#[test]
fn a_peer_that_is_somebody_else_is_refused() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let wanted: Arc<[SpiffeId]> = [id("another")].into();
        let key = TunnelKey::new(peer.address, wanted, Ipv4Addr::LOCALHOST.into(), "uid".into());
        assert_eq!(reason(&world, &key).await, CloseReason::PeerRefused);
        assert_eq!((peer.connections(), world.pool.keys()), (1, 0));
    });
}

#[test]
fn a_peer_that_refuses_us_says_so() {
    on_worker(|| async {
        let world = World::new();
        // It trusts another root; we trust its own, so only its side fails.
        let foreign = authority();
        let theirs = {
            let (now, id) = (SystemTime::now(), id("server"));
            let issued = world.authority.issue(&id, now, DAY).expect("leaf");
            let revoked = Arc::new(RevocationSet::read([]).expect("no lists"));
            let roots = [foreign.certificate(), world.authority.certificate()];
            let bundle = Arc::new(TrustBundle::new(roots, revoked).expect("bundle"));
            let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("key");
            let credentials = Credentials::new(vec![issued.certificate], &key, bundle, &id, now).expect("credentials");
            let accepted = Arc::from(["elsewhere".parse().expect("domain")]);
            Arc::new(TlsGeneration::new(1, Arc::new(credentials), accepted, &system_clock()).expect("tls"))
        };
        let peer = Peer::start(&theirs);
        let key = key(peer.address);
        for result in world.open_many(&[&key; 20]).await {
            let error = result.expect_err("refused");
            assert_eq!(error.close_reason(), CloseReason::TlsFailed, "{error:?}");
        }
        assert_eq!(peer.connections(), 1, "all learn it from one attempt");
        assert_eq!(world.failures(), [("alert", 1)]);
    });
}

/// The connection is still being seen off then.
#[test]
fn those_who_wait_learn_at_once_that_a_tunnel_has_failed() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        peer.manners.set(Manners::NoSettings);
        let key = key(peer.address);
        let (first, (second, tunnels), ()) =
            tokio::join!(world.open(&key), async { (world.open(&key).await, world.tunnels.len()) }, async {
                until("its request is there", || world.streams() == 1 && peer.connections() == 1).await;
                peer.link(0).say_nonsense();
            });
        assert!(matches!(first, Err(OpenError::Http2)), "{first:?}");
        assert!(matches!(second, Err(OpenError::Http2)), "{second:?}");
        assert_eq!((tunnels, peer.connections()), (1, 1));
        until("nothing is left", || world.tunnels.is_empty() && world.pool.keys() == 0).await;
    });
}

#[test]
fn another_answer_than_200_is_final_here() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let key = key(peer.address);
        peer.answers.borrow_mut().extend([Answer::Error, Answer::Reset(8)]);
        let error = world.open(&key).await.expect_err("500");
        assert!(matches!(&error, OpenError::Refused { status, .. } if status.as_u16() == 500));
        assert_eq!((error.close_reason(), error.retryable()), (CloseReason::TunnelRefused, true));
        let error = world.open(&key).await.expect_err("reset");
        assert!(matches!(error, OpenError::Reset { code: 8 }));
        drop(world.open(&key).await.expect("opened"));
        assert_eq!(peer.connections(), 1);
    });
}

#[test]
fn a_request_that_was_not_taken_is_made_once_more_in_a_fresh_tunnel() {
    for refusal in [Answer::Reset(REFUSED_STREAM), Answer::Close] {
        on_worker(|| async move {
            let world = World::new();
            let peer = world.peer();
            let key = key(peer.address);
            let held = world.open(&key).await.expect("opened");
            peer.answers.borrow_mut().push_back(refusal);
            let again = world.open(&key).await.expect("in a fresh one");
            assert_eq!(peer.connections(), 2);
            assert!(!Rc::ptr_eq(&held.tunnel, &again.tunnel), "{refusal:?}");
            drop((held, again));
            // But not more often.
            peer.always.set(refusal);
            let error = world.open(&key).await.expect_err("refused twice");
            assert!(error.retryable() && peer.connections() <= 4, "{error:?}");
            until("no stream is left", || world.streams() == 0).await;
        });
    }
}

#[test]
fn a_tunnel_that_died_unnoticed_costs_nobody_a_stream() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let key = key(peer.address);
        for round in 1..=10 {
            drop(world.open(&key).await.expect("opened"));
            assert_eq!(peer.connections(), round);
            peer.link(round - 1).close();
        }
    });
}

#[test]
fn a_goodbye_that_crosses_a_request_costs_nobody_a_stream() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let key = key(peer.address);
        let held = world.open(&key).await.expect("opened");
        peer.always.set(Answer::Nothing);
        let (opened, ()) = tokio::join!(world.open(&key), async {
            until("the request is there", || peer.streams() == 2).await;
            peer.always.set(Answer::Ok);
            peer.link(0).say_goodbye(1);
        });
        drop(opened.expect("in a fresh tunnel"));
        assert_eq!(peer.connections(), 2);
        assert!(held.tunnel.end().is_none(), "the other stream goes on");
    });
}

#[test]
fn a_peer_that_takes_no_streams_fails_in_time() {
    on_worker(|| async {
        let mut world = World::new();
        world.limits.handshake_timeout = Duration::from_secs(2);
        let peer = world.peer();
        peer.limit.set(Some(0));
        peer.always.set(Answer::Nothing);
        let key = key(peer.address);
        let results = world.open_many(&[&key; 50]).await;
        let none = results.iter().filter(|result| matches!(result, Err(OpenError::NoStreams))).count();
        assert!(none >= 49 && results.iter().all(Result::is_err), "{none}");
        assert!(peer.connections() <= 2, "{}", peer.connections());
        until("nothing is left", || world.tunnels.is_empty() && world.pool.keys() == 0).await;
    });
}

#[test]
fn whoever_leaves_takes_nobody_along() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let key = key(peer.address);
        let mut leaving = Box::pin(world.open(&key));
        let mut staying = Box::pin(world.open(&key));
        // Both have asked.
        assert!(futures_pending(&mut leaving).await && futures_pending(&mut staying).await);
        drop(leaving);
        drop(staying.await.expect("opened"));
        assert_eq!(peer.connections(), 1);
        // All leave: what is under way is still made, and is there for the next.
        let key = key_of(peer.address, 7, "uid");
        let mut leaving = Box::pin(world.open(&key));
        assert!(futures_pending(&mut leaving).await);
        drop(leaving);
        until("the tunnel is made", || world.tunnels.len() == 2).await;
        drop(world.open(&key).await.expect("opened"));
        assert_eq!(peer.connections(), 2);
        until("no stream is left", || world.streams() == 0 && peer.streams() == 0).await;
    });
}

#[test]
fn a_place_that_is_given_back_unused_goes_to_the_next() {
    on_worker(|| async {
        let world = World::new().max_streams(2);
        let peer = world.peer();
        let key = key(peer.address);
        let _held = world.open(&key).await.expect("opened");
        let ending = world.open(&key).await.expect("opened");
        let tunnel = Rc::clone(&ending.tunnel);
        // No second tunnel comes to be.
        peer.manners.set(Manners::NoTls);
        let mut leaving = Box::pin(world.open(&key));
        let mut staying = Box::pin(world.open(&key));
        assert!(futures_pending(&mut leaving).await && futures_pending(&mut staying).await);
        drop(ending);
        until("the place is handed over", || tunnel.carried() == 3).await;
        drop(leaving);
        assert!(Rc::ptr_eq(&staying.await.expect("opened").tunnel, &tunnel));
        assert_eq!(tunnel.carried(), 4);
    });
}

/// Polls once; whether there is nothing yet.
async fn futures_pending<F: Future + Unpin>(future: &mut F) -> bool {
    poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())).await
}

#[test]
fn a_thousand_aborts_leave_nothing_behind() {
    on_worker(|| async {
        let mut world = World::new();
        // All streams together fit the tunnel: none starves while the others are not read.
        world.limits.stream_window = NonZeroU32::new(256 << 10).expect("not zero");
        let address = start_flood(&generation(&world.authority, 1, "server"));
        let key = key(address);
        for _ in 0..20 {
            let mut opened = all(world.open_many(&[&key; 50]).await);
            for opened in &mut opened {
                let data = received(&mut opened.stream).await.expect("bytes").expect("no reset");
                assert!(!data.is_empty());
            }
            // In the middle of it: dropped without a word.
        }
        // Before the answer, too.
        for _ in 0..100 {
            let mut leaving = Box::pin(world.open(&key));
            assert!(futures_pending(&mut leaving).await);
        }
        until("no stream is left", || world.streams() == 0).await;
        let mut opened = world.open(&key).await.expect("opened");
        assert!(received(&mut opened.stream).await.expect("bytes").is_ok());
        assert_eq!(world.tunnels.len(), 1, "still the first");
        assert!(opened.tunnel.carried() >= 1000);
    });
}

/// The handshake is verified by the old lists, and whoever judges live tunnels by the new ones has not seen this one.
#[test]
fn who_is_revoked_while_the_tunnel_is_made_gets_no_stream() {
    on_worker(|| async {
        let world = World::new();
        let theirs = generation(&world.authority, 1, "server");
        let peer = Peer::start(&theirs);
        let serial = theirs.credentials.leaf().serial_bytes();
        let list = world.authority.revoke(&[serial], SystemTime::now(), DAY).expect("a list");
        let key = key(peer.address);
        let mut asking = Box::pin(world.open(&key));
        assert!(poll_fn(|cx| std::task::Poll::Ready(asking.as_mut().poll(cx).is_pending())).await);
        world.tls.send_replace(Some(generation_with(&world.authority, 2, "client", &list)));
        let error = asking.await.expect_err("it is revoked");
        assert!(matches!(error, OpenError::Lost { end: Some(TunnelEnd::Revoked) }), "{error}");
        assert_eq!(error.close_reason(), CloseReason::PeerRevoked);
        until("nothing is left", || world.tunnels.is_empty() && world.pool.keys() == 0).await;
        assert_eq!(peer.link(0).total.get(), 0, "nothing was asked of it");
    });
}

/// Whoever has asked and has no answer yet is told the same as those who have one.
#[test]
fn what_is_cut_before_its_answer_says_why() {
    for (end, reason) in
        [(TunnelEnd::Revoked, CloseReason::PeerRevoked), (TunnelEnd::Untrusted, CloseReason::PeerUntrusted)]
    {
        on_worker(|| async move {
            let world = World::new();
            let peer = world.peer();
            let key = key(peer.address);
            let held = world.open(&key).await.expect("opened");
            peer.always.set(Answer::Nothing);
            let (failed, ()) = tokio::join!(world.open(&key), async {
                until("the request is there", || peer.streams() == 2).await;
                held.tunnel.cut(end);
            });
            assert_eq!(failed.expect_err("cut").close_reason(), reason);
            assert_eq!(peer.connections(), 1, "nobody asks again whom one must not ask");
        });
    }
}
