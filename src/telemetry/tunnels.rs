//! Tunnels in metrics, and the one vocabulary of how they end.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::DescriptorEncoder;

use crate::telemetry::family;

/// Which end of a tunnel we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Role {
    /// We connected.
    Client,
    /// The peer connected.
    Server,
}

impl Role {
    pub const ALL: [Self; 2] = [Self::Client, Self::Server];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

macro_rules! tunnel_ends {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $orderly:literal;)*) => {
        /// Why a tunnel ended, or takes no new streams.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum TunnelEnd { $($(#[$doc])* $variant,)* }

        impl TunnelEnd {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word for logs and metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $word,)* } }

            /// Whether nothing went wrong: nobody lost a byte by it.
            #[must_use]
            pub const fn is_orderly(self) -> bool { match self { $(Self::$variant => $orderly,)* } }
        }
    };
}

tunnel_ends! {
    /// No stream for `tunnel.idleRelease`.
    Idle = "idle", true;
    /// The peer said goodbye, or closed in order.
    PeerClosed = "peer_closed", true;
    /// Older than `tunnel.maxAge`.
    MaxAge = "max_age", true;
    /// There are newer credentials.
    Rotated = "rotated", true;
    /// The workload behind the address has left the state or is another one.
    PeerReplaced = "peer_replaced", true;
    /// Made for one stream, which has ended: a tunnel inside another.
    Used = "used", true;
    /// We are stopping.
    Drain = "drain", true;
    /// The connection ended without TLS's closing message.
    NoCloseNotify = "no_close_notify", false;
    /// The socket failed, most often by a reset.
    Broken = "broken", false;
    /// No answer to a PING.
    PingTimeout = "ping_timeout", false;
    /// A TLS alert, or bytes that do not decrypt.
    Tls = "tls", false;
    /// The peer broke the rules of HTTP/2, or a limit of ours.
    Http2 = "http2", false;
    /// The peer says that we did.
    PeerError = "peer_error", false;
    Revoked = "revoked", false;
    Untrusted = "untrusted", false;
}

/// One worker's tunnels.
#[derive(Debug, Default)]
pub struct TunnelCounters {
    opened: [AtomicU64; Role::ALL.len()],
    closed: [[AtomicU64; TunnelEnd::ALL.len()]; Role::ALL.len()],
    open: [AtomicU64; Role::ALL.len()],
    streams: [AtomicU64; Role::ALL.len()],
    buffered: AtomicU64,
}

impl TunnelCounters {
    pub fn opened(&self, role: Role) {
        self.opened[role as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn closed(&self, role: Role, end: TunnelEnd) {
        self.closed[role as usize][end as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What there is right now; told by the sweep.
    pub fn publish(&self, role: Role, tunnels: u64, streams: u64) {
        self.open[role as usize].store(tunnels, Ordering::Relaxed);
        self.streams[role as usize].store(streams, Ordering::Relaxed);
    }

    /// Tunnels and the streams in them, as last told.
    #[must_use]
    pub(super) fn open(&self, role: Role) -> (&AtomicU64, &AtomicU64) {
        (&self.open[role as usize], &self.streams[role as usize])
    }

    /// Bytes that have come out of tunnels and that no application has taken yet; told by the sweep.
    pub fn publish_buffered(&self, bytes: u64) {
        self.buffered.store(bytes, Ordering::Relaxed);
    }
}

/// Writes the families, summed over `workers`.
pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, workers: &[Arc<super::WorkerCounters>]) -> fmt::Result {
    let sum = |of: &dyn Fn(&TunnelCounters) -> &AtomicU64| -> u64 {
        workers.iter().map(|worker| of(&worker.tunnels).load(Ordering::Relaxed)).sum()
    };
    let role = |role: Role| [("role", role.as_str())];
    family::gauges(
        encoder,
        "adit_tunnels_open",
        "Tunnels now",
        Role::ALL.map(|r| (role(r), sum(&|tunnels| &tunnels.open[r as usize]))),
    )?;
    family::gauges(
        encoder,
        "adit_tunnel_streams_open",
        "Streams in tunnels now",
        Role::ALL.map(|r| (role(r), sum(&|tunnels| &tunnels.streams[r as usize]))),
    )?;
    family::counters(
        encoder,
        "adit_tunnels_opened",
        "Tunnels made",
        Role::ALL.map(|r| (role(r), sum(&|tunnels| &tunnels.opened[r as usize]))),
    )?;
    let ends = Role::ALL.into_iter().flat_map(|role| TunnelEnd::ALL.iter().map(move |end| (role, *end)));
    family::counters(
        encoder,
        "adit_tunnels_closed",
        "Tunnels that ended, by how",
        ends.map(|(role, end)| {
            let count = sum(&|tunnels| &tunnels.closed[role as usize][end as usize]);
            ([("role", role.as_str()), ("reason", end.as_str())], count)
        }),
    )?;
    family::gauge(
        encoder,
        "adit_tunnel_buffered_bytes",
        "Bytes that came out of tunnels and that no application has taken yet",
        sum(&|tunnels| &tunnels.buffered),
    )
}
