//! The HTTP server against clients that are slow, large, many, or speak something else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::*;
use crate::admin::testing::{Answer, LIMIT, connect, parse, raw, read_all, request, start};
use crate::lifecycle::Phase;

/// Echoes the body; `/wait` answers when told to, `/big` streams, `/broken` breaks off.
#[derive(Default)]
struct Echo {
    waiting: Arc<AtomicUsize>,
    go: Arc<Notify>,
}

const BIG: usize = 8 << 20;

impl Endpoint for Echo {
    fn answer(&self, request: Request<Bytes>) -> Pin<Box<dyn Future<Output = Response<Body>> + Send + '_>> {
        Box::pin(async move {
            match request.uri().path() {
                "/wait" => {
                    self.waiting.fetch_add(1, Ordering::Relaxed);
                    self.go.notified().await;
                    text(StatusCode::OK, "waited")
                }
                "/big" => answer(StatusCode::OK, "x/y", Body::stream(false, |out| out.write_all(&vec![b'x'; BIG]))),
                "/broken" => {
                    let half = |out: &mut dyn io::Write| {
                        out.write_all(&[b'x'; 40_000])?;
                        Err(io::ErrorKind::Other.into())
                    };
                    answer(StatusCode::OK, "x/y", Body::stream(false, half))
                }
                _ => text(StatusCode::OK, request.into_body()),
            }
        })
    }
}

fn quick() -> HttpLimits {
    HttpLimits {
        header_within: Duration::from_millis(300),
        body_within: Duration::from_millis(300),
        ..HttpLimits::default()
    }
}

/// Where the deadlines are not what is tested.
fn patient() -> HttpLimits {
    HttpLimits { header_within: LIMIT, body_within: LIMIT, ..HttpLimits::default() }
}

fn echo() -> Arc<dyn Endpoint> {
    Arc::new(Echo::default())
}

/// The server still answers.
async fn assert_alive(address: std::net::SocketAddr) {
    let Answer { status, body, .. } = request(address, "POST", "/", &[], "hello").await;
    assert_eq!((status, body.as_slice()), (200, &b"hello"[..]));
}

#[tokio::test]
async fn answers_carry_careful_headers() {
    let server = start(echo(), HttpLimits::default());
    let answer = request(server.address, "GET", "/", &[], "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
}

#[tokio::test]
async fn a_header_byte_by_byte_has_a_deadline() {
    let server = start(echo(), quick());
    let (mut reader, mut writer) = connect(server.address).await.into_split();
    let started = Instant::now();
    let drip = async {
        for byte in std::iter::once(&b'G').chain(b"ET / HTTP/1.1\r\nx: ").chain(std::iter::repeat(&b'a')) {
            if writer.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut received = Vec::new();
    tokio::select! {
        () = drip => {}
        read = tokio::time::timeout(LIMIT, reader.read_to_end(&mut received)) => { let _ = read.expect("in time"); }
    }
    assert!(started.elapsed() >= Duration::from_millis(300) && started.elapsed() < LIMIT);
    assert!(received.is_empty(), "{}", String::from_utf8_lossy(&received));
    assert_alive(server.address).await;
}

#[tokio::test]
async fn a_slow_request_within_the_deadline_is_answered() {
    let server = start(echo(), HttpLimits { header_within: LIMIT, ..HttpLimits::default() });
    let mut stream = connect(server.address).await;
    for byte in b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n" {
        stream.write_all(&[*byte]).await.expect("write");
        tokio::task::yield_now().await;
    }
    assert_eq!(parse(&read_all(&mut stream).await).status, 200);
}

#[tokio::test]
async fn silence_and_idleness_are_ended() {
    let server = start(echo(), quick());
    let mut silent = connect(server.address).await;
    let mut idle = connect(server.address).await;
    idle.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("write");
    assert!(read_all(&mut silent).await.is_empty());
    assert_eq!(parse(&read_all(&mut idle).await).status, 200);
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let server = start(echo(), patient());
    let large_header = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(100_000));
    assert_eq!(parse(&raw(server.address, large_header.as_bytes()).await).status, 431);
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    assert_eq!(parse(&raw(server.address, many_headers.as_bytes()).await).status, 431);
    let long_uri = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    assert!([414, 431].contains(&parse(&raw(server.address, long_uri.as_bytes()).await).status));
    let announced = b"POST / HTTP/1.1\r\ncontent-length: 999999999999\r\n\r\n";
    assert_eq!(parse(&raw(server.address, announced).await).status, 413);
    let chunked = format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfffff\r\n{}", "a".repeat(0xfffff));
    assert_eq!(parse(&raw(server.address, chunked.as_bytes()).await).status, 413);
    assert_alive(server.address).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_has_a_deadline() {
    let server = start(echo(), quick());
    let mut stream = connect(server.address).await;
    stream.write_all(b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\nabc").await.expect("write");
    assert_eq!(parse(&read_all(&mut stream).await).status, 408);
}

#[tokio::test]
async fn garbage_is_answered_with_400() {
    let server = start(echo(), patient());
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client hello\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"hello world, how are you\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nx\0y: z\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\xff\xfe\xfd\xfc\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let received = raw(server.address, garbage).await;
        let shown = format!("{:?} -> {:?}", String::from_utf8_lossy(garbage), String::from_utf8_lossy(&received));
        assert!(received.starts_with(b"HTTP/1.1 400 "), "{shown}");
    }
    let _ = raw(server.address, &[0; 20_000]).await;
    let _ = raw(server.address, b"").await;
    assert_alive(server.address).await;
}

#[tokio::test]
async fn the_answer_survives_unread_input() {
    // Without lingering, closing over what was not read would reset the connection and destroy the answer.
    let server = start(echo(), patient());
    for _ in 0..20 {
        let mut request = b"bad\r\n\r\n".to_vec();
        request.extend_from_slice(&[b'x'; 60_000]);
        assert_eq!(parse(&raw(server.address, &request).await).status, 400);
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = start(echo(), patient());
    let one = |n: u32| format!("POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n{n}");
    let received = raw(server.address, (one(1) + &one(2) + &one(3)).as_bytes()).await;
    let text = String::from_utf8(received).expect("utf-8");
    let bodies: Vec<_> = text.split("HTTP/1.1 200 OK").skip(1).map(|answer| answer.chars().last()).collect();
    assert_eq!(bodies, [Some('1'), Some('2'), Some('3')]);
}

#[tokio::test]
async fn a_client_that_half_closes_gets_its_answer() {
    let server = start(echo(), patient());
    let received = raw(server.address, b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(parse(&received).body.len(), BIG);
}

#[tokio::test]
async fn many_connections_make_room_for_new_ones() {
    let server = start(echo(), HttpLimits { connections: 8, header_within: LIMIT, ..HttpLimits::default() });
    let mut held = Vec::new();
    for _ in 0..50 {
        let mut stream = connect(server.address).await;
        stream.write_all(b"GET / HT").await.expect("write");
        held.push(stream);
    }
    assert_alive(server.address).await;
    // The oldest had to go, and was told.
    assert!(read_all(&mut held[0]).await.is_empty());
}

#[tokio::test]
async fn a_request_that_is_being_answered_is_not_sacrificed() {
    let endpoint = Arc::new(Echo::default());
    let (waiting, go) = (Arc::clone(&endpoint.waiting), Arc::clone(&endpoint.go));
    let server = start(endpoint, HttpLimits { connections: 2, ..HttpLimits::default() });
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut stream = connect(server.address).await;
        stream.write_all(b"GET /wait HTTP/1.1\r\nconnection: close\r\n\r\n").await.expect("write");
        busy.push(stream);
    }
    poll_until(|| waiting.load(Ordering::Relaxed) == 2).await;
    // All are being answered: the new one is refused.
    assert!(raw(server.address, b"GET / HTTP/1.1\r\n\r\n").await.is_empty());
    go.notify_waiters();
    for mut stream in busy {
        assert_eq!(parse(&read_all(&mut stream).await).text(), "waited");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up() {
    let limits = HttpLimits { connections: 1, exchange_within: Duration::from_millis(200), ..HttpLimits::default() };
    let server = start(echo(), limits);
    let mut lazy = connect(server.address).await;
    lazy.write_all(b"GET /big HTTP/1.1\r\n\r\n").await.expect("write");
    let mut answered = Vec::new();
    let started = Instant::now();
    // Its place is free again once it has been given up.
    while !answered.starts_with(b"HTTP/1.1 200 ") {
        assert!(started.elapsed() < LIMIT, "never given up");
        answered = raw(server.address, b"GET / HTTP/1.1\r\n\r\n").await;
    }
    assert!(read_all(&mut lazy).await.len() < BIG, "it had not been answered in full");
}

#[tokio::test]
async fn half_an_answer_never_looks_whole() {
    let server = start(echo(), HttpLimits::default());
    let received = raw(server.address, b"GET /broken HTTP/1.1\r\n\r\n").await;
    assert!(received.starts_with(b"HTTP/1.1 200 "));
    assert!(!received.ends_with(b"0\r\n\r\n"));
    assert_alive(server.address).await;
}

#[tokio::test]
async fn head_has_no_body() {
    let server = start(echo(), HttpLimits::default());
    for path in ["/", "/big"] {
        let received = raw(server.address, format!("HEAD {path} HTTP/1.1\r\n\r\n").as_bytes()).await;
        assert!(received.starts_with(b"HTTP/1.1 200 ") && received.ends_with(b"\r\n\r\n"));
    }
}

#[tokio::test]
async fn stopping_finishes_what_is_being_answered_and_ends_the_rest() {
    let endpoint = Arc::new(Echo::default());
    let (waiting, go) = (Arc::clone(&endpoint.waiting), Arc::clone(&endpoint.go));
    let mut server = start(endpoint, HttpLimits { header_within: LIMIT, ..HttpLimits::default() });
    let mut busy = connect(server.address).await;
    busy.write_all(b"GET /wait HTTP/1.1\r\n\r\n").await.expect("write");
    let mut idle = connect(server.address).await;
    poll_until(|| waiting.load(Ordering::Relaxed) == 1).await;
    // Drain does not stop the surfaces.
    server.lifecycle.advance(Phase::DrainAll);
    assert_alive(server.address).await;
    server.lifecycle.advance(Phase::Stopped);
    go.notify_waiters();
    assert_eq!(parse(&read_all(&mut busy).await).text(), "waited");
    assert!(read_all(&mut idle).await.is_empty());
    tokio::time::timeout(LIMIT, server.tasks.join_next()).await.expect("stops in time");
    let refused = tokio::net::TcpSocket::new_v4().expect("socket").connect(server.address).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn a_superseded_server_answers_who_has_come_to_it_and_nobody_else() {
    let server = start(Arc::new(Echo::default()), HttpLimits::default());
    let mut kept = connect(server.address).await;
    kept.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("write");
    let mut head = [0; 12];
    kept.read_exact(&mut head).await.expect("an answer");
    let mut late = connect(server.address).await;
    // It has been accepted once a later one has been answered.
    assert_alive(server.address).await;
    server.lifecycle.supersede();
    late.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("write");
    assert!(read_all(&mut late).await.starts_with(b"HTTP/1.1 200 "));
    read_all(&mut kept).await;
    let refused = tokio::net::TcpSocket::new_v4().expect("socket").connect(server.address).await;
    assert!(refused.is_err(), "its socket is closed");
}

#[tokio::test]
async fn unix_sockets_are_served_alike() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("admin.sock");
    let listener = UnixListener::bind(&path).expect("bind");
    let lifecycle = Lifecycle::default();
    let server = HttpServer::new("test", listener.into(), echo(), FdReserve::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run(lifecycle.clone()));
    let mut stream = tokio::net::UnixStream::connect(&path).await.expect("connect");
    stream.write_all(b"POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi").await.expect("write");
    let mut received = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut received)).await.expect("in time").expect("read");
    assert_eq!(parse(&received).text(), "hi");
}

#[tokio::test]
async fn nodelay_is_set() {
    let server = start(echo(), HttpLimits::default());
    let client = connect(server.address).await;
    let listener = HttpListener::Tcp(listen());
    let HttpListener::Tcp(inner) = &listener else { unreachable!("made above") };
    let address = inner.local_addr().expect("address");
    let (accepted, _client) = tokio::join!(poll_fn(|context| listener.poll_accept(context)), connect(address));
    let Socket::Tcp(stream) = accepted.expect("accept").socket else { unreachable!("tcp") };
    assert!(TcpStream::nodelay(&stream).expect("nodelay"));
    drop(client);
}

fn listen() -> TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().expect("socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("bind");
    socket.listen(16).expect("listen")
}

#[test]
fn errors_of_accept_by_class() {
    for (errno, exhausted, passing) in [
        (Errno::MFILE, true, false),
        (Errno::NFILE, true, false),
        (Errno::NOBUFS, true, false),
        (Errno::NOMEM, true, false),
        (Errno::CONNABORTED, false, true),
        (Errno::INTR, false, true),
        (Errno::INVAL, false, false),
    ] {
        let error = io::Error::from(errno);
        assert_eq!((is_exhausted(&error), is_passing(&error)), (exhausted, passing), "{errno:?}");
    }
}

async fn poll_until(condition: impl Fn() -> bool) {
    let until = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < until, "the condition never held");
        tokio::task::yield_now().await;
    }
}
