//! Limits on live connections, in all and per door, compared with the live count: when the load falls, the next
//! connection is let in. Shared by all workers; one atomic operation per limit and connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::telemetry::Door;
use crate::telemetry::door::Scope;

#[derive(Debug, Default)]
struct Gauge {
    current: AtomicUsize,
    /// `usize::MAX`: no limit.
    limit: AtomicUsize,
}

/// The counters and their limits; cheap to clone.
#[derive(Debug, Clone)]
pub struct ConnectionLimits(Arc<[Gauge; Scope::ALL.len()]>);

impl Default for ConnectionLimits {
    fn default() -> Self {
        let limits = Self(Arc::default());
        limits.set(|_| None);
        limits
    }
}

impl ConnectionLimits {
    /// Sets each limit; `None` is no limit. Applies to the next connection.
    pub fn set(&self, limit: impl Fn(Scope) -> Option<usize>) {
        for (scope, gauge) in Scope::ALL.into_iter().zip(self.0.iter()) {
            gauge.limit.store(limit(scope).unwrap_or(usize::MAX), Ordering::Relaxed);
        }
    }

    /// (live connections, limit).
    #[must_use]
    pub fn usage(&self, scope: Scope) -> (usize, Option<usize>) {
        let gauge = self.gauge(scope);
        let limit = gauge.limit.load(Ordering::Relaxed);
        (gauge.current.load(Ordering::Relaxed), (limit != usize::MAX).then_some(limit))
    }

    /// Lets a connection in until the returned value is dropped.
    ///
    /// # Errors
    /// The scope whose limit is reached.
    pub fn admit(&self, door: Door) -> Result<Admitted, Scope> {
        let admitted = Admitted { limits: self.clone(), door };
        let mut refused = None;
        for scope in [Scope::Total, door.scope()] {
            let gauge = self.gauge(scope);
            let before = gauge.current.fetch_add(1, Ordering::Relaxed);
            if before >= gauge.limit.load(Ordering::Relaxed) {
                refused.get_or_insert(scope);
            }
        }
        // On refusal the value is dropped, which takes both counts back.
        refused.map_or(Ok(admitted), Err)
    }

    fn gauge(&self, scope: Scope) -> &Gauge {
        &self.0[scope as usize]
    }
}

/// One live connection, counted.
#[derive(Debug)]
pub struct Admitted {
    limits: ConnectionLimits,
    door: Door,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        for scope in [Scope::Total, self.door.scope()] {
            self.limits.gauge(scope).current.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_connection_after_the_load_falls_is_let_in() {
        let limits = ConnectionLimits::default();
        limits.set(|scope| match scope {
            Scope::Total => Some(3),
            Scope::Inbound => Some(1),
            Scope::Outbound | Scope::Socks5 | Scope::Hbone => None,
        });
        let inbound = limits.admit(Door::Inbound).expect("first");
        assert_eq!(limits.admit(Door::Inbound).expect_err("its own limit"), Scope::Inbound);
        let outbound: Vec<_> = (0..2).map(|_| limits.admit(Door::Outbound).expect("room")).collect();
        assert_eq!(limits.admit(Door::Socks5).expect_err("the total"), Scope::Total);
        assert_eq!(limits.usage(Scope::Total), (3, Some(3)));
        assert_eq!(limits.usage(Scope::Outbound), (2, None));
        drop(inbound);
        limits.admit(Door::Socks5).expect("room again");
        drop(outbound);
        assert_eq!(limits.usage(Scope::Total), (0, Some(3)));
    }
}
