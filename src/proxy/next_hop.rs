//! Next hop: from what a tunnel's stream asks for to what is dialled. A pure function of the snapshot.
//!
//! In: the authority of a CONNECT and the address that its tunnel arrived on. Out: an address of the local workload's
//! own, with the port that was asked for, or a [`Refusal`] with its status. The authority never chooses the address: it
//! must be the arrival's own, or one that the local workload is a waypoint of, or the workload must have an application
//! tunnel, which is told what was asked for. Nothing is allocated. Fails closed.
//!
//! Deliberately absent: who may connect (`policy_port` is what that is decided by), and connecting.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use http::StatusCode;

use crate::hbone::request::{Authority, HostName};
use crate::mesh::workload::{ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination};
use crate::mesh::{Service, ServiceState, Snapshot, Workload};
use crate::net::address::UpstreamAddr;
use crate::net::local::is_loopback_or_link_local;
use crate::telemetry::ServiceLabels;

/// What a stream asks for, and where.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The local address of the tunnel's own socket: the port does not matter, a link-local address keeps its scope.
    pub arrival: SocketAddr,
    pub authority: &'a Authority,
    /// The workload that this daemon serves, if the state knows it.
    pub local: Option<&'a Workload>,
    pub network: &'a str,
    /// A claim: only for which service the traffic is counted under.
    pub forwarded_host: Option<&'a str>,
}

/// Where a stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHop {
    /// On the arrival address; on loopback when there is a `proxy_target`, and then without the client's source address.
    pub address: UpstreamAddr,
    /// The port that the client asked for, a service's already mapped: what policy is about. An application tunnel's own
    /// port is not.
    pub policy_port: u16,
    /// The application wants a PROXY header that says this is where the client was going.
    pub proxy_target: Option<SocketAddr>,
    pub service: Option<Arc<ServiceLabels>>,
}

/// Why a stream goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("failed to fetch information about local workload")]
    UnknownLocalWorkload,
    #[error("{0} can only be an address of the workload itself")]
    ForbiddenAddress(IpAddr),
    #[error("ip mismatch: {arrival} != {asked}")]
    IpMismatch { arrival: IpAddr, asked: IpAddr },
    #[error("no service or workload for hostname")]
    UnknownHostname,
    #[error("requested service found, but cannot resolve port {0}")]
    NoServicePort(u16),
    #[error("requested service found, but has no IP addresses")]
    NoServiceAddress,
    #[error("attempted recursive call to ourselves")]
    OwnPort(u16),
}

impl Refusal {
    /// What the client is told.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::ForbiddenAddress(_) | Self::IpMismatch { .. } => StatusCode::BAD_REQUEST,
            Self::UnknownLocalWorkload
            | Self::UnknownHostname
            | Self::NoServicePort(_)
            | Self::NoServiceAddress
            | Self::OwnPort(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// For the far side's log.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::UnknownLocalWorkload => "unknown_local_workload",
            Self::ForbiddenAddress(_) => "forbidden_address",
            Self::IpMismatch { .. } => "ip_mismatch",
            Self::UnknownHostname => "unknown_hostname",
            Self::NoServicePort(_) => "no_service_port",
            Self::NoServiceAddress => "no_service_address",
            Self::OwnPort(_) => "loop_refused",
        }
    }
}

/// Decides where a stream goes. `is_own`: whether dialling an address would come back to adit's own doors or reach its
/// admin port.
///
/// # Errors
/// See [`Refusal`].
pub fn next_hop(
    snapshot: &Snapshot,
    question: &Question<'_>,
    is_own: impl Fn(UpstreamAddr) -> bool,
) -> Result<NextHop, Refusal> {
    let local = question.local.ok_or(Refusal::UnknownLocalWorkload)?;
    let arrival = UpstreamAddr::new(question.arrival);
    let (port, named) = match question.authority {
        Authority::Address(asked) => {
            may_ask(snapshot, local, question.network, arrival.ip(), asked.ip().to_canonical())?;
            (asked.port(), None)
        }
        Authority::Name { host, port } => {
            let state = service_named(snapshot, local, host)?;
            (target_port(state, local, port.get())?, Some(state))
        }
    };
    let at = |port| UpstreamAddr::new(with_port(arrival.socket_addr(), port));
    let refuse_own = |address: UpstreamAddr| match is_own(address) {
        true => Err(Refusal::OwnPort(address.port())),
        false => Ok(address),
    };
    // Also where a tunnel replaces it: what asks for a door of ours means no application.
    let asked = refuse_own(at(port))?;
    let service = match named {
        Some(state) => Some(state),
        None => service_of(snapshot, local, question.forwarded_host, port),
    };
    let (address, proxy_target) = match local.application_tunnel {
        None => (asked, None),
        Some(ApplicationTunnel { protocol, port: own }) => match protocol {
            ApplicationProtocol::None => (refuse_own(at(own.unwrap_or(port)))?, None),
            ApplicationProtocol::Proxy => {
                let target = proxy_target(question, named.map(|state| &*state.service))?;
                let loopback = SocketAddr::new(loopback(arrival.ip()), own.unwrap_or(port));
                (refuse_own(UpstreamAddr::new(loopback))?, Some(target))
            }
        },
    };
    let service = service.map(|state| Arc::clone(&state.service.labels));
    Ok(NextHop { address, policy_port: port, proxy_target, service })
}

/// Keeps the scope of a link-local address.
const fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

const fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// Whether a stream that arrived at `arrival` may ask for `asked`.
fn may_ask(
    snapshot: &Snapshot,
    local: &Workload,
    network: &str,
    arrival: IpAddr,
    asked: IpAddr,
) -> Result<(), Refusal> {
    if (is_loopback_or_link_local(asked) || asked.is_multicast()) && !local.ips.contains(&asked) {
        return Err(Refusal::ForbiddenAddress(asked));
    }
    let aligned = asked == arrival || local.application_tunnel.is_some();
    if aligned || is_waypoint_of(snapshot, local, network, arrival, asked) {
        Ok(())
    } else {
        Err(Refusal::IpMismatch { arrival, asked })
    }
}

/// Whether what has the address `asked` has the local workload, at `arrival`, as a waypoint. The weight of a waypoint
/// does not matter: clients learn of a change later than we do, or earlier.
fn is_waypoint_of(snapshot: &Snapshot, local: &Workload, network: &str, arrival: IpAddr, asked: IpAddr) -> bool {
    let leads_here = |gateway: &GatewayAddress| leads_to(snapshot, &gateway.destination, local, arrival);
    let of_workload = || snapshot.workload(network, asked).and_then(|workload| workload.waypoint.as_ref());
    let of_services = || {
        snapshot.services_at(network, asked).flat_map(|state| {
            let weighted = state.service.weighted_waypoints.iter().map(|(gateway, _)| gateway);
            state.service.waypoint.iter().chain(weighted)
        })
    };
    of_workload().is_some_and(leads_here) || of_services().any(leads_here)
}

/// Whether a gateway is the local workload: by name or virtual address a service that it is an endpoint of, by address
/// or host name the workload that owns the arrival address.
fn leads_to(snapshot: &Snapshot, destination: &GatewayDestination, local: &Workload, arrival: IpAddr) -> bool {
    let is_endpoint = |state: &Arc<ServiceState>| state.endpoint(&local.uid).is_some();
    match destination {
        GatewayDestination::Address { network, ip } => {
            snapshot.workload(network, *ip).is_some_and(|workload| workload.ips.contains(&arrival))
                || snapshot.services_at(network, *ip).any(is_endpoint)
        }
        GatewayDestination::Hostname(key) => match snapshot.service_by_key(&key.namespace, &key.hostname) {
            Some(state) => is_endpoint(state),
            None => {
                let by_name = *local.namespace == *key.namespace && is_same_host(&local.hostname, &key.hostname);
                by_name && local.ips.contains(&arrival)
            }
        },
    }
}

/// However they are written, with or without the root's dot.
fn is_same_host(one: &str, other: &str) -> bool {
    let (one, other) = (one.strip_suffix('.').unwrap_or(one), other.strip_suffix('.').unwrap_or(other));
    !one.is_empty() && one.eq_ignore_ascii_case(other)
}

fn service_named<'a>(
    snapshot: &'a Snapshot,
    local: &Workload,
    host: &HostName,
) -> Result<&'a Arc<ServiceState>, Refusal> {
    snapshot.service_by_host(host.as_str(), &local.namespace).ok_or(Refusal::UnknownHostname)
}

/// The local workload's own port for the service's, else the service's target port.
fn target_port(state: &ServiceState, local: &Workload, port: u16) -> Result<u16, Refusal> {
    let own = state.endpoint(&local.uid).and_then(|endpoint| endpoint.ports.get(&port));
    let target = own.or_else(|| state.service.ports.get(&port)).copied();
    target.filter(|target| *target > 0).ok_or(Refusal::NoServicePort(port))
}

/// What a PROXY header says the client was going to: the address that it asked for, or for a name one of the service's,
/// of the own network before others, IPv4 before IPv6, with the port that was asked for.
fn proxy_target(question: &Question<'_>, named: Option<&Service>) -> Result<SocketAddr, Refusal> {
    match (question.authority, named) {
        (Authority::Address(asked), _) => Ok(*asked),
        (Authority::Name { port, .. }, named) => {
            let vips = named.map(|service| service.vips.as_slice()).unwrap_or_default();
            let best = vips.iter().min_by_key(|(network, ip)| (**network != *question.network, ip.is_ipv6()));
            let (_, ip) = best.ok_or(Refusal::NoServiceAddress)?;
            Ok(SocketAddr::new(*ip, port.get()))
        }
    }
}

/// The service that a connection to the workload itself was probably meant for: the one that the client names, if the
/// workload is behind it, else the first that leads to the port.
fn service_of<'a>(
    snapshot: &'a Snapshot,
    local: &'a Workload,
    forwarded_host: Option<&str>,
    port: u16,
) -> Option<&'a Arc<ServiceState>> {
    let claimed =
        |host: &str| snapshot.services_of(local).find(|state| state.service.key.hostname.eq_ignore_ascii_case(host));
    let leads_to_port = |state: &&Arc<ServiceState>| {
        let own = state.endpoint(&local.uid).is_some_and(|endpoint| endpoint.ports.values().any(|own| *own == port));
        own || state.service.ports.values().any(|target| *target == port)
    };
    forwarded_host.and_then(claimed).or_else(|| snapshot.services_of(local).find(leads_to_port))
}

#[cfg(test)]
mod tests;
