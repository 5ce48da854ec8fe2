//! Gauges of what the paths share: asked at each scrape.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::app::succession::Predecessors;
use crate::proxy::worker::Shared;
use crate::telemetry::Metrics;

/// Gauges that only the wiring knows how to ask.
pub(super) fn with_gauges(mut metrics: Metrics, shared: &Arc<Shared>, predecessors: &Predecessors) -> Metrics {
    let of = |ask: fn(&Shared) -> f64| {
        let shared = Arc::clone(shared);
        move || ask(&shared)
    };
    metrics.register_gauge("adit_workers", "Data workers", of(|shared| count(shared.posts.len())));
    metrics.register_gauge(
        "adit_descriptors_budget",
        "Descriptors that the data path may use",
        of(|shared| count(shared.budget.share())),
    );
    metrics.register_gauge(
        "adit_descriptors_used",
        "Descriptors that the data path uses, pipes included",
        of(|shared| count(shared.budget.used())),
    );
    metrics.register_gauge(
        "adit_endpoints_ejected",
        "Endpoints that are left alone because they failed, now",
        of(|shared| {
            let now = u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            count(shared.ejections.now(now).len())
        }),
    );
    metrics.register_gauge(
        "adit_handshakes",
        "Handshakes of peers that connect, now",
        of(|shared| count(shared.handshakes.running())),
    );
    metrics.register_gauge(
        "adit_source_rate_keys",
        "Sources whose new connections are counted against limits.sourceRate",
        of(|shared| count(shared.rates.keys())),
    );
    metrics.register_gauge(
        "adit_tunnel_window_bytes",
        "Bytes that the peers of tunnels may send before an application takes any",
        of(|shared| count(shared.windows.granted())),
    );
    metrics.register_gauge(
        "adit_preserve_source_ipv4",
        "Whether the application sees a client's IPv4 address",
        of(|shared| f64::from(shared.can_show_source[0].load(Ordering::Relaxed))),
    );
    metrics.register_gauge(
        "adit_preserve_source_ipv6",
        "Whether the application sees a client's IPv6 address",
        of(|shared| f64::from(shared.can_show_source[1].load(Ordering::Relaxed))),
    );
    let (processes, connections) = (predecessors.clone(), predecessors.clone());
    metrics.register_gauge(
        "adit_draining_processes",
        "Versions before this one that still have connections",
        move || count(processes.list().len()),
    );
    metrics.register_gauge(
        "adit_draining_connections",
        "Connections that versions before this one still have",
        move || {
            // As whole numbers: the sum of no floats is -0.
            let open: u64 = connections.list().iter().filter_map(|it| it.connections).sum();
            count(usize::try_from(open).unwrap_or(usize::MAX))
        },
    );
    metrics
}

#[expect(clippy::cast_precision_loss, reason = "a gauge of at most a few million")]
fn count(value: usize) -> f64 {
    value as f64
}
