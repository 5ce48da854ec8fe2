//! References to waypoints and gateways: by `network/address` or by `namespace/hostname`, to what is dialled.
//!
//! By address: the service that has it (as the client sees it), else the workload. By host name: the service of exactly
//! that name and namespace, else the workload. A service is addressed at the reference's port, which it maps as any
//! other. A reference that leads nowhere is `None`: its user fails closed. No scan over the state.

use std::net::IpAddr;
use std::sync::Arc;

use crate::mesh::workload::GatewayDestination;
use crate::mesh::{GatewayAddress, Service, ServiceState, Snapshot, Workload};
use crate::proxy::resolve::passes_through;

/// A waypoint or gateway that is in the state.
#[derive(Debug, Clone)]
pub struct Hop {
    /// How it was referred to, for whoever has to look for it.
    pub name: GatewayDestination,
    pub to: HopTo,
    /// Addressed at this port.
    pub port: u16,
}

/// What it is.
#[derive(Debug, Clone)]
pub enum HopTo {
    Workload(Arc<Workload>),
    Service(Arc<ServiceState>),
}

impl Hop {
    /// Whether `workload` is it, or one of its endpoints.
    #[must_use]
    pub fn includes(&self, workload: &Workload) -> bool {
        match &self.to {
            HopTo::Workload(hop) => hop.uid == workload.uid,
            HopTo::Service(state) => state.endpoint(&workload.uid).is_some(),
        }
    }

    #[must_use]
    pub fn service(&self) -> Option<&Service> {
        match &self.to {
            HopTo::Workload(_) => None,
            HopTo::Service(state) => Some(&state.service),
        }
    }

    /// Which address of it is meant: its own reference, or else one like the client's.
    #[must_use]
    pub const fn wanted(&self, client_wants: IpAddr) -> IpAddr {
        match &self.name {
            GatewayDestination::Address { ip, .. } => *ip,
            GatewayDestination::Hostname(_) => client_wants,
        }
    }
}

/// Where the reference leads.
#[must_use]
pub fn find(snapshot: &Snapshot, gateway: &GatewayAddress, client_namespace: &str) -> Option<Hop> {
    let to = match &gateway.destination {
        GatewayDestination::Address { network, ip } => match snapshot.service(network, *ip, client_namespace) {
            Some(state) => service(state)?,
            None => HopTo::Workload(Arc::clone(snapshot.workload(network, *ip)?)),
        },
        GatewayDestination::Hostname(key) => match snapshot.service_by_key(&key.namespace, &key.hostname) {
            Some(state) => service(state)?,
            None => HopTo::Workload(Arc::clone(snapshot.workload_by_hostname(&key.namespace, &key.hostname)?)),
        },
    };
    Some(Hop { name: gateway.destination.clone(), to, port: gateway.hbone_mtls_port })
}

/// One that passes through has no endpoints to choose from.
fn service(state: &Arc<ServiceState>) -> Option<HopTo> {
    (!passes_through(&state.service)).then(|| HopTo::Service(Arc::clone(state)))
}

/// The waypoint for one connection: of the weighted ones each in proportion to its weight, or, where none has any, the
/// single one.
#[must_use]
pub fn waypoint_of<'a>(service: &'a Service, random: &mut fastrand::Rng) -> Option<&'a GatewayAddress> {
    let weighted = service.weighted_waypoints.iter().map(|(waypoint, weight)| (waypoint, u64::from(*weight)));
    let total: u64 = weighted.clone().map(|(_, weight)| weight).sum();
    if total == 0 {
        return service.waypoint.as_ref();
    }
    let mut left = random.u64(0..total);
    for (waypoint, weight) in weighted {
        if left < weight {
            return Some(waypoint);
        }
        left -= weight;
    }
    None
}
