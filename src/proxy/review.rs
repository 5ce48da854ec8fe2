//! Review: what a change of the state means for connections that are open already.
//!
//! One task per worker. It is told of each new state and looks at all connections by it, some at a time, so that traffic
//! goes on meanwhile; a state that comes while it looks is looked at next, whole. A connection that registers later reads
//! the new state itself. Policies are asked only when those of the local workload have changed. Nothing here closes a
//! connection: it leaves an order or a note, and the sweep and the connection do the rest.

use std::rc::Rc;

use crate::mesh::Snapshot;
use crate::proxy::gate::again;
use crate::proxy::registry::Entry;
use crate::proxy::worker::Worker;

/// Connections looked at before others get their turn.
const AT_ONE_GO: usize = 256;

/// Runs for as long as the worker lives.
pub async fn review(worker: Rc<Worker>) {
    let mut before = worker.served().clone();
    loop {
        worker.state_changed().await;
        let served = worker.served().clone();
        let policies = !served.decides_as(&before);
        before = served;
        let mut from = Some(0);
        while let Some(place) = from {
            from = look(&worker, place, policies);
            tokio::task::yield_now().await;
        }
    }
}

/// Looks at some connections; returns where to go on.
fn look(worker: &Worker, from: usize, policies: bool) -> Option<usize> {
    let (some, next) = worker.registry.some(from, AT_ONE_GO);
    let snapshot = worker.snapshot();
    for entry in &some {
        look_for_endpoint(entry, &snapshot);
        if policies {
            again(worker, entry);
        }
    }
    next
}

/// Notes whether the connection's endpoint is still in the state.
pub fn look_for_endpoint(entry: &Entry, snapshot: &Snapshot) {
    if let Some(workload) = entry.endpoint() {
        entry.set_orphaned(snapshot.workload_by_uid(&workload.uid).is_none());
    }
}
