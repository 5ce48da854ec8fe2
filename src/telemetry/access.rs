//! The access log: one record per proxied connection, closed once, whatever happened to it.
//!
//! The data path fills an [`AccessRecord`] with numbers and shared label sets and hands it over; the log thread turns it
//! into a line. Field names, messages and the view that byte counts are told from are ztunnel's, so that existing log
//! queries work; what it does not have (attempts, first byte, last activity, close reason) comes after them.
//! An empty or unknown value has no field.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tracing::Level;

use crate::config::settings::LogFormat;
use crate::telemetry::close_reason::{CloseReason, Phase, ResponseFlag};
use crate::telemetry::door::{Direction, Door};
use crate::telemetry::labels::{PeerLabels, ServiceLabels};
use crate::telemetry::line::Line;
use crate::telemetry::text::PeerText;

/// The target of access records in filters.
pub const ACCESS_TARGET: &str = "access";

/// Everything that is known of a connection at its end.
#[derive(Debug, Clone)]
pub struct AccessRecord {
    /// Unique in this process; the same number as in `adit connections`.
    pub id: u64,
    /// When it ended.
    pub at: SystemTime,
    pub door: Door,
    pub downstream: Option<SocketAddr>,
    /// The peer that has named the client in a PROXY protocol header.
    pub proxy: Option<SocketAddr>,
    pub original_dst: Option<SocketAddr>,
    /// What was dialled last.
    pub upstream: Option<SocketAddr>,
    /// The name that a SOCKS5 client asked for.
    pub requested: Option<PeerText>,
    /// The authority of the tunnel's request, if there is a tunnel.
    pub hbone_addr: Option<Arc<str>>,
    pub source: Arc<PeerLabels>,
    pub destination: Arc<PeerLabels>,
    pub service: Arc<ServiceLabels>,
    /// Verified identities; `None` where the connection is in the clear.
    pub source_identity: Option<Arc<str>>,
    pub destination_identity: Option<Arc<str>>,
    pub bytes_from_downstream: u64,
    pub bytes_from_upstream: u64,
    pub duration: Duration,
    /// From accepting to the first byte that came from upstream.
    pub first_byte: Option<Duration>,
    /// From the last byte in either direction to the end.
    pub last_activity: Option<Duration>,
    /// In order. A single attempt that succeeded may be left out: it is not written.
    pub attempts: Vec<Attempt>,
    /// Of a denial: the policy's key, or nothing where no policy allowed it, and what was decided.
    pub policy: Option<Arc<str>>,
    /// What policies that are not enforced said.
    pub dry_run: Option<Box<str>>,
    pub close: CloseReason,
    /// More about `close`, for example the system's error. The same words again are not said twice.
    pub detail: Option<Box<str>>,
}

/// One try to reach an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    pub address: SocketAddr,
    /// `Ok`, or why it failed.
    pub outcome: Result<(), CloseReason>,
    pub took: Duration,
}

impl AccessRecord {
    /// A record with what is known at accept; everything else is added as it becomes known.
    #[must_use]
    pub fn new(id: u64, door: Door, close: CloseReason) -> Self {
        Self {
            id,
            at: SystemTime::now(),
            door,
            downstream: None,
            proxy: None,
            original_dst: None,
            upstream: None,
            requested: None,
            hbone_addr: None,
            source: PeerLabels::unknown(),
            destination: PeerLabels::unknown(),
            service: ServiceLabels::unknown(),
            source_identity: None,
            destination_identity: None,
            bytes_from_downstream: 0,
            bytes_from_upstream: 0,
            duration: Duration::ZERO,
            first_byte: None,
            last_activity: None,
            attempts: Vec::new(),
            policy: None,
            dry_run: None,
            close,
            detail: None,
        }
    }

    /// Failures before the destination was decided are warnings of their own: nothing is known of the other side.
    const fn is_early(&self) -> bool {
        matches!(self.close.phase(), Phase::Accept | Phase::Resolve)
    }

    const fn message(&self) -> &'static str {
        if self.is_early() { "connection failed" } else { "connection complete" }
    }

    /// INFO where the metrics count no failure, else WARN (early) or ERROR.
    pub(crate) const fn level(&self) -> Level {
        access_level(self.close)
    }

    /// Appends the line. Runs on the log thread.
    pub(crate) fn write(&self, format: LogFormat, out: &mut Vec<u8>) {
        let mut line = Line::begin(out, format, self.at, self.level(), ACCESS_TARGET, self.message());
        self.write_peers(&mut line);
        self.write_account(&mut line);
        self.write_close(&mut line);
        line.end();
    }

    fn write_peers(&self, line: &mut Line<'_>) {
        optional(line, "src.addr", self.downstream);
        optional(line, "peer.addr", self.proxy);
        known(line, "src.workload", workload_name(&self.source));
        known(line, "src.namespace", &self.source.namespace);
        known(line, "src.cluster", &self.source.cluster);
        known(line, "src.identity", self.source_identity.as_deref().unwrap_or_default());
        // Of a stream in a tunnel that came in: where the tunnel arrived, not the application behind it.
        let destination = match self.door {
            Door::Hbone => self.original_dst.or(self.upstream),
            Door::Outbound | Door::Inbound | Door::Socks5 => self.upstream.or(self.original_dst),
        };
        optional(line, "dst.addr", destination);
        known(line, "dst.hbone_addr", self.hbone_addr.as_deref().unwrap_or_default());
        known(line, "dst.service", &self.service.hostname);
        known(line, "dst.workload", workload_name(&self.destination));
        known(line, "dst.namespace", &self.destination.namespace);
        known(line, "dst.cluster", &self.destination.cluster);
        known(line, "dst.identity", self.destination_identity.as_deref().unwrap_or_default());
        line.text("direction", self.door.direction().as_str());
    }

    /// Bytes are told from the view of the workload that adit stands beside.
    fn write_account(&self, line: &mut Line<'_>) {
        let (sent, received) = match self.door.direction() {
            Direction::Outbound => (self.bytes_from_downstream, self.bytes_from_upstream),
            Direction::Inbound => (self.bytes_from_upstream, self.bytes_from_downstream),
        };
        if !self.is_early() {
            line.number("bytes_sent", sent);
            line.number("bytes_recv", received);
        }
        line.text("duration", &milliseconds(self.duration));
    }

    fn write_close(&self, line: &mut Line<'_>) {
        let text = self.close.text();
        match &self.detail {
            Some(detail) if !text.is_empty() && **detail != *text => line.text("error", &format!("{text}: {detail}")),
            _ => known(line, "error", text),
        }
        if let Some(requested) = &self.requested {
            line.text("dst.requested", requested.as_str());
        }
        if self.attempts.len() > 1 || self.attempts.iter().any(|attempt| attempt.outcome.is_err()) {
            line.text("attempts", &attempts(&self.attempts));
        }
        if let Some(first_byte) = self.first_byte {
            line.text("first_byte", &milliseconds(first_byte));
        }
        if let Some(last_activity) = self.last_activity {
            line.text("last_activity", &milliseconds(last_activity));
        }
        if matches!(self.close, CloseReason::PolicyDenied | CloseReason::PolicyChanged) {
            known(line, "policy", self.policy.as_deref().unwrap_or_default());
            line.text("decision", "deny");
        }
        known(line, "policy.dry_run", self.dry_run.as_deref().unwrap_or_default());
        line.text("close_reason", self.close.as_str());
        line.text("close_side", self.close.side().as_str());
        line.text("close_phase", self.close.phase().as_str());
        line.text("listener", self.door.as_str());
        line.number("id", self.id);
    }
}

/// The level at which a connection that ended so is logged.
#[must_use]
pub const fn access_level(close: CloseReason) -> Level {
    match (close.response_flag(), close.phase()) {
        (ResponseFlag::None, _) => Level::INFO,
        (_, Phase::Accept | Phase::Resolve) => Level::WARN,
        _ => Level::ERROR,
    }
}

fn optional(line: &mut Line<'_>, key: &str, address: Option<SocketAddr>) {
    if let Some(address) = address {
        line.bare(key, address);
    }
}

fn known(line: &mut Line<'_>, key: &str, value: &str) {
    if !value.is_empty() {
        line.text(key, value);
    }
}

/// The instance's name, else the canonical service, else the workload that a peer says it is.
fn workload_name(labels: &PeerLabels) -> &str {
    let names = [&labels.name, &labels.canonical_service, &labels.workload];
    names.into_iter().find(|name| !name.is_empty()).map_or("", |name| name)
}

fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

fn attempts(attempts: &[Attempt]) -> String {
    let mut text = String::with_capacity(attempts.len() * 48);
    for attempt in attempts {
        let separator = if text.is_empty() { "" } else { ", " };
        let outcome = attempt.outcome.err().map_or("ok", CloseReason::as_str);
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{} {outcome} {}ms", attempt.address, attempt.took.as_millis());
    }
    text
}

#[cfg(test)]
mod tests;
