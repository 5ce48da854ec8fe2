//! What adit tells about itself: logs, metrics, and the one vocabulary of close reasons that both share.
//!
//! ```text
//! log events, access records -> queue -> log thread -> stderr            (log, access, queue)
//! per-worker counters, traffic series, gauges -> summed at scrape        (workers, traffic, metrics)
//! ```

pub mod access;
pub mod close_reason;
pub mod connection;
pub mod door;
pub(crate) mod family;
pub mod filter;
#[cfg(test)]
pub(crate) mod grammar;
pub mod hostnames;
pub mod labels;
pub mod limit;
mod line;
pub mod log;
pub mod metrics;
pub mod process;
mod queue;
pub mod reloads;
pub mod text;
pub mod traffic;
pub mod tunnels;
pub mod workers;

pub use access::{AccessRecord, Attempt};
pub use close_reason::{CloseReason, Phase, ResponseFlag, Side};
pub use connection::{ConnectionInfo, ConnectionPeer, ConnectionState};
pub use door::{Direction, Door, Reporter, Scope};
pub use filter::{Filter, FilterError};
pub use hostnames::{HostnameCounters, LookupResult};
pub use labels::{PeerLabels, ServiceLabels};
pub use limit::LineLimiter;
pub use log::{LogError, LogHandle, Logger};
pub use metrics::{ConnectionLimits, Metrics};
pub use process::ProcessStats;
pub use reloads::{Reloaded, Reloads};
pub use text::PeerText;
pub use traffic::{SecurityPolicy, TrafficCache, TrafficFamilies, TrafficLabels, TrafficLimits, TrafficSeries};
pub use tunnels::{Role, TunnelCounters, TunnelEnd};
pub use workers::{WorkerCounters, Workers};
