//! Headers over real sockets: in any pieces, too late, and not one byte too many.

use std::io::{Read, Write};
use std::net::TcpStream as Client;

use super::super::write::{proxy_v1, proxy_v2};
use super::*;
use crate::net::listen::tests::loopback_listener;

const LONG: Duration = Duration::from_secs(20);

/// A client, and what was accepted from it. Needs a reactor.
fn pair() -> (Client, TcpStream) {
    let listener = loopback_listener();
    let client = Client::connect(listener.local_addr().expect("address")).expect("connect");
    client.set_nodelay(true).expect("TCP_NODELAY");
    let (accepted, _) = listener.accept().expect("accept");
    accepted.set_nonblocking(true).expect("O_NONBLOCK");
    (client, TcpStream::from_std(accepted).expect("a reactor"))
}

/// Everything that is still to be read once the client has ended.
fn rest(stream: TcpStream) -> Vec<u8> {
    let mut stream = stream.into_std().expect("out of the reactor");
    stream.set_nonblocking(false).expect("O_NONBLOCK");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("read");
    rest
}

fn headers() -> [(Vec<u8>, Option<Ends>); 4] {
    let (from, to) = ("192.0.2.7:4711".parse().expect("address"), "10.0.0.9:80".parse().expect("address"));
    let identity = "spiffe://cluster.local/ns/shop/sa/cart";
    [
        (proxy_v1(from, to), Some((from, to))),
        (proxy_v2(from, to, None), Some((from, to))),
        // Longer than one look.
        (proxy_v2(from, to, Some(&identity.repeat(40))), Some((from, to))),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
    ]
}

#[tokio::test]
async fn what_follows_the_header_is_left_alone() {
    for (header, want) in headers() {
        let (mut client, accepted) = pair();
        let payload = vec![b'x'; 10_000];
        client.write_all(&[&header[..], &payload].concat()).expect("write");
        drop(client);
        assert_eq!(read_header(&accepted, LONG).await.expect("a header"), want);
        assert_eq!(rest(accepted), payload);
    }
}

#[tokio::test]
async fn a_byte_at_a_time() {
    for (header, want) in headers() {
        let (mut client, accepted) = pair();
        let (taken, next) = std::sync::mpsc::sync_channel::<()>(0);
        let bytes = [&header[..], b"!"].concat();
        let writer = std::thread::spawn(move || {
            for byte in bytes {
                client.write_all(&[byte]).expect("write");
                // Until the reader has had time to see it; the last ones may be seen together.
                let _ = next.recv_timeout(Duration::from_micros(300));
            }
        });
        assert_eq!(read_header(&accepted, LONG).await.expect("a header"), want);
        drop(taken);
        writer.join().expect("writer");
        assert_eq!(rest(accepted), b"!");
    }
}

#[tokio::test]
async fn who_sends_nothing_or_too_little_runs_out_of_time() {
    for sent in [&b""[..], b"PROXY TCP4 10.0.0.1 ", b"\r\n\r\n\0\r\nQUIT\n\x21"] {
        let (mut client, accepted) = pair();
        client.write_all(sent).expect("write");
        let begun = std::time::Instant::now();
        let error = read_header(&accepted, Duration::from_millis(50)).await.expect_err("no header");
        assert!(matches!(error, HeaderError::Timeout), "{error:?}");
        assert_eq!(error.close_reason(), CloseReason::ProxyHeaderTimeout);
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }
}

#[tokio::test]
async fn no_busy_loop_while_it_waits() {
    let (mut client, accepted) = pair();
    client.write_all(b"PROXY TCP4 10.0.0.1 ").expect("write");
    let before = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let error = read_header(&accepted, Duration::from_millis(300)).await.expect_err("no header");
    let after = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    assert!(matches!(error, HeaderError::Timeout), "{error:?}");
    let used = (after.tv_sec - before.tv_sec) * 1_000_000_000 + (after.tv_nsec - before.tv_nsec);
    assert!(used < 100_000_000, "{used} ns of CPU in 300 ms of waiting");
}

#[tokio::test]
async fn garbage_is_refused_without_waiting() {
    for sent in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PROXY TCP4 300.0.0.1 ", b"\r\n\r\n\0\r\nQUIT\n\x31"] {
        let (mut client, accepted) = pair();
        client.write_all(sent).expect("write");
        let error = read_header(&accepted, LONG).await.expect_err("no header");
        assert!(matches!(error, HeaderError::Malformed(_)), "{error:?}");
        let error = ConnectError::from(error);
        assert_eq!(error.reason, CloseReason::ProxyHeaderInvalid);
        assert!(error.detail.is_some(), "it says what is wrong");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_gone() {
    let (mut client, accepted) = pair();
    client.write_all(b"PROXY ").expect("write");
    drop(client);
    let error = read_header(&accepted, LONG).await.expect_err("no header");
    assert!(matches!(error, HeaderError::Closed), "{error:?}");
    assert_eq!(error.close_reason(), CloseReason::DownstreamGone);
}
