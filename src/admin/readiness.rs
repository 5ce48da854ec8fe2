//! The endpoint for probes: `/healthz/ready` and `/healthz/live`.
//!
//! Ready is when nothing blocks and the process is in its ready phase: 200 `ready`. Else 503 and a JSON list that names
//! each blocker, since when, and its last error; during drain too. Live is when no data worker is stuck: 200 `live`, else
//! 503 and the same kind of list.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use hyper::{Method, Request, Response, StatusCode};

use crate::admin::api::BlockerInfo;
use crate::admin::body::Body;
use crate::admin::http::{Endpoint, error, json, not_allowed, text};
use crate::lifecycle::{Blocker, Lifecycle, Phase, Readiness};

/// What is stuck; empty means live. Called on the control thread at every probe, so it only reads heartbeats.
pub type Liveness = Arc<dyn Fn() -> Vec<Blocker> + Send + Sync>;

pub struct ReadinessEndpoint {
    readiness: Readiness,
    lifecycle: Lifecycle,
    liveness: Liveness,
    started: SystemTime,
    draining_since: OnceLock<SystemTime>,
}

impl ReadinessEndpoint {
    #[must_use]
    pub fn new(readiness: Readiness, lifecycle: Lifecycle, liveness: Liveness) -> Self {
        Self { readiness, lifecycle, liveness, started: SystemTime::now(), draining_since: OnceLock::new() }
    }

    /// What stands against being ready; empty means ready.
    #[must_use]
    pub fn blockers(&self) -> Vec<BlockerInfo> {
        // Whoever asks asks about the service, and that is well: another process serves it.
        if self.lifecycle.is_superseded() {
            return Vec::new();
        }
        let mut blockers: Vec<_> = self.readiness.blockers().iter().map(BlockerInfo::from).collect();
        if let Some(phase) = self.phase_blocker()
            && blockers.iter().all(|blocker| blocker.name != phase.name)
        {
            blockers.push(BlockerInfo::from(&phase));
        }
        blockers
    }

    /// The phase itself, whether or not somebody has named it as a blocker.
    fn phase_blocker(&self) -> Option<Blocker> {
        let phase = self.lifecycle.phase();
        let (name, since) = match phase {
            Phase::Ready => return None,
            Phase::Starting => ("start", self.started),
            _ => ("drain", *self.draining_since.get_or_init(SystemTime::now)),
        };
        Some(Blocker { name: name.into(), since, error: Some(format!("the process is {}", phase.as_str())) })
    }

    fn ready(&self) -> Response<Body> {
        let blockers = self.blockers();
        if blockers.is_empty() {
            text(StatusCode::OK, "ready\n")
        } else {
            json(StatusCode::SERVICE_UNAVAILABLE, &blockers)
        }
    }

    fn live(&self) -> Response<Body> {
        let stuck: Vec<_> = (self.liveness)().iter().map(BlockerInfo::from).collect();
        if stuck.is_empty() { text(StatusCode::OK, "live\n") } else { json(StatusCode::SERVICE_UNAVAILABLE, &stuck) }
    }
}

impl Endpoint for ReadinessEndpoint {
    fn answer(&self, request: Request<Bytes>) -> Pin<Box<dyn Future<Output = Response<Body>> + Send + '_>> {
        let response = match (request.uri().path(), request.method()) {
            ("/healthz/ready", &(Method::GET | Method::HEAD)) => self.ready(),
            ("/healthz/live", &(Method::GET | Method::HEAD)) => self.live(),
            ("/healthz/ready" | "/healthz/live", _) => not_allowed("GET, HEAD"),
            _ => error(StatusCode::NOT_FOUND, "no such path; probes are /healthz/ready and /healthz/live"),
        };
        Box::pin(std::future::ready(response))
    }
}

#[cfg(test)]
mod tests;
