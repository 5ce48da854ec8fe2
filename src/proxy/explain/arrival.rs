//! The second half: where a connection arrives, and what each policy there says of it.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::outbound::Way;
use super::{Asker, Query};
use crate::config::Settings;
use crate::config::settings::Plaintext;
use crate::identity::SpiffeId;
use crate::mesh::policy::{Policy, Scope};
use crate::mesh::{Snapshot, Workload};
use crate::proxy::authorize::{DryRun, Facts, Subject, Verdict, authorize};
use crate::proxy::resolve::endpoint::Place;
use crate::proxy::resolve::route::{Asked, Route};
use crate::telemetry::CloseReason;

/// What happens at one workload.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrival {
    /// Its uid.
    pub workload: Arc<str>,
    /// `tunnel` or `plaintext`, or `waypoint`, which judges by rules of its own.
    pub by: &'static str,
    /// Who the peer is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    pub policies: Vec<PolicyRow>,
    /// What policies that are not enforced say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dry_run: Vec<String>,
    pub allowed: bool,
    pub decision: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRow {
    pub policy: Arc<str>,
    pub scope: &'static str,
    pub action: &'static str,
    pub dry_run: bool,
    pub matched: bool,
    /// Which rule matched, or what each one lacked.
    pub why: String,
}

pub(super) fn arrivals(
    snapshot: &Snapshot,
    settings: &Settings,
    query: &Query,
    asker: &Asker<'_>,
    ways: &[Way],
    local: Option<&Arc<Workload>>,
) -> Vec<Arrival> {
    let mut arrivals: Vec<Arrival> = Vec::new();
    for Way { workload, route } in ways {
        let Some(workload) = workload else { continue };
        let Some(place) = arrives_at(route) else {
            arrivals.push(waypoint(workload));
            continue;
        };
        let own = local.is_some_and(|local| local.uid == workload.uid).then_some(settings);
        arrivals.push(judge(snapshot, (workload, own), query, asker, place));
    }
    arrivals
}

/// By tunnel or not, and at which address and port; nothing where a waypoint stands in between.
fn arrives_at(route: &Route) -> Option<(bool, Option<IpAddr>, Option<u16>)> {
    let ip = |place: &Place| match place {
        Place::Address(ip) => Some(*ip),
        Place::Hostname(_) | Place::Beyond => None,
    };
    match route {
        Route::Address(address) => Some((false, Some(address.ip()), Some(address.port()))),
        Route::Plain { place, port } => Some((false, ip(place), Some(*port))),
        Route::Tunnel(leg) => match &leg.asked {
            Asked::Itself(port) => Some((true, ip(&leg.place), Some(*port))),
            Asked::Exactly(_) => Some((true, ip(&leg.place), None)),
        },
        // Which port of it that is, is decided in the other network.
        Route::Gateway { .. } => Some((true, None, None)),
        Route::Waypoint(_) => None,
    }
}

fn waypoint(workload: &Workload) -> Arrival {
    Arrival {
        workload: Arc::clone(&workload.uid),
        by: "waypoint",
        identity: None,
        port: None,
        policies: Vec::new(),
        dry_run: Vec::new(),
        allowed: true,
        decision: "the waypoint decides from there on, by rules that are its own".to_owned(),
    }
}

fn judge(
    snapshot: &Snapshot,
    (workload, own): (&Arc<Workload>, Option<&Settings>),
    query: &Query,
    asker: &Asker<'_>,
    (tunnel, ip, port): (bool, Option<IpAddr>, Option<u16>),
) -> Arrival {
    let identity = asker.identity.as_ref().filter(|_| tunnel);
    let port_of_it = port.unwrap_or_else(|| query.to.port());
    let destination = ip.or_else(|| workload.ips.first().copied()).unwrap_or_else(|| query.to.ip());
    let subject = Subject { identity, source: query.from.to_canonical(), destination, port: port_of_it };
    let view = snapshot.policies_for(workload);
    let facts = Facts::of(&subject);
    let on_missing = own.map(|settings| settings.policy.on_missing).unwrap_or_default();
    let decision = authorize(&view, &subject, on_missing);
    let mut arrival = Arrival {
        workload: Arc::clone(&workload.uid),
        by: if tunnel { "tunnel" } else { "plaintext" },
        identity: identity.map(SpiffeId::shared),
        port,
        policies: view.policies().into_iter().map(|policy| row(policy, &facts)).collect(),
        dry_run: decision.dry_run.iter().map(DryRun::to_string).collect(),
        allowed: true,
        decision: String::new(),
    };
    let closed = own.is_some_and(|settings| {
        let inbound = &settings.inbound;
        !tunnel && inbound.plaintext == Plaintext::Deny && !inbound.plaintext_ports.contains(&port_of_it)
    });
    (arrival.allowed, arrival.decision) = match decision.verdict {
        _ if closed => (false, format!("{}: inbound.plaintext is deny", CloseReason::PlaintextDenied.as_str())),
        Verdict::Allowed { by: Some(policy) } => (true, format!("allowed by: {policy}")),
        Verdict::Allowed { by: None } => (true, "allowed: no ALLOW policy concerns this workload".to_owned()),
        Verdict::Denied(denial) => (false, format!("{}: {denial}", CloseReason::PolicyDenied.as_str())),
    };
    arrival
}

fn row(policy: &Policy, facts: &Facts<'_>) -> PolicyRow {
    let matched = policy.matches(facts);
    PolicyRow {
        policy: policy.key.shared(),
        scope: match policy.scope {
            Scope::Global => "Global",
            Scope::Namespace => "Namespace",
            Scope::WorkloadSelector => "WorkloadSelector",
        },
        action: policy.action.as_str(),
        dry_run: policy.dry_run,
        matched,
        why: why(policy, facts, matched),
    }
}

fn why(policy: &Policy, facts: &Facts<'_>, matched: bool) -> String {
    if policy.rules.is_empty() {
        return "it has no rules, so nothing matches it".to_owned();
    }
    if matched {
        let rule = policy.rules.iter().position(|rule| rule.matches(facts));
        return format!("rule {} matches", rule.map_or(0, |at| at + 1));
    }
    let mut reasons = Vec::new();
    for (at, rule) in policy.rules.iter().enumerate() {
        let failed = rule.clauses.iter().position(|clause| !clause.matches(facts));
        let Some((clause, wrong)) = failed.and_then(|failed| Some((failed, rule.clauses.get(failed)?))) else {
            continue;
        };
        let lists: Vec<&str> = wrong
            .matches
            .iter()
            .flat_map(|one| one.checks(facts).filter(|check| !check.holds).map(|check| check.key))
            .collect();
        let lists = if lists.is_empty() { "an empty match matches nothing".to_owned() } else { lists.join(", ") };
        reasons.push(format!("rule {}, clause {}: {lists}", at + 1, clause + 1));
    }
    reasons.join("; ")
}
