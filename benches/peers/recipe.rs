//! The peers: where their programs are, the settings they run with, the door that clients connect to.
//!
//! Every peer gets its best settings for this load, one core, and no access log; `docs/performance.md` gives the reasons. A new peer is one function here, or in
//! `tunnel` for the pairs with a tunnel between them.
//!
//! On failure: a program that is not installed is `Found::Missing` with the package to install, never an error and never silence.

pub(crate) mod envoy;
pub(crate) mod tunnel;
pub(crate) mod ztunnel;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use super::load::HalfClose;
use super::namespace::{Capture, HOST, Kind, SERVER};

/// The peers of a run without `--peers`.
const DEFAULT: [&str; 8] = ["direct", "haproxy", "nginx", "envoy", "adit", "adit-2", "envoy-tunnel", "adit-tunnel"];
/// The peers that a run without `--peers` has besides, once it is told where the program is: ztunnel's pair is one process, so adit's is that too.
const ZTUNNELS: [&str; 3] = ["ztunnel", "ztunnel-tunnel", "adit-self-tunnel"];
/// Those that must be asked for. The captured twins stand behind the same redirect rule as adit does, and so show what the kernel's share of capture is.
const ON_DEMAND: [&str; 7] = [
    "haproxy-captured",
    "nginx-captured",
    "envoy-captured",
    "adit-tproxy",
    "adit-connect",
    "adit-connect-tunnel",
    "adit-2-tunnel",
];

/// Where captured clients of the twins connect to; the twins themselves go on to `SERVER`.
const CAPTURED: SocketAddrV4 = SocketAddrV4::new(HOST, 9001);
/// The doors of the peers.
const HAPROXY: u16 = 8001;
const NGINX: u16 = 8002;
const ENVOY: u16 = 8004;
const ADIT: u16 = 15001;
/// Pipes that HAProxy may hold at a time; bulk shapes need two per connection.
const PIPES: u64 = 256;
/// How adit is run, and asked.
const RUN: &[&str] = &["run", "--config"];
const READY: &str = "/healthz/ready";
const ADIT_READY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15021);

/// How to start a peer.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// Its programs, in the order in which they start: all on the peer's one core, in one folder.
    pub(crate) parts: Vec<Part>,
    /// What the program says of its version.
    pub(crate) version: String,
    pub(crate) capture: Option<Capture>,
    /// Written to the folder before anything starts: name and contents.
    pub(crate) files: Vec<(&'static str, String)>,
    /// The adit that puts certificates into the folder, where the parts need them; see `tunnel`.
    pub(crate) issuer: Option<PathBuf>,
    pub(crate) half_close: HalfClose,
}

/// One program of a peer.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) program: PathBuf,
    pub(crate) arguments: &'static [&'static str],
    /// Written to a file whose name is the last argument. Without one the arguments are all there is.
    pub(crate) config: Option<String>,
    pub(crate) environment: &'static [(&'static str, &'static str)],
    /// Where and under which path it answers 200 when it is ready; without one, its door is tried.
    pub(crate) readiness: Option<(SocketAddrV4, &'static str)>,
}

/// The programs that the command line names; all others are where distributions put them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Programs {
    pub(crate) adit: PathBuf,
    pub(crate) ztunnel: Option<PathBuf>,
}

impl Part {
    /// A program that is told where its config is and nothing else.
    fn new(program: &Path, arguments: &'static [&'static str], config: String) -> Self {
        Self { program: program.to_owned(), arguments, config: Some(config), environment: &[], readiness: None }
    }
}

impl Recipe {
    /// A peer of one program that is given no certificates.
    fn alone(part: Part, version: String) -> Self {
        Self { parts: vec![part], version, capture: None, files: Vec::new(), issuer: None, half_close: HalfClose::Both }
    }
}

/// What became of the search for a peer.
#[derive(Debug)]
pub(crate) enum Found {
    /// No process at all: clients talk to the server.
    Direct,
    Proxy {
        recipe: Recipe,
        target: SocketAddrV4,
    },
    Missing(String),
}

/// Checks the names given on the command line; without any, those of a whole run.
pub(crate) fn chosen(names: &[String], programs: &Programs) -> Result<Vec<String>> {
    let all = [&DEFAULT[..], &ZTUNNELS, &ON_DEMAND].concat();
    if let Some(unknown) = names.iter().find(|name| !all.contains(&name.as_str())) {
        bail!("no peer is called {unknown:?}; there are: {}", all.join(", "));
    }
    if !names.is_empty() {
        return Ok(names.to_vec());
    }
    let given = if programs.ztunnel.is_some() { &ZTUNNELS[..] } else { &[] };
    Ok(DEFAULT.iter().chain(given).map(|name| (*name).to_owned()).collect())
}

/// How many workers share a peer's work; the number is in its name where it is not one. Direct has none.
pub(crate) fn workers(peer: &str) -> u32 {
    if peer == "direct" {
        return 0;
    }
    peer.split('-').find_map(|part| part.parse().ok()).unwrap_or(1)
}

/// Whether a peer is captured at the sockets of a cgroup.
pub(crate) fn wants_cgroup(peer: &str) -> bool {
    peer.starts_with("adit-connect")
}

/// Whose program a peer is. Peers of one program are not rivals.
pub(crate) fn family(peer: &str) -> &str {
    peer.split('-').next().unwrap_or(peer)
}

/// Looks a peer up on this machine.
pub(crate) fn find(name: &str, programs: &Programs) -> Result<Found> {
    let (base, captured) = name.strip_suffix("-captured").map_or((name, false), |base| (base, true));
    let (found, door) = match base {
        "direct" => return Ok(Found::Direct),
        "adit" | "adit-2" => return adit(&programs.adit, workers(base), Kind::Redirect),
        "adit-connect" => return adit(&programs.adit, 1, Kind::Connect),
        "adit-tproxy" => return adit(&programs.adit, 1, Kind::Tproxy),
        "adit-tunnel" | "adit-2-tunnel" => return Ok(tunnel::adits(&programs.adit, workers(base))),
        "adit-self-tunnel" => return Ok(tunnel::adit_itself(&programs.adit, Kind::Redirect)),
        "adit-connect-tunnel" => return Ok(tunnel::adit_itself(&programs.adit, Kind::Connect)),
        "envoy-tunnel" => return tunnel::envoys(&programs.adit),
        "ztunnel" | "ztunnel-tunnel" => return ztunnel::find(programs.ztunnel.as_deref(), tunnel::is_one(base)),
        "haproxy" => (haproxy()?, HAPROXY),
        "nginx" => (nginx()?, NGINX),
        "envoy" => (envoy()?, ENVOY),
        _ => bail!("no peer is called {name:?}"),
    };
    Ok(match found {
        Err(package) => Found::Missing(package),
        Ok(recipe) if captured => {
            let capture = Some(Capture { from: CAPTURED, to: door, kind: Kind::Redirect });
            Found::Proxy { recipe: Recipe { capture, ..recipe }, target: CAPTURED }
        }
        Ok(recipe) => Found::Proxy { recipe, target: SocketAddrV4::new(HOST, door) },
    })
}

fn adit(program: &Path, workers: u32, kind: Kind) -> Result<Found> {
    if !program.exists() {
        return Ok(Found::Missing(format!("{} does not exist", program.display())));
    }
    let config = format!(
        "workers: {workers}\n\
         egress: allowAny\n\
         capture: {kind}\n\
         listen:\n  outbound: '127.0.0.1:{ADIT}'\n  inbound: off\n  hbone: off\n  socks5: off\n  admin: '127.0.0.1:15000'\n  \
         metrics: '127.0.0.1:15020'\n  readiness: '{ADIT_READY}'\n\
         log: {{ filter: warn, access: false }}\n"
    );
    let part = Part { readiness: Some((ADIT_READY, READY)), ..Part::new(program, RUN, config) };
    let capture = Some(Capture { from: SERVER, to: ADIT, kind });
    let version = version(program, "--version").unwrap_or_else(|error| format!("{error:#}"));
    Ok(Found::Proxy { recipe: Recipe { capture, ..Recipe::alone(part, version) }, target: SERVER })
}

fn haproxy() -> Result<std::result::Result<Recipe, String>> {
    let Some(program) = installed("haproxy") else { return Ok(Err("install the Debian package haproxy".to_owned())) };
    let config = format!(
        "global\n  nbthread 1\n  maxconn {}\n  maxpipes {PIPES}\n  tune.pipesize 1048576\n\
         defaults\n  mode tcp\n  no log\n  option splice-request\n  option splice-response\n  \
         timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen bench\n  bind :{HAPROXY} backlog 65535\n  server echo {SERVER}\n",
        connections(getrlimit(Resource::Nofile).maximum)
    );
    let version = version(&program, "-v")?;
    // It resets a client that still sends when its server has ended, where both directions are spliced.
    let half_close = HalfClose::ClientOnly;
    Ok(Ok(Recipe { half_close, ..Recipe::alone(Part::new(&program, &["-db", "-f"], config), version) }))
}

fn nginx() -> Result<std::result::Result<Recipe, String>> {
    let Some(program) = installed("nginx") else { return Ok(Err("install the Debian package nginx".to_owned())) };
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    if !module.exists() {
        return Ok(Err("install the Debian package libnginx-mod-stream".to_owned()));
    }
    let config = format!(
        "load_module {};\n\
         user root;\ndaemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 19500; multi_accept on; }}\n\
         stream {{\n  access_log off;\n  server {{\n    listen {NGINX} reuseport backlog=65535;\n    proxy_pass {SERVER};\n    \
         proxy_half_close on;\n    proxy_buffer_size 256k;\n    proxy_timeout 1h;\n  }}\n}}\n",
        module.display()
    );
    let version = version(&program, "-v")?;
    Ok(Ok(Recipe::alone(Part::new(&program, &["-e", "stderr", "-p", ".", "-c"], config), version)))
}

fn envoy() -> Result<std::result::Result<Recipe, String>> {
    let Some(program) = envoy::installed() else { return Ok(Err(envoy::INSTALL.to_owned())) };
    let version = version(&program, "--version")?;
    Ok(Ok(Recipe::alone(envoy::part(&program, envoy::plain(), envoy::PLAIN_ADMIN), version)))
}

/// As many connections as HAProxy can hold with so many descriptors; it refuses to start with a `maxconn` that does not fit.
fn connections(descriptors: Option<u64>) -> u64 {
    let descriptors = descriptors.unwrap_or(u64::MAX).min(20_000);
    descriptors.saturating_sub(2 * PIPES + 100) / 2
}

/// Where distributions put daemons; the PATH of a normal user often leaves `sbin` out.
fn installed(name: &str) -> Option<PathBuf> {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
}

/// The first line that the program prints about its version, without its path.
fn version(program: &Path, flag: &str) -> Result<String> {
    let output =
        Command::new(program).arg(flag).output().with_context(|| format!("cannot run {}", program.display()))?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| !line.is_empty()).unwrap_or_default();
    Ok(line.trim_start_matches(&*program.to_string_lossy()).trim().to_owned())
}
