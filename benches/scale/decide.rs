//! What one connection's decisions cost in a state: resolve a destination, draw an endpoint of it, authorize at the far end.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit::config::settings::{Egress, OnMissing};
use adit::mesh::plan::Mode;
use adit::mesh::{PolicyView, Snapshot, Workload};
use adit::net::address::OriginalDst;
use adit::proxy::authorize::{Subject, authorize};
use adit::proxy::balance::draw::{Asking, draw};
use adit::proxy::resolve::{Question, Target, resolve};
use anyhow::{Result, ensure};

use crate::generate::{Size, service_address, workload_address};

const ROUNDS: usize = 5;
const DECISIONS: usize = 20_000;

/// Nanoseconds for one connection, the best round's mean: another process that takes the core away is not what is measured.
pub(crate) fn nanos(snapshot: &Snapshot, size: Size) -> Result<u64> {
    let mut best = Duration::MAX;
    for round in 0..ROUNDS {
        let mut random = fastrand::Rng::with_seed(u64::try_from(round)?);
        // The plans of the services that are asked for exist, as those in use do.
        let asked: Vec<(usize, usize)> = (0..DECISIONS)
            .map(|_| (random.usize(0..size.workloads), random.usize(0..size.services.min(100))))
            .collect();
        // Who receives keeps its own policies as one view for as long as the state stays.
        let asked: Vec<(usize, usize, PolicyView)> = asked
            .into_iter()
            .filter_map(|(from, to)| {
                let workload = endpoint(snapshot, from, to, &mut random)?;
                Some((from, to, snapshot.policies_for(&workload)))
            })
            .collect();
        ensure!(asked.len() > DECISIONS / 2, "only {} of {DECISIONS} led to an endpoint", asked.len());
        let start = Instant::now();
        for (from, to, view) in &asked {
            decide(snapshot, *from, *to, view, &mut random);
        }
        best = best.min(start.elapsed() / u32::try_from(asked.len())?);
    }
    Ok(u64::try_from(best.as_nanos())?)
}

/// The endpoint that a connection gets.
fn endpoint(snapshot: &Snapshot, from: usize, to: usize, random: &mut fastrand::Rng) -> Option<Arc<Workload>> {
    let source = snapshot.workload("", IpAddr::V4(workload_address(from)));
    let dst = OriginalDst::new(SocketAddr::from((service_address(to), 80)));
    let question = Question {
        dst,
        network: "",
        client_namespace: source.map_or("", |source| &source.namespace),
        source: source.map(AsRef::as_ref),
        egress: Egress::AllowAny,
    };
    let Ok(Target::Service { state, port }) = resolve(snapshot, &question, random) else { return None };
    let candidates = state.plan().candidates(port, Mode::Standard)?;
    let asking = Asking { source: question.source, tried: &[], limit: None, trial: Duration::from_secs(15), now_ms: 1 };
    draw(candidates, &asking, random).ok().map(|drawn| Arc::clone(&drawn.endpoint.workload))
}

/// What both ends do: choose an endpoint, and let the client in or not.
fn decide(snapshot: &Snapshot, from: usize, to: usize, view: &PolicyView, random: &mut fastrand::Rng) {
    let Some(workload) = endpoint(snapshot, from, to, random) else { return };
    let source = snapshot.workload("", IpAddr::V4(workload_address(from)));
    let subject = Subject {
        identity: source.and_then(|source| source.identity.first()),
        source: IpAddr::V4(workload_address(from)),
        destination: workload.ips.first().copied().unwrap_or(IpAddr::V4(workload_address(from))),
        port: 80,
    };
    let _decision = black_box(authorize(view, &subject, OnMissing::Deny));
}
