//! What is known of one connection, in the terms of those who ask: which way bytes go, where it is in its life, its ends,
//! whom policy judges, what it uses.

use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::mesh::Workload;
use crate::net::address::{OriginalDst, PeerAddr, UpstreamAddr};
use crate::proxy::connect::Counted;
use crate::telemetry::traffic::SecurityPolicy;
use crate::telemetry::{PeerLabels, ServiceLabels};

/// Which way bytes go; also the index of everything that exists once per direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Direction {
    /// Downstream to upstream.
    Up = 0,
    /// Upstream to downstream.
    Down = 1,
}

impl Direction {
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];

    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Recovering the destination and resolving it.
    Opening,
    Connecting,
    Established,
    /// This direction has ended.
    HalfClosed(Direction),
    /// Delivering what came before a reset.
    Flushing,
}

/// What is known of a connection's ends; filled in stage by stage.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Whom a PROXY protocol header names; nothing where the client is the socket's peer.
    pub client: Option<PeerAddr>,
    pub original_dst: Option<OriginalDst>,
    pub upstream: Option<UpstreamAddr>,
    pub source: Option<Arc<PeerLabels>>,
    pub destination: Option<Arc<PeerLabels>>,
    pub service: Option<Arc<ServiceLabels>>,
    /// Mutual TLS exactly when it is carried in a tunnel on one of its sides.
    pub security: SecurityPolicy,
    /// Verified identities (SPIFFE ids); nothing where the connection is in the clear.
    pub source_identity: Option<Arc<str>>,
    pub destination_identity: Option<Arc<str>>,
    /// The authority of the tunnel's request.
    pub hbone_addr: Option<Arc<str>>,
}

/// What policy needs to know of a connection to the local workload; does not change while it lives.
#[derive(Debug, Clone)]
pub struct Who {
    /// Verified; nothing where the connection is in the clear.
    pub identity: Option<SpiffeId>,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The one that the client addressed.
    pub port: u16,
}

/// The endpoint that a connection uses; counted as in use until dropped.
#[derive(Debug)]
pub struct Using {
    pub workload: Arc<Workload>,
    pub counted: Counted,
}

/// What the sweep asks a connection to do at its next poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// Set keepalive and user timeout on the upstream socket: the connection has outlived its first second.
    KeepAlive = 1,
    /// Bytes may have been unacknowledged, or a write blocked, for long: look whether the peer is silent or only full.
    CheckStall = 2,
}
