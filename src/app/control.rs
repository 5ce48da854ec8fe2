//! The daemon as its admin API sees it: collects answers from the paths, each with a deadline.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::admin::api::{
    BlockerInfo, ConnectionCounts, Control, Dump, ListenerStatus, Rejection, ReloadReport, Reply, SourceStatus, Status,
    TunnelCount, TunnelCounts, UpgradeReport, rfc3339,
};
use crate::app::doors::Doors;
use crate::app::reload::{ReloadStatus, Request};
use crate::app::succession::Predecessors;
use crate::app::upgrade;
use crate::identity::Rotation;
use crate::lifecycle::{Blocker, Phase};
use crate::mesh::MeshStatus;
use crate::proxy::explain::{Query, explain};
use crate::proxy::worker::{Command, STUCK_AFTER, Shared};
use crate::telemetry::door::Scope;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::tunnels::Role;
use crate::telemetry::{ConnectionInfo, Door, FilterError};

/// How long a worker may take to list its connections.
const LIST_WITHIN: Duration = Duration::from_secs(1);

/// Implements the admin API.
#[derive(Debug)]
pub(super) struct Controller {
    shared: Arc<Shared>,
    mesh: watch::Receiver<Arc<MeshStatus>>,
    reload_status: watch::Receiver<ReloadStatus>,
    reloads: mpsc::Sender<Request>,
    drains: mpsc::Sender<()>,
    upgrades: mpsc::Sender<upgrade::Request>,
    predecessors: Predecessors,
    addresses: Vec<(Door, String)>,
    identity: Option<Rotation>,
    /// Where tunnels are counted, if there are any.
    metrics: Option<Arc<Metrics>>,
}

/// Where the controller sends what it is asked for.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) reloads: mpsc::Sender<Request>,
    pub(super) drains: mpsc::Sender<()>,
    pub(super) upgrades: mpsc::Sender<upgrade::Request>,
}

impl Controller {
    pub(super) fn new(
        shared: Arc<Shared>,
        mesh: watch::Receiver<Arc<MeshStatus>>,
        reload_status: watch::Receiver<ReloadStatus>,
        requests: Requests,
        predecessors: Predecessors,
        doors: &Doors,
    ) -> Self {
        let addresses = doors.addresses.iter().map(|(door, address)| (*door, address.to_string())).collect();
        let Requests { reloads, drains, upgrades } = requests;
        Self {
            shared,
            mesh,
            reload_status,
            reloads,
            drains,
            upgrades,
            predecessors,
            addresses,
            identity: None,
            metrics: None,
        }
    }

    /// What there is to see of the identity, and of the tunnels that there are with one.
    #[must_use]
    pub(super) fn with_identity(mut self, identity: Option<Rotation>, metrics: Arc<Metrics>) -> Self {
        self.metrics = identity.is_some().then_some(metrics);
        self.identity = identity;
        self
    }

    fn tunnels(&self) -> Option<TunnelCounts> {
        let workers = &self.metrics.as_ref()?.workers;
        let of = |role| {
            let (tunnels, streams) = workers.tunnels(role);
            TunnelCount { tunnels, streams }
        };
        Some(TunnelCounts { to_peers: of(Role::Client), from_peers: of(Role::Server) })
    }

    fn mesh_source(&self) -> SourceStatus {
        let status = self.mesh.borrow();
        let counts = [("files", status.files), ("workloads", status.workloads), ("services", status.services)];
        SourceStatus {
            source: status.sources.iter().map(|path| path.display().to_string()).collect(),
            hash: status.hash.to_string(),
            applied_at: status.applied_at.map(rfc3339),
            rejected: status.last_rejected.as_ref().map(|rejected| Rejection {
                at: rfc3339(rejected.at),
                errors: rejected.problems.iter().map(ToString::to_string).collect(),
            }),
            counts: counts.into_iter().map(|(what, count)| (what.to_owned(), count as u64)).collect(),
        }
    }

    fn listener(&self, door: Door, address: &str) -> ListenerStatus {
        let (open, limit) = self.shared.limits.usage(door.scope());
        ListenerStatus {
            name: door,
            address: address.to_owned(),
            open: open as u64,
            limit: limit.map(|limit| limit as u64),
        }
    }

    fn now(&self) -> Status {
        let shared = &self.shared;
        let (open, limit) = shared.limits.usage(Scope::Total);
        let reload = self.reload_status.borrow();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            mode: "sidecar".into(),
            uptime_ms: u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            phase: shared.lifecycle.phase().as_str().into(),
            ready: shared.readiness.is_ready() && shared.lifecycle.phase() == Phase::Ready,
            blockers: shared.readiness.blockers().iter().map(BlockerInfo::from).collect(),
            workers: shared.posts.len(),
            connections: ConnectionCounts {
                open: open as u64,
                limit: limit.map(|limit| limit as u64),
                listeners: self.addresses.iter().map(|(door, address)| self.listener(*door, address)).collect(),
            },
            tunnels: self.tunnels(),
            config: reload.source.clone(),
            mesh: self.mesh_source(),
            refused_keys: reload.refused_keys.clone(),
            draining: self.predecessors.list(),
        }
    }
}

impl Control for Controller {
    fn config(&self) -> Reply<'_, serde_json::Value> {
        let config = self.shared.settings.borrow().to_json();
        Box::pin(async { config })
    }

    fn mesh(&self) -> Dump {
        let snapshot = Arc::clone(&self.shared.snapshot.borrow());
        let SourceStatus { source, hash, applied_at, rejected, .. } = self.mesh_source();
        Box::new(move |out: &mut dyn io::Write| {
            let document = snapshot
                .document()
                .about("source", json!(source))
                .about("hash", json!(hash))
                .about("appliedAt", json!(applied_at))
                .about("rejected", json!(rejected));
            serde_json::to_writer(out, &document).map_err(io::Error::other)
        })
    }

    fn connections(&self) -> Reply<'_, Vec<ConnectionInfo>> {
        Box::pin(async {
            let mut pending = Vec::new();
            for post in &self.shared.posts {
                let (answer, list) = oneshot::channel();
                // A worker whose queue is full is busier than this question is important.
                if post.commands.try_send(Command::List(answer)).is_ok() {
                    pending.push(list);
                }
            }
            let mut all = Vec::new();
            for list in pending {
                if let Ok(Ok(list)) = timeout(LIST_WITHIN, list).await {
                    all.extend(list);
                }
            }
            all.sort_by_key(|connection| std::cmp::Reverse(connection.age_ms));
            all
        })
    }

    fn certs(&self) -> Reply<'_, serde_json::Value> {
        let document = match &self.identity {
            Some(identity) => {
                let status = Arc::clone(&identity.status.borrow());
                status.to_json(SystemTime::now(), &identity.peers)
            }
            None => json!({ "source": "none" }),
        };
        Box::pin(async { document })
    }

    fn explain(&self, question: &str) -> Result<serde_json::Value, String> {
        let now = u64::try_from(self.shared.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let query = Query::from_query_string(question, now)?;
        let (snapshot, settings) = (Arc::clone(&self.shared.snapshot.borrow()), self.shared.settings.borrow().clone());
        let explanation = explain(&snapshot, &settings, &query);
        Ok(json!({ "text": explanation.to_string(), "explanation": explanation }))
    }

    fn status(&self) -> Reply<'_, Status> {
        let status = self.now();
        Box::pin(async { status })
    }

    fn reload(&self) -> Reply<'_, ReloadReport> {
        Box::pin(async {
            let (answer, report) = oneshot::channel();
            if self.reloads.send(Some(answer)).await.is_err() {
                return ReloadReport::stopping();
            }
            report.await.unwrap_or_else(|_stopped| ReloadReport::stopping())
        })
    }

    fn drain(&self) {
        // A full queue means that a drain is already asked for.
        let _ = self.drains.try_send(());
    }

    fn upgrade(&self) -> Reply<'_, Result<UpgradeReport, String>> {
        Box::pin(async {
            let (answer, report) = oneshot::channel();
            match self.upgrades.try_send(Some(answer)) {
                Ok(()) => report.await.unwrap_or_else(|_stopped| Err("adit is stopping".to_owned())),
                Err(mpsc::error::TrySendError::Full(_)) => Err("an upgrade is under way already".to_owned()),
                Err(mpsc::error::TrySendError::Closed(_)) => Err("adit is stopping".to_owned()),
            }
        })
    }

    fn log_filter(&self) -> String {
        self.shared.log.filter()
    }

    fn set_log_filter(&self, filter: &str) -> Result<(), FilterError> {
        self.shared.log.set_filter(filter)
    }
}

/// Data workers that have not turned for too long.
pub(super) fn stuck_workers(shared: &Shared) -> Vec<Blocker> {
    let now = u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let limit = u64::try_from(STUCK_AFTER.as_millis()).unwrap_or(u64::MAX);
    let silent_ms = |beat: u64| now.saturating_sub(beat);
    // A worker that has ended with the drain is not stuck.
    if shared.lifecycle.phase() > Phase::Ready {
        return Vec::new();
    }
    let beats = shared.posts.iter().map(|post| silent_ms(post.beat.load(Ordering::Relaxed))).enumerate();
    beats
        .filter(|(_, silent)| *silent > limit)
        .map(|(index, silent)| Blocker {
            name: format!("worker {index}"),
            since: SystemTime::now() - Duration::from_millis(silent),
            error: Some(format!("has not turned for {silent} ms")),
        })
        .collect()
}
