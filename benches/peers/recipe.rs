//! The peers: where their programs are, the settings they run with, the door that clients connect to.
//!
//! Every peer gets its best settings for this load, one core, and no access log; `docs/performance.md` gives the reasons. A new peer is one function here, or in
//! `tunnel` for the pairs with a tunnel between them.
//!
//! On failure: a program that is not installed is `Found::Missing` with the package to install, never an error and never silence.

pub(crate) mod envoy;
pub(crate) mod tunnel;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use rustix::process::{Resource, getrlimit};

use super::load::HalfClose;
use super::namespace::{Capture, HOST, SERVER};

/// The peers of a run without `--peers`.
const DEFAULT: [&str; 6] = ["direct", "haproxy", "nginx", "adit", "envoy-tunnel", "adit-tunnel"];
/// All of them. The captured twins stand behind the same redirect rule as adit does, and so show what the kernel's share of capture is.
const ALL: [&str; 8] =
    ["direct", "haproxy", "nginx", "adit", "envoy-tunnel", "adit-tunnel", "haproxy-captured", "nginx-captured"];

/// Where captured clients of the twins connect to; the twins themselves go on to `SERVER`.
const CAPTURED: SocketAddrV4 = SocketAddrV4::new(HOST, 9001);
/// The doors of the peers.
const HAPROXY: u16 = 8001;
const NGINX: u16 = 8002;
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
    /// Arguments before the config file.
    pub(crate) arguments: &'static [&'static str],
    pub(crate) config: String,
    /// Where and under which path it answers 200 when it is ready; without one, its door is tried.
    pub(crate) readiness: Option<(SocketAddrV4, &'static str)>,
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

/// Checks the names given on the command line.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = names.iter().find(|name| !ALL.contains(&name.as_str())) {
        bail!("no peer is called {unknown:?}; there are: {}", ALL.join(", "));
    }
    Ok(if names.is_empty() { DEFAULT.map(str::to_owned).to_vec() } else { names.to_vec() })
}

/// Looks a peer up on this machine.
pub(crate) fn find(name: &str, adit: &Path) -> Result<Found> {
    let (base, captured) = name.strip_suffix("-captured").map_or((name, false), |base| (base, true));
    let (found, door) = match base {
        "direct" => return Ok(Found::Direct),
        "adit" => return self::adit(adit),
        "adit-tunnel" => return tunnel::adits(adit),
        "envoy-tunnel" => return tunnel::envoys(adit),
        "haproxy" => (haproxy()?, HAPROXY),
        "nginx" => (nginx()?, NGINX),
        _ => bail!("no peer is called {name:?}"),
    };
    Ok(match found {
        Err(package) => Found::Missing(package),
        Ok(recipe) if captured => {
            let capture = Some(Capture { from: CAPTURED, to: door });
            Found::Proxy { recipe: Recipe { capture, ..recipe }, target: CAPTURED }
        }
        Ok(recipe) => Found::Proxy { recipe, target: SocketAddrV4::new(HOST, door) },
    })
}

fn adit(program: &Path) -> Result<Found> {
    if !program.exists() {
        return Ok(Found::Missing(format!("{} does not exist", program.display())));
    }
    let config = format!(
        "workers: 1\n\
         egress: allowAny\n\
         capture: redirect\n\
         listen:\n  outbound: '127.0.0.1:{ADIT}'\n  inbound: off\n  hbone: off\n  socks5: off\n  admin: '127.0.0.1:15000'\n  \
         metrics: '127.0.0.1:15020'\n  readiness: '{ADIT_READY}'\n\
         log: {{ filter: warn, access: false }}\n"
    );
    let part = Part { program: program.to_owned(), arguments: RUN, config, readiness: Some((ADIT_READY, READY)) };
    let capture = Some(Capture { from: SERVER, to: ADIT });
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
    let arguments = &["-db", "-f"];
    Ok(Ok(Recipe::alone(Part { program, arguments, config, readiness: None }, version)))
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
    let arguments = &["-e", "stderr", "-p", ".", "-c"];
    Ok(Ok(Recipe::alone(Part { program, arguments, config, readiness: None }, version)))
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

/// The first line that the program prints about its version.
fn version(program: &Path, flag: &str) -> Result<String> {
    let output =
        Command::new(program).arg(flag).output().with_context(|| format!("cannot run {}", program.display()))?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Ok(String::from_utf8_lossy(&text).lines().find(|line| !line.is_empty()).unwrap_or_default().trim().to_owned())
}
