//! The gate: whether a connection may reach the workload that this daemon serves, at its beginning and ever after.
//!
//! In: a registered connection, and who it is from. Out: a [`Permit`], or the denial, which its record names. The decision
//! itself is [`authorize`]'s; here it is fed, noted and counted. Its facts are kept with the connection, so that a new
//! state can be held against it ([`again`]).
//!
//! Fails closed: while the state lacks the workload its policies are unknown, and connections wait [`WORKLOAD_WITHIN`] and
//! are then refused. A daemon that serves no workload of the state (`workload.name` is empty) lets plaintext in only
//! while the state has no policies at all, since it cannot know which are meant for it. A workload that leaves the state
//! does not cut what is open: it was allowed by the last policies that were known.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::mesh::{PolicyView, Snapshot, Workload};
use crate::proxy::authorize::{Decision, Denial, DryRun, Permit, Subject, Verdict, authorize};
use crate::proxy::connect::ConnectError;
use crate::proxy::registry::{Entry, Who};
use crate::proxy::worker::Worker;
use crate::telemetry::CloseReason;
use crate::telemetry::workers::PolicyCount;

/// How long the local workload may take to appear in the state.
pub const WORKLOAD_WITHIN: Duration = Duration::from_secs(5);

/// The workload that this daemon serves, as one state has it, and what is known of its policies.
#[derive(Debug, Clone, Default)]
pub struct Served {
    pub workload: Option<Arc<Workload>>,
    policies: PolicyView,
    /// Whether the state has any, for whomever.
    any_policies: bool,
}

impl Served {
    #[must_use]
    pub fn new(snapshot: &Snapshot, local: Option<&Arc<Workload>>) -> Self {
        Self {
            policies: local.map(|workload| snapshot.policies_for(workload)).unwrap_or_default(),
            workload: local.cloned(),
            any_policies: snapshot.policy_count() > 0,
        }
    }

    /// Whether both decide alike.
    #[must_use]
    pub fn decides_as(&self, other: &Self) -> bool {
        self.policies.same_as(&other.policies)
            && self.workload.is_some() == other.workload.is_some()
            && (self.workload.is_some() || self.any_policies == other.any_policies)
    }
}

/// Waits for the local workload, if one is configured. To be called before [`pass`].
///
/// # Errors
/// The state does not have it in time.
pub async fn served(worker: &Worker) -> Result<(), CloseReason> {
    if worker.serves_nobody() || worker.served().workload.is_some() {
        return Ok(());
    }
    let until = Instant::now() + WORKLOAD_WITHIN;
    let found = worker.wait_for(until, |_| worker.served().workload.as_ref().map(|_| ())).await;
    found.ok_or(CloseReason::UnknownWorkload)
}

/// Decides about a connection, once, and keeps what it was decided by.
///
/// # Errors
/// It is denied; by which policy stands in the entry.
pub fn pass(worker: &Worker, entry: &Entry, who: Who) -> Result<Permit, ConnectError> {
    // First: a state that comes from here on is held against it.
    let who = entry.set_who(who);
    let decision = decide(worker, entry, who);
    note(worker, entry, &decision);
    decision.permit().map_err(|denial| {
        let detail = io::Error::other(denial.to_string());
        entry.set_denial(denial);
        ConnectError::new(CloseReason::PolicyDenied, Some(detail))
    })
}

/// Holds the state in force against a connection that was let in.
pub fn again(worker: &Worker, entry: &Entry) {
    let Some(who) = entry.who() else { return };
    if entry.killed().is_some() || entry.denial().is_some() || unknown(worker) {
        return;
    }
    if let Verdict::Denied(denial) = decide(worker, entry, who).verdict {
        worker.counters.policy(PolicyCount::Denied);
        entry.set_denial(denial);
        entry.kill(CloseReason::PolicyChanged);
    }
}

/// Whether there is a workload to be served and the state does not have it.
fn unknown(worker: &Worker) -> bool {
    !worker.serves_nobody() && worker.served().workload.is_none()
}

fn decide(worker: &Worker, entry: &Entry, who: &Who) -> Decision {
    let served = worker.served();
    let denied = |denial| Decision { verdict: Verdict::Denied(denial), dry_run: Vec::new() };
    if served.workload.is_none() && (served.any_policies || !worker.serves_nobody()) {
        return denied(Denial::UnknownWorkload);
    }
    let Who { identity, source, destination, port } = who;
    let subject = Subject { identity: identity.as_ref(), source: *source, destination: *destination, port: *port };
    authorize(&served.policies, &subject, entry.settings.policy.on_missing)
}

fn note(worker: &Worker, entry: &Entry, decision: &Decision) {
    worker.counters.policy(match decision.verdict {
        Verdict::Allowed { .. } => PolicyCount::Allowed,
        Verdict::Denied(_) => PolicyCount::Denied,
    });
    if decision.dry_run.is_empty() {
        return;
    }
    for dry_run in &decision.dry_run {
        worker.counters.policy(if dry_run.would_deny() { PolicyCount::WouldDeny } else { PolicyCount::WouldAllow });
    }
    let said: Vec<String> = decision.dry_run.iter().map(DryRun::to_string).collect();
    entry.set_dry_run(said.join(", ").into());
}
