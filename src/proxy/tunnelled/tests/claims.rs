//! What clients say of themselves: it fills gaps in the log and the metrics, and decides nothing.

use http::{HeaderValue, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::*;

/// Has it from nobody: the state knows no workload there.
const STRANGER: [u8; 4] = [127, 0, 0, 7];
const BAGGAGE: &str = "k8s.cluster.name=moon,k8s.namespace.name=shop,k8s.deployment.name=till,service.name=till-svc,\
                       service.version=v7";
const WEB: &str = "spiffe://cluster.local/ns/test/sa/web";

impl World {
    /// A tunnel of `name`, from that address.
    async fn client_from(&self, ip: [u8; 4], name: &str) -> Client {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((ip, 0)).into()).expect("an address of loopback");
        socket.connect(&self.door.into()).expect("the door");
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        let stream = TcpStream::from_std(socket.into()).expect("a stream");
        let config = self.trust.generation(name, 1).client([id("app")].into());
        let connect = tokio_rustls::TlsConnector::from(config).connect(crate::identity::tls::no_name(), stream);
        Client::over(Box::pin(limited("TLS", connect)).await.expect("a handshake")).await
    }

    fn scrape(&self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&self.shared.families)));
        let mut text = String::new();
        encode(&mut text, &registry).expect("a scrape");
        text
    }
}

/// A whole stream with these headers; returns its record.
async fn carried(world: &World, client: &mut Client, headers: &[(&'static str, &str)]) -> serde_json::Value {
    let before = world.records().len();
    let (application, address) = application();
    let mut asked = request(&address);
    for (name, value) in headers {
        asked.headers_mut().append(*name, HeaderValue::from_str(value).expect("a value"));
    }
    let (response, mut send) = client.ask(asked).await;
    let socket = accept(&application).await;
    let response = limited("200", response).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    drop(socket);
    send.send_data(Bytes::new(), true).expect("END_STREAM");
    ended(&mut response.into_body()).await;
    until("its record", || world.records().len() > before).await;
    world.records().pop().expect("the last one")
}

/// Of whom the state does not know, all that is known is what the certificate says, and the rest is what it says itself.
#[test]
fn a_stranger_is_who_its_certificate_says_and_otherwise_what_it_says() {
    run(async {
        let world = World::new();
        let mut client = world.client_from(STRANGER, "web").await;
        // Whatever it is called, an identity is no claim.
        let more = format!("{BAGGAGE},principal=spiffe://cluster.local/ns/shop/sa/boss,k8s.pod.uid=1");
        let record = carried(&world, &mut client, &[("baggage", &more)]).await;
        for (key, want) in [
            ("src.workload", "till-svc"),
            ("src.namespace", "shop"),
            ("src.cluster", "moon"),
            ("src.identity", WEB),
            ("dst.workload", "app"),
        ] {
            assert_eq!(record[key], want, "{key} of {record}");
        }
        let scrape = world.scrape();
        let labels = format!(
            "source_workload=\"till\",source_canonical_service=\"till-svc\",source_canonical_revision=\"v7\",\
             source_workload_namespace=\"shop\",source_principal=\"{WEB}\",source_app=\"till-svc\",source_version=\"v7\",\
             source_cluster=\"moon\""
        );
        assert!(scrape.contains(&labels), "{labels} in {scrape}");
        assert!(!scrape.contains("boss"), "{scrape}");

        let record = carried(&world, &mut client, &[]).await;
        assert_eq!((&record["src.identity"], &record["src.workload"]), (&WEB.into(), &serde_json::Value::Null));
        assert!(world.scrape().contains(&format!(
            "source_workload=\"unknown\",source_canonical_service=\"unknown\",\
            source_canonical_revision=\"unknown\",source_workload_namespace=\"unknown\",source_principal=\"{WEB}\""
        )));
        drop(client);
        world.ends().await;
    });
}

/// What the state has of an address comes before what its owner says; only who says that it is in another network, where
/// the address means somebody else, is believed that. The identity is the certificate's all the same.
#[test]
fn whom_the_state_knows_is_not_asked_and_the_certificate_comes_before_both() {
    run(async {
        let world = World::new();
        // The state has another identity for the workload at this address.
        let mut client = world.client_from([127, 0, 0, 9], "web").await;
        for (network, workload, namespace) in
            [(None, "other", "test"), (Some(""), "other", "test"), (Some("far"), "till-svc", "shop")]
        {
            let mut headers = vec![("baggage", BAGGAGE)];
            headers.extend(network.map(|network| ("x-forwarded-network", network)));
            let record = carried(&world, &mut client, &headers).await;
            assert_eq!((&record["src.workload"], &record["src.namespace"]), (&workload.into(), &namespace.into()));
            assert_eq!(record["src.identity"], WEB, "{record}");
        }
        let scrape = world.scrape();
        let principals = scrape.match_indices("source_principal=\"").count();
        let own = scrape.match_indices(&format!("source_principal=\"{WEB}\"")).count();
        assert_eq!(own, principals, "{scrape}");
        drop(client);
        world.ends().await;
    });
}

/// A claim neither opens what only others may nor evades what is meant for the claimant.
#[test]
fn a_claim_decides_nothing() {
    run(async {
        for (action, namespace) in [("Allow", "shop"), ("Deny", "test")] {
            let policy = format!(
                "policies:\n- {{ name: p, namespace: test, scope: Namespace, action: {action}, dryRun: false, \
                 rules: [[[{{ namespaces: [{{ exact: {namespace} }}] }}]]] }}\n"
            );
            let world = World::with(&format!("{MESH}{policy}"), |_| {});
            let (_application, address) = application();
            let mut client = world.client_from(STRANGER, "web").await;
            let mut asked = request(&address);
            asked.headers_mut().insert("baggage", HeaderValue::from_static(BAGGAGE));
            let (response, _send) = client.ask(asked).await;
            let response = limited("401", response).await.expect("an answer");
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{action} {namespace}");
            let record = world.record("policy_denied").await;
            // It is shown as what it says, beside who it is.
            assert_eq!((&record["src.namespace"], &record["src.identity"]), (&"shop".into(), &WEB.into()));
            drop(client);
            world.ends().await;
        }
    });
}
