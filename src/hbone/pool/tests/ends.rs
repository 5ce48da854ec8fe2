//! How tunnels leave the pool, and how they end.

use super::*;

#[test]
fn after_a_goodbye_there_is_a_new_tunnel_and_the_old_streams_go_on() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let key = key(peer.address);
        let held = world.open(&key).await.expect("opened");
        // As a graceful server does: first without a number, then with one.
        peer.link(0).say_goodbye((1 << 31) - 1);
        until("it is heard", || held.tunnel.retiring() == Some(TunnelEnd::PeerClosed)).await;
        let next = world.open(&key).await.expect("opened");
        assert!(!Rc::ptr_eq(&held.tunnel, &next.tunnel));
        peer.link(0).say_goodbye(1);
        assert_eq!((peer.streams(), held.tunnel.end()), (2, None));
        drop(held);
        until("it ends with its last stream", || peer.link(0).end.get() == Some(true)).await;
        assert!(peer.link(1).end.get().is_none());
    });
}

#[test]
fn an_idle_tunnel_is_released_politely() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let key = key(peer.address);
        let tunnel = world.open(&key).await.expect("opened").tunnel;
        until("it is idle", || tunnel.idle(Instant::now()).is_some()).await;
        world.sweep_after(298);
        assert_eq!((tunnel.retiring(), world.pool.keys()), (None, 1));
        world.sweep_after(301);
        until("it is closed", || peer.link(0).end.get() == Some(true)).await;
        assert!(peer.link(0).goaway.get());
        assert_eq!((tunnel.end(), world.pool.keys(), world.tunnels.len()), (Some(TunnelEnd::Idle), 0, 0));
    });
}

#[test]
fn a_busy_tunnel_never_falls_out_of_the_pool() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let key = key(peer.address);
        let held = world.open(&key).await.expect("opened");
        for _ in 0..5 {
            world.sweep_after(100_000);
            drop(world.open(&key).await.expect("opened"));
        }
        assert_eq!((peer.connections(), held.tunnel.retiring()), (1, None));
        // Idle counts from the end of the last stream.
        let tunnel = Rc::clone(&held.tunnel);
        drop(held);
        world.sweep_after(298);
        assert_eq!(tunnel.retiring(), None);
        world.sweep_after(301);
        until("it is closed", || tunnel.end() == Some(TunnelEnd::Idle)).await;
    });
}

#[test]
fn more_idle_tunnels_than_allowed_go_early() {
    on_worker(|| async {
        let world = World::with_idle(3);
        let peer = world.peer();
        let mut tunnels = Vec::new();
        for client in 0..5 {
            let key = key_of(peer.address, client, "uid");
            tunnels.push(world.open(&key).await.expect("opened").tunnel);
        }
        let busy = world.open(&key_of(peer.address, 0, "uid")).await.expect("opened");
        until("the others are idle", || tunnels.iter().filter(|it| it.idle(Instant::now()).is_some()).count() == 4)
            .await;
        world.sweep_after(0);
        assert_eq!(world.pool.keys(), 4);
        until("the one that was idle longest ends", || tunnels[1].end() == Some(TunnelEnd::Idle)).await;
        assert!(Rc::ptr_eq(&busy.tunnel, &tunnels[0]) && busy.tunnel.retiring().is_none());
    });
}

/// What a burst has opened because all were full does not stay as long as the rest.
#[test]
fn idle_tunnels_beyond_those_of_a_peer_go_early() {
    on_worker(|| async {
        let mut world = World::new();
        world.limits.max_streams = 2.try_into().expect("not zero");
        world.limits.max_per_peer = 2.try_into().expect("not zero");
        let peer = world.peer();
        let key = key(peer.address);
        let mut burst = Vec::new();
        for _ in 0..10 {
            burst.push(world.open(&key).await.expect("opened"));
        }
        let mut tunnels: Vec<_> = burst.iter().map(|stream| Rc::clone(&stream.tunnel)).collect();
        tunnels.dedup_by(|one, other| Rc::ptr_eq(one, other));
        assert_eq!(tunnels.len(), 5);
        // One of the later ones is still in use.
        burst.drain(..8);
        until("four are idle", || tunnels.iter().filter(|it| it.idle(Instant::now()).is_some()).count() == 4).await;
        let open = || tunnels.iter().filter(|it| it.retiring().is_none()).count();
        world.sweep_after(3);
        assert_eq!(open(), 5);
        world.sweep_after(11);
        assert_eq!(open(), 2);
        assert!(tunnels[4].retiring().is_none(), "it has streams");
        world.sweep_after(298);
        assert_eq!(open(), 2, "the rest stays as long as ever");
    });
}

#[test]
fn old_tunnels_are_replaced_by_age() {
    on_worker(|| async {
        let mut world = World::new();
        world.limits.max_age = Some(Duration::from_secs(3600));
        let peer = world.peer();
        let key = key(peer.address);
        let held = world.open(&key).await.expect("opened");
        world.sweep_after(3500);
        assert_eq!(held.tunnel.retiring(), None);
        world.sweep_after(4000);
        assert_eq!(held.tunnel.retiring(), Some(TunnelEnd::MaxAge));
        drop(world.open(&key).await.expect("opened"));
        assert_eq!((peer.connections(), peer.streams() >= 1), (2, true));
    });
}

#[test]
fn newer_credentials_replace_tunnels_and_cut_no_stream() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let key = key(peer.address);
        let held = world.open(&key).await.expect("opened");
        let idle = world.open(&key_of(peer.address, 2, "uid")).await.expect("opened").tunnel;
        world.tls.send_replace(Some(generation(&world.authority, 2, "client")));
        world.pool.follow_generation(2);
        until("the idle one closes", || idle.end() == Some(TunnelEnd::Rotated)).await;
        let next = world.open(&key).await.expect("opened");
        assert_eq!((next.tunnel.about.generation, held.tunnel.about.generation), (2, 1));
        assert_eq!((held.tunnel.end(), peer.streams()), (None, 2));
        world.pool.follow_generation(1);
        assert!(next.tunnel.retiring().is_none(), "an older number means nothing");
        // The next open notices by itself.
        world.tls.send_replace(Some(generation(&world.authority, 3, "client")));
        drop(world.open(&key).await.expect("opened"));
        assert_eq!(next.tunnel.retiring(), Some(TunnelEnd::Rotated));
        drop(held);
        until("it ends with its last stream", || peer.link(0).end.get() == Some(true)).await;
    });
}

#[test]
fn credentials_that_change_all_the_time_fail_nobody() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let key = key(peer.address);
        let twenty = [&key; 20];
        for number in 2..12 {
            // While the tunnel of the generation before is being made.
            let (results, ()) = tokio::join!(world.open_many(&twenty), async {
                until("it is under way", || peer.connections() >= usize::try_from(number - 1).expect("small")).await;
                world.tls.send_replace(Some(generation(&world.authority, number, "client")));
                world.pool.follow_generation(number);
            });
            drop(all(results));
        }
        until("only the last is left", || world.tunnels.len() <= 1).await;
    });
}

#[test]
fn a_workload_that_is_another_one_gets_other_tunnels() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let (old, new) = (key_of(peer.address, 1, "old"), key_of(peer.address, 1, "new"));
        let idle = world.open(&old).await.expect("opened").tunnel;
        world.pool.retain(|key| &**key.uid() != "old");
        until("it is closed", || idle.end() == Some(TunnelEnd::PeerReplaced)).await;
        let next = world.open(&new).await.expect("opened");
        world.pool.retain(|key| &**key.uid() == "new" && key.address() == peer.address);
        assert_eq!((next.tunnel.retiring(), world.pool.keys(), peer.connections()), (None, 1, 2));
        // One that is under way serves those who wait, and nobody after them.
        let mut asking = Box::pin(world.open(&old));
        let once = poll_fn(|cx| std::task::Poll::Ready(asking.as_mut().poll(cx).is_pending())).await;
        assert!(once);
        world.pool.retain(|key| &**key.uid() != "old");
        let opened = asking.await.expect("opened");
        until("it is not kept", || opened.tunnel.retiring() == Some(TunnelEnd::PeerReplaced)).await;
    });
}

#[test]
fn a_silent_peer_is_noticed_within_interval_and_timeout() {
    on_worker(|| async {
        let mut world = World::new();
        world.limits.ping_interval = Duration::from_millis(100);
        world.limits.ping_timeout = Duration::from_millis(1500);
        let peer = world.peer();
        let key = key(peer.address);
        let mut held = world.open(&key).await.expect("opened");
        // It answers, and lives on.
        until("it was asked a few times", || peer.link(0).pings.get() >= 4).await;
        assert_eq!(held.tunnel.retiring(), None);
        peer.pongs.set(false);
        let silent = Instant::now();
        assert!(received(&mut held.stream).await.is_none_or(|data| data.is_err()));
        let took = silent.elapsed();
        assert!(took >= Duration::from_millis(1400) && took < Duration::from_secs(10), "{took:?}");
        assert_eq!(held.tunnel.end(), Some(TunnelEnd::PingTimeout));
        peer.pongs.set(true);
        drop(world.open(&key).await.expect("a new one"));
        assert_eq!(peer.connections(), 2);
    });
}

#[test]
fn draining_says_goodbye_and_waits_for_streams() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let (key, other) = (key(peer.address), key_of(peer.address, 2, "uid"));
        let held = world.open(&key).await.expect("opened");
        drop(world.open(&other).await.expect("opened"));
        world.pool.drain();
        until("the idle one is closed", || peer.open() == 1).await;
        assert_eq!(held.tunnel.end(), None);
        // Who was about to open one still can; nothing is kept for others.
        let late = world.open(&other).await.expect("opened");
        until("it is not kept", || late.tunnel.retiring() == Some(TunnelEnd::Drain)).await;
        drop((held, late));
        until("all is closed", || peer.open() == 0 && world.tunnels.is_empty()).await;
        for link in &*peer.links.borrow() {
            assert_eq!((link.end.get(), link.goaway.get()), (Some(true), true));
        }
        world.sweep_after(0);
        assert_eq!(world.pool.keys(), 0);
    });
}

#[test]
fn a_tunnel_that_is_cut_takes_its_streams_along() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let key = key(peer.address);
        let mut held = world.open(&key).await.expect("opened");
        held.tunnel.cut(TunnelEnd::Revoked);
        assert!(received(&mut held.stream).await.is_none_or(|data| data.is_err()));
        assert_eq!(held.tunnel.cutting(), Some(TunnelEnd::Revoked));
        until("the peer sees an orderly end", || peer.link(0).end.get() == Some(true)).await;
        assert_eq!(held.tunnel.end(), Some(TunnelEnd::Revoked));
        until("nothing is left", || world.pool.keys() == 0).await;
    });
}

#[test]
fn the_peers_end_is_told_apart() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let ended = Cell::new(0);
        let tunnel = world.open(&key(peer.address)).await.expect("opened").tunnel;
        peer.link(0).close();
        until("it is noticed", || tunnel.end().is_some()).await;
        assert_eq!(tunnel.end(), Some(TunnelEnd::PeerClosed));
        world.tunnels.for_each(|_| ended.set(ended.get() + 1));
        until("nothing is left", || world.pool.keys() == 0).await;
        assert_eq!(ended.get(), 0);
    });
}
