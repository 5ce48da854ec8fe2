//! For tests of the surfaces: a server on a free port, and a client that sends exactly the bytes it is given.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::admin::http::{Endpoint, HttpLimits, HttpServer};
use crate::admin::reserve::FdReserve;
use crate::lifecycle::Lifecycle;

/// Nothing in a test waits longer.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// Stops when it is dropped.
pub(super) struct Running {
    pub(super) address: SocketAddr,
    pub(super) lifecycle: Lifecycle,
    pub(super) tasks: JoinSet<()>,
}

pub(super) fn start(endpoint: Arc<dyn Endpoint>, limits: HttpLimits) -> Running {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("bind");
    let listener = socket.listen(256).expect("listen");
    let address = listener.local_addr().expect("address");
    let lifecycle = Lifecycle::default();
    let server = HttpServer::new("test", listener.into(), endpoint, FdReserve::default()).with_limits(limits);
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run(lifecycle.clone()));
    Running { address, lifecycle, tasks }
}

pub(super) async fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("socket");
    tokio::time::timeout(LIMIT, socket.connect(address)).await.expect("in time").expect("connect")
}

/// Everything until the server ends its side.
pub(super) async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    // A reset after the last byte is an end, too.
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut received)).await.expect("in time");
    received
}

/// Sends `request`, half-closes, and reads the whole answer.
pub(super) async fn raw(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = connect(address).await;
    // The server may have answered and closed before it has taken everything.
    let _ = stream.write_all(request).await;
    let _ = stream.shutdown().await;
    read_all(&mut stream).await
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("utf-8")
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// One request with `Host: localhost` unless the headers say otherwise.
pub(super) async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if headers.iter().all(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        head.push_str("host: localhost\r\n");
    }
    if !body.is_empty() {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    let received = raw(address, format!("{head}\r\n{body}").as_bytes()).await;
    parse(&received)
}

/// The first answer in `received`, chunks joined.
pub(super) fn parse(received: &[u8]) -> Answer {
    let end = received.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a header");
    let head = std::str::from_utf8(&received[..end]).expect("utf-8");
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let rest = &received[end + 4..];
    let body = match headers.get("content-length") {
        Some(length) => rest[..length.parse().expect("length")].to_vec(),
        None if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") => join_chunks(rest),
        None => rest.to_vec(),
    };
    Answer { status: status.expect("status"), headers, body }
}

fn join_chunks(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|bytes| bytes == b"\r\n").expect("a chunk's size");
        let size = std::str::from_utf8(&rest[..end]).expect("size");
        let size = usize::from_str_radix(size, 16).expect("size");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
}
