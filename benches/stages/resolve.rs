//! Resolve, in a mesh of 256 workloads, 64 services with an address each and 16 with a range each.

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use adit::config::settings::Egress;
use adit::mesh::{self, Snapshot};
use adit::net::address::OriginalDst;
use adit::proxy::resolve::{Question, ResolveError, Target, resolve};
use anyhow::Result;

use crate::Operation;

const WORKLOADS: usize = 256;
const SERVICES: usize = 64;
const RANGES: usize = 16;

pub(crate) fn service() -> Result<Operation> {
    asking(
        |round| Ipv4Addr::new(172, 16, 0, low(round % SERVICES)),
        Egress::AllowAny,
        |answer| matches!(answer, Ok(Target::Service { .. })),
    )
}

pub(crate) fn workload() -> Result<Operation> {
    asking(
        |round| Ipv4Addr::new(10, 0, 0, low(round % WORKLOADS)),
        Egress::AllowAny,
        |answer| matches!(answer, Ok(Target::Single { workload: Some(_), .. })),
    )
}

/// Any address of a range: no address is looked up that another service has.
pub(crate) fn range() -> Result<Operation> {
    asking(
        |round| Ipv4Addr::new(172, 20, low(round % RANGES), low(round % 251)),
        Egress::AllowAny,
        |answer| matches!(answer, Ok(Target::Service { .. })),
    )
}

pub(crate) fn unknown() -> Result<Operation> {
    asking(
        |round| Ipv4Addr::new(192, 0, 2, low(round % 256)),
        Egress::RegistryOnly,
        |answer| matches!(answer, Err(ResolveError::UnknownDestination(_))),
    )
}

fn asking(
    address: fn(usize) -> Ipv4Addr,
    egress: Egress,
    as_it_should: fn(&Result<Target, ResolveError>) -> bool,
) -> Result<Operation> {
    let snapshot = state()?;
    let source = snapshot.workload("", IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7))).map(Arc::clone);
    let mut random = fastrand::Rng::with_seed(7);
    Ok(Box::new(move |round| {
        let dst = OriginalDst::new(SocketAddr::from((address(round), 80)));
        let client_namespace = source.as_ref().map_or("", |source| &source.namespace);
        let question = Question { dst, network: "", client_namespace, source: source.as_deref(), egress };
        as_it_should(&black_box(resolve(&snapshot, black_box(&question), &mut random)))
    }))
}

fn state() -> Result<Arc<Snapshot>> {
    let mut text = "workloads:\n".to_owned();
    for number in 0..WORKLOADS {
        let service = number % SERVICES;
        writeln!(
            text,
            "- {{name: pod-{number}, namespace: team-{}, workloadIps: [10.0.0.{number}], services: {{team-{}/{}: {{80: 8080}}}}}}",
            service % 8,
            service % 8,
            host(service)
        )?;
    }
    text.push_str("services:\n");
    for number in 0..SERVICES {
        let vip = format!("vips: [/172.16.0.{number}]");
        writeln!(
            text,
            "- {{name: s, namespace: team-{}, hostname: {}, {vip}, ports: {{80: 8080}}}}",
            number % 8,
            host(number)
        )?;
    }
    for number in 0..RANGES {
        let range = format!("vips: [], cidrVips: [{{cidr: 172.20.{number}.0/24}}]");
        writeln!(text, "- {{name: r, namespace: ranges, hostname: r-{number}.example, {range}, ports: {{80: 8080}}}}")?;
    }
    mesh::snapshot_of("resolve", &text).map_err(|problems| anyhow::anyhow!("{problems}"))
}

fn host(service: usize) -> String {
    format!("service-{service}.team-{}.svc.cluster.local", service % 8)
}

fn low(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}
