//! Explain: what adit would do with a connection, step by step, for a person who wonders why.
//!
//! ```text
//! Query --outbound--> look-up, target, endpoints and the way to each --arrival--> policies one by one, verdict
//! Explanation --text--> lines for a terminal          (as JSON it is what it is)
//! ```
//!
//! The code that decides is the data path's own: [`resolve`](crate::proxy::resolve), the plan of a service, the routes, and
//! [`authorize`](crate::proxy::authorize); here it is only asked about everything instead of about one. The source is whoever has the
//! address that the query names, so both halves are told, of whichever adits they are. Pure; of a running daemon it tells what
//! its counters say besides.

mod arrival;
mod outbound;
mod query;
mod text;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use crate::config::Settings;
use crate::identity::SpiffeId;
use crate::mesh::{Snapshot, Workload};

pub use arrival::{Arrival, PolicyRow};
pub use outbound::EndpointRow;

/// Endpoints that are told one by one; more are counted.
pub const MOST_ENDPOINTS: usize = 50;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Query {
    pub from: IpAddr,
    pub to: SocketAddr,
    /// Instead of the one that the state has for the source.
    pub identity: Option<SpiffeId>,
    /// Of a running daemon; offline nothing is known of endpoints but what the files say.
    pub now_ms: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub from: IpAddr,
    pub to: SocketAddr,
    /// Which doors of this daemon the connection goes through.
    pub doors: Vec<&'static str>,
    pub source: Source,
    /// What the destination is.
    pub lookup: String,
    /// Why there is nothing to connect to; a close reason's word and its words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    pub endpoints: Vec<EndpointRow>,
    /// Endpoints that are not told.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_endpoints: usize,
    pub arrivals: Vec<Arrival>,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Its uid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// What it proves in a tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Arc<str>>,
    pub namespace: Arc<str>,
    pub network: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    pub reason: &'static str,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub allowed: bool,
    pub why: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// Who asks, as the state knows it.
struct Asker<'a> {
    workload: Option<&'a Arc<Workload>>,
    identity: Option<SpiffeId>,
    namespace: &'a Arc<str>,
    network: &'a Arc<str>,
}

/// Explains. Nothing is drawn that would be counted.
#[must_use]
pub fn explain(snapshot: &Snapshot, settings: &Settings, query: &Query) -> Explanation {
    let local = snapshot.local_workload(&settings.workload, &settings.node);
    let asker = asker(snapshot, settings, query, local);
    let is_local = |ip: IpAddr| local.is_some_and(|local| local.ips.contains(&ip.to_canonical()));
    let mut doors = Vec::new();
    if asker.workload.is_some_and(|source| local.is_some_and(|local| local.uid == source.uid)) {
        doors.push("outbound");
    }
    if is_local(query.to.ip()) {
        doors.push("inbound");
    }
    let found = outbound::look_up(snapshot, settings, query, &asker);
    let arrivals = arrival::arrivals(snapshot, settings, query, &asker, &found.ways, local);
    let verdict = verdict(found.refused.as_ref(), &found.endpoints, &arrivals);
    Explanation {
        from: query.from,
        to: query.to,
        doors,
        source: Source {
            workload: asker.workload.map(|workload| Arc::clone(&workload.uid)),
            identity: asker.identity.as_ref().map(SpiffeId::shared),
            namespace: Arc::clone(asker.namespace),
            network: Arc::clone(asker.network),
        },
        lookup: found.lookup,
        refused: found.refused,
        endpoints: found.endpoints,
        more_endpoints: found.more,
        arrivals,
        verdict,
    }
}

/// Whoever has the address; on loopback it is the workload that this daemon serves.
fn asker<'a>(
    snapshot: &'a Snapshot,
    settings: &'a Settings,
    query: &Query,
    local: Option<&'a Arc<Workload>>,
) -> Asker<'a> {
    let by_address = || snapshot.workload(&settings.network, query.from);
    let workload = if query.from.is_loopback() || query.from.is_unspecified() { local } else { by_address() };
    let known = || workload.and_then(|workload| workload.identity.first().cloned());
    Asker {
        workload,
        identity: query.identity.clone().or_else(known),
        namespace: workload.map_or(&settings.workload.namespace, |workload| &workload.namespace),
        network: workload.map_or(&settings.network, |workload| &workload.network),
    }
}

fn verdict(refused: Option<&Refused>, endpoints: &[EndpointRow], arrivals: &[Arrival]) -> Verdict {
    if let Some(Refused { reason, why }) = refused {
        return Verdict { allowed: false, why: format!("{reason}: {why}") };
    }
    if !endpoints.is_empty() && !endpoints.iter().any(EndpointRow::may_be_chosen) {
        return Verdict { allowed: false, why: "no_healthy_upstream: no endpoint can be chosen".to_owned() };
    }
    let denied: Vec<&Arrival> = arrivals.iter().filter(|arrival| !arrival.allowed).collect();
    match (denied.first(), denied.len() == arrivals.len()) {
        (None, _) => Verdict { allowed: true, why: "nothing denies it".to_owned() },
        (Some(one), true) => Verdict { allowed: false, why: one.decision.clone() },
        (Some(one), false) => Verdict {
            allowed: false,
            why: format!(
                "it depends on the endpoint: {} of {} deny it, {}: {}",
                denied.len(),
                arrivals.len(),
                one.workload,
                one.decision
            ),
        },
    }
}

#[cfg(test)]
mod tests;
