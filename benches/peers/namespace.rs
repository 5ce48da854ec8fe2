//! The cell's own network: how it is entered, furnished and captured.
//!
//! `unshare` (util-linux), `ip` (iproute2) and `nft` (nftables) do the work, so that no unsafe call is needed here.
//!
//! Invariant: nothing outside the namespaces is touched; the kernel removes all of it with the last process of the cell.

use std::fmt;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The one address of the cell's host; from the range set aside for benchmarks (RFC 2544), so it is nobody's.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Where clients that are captured at the socket connect from.
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Where the echo server listens.
pub(crate) const SERVER: SocketAddrV4 = SocketAddrV4::new(HOST, 9000);

/// What adit puts on its sockets, by default.
const PACKET_MARK: u32 = 1337;

/// How the kernel brings a connection to a proxy that the client did not address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Address translation in the output hook.
    Redirect,
    /// At the client's socket, by `adit redirect apply --kind connect`.
    Connect,
    /// Marked in the output hook, routed back in over loopback, and given to the proxy's socket there.
    Tproxy,
}

/// As adit's settings and commands have it.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redirect => "redirect",
            Self::Connect => "connect",
            Self::Tproxy => "tproxy",
        })
    }
}

/// Connections to `from` reach `to`, unless they bear adit's mark.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capture {
    pub(crate) from: SocketAddrV4,
    pub(crate) to: u16,
    pub(crate) kind: Kind,
}

/// What [`Kind::Connect`] needs: adit's program, and the cgroup that the cell is in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AtSocket<'a> {
    pub(crate) program: &'a Path,
    pub(crate) cgroup: &'a Path,
}

/// A command that runs `program` in fresh network, PID and mount namespaces; with a user namespace too, where we are not root.
pub(crate) fn unshared(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg("--").arg(program);
    command
}

/// Furnishes the fresh network namespace: loopback up, our address, ports enough for many short connections.
pub(crate) fn furnish() -> Result<()> {
    if std::process::id() != 1 {
        bail!("a cell runs only as the first process of a PID namespace of its own");
    }
    run("ip", &["link", "set", "dev", "lo", "up"], "")?;
    run("ip", &["address", "add", &format!("{HOST}/32"), "dev", "lo"], "")?;
    // Ports enough for a second of short connections, above all doors; after that second a port may be used again, which by default holds for 127/8 only.
    // Without it connects search the table for longer and longer, and fail after 49,152 of them.
    sysctl("net/ipv4/ip_local_port_range", "16384 65535")?;
    sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    // A captured client and its proxy connect to one and the same address, so they use ports up twice as fast as the others and would search for one first. Kernels
    // before 6.14 have the second fixed.
    let delay = "net/ipv4/tcp_tw_reuse_delay";
    if Path::new("/proc/sys").join(delay).exists() {
        sysctl(delay, "1")?;
    }
    // The one that every kernel has and every namespace may choose; without loss it does as cubic does, which most hosts have. Where the host's is BBR, the kernel
    // paces each socket with a timer, on loopback too: that costs up to four times as much per byte, depending on what BBR came to believe in a cell's first moments.
    sysctl("net/ipv4/tcp_congestion_control", "reno")?;
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, Rlimit { ..files }).context("cannot raise the limit of open files")?;
    Ok(())
}

/// Installs the rules that capture, in the output hook, since the client lives on the same host: the one that `adit redirect` makes for `Redirect`, and the least that is needed for
/// `Tproxy`; for `Connect` the program itself does it.
pub(crate) fn capture(capture: Capture, at_socket: Option<AtSocket<'_>>) -> Result<()> {
    let Capture { from, to, kind } = capture;
    let chosen = format!("ip daddr {} tcp dport {} meta mark != {PACKET_MARK}", from.ip(), from.port());
    let rules = match kind {
        Kind::Connect => return capture_at_socket(at_socket.context("no cgroup for capture at the socket")?),
        Kind::Redirect => format!(
            "table ip peers {{ chain output {{ type nat hook output priority -100; policy accept; {chosen} redirect to :{to}; }}; }}\n"
        ),
        Kind::Tproxy => {
            run("ip", &["rule", "add", "fwmark", "0x112", "lookup", "112"], "")?;
            run("ip", &["route", "add", "local", "default", "dev", "lo", "table", "112"], "")?;
            // Nothing here needs the kernel to remember the connection, so nothing tracks it. `adit redirect` decides by the first packet and has it remember.
            format!(
                "table ip peers {{ chain output {{ type route hook output priority mangle; policy accept; {chosen} meta mark set 0x112; }};
                chain returned {{ type filter hook prerouting priority mangle; policy accept; iif lo meta l4proto tcp meta mark 0x112 tproxy to :{to} accept; }}; }}\n"
            )
        }
    };
    run("nft", &["-f", "-"], &rules)?;
    // Closed connections stay in conntrack's table for two minutes by default; a bench would fill it.
    if kind == Kind::Redirect {
        sysctl("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1")?;
    }
    Ok(())
}

/// Connections to this namespace's own addresses are not captured, and the server has one of them: so it is not there for the moment in which they are looked up. Another is, which
/// clients then connect from, as they would on a host.
fn capture_at_socket(AtSocket { program, cgroup }: AtSocket<'_>) -> Result<()> {
    let (adit, cgroup) = (program.to_str(), cgroup.to_str());
    let (adit, cgroup) = adit.zip(cgroup).context("a path is no text")?;
    run("ip", &["address", "add", &format!("{CLIENT}/32"), "dev", "lo"], "")?;
    run("ip", &["address", "delete", &format!("{HOST}/32"), "dev", "lo"], "")?;
    // Where it keeps the program for inbound connections; the cell has mounts of its own.
    run("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"], "")?;
    let apply = ["redirect", "apply", "--kind", "connect", "--force", "--cgroup", cgroup];
    run(adit, &apply, "")?;
    run("ip", &["address", "add", &format!("{HOST}/32"), "dev", "lo"], "")
}

fn sysctl(name: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("cannot set {name}"))
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program:?} (Debian packages: iproute2, nftables)"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("cannot write to {program}"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
