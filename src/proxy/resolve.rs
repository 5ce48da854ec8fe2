//! Resolve: from where a client was going to what may be dialled. Pure functions of the snapshot.
//!
//! ```text
//! resolve     destination -> Target: one address, any endpoint of a service, or the waypoint in front of either
//! gateway     a reference to a waypoint or gateway -> Hop        endpoint  which port and address of one endpoint
//! route       one endpoint -> Route: in the clear, through its own tunnel, a waypoint, or a gateway of its network
//! ```
//!
//! One look-up per connection, services before workloads, so a waypoint and the endpoints behind it come from the same
//! answer. What has a waypoint is reached through it or not at all, and so is what is in another network through its
//! gateway: fails closed. Deliberately absent: the choice among endpoints (`balance`), and names (`hostnames`).

pub mod endpoint;
pub mod gateway;
pub mod route;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::config::settings::Egress;
use crate::mesh::service::LoadBalancerMode;
use crate::mesh::workload::GatewayDestination;
use crate::mesh::{GatewayAddress, Protocol, Service, ServiceState, Snapshot, Workload};
use crate::net::address::{OriginalDst, UpstreamAddr};
use crate::telemetry::{CloseReason, PeerLabels, ServiceLabels};

pub use gateway::{Hop, HopTo};

/// Who asks, for where.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub dst: OriginalDst,
    pub network: &'a str,
    pub client_namespace: &'a str,
    /// The workload that asks, if the state knows it.
    pub source: Option<&'a Workload>,
    pub egress: Egress,
}

/// What may be dialled.
#[derive(Debug, Clone)]
pub enum Target {
    /// Exactly this address.
    Single {
        address: UpstreamAddr,
        /// The workload that has it; none when passed through.
        workload: Option<Arc<Workload>>,
        service: Option<Arc<ServiceLabels>>,
        carriage: Carriage,
    },
    /// Any endpoint of the service, addressed at `port`.
    Service { state: Arc<ServiceState>, port: u16 },
    /// What is in front of the destination; it is told the original one, and goes on from there.
    Waypoint {
        hop: Hop,
        /// The service that was addressed.
        service: Option<Arc<Service>>,
    },
}

/// How a workload accepts connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carriage {
    Plain,
    /// Through a tunnel of its own, and never in the clear.
    Tunnel,
}

impl Carriage {
    #[must_use]
    pub const fn of(workload: &Workload) -> Self {
        match workload.protocol {
            Protocol::Tcp => Self::Plain,
            Protocol::Hbone => Self::Tunnel,
        }
    }
}

impl Target {
    /// Labels of the destination as far as they are known before an endpoint is chosen.
    #[must_use]
    pub fn labels(&self) -> (Option<Arc<PeerLabels>>, Option<Arc<ServiceLabels>>) {
        match self {
            Self::Single { workload, service, .. } => {
                (workload.as_ref().map(|workload| Arc::clone(&workload.labels)), service.clone())
            }
            Self::Service { state, .. } => (None, Some(Arc::clone(&state.service.labels))),
            Self::Waypoint { hop, service } => {
                let labels = match &hop.to {
                    HopTo::Workload(workload) => Some(Arc::clone(&workload.labels)),
                    HopTo::Service(_) => None,
                };
                (labels, service.as_ref().map(|service| Arc::clone(&service.labels)))
            }
        }
    }

    /// Whether there is nothing else to try when it fails.
    #[must_use]
    pub const fn is_single(&self) -> bool {
        match self {
            Self::Single { .. } | Self::Waypoint { hop: Hop { to: HopTo::Workload(_), .. }, .. } => true,
            Self::Service { .. } | Self::Waypoint { hop: Hop { to: HopTo::Service(_), .. }, .. } => false,
        }
    }
}

/// Why there is nothing to dial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("the state does not know {0} and egress is registryOnly")]
    UnknownDestination(OriginalDst),
    #[error("the service at {0} has no such port")]
    NoServicePort(OriginalDst),
    #[error("unknown waypoint {0}")]
    UnknownWaypoint(GatewayDestination),
}

impl ResolveError {
    #[must_use]
    pub const fn close_reason(&self) -> CloseReason {
        match self {
            Self::UnknownDestination(_) => CloseReason::UnknownDestination,
            Self::NoServicePort(_) => CloseReason::NoServicePort,
            Self::UnknownWaypoint(_) => CloseReason::WaypointUnavailable,
        }
    }

    /// What the reason alone does not say.
    #[must_use]
    pub fn detail(&self) -> Option<String> {
        match self {
            // The record of the connection has the destination anyway.
            Self::UnknownDestination(_) | Self::NoServicePort(_) => None,
            Self::UnknownWaypoint(_) => Some(self.to_string()),
        }
    }
}

/// Resolves an outbound destination: service before workload, from one snapshot. `random` draws among the weighted
/// waypoints of a service, and for nothing else.
///
/// # Errors
/// See [`ResolveError`].
pub fn resolve(
    snapshot: &Snapshot,
    question: &Question<'_>,
    random: &mut fastrand::Rng,
) -> Result<Target, ResolveError> {
    let Question { dst, network, client_namespace, egress, .. } = *question;
    if let Some(state) = snapshot.service(network, dst.ip(), client_namespace) {
        return of_service(snapshot, question, state, random);
    }
    if let Some(workload) = snapshot.workload(network, dst.ip()) {
        return of_workload(snapshot, question, workload, None);
    }
    match egress {
        Egress::AllowAny => Ok(pass_through(dst, None)),
        Egress::RegistryOnly => Err(ResolveError::UnknownDestination(dst)),
    }
}

/// Resolves a service that was found, by address or by name: its waypoint first. One that passes through leads to the
/// workload that has the address, if there is one: a range may cover workloads that must not be dialled in the clear.
///
/// # Errors
/// See [`ResolveError`].
pub fn of_service(
    snapshot: &Snapshot,
    question: &Question<'_>,
    state: &Arc<ServiceState>,
    random: &mut fastrand::Rng,
) -> Result<Target, ResolveError> {
    let (service, dst) = (&state.service, question.dst);
    if let Some(waypoint) = gateway::waypoint_of(service, random) {
        let hop = waypoint_hop(snapshot, question, waypoint)?;
        return Ok(Target::Waypoint { hop, service: Some(Arc::clone(service)) });
    }
    if passes_through(service) {
        return match snapshot.workload(question.network, dst.ip()) {
            Some(workload) => of_workload(snapshot, question, workload, Some(service)),
            None => Ok(pass_through(dst, Some(service))),
        };
    }
    if !service.ports.contains_key(&dst.port()) {
        return Err(ResolveError::NoServicePort(dst));
    }
    Ok(Target::Service { state: Arc::clone(state), port: dst.port() })
}

/// Its waypoint first, unless it is the waypoint that asks: it has done its part.
fn of_workload(
    snapshot: &Snapshot,
    question: &Question<'_>,
    workload: &Arc<Workload>,
    service: Option<&Arc<Service>>,
) -> Result<Target, ResolveError> {
    if let Some(waypoint) = &workload.waypoint {
        let hop = waypoint_hop(snapshot, question, waypoint)?;
        if !question.source.is_some_and(|source| hop.includes(source)) {
            return Ok(Target::Waypoint { hop, service: service.cloned() });
        }
    }
    Ok(Target::Single {
        address: UpstreamAddr::from(question.dst),
        workload: Some(Arc::clone(workload)),
        service: service.map(|service| Arc::clone(&service.labels)),
        carriage: Carriage::of(workload),
    })
}

fn waypoint_hop(snapshot: &Snapshot, question: &Question<'_>, waypoint: &GatewayAddress) -> Result<Hop, ResolveError> {
    gateway::find(snapshot, waypoint, question.client_namespace)
        .ok_or_else(|| ResolveError::UnknownWaypoint(waypoint.destination.clone()))
}

fn pass_through(dst: OriginalDst, service: Option<&Arc<Service>>) -> Target {
    let service = service.map(|service| Arc::clone(&service.labels));
    Target::Single { address: UpstreamAddr::from(dst), workload: None, service, carriage: Carriage::Plain }
}

fn passes_through(service: &Service) -> bool {
    matches!(&service.load_balancer, Some(balancer) if balancer.mode == LoadBalancerMode::Passthrough)
}
