//! Account: exactly one access record and one set of metrics per connection, whatever happened to it.
//!
//! Bytes are published while they flow, by the sweep; what is left is published at the end.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::mesh::PolicyKey;
use crate::proxy::registry::{Direction, Entry};
use crate::proxy::worker::Worker;
use crate::telemetry::access::{AccessRecord, Attempt};
use crate::telemetry::traffic::TrafficLabels;
use crate::telemetry::{CloseReason, Door, PeerLabels, PeerText, Phase, ServiceLabels};

/// What is known of a connection at its end beside what its entry says.
#[derive(Debug)]
pub struct Ending {
    pub reason: CloseReason,
    /// The system's words, if the system failed.
    pub detail: Option<Box<str>>,
    pub attempts: Vec<Attempt>,
    /// The name that a SOCKS5 client asked for.
    pub requested: Option<PeerText>,
}

impl Ending {
    #[must_use]
    pub const fn new(reason: CloseReason) -> Self {
        Self { reason, detail: None, attempts: Vec::new(), requested: None }
    }
}

/// Opens the traffic account: both ends are as known as they will be. Once per connection that is carried or that
/// failed to connect.
pub fn open(worker: &Worker, entry: &Entry) {
    let facts = entry.facts.borrow();
    let labels = TrafficLabels {
        source: facts.source.clone().unwrap_or_else(PeerLabels::unknown),
        destination: facts.destination.clone().unwrap_or_else(PeerLabels::unknown),
        service: facts.service.clone().unwrap_or_else(ServiceLabels::unknown),
        reporter: entry.door.reporter(),
        security: facts.security,
    };
    let series = worker.traffic(&labels);
    series.opened();
    entry.set_traffic(series);
}

/// Adds what has moved since the last time to the traffic metrics.
pub fn publish_bytes(entry: &Entry) {
    let Some(series) = entry.traffic() else { return };
    let up = entry.take_unpublished(Direction::Up);
    let down = entry.take_unpublished(Direction::Down);
    if up > 0 {
        series.received(up);
    }
    if down > 0 {
        series.sent(down);
    }
}

/// Closes the account.
pub fn close(worker: &Worker, entry: &Entry, ending: Ending) {
    publish_bytes(entry);
    if let Some(series) = entry.traffic() {
        series.closed(ending.reason.response_flag());
    }
    worker.counters.closed(entry.door, ending.reason);
    for attempt in &ending.attempts {
        worker.counters.attempt(attempt.outcome);
    }
    if !worker.shared.log.access_enabled(ending.reason) {
        return;
    }
    // What any peer can cause at no cost is limited; the rest of it is counted and summarised.
    if is_cheap(entry.door, ending.reason) && !worker.admit_line(entry.door) {
        return;
    }
    worker.shared.log.access(record(entry, ending));
}

/// Failures before authorization, and streams that are reset before they are answered: a tunnel can bring thousands a second.
fn is_cheap(door: Door, reason: CloseReason) -> bool {
    matches!(reason.phase(), Phase::Accept | Phase::Resolve)
        || door == Door::Hbone && reason == CloseReason::DownstreamGone
}

fn record(entry: &Entry, ending: Ending) -> Box<AccessRecord> {
    let now = Instant::now();
    let facts = entry.facts.borrow();
    let moved = Direction::BOTH.into_iter().any(|direction| entry.bytes(direction) > 0);
    Box::new(AccessRecord {
        at: SystemTime::now(),
        downstream: Some(facts.client.unwrap_or(entry.peer).socket_addr()),
        proxy: facts.client.map(|_| entry.peer.socket_addr()),
        original_dst: facts.original_dst.map(|dst| dst.socket_addr()),
        upstream: facts.upstream.map(|upstream| upstream.socket_addr()),
        requested: ending.requested,
        source: facts.source.clone().unwrap_or_else(PeerLabels::unknown),
        destination: facts.destination.clone().unwrap_or_else(PeerLabels::unknown),
        service: facts.service.clone().unwrap_or_else(ServiceLabels::unknown),
        source_identity: facts.source_identity.clone(),
        destination_identity: facts.destination_identity.clone(),
        hbone_addr: facts.hbone_addr.clone(),
        bytes_from_downstream: entry.bytes(Direction::Up),
        bytes_from_upstream: entry.bytes(Direction::Down),
        duration: now.saturating_duration_since(entry.accepted),
        first_byte: entry.first_byte(),
        last_activity: moved.then(|| entry.idle(now)),
        attempts: ending.attempts,
        detail: ending.detail.or_else(|| entry.denial().map(|denial| denial.to_string().into())),
        policy: entry.denial().and_then(|denial| denial.policy()).map(PolicyKey::shared),
        dry_run: entry.dry_run().map(Into::into),
        ..AccessRecord::new(entry.id, entry.door, ending.reason)
    })
}

/// For the label sets that a connection keeps.
#[must_use]
pub fn labels_of(workload: Option<&Arc<crate::mesh::Workload>>) -> Option<Arc<PeerLabels>> {
    workload.map(|workload| Arc::clone(&workload.labels))
}
