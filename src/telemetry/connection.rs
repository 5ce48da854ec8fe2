//! One row of the connection table: what `GET /connections` and `adit connections` show of a live connection. The data
//! path fills it, the admin API carries it, the command line reads it back.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::telemetry::door::{Direction, Door};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionInfo {
    /// The same number as in the access log.
    pub id: u64,
    pub direction: Direction,
    pub listener: Door,
    /// The client's end.
    pub downstream: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_dst: Option<SocketAddr>,
    /// What adit dialled; nothing while it has not been decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<SocketAddr>,
    #[serde(default)]
    pub source: ConnectionPeer,
    #[serde(default)]
    pub destination: ConnectionPeer,
    /// Host name of the service that was addressed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Request bytes.
    pub bytes_from_downstream: u64,
    /// Response bytes.
    pub bytes_from_upstream: u64,
    pub age_ms: u64,
    /// Since the last byte in either direction.
    pub idle_ms: u64,
    pub state: ConnectionState,
}

/// Which workload is at an end of a connection; empty strings where that is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConnectionPeer {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workload: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub identity: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConnectionState {
    /// Accepted; the destination is being found out.
    Accepting,
    Connecting,
    Open,
    /// The client has sent its FIN.
    DownstreamClosed,
    /// The destination has sent its FIN.
    UpstreamClosed,
    /// Being ended by adit.
    Closing,
}

impl ConnectionState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepting => "accepting",
            Self::Connecting => "connecting",
            Self::Open => "open",
            Self::DownstreamClosed => "downstreamClosed",
            Self::UpstreamClosed => "upstreamClosed",
            Self::Closing => "closing",
        }
    }
}
