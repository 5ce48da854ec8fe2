//! ztunnel, where the command line says where its program is.
//!
//! Its ports are fixed, so a namespace holds one of them: the pair is one process whose outbound side opens a tunnel to its own port 15008, as it does for any
//! workload that takes HBONE, its own node's included. State comes from a file (`LOCAL_XDS_PATH`); the identity of the pair from the certificate authority that only
//! builds with the feature `testing` contain (`FAKE_CA`).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use anyhow::Result;

use super::super::load::HalfClose;
use super::super::namespace::{Capture, HOST, Kind, SERVER};
use super::{ADIT, Found, Part, READY, Recipe, version};

const READINESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15021);

/// One worker thread, one workload in the process's own namespace, no control plane, no DNS; the mark that the capture rule spares; no line per connection.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("PROXY_MODE", "dedicated"),
    ("PROXY_WORKLOAD_INFO", "bench/bench/bench"),
    ("ZTUNNEL_WORKER_THREADS", "1"),
    ("LOCAL_XDS_PATH", "mesh.yaml"),
    ("XDS_ADDRESS", ""),
    ("ISTIO_META_DNS_CAPTURE", "false"),
    ("PACKET_MARK", "1337"),
    ("ENABLE_ORIG_SRC", "false"),
    ("IPV6_ENABLED", "false"),
    ("CONNECTION_TERMINATION_DEADLINE", "1s"),
    ("RUST_LOG", "warn"),
    // The last one, so that the peer without a tunnel can leave it out.
    ("FAKE_CA", "true"),
];

/// The captured proxy, or the pair.
pub(super) fn find(program: Option<&Path>, tunnel: bool) -> Result<Found> {
    let Some(program) = program else { return Ok(Found::Missing("say where it is with --ztunnel PATH".to_owned())) };
    if !program.exists() {
        return Ok(Found::Missing(format!("{} does not exist", program.display())));
    }
    let (protocol, environment) = match ENVIRONMENT.split_last() {
        Some((_, rest)) if !tunnel => ("TCP", rest),
        _ => ("HBONE", ENVIRONMENT),
    };
    let mesh = format!(
        "workloads:\n- {{ uid: bench, name: bench, namespace: bench, serviceAccount: bench, trustDomain: cluster.local, \
         protocol: {protocol}, workloadIps: ['{HOST}'], services: {{}} }}\n"
    );
    let part = Part {
        program: program.to_owned(),
        arguments: &["proxy"],
        config: None,
        environment,
        readiness: Some((READINESS, READY)),
    };
    let recipe = Recipe {
        parts: vec![part],
        version: version(program, "version").unwrap_or_else(|error| format!("{error:#}")),
        capture: Some(Capture { from: SERVER, to: ADIT, kind: Kind::Redirect }),
        files: vec![("mesh.yaml", mesh)],
        issuer: None,
        half_close: HalfClose::Both,
    };
    Ok(Found::Proxy { recipe, target: SERVER })
}
