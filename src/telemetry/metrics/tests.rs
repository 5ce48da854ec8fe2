//! The whole scrape: every family once, by the grammar, with the names that dashboards know.

use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::config::settings::LogFormat;
use crate::telemetry::close_reason::{CloseReason, ResponseFlag};
use crate::telemetry::door::{Door, Reporter};
use crate::telemetry::grammar;
use crate::telemetry::labels::{PeerLabels, ServiceLabels};
use crate::telemetry::log::Logger;
use crate::telemetry::reloads::Reloaded;
use crate::telemetry::traffic::{SecurityPolicy, TrafficLabels};

fn metrics() -> Metrics {
    let logger = Logger::start(LogFormat::Text, "off", false, std::io::sink()).expect("log");
    Metrics::new(&TrafficLabelSet::Default, TrafficLimits::default(), logger.handle())
}

fn text(metrics: &Metrics) -> String {
    let mut text = String::new();
    metrics.encode(&mut text).expect("encode");
    text
}

#[test]
fn everything_is_there_and_obeys_the_grammar() {
    let mut metrics = metrics();
    metrics.register_gauge("adit_ready", "Whether the process is ready", || 1.0);
    let worker = metrics.workers.register();
    worker.opened(Door::Outbound);
    worker.opened(Door::Inbound);
    worker.closed(Door::Inbound, CloseReason::UpstreamReset);
    worker.attempt(Err(CloseReason::ConnectRefused));
    worker.attempt(Ok(()));
    worker.refused(Scope::Socks5);
    worker.accept_backoff();
    worker.lines_suppressed(12);
    metrics.limits.set(Scope::Total, std::num::NonZeroUsize::new(1000));
    let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    metrics.reloads.applied(Reloaded::Mesh, "abc", at);
    metrics.reloads.rejected(Reloaded::Config, at);
    let samples = grammar::check(&text(&metrics));
    let build = format!("istio_build{{component=\"adit\",tag=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    for (sample, want) in [
        (build.as_str(), 1.0),
        ("adit_ready", 1.0),
        ("adit_connections_open{listener=\"outbound\"}", 1.0),
        ("adit_connections_open{listener=\"inbound\"}", 0.0),
        ("adit_connections_accepted_total{listener=\"inbound\"}", 1.0),
        ("adit_connections_closed_total{side=\"upstream\",phase=\"relay\",reason=\"upstream_reset\"}", 1.0),
        ("adit_connections_closed_total{side=\"-\",phase=\"relay\",reason=\"finished\"}", 0.0),
        ("adit_connect_attempts_total", 2.0),
        ("adit_connect_failures_total{reason=\"connect_refused\"}", 1.0),
        ("adit_connections_refused_total{scope=\"socks5\"}", 1.0),
        ("adit_connections_current{scope=\"total\"}", 1.0),
        ("adit_connections_limit{scope=\"total\"}", 1000.0),
        ("istio_tcp_sockets_open{reporter=\"source\"}", 1.0),
        ("adit_loop_refused_total", 0.0),
        ("adit_accept_backoffs_total", 1.0),
        ("adit_log_lines_suppressed_total", 12.0),
        ("adit_log_lines_dropped_total", 0.0),
        ("adit_reloads_total{what=\"mesh\",result=\"applied\"}", 1.0),
        ("adit_reloads_total{what=\"config\",result=\"rejected\"}", 1.0),
        ("adit_reload_timestamp_seconds{what=\"mesh\",result=\"applied\"}", 1_700_000_000.0),
        ("adit_in_force{what=\"mesh\",hash=\"abc\"}", 1.0),
    ] {
        assert_eq!(samples.get(sample), Some(&want), "{sample}");
    }
    for present in [
        "adit_fd_limit",
        "adit_fd_open",
        "process_open_fds",
        "process_max_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
    ] {
        assert!(samples.contains_key(present), "{present}");
    }
    assert!(!samples.contains_key("adit_connections_limit{scope=\"inbound\"}"), "no limit, no sample");
}

#[test]
#[should_panic(expected = "adit_fd_open is a metric already")]
fn a_family_cannot_be_there_twice() {
    metrics().register_gauge("adit_fd_open", "Again", || 1.0);
}

/// And no other of those that both have: who builds on them knows what may change.
#[test]
fn families_that_ztunnel_calls_unstable_say_so() {
    const UNSTABLE: [&str; 3] = ["istio_tcp_connections_failed", "istio_tcp_sockets_open", "istio_on_demand_dns"];
    const STABLE: [&str; 7] = [
        "istio_build",
        "istio_tcp_connections_opened",
        "istio_tcp_connections_closed",
        "istio_tcp_sent_bytes",
        "istio_tcp_received_bytes",
        "process_open_fds",
        "process_max_fds",
    ];
    let metrics = metrics();
    let unknown = TrafficLabels {
        source: PeerLabels::unknown(),
        destination: PeerLabels::unknown(),
        service: ServiceLabels::unknown(),
        reporter: Reporter::Source,
        security: SecurityPolicy::Unknown,
    };
    // A family without samples is left out.
    metrics.traffic.series(&unknown).closed(ResponseFlag::Connect);
    metrics.workers.register().hostnames.demanded(&PeerLabels::unknown(), &"a.test".into());
    let text = text(&metrics);
    let help =
        |family| text.lines().find_map(|line| line.strip_prefix("# HELP ")?.strip_prefix(family)?.strip_prefix(' '));
    for family in UNSTABLE {
        assert!(help(family).expect(family).contains("unstable"), "{family}");
    }
    for family in STABLE {
        assert!(!help(family).expect(family).contains("unstable"), "{family}");
    }
    let names = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next());
    for family in names.filter(|name| name.starts_with("istio_")) {
        assert!(UNSTABLE.contains(&family) || STABLE.contains(&family), "{family} is neither");
    }
}

#[test]
fn counting_from_many_threads_loses_nothing() {
    let metrics = metrics();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let worker = metrics.workers.register();
            scope.spawn(move || {
                for _ in 0..10_000 {
                    worker.opened(Door::Outbound);
                    worker.closed(Door::Outbound, CloseReason::Finished);
                }
            });
        }
    });
    assert_eq!(metrics.workers.closed(CloseReason::Finished), 40_000);
    assert_eq!(metrics.workers.open(Door::Outbound), 0);
}
