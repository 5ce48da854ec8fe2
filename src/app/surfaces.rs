//! The ports for people and their tools: admin, metrics, readiness.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::admin::HostRule;
use crate::admin::endpoint::AdminEndpoint;
use crate::admin::http::{Endpoint, HttpServer};
use crate::admin::metrics::MetricsEndpoint;
use crate::admin::readiness::ReadinessEndpoint;
use crate::admin::reserve::FdReserve;
use crate::app::control::{Controller, stuck_workers};
use crate::app::doors::Doors;
use crate::config::Settings;
use crate::config::settings::AdminAddr;
use crate::lifecycle::Phase;
use crate::proxy::worker::Shared;
use crate::telemetry::metrics::Metrics;

/// Serves what is open of them: at once, or, for a `successor`, when it is ready, and never if it does not come to that. Until then whoever asks is answered by the
/// version that serves: the sockets are both's.
pub(super) fn start(
    shared: &Arc<Shared>,
    metrics: &Arc<Metrics>,
    doors: &mut Doors,
    settings: &Settings,
    controller: Controller,
    successor: bool,
) -> Vec<JoinHandle<()>> {
    let mut servers = Vec::new();
    let reserve = FdReserve::default();
    let hosts = match settings.listen.admin {
        Some(AdminAddr::Unix(_)) => HostRule::Any,
        _ if settings.admin.allow_remote => HostRule::Any,
        _ => HostRule::Loopback,
    };
    let liveness = Arc::clone(shared);
    let endpoints: [(&'static str, _, Arc<dyn Endpoint>); 3] = [
        ("admin", doors.admin.take(), Arc::new(AdminEndpoint::new(Arc::new(controller), hosts))),
        ("metrics", doors.metrics.take(), Arc::new(MetricsEndpoint::new(Arc::clone(metrics)))),
        (
            "readiness",
            doors.readiness.take(),
            Arc::new(ReadinessEndpoint::new(
                shared.readiness.clone(),
                shared.lifecycle.clone(),
                Arc::new(move || stuck_workers(&liveness)),
            )),
        ),
    ];
    for (name, listener, endpoint) in endpoints {
        if let Some(listener) = listener {
            let server = HttpServer::new(name, listener, endpoint, reserve.clone());
            let lifecycle = shared.lifecycle.clone();
            servers.push(tokio::task::spawn_local(async move {
                if successor {
                    lifecycle.reached(Phase::Ready).await;
                    if !lifecycle.may_accept() {
                        return;
                    }
                }
                server.run(lifecycle).await;
            }));
        }
    }
    servers
}
