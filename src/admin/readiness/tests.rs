//! What probes are told in each phase and with each blocker.

use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::admin::http::HttpLimits;
use crate::admin::testing::{Running, request, start};

struct Fixture {
    server: Running,
    readiness: Readiness,
    lifecycle: Lifecycle,
    stuck: Arc<Mutex<Vec<Blocker>>>,
}

fn fixture() -> Fixture {
    let (readiness, lifecycle) = (Readiness::default(), Lifecycle::default());
    let stuck = Arc::<Mutex<Vec<Blocker>>>::default();
    let seen = Arc::clone(&stuck);
    let liveness: Liveness = Arc::new(move || seen.lock().expect("stuck").clone());
    let endpoint = ReadinessEndpoint::new(readiness.clone(), lifecycle.clone(), liveness);
    Fixture { server: start(Arc::new(endpoint), HttpLimits::default()), readiness, lifecycle, stuck }
}

#[tokio::test]
async fn ready_while_nothing_blocks() {
    let fixture = fixture();
    let ready = || request(fixture.server.address, "GET", "/healthz/ready", &[], "");
    let answer = ready().await;
    assert_eq!((answer.status, &answer.json()[0]["name"]), (503, &"start".into()));

    fixture.lifecycle.advance(Phase::Ready);
    let answer = ready().await;
    assert_eq!((answer.status, answer.text()), (200, "ready\n"));

    fixture.readiness.block("mesh", Some("no such file".into()));
    let answer = ready().await;
    assert_eq!((answer.status, answer.header("content-type")), (503, "application/json"));
    let blockers = answer.json();
    assert_eq!(blockers.as_array().map(Vec::len), Some(1));
    assert_eq!((&blockers[0]["name"], &blockers[0]["error"]), (&"mesh".into(), &"no such file".into()));
    let since = humantime::parse_rfc3339(blockers[0]["since"].as_str().expect("since")).expect("time");
    assert!(since.elapsed().expect("past") < Duration::from_secs(60));

    // It heals without a restart.
    fixture.readiness.clear("mesh");
    assert_eq!(ready().await.status, 200);
}

#[tokio::test]
async fn not_ready_during_drain() {
    let fixture = fixture();
    fixture.lifecycle.advance(Phase::Ready);
    let mut since = None;
    for phase in [Phase::PreDrain, Phase::DrainInbound, Phase::DrainAll, Phase::Forced] {
        fixture.lifecycle.advance(phase);
        let answer = request(fixture.server.address, "GET", "/healthz/ready", &[], "").await;
        let blockers = answer.json();
        assert_eq!((answer.status, &blockers[0]["name"]), (503, &"drain".into()));
        let this = blockers[0]["since"].clone();
        assert_eq!(*since.get_or_insert_with(|| this.clone()), this, "since the drain began");
    }
    // A blocker of that name is not doubled.
    fixture.readiness.block("drain", Some("SIGTERM".into()));
    let blockers = request(fixture.server.address, "GET", "/healthz/ready", &[], "").await.json();
    assert_eq!(blockers.as_array().map(Vec::len), Some(1));
    assert_eq!(blockers[0]["error"], "SIGTERM");
}

#[tokio::test]
async fn liveness_names_what_is_stuck() {
    let fixture = fixture();
    let live = || request(fixture.server.address, "GET", "/healthz/live", &[], "");
    assert_eq!(live().await.status, 200);
    let stuck = Blocker { name: "worker 1".into(), since: UNIX_EPOCH, error: None };
    fixture.stuck.lock().expect("stuck").push(stuck);
    let answer = live().await;
    let want = serde_json::json!([{ "name": "worker 1", "since": "1970-01-01T00:00:00.000000Z", "error": null }]);
    assert_eq!((answer.status, answer.json()), (503, want));
    fixture.stuck.lock().expect("stuck").clear();
    assert_eq!(live().await.status, 200);
}

#[tokio::test]
async fn other_paths_and_methods() {
    let fixture = fixture();
    assert_eq!(request(fixture.server.address, "GET", "/healthz", &[], "").await.status, 404);
    let answer = request(fixture.server.address, "POST", "/healthz/ready", &[], "").await;
    assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD"));
}
