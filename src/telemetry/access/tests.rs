//! Access log lines, byte by byte.

use std::time::UNIX_EPOCH;

use super::*;

fn labels(name: &str, namespace: &str) -> Arc<PeerLabels> {
    Arc::new(PeerLabels { name: name.into(), namespace: namespace.into(), ..PeerLabels::default() })
}

fn record(door: Door, close: CloseReason) -> AccessRecord {
    AccessRecord {
        at: UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001),
        downstream: Some(([10, 0, 0, 1], 40000).into()),
        original_dst: Some(([10, 1, 0, 1], 80).into()),
        upstream: Some(([10, 0, 0, 2], 8080).into()),
        source: labels("client-1", "default"),
        destination: labels("server-1", "prod"),
        service: Arc::new(ServiceLabels { hostname: "server.prod.svc".into(), ..ServiceLabels::default() }),
        bytes_from_downstream: 10,
        bytes_from_upstream: 2000,
        duration: Duration::from_micros(12_500),
        first_byte: Some(Duration::from_millis(3)),
        last_activity: Some(Duration::from_millis(1)),
        ..AccessRecord::new(7, door, close)
    }
}

fn text(record: &AccessRecord) -> String {
    let mut out = Vec::new();
    record.write(LogFormat::Text, &mut out);
    String::from_utf8(out).expect("utf-8")
}

#[test]
fn a_complete_connection() {
    assert_eq!(
        text(&record(Door::Outbound, CloseReason::Finished)),
        "2023-11-14T22:13:20.000001Z\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:40000 \
         src.workload=\"client-1\" src.namespace=\"default\" dst.addr=10.0.0.2:8080 dst.service=\"server.prod.svc\" \
         dst.workload=\"server-1\" dst.namespace=\"prod\" direction=\"outbound\" bytes_sent=10 bytes_recv=2000 \
         duration=\"12ms\" first_byte=\"3ms\" last_activity=\"1ms\" close_reason=\"finished\" close_side=\"-\" \
         close_phase=\"relay\" listener=\"outbound\" id=7\n"
    );
}

#[test]
fn bytes_are_told_from_the_workloads_view() {
    assert!(text(&record(Door::Inbound, CloseReason::Finished)).contains(" bytes_sent=2000 bytes_recv=10 "));
    assert!(text(&record(Door::Socks5, CloseReason::Finished)).contains(" bytes_sent=10 bytes_recv=2000 "));
}

#[test]
fn levels_and_messages() {
    for (close, want) in [
        (CloseReason::Finished, "\tinfo\taccess\tconnection complete\t"),
        (CloseReason::UpstreamReset, "\tinfo\taccess\tconnection complete\t"),
        (CloseReason::ConnectRefused, "\terror\taccess\tconnection complete\t"),
        (CloseReason::Drain, "\terror\taccess\tconnection complete\t"),
        (CloseReason::LoopRefused, "\twarn\taccess\tconnection failed\t"),
        (CloseReason::ConnectionLimit, "\twarn\taccess\tconnection failed\t"),
    ] {
        let text = text(&record(Door::Outbound, close));
        assert!(text.contains(want), "{text}");
        assert_eq!(text.contains(" error="), close != CloseReason::Finished, "{text}");
    }
}

#[test]
fn attempts_are_written_when_there_is_something_to_tell() {
    let attempt =
        |port, outcome| Attempt { address: ([10, 0, 0, 9], port).into(), outcome, took: Duration::from_millis(2) };
    let mut record = record(Door::Outbound, CloseReason::Finished);
    record.attempts = vec![attempt(1, Ok(()))];
    assert!(!text(&record).contains("attempts="));
    record.attempts.insert(0, attempt(2, Err(CloseReason::ConnectRefused)));
    assert!(text(&record).contains(r#" attempts="10.0.0.9:2 connect_refused 2ms, 10.0.0.9:1 ok 2ms" "#));
    record.attempts.truncate(1);
    assert!(text(&record).contains(r#" attempts="10.0.0.9:2 connect_refused 2ms" "#));
}

#[test]
fn a_detail_that_says_the_same_again_is_left_out() {
    let mut record = record(Door::Hbone, CloseReason::LoopRefused);
    for (detail, want) in [
        ("attempted recursive call to ourselves", r#" error="attempted recursive call to ourselves" "#),
        ("10.0.0.2:15001", r#" error="attempted recursive call to ourselves: 10.0.0.2:15001" "#),
    ] {
        record.detail = Some(detail.into());
        let line = text(&record);
        assert!(line.contains(want), "{line}");
    }
}

#[test]
fn what_a_peer_said_cannot_forge_a_field_or_a_line() {
    let mut record = record(Door::Socks5, CloseReason::NameUnresolved);
    record.requested = Some(PeerText::from_bytes(b"x\" id=99\n2023 info \xff\x1b[2J"));
    record.detail = Some("no\nsuch".into());
    let line = text(&record);
    assert_eq!(line.matches('\n').count(), 1);
    assert!(line.contains(r#" dst.requested="x\" id=99\\n2023 info \\xff\\u{1b}[2J" "#), "{line}");
    let mut json = Vec::new();
    record.write(LogFormat::Json, &mut json);
    let value: serde_json::Value = serde_json::from_slice(&json).expect("json");
    assert_eq!(value["id"], 7);
    assert_eq!(value["scope"], "access");
    assert_eq!(value["message"], "connection failed");
    assert_eq!(value["dst.requested"], "x\" id=99\\n2023 info \\xff\\u{1b}[2J");
    assert_eq!(value["error"], "connection failed: the name has no address: no\nsuch");
    assert!(value.get("bytes_sent").is_none());
}
