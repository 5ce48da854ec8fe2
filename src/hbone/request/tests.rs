//! The CONNECT request and its answer: exactly the headers of the protocol, and what is refused of others.

use std::time::Duration;

use http::Response;
use proptest::prelude::*;
use tokio::io::DuplexStream;
use tokio::time::timeout;

use super::*;
use crate::telemetry::PeerLabels;

const LIMIT: Duration = Duration::from_secs(20);

const TRACE: Traceparent = Traceparent { trace_id: 0xabc, span_id: 0xdef };
const TRACE_TEXT: &str = "00-00000000000000000000000000000abc-0000000000000def-00";

fn authority(text: &str) -> Authority {
    text.parse().expect("an authority")
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn header(request: &Request<()>, name: &str) -> Option<String> {
    request.headers().get(name).map(|value| value.to_str().expect("text").to_owned())
}

#[test]
fn the_forwarded_header() {
    let longest = format!("{}.x", ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(59)].join("."));
    let ipv6 = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
    for (client, service, want) in [
        ("10.0.0.1:1234", None, "for=\"10.0.0.1:1234\"".to_owned()),
        ("[::ffff:10.0.0.1]:1234", None, "for=\"10.0.0.1:1234\"".to_owned()),
        ("[2001:db8::1]:1234", None, "for=\"[2001:db8::1]:1234\"".to_owned()),
        ("[fe80::1%3]:1234", None, "for=\"[fe80::1]:1234\"".to_owned()),
        ("10.0.0.1:1234", Some("cart.shop"), "for=\"10.0.0.1:1234\";host=cart.shop".to_owned()),
        ("[2001:db8::1]:1", Some("cart.shop"), "for=\"[2001:db8::1]:1\";host=cart.shop".to_owned()),
        (ipv6, Some(&longest), format!("for=\"{ipv6}\";host={longest}")),
        ("10.0.0.1:1", Some("a;host=evil"), "for=\"10.0.0.1:1\"".to_owned()),
        ("10.0.0.1:1", Some("a\nb"), "for=\"10.0.0.1:1\"".to_owned()),
        ("10.0.0.1:1", Some(""), "for=\"10.0.0.1:1\"".to_owned()),
    ] {
        let made = forwarded(address(client), service).expect("a header");
        assert_eq!(made.to_str().expect("text"), want);
        let mut headers = HeaderMap::new();
        headers.insert(FORWARDED, made);
        let read = Claims(&headers).forwarded_host();
        assert_eq!(read, service.filter(|_| want.contains("host=")));
    }
}

#[test]
fn a_request_has_exactly_the_headers_of_the_protocol() {
    let baggage = HeaderValue::from_static("k8s.namespace.name=shop");
    let network = HeaderValue::from_static("");
    let request = ConnectRequest {
        authority: &authority("10.0.0.2:8080"),
        baggage: Some(&baggage),
        client: address("10.0.0.1:1234"),
        service: Some("cart.shop"),
        trace: TRACE,
        network: None,
    };
    let built = request.build();
    assert_eq!((built.method(), built.uri().to_string()), (&Method::CONNECT, "10.0.0.2:8080".to_owned()));
    assert!(built.uri().scheme().is_none() && built.uri().path_and_query().is_none());
    assert_eq!(built.headers().len(), 3);
    assert_eq!(header(&built, "baggage").as_deref(), Some("k8s.namespace.name=shop"));
    assert_eq!(header(&built, "forwarded").as_deref(), Some("for=\"10.0.0.1:1234\";host=cart.shop"));
    assert_eq!(header(&built, "traceparent").as_deref(), Some(TRACE_TEXT));
    let of_network = ConnectRequest { network: Some(&network), ..request }.build();
    assert_eq!(of_network.headers().len(), 4);
    assert_eq!(header(&of_network, "x-forwarded-network").as_deref(), Some(""));
    let bare = ConnectRequest { baggage: None, service: None, ..request }.build();
    assert_eq!(bare.headers().len(), 2);
}

/// A request as a server gets it, from what a test says of it.
fn parts(method: Method, uri: &str) -> request::Parts {
    Request::builder().method(method).uri(uri).body(()).expect("a request").into_parts().0
}

#[test]
fn what_a_server_refuses() {
    for method in [Method::GET, Method::POST, Method::OPTIONS, Method::from_bytes(b"connect").expect("a method")] {
        assert_eq!(read(&parts(method, "10.0.0.1:80")).err(), Some(Rejected::Method));
    }
    let mut extended = parts(Method::CONNECT, "https://10.0.0.1:80/");
    extended.extensions.insert(h2::ext::Protocol::from_static("websocket"));
    assert_eq!(read(&extended).err(), Some(Rejected::Extended));
    for (uri, want) in [
        ("/", AuthorityError::Port),
        ("cart.shop", AuthorityError::Port),
        ("user@10.0.0.1:80", AuthorityError::Name),
        ("10.0.0.1:0", AuthorityError::Port),
    ] {
        let uri: http::Uri = uri.parse().expect("a URI for the library");
        let mut parts = parts(Method::CONNECT, "x:1");
        parts.uri = uri;
        assert_eq!(read(&parts).err(), Some(Rejected::Authority(want)), "{}", parts.uri);
    }
}

#[test]
fn a_refusal_has_a_status_and_a_word() {
    for (rejected, status) in
        [(Rejected::Method, 400), (Rejected::Extended, 501), (Rejected::Authority(AuthorityError::Port), 400)]
    {
        let answer = refused(rejected.status(), rejected.word());
        let read = read_answer(&answer).expect_err("refused");
        assert_eq!((read.status.as_u16(), read.reason.as_deref()), (status, Some(rejected.word())));
    }
}

/// Hostile headers neither panic nor become claims, and the authority alone decides.
#[test]
fn hostile_headers_are_not_claims() {
    let mut parts = parts(Method::CONNECT, "10.0.0.1:80");
    let huge = HeaderValue::from_bytes(&vec![b'x'; 1 << 20]).expect("a header");
    let binary = HeaderValue::from_bytes(&[0xff; 64]).expect("a header");
    for name in [&BAGGAGE, &FORWARDED, &TRACEPARENT, &NETWORK] {
        parts.headers.insert(name.clone(), huge.clone());
        parts.headers.append(name.clone(), binary.clone());
    }
    for _ in 0..1000 {
        parts.headers.append(BAGGAGE.clone(), HeaderValue::from_static("k8s.namespace.name=kube-system"));
    }
    let Connect { authority, claims } = read(&parts).expect("a request");
    assert_eq!(authority.to_string(), "10.0.0.1:80");
    assert_eq!(claims.peer(), None);
    assert_eq!((claims.forwarded_host(), claims.trace(), claims.network()), (None, None, None));
}

/// Answers each stream by what its request says, until the client is done.
async fn serve(io: DuplexStream, baggage: Option<HeaderValue>) -> Vec<request::Parts> {
    let mut connection = h2::server::handshake(io).await.expect("a preface");
    let mut seen = Vec::new();
    while let Some(stream) = connection.accept().await {
        let (request, mut respond) = stream.expect("a stream");
        let (parts, _body) = request.into_parts();
        let answer = match read(&parts) {
            Ok(Connect { authority: Authority::Name { .. }, .. }) => {
                refused(StatusCode::SERVICE_UNAVAILABLE, "no_such")
            }
            Ok(_) => accepted(baggage.as_ref()),
            Err(rejected) => refused(rejected.status(), rejected.word()),
        };
        let ended = !answer.status().is_success();
        let _ = respond.send_response(answer, ended).expect("an answer");
        seen.push(parts);
    }
    seen
}

async fn ask(io: DuplexStream, wanted: Vec<Request<()>>) -> Vec<Response<()>> {
    let (mut requests, connection) = h2::client::handshake(io).await.expect("a preface");
    let ask = async {
        let mut answers = Vec::new();
        for request in wanted {
            requests = requests.ready().await.expect("room");
            let ended = request.method() != Method::CONNECT;
            let (answer, _send) = requests.send_request(request, ended).expect("a stream");
            // Without its body, which would keep the connection open.
            answers.push(answer.await.expect("an answer").map(drop));
        }
        drop(requests);
        answers
    };
    let (answers, _closed) = tokio::join!(ask, Box::pin(connection));
    answers
}

/// Through real HTTP/2: what the client builds is what the server reads, and the same for the answer.
#[tokio::test]
async fn over_http2() {
    let labels = PeerLabels { namespace: "shop".into(), workload: "cart".into(), ..PeerLabels::default() };
    let baggage = baggage_of(&labels, "deployment");
    let connect = |target: &str| {
        let request = ConnectRequest {
            authority: &authority(target),
            baggage: baggage.as_ref(),
            client: address("10.0.0.1:1234"),
            service: Some("cart.shop"),
            trace: TRACE,
            network: None,
        };
        request.build()
    };
    let mut requests = ["10.0.0.2:8080", "[2001:db8::1]:443", "cart.shop:80"].map(connect).to_vec();
    requests.push(Request::get("https://10.0.0.2/").body(()).expect("a request"));

    let (near, far) = tokio::io::duplex(1 << 16);
    let both = async { tokio::join!(Box::pin(serve(far, baggage.clone())), Box::pin(ask(near, requests))) };
    let (seen, answers) = timeout(LIMIT, both).await.expect("in time");

    let want = [Some("10.0.0.2:8080"), Some("[2001:db8::1]:443"), Some("cart.shop:80"), None];
    assert_eq!(seen.len(), want.len());
    for (parts, want) in seen.iter().zip(want) {
        let connect = read(parts).ok();
        assert_eq!(connect.as_ref().map(|connect| connect.authority.to_string()).as_deref(), want);
        let Some(Connect { claims, .. }) = connect else { continue };
        assert_eq!(parts.headers.len(), 3, "no other header: {:?}", parts.headers);
        assert!(parts.uri.scheme().is_none() && parts.uri.path_and_query().is_none());
        assert_eq!(claims.peer().as_ref(), Some(&labels));
        assert_eq!(claims.forwarded_host(), Some("cart.shop"));
        assert_eq!(claims.trace(), Some(TRACE));
    }
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status().as_u16()).collect();
    assert_eq!(statuses, [200, 200, 503, 400]);
    assert_eq!(read_answer(&answers[0]).expect("accepted").peer(), Some(labels.clone()));
    let reason = |at: usize| read_answer(&answers[at]).expect_err("refused").reason;
    assert_eq!((reason(2).as_deref(), reason(3).as_deref()), (Some("no_such"), Some("not_connect")));
}

proptest! {
    #[test]
    fn a_request_round_trips(ip in any::<IpAddr>(), port in 1_u16.., client in any::<IpAddr>(), seed in any::<u64>()) {
        let authority = Authority::of_address((ip, port).into());
        let trace = Traceparent::random(&mut fastrand::Rng::with_seed(seed));
        let request = ConnectRequest {
            authority: &authority,
            baggage: None,
            client: (client, port).into(),
            service: Some("cart.shop"),
            trace,
            network: None,
        };
        let parts = request.build().into_parts().0;
        let read = read(&parts).expect("a request");
        prop_assert_eq!(read.authority, authority);
        prop_assert_eq!(read.claims.forwarded_host(), Some("cart.shop"));
        prop_assert_eq!(read.claims.trace(), Some(trace));
    }
}
