//! The admin API by its rules: who may ask, what changes, what is answered.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::admin::api::{BlockerInfo, Rejection, ReloadReport, ReloadResult, Reloading, Reply, Status, UpgradeReport};
use crate::admin::http::HttpLimits;
use crate::admin::testing::{Running, parse, raw, request, start};
use crate::lifecycle::handover::Version;
use crate::telemetry::{ConnectionInfo, ConnectionPeer, ConnectionState, Direction, Door, Filter, FilterError};

/// A daemon that remembers what it was told.
struct Daemon {
    filter: Mutex<String>,
    drains: AtomicUsize,
    reload: ReloadResult,
}

impl Default for Daemon {
    fn default() -> Self {
        Self { filter: Mutex::new("info".into()), drains: AtomicUsize::new(0), reload: ReloadResult::Applied }
    }
}

impl Control for Daemon {
    fn config(&self) -> Reply<'_, serde_json::Value> {
        Box::pin(async { serde_json::json!({ "mode": "sidecar" }) })
    }

    fn mesh(&self) -> Dump {
        dump_of(serde_json::json!({ "schemaVersion": 1, "workloads": vec!["w"; 50_000] }))
    }

    fn connections(&self) -> Reply<'_, Vec<ConnectionInfo>> {
        Box::pin(async { vec![connection()] })
    }

    fn certs(&self) -> Reply<'_, serde_json::Value> {
        Box::pin(async { serde_json::json!({ "source": "none" }) })
    }

    fn explain(&self, question: &str) -> Result<serde_json::Value, String> {
        if question.is_empty() { Err("from is missing".into()) } else { Ok(serde_json::json!({ "text": question })) }
    }

    fn status(&self) -> Reply<'_, Status> {
        Box::pin(async {
            let blocker = BlockerInfo { name: "<mesh>".into(), since: "now".into(), error: None };
            let mut status = Status { version: "1.2.3".into(), blockers: vec![blocker], ..Status::default() };
            status.mesh.rejected = Some(Rejection { at: "then".into(), errors: vec!["a & b".into()] });
            status
        })
    }

    fn reload(&self) -> Reply<'_, ReloadReport> {
        let part = |result| Reloading { result, hash: "abc".into(), errors: vec![] };
        let report =
            ReloadReport { config: part(ReloadResult::Unchanged), mesh: part(self.reload), refused_keys: vec![] };
        Box::pin(async { report })
    }

    fn drain(&self) {
        self.drains.fetch_add(1, Ordering::Relaxed);
    }

    fn upgrade(&self) -> Reply<'_, Result<UpgradeReport, String>> {
        let version = |pid| Version { pid, version: "1".into() };
        let report = UpgradeReport {
            from: version(1),
            to: version(2),
            moved: 3,
            opened: vec![],
            left: vec![],
            connections: 4,
            until: None,
        };
        let result = if self.reload == ReloadResult::Rejected { Err("no such file".to_owned()) } else { Ok(report) };
        Box::pin(async { result })
    }

    fn log_filter(&self) -> String {
        self.filter.lock().expect("filter").clone()
    }

    fn set_log_filter(&self, filter: &str) -> Result<(), FilterError> {
        *self.filter.lock().expect("filter") = filter.parse::<Filter>()?.to_string();
        Ok(())
    }
}

fn connection() -> ConnectionInfo {
    ConnectionInfo {
        id: 7,
        direction: Direction::Outbound,
        listener: Door::Socks5,
        downstream: ([127, 0, 0, 1], 1).into(),
        original_dst: None,
        upstream: Some(([127, 0, 0, 1], 2).into()),
        source: ConnectionPeer::default(),
        destination: ConnectionPeer { workload: "w".into(), ..ConnectionPeer::default() },
        service: String::new(),
        bytes_from_downstream: 1,
        bytes_from_upstream: 2,
        age_ms: 3,
        idle_ms: 4,
        state: ConnectionState::DownstreamClosed,
    }
}

fn server(daemon: &Arc<Daemon>, hosts: HostRule) -> Running {
    start(Arc::new(AdminEndpoint::new(Arc::<Daemon>::clone(daemon), hosts)), HttpLimits::default())
}

const CHANGE: (&str, &str) = ("X-Adit", "1");

#[tokio::test]
async fn a_question_that_is_none() {
    let server = server(&Arc::default(), HostRule::Loopback);
    let answer = request(server.address, "GET", "/explain", &[], "").await;
    assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some("from is missing")));
}

#[tokio::test]
async fn documents() {
    let server = server(&Arc::default(), HostRule::Loopback);
    for (path, pointer, want) in [
        ("/config", "/mode", serde_json::json!("sidecar")),
        ("/mesh", "/schemaVersion", serde_json::json!(1)),
        ("/status", "/version", serde_json::json!("1.2.3")),
        ("/logging", "/filter", serde_json::json!("info")),
        ("/explain?from=::1&to=[::1]:80", "/text", serde_json::json!("from=::1&to=[::1]:80")),
        ("/connections", "/connections/0/destination/workload", serde_json::json!("w")),
        ("/connections", "/connections/0/state", serde_json::json!("downstreamClosed")),
    ] {
        let answer = request(server.address, "GET", path, &[], "").await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{path}");
        assert_eq!(answer.json().pointer(pointer), Some(&want), "{path}");
    }
    let answer = request(server.address, "GET", "/mesh", &[], "").await;
    assert_eq!(answer.json()["workloads"].as_array().map(Vec::len), Some(50_000));
}

#[tokio::test]
async fn the_connection_list_reads_back() {
    let server = server(&Arc::default(), HostRule::Loopback);
    let answer = request(server.address, "GET", "/connections", &[], "").await;
    let list: ConnectionList = serde_json::from_str(answer.text()).expect("list");
    assert_eq!(list.connections, [connection()]);
}

#[tokio::test]
async fn the_index_page_escapes() {
    let server = server(&Arc::default(), HostRule::Loopback);
    let answer = request(server.address, "GET", "/", &[], "").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(answer.header("content-security-policy").contains("default-src 'none'"));
    let page = answer.text();
    assert!(page.contains("adit 1.2.3") && page.contains("&lt;mesh&gt;") && page.contains("a &amp; b"), "{page}");
    assert!(!page.contains("<mesh>") && !page.contains("<script"));
    for (path, _) in ROUTES {
        assert!(page.contains(path), "{path}");
    }
}

#[tokio::test]
async fn changes_need_the_header_and_quitquitquit_does_not() {
    let daemon = Arc::<Daemon>::default();
    let server = server(&daemon, HostRule::Loopback);
    for (method, path) in [("PUT", "/logging"), ("POST", "/reload"), ("POST", "/drain")] {
        for headers in [&[][..], &[("x-adit", "0")], &[("x-adit", "")]] {
            let answer = request(server.address, method, path, headers, "debug").await;
            assert_eq!(answer.status, 403, "{path}");
            assert!(answer.text().contains("x-adit: 1"), "{}", answer.text());
        }
    }
    assert_eq!(daemon.drains.load(Ordering::Relaxed), 0);
    assert_eq!(daemon.log_filter(), "info");
    let answer = request(server.address, "POST", "/quitquitquit", &[], "").await;
    assert_eq!((answer.status, answer.text()), (200, "shutdown now\n"));
    assert_eq!(daemon.drains.load(Ordering::Relaxed), 1);
    assert_eq!(request(server.address, "POST", "/drain", &[CHANGE], "").await.status, 200);
    assert_eq!(daemon.drains.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn web_pages_are_refused() {
    let daemon = Arc::<Daemon>::default();
    let server = server(&daemon, HostRule::Loopback);
    for headers in [
        &[("host", "evil.example")][..],
        &[("host", "10.0.0.1:15000")],
        &[("origin", "http://localhost:15000")],
        &[("origin", "null"), CHANGE],
        &[("host", "evil.example"), CHANGE],
    ] {
        for (method, path) in [("GET", "/config"), ("POST", "/quitquitquit"), ("GET", "/nowhere"), ("PATCH", "/")] {
            let answer = request(server.address, method, path, headers, "").await;
            assert_eq!(answer.status, 403, "{headers:?} {path}");
        }
    }
    assert_eq!(parse(&raw(server.address, b"GET /config HTTP/1.0\r\n\r\n").await).status, 403);
    assert_eq!(daemon.drains.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn remote_hosts_where_they_are_allowed() {
    let server = server(&Arc::default(), HostRule::Any);
    assert_eq!(request(server.address, "GET", "/config", &[("host", "adit.example")], "").await.status, 200);
    let origin = ("origin", "http://adit.example");
    assert_eq!(request(server.address, "GET", "/config", &[origin], "").await.status, 403);
    assert_eq!(request(server.address, "POST", "/reload", &[("host", "adit.example")], "").await.status, 403);
}

#[tokio::test]
async fn the_wrong_method_names_the_right_one() {
    let server = server(&Arc::default(), HostRule::Loopback);
    for (path, route) in ROUTES {
        let answer = request(server.address, "DELETE", path, &[CHANGE], "").await;
        assert_eq!((answer.status, answer.header("allow")), (405, route.allow()), "{path}");
    }
    for path in ["/reload", "/drain", "/quitquitquit"] {
        assert_eq!(request(server.address, "GET", path, &[], "").await.status, 405, "{path}");
    }
    assert_eq!(request(server.address, "GET", "/nowhere", &[], "").await.status, 404);
}

#[tokio::test]
async fn the_log_filter_can_be_put() {
    let daemon = Arc::<Daemon>::default();
    let server = server(&daemon, HostRule::Loopback);
    let answer = request(server.address, "PUT", "/logging", &[CHANGE], " info,mesh=debug\n").await;
    assert_eq!((answer.status, &answer.json()["filter"]), (200, &"info,mesh=debug".into()));
    let answer = request(server.address, "PUT", "/logging", &[CHANGE], "lots").await;
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().is_some_and(|error| error.contains("`lots`")));
    let invalid = b"PUT /logging HTTP/1.1\r\nhost: localhost\r\nx-adit: 1\r\ncontent-length: 1\r\n\r\n\xff";
    assert_eq!(parse(&raw(server.address, invalid).await).status, 400);
    assert_eq!(daemon.log_filter(), "info,mesh=debug");
}

#[tokio::test]
async fn a_rejected_reload_is_an_error_with_the_report() {
    for (result, status) in
        [(ReloadResult::Applied, 200), (ReloadResult::Unchanged, 200), (ReloadResult::Rejected, 422)]
    {
        let server = server(&Arc::new(Daemon { reload: result, ..Daemon::default() }), HostRule::Loopback);
        let answer = request(server.address, "POST", "/reload", &[CHANGE], "").await;
        assert_eq!((answer.status, &answer.json()["mesh"]["result"]), (status, &result.as_str().into()));
    }
}
