//! What the data workers count. Each worker has counters of its own, on cache lines of its own, and adds to them with
//! relaxed atomics; the scrape sums over all workers. So counting never makes workers wait for each other.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::door::{Door, Reporter, Scope};
use crate::telemetry::family;
use crate::telemetry::hostnames::{self, HostnameCounters};
use crate::telemetry::tunnels::{self, Role, TunnelCounters};

const REASONS: usize = CloseReason::ALL.len();
const DOORS: usize = Door::ALL.len();
const SCOPES: usize = Scope::ALL.len();

/// Limits that count only once it is known where a connection comes from or goes to.
const LATER_LIMITS: [(&str, CloseReason); 3] = [
    ("endpoint", CloseReason::EndpointLimit),
    ("service", CloseReason::ServiceLimit),
    ("source_rate", CloseReason::RateLimited),
];

/// What policies said of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyCount {
    Allowed,
    /// At its beginning or later.
    Denied,
    /// By a policy that is not enforced.
    WouldDeny,
    WouldAllow,
}

impl PolicyCount {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Allowed, "allow"),
        (Self::Denied, "deny"),
        (Self::WouldDeny, "dry_run_deny"),
        (Self::WouldAllow, "dry_run_allow"),
    ];
}

/// One worker's counters. 128: the prefetcher fetches cache lines in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Signed: a connection that was handed over is opened on one worker and closed on another.
    open: [AtomicI64; DOORS],
    accepted: [AtomicU64; DOORS],
    closed: [AtomicU64; REASONS],
    attempts: AtomicU64,
    attempt_failures: [AtomicU64; REASONS],
    refused: [AtomicU64; SCOPES],
    accept_backoffs: AtomicU64,
    lines_suppressed: AtomicU64,
    ejections: AtomicU64,
    policy: [AtomicU64; PolicyCount::ALL.len()],
    /// As last counted.
    orphans: AtomicU64,
    pub tunnels: TunnelCounters,
    pub hostnames: HostnameCounters,
}

impl Default for WorkerCounters {
    fn default() -> Self {
        Self {
            open: [const { AtomicI64::new(0) }; DOORS],
            accepted: [const { AtomicU64::new(0) }; DOORS],
            closed: [const { AtomicU64::new(0) }; REASONS],
            attempts: AtomicU64::new(0),
            attempt_failures: [const { AtomicU64::new(0) }; REASONS],
            refused: [const { AtomicU64::new(0) }; SCOPES],
            accept_backoffs: AtomicU64::new(0),
            lines_suppressed: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            policy: [const { AtomicU64::new(0) }; PolicyCount::ALL.len()],
            orphans: AtomicU64::new(0),
            tunnels: TunnelCounters::default(),
            hostnames: HostnameCounters::default(),
        }
    }
}

impl WorkerCounters {
    /// A connection was accepted and is held. Pair with [`Self::closed`].
    pub fn opened(&self, door: Door) {
        self.open[door as usize].fetch_add(1, Ordering::Relaxed);
        self.accepted[door as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection that was opened has ended.
    pub fn closed(&self, door: Door, reason: CloseReason) {
        self.open[door as usize].fetch_sub(1, Ordering::Relaxed);
        self.closed[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// One try to reach an endpoint is over.
    pub fn attempt(&self, outcome: Result<(), CloseReason>) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        if let Err(reason) = outcome {
            self.attempt_failures[reason as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A connection was reset at accept because `scope` was full; it was never opened.
    pub fn refused(&self, scope: Scope) {
        self.refused[scope as usize].fetch_add(1, Ordering::Relaxed);
        self.closed[CloseReason::ConnectionLimit as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// `accept` found no descriptor or memory and waits a moment.
    pub fn accept_backoff(&self) {
        self.accept_backoffs.fetch_add(1, Ordering::Relaxed);
    }

    pub fn policy(&self, count: PolicyCount) {
        self.policy[count as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// An endpoint is left alone for a while.
    pub fn ejected(&self) {
        self.ejections.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections whose endpoint is not in the state any more; told by the sweep.
    pub fn publish_orphans(&self, connections: u64) {
        self.orphans.store(connections, Ordering::Relaxed);
    }

    /// Early failures that were not logged one by one.
    pub fn lines_suppressed(&self, lines: u64) {
        self.lines_suppressed.fetch_add(lines, Ordering::Relaxed);
    }
}

/// All workers' counters, and their sums.
#[derive(Debug, Default)]
pub struct Workers {
    all: Mutex<Vec<Arc<WorkerCounters>>>,
}

impl Workers {
    /// Counters for one more worker. They are summed for as long as the process lives: counters never go back.
    #[must_use]
    pub fn register(&self) -> Arc<WorkerCounters> {
        let counters = Arc::<WorkerCounters>::default();
        self.lock().push(Arc::clone(&counters));
        counters
    }

    /// Connections held now.
    #[must_use]
    pub fn open(&self, door: Door) -> u64 {
        let sum: i64 = self.lock().iter().map(|worker| worker.open[door as usize].load(Ordering::Relaxed)).sum();
        // Read between the two halves of a hand-over, it may look negative for a moment.
        u64::try_from(sum).unwrap_or(0)
    }

    /// Connections held now that count in `scope`.
    #[must_use]
    pub fn open_in(&self, scope: Scope) -> u64 {
        Door::ALL.into_iter().filter(|door| scope.covers(*door)).map(|door| self.open(door)).sum()
    }

    /// Connections that ended so.
    #[must_use]
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.sum(|worker| &worker.closed[reason as usize])
    }

    /// Connections refused because `scope` was full.
    #[must_use]
    pub fn refused(&self, scope: Scope) -> u64 {
        self.sum(|worker| &worker.refused[scope as usize])
    }

    /// Tunnels now, and the streams in them.
    #[must_use]
    pub fn tunnels(&self, role: Role) -> (u64, u64) {
        (self.sum(|worker| worker.tunnels.open(role).0), self.sum(|worker| worker.tunnels.open(role).1))
    }

    fn sum(&self, counter: impl Fn(&WorkerCounters) -> &AtomicU64) -> u64 {
        self.lock().iter().map(|worker| counter(worker).load(Ordering::Relaxed)).sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<WorkerCounters>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn encode_connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        family::gauges(
            encoder,
            "adit_connections_open",
            "Connections held now",
            Door::ALL.map(|door| ([("listener", door.as_str())], self.open(door))),
        )?;
        family::counters(
            encoder,
            "adit_connections_accepted",
            "Connections accepted",
            Door::ALL.map(|door| ([("listener", door.as_str())], self.sum(|worker| &worker.accepted[door as usize]))),
        )?;
        family::counters(
            encoder,
            "adit_connections_closed",
            "Connections that ended, by whose doing it was, when it happened and why",
            CloseReason::ALL.iter().map(|reason| {
                let labels =
                    [("side", reason.side().as_str()), ("phase", reason.phase().as_str()), ("reason", reason.as_str())];
                (labels, self.closed(*reason))
            }),
        )?;
        family::counters(
            encoder,
            "adit_connections_refused",
            "Connections refused because a limit was reached",
            Scope::ALL
                .map(|scope| ([("scope", scope.as_str())], self.refused(scope)))
                .into_iter()
                .chain(LATER_LIMITS.map(|(scope, reason)| ([("scope", scope)], self.closed(reason)))),
        )?;
        family::gauge(
            encoder,
            "adit_connections_to_removed_endpoints",
            "Connections whose endpoint has left the state",
            self.sum(|worker| &worker.orphans),
        )?;
        family::gauges(
            encoder,
            "istio_tcp_sockets_open",
            "Accepted sockets currently held (unstable)",
            Reporter::ALL.map(|reporter| {
                let doors = Door::ALL.into_iter().filter(|door| door.reporter() == reporter);
                ([("reporter", reporter.as_str())], doors.map(|door| self.open(door)).sum::<u64>())
            }),
        )
    }

    fn encode_connects(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        family::counter(
            encoder,
            "adit_connect_attempts",
            "Tries to reach an endpoint",
            self.sum(|worker| &worker.attempts),
        )?;
        family::counter(
            encoder,
            "adit_endpoint_ejections",
            "How often an endpoint was left alone for a while because it failed",
            self.sum(|worker| &worker.ejections),
        )?;
        family::counters(
            encoder,
            "adit_connect_failures",
            "Tries to reach an endpoint that failed",
            CloseReason::ALL.iter().filter_map(|reason| {
                let failures = self.sum(|worker| &worker.attempt_failures[*reason as usize]);
                let listed = failures > 0 || reason.as_str().starts_with("connect_");
                listed.then_some(([("reason", reason.as_str())], failures))
            }),
        )
    }

    fn encode_rest(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        family::counter(
            encoder,
            "adit_loop_refused",
            "Connections refused because they led back to adit itself",
            self.closed(CloseReason::LoopRefused),
        )?;
        family::counter(
            encoder,
            "adit_accept_backoffs",
            "Pauses of accept for want of descriptors or memory",
            self.sum(|worker| &worker.accept_backoffs),
        )?;
        family::counter(
            encoder,
            "adit_log_lines_suppressed",
            "Early failures that were counted instead of logged one by one",
            self.sum(|worker| &worker.lines_suppressed),
        )?;
        hostnames::encode(encoder, &self.lock())?;
        family::counters(
            encoder,
            "adit_policy_decisions",
            "What policies said of connections to the workload",
            PolicyCount::ALL
                .map(|(count, word)| ([("decision", word)], self.sum(|worker| &worker.policy[count as usize]))),
        )?;
        tunnels::encode(encoder, &self.lock())
    }
}

impl Collector for Workers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_connections(&mut encoder)?;
        self.encode_connects(&mut encoder)?;
        self.encode_rest(&mut encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_no_cache_line_and_sum_up() {
        assert_eq!(align_of::<WorkerCounters>() % 128, 0);
        let workers = Workers::default();
        let (a, b) = (workers.register(), workers.register());
        a.opened(Door::Inbound);
        a.opened(Door::Inbound);
        // Handed over: opened by a, closed by b.
        b.closed(Door::Inbound, CloseReason::Finished);
        b.opened(Door::Socks5);
        assert_eq!((workers.open(Door::Inbound), workers.open(Door::Socks5)), (1, 1));
        assert_eq!((workers.open_in(Scope::Total), workers.open_in(Scope::Inbound)), (2, 1));
        assert_eq!(workers.closed(CloseReason::Finished), 1);
    }

    #[test]
    fn every_reason_has_its_own_counter() {
        for (index, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        let workers = Workers::default();
        let worker = workers.register();
        for reason in CloseReason::ALL {
            worker.opened(Door::Outbound);
            worker.closed(Door::Outbound, *reason);
            assert_eq!(workers.closed(*reason), 1, "{reason:?}");
        }
        assert_eq!(workers.open(Door::Outbound), 0);
    }

    #[test]
    fn a_refused_connection_was_never_open() {
        let workers = Workers::default();
        let worker = workers.register();
        worker.refused(Scope::Inbound);
        assert_eq!((workers.refused(Scope::Inbound), workers.refused(Scope::Total)), (1, 0));
        assert_eq!(workers.closed(CloseReason::ConnectionLimit), 1);
        assert_eq!(workers.open_in(Scope::Total), 0);
    }
}
