//! Balance: which endpoint of a service a connection tries next. A pure function; the random source is an argument.
//!
//! Weighted by `capacity` among the endpoints that may take traffic; an endpoint that was tried is not chosen again
//! while another is untried. One pass over the endpoints, nothing allocated.

pub mod draw;
pub mod eject;

use std::net::IpAddr;
use std::sync::Arc;

use crate::mesh::service::{HealthPolicy, IpFamilies};
use crate::mesh::{Endpoint, Health, Service, ServiceState, Workload};
use crate::net::address::UpstreamAddr;
use crate::proxy::resolve::{Carriage, carriage};

/// A chosen endpoint.
#[derive(Debug, Clone)]
pub struct Choice {
    pub address: UpstreamAddr,
    pub workload: Arc<Workload>,
    /// How it may be reached; nothing: there is no way yet.
    pub carriage: Option<Carriage>,
}

/// Chooses among the endpoints of `state` that serve `port` and are not in `tried` (addresses dialled before).
///
/// `wanted` is the address that the client asked for: its family is preferred. `None`: nothing left to try.
pub fn choose(
    state: &ServiceState,
    port: u16,
    wanted: IpAddr,
    network: &str,
    tried: &[UpstreamAddr],
    random: &mut fastrand::Rng,
) -> Option<Choice> {
    let mut total: u64 = 0;
    let mut chosen = None;
    for endpoint in &state.endpoints {
        let Some(address) = usable(&state.service, endpoint, port, wanted) else { continue };
        if tried.contains(&address) {
            continue;
        }
        let weight = u64::from(endpoint.workload.capacity);
        total += weight;
        // Keeps the k-th endpoint with probability weight / total so far: in the end, weight / total for each.
        if weight > 0 && random.u64(0..total) < weight {
            chosen = Some((endpoint, address));
        }
    }
    chosen.map(|(endpoint, address)| Choice {
        address,
        workload: Arc::clone(&endpoint.workload),
        carriage: carriage(&endpoint.workload, network),
    })
}

/// The address to dial for `port`, if the endpoint may take traffic.
fn usable(service: &Service, endpoint: &Endpoint, port: u16, wanted: IpAddr) -> Option<UpstreamAddr> {
    let allow_all = matches!(&service.load_balancer, Some(lb) if lb.health_policy == HealthPolicy::AllowAll);
    match endpoint.status {
        Health::Healthy => {}
        Health::Unhealthy if allow_all => {}
        Health::Unhealthy | Health::Terminating => return None,
    }
    let target = endpoint.ports.get(&port).or_else(|| service.ports.get(&port)).copied().filter(|port| *port > 0)?;
    let ip = address_of(&endpoint.workload, service.ip_families, wanted)?;
    Some(UpstreamAddr::new((ip, target).into()))
}

/// Which of a workload's addresses: the wanted one itself, else the first of its family, else the first allowed.
fn address_of(workload: &Workload, families: Option<IpFamilies>, wanted: IpAddr) -> Option<IpAddr> {
    if workload.ips.contains(&wanted) {
        return Some(wanted);
    }
    let allowed = |ip: &&IpAddr| match families {
        None | Some(IpFamilies::Dual) => true,
        Some(IpFamilies::Ipv4) => ip.is_ipv4(),
        Some(IpFamilies::Ipv6) => ip.is_ipv6(),
    };
    let mut candidates = workload.ips.iter().filter(allowed);
    let same_family = candidates.clone().find(|ip| ip.is_ipv4() == wanted.is_ipv4());
    same_family.or_else(|| candidates.next()).copied()
}
