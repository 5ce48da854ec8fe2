//! Against a far side with real TLS on loopback.

mod ends;
mod failures;
mod inside;
mod peer;
mod sharing;

use std::cell::Cell;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::*;
use crate::config::Settings;
use crate::hbone::client::DialOut;
use crate::hbone::pool::tests::peer::{Answer, Manners, Peer, REFUSED_STREAM, start_flood};
use crate::hbone::stream::{Stream, StreamError};
use crate::identity::authority::Authority;
use crate::identity::crl::RevocationSet;
use crate::identity::tls::system_clock;
use crate::identity::{Credentials, TrustBundle};
use crate::net::descriptors::Budget;
use crate::telemetry::{Role, WorkerCounters};

const LIMIT: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Runs `test` on a worker's kind of runtime, with a limit of time.
fn on_worker<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    LocalSet::new().block_on(&runtime, async {
        timeout(LIMIT, Box::pin(test())).await.expect("time is up");
    });
}

/// The next bytes of a stream; nothing at its end.
async fn received(stream: &mut Stream) -> Option<Result<Bytes, StreamError>> {
    poll_fn(|cx| stream.poll_receive(cx)).await.transpose()
}

/// Waits for the condition, with a limit.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn id(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{name}").parse().expect("id")
}

fn authority() -> Authority {
    Authority::new_root("root", SystemTime::now(), DAY).expect("root").0
}

fn generation(authority: &Authority, number: u64, name: &str) -> Arc<TlsGeneration> {
    generation_with(authority, number, name, "")
}

fn generation_with(authority: &Authority, number: u64, name: &str, list: &str) -> Arc<TlsGeneration> {
    let (now, id) = (SystemTime::now(), id(name));
    let issued = authority.issue(&id, now, DAY).expect("leaf");
    let lists = (!list.is_empty()).then_some((std::path::Path::new("crl.pem"), list.as_bytes()));
    let revoked = Arc::new(RevocationSet::read(lists).expect("lists"));
    let bundle = Arc::new(TrustBundle::new([authority.certificate()], revoked).expect("bundle"));
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("key");
    let credentials = Credentials::new(vec![issued.certificate], &key, bundle, &id, now).expect("credentials");
    let accepted = Arc::from(["cluster.local".parse().expect("domain")]);
    Arc::new(TlsGeneration::new(number, Arc::new(credentials), accepted, &system_clock()).expect("tls"))
}

fn dial_out(budget: &Budget) -> DialOut {
    let settings = watch::channel(Arc::new(Settings::default())).1;
    DialOut { mark: None, own_sockets: Default::default(), budget: budget.clone(), settings }
}

/// One worker's side.
struct World {
    authority: Authority,
    tls: watch::Sender<Option<Arc<TlsGeneration>>>,
    tunnels: Rc<Tunnels>,
    pool: Rc<Pool>,
    limits: Limits,
    books: Books,
}

impl World {
    fn new() -> Self {
        Self::with_idle(IDLE_TUNNELS)
    }

    fn with_idle(idle_tunnels: usize) -> Self {
        let authority = authority();
        let (tls, reader) = watch::channel(Some(generation(&authority, 1, "client")));
        let tunnels = Tunnels::new(Arc::new(WorkerCounters::default()));
        let dial: Rc<dyn Dial> = Rc::new(dial_out(&Budget::new(u64::MAX, 0)));
        let books = Books::default();
        let parts = Parts {
            dial,
            tls: reader,
            tunnels: Rc::clone(&tunnels),
            clock: system_clock(),
            idle_tunnels,
            books: books.clone(),
        };
        // One tunnel after the other is filled, unless a test says otherwise.
        let limits = Limits { max_per_peer: NonZeroU32::MIN, ..Limits::default() };
        Self { authority, tls, tunnels, pool: Pool::new(parts), limits, books }
    }

    fn max_streams(mut self, streams: u32) -> Self {
        self.limits.max_streams = NonZeroU32::new(streams).expect("not zero");
        self
    }

    fn peer(&self) -> Rc<Peer> {
        Peer::start(&generation(&self.authority, 1, "server"))
    }

    async fn open(&self, key: &TunnelKey) -> Result<Opened, OpenError> {
        self.open_until(key, Duration::from_secs(20)).await
    }

    async fn open_until(&self, key: &TunnelKey, within: Duration) -> Result<Opened, OpenError> {
        self.pool.open(key, request(), &self.limits, tokio::time::Instant::now() + within).await
    }

    /// So many at the same time.
    async fn open_many(&self, keys: &[&TunnelKey]) -> Vec<Result<Opened, OpenError>> {
        let mut tasks = Vec::new();
        for key in keys {
            let (pool, limits, key) = (Rc::clone(&self.pool), self.limits.clone(), (*key).clone());
            let by = tokio::time::Instant::now() + Duration::from_secs(30);
            tasks.push(tokio::task::spawn_local(async move { pool.open(&key, request(), &limits, by).await }));
        }
        let mut opened = Vec::new();
        for task in tasks {
            opened.push(task.await.expect("task"));
        }
        opened
    }

    fn sweep_after(&self, seconds: u64) {
        self.pool.sweep(Instant::now() + Duration::from_secs(seconds), &self.limits);
    }

    /// Handshakes of ours that failed, by reason.
    fn failures(&self) -> Vec<(&'static str, u64)> {
        self.books.failures.counts().into_iter().map(|(_, reason, count)| (reason, count)).collect()
    }

    fn streams(&self) -> u32 {
        let mut streams = 0;
        self.tunnels.for_each(|tunnel| streams += tunnel.streams());
        streams
    }
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = http::Method::CONNECT;
    *request.uri_mut() = "10.0.0.1:80".parse().expect("authority");
    request
}

fn key(address: SocketAddr) -> TunnelKey {
    key_of(address, 1, "uid")
}

fn key_of(address: SocketAddr, client: u8, uid: &str) -> TunnelKey {
    let client = IpAddr::V4(Ipv4Addr::new(10, 0, 0, client));
    TunnelKey::new(address, [id("server")].into(), client, uid.into())
}

fn all(results: Vec<Result<Opened, OpenError>>) -> Vec<Opened> {
    results.into_iter().map(|result| result.expect("opened")).collect()
}
