//! Balance: which endpoint of a service a connection tries next. A pure function; the random source is an argument.
//!
//! Weighted by `capacity` among the endpoints that may take traffic; an endpoint that was tried is not chosen again
//! while another is untried. One pass over the endpoints, nothing allocated.

pub mod draw;
pub mod eject;

use std::sync::Arc;

use crate::mesh::{Endpoint, ServiceState};
use crate::proxy::resolve::endpoint::{Wanted, usable};

/// A chosen endpoint. Where it is and how it is reached is found out afterwards.
#[derive(Debug, Clone)]
pub struct Choice {
    pub endpoint: Arc<Endpoint>,
    /// Its own port for what is wanted.
    pub port: u16,
}

/// Chooses among the endpoints of `state` that can give what is wanted and are not in `tried` (uids of workloads).
/// `None`: nothing left to try.
pub fn choose(
    state: &ServiceState,
    wanted: &Wanted<'_>,
    tried: &[Arc<str>],
    random: &mut fastrand::Rng,
) -> Option<Choice> {
    let mut total: u64 = 0;
    let mut chosen = None;
    for endpoint in &state.endpoints {
        let Some(port) = usable(&state.service, endpoint, wanted) else { continue };
        if tried.contains(&endpoint.workload.uid) {
            continue;
        }
        let weight = u64::from(endpoint.workload.capacity);
        total += weight;
        // Keeps the k-th endpoint with probability weight / total so far: in the end, weight / total for each.
        if weight > 0 && random.u64(0..total) < weight {
            chosen = Some((endpoint, port));
        }
    }
    chosen.map(|(endpoint, port)| Choice { endpoint: Arc::clone(endpoint), port })
}
