//! The door with real sockets: a worker in its thread, peers that speak TLS and HTTP/2 by hand.

mod claims;
mod world;

use std::num::{NonZeroU32, NonZeroUsize};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderValue, Method};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use world::*;

async fn chunk(body: &mut h2::RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let data = limited("data", body.data()).await;
    if let Some(Ok(data)) = &data {
        body.flow_control().release_capacity(data.len()).expect("capacity");
    }
    data
}

/// END_STREAM, and not a byte before it.
async fn ended(body: &mut h2::RecvStream) {
    while let Some(data) = chunk(body).await {
        assert!(data.expect("no reset").is_empty(), "bytes that nobody sent");
    }
}

async fn expect(body: &mut h2::RecvStream, want: &[u8]) {
    let mut got = Vec::new();
    while got.len() < want.len() {
        got.extend_from_slice(&chunk(body).await.expect("not the end").expect("no reset"));
    }
    assert_eq!(got, want);
}

#[test]
fn a_stream_reaches_the_application_and_is_accounted_for() {
    run(async {
        let world = World::new();
        let (application, address) = application();
        let mut client = world.client().await;
        let mut asked = request(&address);
        asked.headers_mut().insert("baggage", HeaderValue::from_static("k8s.namespace.name=shop,service.name=web"));
        let (response, mut send) = client.ask(asked).await;
        let mut socket = accept(&application).await;
        let response = limited("200", response).await.expect("an answer");
        assert_eq!(response.status(), 200);
        let baggage = response.headers().get("baggage").and_then(|value| value.to_str().ok());
        assert_eq!(baggage, Some("k8s.namespace.name=test,k8s.pod.name=app"), "of the workload that was reached");
        let mut body = response.into_body();
        send.send_data(Bytes::from_static(b"ping"), true).expect("data");
        let mut got = Vec::new();
        limited("the client's half", socket.read_to_end(&mut got)).await.expect("read");
        assert_eq!(got, b"ping");
        socket.write_all(b"pong").await.expect("write");
        drop(socket);
        expect(&mut body, b"pong").await;
        ended(&mut body).await;
        let record = world.record("finished").await;
        for (key, want) in [
            ("message", "connection complete"),
            ("src.identity", "spiffe://cluster.local/ns/test/sa/web"),
            ("dst.identity", "spiffe://cluster.local/ns/test/sa/app"),
            ("dst.addr", &world.door.to_string()),
            ("dst.hbone_addr", &address),
            ("dst.workload", "app"),
            ("direction", "inbound"),
            ("listener", "hbone"),
        ] {
            assert_eq!(record[key], want, "{key} of {record}");
        }
        // The state knows the workload at the peer's address; the claim is not asked.
        assert_eq!(record["src.workload"], "app");
        assert_eq!((record["bytes_sent"].as_u64(), record["bytes_recv"].as_u64()), (Some(4), Some(4)));
        drop((client, send, body));
        world.ends().await;
    });
}

#[test]
fn every_refusal_has_its_status_and_its_word() {
    run(async {
        let world = World::new();
        let mut client = world.client().await;
        let (closed, nobody) = application();
        drop(closed);
        let door = world.door.to_string();
        for (authority, status, word, reason) in [
            ("127.0.0.1:0", 400, "bad_authority", CloseReason::BadConnect),
            ("127.0.0.1", 400, "bad_authority", CloseReason::BadConnect),
            ("127.0.0.9:80", 400, "forbidden_address", CloseReason::NotLocal),
            ("[fe80::1]:80", 400, "forbidden_address", CloseReason::NotLocal),
            ("224.0.0.1:80", 400, "forbidden_address", CloseReason::NotLocal),
            ("0.0.0.0:80", 400, "forbidden_address", CloseReason::NotLocal),
            ("10.0.0.9:80", 400, "ip_mismatch", CloseReason::NotLocal),
            ("nobody.test.svc:80", 503, "unknown_hostname", CloseReason::UnknownWorkload),
            ("app.test.svc:81", 503, "no_service_port", CloseReason::NoServicePort),
            (&door, 503, "loop_refused", CloseReason::LoopRefused),
            (&nobody, 503, "connect_refused", CloseReason::ConnectRefused),
        ] {
            let before = world.closed(reason);
            let (response, _send) = client.connect(authority).await;
            assert_eq!(refusal(&response), (status, word.to_owned()), "{authority}");
            assert!(response.body().is_end_stream(), "{authority}");
            world.wait_closed(reason, before + 1).await;
        }
        let mut get = request("127.0.0.1:80");
        *get.method_mut() = Method::GET;
        *get.uri_mut() = "https://127.0.0.1:80/".parse().expect("a URI");
        let (response, _send) = client.ask(get).await;
        assert_eq!(refusal(&limited("400", response).await.expect("an answer")), (400, "not_connect".to_owned()));
        drop(client);
        world.ends().await;
    });
}

/// Sixty kilobytes of it would fit in a request.
#[test]
fn an_endless_authority_is_logged_in_short() {
    run(async {
        let world = World::new();
        let mut client = world.client().await;
        let (response, _send) = client.connect(&format!("{}:80", "a".repeat(20_000))).await;
        assert_eq!(refusal(&response), (400, "bad_authority".to_owned()));
        let record = world.record("bad_connect").await;
        assert_eq!(record["dst.hbone_addr"].as_str().map(str::len), Some(259), "{record}");
        drop(client);
        world.ends().await;
    });
}

#[test]
fn a_workload_that_appears_in_time_is_waited_for() {
    run(async {
        let world = World::with("workloads: []\nservices: []\n", |_| {});
        let (application, address) = application();
        let mut client = world.client().await;
        let (response, _send) = client.ask(request(&address)).await;
        until("the stream waits", || world.live() == 2).await;
        world.snapshots.send_replace(mesh(MESH));
        let _socket = accept(&application).await;
        assert_eq!(limited("200", response).await.expect("an answer").status(), 200);
    });
}

#[test]
fn a_workload_that_does_not_appear_is_503() {
    run(async {
        let world = World::with("workloads: []\nservices: []\n", |_| {});
        let mut client = world.client().await;
        let (response, _send) = client.connect("127.0.0.1:80").await;
        assert_eq!(refusal(&response), (503, "unknown_local_workload".to_owned()));
        assert_eq!(world.record("unknown_workload").await["dst.hbone_addr"], "127.0.0.1:80");
    });
}

/// There is nothing to wait for, and who has the address of the tunnel is not asked.
#[test]
fn without_a_name_no_workload_is_served() {
    run(async {
        let world = World::with(MESH, |settings| settings.workload.name = "".into());
        let mut client = world.client().await;
        let asked = Instant::now();
        let (response, _send) = client.connect("127.0.0.1:80").await;
        assert_eq!(refusal(&response), (503, "unknown_local_workload".to_owned()));
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
        world.wait_closed(CloseReason::UnknownWorkload, 1).await;
    });
}

/// A listener whose queue is full: a connection to it is neither accepted nor refused.
struct BlackHole(Vec<socket2::Socket>, String);

impl BlackHole {
    fn new() -> Self {
        let make = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let listener = make();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
        listener.listen(0).expect("listen");
        let address = listener.local_addr().expect("an address");
        let text = address.as_socket().expect("IPv4").to_string();
        let mut held = vec![listener];
        for _ in 0..4 {
            let socket = make();
            socket.set_nonblocking(true).expect("O_NONBLOCK");
            // In progress, for ever once the queue is full.
            let _ = socket.connect(&address);
            held.push(socket);
        }
        Self(held, text)
    }
}

#[test]
fn a_reset_ends_the_connecting_and_so_does_the_loss_of_the_tunnel() {
    run(async {
        let world = World::with(MESH, |settings| {
            settings.connect.timeout = LIMIT * 3;
            settings.connect.deadline = LIMIT * 3;
        });
        let hole = BlackHole::new();
        assert!(!hole.0.is_empty());
        let mut client = world.client().await;
        let (response, mut send) = client.ask(request(&hole.1)).await;
        until("the stream is there", || world.live() == 2).await;
        send.send_reset(Reason::CANCEL);
        world.wait_closed(CloseReason::DownstreamGone, 1).await;
        // Only the tunnel's is left.
        until("its descriptor comes back", || world.shared.budget.used() == 1).await;
        drop(response);
        let (response, _send) = client.ask(request(&hole.1)).await;
        until("the stream is there", || world.live() == 2).await;
        client.connection.abort();
        drop(response);
        world.wait_closed(CloseReason::TunnelGone, 2).await;
        until("nothing is left", || world.live() == 0).await;
        world.ends().await;
    });
}

/// What adit ends itself is not the client's doing, wherever the stream is.
#[test]
fn lost_trust_ends_the_connecting_with_its_own_reason() {
    run(async {
        let world = World::with(MESH, |settings| {
            settings.connect.timeout = LIMIT * 3;
            settings.connect.deadline = LIMIT * 3;
        });
        let hole = BlackHole::new();
        let mut client = world.client().await;
        let (_response, _send) = client.ask(request(&hole.1)).await;
        until("the stream is there", || world.live() == 2).await;
        world.tls.send_replace(Some(Trust::new().generation("app", 2)));
        world.wait_closed(CloseReason::PeerUntrusted, 2).await;
        until("nothing is left", || world.live() == 0).await;
        world.ends().await;
    });
}

#[test]
fn streams_beyond_the_limit_are_refused_and_the_tunnel_stays() {
    run(async {
        let world = World::with(MESH, |settings| settings.limits.hbone = NonZeroUsize::new(2));
        let (application, address) = application();
        let mut client = world.client().await;
        let (first, send) = client.connect(&address).await;
        assert_eq!(first.status(), 200);
        let _socket = accept(&application).await;
        let (second, _) = client.connect(&address).await;
        assert_eq!(refusal(&second), (503, "connection_limit".to_owned()));
        drop((first, send));
        until("the first has gone", || world.live() == 1).await;
        let (third, _send) = client.connect(&address).await;
        assert_eq!(third.status(), 200);
    });
}

#[test]
fn streams_beyond_the_rate_of_their_source_are_refused_and_the_tunnel_stays() {
    run(async {
        let world = World::with(MESH, |settings| {
            settings.limits.source_rate = NonZeroU32::new(1);
            settings.limits.source_burst = NonZeroU32::new(2).expect("not zero");
        });
        let (closed, nobody) = application();
        drop(closed);
        let mut client = world.client().await;
        let (connected, limited) = ((503, "connect_refused".to_owned()), (429, "rate_limited".to_owned()));
        // The clock goes on meanwhile, and may bring some back.
        for tried in 1..=100 {
            let (response, _send) = client.connect(&nobody).await;
            let answer = refusal(&response);
            if answer == limited {
                assert!(tried > 2, "the burst is two");
                break;
            }
            assert_eq!(answer, connected);
            assert!(tried < 100, "a hundred within a few seconds");
        }
        world.wait_closed(CloseReason::RateLimited, 1).await;
        drop(client);
        world.ends().await;
    });
}

#[test]
fn an_application_tunnel_is_told_who_the_client_is() {
    run(async {
        let (application, address) = application();
        let port = address.rsplit(':').next().expect("a port");
        let mesh = format!(
            "workloads:\n- {{ uid: app, name: app, namespace: test, workloadIps: [127.0.0.1], \
             applicationTunnel: {{ protocol: PROXY, port: {port} }} }}\nservices: []\n"
        );
        let world = World::with(&mesh, |_| {});
        let stream = world.tls("web").await;
        let peer = stream.get_ref().0.local_addr().expect("an address");
        let mut client = Client::over(stream).await;
        let (response, mut send) = client.connect("10.1.2.3:4567").await;
        assert_eq!(response.status(), 200);
        send.send_data(Bytes::from_static(b"hello"), true).expect("data");
        let mut socket = accept(&application).await;
        let mut got = Vec::new();
        limited("header and data", socket.read_to_end(&mut got)).await.expect("read");
        let identity = "spiffe://cluster.local/ns/test/sa/web";
        let mut want =
            crate::proxy::proxy_header::proxy_v2(peer, "10.1.2.3:4567".parse().expect("address"), Some(identity));
        want.extend_from_slice(b"hello");
        assert_eq!(got, want);
        drop(socket);
        assert_eq!(world.record("finished").await["bytes_recv"].as_u64(), Some(5), "the header does not count");
    });
}

#[test]
fn a_drain_serves_what_was_opened_before_the_client_heard_of_it() {
    run(async {
        let world = World::new();
        let (application, address) = application();
        let mut client = world.client().await;
        let (response, mut old) = client.connect(&address).await;
        let (mut old_body, mut old_socket) = (response.into_body(), accept(&application).await);
        // The client does not read meanwhile: the GOAWAY waits in its socket, and it opens one more stream.
        let mut sender = limited("ready", client.send.clone().ready()).await.expect("ready");
        client.pause(true);
        world.drain();
        until("the door is closed", || {
            world.shared.accepting[Door::Hbone as usize].load(std::sync::atomic::Ordering::Relaxed) == 0
        })
        .await;
        let (response, mut new) = sender.send_request(request(&address), false).expect("it has not heard of it");
        let mut new_socket = accept(&application).await;
        client.pause(false);
        let mut new_body = limited("200", response).await.expect("an answer").into_body();
        for (socket, send, body) in
            [(&mut old_socket, &mut old, &mut old_body), (&mut new_socket, &mut new, &mut new_body)]
        {
            send.send_data(Bytes::from_static(b"x"), false).expect("data");
            limited("a byte", socket.read_u8()).await.expect("a byte");
            socket.write_all(b"y").await.expect("write");
            expect(body, b"y").await;
        }
        for (mut socket, mut send, mut body) in [(old_socket, old, old_body), (new_socket, new, new_body)] {
            send.send_data(Bytes::new(), true).expect("END_STREAM");
            socket.shutdown().await.expect("FIN");
            ended(&mut body).await;
        }
        let end = limited("the end of the tunnel", client.connection).await.expect("joined");
        end.expect("in order: GOAWAY, close_notify, FIN");
        assert_eq!(world.closed(CloseReason::Drain), 0);
        world.ends().await;
    });
}

#[test]
fn a_peer_that_ignores_goaway_does_not_hold_an_idle_tunnel() {
    run(async {
        let world = World::new();
        // Speaks HTTP/2 and is never polled again.
        let (send, connection) = Box::pin(h2::client::handshake(world.tls("web").await)).await.expect("HTTP/2");
        until("the handshake is complete", || world.shared.handshakes.running() == 0).await;
        world.ends().await;
        drop((send, connection));
    });
}

#[test]
fn the_forced_end_resets_streams_and_closes_tunnels() {
    run(async {
        let world = World::new();
        let (application, address) = application();
        let mut client = world.client().await;
        let (response, _send) = client.connect(&address).await;
        let mut body = response.into_body();
        let mut socket = accept(&application).await;
        world.drain();
        world.shared.force_until.set(Instant::now()).expect("once");
        world.shared.lifecycle.advance(Phase::Forced);
        let error = chunk(&mut body).await.expect("not the end").expect_err("a reset");
        assert_eq!(error.reason(), Some(Reason::CANCEL));
        let mut buffer = [0; 1];
        limited("a reset", socket.read(&mut buffer))
            .await
            .expect_err("the application is not told that it was complete");
        drop(client);
        world.wait_closed(CloseReason::Drain, 1).await;
        world.ends().await;
    });
}

#[test]
fn half_open_handshakes_do_not_delay_a_drain() {
    run(async {
        let world = World::with(MESH, |settings| settings.tunnel.handshake_timeout = LIMIT * 3);
        let mut sockets = Vec::new();
        for _ in 0..5 {
            sockets.push(world.socket());
        }
        let mut half = world.socket();
        half.write_all(&[22, 3, 1, 0, 200, 1]).await.expect("the beginning of a hello");
        let before_preface = world.tls("web").await;
        until("all are in their handshake", || world.live() == 7).await;
        let begun = Instant::now();
        world.ends().await;
        assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
        drop((sockets, half, before_preface));
    });
}

#[test]
fn a_handshake_that_is_not_complete_in_time_is_ended_wherever_it_is() {
    run(async {
        let world = World::with(MESH, |settings| settings.tunnel.handshake_timeout = Duration::from_secs(3));
        let mut silent = world.socket();
        let mut half = world.socket();
        half.write_all(&[22, 3, 1, 0, 200, 1]).await.expect("the beginning of a hello");
        let mut no_preface = world.tls("web").await;
        let mut half_preface = world.tls("web").await;
        half_preface.write_all(b"PRI * HTTP/2.0\r\n").await.expect("half a preface");
        half_preface.flush().await.expect("flush");
        let mut no_settings = world.tls("web").await;
        no_settings.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("a preface");
        no_settings.flush().await.expect("flush");
        world.wait_closed(CloseReason::HandshakeTimeout, 5).await;
        until("nothing is left", || world.live() == 0).await;
        let phase =
            |record: &serde_json::Value| record["error"].as_str()?.split_once("phase: ").map(|it| it.1.to_owned());
        let mut phases: Vec<_> = world.records().iter().filter_map(phase).collect();
        phases.sort_unstable();
        assert_eq!(phases, ["hello", "hello", "preface", "preface", "preface"]);
        for socket in [&mut silent, &mut half] {
            let mut rest = Vec::new();
            // An end or a reset: both are an end to a handshake.
            let _ = limited("the end", socket.read_to_end(&mut rest)).await;
        }
        for socket in [&mut no_preface, &mut half_preface, &mut no_settings] {
            let mut rest = Vec::new();
            let _ = limited("the end", socket.read_to_end(&mut rest)).await;
        }
        let record = world.record("handshake_timeout").await;
        assert_eq!((record["message"].as_str(), record["level"].as_str()), (Some("connection failed"), Some("warn")));
        assert!(record["src.addr"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{record}");
        world.ends().await;
    });
}

#[test]
fn credentials_that_come_in_time_are_waited_for() {
    run(async {
        let world = World::without_credentials(Trust::new(), MESH, |settings| {
            settings.tunnel.handshake_timeout = Duration::from_secs(3);
        });
        let waits = world.socket();
        world.wait_closed(CloseReason::HandshakeUnready, 1).await;
        let record = world.record("handshake_unready").await;
        assert_eq!((record["message"].as_str(), record["level"].as_str()), (Some("connection failed"), Some("warn")));
        drop(waits);
        let config = world.trust.generation("web", 1).client([id("app")].into());
        let socket = world.socket();
        let connector = tokio_rustls::TlsConnector::from(config);
        let shake = connector.connect(crate::identity::tls::no_name(), socket);
        let publish = async { world.tls.send_replace(Some(world.trust.generation("app", 1))) };
        let (shaken, _) = Box::pin(limited("TLS", async { tokio::join!(shake, publish) })).await;
        shaken.expect("a handshake");
    });
}

#[test]
fn garbage_of_every_kind_is_refused_and_counted() {
    run(async {
        let world = World::new();
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 512], &[0xff; 4096], &[22, 3, 3, 0xff, 0xff, 1, 2, 3]] {
            let mut socket = world.socket();
            // May be refused before it is all written.
            let _ = socket.write_all(garbage).await;
            let mut rest = Vec::new();
            let _ = limited("the end", socket.read_to_end(&mut rest)).await;
        }
        until("all are refused", || world.closed(CloseReason::HandshakeFailed) == 4).await;
        drop(world.socket());
        world.wait_closed(CloseReason::HandshakeGone, 1).await;
        let gone = world.record("handshake_gone").await;
        assert_eq!(gone["level"], "info", "a probe is no failure: {gone}");
        assert!(gone["error"].as_str().is_some_and(|error| error.ends_with(": phase: hello")), "{gone}");
        for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n......"[..], &[0; 64]] {
            let mut stream = world.tls("web").await;
            let _ = stream.write_all(garbage).await;
            let _ = stream.flush().await;
            let mut rest = Vec::new();
            let _ = limited("the end", stream.read_to_end(&mut rest)).await;
        }
        world.wait_closed(CloseReason::PrefaceFailed, 2).await;
        assert_eq!(world.record("preface_failed").await["error"], "http2 handshake failed: phase: preface");
        let stranger = Trust::new().generation("web", 1).client([id("app")].into());
        let connector = tokio_rustls::TlsConnector::from(stranger);
        let refused = connector.connect(crate::identity::tls::no_name(), world.socket());
        drop(Box::pin(limited("TLS", refused)).await);
        for record in world.records() {
            let text = record.to_string();
            assert!(!text.contains("rustls") && !text.contains("http://") && !text.contains("https://"), "{text}");
        }
        until("nothing is left", || world.live() == 0).await;
        world.ends().await;
    });
}

/// The second descriptor of a socket counts too, while it is there.
#[test]
fn a_handshake_takes_two_descriptors_of_the_share_and_a_tunnel_one() {
    run(async {
        let world = World::new();
        let used = || world.shared.budget.used();
        // Beside it and what its door holds for the next one.
        let first = world.client().await;
        until("a tunnel", || world.live() == 1 && world.shared.handshakes.running() == 0).await;
        let before = used();
        let silent = world.socket();
        until("the handshake", || used() == before + 2).await;
        drop(silent);
        until("its end", || used() == before).await;
        let client = world.client().await;
        until("the tunnel", || world.live() == 2 && used() == before + 1).await;
        drop((client, first));
        world.ends().await;
    });
}

#[test]
fn failed_handshakes_are_ten_lines_a_second() {
    run(async {
        let world = World::new();
        let begun = Instant::now();
        for _ in 0..100 {
            let mut socket = world.socket();
            let _ = socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        }
        until("all are counted", || {
            world.closed(CloseReason::HandshakeFailed) + world.closed(CloseReason::HandshakeGone) == 100
        })
        .await;
        let seconds = usize::try_from(begun.elapsed().as_secs()).expect("a few") + 1;
        let lines = world.records().len();
        assert!((1..=10 * seconds).contains(&lines), "{lines} lines in {seconds} s");
        world.ends().await;
    });
}

#[test]
fn beyond_the_limit_of_handshakes_peers_wait_and_are_shed_in_time() {
    run(async {
        let world = World::with(MESH, |settings| {
            settings.limits.handshakes = NonZeroUsize::MIN;
            settings.tunnel.handshake_timeout = Duration::from_secs(2);
        });
        // The only slot, for longer than any of them may wait.
        let holds = world.shared.handshakes.clone().take().await.expect("a slot");
        let mut waiting = Vec::new();
        for _ in 0..20 {
            waiting.push(world.socket());
        }
        world.wait_closed(CloseReason::HandshakeShed, 20).await;
        for socket in &mut waiting {
            let mut rest = Vec::new();
            limited("a reset", socket.read_to_end(&mut rest)).await.expect_err("a reset");
        }
        until("all are gone", || world.live() == 0).await;
        drop(holds);
        // And it goes on.
        let mut client = world.client().await;
        assert_eq!(client.connect("10.0.0.9:80").await.0.status(), 400);
    });
}

#[test]
fn floods_end_the_tunnel_or_are_refused_and_leave_nothing_behind() {
    run(async {
        let world = World::new();
        let mut client = world.client().await;
        // Thousands of requests that mean nothing: each is answered, none is kept.
        for _ in 0..2000 {
            let (response, _send) = client.connect("127.0.0.1:0").await;
            assert_eq!(response.status(), 400);
        }
        until("only the tunnel is left", || world.live() == 1).await;
        let lines = world.records().len();
        assert!(lines <= 5 * 60, "{lines} lines");
        // Headers beyond the limit: the stream is refused, or the tunnel ends.
        let mut giant = request("127.0.0.1:80");
        for number in 0..20 {
            let name = http::HeaderName::from_bytes(format!("x-{number}").as_bytes()).expect("a name");
            giant.headers_mut().insert(name, HeaderValue::from_bytes(&[b'a'; 2000]).expect("a value"));
        }
        let (response, _send) = client.ask(giant).await;
        match limited("an end", response).await {
            Ok(response) => assert_ne!(response.status(), 200),
            Err(error) => assert!(error.is_remote() || error.is_go_away() || error.is_reset(), "{error}"),
        }
        // Streams that are reset as soon as they are opened.
        let flood = world.client().await;
        for _ in 0..5000 {
            let Ok(mut send) = limited("room", flood.send.clone().ready()).await else { break };
            let Ok((response, mut stream)) = send.send_request(request("127.0.0.1:80"), false) else { break };
            stream.send_reset(Reason::CANCEL);
            drop(response);
            tokio::task::yield_now().await;
        }
        // Whether it was fast enough to be cut is luck; that nothing is left is not.
        flood.connection.abort();
        client.connection.abort();
        until("nothing is left", || world.live() == 0).await;
        world.ends().await;
    });
}

#[test]
fn a_new_leaf_leaves_streams_alone_and_lost_trust_cuts_them() {
    run(async {
        let world = World::new();
        let (application, address) = application();
        let mut client = world.client().await;
        let (response, mut send) = client.connect(&address).await;
        let mut body = response.into_body();
        let mut socket = accept(&application).await;
        world.tls.send_replace(Some(world.trust.generation("app", 2)));
        // A tunnel of the new generation: by then the old one has been judged, and it still carries.
        let mut newer = world.client().await;
        assert_eq!(newer.connect("10.0.0.9:80").await.0.status(), 400);
        send.send_data(Bytes::from_static(b"x"), false).expect("data");
        assert_eq!(limited("a byte", socket.read_u8()).await.expect("a byte"), b'x');
        world.tls.send_replace(Some(Trust::new().generation("app", 3)));
        assert!(chunk(&mut body).await.expect("not the end").is_err());
        limited("a reset", socket.read_u8()).await.expect_err("the application is not told that it was complete");
        until("both tunnels and the stream are cut", || world.closed(CloseReason::PeerUntrusted) >= 2).await;
        until("nothing is left", || world.live() == 0).await;
        world.ends().await;
    });
}
