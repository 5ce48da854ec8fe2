//! One endpoint: whether it may take traffic for what was asked, on which port, and at which of its addresses.
//!
//! In: a service, an endpoint of it, what is wanted. Out: a target port and a [`Place`]. An endpoint without a usable
//! address has a host name to look up, or is in another network behind a gateway, or is no endpoint.

use std::net::IpAddr;
use std::sync::Arc;

use crate::mesh::service::{HealthPolicy, IpFamilies};
use crate::mesh::{Endpoint, Health, Service, Workload};

/// What is asked of a service's endpoints.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The service's port.
    pub port: u16,
    /// An endpoint that has it is dialled there, others preferably at one of its family.
    pub address: IpAddr,
    pub mode: Mode,
    /// Our own.
    pub network: &'a str,
}

/// What the endpoints are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Standard,
    /// As a waypoint: where its application has a port of its own for tunnelled traffic, the service need not list any.
    Waypoint,
}

/// Where a workload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Address(IpAddr),
    /// At an address of this name, to be looked up.
    Hostname(Arc<str>),
    /// Somewhere in its network, where only its gateway can find it.
    Beyond,
}

/// Whether the endpoint may be chosen at all; if so the port of its own that is meant.
#[must_use]
pub fn usable(service: &Service, endpoint: &Endpoint, wanted: &Wanted<'_>) -> Option<u16> {
    let allow_all = matches!(&service.load_balancer, Some(lb) if lb.health_policy == HealthPolicy::AllowAll);
    match endpoint.status {
        Health::Healthy => {}
        Health::Unhealthy if allow_all => {}
        Health::Unhealthy | Health::Terminating => return None,
    }
    let port = target_port(service, endpoint, wanted)?;
    place(&endpoint.workload, service.ip_families, wanted.address, wanted.network)?;
    Some(port)
}

/// The endpoint's own port for it, else the service's; 0 is a port that each endpoint has to name itself.
fn target_port(service: &Service, endpoint: &Endpoint, wanted: &Wanted<'_>) -> Option<u16> {
    let listed = service.ports.get(&wanted.port).copied();
    let tunnel = match (wanted.mode, endpoint.workload.application_tunnel) {
        (Mode::Waypoint, Some(tunnel)) => tunnel.port.map(|_| wanted.port),
        (Mode::Waypoint, None) | (Mode::Standard, _) => {
            listed?;
            None
        }
    };
    let own = endpoint.ports.get(&wanted.port).copied().filter(|port| *port > 0);
    own.or(listed.filter(|port| *port > 0)).or(tunnel)
}

/// Where `workload` is to be looked for: at the wanted address if it has it, else at the first allowed one of that
/// family, else at the first allowed one.
#[must_use]
pub fn place(workload: &Workload, families: Option<IpFamilies>, wanted: IpAddr, network: &str) -> Option<Place> {
    if workload.ips.contains(&wanted) {
        return Some(Place::Address(wanted));
    }
    let allowed = |ip: &&IpAddr| match families {
        None | Some(IpFamilies::Dual) => true,
        Some(IpFamilies::Ipv4) => ip.is_ipv4(),
        Some(IpFamilies::Ipv6) => ip.is_ipv6(),
    };
    let mut candidates = workload.ips.iter().filter(allowed);
    let same_family = candidates.clone().find(|ip| ip.is_ipv4() == wanted.is_ipv4());
    if let Some(ip) = same_family.or_else(|| candidates.next()) {
        return Some(Place::Address(*ip));
    }
    if !workload.hostname.is_empty() {
        return Some(Place::Hostname(Arc::clone(&workload.hostname)));
    }
    (*workload.network != *network && workload.network_gateway.is_some()).then_some(Place::Beyond)
}
