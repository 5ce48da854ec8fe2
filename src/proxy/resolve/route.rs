//! The way to one endpoint: in the clear, through a tunnel of its own, through a waypoint, or through the gateway of the
//! network that it is in. Pure.
//!
//! In: the chosen workload and what was asked for. Out: a [`Route`], which says what is dialled, what the far side is asked
//! for and who may answer; or that there is none. Everything but a workload that accepts plain TCP in our own network
//! needs a tunnel, and who may be at its far end is never empty of meaning: whoever is not named is refused.

use std::net::IpAddr;
use std::sync::Arc;

use crate::hbone::{self, request::Authority};
use crate::identity::SpiffeId;
use crate::mesh::workload::GatewayDestination;
use crate::mesh::{Service, ServiceState, Snapshot, Workload};
use crate::net::address::{OriginalDst, UpstreamAddr};
use crate::proxy::balance::Choice;
use crate::proxy::resolve::endpoint::{Mode, Place, Wanted, place};
use crate::proxy::resolve::gateway::{self, Hop, HopTo};
use crate::proxy::resolve::{Carriage, Target};
use crate::telemetry::CloseReason;

/// One candidate of a target, and the way to it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The workload that is reached; none when passed through.
    pub workload: Option<Arc<Workload>>,
    pub route: Route,
}

#[derive(Debug, Clone)]
pub enum Route {
    /// In the clear, to exactly this address.
    Address(UpstreamAddr),
    /// In the clear.
    Plain {
        place: Place,
        port: u16,
    },
    /// To the workload's own end of a tunnel.
    Tunnel(Leg),
    Waypoint(Leg),
    /// A tunnel inside the one to the gateway, for both of which the far side is asked for the same.
    Gateway {
        outer: Leg,
        /// Who may be at the end of the inner one.
        inner: Arc<[SpiffeId]>,
    },
}

/// A tunnel to be opened.
#[derive(Debug, Clone)]
pub struct Leg {
    /// Who is at its far end.
    pub workload: Arc<Workload>,
    pub place: Place,
    pub port: u16,
    pub asked: Asked,
    /// Who may answer.
    pub allowed: Arc<[SpiffeId]>,
    /// Where the place is only a name: which family is preferred.
    pub wanted: IpAddr,
}

/// What the far side is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// This port at the address that it has.
    Itself(u16),
    Exactly(Authority),
}

/// Why there is no way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("no healthy upstream")]
    NoEndpoint,
    #[error("no healthy upstream for waypoint {0}")]
    NoWaypoint(GatewayDestination),
    #[error("no service for target address: {workload} is in network {network:?}")]
    NoService { workload: Arc<str>, network: Arc<str> },
    #[error("{workload} is in network {network:?} and has no network gateway")]
    NoGateway { workload: Arc<str>, network: Arc<str> },
    #[error("unknown network gateway {0}")]
    UnknownGateway(GatewayDestination),
    #[error("no healthy upstream for network gateway {0}")]
    GatewayWithoutEndpoint(GatewayDestination),
    #[error("a gateway cannot be asked for {0:?}, which is no DNS name")]
    NoName(Arc<str>),
}

impl RouteError {
    #[must_use]
    pub const fn close_reason(&self) -> CloseReason {
        match self {
            Self::NoEndpoint => CloseReason::NoHealthyUpstream,
            Self::NoWaypoint(_) => CloseReason::WaypointUnavailable,
            Self::NoService { .. }
            | Self::NoGateway { .. }
            | Self::UnknownGateway(_)
            | Self::GatewayWithoutEndpoint(_)
            | Self::NoName(_) => CloseReason::GatewayUnavailable,
        }
    }
}

impl Route {
    /// What is dialled, where that is known without looking up a name.
    #[must_use]
    pub fn known_hop(&self) -> Option<UpstreamAddr> {
        let (place, port) = match self {
            Self::Address(address) => return Some(*address),
            Self::Plain { place, port } => (place, *port),
            Self::Tunnel(leg) | Self::Waypoint(leg) | Self::Gateway { outer: leg, .. } => (&leg.place, leg.port),
        };
        match place {
            Place::Address(ip) => Some(UpstreamAddr::new((*ip, port).into())),
            Place::Hostname(_) | Place::Beyond => None,
        }
    }

    /// What is to be looked up where it is not known: the place, the port that is dialled there, and an address of the
    /// preferred family.
    #[must_use]
    pub fn to_look_up(&self, client_wants: IpAddr) -> (Place, u16, IpAddr) {
        match self {
            Self::Address(address) => (Place::Address(address.ip()), address.port(), client_wants),
            Self::Plain { place, port } => (place.clone(), *port, client_wants),
            Self::Tunnel(leg) | Self::Waypoint(leg) | Self::Gateway { outer: leg, .. } => {
                (leg.place.clone(), leg.port, leg.wanted)
            }
        }
    }

    /// What must not be an end of our own, if `hop` is what is dialled. The workload that we serve may be reached through
    /// our own tunnels, but we are no waypoint or gateway on the way to somebody else.
    #[must_use]
    pub fn leads_to(&self, hop: UpstreamAddr) -> UpstreamAddr {
        match self {
            Self::Tunnel(Leg { asked: Asked::Itself(port), .. }) => UpstreamAddr::new((hop.ip(), *port).into()),
            Self::Address(_) | Self::Plain { .. } | Self::Tunnel(_) | Self::Waypoint(_) | Self::Gateway { .. } => hop,
        }
    }
}

impl Leg {
    /// What the far side is asked for, if it is at `hop`.
    #[must_use]
    pub fn authority(&self, hop: UpstreamAddr) -> Authority {
        match &self.asked {
            Asked::Itself(port) => Authority::of_address((hop.ip(), *port).into()),
            Asked::Exactly(authority) => authority.clone(),
        }
    }
}

/// Who asks, for what, and where.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    pub snapshot: &'a Snapshot,
    pub dst: OriginalDst,
    /// Our own.
    pub network: &'a str,
    pub client_namespace: &'a str,
}

/// Which of the endpoints are chosen from, so that each list of those that were tried is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    Endpoints,
    Gateways,
}

/// The next candidate of `target`; `pick` chooses an endpoint of a service.
///
/// # Errors
/// There is none, or no way to the one that was picked: another may have one.
pub fn candidate(
    asking: &Asking<'_>,
    target: &Target,
    mut pick: impl FnMut(Among, &ServiceState, &Wanted<'_>) -> Option<Choice>,
) -> Result<Candidate, RouteError> {
    match target {
        Target::Single { address, workload, carriage, .. } => {
            let route = match (carriage, workload) {
                (Carriage::Plain, _) => Route::Address(*address),
                (Carriage::Tunnel, Some(workload)) => {
                    let place = Place::Address(address.ip());
                    to_own_door(workload, place, address.port(), None, asking.dst.ip())
                }
                // Nobody makes one; if somebody did, it would not be known who may answer.
                (Carriage::Tunnel, None) => return Err(RouteError::NoEndpoint),
            };
            Ok(Candidate { workload: workload.clone(), route })
        }
        Target::Service { state, port } => {
            let wanted = asking.wanted(*port, asking.dst.ip(), Mode::Standard);
            let Choice { endpoint, port: own } =
                pick(Among::Endpoints, state, &wanted).ok_or(RouteError::NoEndpoint)?;
            let workload = Arc::clone(&endpoint.workload);
            let route = asking.route_to(&state.service, &workload, own, &mut pick)?;
            Ok(Candidate { workload: Some(workload), route })
        }
        Target::Waypoint { hop, service } => {
            let none = || RouteError::NoWaypoint(hop.name.clone());
            let leg = asking.leg(hop, (Mode::Waypoint, Among::Endpoints), &mut pick).ok_or_else(none)?;
            let workload = Arc::clone(&leg.workload);
            let route = if *workload.network == *asking.network {
                Route::Waypoint(leg)
            } else {
                let of_hop = hop.service();
                let inner = inner_identities(of_hop, &workload);
                asking.through_gateway(service.as_deref(), &workload, inner, &mut pick)?
            };
            Ok(Candidate { workload: Some(workload), route })
        }
    }
}

impl Asking<'_> {
    fn wanted(&self, port: u16, address: IpAddr, mode: Mode) -> Wanted<'_> {
        Wanted { port, address, mode, network: self.network }
    }

    fn route_to(
        &self,
        service: &Service,
        workload: &Arc<Workload>,
        port: u16,
        pick: &mut impl FnMut(Among, &ServiceState, &Wanted<'_>) -> Option<Choice>,
    ) -> Result<Route, RouteError> {
        if *workload.network != *self.network {
            let inner = inner_identities(Some(service), workload);
            return self.through_gateway(Some(service), workload, inner, pick);
        }
        let wanted = self.dst.ip();
        let place = place(workload, service.ip_families, wanted, self.network).ok_or(RouteError::NoEndpoint)?;
        Ok(match Carriage::of(workload) {
            Carriage::Plain => Route::Plain { place, port },
            Carriage::Tunnel => to_own_door(workload, place, port, Some(service), wanted),
        })
    }

    /// `workload` is in another network; what is there is known by the name of its service only.
    fn through_gateway(
        &self,
        service: Option<&Service>,
        workload: &Workload,
        inner: Arc<[SpiffeId]>,
        pick: &mut impl FnMut(Among, &ServiceState, &Wanted<'_>) -> Option<Choice>,
    ) -> Result<Route, RouteError> {
        let (uid, network) = (Arc::clone(&workload.uid), Arc::clone(&workload.network));
        let Some(service) = service else { return Err(RouteError::NoService { workload: uid, network }) };
        let Some(address) = &workload.network_gateway else {
            return Err(RouteError::NoGateway { workload: uid, network });
        };
        let hop = gateway::find(self.snapshot, address, self.client_namespace)
            .ok_or_else(|| RouteError::UnknownGateway(address.destination.clone()))?;
        let none = || RouteError::GatewayWithoutEndpoint(hop.name.clone());
        let outer = self.leg(&hop, (Mode::Standard, Among::Gateways), pick).ok_or_else(none)?;
        let hostname = &service.key.hostname;
        let (host, port) = (hostname.strip_suffix('.').unwrap_or(hostname), self.dst.port());
        let authority = Authority::of_name(host, port).ok_or_else(|| RouteError::NoName(Arc::clone(hostname)))?;
        Ok(Route::Gateway { outer: Leg { asked: Asked::Exactly(authority), ..outer }, inner })
    }

    /// The tunnel to one of those behind `hop`, which is asked for the original destination.
    fn leg(
        &self,
        hop: &Hop,
        (mode, among): (Mode, Among),
        pick: &mut impl FnMut(Among, &ServiceState, &Wanted<'_>) -> Option<Choice>,
    ) -> Option<Leg> {
        let address = hop.wanted(self.dst.ip());
        let (workload, port) = match &hop.to {
            HopTo::Workload(workload) => (Arc::clone(workload), hop.port),
            HopTo::Service(state) => {
                let choice = pick(among, state, &self.wanted(hop.port, address, mode))?;
                (Arc::clone(&choice.endpoint.workload), choice.port)
            }
        };
        let service = hop.service();
        let place = place(&workload, service.and_then(|service| service.ip_families), address, self.network)?;
        let asked = Asked::Exactly(Authority::of_address(self.dst.socket_addr()));
        let allowed = identities(&workload, service);
        Some(Leg { workload, place, port, asked, allowed, wanted: address })
    }
}

fn to_own_door(workload: &Arc<Workload>, place: Place, port: u16, service: Option<&Service>, wanted: IpAddr) -> Route {
    Route::Tunnel(Leg {
        workload: Arc::clone(workload),
        place,
        port: hbone::PORT,
        asked: Asked::Itself(port),
        allowed: identities(workload, service),
        wanted,
    })
}

/// Who may answer: the workload itself, and whom the service that led to it names.
fn identities(workload: &Workload, service: Option<&Service>) -> Arc<[SpiffeId]> {
    let names = service.map(|service| service.subject_alt_names.as_slice()).unwrap_or_default();
    if names.is_empty() {
        return Arc::clone(&workload.identity);
    }
    workload.identity.iter().cloned().chain(parsed(names)).collect()
}

/// Who may answer in a tunnel that goes on behind a gateway, to whichever endpoint is chosen there: whom the service
/// names. Where it names nobody, the one that we know of.
fn inner_identities(service: Option<&Service>, workload: &Workload) -> Arc<[SpiffeId]> {
    match service {
        Some(service) if !service.subject_alt_names.is_empty() => parsed(&service.subject_alt_names).collect(),
        _ => Arc::clone(&workload.identity),
    }
}

/// What is no SPIFFE id names nobody.
fn parsed(names: &[Arc<str>]) -> impl Iterator<Item = SpiffeId> {
    names.iter().filter_map(|name| name.parse().ok())
}
