//! For tests: a data worker with an HBONE door on loopback, and peers that speak TLS and HTTP/2 by hand.

use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, Version};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::Settings;
use crate::config::settings::LogFormat;
use crate::identity::authority::Authority;
use crate::identity::tls::{no_name, system_clock};
use crate::identity::{Credentials, SpiffeId, TlsGeneration, TrustBundle};
use crate::lifecycle::{Lifecycle, Phase, Readiness};
use crate::mesh::{Snapshot, snapshot_of};
use crate::net::descriptors::Budget;
use crate::net::own_sockets::OwnSockets;
use crate::proxy::accept::Exhaustion;
use crate::proxy::handshakes::Slots;
use crate::proxy::limits::ConnectionLimits;
use crate::proxy::loops::OwnPorts;
use crate::proxy::worker::{Post, Shared, WorkerDoor, spawn};
use crate::telemetry::{CloseReason, Door, Logger, TrafficFamilies, TrafficLimits, WorkerCounters, Workers};

pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// Runs a test on a runtime of its own, within a limit.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(LIMIT * 3, test).await.expect("the test ends in time") });
}

pub(super) async fn limited<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    limited(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// The local workload has the loopback address that its tunnels arrive at.
pub(super) const MESH: &str = "
workloads:
- { uid: app, name: app, namespace: test, workloadIps: [127.0.0.1], services: { test/app.test.svc: { 80: 8080 } } }
- { uid: other, name: other, namespace: test, workloadIps: [127.0.0.9] }
services:
- { name: app, namespace: test, hostname: app.test.svc, vips: [10.96.0.1], ports: { 80: 8080 } }
";

pub(super) fn id(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/test/sa/{name}").parse().expect("an id")
}

/// An authority whose leaves make both ends.
pub(super) struct Trust(Authority);

impl Trust {
    pub(super) fn new() -> Self {
        Self(Authority::new_root("test", SystemTime::now(), Duration::from_secs(86_400)).expect("a root").0)
    }

    pub(super) fn generation(&self, name: &str, number: u64) -> Arc<TlsGeneration> {
        let (id, now) = (id(name), SystemTime::now());
        let issued = self.0.issue(&id, now, Duration::from_secs(3600)).expect("a leaf");
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("a key");
        let bundle = Arc::new(TrustBundle::new([self.0.certificate()], Arc::default()).expect("a bundle"));
        let credentials = Credentials::new(vec![issued.certificate], &key, bundle, &id, now).expect("credentials");
        let accepted = [id.trust_domain().clone()].into();
        let generation = TlsGeneration::new(number, Arc::new(credentials), accepted, &system_clock());
        Arc::new(generation.expect("TLS"))
    }
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(super) struct World {
    pub(super) door: SocketAddr,
    pub(super) shared: Arc<Shared>,
    pub(super) workers: Workers,
    pub(super) trust: Trust,
    pub(super) tls: watch::Sender<Option<Arc<TlsGeneration>>>,
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    thread: JoinHandle<()>,
    logger: Logger,
    sink: Sink,
}

/// Adds what the tests want of the settings.
fn settings(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Settings::default();
    settings.workload.name = "app".into();
    settings.workload.namespace = "test".into();
    settings.packet_mark = None;
    change(&mut settings);
    settings
}

pub(super) fn mesh(text: &str) -> Arc<Snapshot> {
    snapshot_of("mesh.yaml", text).expect("a mesh")
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(MESH, |_| {})
    }

    pub(super) fn with(state: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let trust = Trust::new();
        let world = Self::without_credentials(trust, state, change);
        world.tls.send_replace(Some(world.trust.generation("app", 1)));
        world
    }

    pub(super) fn without_credentials(trust: Trust, state: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let settings = settings(change);
        let sink = Sink::default();
        let logger = Logger::start(LogFormat::Json, "info", true, sink.clone()).expect("a logger");
        let listener = crate::net::listen::tests::loopback_listener();
        listener.set_nonblocking(true).expect("O_NONBLOCK");
        let door = listener.local_addr().expect("an address");
        let (tls, tls_reader) = watch::channel(None);
        let (snapshots, snapshot) = watch::channel(mesh(state));
        let (commands, receiver) = mpsc::channel(16);
        let families = Arc::new(TrafficFamilies::new(&settings.metrics.labels, TrafficLimits::default()));
        let limits = ConnectionLimits::default();
        let hbone = settings.limits.hbone.map(std::num::NonZeroUsize::get);
        limits.set(|scope| hbone.filter(|_| scope == crate::telemetry::Scope::Hbone));
        let shared = Arc::new(Shared {
            handshakes: Slots::new(settings.limits.handshakes),
            windows: crate::hbone::window::Windows::new(),
            settings: watch::channel(Arc::new(settings)).1,
            snapshot,
            tls: Some(tls_reader),
            peers: Default::default(),
            handshake_failures: Arc::default(),
            lifecycle: Lifecycle::default(),
            readiness: Readiness::default(),
            own_sockets: OwnSockets::default(),
            own_ports: OwnPorts::new([door.port()]),
            budget: Budget::new(1024, 0),
            limits,
            rates: Default::default(),
            ejections: crate::proxy::balance::eject::Ejections::default(),
            log: logger.handle(),
            families,
            mark: None,
            can_show_source: [AtomicBool::new(false), AtomicBool::new(false)],
            force_until: std::sync::OnceLock::new(),
            exhaustion: Exhaustion::default(),
            accepting: Default::default(),
            started: Instant::now(),
            posts: vec![Post { commands, load: AtomicUsize::new(0), beat: AtomicU64::new(0) }],
        });
        let workers = Workers::default();
        let counters: Arc<WorkerCounters> = workers.register();
        let doors = vec![WorkerDoor { door: Door::Hbone, listener: Arc::new(listener), adopted: None }];
        let thread = spawn(0, Arc::clone(&shared), counters, doors, receiver).expect("a worker");
        shared.lifecycle.advance(Phase::Ready);
        Self { door, shared, workers, trust, tls, snapshots, thread, logger, sink }
    }

    /// Live sockets and streams of the door, as limits count them.
    pub(super) fn live(&self) -> usize {
        self.shared.limits.usage(crate::telemetry::Scope::Hbone).0
    }

    pub(super) fn closed(&self, reason: CloseReason) -> u64 {
        self.workers.closed(reason)
    }

    pub(super) async fn wait_closed(&self, reason: CloseReason, want: u64) {
        until(reason.as_str(), || self.closed(reason) >= want).await;
        assert_eq!(self.closed(reason), want, "{}", reason.as_str());
    }

    /// All access records so far.
    pub(super) fn records(&self) -> Vec<serde_json::Value> {
        assert!(self.logger.flush(LIMIT), "the log is written");
        let bytes = self.sink.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = String::from_utf8(bytes).expect("utf-8");
        let values = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("json"));
        values.filter(|value| value["scope"] == "access").collect()
    }

    pub(super) async fn record(&self, reason: &str) -> serde_json::Value {
        let mut found = None;
        until(&format!("a record of {reason}"), || {
            found = self.records().into_iter().find(|record| record["close_reason"] == reason);
            found.is_some()
        })
        .await;
        found.expect("found")
    }

    pub(super) fn socket(&self) -> TcpStream {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.connect(&self.door.into()).expect("the door");
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        TcpStream::from_std(socket.into()).expect("a stream")
    }

    /// TLS as `name`, and nothing after it.
    pub(super) async fn tls(&self, name: &str) -> TlsStream<TcpStream> {
        let config = self.trust.generation(name, 1).client([id("app")].into());
        let connect = TlsConnector::from(config).connect(no_name(), self.socket());
        Box::pin(limited("TLS", connect)).await.expect("a handshake")
    }

    pub(super) async fn client(&self) -> Client {
        Client::over(self.tls("web").await).await
    }

    pub(super) fn drain(&self) {
        self.shared.lifecycle.advance(Phase::DrainInbound);
    }

    /// The worker must end by itself.
    pub(super) async fn ends(self) {
        self.shared.lifecycle.advance(Phase::DrainAll);
        until("the worker ends", || self.thread.is_finished()).await;
        assert_eq!((self.live(), self.shared.budget.used()), (0, 0), "everything is given back");
    }
}

/// A stream that can be told not to read.
struct Pausing {
    stream: TlsStream<TcpStream>,
    paused: Arc<AtomicBool>,
}

impl AsyncRead for Pausing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.paused.load(Ordering::Relaxed) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Pausing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A tunnel of the peer's.
pub(super) struct Client {
    pub(super) send: SendRequest<Bytes>,
    pub(super) connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
    paused: Arc<AtomicBool>,
}

impl Client {
    pub(super) async fn over(stream: TlsStream<TcpStream>) -> Self {
        let paused = Arc::<AtomicBool>::default();
        let stream = Pausing { stream, paused: Arc::clone(&paused) };
        let (send, connection) = Box::pin(limited("HTTP/2", h2::client::handshake(stream))).await.expect("HTTP/2");
        #[expect(clippy::disallowed_methods, reason = "a test's own runtime")]
        let connection = tokio::spawn(connection);
        Self { send, connection, paused }
    }

    /// Whether what comes from the other end stays unread.
    pub(super) fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    pub(super) async fn ask(&mut self, request: Request<()>) -> (ResponseFuture, SendStream<Bytes>) {
        let mut send = limited("room for a stream", self.send.clone().ready()).await.expect("ready");
        send.send_request(request, false).expect("a request")
    }

    pub(super) async fn connect(&mut self, authority: &str) -> (Response<RecvStream>, SendStream<Bytes>) {
        let (response, send) = self.ask(request(authority)).await;
        (limited("an answer", response).await.expect("an answer"), send)
    }
}

pub(super) fn request(authority: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = authority.parse().expect("an authority");
    request
}

/// (status, word) of a refusal.
pub(super) fn refusal<T>(response: &Response<T>) -> (u16, String) {
    let word = response.headers().get("x-adit-reason").and_then(|word| word.to_str().ok());
    (response.status().as_u16(), word.unwrap_or_default().to_owned())
}

pub(super) fn application() -> (TcpListener, String) {
    let listener = crate::net::listen::tests::loopback_listener();
    listener.set_nonblocking(true).expect("O_NONBLOCK");
    let listener = TcpListener::from_std(listener).expect("a listener");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
    limited("the application's connection", listener.accept()).await.expect("accept").0
}
