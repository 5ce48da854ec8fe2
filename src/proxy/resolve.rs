//! Resolve: from where a client was going to what may be dialled. A pure function of the snapshot.
//!
//! A service's virtual address and port become its endpoints, a workload's address that workload, anything else is
//! passed through or refused (`egress`). What needs a way that there is not yet (a waypoint, another network) is refused.
//! Fails closed.

use std::sync::Arc;

use crate::config::settings::Egress;
use crate::mesh::service::LoadBalancerMode;
use crate::mesh::{Protocol, ServiceState, Snapshot, Workload};
use crate::net::address::{OriginalDst, UpstreamAddr};
use crate::telemetry::{CloseReason, PeerLabels, ServiceLabels};

/// Who asks, for where.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub dst: OriginalDst,
    pub network: &'a str,
    pub client_namespace: &'a str,
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
        }
    }
}

/// Why there is nothing to dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("the state does not know {0} and egress is registryOnly")]
    UnknownDestination(OriginalDst),
    #[error("the service at {0} has no such port")]
    NoServicePort(OriginalDst),
    #[error("{0} is behind a waypoint or in another network")]
    NeedsTunnel(OriginalDst),
}

impl ResolveError {
    #[must_use]
    pub const fn close_reason(&self) -> CloseReason {
        match self {
            Self::UnknownDestination(_) => CloseReason::UnknownDestination,
            Self::NoServicePort(_) => CloseReason::NoServicePort,
            Self::NeedsTunnel(_) => CloseReason::TunnelUnsupported,
        }
    }
}

/// Resolves an outbound destination: service before workload, from one snapshot.
///
/// # Errors
/// See [`ResolveError`].
pub fn resolve(snapshot: &Snapshot, question: &Question<'_>) -> Result<Target, ResolveError> {
    let Question { dst, network, client_namespace, egress } = *question;
    if let Some(state) = snapshot.service(network, dst.ip(), client_namespace) {
        return of_service(snapshot, network, state, dst);
    }
    if let Some(workload) = snapshot.workload(network, dst.ip()) {
        return of_workload(workload, network, None, dst);
    }
    match egress {
        Egress::AllowAny => Ok(pass_through(dst, None)),
        Egress::RegistryOnly => Err(ResolveError::UnknownDestination(dst)),
    }
}

fn of_workload(
    workload: &Arc<Workload>,
    network: &str,
    service: Option<Arc<ServiceLabels>>,
    dst: OriginalDst,
) -> Result<Target, ResolveError> {
    let carriage = carriage(workload, network).filter(|_| workload.waypoint.is_none());
    let Some(carriage) = carriage else { return Err(ResolveError::NeedsTunnel(dst)) };
    let (address, workload) = (UpstreamAddr::new(dst.socket_addr()), Some(Arc::clone(workload)));
    Ok(Target::Single { address, workload, service, carriage })
}

fn pass_through(dst: OriginalDst, service: Option<Arc<ServiceLabels>>) -> Target {
    let address = UpstreamAddr::new(dst.socket_addr());
    Target::Single { address, workload: None, service, carriage: Carriage::Plain }
}

/// Resolves a service that was found, by address or by name. One that passes through leads to the workload that has the
/// address, if there is one: a range may cover workloads that must not be dialled in the clear.
///
/// # Errors
/// See [`ResolveError`].
pub fn of_service(
    snapshot: &Snapshot,
    network: &str,
    state: &Arc<ServiceState>,
    dst: OriginalDst,
) -> Result<Target, ResolveError> {
    let service = &state.service;
    if service.waypoint.is_some() || service.weighted_waypoints.iter().any(|(_, weight)| *weight > 0) {
        return Err(ResolveError::NeedsTunnel(dst));
    }
    if matches!(&service.load_balancer, Some(balancer) if balancer.mode == LoadBalancerMode::Passthrough) {
        let labels = Some(Arc::clone(&service.labels));
        return match snapshot.workload(network, dst.ip()) {
            Some(workload) => of_workload(workload, network, labels, dst),
            None => Ok(pass_through(dst, labels)),
        };
    }
    if !service.ports.contains_key(&dst.port()) {
        return Err(ResolveError::NoServicePort(dst));
    }
    Ok(Target::Service { state: Arc::clone(state), port: dst.port() })
}

/// How a workload may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carriage {
    Plain,
    /// Through a tunnel of its own, and never in the clear.
    Tunnel,
}

/// How `workload` may be reached from `network`; not at all yet if it is in another one.
#[must_use]
pub fn carriage(workload: &Workload, network: &str) -> Option<Carriage> {
    (*workload.network == *network).then_some(match workload.protocol {
        Protocol::Tcp => Carriage::Plain,
        Protocol::Hbone => Carriage::Tunnel,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::snapshot_of;

    const WORLD: &str = "
workloads:
- { uid: safe, name: safe, namespace: shop, workloadIps: [10.0.0.5], protocol: HBONE }
- { uid: plain, name: plain, namespace: shop, workloadIps: [10.0.0.6] }
services:
- name: range
  namespace: shop
  hostname: range.shop
  vips: []
  cidrVips: [{ network: '', cidr: 10.0.0.0/8 }]
  ports: {}
  loadBalancer: { mode: Passthrough, routingPreferences: [] }
";

    /// A range is often that of the whole network, and the workloads in it are still who they are.
    #[test]
    fn what_passes_through_a_range_to_a_workload_goes_as_the_workload_wants() {
        let snapshot = snapshot_of("mesh.yaml", WORLD).expect("a mesh");
        for (dst, uid, want) in [
            ("10.0.0.5:80", Some("safe"), Carriage::Tunnel),
            ("10.0.0.6:80", Some("plain"), Carriage::Plain),
            ("10.0.0.7:80", None, Carriage::Plain),
        ] {
            let dst = OriginalDst::new(dst.parse().expect("address"));
            let question = Question { dst, network: "", client_namespace: "shop", egress: Egress::RegistryOnly };
            let target = resolve(&snapshot, &question).expect("a target");
            let Target::Single { workload, service, carriage, .. } = target else { panic!("{target:?}") };
            assert_eq!((workload.as_ref().map(|it| &*it.uid), carriage), (uid, want), "{dst}");
            assert_eq!(service.map(|labels| labels.hostname.to_string()).as_deref(), Some("range.shop"));
        }
    }
}
