//! The first half: what the destination is, which endpoints it has, and the way to each.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use super::{Asker, MOST_ENDPOINTS, Query, Refused};
use crate::config::Settings;
use crate::config::settings::Egress;
use crate::identity::SpiffeId;
use crate::mesh::live::Standing;
use crate::mesh::plan::{Candidates, target_port};
use crate::mesh::{Endpoint, Health, ServiceState, Snapshot, Workload};
use crate::net::address::OriginalDst;
use crate::proxy::balance::Choice;
use crate::proxy::resolve::endpoint::{Mode, Place};
use crate::proxy::resolve::route::{Among, Asked, Asking, Candidate, Leg, Route, candidate};
use crate::proxy::resolve::{HopTo, Question, Target, resolve};

/// One endpoint, and what speaks for it and against it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRow {
    /// Its uid; the address where the state does not know who that is.
    pub workload: Arc<str>,
    pub status: &'static str,
    pub weight: u32,
    /// 1 is the nearest group; nothing: it is in none that the source looks at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// Why it cannot be chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excluded: Option<String>,
    /// Of a running daemon: `ejected`, `on trial`, or nothing where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standing: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_connections: Option<u32>,
    /// How it is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way: Option<String>,
}

impl EndpointRow {
    #[must_use]
    pub const fn may_be_chosen(&self) -> bool {
        self.excluded.is_none() && self.group.is_some()
    }
}

/// A way that a connection may take.
pub(super) struct Way {
    pub(super) workload: Option<Arc<Workload>>,
    pub(super) route: Route,
}

#[derive(Default)]
pub(super) struct Found {
    pub(super) lookup: String,
    pub(super) refused: Option<Refused>,
    pub(super) endpoints: Vec<EndpointRow>,
    pub(super) more: usize,
    pub(super) ways: Vec<Way>,
}

pub(super) fn look_up(snapshot: &Snapshot, settings: &Settings, query: &Query, asker: &Asker<'_>) -> Found {
    let dst = OriginalDst::new(query.to);
    let question = Question {
        dst,
        network: asker.network,
        client_namespace: asker.namespace,
        source: asker.workload.map(AsRef::as_ref),
        egress: settings.egress,
    };
    let lookup = describe(snapshot, &question);
    let target = match resolve(snapshot, &question, &mut fastrand::Rng::with_seed(0)) {
        Ok(target) => target,
        Err(error) => {
            let refused = Refused { reason: error.close_reason().as_str(), why: error.to_string() };
            return Found { lookup, refused: Some(refused), ..Found::default() };
        }
    };
    let asking = Asking { snapshot, dst, network: asker.network, client_namespace: asker.namespace };
    let mut found = Found { lookup, ..Found::default() };
    match &target {
        Target::Single { workload, .. } => single(&mut found, &asking, &target, workload.as_ref(), query),
        Target::Service { state, port } => {
            let candidates = state.plan().candidates(*port, Mode::Standard);
            every(&mut found, &asking, &target, query, asker, (state, candidates, *port, Mode::Standard));
        }
        Target::Waypoint { hop, .. } => {
            found.lookup.push_str(&format!("; through its waypoint {}", hop.name));
            match &hop.to {
                HopTo::Workload(workload) => single(&mut found, &asking, &target, Some(workload), query),
                HopTo::Service(state) => {
                    let candidates = state.plan().candidates(hop.port, Mode::Waypoint);
                    every(&mut found, &asking, &target, query, asker, (state, candidates, hop.port, Mode::Waypoint));
                }
            }
        }
    }
    found
}

fn describe(snapshot: &Snapshot, question: &Question<'_>) -> String {
    let Question { dst, network, client_namespace, egress, .. } = *question;
    if let Some(state) = snapshot.service(network, dst.ip(), client_namespace) {
        let (key, port) = (&state.service.key, dst.port());
        return match state.service.ports.get(&port) {
            Some(0) => format!("service {key}, port {port}, which each endpoint maps itself"),
            Some(target) => format!("service {key}, port {port} to {target}"),
            None => format!("service {key}, which has no port {port}"),
        };
    }
    match (snapshot.workload(network, dst.ip()), egress) {
        (Some(workload), _) => format!("workload {}, by its own address", workload.uid),
        (None, Egress::AllowAny) => "nothing in the state; egress is allowAny, so it is passed through".to_owned(),
        (None, Egress::RegistryOnly) => "nothing in the state, and egress is registryOnly".to_owned(),
    }
}

/// No choice.
fn single(found: &mut Found, asking: &Asking<'_>, target: &Target, workload: Option<&Arc<Workload>>, query: &Query) {
    let way = candidate(asking, target, |_, state, wanted| first_of(state, wanted.port));
    let mut row = EndpointRow {
        workload: workload.map_or_else(|| asking.dst.to_string().into(), |workload| Arc::clone(&workload.uid)),
        status: workload.map_or("unknown", |workload| status(workload.status)),
        weight: workload.map_or(1, |workload| workload.capacity),
        group: Some(1),
        excluded: None,
        standing: None,
        open_connections: None,
        way: None,
    };
    if let Some(workload) = workload {
        tell_live(&mut row, workload, query);
    }
    take(found, row, way);
}

/// Everyone of a service, chosen or not.
fn every(
    found: &mut Found,
    asking: &Asking<'_>,
    target: &Target,
    query: &Query,
    asker: &Asker<'_>,
    (state, candidates, port, mode): (&Arc<ServiceState>, Option<&Arc<Candidates>>, u16, Mode),
) {
    for endpoint in state.endpoints.iter().take(MOST_ENDPOINTS) {
        let workload = &endpoint.workload;
        let (group, in_plan) = group_of(candidates, endpoint, asker);
        let excluded = if in_plan { None } else { Some(why_not(state, endpoint, port, mode)) };
        let far = in_plan && group.is_none();
        let mut row = EndpointRow {
            workload: Arc::clone(&workload.uid),
            status: status(endpoint.status),
            weight: workload.capacity,
            group,
            excluded: excluded
                .or_else(|| far.then(|| "not near enough: the service is strict about locality".to_owned())),
            standing: None,
            open_connections: None,
            way: None,
        };
        tell_live(&mut row, workload, query);
        let way = row.may_be_chosen().then(|| {
            candidate(asking, target, |among, other, wanted| match among {
                Among::Endpoints => {
                    let port = target_port(&state.service, endpoint, wanted.port, wanted.mode)?;
                    Some(Choice { endpoint: Arc::clone(endpoint), port })
                }
                Among::Gateways => first_of(other, wanted.port),
            })
        });
        match way {
            Some(way) => take(found, row, way),
            None => found.endpoints.push(row),
        }
    }
    found.more = state.endpoints.len().saturating_sub(MOST_ENDPOINTS);
}

fn take(found: &mut Found, mut row: EndpointRow, way: Result<Candidate, crate::proxy::resolve::route::RouteError>) {
    match way {
        Ok(Candidate { workload, route }) => {
            row.way = Some(way_of(&route));
            found.ways.push(Way { workload, route });
        }
        Err(error) => row.excluded = Some(format!("{}: {error}", error.close_reason().as_str())),
    }
    found.endpoints.push(row);
}

/// Any of those behind a gateway: they are alike.
fn first_of(state: &ServiceState, port: u16) -> Option<Choice> {
    let endpoint = &state.plan().candidates(port, Mode::Standard)?.members().first()?.endpoint;
    Some(Choice { endpoint: Arc::clone(endpoint), port: target_port(&state.service, endpoint, port, Mode::Standard)? })
}

/// In which group the source finds it, and whether it is a candidate at all.
fn group_of(
    candidates: Option<&Arc<Candidates>>,
    endpoint: &Arc<Endpoint>,
    asker: &Asker<'_>,
) -> (Option<usize>, bool) {
    let Some(candidates) = candidates else { return (None, false) };
    let place = candidates.members().iter().position(|member| Arc::ptr_eq(&member.endpoint, endpoint));
    let Some(place) = place else { return (None, false) };
    let holds = |group: &&crate::mesh::plan::Group| (0..group.len()).any(|at| group.at(at) == Some(place));
    let source = asker.workload.map(AsRef::as_ref);
    let groups = candidates.tiers(source).collect::<Vec<_>>();
    (groups.iter().position(holds).map(|at| at + 1), true)
}

fn why_not(state: &ServiceState, endpoint: &Endpoint, port: u16, mode: Mode) -> String {
    match endpoint.status {
        Health::Terminating => "terminating: it gets no new connections".to_owned(),
        Health::Unhealthy => "unhealthy, and the service takes only healthy ones".to_owned(),
        Health::Healthy if endpoint.workload.capacity == 0 => "its weight is 0".to_owned(),
        Health::Healthy if target_port(&state.service, endpoint, port, mode).is_none() => {
            format!("it does not serve port {port}")
        }
        Health::Healthy => "it has no address that could be used".to_owned(),
    }
}

fn tell_live(row: &mut EndpointRow, workload: &Workload, query: &Query) {
    let Some(now) = query.now_ms else { return };
    row.open_connections = Some(workload.live.open());
    row.standing = match workload.live.standing(now) {
        Standing::Fine => None,
        Standing::OnTrial => Some("on trial"),
        Standing::Ejected => Some("ejected"),
    };
}

const fn status(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
        Health::Terminating => "Terminating",
    }
}

fn way_of(route: &Route) -> String {
    match route {
        Route::Address(address) => format!("in the clear to {address}"),
        Route::Plain { place, port } => format!("in the clear to {}", place_of(place, *port)),
        Route::Tunnel(leg) => format!("tunnel to {}", leg_of(leg)),
        Route::Waypoint(leg) => format!("tunnel to the waypoint {} at {}", leg.workload.uid, leg_of(leg)),
        Route::Gateway { outer, inner } => format!(
            "tunnel to the gateway {} at {}, and in it a tunnel to one of {}",
            outer.workload.uid,
            leg_of(outer),
            names(inner)
        ),
    }
}

fn leg_of(leg: &Leg) -> String {
    let place = place_of(&leg.place, leg.port);
    let hop = match leg.place {
        Place::Address(ip) => SocketAddr::new(ip, leg.port),
        Place::Hostname(_) | Place::Beyond => SocketAddr::new(leg.wanted, leg.port),
    };
    let asked = match (&leg.asked, &leg.place) {
        // Known only when it has been looked up.
        (Asked::Itself(port), Place::Hostname(_)) => format!("the address that is found, port {port}"),
        _ => leg.authority(crate::net::address::UpstreamAddr::new(hop)).to_string(),
    };
    format!("{place}, asked for {asked}, if it proves to be {}", names(&leg.allowed))
}

fn place_of(place: &Place, port: u16) -> String {
    match place {
        Place::Address(ip) => SocketAddr::new(*ip, port).to_string(),
        Place::Hostname(name) => format!("{name}:{port} (a name, looked up when it is needed)"),
        Place::Beyond => "somewhere in its network".to_owned(),
    }
}

fn names(identities: &[SpiffeId]) -> String {
    if identities.is_empty() {
        return "nobody".to_owned();
    }
    identities.iter().map(SpiffeId::as_str).collect::<Vec<_>>().join(" or ")
}
