//! Pairs: two proxies with a mutual TLS HBONE tunnel between them, both on the peer's one core, one worker thread each.
//!
//! The near one takes the clients' connections, the far one listens on 15008 and connects to the server. Each has a certificate of its own from `adit certs issue`,
//! of one root that is made for the cell; so both pairs use the same kinds of keys.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::super::load::HalfClose;
use super::super::namespace::{Capture, HOST, Kind, SERVER};
use super::{ADIT, ADIT_READY, Found, Part, READY, RUN, Recipe, envoy, version};

/// Where tunnels arrive.
pub(super) const HBONE: SocketAddrV4 = SocketAddrV4::new(HOST, 15008);
/// The entrance of the near Envoy.
pub(super) const ENTRANCE: SocketAddrV4 = SocketAddrV4::new(HOST, 8003);
const FAR_READY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15121);

/// The two ends: names of files, and of service accounts.
pub(super) const NEAR: &str = "near";
pub(super) const FAR: &str = "far";

/// True for a peer that is a pair.
pub(crate) fn is_one(peer: &str) -> bool {
    peer.ends_with("-tunnel")
}

pub(super) fn spiffe(end: &str) -> String {
    format!("spiffe://cluster.local/ns/bench/sa/{end}")
}

/// Puts `root.crt`, and a `.crt` and a `.key` for each end, into `folder`.
pub(crate) fn issue(adit: &Path, folder: &Path) -> Result<()> {
    let run = |arguments: &[&str]| -> Result<()> {
        let output = Command::new(adit).args(["certs", "issue"]).args(arguments).current_dir(folder).output();
        let output = output.with_context(|| format!("cannot run {}", adit.display()))?;
        if !output.status.success() {
            bail!("adit certs issue {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    };
    run(&["root", "--name", "bench", "--out", "root"])?;
    for end in [NEAR, FAR] {
        run(&["leaf", "--ca", "root", "--id", &spiffe(end), "--out", end])?;
    }
    Ok(())
}

/// adit twice: captured as without a tunnel, then through the far one.
pub(super) fn adits(program: &Path, workers: u32) -> Found {
    let near = format!(
        "{}listen:\n  outbound: '127.0.0.1:{ADIT}'\n  inbound: off\n  hbone: off\n  admin: '127.0.0.1:15000'\n  \
         metrics: '127.0.0.1:15020'\n  readiness: '{ADIT_READY}'\n",
        settings(NEAR, workers, Kind::Redirect)
    );
    let far = format!(
        "{}preserveSource: off\n\
         listen:\n  outbound: off\n  inbound: '127.0.0.1:15006'\n  hbone: '{HBONE}'\n  admin: '127.0.0.1:15100'\n  \
         metrics: '127.0.0.1:15120'\n  readiness: '{FAR_READY}'\n",
        settings(FAR, workers, Kind::Redirect)
    );
    captured(program, [(far, FAR_READY), (near, ADIT_READY)], Kind::Redirect)
}

/// One adit that is both ends, as ztunnel's pair is: what it captures it brings through a tunnel to its own door.
pub(super) fn adit_itself(program: &Path, kind: Kind) -> Found {
    let config = format!(
        "{}preserveSource: off\n\
         listen:\n  outbound: '127.0.0.1:{ADIT}'\n  inbound: '127.0.0.1:15006'\n  hbone: '{HBONE}'\n  admin: '127.0.0.1:15000'\n  \
         metrics: '127.0.0.1:15020'\n  readiness: '{ADIT_READY}'\n",
        settings(FAR, 1, kind)
    );
    captured(program, [(config, ADIT_READY)], kind)
}

/// adits with these configs, which are ready there; one of them is captured, and one is where the server's workload takes tunnels.
fn captured<const N: usize>(program: &Path, configs: [(String, SocketAddrV4); N], kind: Kind) -> Found {
    if !program.exists() {
        return Found::Missing(format!("{} does not exist", program.display()));
    }
    let part = |(config, ready)| Part { readiness: Some((ready, READY)), ..Part::new(program, RUN, config) };
    let mesh = format!(
        "workloads:\n- {{ uid: {FAR}, name: {FAR}, namespace: bench, serviceAccount: {FAR}, protocol: HBONE, workloadIps: [{HOST}] }}\n"
    );
    let recipe = Recipe {
        parts: configs.map(part).into(),
        version: version(program, "--version").unwrap_or_else(|error| format!("{error:#}")),
        capture: Some(Capture { from: SERVER, to: ADIT, kind }),
        files: vec![("mesh.yaml", mesh)],
        issuer: Some(program.to_owned()),
        half_close: HalfClose::Both,
    };
    Found::Proxy { recipe, target: SERVER }
}

fn settings(end: &str, workers: u32, kind: Kind) -> String {
    format!(
        "workers: {workers}\ncapture: {kind}\n\
         workload: {{ name: {end}, namespace: bench, serviceAccount: {end} }}\n\
         identity: {{ source: files, files: {{ cert: {end}.crt, key: {end}.key, roots: [root.crt] }} }}\n\
         mesh: {{ files: [mesh.yaml] }}\n\
         log: {{ filter: warn, access: false }}\n"
    )
}

/// Envoy twice, addressed directly.
pub(super) fn envoys(adit: &Path) -> Result<Found> {
    let Some(program) = envoy::installed() else { return Ok(Found::Missing(envoy::INSTALL.to_owned())) };
    let recipe = Recipe {
        parts: vec![
            envoy::part(&program, envoy::far(), envoy::FAR_ADMIN),
            envoy::part(&program, envoy::near(), envoy::NEAR_ADMIN),
        ],
        version: version(&program, "--version")?,
        capture: None,
        files: Vec::new(),
        issuer: Some(adit.to_owned()),
        half_close: HalfClose::ClientOnly,
    };
    Ok(Found::Proxy { recipe, target: ENTRANCE })
}
