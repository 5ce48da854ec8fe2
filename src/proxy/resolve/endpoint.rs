//! One endpoint: on which port it takes what was asked, and at which of its addresses.
//!
//! In: a service, an endpoint of it, what is wanted. Out: a target port and a [`Place`]. An endpoint without a usable
//! address has a host name to look up, or is in another network behind a gateway, or is no endpoint.

use std::net::IpAddr;
use std::sync::Arc;

pub use crate::mesh::plan::Mode;
use crate::mesh::plan::target_port;
use crate::mesh::service::IpFamilies;
use crate::mesh::{Endpoint, Service, Workload};

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

/// Where a workload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Address(IpAddr),
    /// At an address of this name, to be looked up.
    Hostname(Arc<str>),
    /// Somewhere in its network, where only its gateway can find it.
    Beyond,
}

/// The port of the endpoint's own that is meant, if there is a place where it could be reached. Whether it may be chosen at
/// all is the plan's word.
#[must_use]
pub fn reachable(service: &Service, endpoint: &Endpoint, wanted: &Wanted<'_>) -> Option<u16> {
    let port = target_port(service, endpoint, wanted.port, wanted.mode)?;
    place(&endpoint.workload, service.ip_families, wanted.address, wanted.network)?;
    Some(port)
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
