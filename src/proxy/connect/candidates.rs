//! Which candidate comes next: whom an earlier attempt has not tried, as long as there is one. Pure.

use std::sync::Arc;

use crate::mesh::plan::Candidates;
use crate::mesh::{Live, ServiceState};
use crate::proxy::balance::draw::{Drawn, Nobody};
use crate::proxy::balance::{Choice, Picked};
use crate::proxy::resolve::Target;
use crate::proxy::resolve::endpoint::reachable;
use crate::proxy::resolve::route::{Among, Asking, Candidate, RouteError, candidate};

/// How many endpoints to which there is no way are passed over before one attempt is given up.
const MOST_WITHOUT_A_WAY: usize = 16;

/// Those that have been chosen for one connection. The gateways are counted apart: that one of two fails says nothing
/// about the only endpoint behind both.
#[derive(Debug, Default)]
pub(super) struct Tried {
    endpoints: Vec<Live>,
    gateways: Vec<Live>,
    /// Endpoints to which there is no way: they do not come again.
    hopeless: Vec<Live>,
    /// Of the candidate at hand: the endpoint, and the gateway on the way to it.
    pub(super) picked: Vec<Picked>,
    /// Whether the last search has met somebody who has as many connections as allowed.
    pub(super) full: bool,
}

impl Tried {
    /// The next candidate to which there is a way; `draw` draws one that is not in its list.
    ///
    /// # Errors
    /// Nobody could be drawn, or nobody to whom there is a way: then why not.
    pub(super) fn next(
        &mut self,
        asking: &Asking<'_>,
        target: &Target,
        draw: impl Fn(&ServiceState, &Candidates, &[Live]) -> Result<Drawn, Nobody>,
    ) -> Result<Candidate, RouteError> {
        let Self { endpoints, gateways, hopeless, picked, full } = self;
        let mut no_way = None;
        *full = false;
        for _ in 0..MOST_WITHOUT_A_WAY {
            picked.clear();
            let found = candidate(asking, target, |among, state, wanted| {
                let tried = match among {
                    Among::Endpoints => &mut *endpoints,
                    Among::Gateways => &mut *gateways,
                };
                let is_hopeless = |live: &Live| hopeless.iter().any(|other| other.is(live));
                let candidates = state.plan().candidates(wanted.port, wanted.mode)?;
                for _ in 0..MOST_WITHOUT_A_WAY {
                    let mut drawn = draw(state, candidates, tried);
                    *full |= matches!(drawn, Err(Nobody::Full));
                    if drawn.is_err() && !tried.iter().all(is_hopeless) {
                        tried.retain(is_hopeless);
                        drawn = draw(state, candidates, tried);
                    }
                    let Drawn { endpoint, in_use } = drawn.ok()?;
                    let live = endpoint.workload.live.clone();
                    tried.push(live.clone());
                    if let Some(port) = reachable(&state.service, &endpoint, wanted) {
                        picked.push(Picked { live, among: Some(Arc::clone(candidates)), in_use });
                        return Some(Choice { endpoint, port });
                    }
                }
                None
            });
            match found {
                Ok(candidate) => return Ok(candidate),
                Err(error @ (RouteError::NoEndpoint | RouteError::NoWaypoint(_))) => {
                    return Err(no_way.unwrap_or(error));
                }
                Err(error) => no_way = Some(error),
            }
            match picked.first() {
                Some(picked) => hopeless.push(picked.live.clone()),
                // There was no choice.
                None => break,
            }
        }
        Err(no_way.unwrap_or(RouteError::NoEndpoint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Egress;
    use crate::mesh::{Snapshot, snapshot_of};
    use crate::net::address::OriginalDst;
    use crate::proxy::balance::draw::{Asking as Drawing, draw};
    use crate::proxy::resolve::{Question, resolve};

    const WORLD: &str = "
workloads:
- { uid: w1, namespace: ns, network: near, workloadIps: [10.0.0.1], services: { ns/way: {} } }
- { uid: w2, namespace: ns, network: near, workloadIps: [10.0.0.2], services: { ns/way: {} } }
- { uid: w3, namespace: ns, network: near, workloadIps: [10.0.0.3], services: { ns/way: {} } }
- { uid: g1, namespace: ns, network: far, workloadIps: [192.0.2.1], services: { ns/gate: {} } }
- { uid: g2, namespace: ns, network: far, workloadIps: [192.0.2.2], services: { ns/gate: {} } }
- { uid: far, namespace: ns, network: far, workloadIps: [10.0.0.1], networkGateway: { destination: ns/gate, hboneMtlsPort: 15008 }, services: { ns/abroad: {}, ns/mixed: {} } }
- { uid: lost-1, namespace: ns, network: far, workloadIps: [10.0.0.7], capacity: 1000, services: { ns/mixed: {}, ns/lost: {} } }
- { uid: lost-2, namespace: ns, network: far, workloadIps: [10.0.0.8], capacity: 1000, services: { ns/mixed: {}, ns/lost: {} } }
services:
- { name: way, namespace: ns, hostname: way, vips: [], ports: { 15008: 15008 } }
- { name: gate, namespace: ns, hostname: gate, vips: [], ports: { 15008: 15008 } }
- { name: guarded, namespace: ns, hostname: guarded, vips: [near/10.1.0.1], ports: { 80: 80 }, waypoint: { destination: ns/way, hboneMtlsPort: 15008 } }
- { name: abroad, namespace: ns, hostname: abroad, vips: [near/10.1.0.2], ports: { 80: 80 } }
- { name: mixed, namespace: ns, hostname: mixed, vips: [near/10.1.0.3], ports: { 80: 80 } }
- { name: lost, namespace: ns, hostname: lost, vips: [near/10.1.0.4], ports: { 80: 80 } }
";

    /// What is dialled at so many attempts, or why nothing is.
    fn attempts(snapshot: &Snapshot, dst: &str, count: usize) -> Vec<String> {
        let dst = OriginalDst::new(dst.parse().expect("an address"));
        let question =
            Question { dst, network: "near", client_namespace: "ns", source: None, egress: Egress::RegistryOnly };
        let random = std::cell::RefCell::new(fastrand::Rng::with_seed(3));
        let target = resolve(snapshot, &question, &mut random.borrow_mut()).expect("a target");
        let asking = Asking { snapshot, dst, network: "near", client_namespace: "ns" };
        let mut tried = Tried::default();
        let pick = |_: &ServiceState, candidates: &Candidates, tried: &[Live]| {
            let trial = std::time::Duration::from_secs(1);
            let drawing = Drawing { source: None, tried, limit: None, trial, now_ms: 0 };
            draw(candidates, &drawing, &mut random.borrow_mut())
        };
        let next = |_| match tried.next(&asking, &target, pick) {
            Ok(Candidate { route, .. }) => route.known_hop().expect("an address").to_string(),
            Err(error) => error.to_string(),
        };
        (0..count).map(next).collect()
    }

    fn sorted(of: &[String]) -> Vec<String> {
        let mut of = of.to_vec();
        of.sort();
        of
    }

    #[test]
    fn a_retry_goes_elsewhere_whatever_the_way() {
        let snapshot = snapshot_of("mesh.yaml", WORLD).expect("a mesh");
        let waypoints = attempts(&snapshot, "10.1.0.1:80", 6);
        for round in waypoints.chunks(3) {
            assert_eq!(sorted(round), ["10.0.0.1:15008", "10.0.0.2:15008", "10.0.0.3:15008"]);
        }
        // One endpoint, two gateways to it.
        let gateways = attempts(&snapshot, "10.1.0.2:80", 4);
        for round in gateways.chunks(2) {
            assert_eq!(sorted(round), ["192.0.2.1:15008", "192.0.2.2:15008"]);
        }
    }

    #[test]
    fn whom_there_is_no_way_to_is_passed_over() {
        let snapshot = snapshot_of("mesh.yaml", WORLD).expect("a mesh");
        for hop in attempts(&snapshot, "10.1.0.3:80", 5) {
            assert!(hop.starts_with("192.0.2."), "{hop}");
        }
        let [only] = &attempts(&snapshot, "10.1.0.4:80", 1)[..] else { panic!("one") };
        assert!(only.ends_with("is in network \"far\" and has no network gateway"), "{only}");
    }
}
