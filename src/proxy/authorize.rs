//! Whether a connection may go on: the one place where policies become a verdict. Pure.
//!
//! In: the policies that concern the destination workload, and who comes from where to what. Out: a [`Decision`] with its reasons, and
//! through it a [`Permit`], which connecting demands: what was not decided cannot be connected.
//!
//! The order is ztunnel's: a DENY that matches denies; then a policy that the workload lists and nobody has defined (it may have been a DENY,
//! or an ALLOW that narrows); then, if there are ALLOWs, one of them must match. Dry runs say what they would do and change nothing.
//! The reason named is the first by key, whatever the order of files.
//!
//! Fails closed: a peer without a verified identity has none, and a missing policy denies unless the settings say otherwise.

use std::fmt;

use crate::config::settings::OnMissing;
use crate::mesh::policy::{Action, PolicyKey, PolicySet};
pub use crate::mesh::policy::{Facts, PolicyView, Subject};

#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    pub verdict: Verdict,
    /// What policies that are not enforced say; nearly always nothing.
    pub dry_run: Vec<DryRun>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Allowed {
        /// The ALLOW that matches; none if there are no ALLOWs.
        by: Option<PolicyKey>,
    },
    Denied(Denial),
}

/// As ztunnel says it in its access log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// A DENY matches.
    #[error("explicitly denied by: {0}")]
    Explicit(PolicyKey),
    #[error("allow policies exist, but none allowed")]
    NotAllowed,
    /// The workload lists a policy that the state does not have.
    #[error("the policy {0}, which the workload lists, does not exist")]
    MissingPolicy(PolicyKey),
    /// Nobody knows which policies concern this daemon, and there are some.
    #[error("the state has policies, and `workload.name` does not say which workload this is")]
    UnknownWorkload,
}

/// What would be different if dry-run policies were enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DryRun {
    /// It matches.
    Matched { policy: PolicyKey, action: Action },
    /// None of the ALLOWs matches, and none is enforced yet: enforced, they would deny.
    NotAllowed,
}

/// Says that a connection was decided on. Made only by [`Decision::permit`] and [`Permit::own`].
#[derive(Debug)]
#[must_use]
pub struct Permit(());

pub fn authorize(view: &PolicyView, subject: &Subject<'_>, on_missing: OnMissing) -> Decision {
    let mut dry_run = Vec::new();
    if view.is_empty() {
        return Decision { verdict: Verdict::Allowed { by: None }, dry_run };
    }
    let facts = Facts::of(subject);
    let verdict = judge(view, &facts, on_missing, &mut dry_run);
    Decision { verdict, dry_run }
}

fn judge(view: &PolicyView, facts: &Facts<'_>, on_missing: OnMissing, dry_run: &mut Vec<DryRun>) -> Verdict {
    note_dry_runs(view, Action::Deny, facts, dry_run);
    if let Some(policy) = first(view, Action::Deny, facts) {
        return Verdict::Denied(Denial::Explicit(policy));
    }
    if let (OnMissing::Deny, [policy, ..]) = (on_missing, view.missing()) {
        return Verdict::Denied(Denial::MissingPolicy(policy.clone()));
    }
    let some_allow = view.sets().any(|set| set.has(Action::Allow, false));
    let some_dry_allow = view.sets().any(|set| set.has(Action::Allow, true));
    if !note_dry_runs(view, Action::Allow, facts, dry_run) && some_dry_allow && !some_allow {
        dry_run.push(DryRun::NotAllowed);
    }
    if !some_allow {
        return Verdict::Allowed { by: None };
    }
    match first(view, Action::Allow, facts) {
        Some(policy) => Verdict::Allowed { by: Some(policy) },
        None => Verdict::Denied(Denial::NotAllowed),
    }
}

fn first(view: &PolicyView, action: Action, facts: &Facts<'_>) -> Option<PolicyKey> {
    view.sets().filter_map(|set: &PolicySet| set.first(action, facts)).min().cloned()
}

/// Whether any matched.
fn note_dry_runs(view: &PolicyView, action: Action, facts: &Facts<'_>, dry_run: &mut Vec<DryRun>) -> bool {
    if !view.sets().any(|set| set.has(action, true)) {
        return false;
    }
    let mut matched: Vec<&PolicyKey> = view.sets().flat_map(|set| set.dry_run(action, facts)).collect();
    matched.sort_unstable();
    matched.dedup();
    dry_run.extend(matched.iter().map(|policy| DryRun::Matched { policy: PolicyKey::clone(policy), action }));
    !matched.is_empty()
}

impl Decision {
    /// The way on, or why there is none.
    pub fn permit(self) -> Result<Permit, Denial> {
        match self.verdict {
            Verdict::Allowed { .. } => Ok(Permit(())),
            Verdict::Denied(denial) => Err(denial),
        }
    }
}

impl Permit {
    /// For what the local workload itself sends: policies are about what comes to a workload, and its own side of a connection
    /// is judged where the connection arrives.
    pub const fn own() -> Self {
        Self(())
    }
}

impl Denial {
    /// The policy that denies, if it is one.
    #[must_use]
    pub const fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Self::Explicit(policy) | Self::MissingPolicy(policy) => Some(policy),
            Self::NotAllowed | Self::UnknownWorkload => None,
        }
    }
}

impl DryRun {
    #[must_use]
    pub const fn would_deny(&self) -> bool {
        matches!(self, Self::NotAllowed | Self::Matched { action: Action::Deny, .. })
    }
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matched { policy, action: Action::Deny } => write!(f, "would be denied by: {policy}"),
            Self::Matched { policy, action: Action::Allow } => write!(f, "would be allowed by: {policy}"),
            Self::NotAllowed => f.write_str("would be denied: allow policies exist, but none allowed"),
        }
    }
}

#[cfg(test)]
mod tests;
