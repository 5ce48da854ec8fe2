//! The end of the process, in stages: not ready but still accepting, inbound doors closed, all doors closed, what is left
//! reset, out. Waits for connections and not for a clock; every stage has a deadline.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::{sleep, sleep_until, timeout_at};

use crate::config::settings::Shutdown;
use crate::lifecycle::Phase;
use crate::proxy::worker::Shared;
use crate::telemetry::Door;
use crate::telemetry::door::Scope;

/// How often the live counts are looked at while draining.
const LOOK: Duration = Duration::from_millis(5);
/// The cuts are spread over this last part of the deadline, but no longer than [`LONGEST_WINDOW`].
const WINDOW_PART: u32 = 5;
const LONGEST_WINDOW: Duration = Duration::from_secs(10);
/// What a cut connection may still take to be gone.
const AFTER_CUT: Duration = Duration::from_millis(500);

/// What the end has cost; for the exit log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drained {
    pub(super) took: Duration,
    /// Connections that were open when the drain began.
    pub(super) open: usize,
    /// Connections that were cut.
    pub(super) cut: u64,
}

/// Drains the data path and stops it. `cuts` counts the connections that were cut so far.
pub(super) async fn drain(shared: &Arc<Shared>, settings: &Shutdown, cuts: impl Fn() -> u64) -> Drained {
    let lifecycle = &shared.lifecycle;
    let started = Instant::now();
    let open = live(shared, Scope::Total);
    shared.readiness.block("drain", None);
    lifecycle.advance(Phase::PreDrain);
    tracing::info!(connections = open, pre_drain = ?settings.pre_drain, deadline = ?settings.deadline, "draining");
    if settings.pre_drain > Duration::ZERO && shared.lifecycle.phase() == Phase::PreDrain {
        sleep(settings.pre_drain).await;
    }
    let begun = tokio::time::Instant::now();
    lifecycle.advance(Phase::DrainInbound);
    let window = settings.deadline.map_or(Duration::ZERO, window);
    let force_at = settings.deadline.map(|deadline| begun + deadline.saturating_sub(window));
    let finished = async {
        // First until the doors are closed: whoever still stands in a queue is let in and counts.
        let inward = [Door::Inbound, Door::Hbone];
        let gone = |door: &Door| still_accepting(shared, *door) == 0 && live(shared, door.scope()) == 0;
        wait_until(|| inward.iter().all(gone)).await;
        lifecycle.advance(Phase::DrainAll);
        let closed = || Door::ALL.into_iter().all(|door| still_accepting(shared, door) == 0);
        wait_until(|| closed() && live(shared, Scope::Total) == 0).await;
    };
    match force_at {
        None => finished.await,
        Some(force_at) => {
            if timeout_at(force_at, finished).await.is_err() {
                let until = begun + settings.deadline.unwrap_or_default();
                // Set once; a second drain cannot happen.
                let _ = shared.force_until.set(until.into_std());
                lifecycle.advance(Phase::Forced);
                let _ = timeout_at(until + AFTER_CUT, wait_until(|| live(shared, Scope::Total) == 0)).await;
            }
        }
    }
    lifecycle.advance(Phase::Forced);
    Drained { took: started.elapsed(), open, cut: cuts() }
}

/// How long before the deadline the first connection is cut.
fn window(deadline: Duration) -> Duration {
    (deadline / WINDOW_PART).min(LONGEST_WINDOW)
}

fn live(shared: &Shared, scope: Scope) -> usize {
    shared.limits.usage(scope).0
}

fn still_accepting(shared: &Shared, door: Door) -> usize {
    shared.accepting[door as usize].load(Ordering::Relaxed)
}

async fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        sleep(LOOK).await;
    }
}

/// Returns when it is time to give up on threads that do not end.
pub(super) async fn last_moment(shared: &Shared) {
    let until = shared.force_until.get().copied().unwrap_or_else(Instant::now) + AFTER_CUT;
    sleep_until(until.into()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_spread_over_the_last_part() {
        for (deadline, want) in [(0, 0), (5, 1), (30, 6), (600, 10)] {
            assert_eq!(window(Duration::from_secs(deadline)), Duration::from_secs(want));
        }
    }
}
