//! What one connection's decisions cost in a state: resolve a destination, draw an endpoint of it, authorize at the far end.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use adit::config::settings::{Egress, OnMissing};
use adit::mesh::Snapshot;
use adit::mesh::plan::Mode;
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
        let decided = asked.iter().filter(|(from, to)| decide(snapshot, *from, *to, &mut random)).count();
        ensure!(decided > DECISIONS / 2, "only {decided} of {DECISIONS} led to an endpoint");
        let start = Instant::now();
        for (from, to) in &asked {
            black_box(decide(snapshot, *from, *to, &mut random));
        }
        best = best.min(start.elapsed());
    }
    Ok(u64::try_from(best.as_nanos())? / u64::try_from(DECISIONS)?)
}

/// Whether there was an endpoint to decide about.
fn decide(snapshot: &Snapshot, from: usize, to: usize, random: &mut fastrand::Rng) -> bool {
    let source = snapshot.workload("", IpAddr::V4(workload_address(from)));
    let dst = OriginalDst::new(SocketAddr::from((service_address(to), 80)));
    let question = Question {
        dst,
        network: "",
        client_namespace: source.map_or("", |source| &source.namespace),
        source: source.map(AsRef::as_ref),
        egress: Egress::AllowAny,
    };
    let Ok(Target::Service { state, port }) = resolve(snapshot, &question, random) else { return false };
    let Some(candidates) = state.plan().candidates(port, Mode::Standard) else { return false };
    let asking = Asking { source: question.source, tried: &[], limit: None, trial: Duration::from_secs(15), now_ms: 1 };
    let Ok(drawn) = draw(candidates, &asking, random) else { return false };
    let workload = &drawn.endpoint.workload;
    let subject = Subject {
        identity: source.and_then(|source| source.identity.first()),
        source: IpAddr::V4(workload_address(from)),
        destination: workload.ips.first().copied().unwrap_or(dst.ip()),
        port,
    };
    let _decision = black_box(authorize(&snapshot.policies_for(workload), &subject, OnMissing::Deny));
    true
}
