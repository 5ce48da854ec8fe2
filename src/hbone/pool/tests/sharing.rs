//! Who shares a tunnel with whom, and how many there are.

use super::*;

#[test]
fn tunnels_are_shared_and_end_with_the_pool() {
    on_worker(|| async {
        let world = World::new().max_streams(3);
        let peer = world.peer();
        let key = key(peer.address);
        let first = all(world.open_many(&[&key; 2]).await);
        drop(first);
        let second = all(world.open_many(&[&key; 2]).await);
        assert_eq!(peer.connections(), 1);
        assert_eq!((second[0].tunnel.streams(), second[0].tunnel.carried()), (2, 4));
        assert_eq!(second[0].tunnel.about.role, Role::Client);
        let World { pool, tunnels, .. } = world;
        drop((pool, second));
        until("the connection is closed", || peer.open() == 0 && tunnels.is_empty()).await;
    });
}

#[test]
fn only_streams_of_the_same_key_share_a_tunnel() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        let ids = |names: &[&str]| -> Arc<[SpiffeId]> { names.iter().map(|name| id(name)).collect() };
        let of = |names: &[&str], client: u8, uid: &str| {
            TunnelKey::new(peer.address, ids(names), IpAddr::V4(Ipv4Addr::new(10, 0, 0, client)), uid.into())
        };
        let keys = [
            of(&["server"], 1, "a"),
            of(&["server"], 2, "a"),
            of(&["server"], 1, "b"),
            of(&["other", "server"], 1, "a"),
            of(&["server", "other"], 1, "a"),
            of(&["server", "other", "server"], 1, "a"),
        ];
        let opened = all(world.open_many(&keys.iter().collect::<Vec<_>>()).await);
        assert_eq!(peer.connections(), 4);
        assert!(Rc::ptr_eq(&opened[3].tunnel, &opened[4].tunnel) && Rc::ptr_eq(&opened[3].tunnel, &opened[5].tunnel));
        assert_eq!(world.pool.keys(), 4);
    });
}

#[test]
fn a_full_tunnel_gets_company_and_is_used_again() {
    on_worker(|| async {
        let world = World::new().max_streams(2);
        let peer = world.peer();
        let key = key(peer.address);
        for _ in 0..3 {
            let opened = all(world.open_many(&[&key; 4]).await);
            assert_eq!(peer.connections(), 2);
            assert!(opened.iter().all(|opened| opened.tunnel.streams() == 2));
        }
    });
}

#[test]
fn with_room_for_one_stream_each_tunnel_carries_one_after_the_other() {
    on_worker(|| async {
        let world = World::new().max_streams(1);
        let peer = world.peer();
        let key = key(peer.address);
        for _ in 0..2 {
            drop(all(world.open_many(&[&key; 3]).await));
        }
        assert_eq!(peer.connections(), 3);
        until("streams have ended", || peer.streams() == 0).await;
        world.sweep_after(301);
        until("connections are closed", || peer.open() == 0).await;
        assert_eq!(world.pool.keys(), 0);
    });
}

#[test]
fn many_streams_of_few_and_of_many_keys() {
    on_worker(|| async {
        let world = World::new().max_streams(101);
        let [single, many, few] = [world.peer(), world.peer(), world.peer()];
        let one = key(single.address);
        let _single = all(world.open_many(&[&one; 100]).await);
        assert_eq!(single.connections(), 1);
        let hundred: Vec<_> = (0..100).map(|client| key_of(many.address, client, "uid")).collect();
        let _many = all(world.open_many(&hundred.iter().collect::<Vec<_>>()).await);
        assert_eq!(many.connections(), 100);
        let three: Vec<_> = (0..3).map(|client| key_of(few.address, client, "uid")).collect();
        let _few = all(world.open_many(&three.iter().cycle().take(300).collect::<Vec<_>>()).await);
        assert_eq!(few.connections(), 3);
        assert_eq!(world.streams(), 500);
    });
}

#[test]
fn ten_thousand_short_streams_go_through_one_tunnel() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        peer.limit.set(Some(100));
        let key = key(peer.address);
        for _ in 0..10_000 {
            let opened = world.open(&key).await.expect("opened");
            assert_eq!(opened.tunnel.streams(), 1);
        }
        assert_eq!(peer.connections(), 1);
        assert_eq!(peer.link(0).total.get(), 10_000);
        until("streams have ended", || peer.streams() == 0 && world.streams() == 0).await;
    });
}

#[test]
fn a_thousand_first_connects_open_no_more_tunnels_than_they_fill() {
    for (ours, peers, per_peer) in [(100, None, 4), (100, Some(30), 4), (1000, None, 1), (50, Some(1000), 4)] {
        on_worker(|| async move {
            let mut world = World::new().max_streams(ours);
            world.limits.max_per_peer = NonZeroU32::new(per_peer).expect("not zero");
            let peer = world.peer();
            peer.limit.set(peers);
            let key = key(peer.address);
            let opened = all(world.open_many(&[&key; 1000]).await);
            let limit = peers.map_or(ours, |peers| peers.min(ours));
            let most = usize::try_from(1000_u32.div_ceil(limit)).expect("small");
            assert!(peer.connections() <= most, "{} of {most}", peer.connections());
            assert_eq!(opened.len(), 1000);
            let busiest = peer.links.borrow().iter().map(|link| link.most.get()).max();
            assert!(busiest <= usize::try_from(limit).ok(), "{busiest:?} of {limit}");
        });
    }
}

#[test]
fn busy_tunnels_get_company_up_to_max_per_peer() {
    on_worker(|| async {
        let mut world = World::new().max_streams(8);
        world.limits.max_per_peer = NonZeroU32::new(4).expect("not zero");
        let peer = world.peer();
        let key = key(peer.address);
        let mut held = Vec::new();
        for streams in 1..=32_usize {
            held.push(world.open(&key).await.expect("opened"));
            // The second is the first tunnel's share, and so on; there are never more than four.
            let want = (streams / 2 + 1).min(4);
            until("company has come", || peer.connections() == want).await;
            until("and can be used", || {
                let mut settled = 0;
                for row in world.pool.rows() {
                    settled += row.clients().iter().filter(|client| client.is_settled()).count();
                }
                settled == want
            })
            .await;
        }
        assert_eq!(peer.connections(), 4);
        held.push(world.open(&key).await.expect("opened"));
        assert_eq!(peer.connections(), 5, "full tunnels always get company");
    });
}

/// The library keeps a request beyond the limit to itself, and nobody would answer.
#[test]
fn a_place_that_the_peer_takes_away_before_it_is_used_is_found_elsewhere() {
    on_worker(|| async {
        let world = World::new().max_streams(2);
        let peer = world.peer();
        let key = key(peer.address);
        let _held = world.open(&key).await.expect("opened");
        let ending = world.open(&key).await.expect("opened");
        let full = Rc::clone(&ending.tunnel);
        let mut waiting = Box::pin(world.open(&key));
        assert!(poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await);
        drop(ending);
        until("it is given a place", || full.carried() == 3).await;
        peer.link(0).limit(1);
        let lowered = || {
            let clients: Vec<_> = world.pool.rows().iter().flat_map(|row| row.clients()).collect();
            clients.iter().any(|client| Rc::ptr_eq(&client.tunnel, &full) && client.peer_limit() == Some(1))
        };
        until("the new limit is known", lowered).await;
        let opened = waiting.await.expect("opened");
        assert!(!Rc::ptr_eq(&opened.tunnel, &full));
        assert_eq!((peer.link(0).total.get(), peer.connections(), full.streams()), (2, 2, 1));
    });
}

#[test]
fn the_peers_limit_holds_from_the_start_and_as_it_changes() {
    on_worker(|| async {
        let world = World::new();
        let peer = world.peer();
        peer.limit.set(Some(1));
        let key = key(peer.address);
        let mut held = all(world.open_many(&[&key; 3]).await);
        assert_eq!(peer.connections(), 3);
        let limits = || world.pool.rows().iter().flat_map(|row| row.clients()).map(|it| it.peer_limit()).collect();
        let limits: &dyn Fn() -> Vec<Option<u32>> = &limits;
        // Raised: two more streams in tunnels that are there.
        peer.link(0).limit(3);
        until("the new limit is known", || limits().contains(&Some(3))).await;
        held.extend(all(world.open_many(&[&key; 2]).await));
        assert_eq!(peer.connections(), 3);
        // Lowered below what there is: the streams go on, and new ones go elsewhere.
        peer.link(0).limit(1);
        until("the new limit is known", || !limits().contains(&Some(3))).await;
        held.push(world.open(&key).await.expect("opened"));
        assert_eq!((peer.connections(), peer.streams()), (4, 6));
        // Lowered to nothing, and raised again while somebody waits for it.
        for index in 0..4 {
            peer.link(index).limit(0);
        }
        until("the new limit is known", || limits().iter().all(|limit| *limit == Some(0))).await;
        held.clear();
        until("streams have ended", || peer.streams() == 0).await;
        drop(world.open(&key).await.expect("a fifth tunnel"));
        assert_eq!(peer.connections(), 5);
        peer.link(4).limit(0);
        until("the new limit is known", || limits().iter().all(|limit| *limit == Some(0))).await;
        peer.manners.set(Manners::NoTls);
        let (opened, ()) = tokio::join!(world.open(&key), async {
            until("a sixth is tried", || peer.connections() == 6).await;
            peer.link(2).limit(1);
        });
        assert_eq!(opened.expect("opened").tunnel.carried(), 2, "in the third");
        assert!(peer.links.borrow().iter().all(|link| link.most.get() <= 3));
    });
}

#[test]
fn whoever_waits_gets_the_place_of_a_stream_that_ends() {
    on_worker(|| async {
        let world = World::new().max_streams(2);
        let peer = world.peer();
        let key = key(peer.address);
        let mut held = world.open(&key).await.expect("opened");
        let _another = world.open(&key).await.expect("opened");
        // It is over already, but its owner has not let go: that will be all the news there is.
        peer.link(0).reset(1);
        assert!(received(&mut held.stream).await.is_none_or(|data| data.is_err()));
        // No second tunnel comes to be.
        peer.manners.set(Manners::NoTls);
        let (opened, ()) = tokio::join!(world.open(&key), async {
            until("a second is tried", || peer.connections() == 2).await;
            drop(held);
        });
        assert_eq!(opened.expect("opened").tunnel.carried(), 3);
    });
}

/// Opens short streams to `key` one after the other; how long each took, in the middle and at most.
async fn pace(world: &World, key: &TunnelKey) -> (Duration, Duration) {
    let mut took = Vec::new();
    for _ in 0..300 {
        let started = Instant::now();
        drop(world.open(key).await.expect("opened"));
        took.push(started.elapsed());
    }
    took.sort_unstable();
    (took[150], took[299])
}

#[test]
fn a_black_hole_holds_up_nobody_else() {
    on_worker(|| async {
        let world = World::new();
        let (good, hole) = (world.peer(), world.peer());
        hole.manners.set(Manners::NoTls);
        let key = key(good.address);
        drop(world.open(&key).await.expect("opened"));
        let (alone, _) = pace(&world, &key).await;
        let holes: Vec<_> = (0..20).map(|client| key_of(hole.address, client, "uid")).collect();
        let lost = async {
            for result in world.open_many(&holes.iter().collect::<Vec<_>>()).await {
                assert!(matches!(result, Err(OpenError::HandshakeTimeout)), "{result:?}");
            }
        };
        let beside = async {
            until("all hang", || hole.connections() == 20).await;
            let (beside, _) = pace(&world, &key).await;
            // Behind one lock it would be seconds.
            assert!(beside < alone * 3 + Duration::from_millis(20), "{alone:?} alone, {beside:?} beside");
            // Another client of the same peer shares nothing with them either.
            assert!(world.open(&key_of(good.address, 99, "uid")).await.is_ok());
        };
        tokio::join!(lost, beside);
        assert_eq!(world.pool.keys(), 2);
    });
}
