//! What one connection's decisions cost in a state: resolve a destination, draw an endpoint of it, authorize at the far end.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use adit::config::settings::{Egress, OnMissing};
use adit::mesh::plan::Mode;
use adit::mesh::{PolicyView, Snapshot, Workload};
use adit::net::address::OriginalDst;
use adit::proxy::authorize::{Subject, Verdict, authorize};
use adit::proxy::balance::draw::{Asking, draw};
use adit::proxy::resolve::{Question, Target, resolve};
use anyhow::{Result, bail, ensure};

use crate::generate::{Size, service_address, workload_address};

/// Each has other workloads at both ends.
const PAIRS: usize = 25;
/// The best of these counts: another process that takes the core away is not what is measured.
const TRIES: usize = 3;
const DECISIONS: usize = 2_000;
/// As many services does a workload call.
const CALLED: usize = 100;

/// Nanoseconds for one connection, the mean of all pairs.
pub(crate) fn nanos(snapshot: &Snapshot, size: Size) -> Result<u64> {
    let mut all = Duration::ZERO;
    for pair in 0..PAIRS {
        let mut random = fastrand::Rng::with_seed(u64::try_from(pair)?);
        let any = |random: &mut fastrand::Rng| {
            snapshot.workload("", IpAddr::V4(workload_address(random.usize(0..size.workloads)))).cloned()
        };
        // What the daemons at the two ends hold, as long as their workload stays: it, and its policies.
        let (Some(source), Some(server)) = (any(&mut random), any(&mut random)) else { bail!("no workload there") };
        let view = snapshot.policies_for(&server);
        let asked: Vec<(usize, IpAddr)> = (0..DECISIONS)
            .map(|_| {
                let client = IpAddr::V4(workload_address(random.usize(0..size.workloads)));
                (random.usize(0..size.services.min(CALLED)), client)
            })
            .collect();
        // The plans of the services that are asked for exist, as those in use do.
        let led = asked.iter().filter(|(service, _)| endpoint(snapshot, &source, *service, &mut random)).count();
        ensure!(led > DECISIONS / 2, "only {led} of {DECISIONS} led to an endpoint");
        let tries = (0..TRIES).map(|_| {
            let start = Instant::now();
            for (service, client) in &asked {
                black_box(endpoint(snapshot, &source, *service, &mut random));
                black_box(admit(snapshot, *client, &server, &view));
            }
            start.elapsed()
        });
        all += tries.min().unwrap_or_default();
    }
    Ok(u64::try_from(all.as_nanos() / u128::try_from(PAIRS * DECISIONS)?)?)
}

/// What the client's end does: an endpoint of the service, if there is one.
fn endpoint(snapshot: &Snapshot, source: &Workload, service: usize, random: &mut fastrand::Rng) -> bool {
    let question = Question {
        dst: OriginalDst::new(SocketAddr::from((service_address(service), 80))),
        network: "",
        client_namespace: &source.namespace,
        source: Some(source),
        egress: Egress::AllowAny,
    };
    let Ok(Target::Service { state, port }) = resolve(snapshot, &question, random) else { return false };
    let Some(candidates) = state.plan().candidates(port, Mode::Standard) else { return false };
    let asking = Asking { source: question.source, tried: &[], limit: None, trial: Duration::from_secs(15), now_ms: 1 };
    draw(candidates, &asking, random).is_ok()
}

/// What the server's end does: find who the client is, and let it in or not.
fn admit(snapshot: &Snapshot, client: IpAddr, server: &Workload, view: &PolicyView) -> bool {
    let known = snapshot.workload("", client);
    let subject = Subject {
        identity: known.and_then(|client| client.identity.first()),
        source: client,
        destination: server.ips.first().copied().unwrap_or(client),
        port: 80,
    };
    matches!(authorize(view, &subject, OnMissing::Deny).verdict, Verdict::Allowed { .. })
}
