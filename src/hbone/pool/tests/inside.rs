//! A tunnel inside a stream, through a gateway that sees only bytes: both played by this crate's own server.

use std::cell::RefCell;

use bytes::BytesMut;
use h2::Reason;
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::*;
use crate::hbone::carried::Carried;
use crate::hbone::request::accepted;
use crate::hbone::server::{Arrival, Asked, Proven, Reached, arrive};
use crate::hbone::stream::Chunk;
use crate::hbone::tunnel::{About, Pulse, Tunnel, Wire, drive};
use crate::hbone::window::Windows;
use crate::net::buffers;
use crate::net::listen::tests::loopback_listener;

/// What a peer does with each request; its headers are kept.
type Asks = Rc<RefCell<Vec<HeaderMap>>>;

fn listener() -> (TcpListener, SocketAddr) {
    let listener = loopback_listener();
    listener.set_nonblocking(true).expect("nonblocking");
    let listener = TcpListener::from_std(listener).expect("listener");
    let address = listener.local_addr().expect("address");
    (listener, address)
}

/// Accepts tunnels; `take` gets each request, and the tunnel that it came in.
fn serve(tls: &Arc<TlsGeneration>, take: impl Fn(Asked, Rc<Tunnel>) + Clone + 'static) -> SocketAddr {
    let (listener, address) = listener();
    let tls = Arc::clone(tls);
    spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (tls, take) = (Arc::clone(&tls), take.clone());
            spawn_local(async move { Box::pin(tunnel(socket, tls, take)).await });
        }
    });
    address
}

async fn tunnel(socket: TcpStream, tls: Arc<TlsGeneration>, take: impl Fn(Asked, Rc<Tunnel>) + 'static) {
    let peer = socket.peer_addr().expect("address");
    let arrived = Box::pin(arrive(socket, &tls, &Limits::default(), &Windows::new(), &Cell::new(Reached::START))).await;
    let Ok((Proven { peer: identity, chain, handle }, arrival)) = arrived else { return };
    let about = About { role: Role::Server, peer, local: peer, identity, chain, generation: 1 };
    let tunnel = Tunnel::new(about, Rc::clone(&arrival.meter));
    let taken = Rc::clone(&tunnel);
    let (served, pings) = Arrival::serve(arrival, move |asked| take(asked, Rc::clone(&taken)));
    let pulse = Pulse { interval: Duration::from_secs(60), timeout: Duration::from_secs(60) };
    Box::pin(drive(&tunnel, served, Wire { handle: Some(handle), pings, pulse })).await;
}

fn accept(Asked { request, mut respond }: Asked, tunnel: &Rc<Tunnel>, asks: &Asks) -> Stream {
    let (parts, receive) = request.into_parts();
    asks.borrow_mut().push(parts.headers);
    let baggage = http::HeaderValue::from_static("k8s.namespace.name=far,k8s.deployment.name=echo");
    let send: h2::SendStream<Chunk> = respond.send_response(accepted(Some(&baggage)), false).expect("200");
    Stream::new(send, receive, tunnel.lease())
}

/// What the far application does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Far {
    /// Sends everything back, and its end.
    Echo,
    /// Takes five bytes, then resets.
    Reset,
}

/// The gateway forwards what is inside its streams to a peer who ends the inner tunnel.
struct Scene {
    world: World,
    gateway: SocketAddr,
    /// Of the outer and of the inner requests.
    asks: [Asks; 2],
    /// The gateway's ends of its tunnels.
    outer: Rc<RefCell<Vec<Rc<Tunnel>>>>,
    /// Connections that the gateway has made.
    forwarded: Rc<Cell<u32>>,
    ended: Rc<Cell<u32>>,
}

impl Scene {
    fn new(far: Far) -> Self {
        let world = World::new();
        let asks: [Asks; 2] = Default::default();
        let kept = Rc::clone(&asks[1]);
        let inner = serve(&generation(&world.authority, 1, "far"), move |asked, tunnel| {
            let stream = accept(asked, &tunnel, &kept);
            spawn_local(Box::pin(play(far, stream)));
        });
        Self::around(world, asks, inner)
    }

    /// Whose gateway forwards to `inner`.
    fn around(world: World, asks: [Asks; 2], inner: SocketAddr) -> Self {
        let (outer, forwarded, ended) = (Rc::<RefCell<Vec<_>>>::default(), Rc::<Cell<u32>>::default(), Rc::default());
        let (kept, seen, made) = (Rc::clone(&asks[0]), Rc::clone(&outer), Rc::clone(&forwarded));
        let done: Rc<Cell<u32>> = Rc::clone(&ended);
        let gateway = serve(&generation(&world.authority, 1, "server"), move |asked, tunnel| {
            let (mut carried, _) = Carried::new(accept(asked, &tunnel, &kept));
            seen.borrow_mut().push(tunnel);
            made.set(made.get() + 1);
            let done = Rc::clone(&done);
            spawn_local(async move {
                let mut socket = connect(inner).await;
                // Ends in order, or drops both, which resets both.
                if copy_bidirectional(&mut carried, &mut socket).await.is_ok() {
                    done.set(done.get() + 1);
                }
            });
        });
        Self { world, gateway, asks, outer, forwarded, ended }
    }

    async fn open(&self, wanted: &str) -> Result<Opened, OpenError> {
        self.open_within(wanted, Duration::from_secs(20)).await
    }

    async fn open_within(&self, wanted: &str, within: Duration) -> Result<Opened, OpenError> {
        let outer = self.world.open(&key(self.gateway)).await.expect("the gateway");
        let mut request = request();
        request.headers_mut().insert("x-forwarded-network", http::HeaderValue::from_static("near"));
        let until = tokio::time::Instant::now() + within;
        let World { pool, limits, .. } = &self.world;
        Box::pin(pool.open_inside(outer, [id(wanted)].into(), request, limits, until)).await
    }
}

#[expect(clippy::disallowed_methods, reason = "a peer's socket, not ours")]
async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("connected")
}

async fn play(far: Far, mut stream: Stream) {
    if far == Far::Reset {
        let bytes = received(&mut stream).await.expect("bytes").expect("bytes");
        assert_eq!(&*bytes, b"hello");
        stream.reset(Reason::CONNECT_ERROR);
        return;
    }
    let (mut carried, _) = Carried::new(stream);
    let mut bytes = BytesMut::with_capacity(64 * 1024);
    while carried.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
        if carried.write_all(&bytes.split()).await.is_err() {
            return;
        }
        carried.flush().await.expect("flushed");
    }
    // What follows an end needs nothing more than the other end.
    let _ = carried.shutdown().await;
}

async fn send(stream: &mut Stream, bytes: &[u8]) {
    let mut left = bytes;
    while !left.is_empty() {
        let capacity = poll_fn(|cx| stream.poll_capacity(cx)).await.expect("capacity");
        let mut buffer = buffers::lend();
        let count = capacity.min(left.len());
        buffer[..count].copy_from_slice(&left[..count]);
        stream.send(buffer, count).expect("sent");
        left = &left[count..];
    }
    stream.give_back();
}

/// Everything up to the end.
async fn rest(stream: &mut Stream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = received(stream).await {
        let bytes = bytes.expect("no reset");
        stream.release(bytes.len());
        all.extend_from_slice(&bytes);
    }
    all
}

#[test]
fn bytes_go_both_ways_and_each_end_is_one_of_its_own() {
    on_worker(|| async {
        let scene = Scene::new(Far::Echo);
        let Opened { mut stream, answer, tunnel } = scene.open("far").await.expect("opened");
        assert_eq!(tunnel.about.identity.id, id("far"), "the inner peer's");
        let claimed = crate::hbone::request::claims_of(&answer.headers).peer().expect("labels");
        assert_eq!((&*claimed.namespace, &*claimed.workload), ("far", "echo"));
        let sent: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
        let (mut to, mut from) = (0, Vec::new());
        // Together: neither direction may wait for the other.
        while from.len() < sent.len() {
            if to < sent.len() {
                let part = &sent[to..sent.len().min(to + 50_000)];
                send(&mut stream, part).await;
                to += part.len();
            }
            let bytes = received(&mut stream).await.expect("no end").expect("no reset");
            stream.release(bytes.len());
            from.extend_from_slice(&bytes);
        }
        assert!(from == sent, "what came back is what was sent");
        stream.finish().expect("finished");
        assert_eq!(rest(&mut stream).await, b"", "its end comes after ours");
        drop(stream);
        until("the inner tunnel ends by itself", || tunnel.end() == Some(TunnelEnd::Used)).await;
        until("the gateway's stream has ended in order", || scene.ended.get() == 1).await;
        until("no stream is left", || scene.world.streams() == 0).await;
        let header = |asks: &Asks| asks.borrow()[0].get("x-forwarded-network").cloned();
        assert_eq!((header(&scene.asks[0]), header(&scene.asks[1])), (None, Some("near".parse().expect("a value"))));
    });
}

#[test]
fn the_outer_tunnel_is_shared_and_the_inner_ones_are_not() {
    on_worker(|| async {
        let scene = Scene::new(Far::Echo);
        let mut opened = Vec::new();
        for _ in 0..3 {
            opened.push(scene.open("far").await.expect("opened"));
        }
        assert_eq!((scene.forwarded.get(), scene.asks[1].borrow().len()), (3, 3));
        let outer = scene.outer.borrow().clone();
        assert!(outer.iter().all(|tunnel| Rc::ptr_eq(tunnel, &outer[0])), "one outer tunnel");
        assert!(!Rc::ptr_eq(&opened[0].tunnel, &opened[1].tunnel) && opened[0].tunnel.carried() == 1);
        assert_eq!(scene.world.tunnels.len(), 4);
        for Opened { stream, .. } in &mut opened {
            send(stream, b"hello").await;
            assert_eq!(&*received(stream).await.expect("no end").expect("bytes"), b"hello");
        }
        drop(opened);
        until("only the outer tunnel is left", || scene.world.tunnels.len() == 1).await;
    });
}

#[test]
fn a_reset_behind_the_gateway_is_a_reset() {
    on_worker(|| async {
        let scene = Scene::new(Far::Reset);
        let mut opened = scene.open("far").await.expect("opened");
        send(&mut opened.stream, b"hello").await;
        let end = received(&mut opened.stream).await.expect("no end");
        assert_eq!(end, Err(StreamError::Reset(Reason::CONNECT_ERROR)));
        drop(opened);
        until("the inner tunnel ends", || scene.world.tunnels.len() == 1).await;
    });
}

#[test]
fn what_the_outer_tunnel_loses_is_lost_inside_for_the_same_reason() {
    on_worker(|| async {
        for (cut, why) in [(true, TunnelEnd::Revoked), (false, TunnelEnd::Broken)] {
            let scene = Scene::new(Far::Echo);
            let mut opened = scene.open("far").await.expect("opened");
            if cut {
                scene.world.tunnels.for_each(|tunnel| {
                    if !Rc::ptr_eq(tunnel, &opened.tunnel) {
                        tunnel.cut(why);
                    }
                });
            } else {
                // The gateway's end.
                scene.outer.borrow()[0].cut(TunnelEnd::Untrusted);
            }
            assert_eq!(received(&mut opened.stream).await.expect("no end"), Err(StreamError::TunnelLost), "{why:?}");
            let end = opened.stream.tunnel_end();
            assert!(if cut { end == Some(why) } else { end.is_some() }, "{end:?}");
            drop(opened);
            until("nothing is left", || scene.world.tunnels.is_empty()).await;
        }
    });
}

#[test]
fn who_is_behind_the_gateway_must_be_who_is_wanted() {
    on_worker(|| async {
        let scene = Scene::new(Far::Echo);
        let refused = scene.open("other").await.expect_err("refused");
        assert_eq!(refused.close_reason(), crate::telemetry::CloseReason::PeerRefused, "{refused}");
        assert_eq!(scene.asks[1].borrow().len(), 0, "it was not asked for anything");
        until("nothing of it is left", || scene.world.streams() == 0 && scene.world.tunnels.len() == 1).await;
    });
}

#[test]
fn silence_behind_the_gateway_has_its_deadline_at_every_step() {
    on_worker(|| async {
        // Accepts, and says nothing.
        let (silent, address) = listener();
        let mut scene = Scene::around(World::new(), Default::default(), address);
        scene.world.limits.handshake_timeout = Duration::from_millis(300);
        let began = Instant::now();
        let error = scene.open("far").await.expect_err("no handshake");
        assert_eq!(error.close_reason(), crate::telemetry::CloseReason::TunnelHandshakeTimeout, "{error}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        drop(silent);

        // Never answers what it is asked for.
        let world = World::new();
        let held = Rc::<RefCell<Vec<Asked>>>::default();
        let keep = Rc::clone(&held);
        let inner = serve(&generation(&world.authority, 1, "far"), move |asked, _| keep.borrow_mut().push(asked));
        let mut scene = Scene::around(world, Default::default(), inner);
        scene.world.limits.response_timeout = Duration::from_millis(300);
        let error = scene.open("far").await.expect_err("no answer");
        assert_eq!(error.close_reason(), crate::telemetry::CloseReason::TunnelResponseTimeout, "{error}");
        // The whole has one as well.
        scene.world.limits.response_timeout = Duration::from_secs(60);
        let error = scene.open_within("far", Duration::from_millis(500)).await.expect_err("no answer");
        assert_eq!(error.close_reason(), crate::telemetry::CloseReason::TunnelResponseTimeout, "{error}");
        until("what was begun is taken back", || scene.world.streams() == 0).await;
        assert_eq!(held.borrow().len(), 2);
    });
}
