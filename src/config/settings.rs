//! The validated settings. What comes in is already checked (see the loader beside this file); what goes out is an
//! immutable [`Settings`] behind an `Arc`, published on a watch channel at every accepted reload.
//!
//! Invariants: limits are non-zero, durations are what the operator wrote, "off" is `None`, addresses are as written.

mod balance;
mod identity;
mod policy;
mod tunnel;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use balance::{Balance, OnEndpointRemoved};
pub use identity::{DevIdentity, Identity, IdentityFiles, IdentitySource};
pub use policy::{OnMissing, Policy};
pub use tunnel::{Inbound, Plaintext, Tunnel};

/// Everything an operator can set. `Settings::default()` is what an empty file means.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub mode: Mode,
    pub workload: LocalWorkload,
    /// The network this daemon and its workload are in.
    pub network: Arc<str>,
    /// The node's name; the host name unless set.
    pub node: Arc<str>,
    pub workers: Workers,
    pub capture: Capture,
    pub preserve_source: PreserveSource,
    /// `SO_MARK` of every socket that adit opens; `None`: capture excludes adit by uid.
    pub packet_mark: Option<NonZeroU32>,
    pub egress: Egress,
    pub listen: Listen,
    /// Whether the SOCKS5 door may listen on an address that is not loopback.
    pub socks5_allow_remote: bool,
    /// Whether SOCKS5 clients may reach loopback and link-local addresses that no workload of the state has.
    pub socks5_allow_local: bool,
    pub mesh: Mesh,
    pub identity: Identity,
    pub policy: Policy,
    pub inbound: Inbound,
    pub tunnel: Tunnel,
    pub balance: Balance,
    pub on_endpoint_removed: OnEndpointRemoved,
    pub connect: Connect,
    pub relay: Relay,
    pub keepalive: Keepalive,
    pub limits: Limits,
    pub shutdown: Shutdown,
    pub metrics: Metrics,
    pub log: Log,
    pub admin: Admin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One workload per process.
    Sidecar,
}

/// Which workload of the state this daemon serves; found by these names, never by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalWorkload {
    /// Empty: the daemon serves no workload of the state.
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
    pub trust_domain: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// What affinity and the cgroup's CPU quota allow.
    Auto,
    Fixed(NonZeroUsize),
}

/// How the kernel's rules hand captured connections over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    Redirect,
    Tproxy,
    /// At the client's socket, outbound; as [`Self::Tproxy`], inbound.
    Connect,
}

impl Capture {
    /// Whether what is captured on its way out arrives with its destination as the local address. Else the kernel is asked.
    #[must_use]
    pub const fn is_transparent_outbound(self) -> bool {
        matches!(self, Self::Tproxy)
    }

    /// The same of what is captured on its way in.
    #[must_use]
    pub const fn is_transparent_inbound(self) -> bool {
        matches!(self, Self::Tproxy | Self::Connect)
    }
}

/// Whether inbound connections reach the application from the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreserveSource {
    Require,
    Prefer,
    Off,
}

/// What a destination that the state does not know gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    AllowAny,
    RegistryOnly,
}

/// Where each door listens; `None` is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    pub outbound: Option<SocketAddr>,
    pub inbound: Option<SocketAddr>,
    /// Opened only once an identity is configured.
    pub hbone: Option<SocketAddr>,
    pub socks5: Option<SocketAddr>,
    pub admin: Option<AdminAddr>,
    pub metrics: Option<SocketAddr>,
    pub readiness: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddr {
    Tcp(SocketAddr),
    /// A Unix socket, made with mode 0600.
    Unix(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mesh {
    /// Files or folders, absolute or relative to the working directory (the loader has already joined them).
    pub files: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// One attempt.
    pub timeout: Duration,
    /// All attempts together.
    pub deadline: Duration,
    pub attempts: NonZeroU32,
    /// Mean pause before the second attempt; doubles, jittered.
    pub backoff: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    pub idle_timeout: Option<Duration>,
    pub max_age: Option<Duration>,
    /// How long the second half may be silent after the first has ended.
    pub half_close_linger: Option<Duration>,
    /// How long what was received before a reset may take to be acknowledged by the other side.
    pub reset_flush: Duration,
    /// Whether bulk plain TCP may be carried by `splice`.
    pub zero_copy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    pub idle: Duration,
    pub interval: Duration,
    pub probes: NonZeroU32,
    /// `TCP_USER_TIMEOUT`; at least `idle + interval * probes`.
    pub user_timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub connections: ConnectionLimit,
    /// Of one listener; `None`: only the total counts.
    pub outbound: Option<NonZeroUsize>,
    pub inbound: Option<NonZeroUsize>,
    pub socks5: Option<NonZeroUsize>,
    /// Tunnels and the streams in them.
    pub hbone: Option<NonZeroUsize>,
    /// TLS handshakes of peers that connect, at the same time.
    pub handshakes: NonZeroUsize,
    /// Connections to one endpoint, and to all endpoints of one service together; a service can say otherwise.
    pub per_endpoint: Option<NonZeroU32>,
    pub per_service: Option<NonZeroU32>,
    /// New connections a second of one source workload; `None`: as many as come.
    pub source_rate: Option<NonZeroU32>,
    /// How many of them may come at once.
    pub source_burst: NonZeroU32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionLimit {
    /// `min((nofile - 64) / 3, memory limit / 64 KiB)`.
    Auto,
    Fixed(NonZeroUsize),
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    /// Not ready, but still accepting.
    pub pre_drain: Duration,
    /// Zero cuts at once; `None` waits for the last connection.
    pub deadline: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metrics {
    pub labels: TrafficLabelSet,
}

/// Every label that a traffic family can carry, in the order of the exposition.
pub const TRAFFIC_LABELS: [&str; 27] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
];

/// Which labels the traffic families carry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TrafficLabelSet {
    /// All of ztunnel's.
    #[default]
    Default,
    /// Only these (`reporter` and `response_flags` are always kept).
    Only(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    /// A list of `level` and `target=level`.
    pub filter: String,
    /// One line per proxied connection.
    pub access: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Admin {
    /// Whether the admin port may listen on an address that is not loopback.
    pub allow_remote: bool,
}

const fn wildcard(port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))
}

const fn non_zero(value: u32) -> NonZeroU32 {
    match NonZeroU32::new(value) {
        Some(value) => value,
        None => NonZeroU32::MIN,
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Sidecar,
            workload: LocalWorkload::default(),
            network: "".into(),
            node: "".into(),
            workers: Workers::Auto,
            capture: Capture::Redirect,
            preserve_source: PreserveSource::Prefer,
            packet_mark: Some(non_zero(1337)),
            egress: Egress::AllowAny,
            listen: Listen::default(),
            socks5_allow_remote: false,
            socks5_allow_local: false,
            mesh: Mesh::default(),
            identity: Identity::default(),
            policy: Policy::default(),
            inbound: Inbound::default(),
            tunnel: Tunnel::default(),
            balance: Balance::default(),
            on_endpoint_removed: OnEndpointRemoved::default(),
            connect: Connect::default(),
            relay: Relay::default(),
            keepalive: Keepalive::default(),
            limits: Limits::default(),
            shutdown: Shutdown::default(),
            metrics: Metrics::default(),
            log: Log::default(),
            admin: Admin::default(),
        }
    }
}

impl Default for LocalWorkload {
    fn default() -> Self {
        Self {
            name: "".into(),
            namespace: "default".into(),
            service_account: "default".into(),
            trust_domain: "cluster.local".into(),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            outbound: wildcard(15001),
            inbound: wildcard(15006),
            hbone: wildcard(15008),
            socks5: None,
            admin: Some(AdminAddr::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)))),
            metrics: wildcard(15020),
            readiness: wildcard(15021),
        }
    }
}

impl Default for Connect {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(15),
            attempts: non_zero(3),
            backoff: Duration::from_millis(25),
        }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            idle_timeout: None,
            max_age: None,
            half_close_linger: Some(Duration::from_secs(60)),
            reset_flush: Duration::from_secs(1),
            zero_copy: true,
        }
    }
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(15),
            interval: Duration::from_secs(5),
            probes: non_zero(3),
            user_timeout: Some(Duration::from_secs(30)),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: ConnectionLimit::Auto,
            outbound: None,
            inbound: None,
            socks5: None,
            hbone: None,
            handshakes: const { NonZeroUsize::new(256).expect("not zero") },
            per_endpoint: None,
            per_service: None,
            source_rate: None,
            source_burst: non_zero(100),
        }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { pre_drain: Duration::ZERO, deadline: Some(Duration::from_secs(30)) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into(), access: true }
    }
}
