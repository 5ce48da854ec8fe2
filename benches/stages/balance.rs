//! Balance: the draw among the endpoints of a service that prefers its own locality, of which there are four.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use adit::mesh::plan::{Candidates, Mode};
use adit::mesh::{self, Endpoint, Health, Live, ServiceState, Workload};
use adit::proxy::balance::draw::{Asking, draw};
use anyhow::{Context, Result};

use crate::Operation;

const LOCALITIES: [&str; 4] = ["a", "b", "c", "d"];
const TRIAL: Duration = Duration::from_secs(15);
const NOW_MS: u64 = 1;

/// One of its own locality is there.
pub(crate) fn near(endpoints: usize) -> Result<Operation> {
    drawing(endpoints, |_| {}, |source, drawn| source.locality.zone == drawn.locality.zone)
}

/// All of its own locality, 26 of 100, are ejected.
pub(crate) fn failover() -> Result<Operation> {
    let eject = |workload: &Workload| {
        workload.live.eject(NOW_MS, Duration::from_secs(60), Duration::from_secs(60), 0.0);
    };
    drawing(100, eject, |source, drawn| source.locality.zone != drawn.locality.zone)
}

fn drawing(
    endpoints: usize,
    at_source: impl Fn(&Workload),
    as_it_should: fn(&Workload, &Workload) -> bool,
) -> Result<Operation> {
    let candidates = candidates(endpoints)?;
    let source =
        candidates.members().first().map(|first| Arc::clone(&first.endpoint.workload)).context("an endpoint")?;
    let workloads = candidates.members().iter().map(|member| &member.endpoint.workload);
    workloads.filter(|workload| workload.locality == source.locality).for_each(|workload| at_source(workload));
    let mut random = fastrand::Rng::with_seed(7);
    Ok(Box::new(move |_| {
        let asking = Asking { source: Some(&source), tried: &[], limit: None, trial: TRIAL, now_ms: NOW_MS };
        let drawn = black_box(draw(&candidates, black_box(&asking), &mut random));
        drawn.is_ok_and(|drawn| as_it_should(&source, &drawn.endpoint.workload))
    }))
}

/// Made from one entry of a file, because reading 10,000 takes callgrind a minute.
fn candidates(endpoints: usize) -> Result<Arc<Candidates>> {
    let balancer = "{routingPreferences: [Region, Zone, Subzone], mode: Failover, healthPolicy: OnlyHealthy}";
    let text = format!(
        "workloads:\n- {{name: pod, namespace: shop, workloadIps: [10.0.0.1]}}\n\
        services:\n- {{name: s, namespace: shop, hostname: s.example, vips: [/172.16.0.1], ports: {{80: 8080}}, loadBalancer: {balancer}}}"
    );
    let snapshot = mesh::snapshot_of("balance", &text).map_err(|problems| anyhow::anyhow!("{problems}"))?;
    let workload = snapshot.workload("", Ipv4Addr::new(10, 0, 0, 1).into()).context("the workload")?;
    let service = &snapshot.service_by_key("shop", "s.example").context("the service")?.service;
    let endpoint = |number: usize| {
        let mut workload = Workload::clone(workload);
        workload.uid = format!("pod-{number:05}").into();
        workload.live = Live::default();
        // Weights differ, so that they count.
        workload.capacity = u32::try_from(1 + number % 3).unwrap_or(1);
        workload.locality.region = "europe".into();
        workload.locality.zone = LOCALITIES.get(number / 2 % LOCALITIES.len()).copied().unwrap_or_default().into();
        let ports = service.ports.clone();
        Arc::new(Endpoint { workload: Arc::new(workload), ports, status: Health::Healthy })
    };
    let state = ServiceState::new(Arc::clone(service), (0..endpoints).map(endpoint).collect(), None);
    state.plan().candidates(80, Mode::Standard).cloned().context("candidates")
}
