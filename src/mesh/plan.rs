//! Which endpoints of a service may be chosen, in groups by locality, ready to be drawn from in constant time.
//!
//! In: a service and its endpoints. Out: for each port the candidates, and the groups that a source looks at in turn:
//! those nearest to it first. What does not depend on the source or on the moment is decided here, once per version of
//! the service: who serves the port, has an address and weight, and is healthy as the service's policy wants it. Whether
//! a candidate works at the moment, and is not in use too much, is asked when one is drawn.
//!
//! Groups are kept as a tree by the values of the service's routing preferences: the path that a source's own values lead
//! along ends at the group that matches it in all of them, and each step back is the next best group. Where the first
//! preference is the network, a match of it counts more than all others together, and a mismatch does not end the
//! comparison; so there is a second tree without it. Nothing here can fail.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::mesh::service::{HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, RoutingScope};
use crate::mesh::{Endpoint, Health, Live, Service, ServiceState, Workload};

/// At most so many groups are looked at: six scopes with the network, five without it, and all.
const MOST_TIERS: usize = 12;

/// See the module.
#[derive(Debug)]
pub struct Plan {
    standard: BTreeMap<u16, Arc<Candidates>>,
    /// Where it differs: ports that each endpoint names itself.
    waypoint: BTreeMap<u16, Arc<Candidates>>,
    /// For a waypoint's ports that the service does not define.
    any_port: Arc<Candidates>,
}

/// What endpoints are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Standard,
    /// As a waypoint: where its application has a port of its own for tunnelled traffic, the service need not list any.
    Waypoint,
}

/// The endpoints that serve one port.
#[derive(Debug, Default)]
pub struct Candidates {
    members: Box<[Member]>,
    all: Group,
    locality: Locality,
}

/// One of the candidates. What a draw compares is held beside its address: most endpoints that are looked at are not
/// taken, and in a large state each of them would have to come from memory otherwise.
#[derive(Debug)]
pub struct Member {
    pub live: Live,
    /// At least 1.
    pub weight: u32,
    pub endpoint: Arc<Endpoint>,
}

#[derive(Debug, Default)]
enum Locality {
    /// Everywhere is alike.
    #[default]
    Nowhere,
    /// Nearest first, and in the end all.
    Failover(Trees),
    /// Only where everything matches.
    Strict(Trees),
}

#[derive(Debug)]
struct Trees {
    first: Tree,
    /// Without the network, where that is the first preference.
    second: Option<Tree>,
}

#[derive(Debug)]
struct Tree {
    scopes: Box<[RoutingScope]>,
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    group: Group,
    next: HashMap<Arc<str>, Node>,
}

/// Candidates that are equally near; indexes into the members.
#[derive(Debug, Default)]
pub struct Group {
    members: Box<[u32]>,
    /// Nothing where all weigh the same.
    alias: Option<Box<[Alias]>>,
}

/// One column of the alias method: this member below the threshold, the other above it.
#[derive(Debug, Clone, Copy)]
struct Alias {
    /// Of 2^32.
    threshold: u32,
    other: u32,
}

impl Plan {
    #[must_use]
    pub fn new(state: &ServiceState) -> Self {
        let service = &*state.service;
        let usable: Vec<&Arc<Endpoint>> =
            state.endpoints.iter().filter(|endpoint| is_usable(service, endpoint)).collect();
        let mut made: Vec<Arc<Candidates>> = Vec::new();
        let mut serving = |port, mode| {
            let serves = |endpoint: &&&Arc<Endpoint>| target_port(service, endpoint, port, mode).is_some();
            let members: Vec<Arc<Endpoint>> = usable.iter().filter(serves).map(|it| Arc::clone(it)).collect();
            // Nearly always all ports have the same.
            if let Some(alike) = made.iter().find(|known| known.are(&members)) {
                return Arc::clone(alike);
            }
            let candidates = Arc::new(Candidates::new(members, service.load_balancer.as_ref()));
            made.push(Arc::clone(&candidates));
            candidates
        };
        let standard = service.ports.keys().map(|port| (*port, serving(*port, Mode::Standard))).collect();
        let named = service.ports.iter().filter(|(_, target)| **target == 0);
        let waypoint = named.map(|(port, _)| (*port, serving(*port, Mode::Waypoint))).collect();
        let takes_any =
            |it: &&&Arc<Endpoint>| it.workload.application_tunnel.is_some_and(|tunnel| tunnel.port.is_some());
        let any: Vec<Arc<Endpoint>> = usable.iter().filter(takes_any).map(|it| Arc::clone(it)).collect();
        Self { standard, waypoint, any_port: Arc::new(Candidates::new(any, service.load_balancer.as_ref())) }
    }

    /// The candidates for a port of the service; nothing where it has no such port and needs one.
    #[must_use]
    pub fn candidates(&self, port: u16, mode: Mode) -> Option<&Arc<Candidates>> {
        let listed = self.standard.get(&port);
        match mode {
            Mode::Standard => listed,
            Mode::Waypoint => self.waypoint.get(&port).or(listed).or(Some(&self.any_port)),
        }
    }
}

impl Candidates {
    fn new(members: Vec<Arc<Endpoint>>, balancer: Option<&LoadBalancer>) -> Self {
        let everyone: Vec<u32> = (0..u32::try_from(members.len()).unwrap_or(u32::MAX)).collect();
        let locality = match balancer {
            Some(LoadBalancer { mode, routing_preferences, .. }) if !routing_preferences.is_empty() => match mode {
                LoadBalancerMode::Failover => Locality::Failover(Trees::new(routing_preferences, &everyone, &members)),
                LoadBalancerMode::Strict => Locality::Strict(Trees::new(routing_preferences, &everyone, &members)),
                LoadBalancerMode::Standard | LoadBalancerMode::Passthrough => Locality::Nowhere,
            },
            _ => Locality::Nowhere,
        };
        let all = Group::new(everyone, &members);
        let members = members.into_iter().map(|endpoint| {
            let Workload { live, capacity, .. } = &*endpoint.workload;
            Member { live: live.clone(), weight: (*capacity).max(1), endpoint }
        });
        Self { all, members: members.collect(), locality }
    }

    fn are(&self, members: &[Arc<Endpoint>]) -> bool {
        let same = |(a, b): (&Member, &Arc<Endpoint>)| Arc::ptr_eq(&a.endpoint, b);
        self.members.len() == members.len() && self.members.iter().zip(members).all(same)
    }

    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The groups that `source` looks at, the best first; each may hold members of those before it. A source that the state
    /// does not know is nowhere: near to nothing, so a strict service has nothing for it.
    pub fn tiers(&self, source: Option<&Workload>) -> impl Iterator<Item = &Group> {
        let mut tiers = [None; MOST_TIERS];
        let mut count = 0;
        let mut add = |group| {
            if let Some(tier) = tiers.get_mut(count) {
                *tier = Some(group);
                count += 1;
            }
        };
        match (&self.locality, source) {
            (Locality::Nowhere, _) | (Locality::Failover(_), None) => add(&self.all),
            (Locality::Strict(_), None) => {}
            (Locality::Strict(trees), Some(source)) => {
                let path = trees.first.path(source);
                if path.len == trees.first.scopes.len() {
                    path.nearest_first().take(1).for_each(add);
                }
            }
            (Locality::Failover(trees), Some(source)) => {
                trees.first.path(source).nearest_first().for_each(&mut add);
                if let Some(second) = &trees.second {
                    second.path(source).nearest_first().for_each(&mut add);
                }
                add(&self.all);
            }
        }
        tiers.into_iter().flatten()
    }
}

impl Trees {
    fn new(preferences: &[RoutingScope], everyone: &[u32], members: &[Arc<Endpoint>]) -> Self {
        let tree = |scopes: &[RoutingScope]| Tree { scopes: scopes.into(), root: Node::new(scopes, everyone, members) };
        let second = match preferences {
            [RoutingScope::Network, rest @ ..] if !rest.is_empty() => Some(tree(rest)),
            _ => None,
        };
        Self { first: tree(preferences), second }
    }
}

/// Nodes from the first match on.
struct Path<'a> {
    nodes: [Option<&'a Node>; 6],
    len: usize,
}

impl<'a> Path<'a> {
    fn nearest_first(&self) -> impl Iterator<Item = &'a Group> + use<'a, '_> {
        self.nodes.iter().rev().flatten().map(|node| &node.group)
    }
}

impl Tree {
    fn path(&self, source: &Workload) -> Path<'_> {
        let mut path = Path { nodes: [None; 6], len: 0 };
        let mut node = &self.root;
        for (slot, scope) in path.nodes.iter_mut().zip(&self.scopes) {
            let Some(next) = node.next.get(value(source, *scope)) else { break };
            node = next;
            *slot = Some(node);
            path.len += 1;
        }
        path
    }
}

impl Node {
    fn new(scopes: &[RoutingScope], everyone: &[u32], members: &[Arc<Endpoint>]) -> Self {
        let Some((scope, rest)) = scopes.split_first() else { return Self::default() };
        let mut parts: HashMap<Arc<str>, Vec<u32>> = HashMap::new();
        for index in everyone {
            if let Some(member) = members.get(*index as usize) {
                parts.entry(Arc::clone(value(&member.workload, *scope))).or_default().push(*index);
            }
        }
        let next = parts.into_iter().map(|(value, part)| {
            let node = Self::new(rest, &part, members);
            (value, Self { group: Group::new(part, members), ..node })
        });
        Self { group: Group::default(), next: next.collect() }
    }
}

fn value(workload: &Workload, scope: RoutingScope) -> &Arc<str> {
    match scope {
        RoutingScope::Region => &workload.locality.region,
        RoutingScope::Zone => &workload.locality.zone,
        RoutingScope::Subzone => &workload.locality.subzone,
        RoutingScope::Node => &workload.node,
        RoutingScope::Cluster => &workload.cluster_id,
        RoutingScope::Network => &workload.network,
    }
}

impl Group {
    fn new(members: Vec<u32>, of: &[Arc<Endpoint>]) -> Self {
        let weight = |index: &u32| of.get(*index as usize).map_or(0, |member| u64::from(member.workload.capacity));
        let weights: Vec<u64> = members.iter().map(weight).collect();
        let alike = weights.windows(2).all(|pair| pair.first() == pair.last());
        Self { alias: (!alike).then(|| aliases(&weights)), members: members.into() }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// One of the group, each with a probability by its weight: an index into the members of the candidates.
    #[must_use]
    pub fn draw(&self, random: &mut fastrand::Rng) -> Option<usize> {
        let column = random.usize(0..self.members.len().max(1));
        let chosen = match self.alias.as_ref().and_then(|alias| alias.get(column)) {
            Some(Alias { threshold, other }) if random.u32(..) >= *threshold => *other as usize,
            _ => column,
        };
        self.at(chosen)
    }

    /// The member at a place of the group, which wraps around.
    #[must_use]
    pub fn at(&self, place: usize) -> Option<usize> {
        let place = place.checked_rem(self.members.len())?;
        self.members.get(place).map(|index| *index as usize)
    }
}

/// Vose's alias method: each column is filled up to the mean by one that has more.
fn aliases(weights: &[u64]) -> Box<[Alias]> {
    let count = weights.len();
    let total: f64 = weights.iter().map(|weight| *weight as f64).sum();
    let mut shares: Vec<f64> = weights.iter().map(|weight| *weight as f64 * count as f64 / total).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..count).partition(|at| shares.get(*at) < Some(&1.0));
    let mut columns: Vec<Alias> =
        (0..count).map(|at| Alias { threshold: u32::MAX, other: u32::try_from(at).unwrap_or_default() }).collect();
    while let (Some(less), Some(more)) = (small.pop(), large.last().copied()) {
        let share = shares.get(less).copied().unwrap_or(1.0);
        if let Some(column) = columns.get_mut(less) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share is in 0..1, and a cast saturates"
            )]
            let threshold = (share * f64::from(u32::MAX)) as u32;
            *column = Alias { threshold, other: u32::try_from(more).unwrap_or_default() };
        }
        if let Some(left) = shares.get_mut(more) {
            *left -= 1.0 - share;
            if *left < 1.0 {
                large.pop();
                small.push(more);
            }
        }
    }
    columns.into()
}

/// Whether an endpoint may take traffic at all, as far as its service and its own definition say.
fn is_usable(service: &Service, endpoint: &Endpoint) -> bool {
    let allow_all = matches!(&service.load_balancer, Some(lb) if lb.health_policy == HealthPolicy::AllowAll);
    let healthy = match endpoint.status {
        Health::Healthy => true,
        Health::Unhealthy => allow_all,
        // Neither healthy nor unhealthy: it finishes what it has.
        Health::Terminating => false,
    };
    let Workload { ips, hostname, network_gateway, capacity, .. } = &*endpoint.workload;
    let allowed = |ip: &std::net::IpAddr| match service.ip_families {
        None | Some(IpFamilies::Dual) => true,
        Some(IpFamilies::Ipv4) => ip.is_ipv4(),
        Some(IpFamilies::Ipv6) => ip.is_ipv6(),
    };
    healthy && *capacity > 0 && (ips.iter().any(allowed) || !hostname.is_empty() || network_gateway.is_some())
}

/// Where an endpoint serves `port` of the service: its own word, else the service's. A waypoint's application tunnel
/// takes any port as it is.
#[must_use]
pub fn target_port(service: &Service, endpoint: &Endpoint, port: u16, mode: Mode) -> Option<u16> {
    let listed = service.ports.get(&port).copied();
    let tunnelled = match mode {
        Mode::Standard => {
            listed?;
            None
        }
        Mode::Waypoint => endpoint.workload.application_tunnel.and_then(|tunnel| tunnel.port).map(|_own| port),
    };
    let own = endpoint.ports.get(&port).copied().filter(|port| *port > 0);
    own.or(listed.filter(|port| *port > 0)).or(tunnelled)
}

#[cfg(test)]
mod tests;
