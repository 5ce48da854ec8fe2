//! The surfaces while the process has no descriptor left: they must answer, with the truth, and heal. A binary of its
//! own, because the limit on descriptors is the process's.

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit::admin::{FdReserve, HttpServer, MetricsEndpoint};
use adit::config::settings::{LogFormat, TrafficLabelSet};
use adit::lifecycle::Lifecycle;
use adit::telemetry::{Logger, Metrics, TrafficLimits};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

const LIMIT: Duration = Duration::from_secs(10);
const DESCRIPTORS: u64 = 128;

/// One scrape. The client's own socket was made while there were descriptors.
async fn scrape(client: TcpSocket, address: SocketAddr) -> String {
    let exchange = async {
        let mut stream = client.connect(address).await.expect("connect");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nconnection: close\r\n\r\n").await.expect("write");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.expect("read");
        String::from_utf8(received).expect("utf-8")
    };
    tokio::time::timeout(LIMIT, exchange).await.expect("an answer in time")
}

/// Sockets that this process has, by what its descriptors point at.
fn sockets() -> usize {
    let links =
        std::fs::read_dir("/proc/self/fd").expect("proc").filter_map(|entry| entry.ok()?.path().read_link().ok());
    links.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

/// Until the server, too, has closed what it accepted.
async fn closed_down_to(want: usize) {
    let until = Instant::now() + LIMIT;
    while sockets() > want {
        assert!(Instant::now() < until, "{} sockets, not {want}", sockets());
        tokio::task::yield_now().await;
    }
}

/// Everything that is left.
fn hoard() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

fn value(scrape: &str, name: &str) -> u64 {
    let line = scrape.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect(name).parse().expect("number")
}

#[tokio::test]
async fn metrics_answer_without_a_single_free_descriptor() {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), maximum: hard }).expect("lower the limit");
    let logger = Logger::start(LogFormat::Text, "off", false, std::io::sink()).expect("log");
    let metrics = Arc::new(Metrics::new(&TrafficLabelSet::Default, TrafficLimits::default(), logger.handle()));
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("bind");
    let listener = socket.listen(64).expect("listen");
    let address = listener.local_addr().expect("address");
    let reserve = FdReserve::default();
    let server = HttpServer::new("metrics", listener.into(), Arc::new(MetricsEndpoint::new(metrics)), reserve.clone());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(server.run(Lifecycle::default()));

    let mut clients: Vec<TcpSocket> = (0..20).map(|_| TcpSocket::new_v4().expect("socket")).collect();
    let others = sockets() - clients.len();
    // The first use of the blocking pool starts a thread; that needs nothing later.
    scrape(clients.pop().expect("client"), address).await;
    closed_down_to(others + clients.len()).await;
    let mut hoarded = hoard();
    while let Some(client) = clients.pop() {
        assert!(File::open("/dev/null").is_err(), "nothing is free");
        let text = scrape(client, address).await;
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        assert_eq!(value(&text, "adit_fd_limit"), DESCRIPTORS);
        assert_eq!(value(&text, "adit_fd_open"), DESCRIPTORS);
        // The client's own socket was given back: looking needs one, and then all are taken again.
        closed_down_to(others + clients.len()).await;
        hoarded.extend(hoard());
    }

    // It heals: the reserve is full again once there are descriptors.
    drop(hoarded);
    let started = Instant::now();
    loop {
        let text = scrape(TcpSocket::new_v4().expect("socket"), address).await;
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        if reserve.len() == FdReserve::default().len() {
            break;
        }
        assert!(started.elapsed() < LIMIT, "the reserve is not refilled: {}", reserve.len());
    }
}
