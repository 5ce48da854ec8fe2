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

/// What this process's descriptors are, by number and by what they point at; `None`: not one is free to look with.
fn descriptors() -> Option<Vec<(u64, String)>> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?.filter_map(Result::ok);
    let described = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((number, entry.path().read_link().ok()?.to_string_lossy().into_owned()))
    });
    Some(described.collect())
}

fn sockets() -> Option<usize> {
    Some(descriptors()?.iter().filter(|(_, target)| target.starts_with("socket:")).count())
}

/// Until the server, too, has closed what it accepted, and its reserve is whole again.
async fn closed_down_to(want: usize, reserve: &FdReserve, whole: usize) {
    let until = Instant::now() + LIMIT;
    while sockets().is_none_or(|sockets| sockets > want) || reserve.len() < whole {
        assert!(Instant::now() < until, "{:?} sockets, not {want}; {} of {whole} kept", sockets(), reserve.len());
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
    // So many are open when none is free: what was handed down with a number beyond the limit comes on top.
    let inherited = descriptors().expect("proc").iter().filter(|(number, _)| *number >= DESCRIPTORS).count();
    let all = DESCRIPTORS + u64::try_from(inherited).expect("few");
    let logger = Logger::start(LogFormat::Text, "off", false, std::io::sink()).expect("log");
    let metrics = Arc::new(Metrics::new(&TrafficLabelSet::Default, TrafficLimits::default(), logger.handle()));
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("bind");
    let listener = socket.listen(64).expect("listen");
    let address = listener.local_addr().expect("address");
    let reserve = FdReserve::default();
    let whole = reserve.len();
    let server = HttpServer::new("metrics", listener.into(), Arc::new(MetricsEndpoint::new(metrics)), reserve.clone());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(server.run(Lifecycle::default()));

    let mut clients: Vec<TcpSocket> = (0..20).map(|_| TcpSocket::new_v4().expect("socket")).collect();
    let others = sockets().expect("proc") - clients.len();
    // The first use of the blocking pool starts a thread; that needs nothing later.
    scrape(clients.pop().expect("client"), address).await;
    closed_down_to(others + clients.len(), &reserve, whole).await;
    let mut hoarded = hoard();
    while let Some(client) = clients.pop() {
        assert!(File::open("/dev/null").is_err(), "nothing is free");
        let text = scrape(client, address).await;
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        assert_eq!(value(&text, "adit_fd_limit"), DESCRIPTORS);
        // Answering it took one descriptor of the reserve, and left none free for others to take.
        assert_eq!(value(&text, "adit_fd_open"), all);
        // The client's own socket was given back: looking needs one, and then all are taken again.
        closed_down_to(others + clients.len(), &reserve, whole).await;
        hoarded.extend(hoard());
    }

    // It heals: the reserve is full again once there are descriptors.
    drop(hoarded);
    let started = Instant::now();
    loop {
        let text = scrape(TcpSocket::new_v4().expect("socket"), address).await;
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        if reserve.len() == whole {
            break;
        }
        assert!(started.elapsed() < LIMIT, "the reserve is not refilled: {}", reserve.len());
    }
}
