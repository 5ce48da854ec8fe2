//! What runs beside everything else, on the control thread, as long as the process does.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio::time::sleep;

use crate::app::control::stuck_workers;
use crate::app::preserve;
use crate::config::Settings;
use crate::config::settings::PreserveSource;
use crate::lifecycle::{Phase, notify};
use crate::mesh::MeshStatus;
use crate::proxy::worker::Shared;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::reloads::Reloaded;

/// How often gone peers' metrics are looked for.
const SWEEP_METRICS_EVERY: Duration = Duration::from_secs(30);

/// How much more time a drain asks the service manager for, each time.
const STOP_EXTENDED_BY: Duration = Duration::from_secs(15);

/// Starts all of it that needs a state; returns once showing the application a client's address has been tried.
pub(super) async fn start(
    shared: &Arc<Shared>,
    metrics: &Arc<Metrics>,
    settings: &Settings,
    mesh: watch::Receiver<Arc<MeshStatus>>,
) {
    let inward = settings.listen.inbound.is_some() || shared.tls.is_some() && settings.listen.hbone.is_some();
    if inward && settings.preserve_source != PreserveSource::Off {
        preserve::prove(shared, settings.preserve_source, settings.capture, true).await;
        let proving = preserve::keep_proving(Arc::clone(shared), settings.preserve_source, settings.capture);
        tokio::task::spawn_local(proving);
    }
    tokio::task::spawn_local(follow_mesh(Arc::clone(shared), Arc::clone(metrics), mesh));
    let families = Arc::clone(&metrics.traffic);
    tokio::task::spawn_local(async move {
        loop {
            sleep(SWEEP_METRICS_EVERY).await;
            families.sweep(Instant::now());
        }
    });
}

/// Asks the service manager for more time, again and again, as long as the process drains.
pub(super) async fn extend_stop() {
    loop {
        notify::extend(STOP_EXTENDED_BY);
        sleep(STOP_EXTENDED_BY / 3).await;
    }
}

/// Tells the service manager that all is well, as often as it asks for; not while a worker is stuck, and not any more once
/// another process serves.
/// A `successor` says nothing before it serves: it is the other one that is watched.
pub(super) fn start_watchdog(shared: &Arc<Shared>, successor: bool) {
    let Some(period) = notify::watchdog() else { return };
    let shared = Arc::clone(shared);
    tokio::task::spawn_local(async move {
        if successor {
            shared.lifecycle.reached(Phase::Ready).await;
        }
        while !shared.lifecycle.is_superseded() {
            if stuck_workers(&shared).is_empty() {
                notify::alive();
            }
            sleep(period / 2).await;
        }
    });
}

/// Not ready before there is a state; tells the metrics and the operator of every later one.
async fn follow_mesh(shared: Arc<Shared>, metrics: Arc<Metrics>, mut status: watch::Receiver<Arc<MeshStatus>>) {
    let mut seen = MeshStatus::default();
    loop {
        let now = Arc::clone(&status.borrow_and_update());
        if now.has_state() {
            shared.readiness.clear("mesh");
        } else {
            shared.readiness.block("mesh", Some(now.waiting_for.join("; ")));
        }
        if now.generation != seen.generation {
            metrics.reloads.applied(Reloaded::Mesh, &now.hash, now.applied_at.unwrap_or_else(SystemTime::now));
        }
        if let Some(rejected) = now.last_rejected.as_ref()
            && now.reloads.rejected != seen.reloads.rejected
        {
            metrics.reloads.rejected(Reloaded::Mesh, rejected.at);
        }
        seen = MeshStatus::clone(&now);
        if status.changed().await.is_err() {
            return;
        }
    }
}
