//! Both ends of a tunnel without TLS: ours as in production, the far one bare.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local};

use crate::config::settings::{Keepalive, Settings, Tunnel as TunnelSettings};
use crate::hbone::tunnel::{About, Driven, Metered, Pulse, Wire, drive};
use crate::hbone::window::{Grant, Windows, configure_client, configure_server};
use crate::hbone::{Chunk, Stream, Tunnel};
use crate::identity::PeerIdentity;
use crate::identity::authority::Authority;
use crate::identity::certificate::CertificateFacts;
use crate::net::address::PeerAddr;
use crate::net::listen::{ListenOptions, bind};
use crate::proxy::registry::{Direction, Order, Registered, Registry};
use crate::proxy::relay::{Outcome, RelayOptions, relay_stream};
use crate::telemetry::{Door, Role, Side, TunnelEnd};

use super::LIMIT;

/// What the far end takes on one stream without reading.
pub(super) const WINDOW: u32 = 1 << 20;
/// What ours does.
const OUR_WINDOW: u32 = 512 << 10;

pub(super) struct Options {
    /// What the far end takes on all streams.
    pub(super) connection_window: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { connection_window: 16 << 20 }
    }
}

/// A relay between an application's socket and a far end in a tunnel.
pub(super) struct Between {
    pub(super) socket: TcpStream,
    pub(super) far: Far,
    pub(super) entry: Rc<Registered>,
    pub(super) tunnel: Rc<Tunnel>,
    /// From the socket, from the far end.
    pub(super) directions: [Direction; 2],
    pub(super) window: u32,
    pub(super) relay: JoinHandle<Outcome>,
    _shared: Option<Shared>,
}

pub(super) async fn between(side: Side) -> Between {
    between_with(side, LIMIT).await
}

pub(super) async fn between_with(side: Side, reset_flush: Duration) -> Between {
    let shared = tunnel(side, Options::default()).await;
    let between = between_of(&shared, reset_flush).await;
    Between { _shared: Some(shared), ..between }
}

pub(super) async fn between_in(shared: &Shared) -> Between {
    between_of(shared, LIMIT).await
}

/// One whose socket has a short user timeout, which is returned, and a peer that takes little without reading.
pub(super) async fn between_impatient(side: Side) -> (Between, Duration) {
    let shared = tunnel(side, Options::default()).await;
    let (ours, socket) = socket_pair().await;
    SockRef::from(&socket).set_recv_buffer_size(4096).expect("SO_RCVBUF");
    let user_timeout = Duration::from_secs(1);
    SockRef::from(&ours).set_tcp_user_timeout(Some(user_timeout)).expect("TCP_USER_TIMEOUT");
    let mut settings = Settings::default();
    settings.keepalive.user_timeout = Some(user_timeout);
    let options = RelayOptions { zero_copy: true, reset_flush: LIMIT, keepalive: settings.keepalive };
    let entry = registered(Rc::new(settings));
    // As it is in production, where half the user timeout is a second at least: before anything is lifted.
    entry.order(Order::KeepAlive);
    let between = between_sockets(&shared, (ours, socket), entry, options).await;
    (Between { _shared: Some(shared), ..between }, user_timeout)
}

async fn between_of(shared: &Shared, reset_flush: Duration) -> Between {
    let options = RelayOptions { zero_copy: true, reset_flush, keepalive: Keepalive::default() };
    between_sockets(shared, socket_pair().await, entry(), options).await
}

async fn between_sockets(
    shared: &Shared,
    (ours, socket): (TcpStream, TcpStream),
    entry: Registered,
    options: RelayOptions,
) -> Between {
    let (mut stream, far) = shared.stream().await;
    let (entry, side) = (Rc::new(entry), shared.side);
    let relay = {
        let entry = Rc::clone(&entry);
        spawn_local(async move { relay_stream(&ours, &mut stream, side, &entry, &options).await })
    };
    let directions = match side {
        Side::Downstream => [Direction::Down, Direction::Up],
        _ => [Direction::Up, Direction::Down],
    };
    let tunnel = Rc::clone(&shared.tunnel);
    Between { socket, far, entry, tunnel, directions, window: OUR_WINDOW, relay, _shared: None }
}

pub(super) fn entry() -> Registered {
    registered(Rc::default())
}

fn registered(settings: Rc<Settings>) -> Registered {
    let peer = PeerAddr::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
    Rc::new(Registry::new(0)).register(Door::Hbone, peer, settings)
}

pub(super) async fn socket_pair() -> (TcpStream, TcpStream) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = bind("test", any, ListenOptions::PLAIN).expect("bind").remove(0);
    let address = listener.local_addr().expect("address");
    let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
    let socket = tokio::net::TcpSocket::new_v4().expect("socket");
    let (client, accepted) = tokio::join!(socket.connect(address), listener.accept());
    (client.expect("connect"), accepted.expect("accept").0)
}

/// A tunnel; `side` is where its streams are for us, so we are its server when they are downstream.
pub(super) struct Shared {
    side: Side,
    pub(super) tunnel: Rc<Tunnel>,
    /// Pairs of what both ends see of a new stream.
    open: mpsc::Sender<oneshot::Sender<(Stream, Far)>>,
}

impl Shared {
    pub(super) async fn stream(&self) -> (Stream, Far) {
        let (give, take) = oneshot::channel();
        self.open.send(give).await.expect("tunnel");
        take.await.expect("stream")
    }
}

type OurClient = h2::client::Connection<Metered<TcpStream>, Chunk>;
type OurServer = h2::server::Connection<Metered<TcpStream>, Chunk>;

struct Client(Option<OurClient>);

impl Driven for Client {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.0.as_mut().map_or(Poll::Ready(Ok(())), |connection| std::pin::Pin::new(connection).poll(cx))
    }

    fn retire(&mut self) {}

    fn cut(&mut self, _: TunnelEnd) {
        self.0 = None;
    }
}

struct Server {
    connection: OurServer,
    accepted: mpsc::Sender<(Request<RecvStream>, h2::server::SendResponse<Chunk>)>,
}

impl Driven for Server {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while let Some(accepted) = std::task::ready!(self.connection.poll_accept(cx)) {
            assert!(self.accepted.try_send(accepted?).is_ok(), "one at a time");
        }
        Poll::Ready(Ok(()))
    }

    fn retire(&mut self) {
        self.connection.graceful_shutdown();
    }

    fn cut(&mut self, _: TunnelEnd) {
        self.connection.abrupt_shutdown(Reason::NO_ERROR);
    }
}

fn about(role: Role, socket: &TcpStream) -> About {
    let (root, _key) = Authority::new_root("test", SystemTime::now(), Duration::from_secs(60)).expect("root");
    let identity = PeerIdentity {
        id: "spiffe://cluster.local/ns/default/sa/far".parse().expect("identity"),
        serial: "01".into(),
        not_after: SystemTime::now(),
        root: Arc::new(CertificateFacts::of(root.certificate()).expect("facts")),
    };
    About {
        role,
        peer: socket.peer_addr().expect("address"),
        local: socket.local_addr().expect("address"),
        identity: Arc::new(identity),
        chain: Vec::new(),
        generation: 1,
    }
}

fn spawn_driver(tunnel: &Rc<Tunnel>, connection: impl Driven + 'static) {
    let tunnel = Rc::clone(tunnel);
    let pulse = Pulse { interval: Duration::from_secs(3600), timeout: Duration::from_secs(3600) };
    spawn_local(async move { drive(&tunnel, connection, Wire { handle: None, pings: None, pulse }).await });
}

pub(super) async fn tunnel(side: Side, options: Options) -> Shared {
    let (ours, theirs) = socket_pair().await;
    for socket in [&ours, &theirs] {
        socket.set_nodelay(true).expect("nodelay");
    }
    if side == Side::Downstream {
        Box::pin(serving(ours, theirs, &options)).await
    } else {
        Box::pin(requesting(ours, theirs, &options)).await
    }
}

fn granted() -> (TunnelSettings, Grant) {
    let settings =
        TunnelSettings { stream_window: NonZeroU32::new(OUR_WINDOW).expect("not zero"), ..TunnelSettings::default() };
    let grant = Windows::new().grant(settings.connection_window.get(), settings.buffered_bytes);
    (settings, grant)
}

fn connect() -> Request<()> {
    Request::builder().method(Method::CONNECT).uri("10.0.0.1:80").body(()).expect("request")
}

/// We are the server, as at the HBONE door.
async fn serving(ours: TcpStream, theirs: TcpStream, options: &Options) -> Shared {
    let (settings, grant) = granted();
    let tunnel_about = about(Role::Server, &ours);
    let (io, meter) = Metered::new(ours);
    let mut builder = h2::server::Builder::new();
    configure_server(&mut builder, &settings, &grant);
    let mut far = h2::client::Builder::new();
    far.initial_window_size(WINDOW).initial_connection_window_size(options.connection_window);
    let (connection, far) = tokio::join!(builder.handshake::<_, Chunk>(io), far.handshake::<_, Bytes>(theirs));
    let (mut requests, far) = far.expect("handshake");
    let (accepted, mut streams) = mpsc::channel(1);
    let tunnel = Tunnel::new(tunnel_about, meter);
    spawn_driver(&tunnel, Server { connection: connection.expect("handshake"), accepted });
    let far = Rc::new(spawn_local(async move { drop(far.await) }));
    let leases = Rc::clone(&tunnel);
    let (open, mut wanted) = mpsc::channel::<oneshot::Sender<(Stream, Far)>>(1);
    let kept = open.clone();
    spawn_local(async move {
        // The tunnel lives as long as the test.
        let _kept = (grant, kept);
        while let Some(give) = wanted.recv().await {
            requests = requests.ready().await.expect("ready");
            let (response, send) = requests.send_request(connect(), false).expect("request");
            let (request, mut respond) = streams.recv().await.expect("stream");
            let ours = respond.send_response(Response::new(()), false).expect("response");
            let receive = response.await.expect("response").into_body();
            let stream = Stream::new(ours, request.into_body(), leases.lease());
            let _ = give.send((stream, Far::new(send, receive, Rc::clone(&far))));
        }
    });
    Shared { side: Side::Downstream, tunnel, open }
}

/// We are the client, as for outbound connections.
async fn requesting(ours: TcpStream, theirs: TcpStream, options: &Options) -> Shared {
    let (settings, grant) = granted();
    let tunnel_about = about(Role::Client, &ours);
    let (io, meter) = Metered::new(ours);
    let mut builder = h2::client::Builder::new();
    configure_client(&mut builder, &settings, &grant);
    let mut far = h2::server::Builder::new();
    far.initial_window_size(WINDOW).initial_connection_window_size(options.connection_window);
    let (client, far) = tokio::join!(builder.handshake::<_, Chunk>(io), far.handshake::<_, Bytes>(theirs));
    let (mut requests, connection) = client.expect("handshake");
    let tunnel = Tunnel::new(tunnel_about, meter);
    spawn_driver(&tunnel, Client(Some(connection)));
    let (accepted, mut streams) = mpsc::channel(1);
    let mut far = far.expect("handshake");
    let far = Rc::new(spawn_local(async move {
        while let Some(Ok(stream)) = far.accept().await {
            assert!(accepted.try_send(stream).is_ok(), "one at a time");
        }
    }));
    let leases = Rc::clone(&tunnel);
    let (open, mut wanted) = mpsc::channel::<oneshot::Sender<(Stream, Far)>>(1);
    let kept = open.clone();
    spawn_local(async move {
        // The tunnel lives as long as the test.
        let _kept = (grant, kept);
        while let Some(give) = wanted.recv().await {
            requests = requests.ready().await.expect("ready");
            let (response, ours) = requests.send_request(connect(), false).expect("request");
            let (request, mut respond) = streams.recv().await.expect("stream");
            let send = respond.send_response(Response::new(()), false).expect("response");
            let receive = response.await.expect("response").into_body();
            let stream = Stream::new(ours, receive, leases.lease());
            let far = Far::new(send, request.into_body(), Rc::clone(&far));
            let _ = give.send((stream, far));
        }
    });
    Shared { side: Side::Upstream, tunnel, open }
}

/// What the far end sees of a stream.
pub(super) struct Far {
    pub(super) send: SendStream<Bytes>,
    pub(super) receive: RecvStream,
    connection: Rc<JoinHandle<()>>,
    /// Pieces that were written and that the library still has.
    queued: Arc<AtomicUsize>,
}

/// Bytes that are counted for as long as somebody has them.
struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

fn counted(queued: &Arc<AtomicUsize>, piece: &[u8]) -> Bytes {
    queued.fetch_add(1, Ordering::Relaxed);
    Bytes::from_owner(Counted(piece.to_vec(), Arc::clone(queued)))
}

impl Far {
    fn new(send: SendStream<Bytes>, receive: RecvStream, connection: Rc<JoinHandle<()>>) -> Self {
        Self { send, receive, connection, queued: Arc::default() }
    }

    pub(super) async fn write_all(&mut self, bytes: &[u8]) {
        let queued = &self.queued;
        write_pieces(&mut self.send, bytes, |piece| counted(queued, piece)).await;
    }

    pub(super) fn finish(&mut self) {
        self.send.send_data(counted(&self.queued, &[]), true).expect("end");
    }

    /// Waits until the library has passed on all that was written: a reset drops what it has not.
    pub(super) async fn flushed(&mut self) {
        let queued = Arc::clone(&self.queued);
        eventually(|| queued.load(Ordering::Relaxed) == 0).await;
    }

    pub(super) fn reset(&mut self, reason: Reason) {
        self.send.send_reset(reason);
    }

    /// Everything up to the end, and the code of the reset if it was one.
    pub(super) async fn read_all(&mut self) -> (Vec<u8>, Option<u32>) {
        read_all(&mut self.receive).await
    }

    /// The next `count` bytes.
    pub(super) async fn read(&mut self, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            let bytes = self.receive.data().await.expect("not the end").expect("data");
            self.receive.flow_control().release_capacity(bytes.len()).expect("release");
            all.extend_from_slice(&bytes);
        }
        assert_eq!(all.len(), count);
        all
    }

    /// The code of the reset that follows the end of the stream.
    pub(super) async fn last_word(&mut self) -> Option<u32> {
        let reason = std::future::poll_fn(|cx| self.send.poll_reset(cx)).await;
        Some(reason.expect("the tunnel lives").into())
    }

    /// Whether no reset follows the end of the stream; one that is on its way comes within the time.
    pub(super) async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(500), self.last_word()).await.is_err()
    }

    /// Ends the connection without a word.
    pub(super) fn vanish(&self) {
        self.connection.abort();
    }
}

pub(super) async fn write_all(send: &mut SendStream<Bytes>, bytes: &[u8]) {
    write_pieces(send, bytes, Bytes::copy_from_slice).await;
}

async fn write_pieces(send: &mut SendStream<Bytes>, mut bytes: &[u8], own: impl Fn(&[u8]) -> Bytes) {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let capacity = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.expect("open").expect("capacity");
        let (now, later) = bytes.split_at(capacity.min(bytes.len()));
        send.send_data(own(now), false).expect("send");
        bytes = later;
    }
}

pub(super) async fn read_all(receive: &mut RecvStream) -> (Vec<u8>, Option<u32>) {
    let mut all = Vec::new();
    while let Some(result) = receive.data().await {
        match result {
            Ok(bytes) => {
                receive.flow_control().release_capacity(bytes.len()).expect("release");
                all.extend_from_slice(&bytes);
            }
            Err(error) => return (all, Some(error.reason().expect("a code").into())),
        }
    }
    (all, None)
}

/// Cuts `bytes` into pieces of these sizes, over and over.
pub(super) fn pieces<'a>(bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = (&'a [u8], usize)> {
    let mut rest = bytes;
    sizes.iter().cycle().map_while(move |size| {
        let (piece, later) = rest.split_at_checked(*size).unwrap_or((rest, &[]));
        rest = later;
        (!piece.is_empty()).then_some((piece, *size))
    })
}

/// Waits until `condition` holds; the test's own limit bounds it.
pub(super) async fn eventually(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
