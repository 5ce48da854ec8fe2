//! Settings of tunnels and of what arrives outside of them.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use ipnet::IpNet;

use super::non_zero;

/// What may arrive at the inbound door, which knows no identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    pub plaintext: Plaintext,
    /// Ports of the workload that may be reached outside a tunnel all the same, for example by probes.
    pub plaintext_ports: Vec<u16>,
    /// Who sends a PROXY protocol header before all else, and must; nobody else's bytes are taken for one.
    pub proxy_protocol_from: Vec<IpNet>,
    /// How long the header may take.
    pub proxy_protocol_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plaintext {
    Allow,
    Deny,
}

/// Tunnels in both roles, unless a role is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// As a client: the TCP connection.
    pub connect_timeout: Duration,
    /// The TLS handshake and the HTTP/2 preface after it.
    pub handshake_timeout: Duration,
    /// As a client: from sending CONNECT to its answer.
    pub response_timeout: Duration,
    /// As a client: how long a tunnel without streams is kept.
    pub idle_release: Duration,
    /// A tunnel older than this takes no new streams.
    pub max_age: Option<Duration>,
    /// Streams in one tunnel at the same time.
    pub max_streams: NonZeroU32,
    /// As a client: how many tunnels to one peer a worker opens while there is still room in others.
    pub max_per_peer: NonZeroU32,
    /// Nothing received for so long: ask whether the peer lives.
    pub ping_interval: Duration,
    /// How long it may take to answer.
    pub ping_timeout: Duration,
    /// What one stream's sender may have on the way or waiting here, in bytes.
    pub stream_window: NonZeroU32,
    /// The same of all streams of one tunnel together.
    pub connection_window: NonZeroU32,
    /// The same of all tunnels of the process together.
    pub buffered_bytes: NonZeroUsize,
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            plaintext: Plaintext::Allow,
            plaintext_ports: Vec::new(),
            proxy_protocol_from: Vec::new(),
            proxy_protocol_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
            idle_release: Duration::from_secs(300),
            max_age: None,
            max_streams: non_zero(100),
            max_per_peer: non_zero(4),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            stream_window: non_zero(4 << 20),
            connection_window: non_zero(32 << 20),
            buffered_bytes: const { NonZeroUsize::new(256 << 20).expect("not zero") },
        }
    }
}
