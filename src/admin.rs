//! The HTTP surfaces: metrics for scrapers, readiness for probes, and the admin API for operators.
//!
//! ```text
//! bound listener -> http (one hardened server for all three) -> endpoint -> answer
//!                                                               metrics    reads telemetry
//!                                                               readiness  reads lifecycle
//!                                                               api        asks the daemon through `Control`
//! ```
//!
//! They run on the control thread and never on a data worker, so they answer while workers are busy or stuck; what is
//! big is written on blocking threads. Wiring: one [`HttpServer`] per bound listener, each `run` as a task.

pub mod api;
pub mod body;
pub mod endpoint;
mod guard;
pub mod http;
pub mod metrics;
mod page;
pub mod readiness;
pub mod reserve;
#[cfg(test)]
mod testing;

pub use api::{BlockerInfo, Control, Reply, Status};
pub use endpoint::AdminEndpoint;
pub use guard::HostRule;
pub use http::{HttpLimits, HttpListener, HttpServer};
pub use metrics::MetricsEndpoint;
pub use readiness::ReadinessEndpoint;
pub use reserve::FdReserve;
