//! The sweep: what a worker does for all its connections several times a second, so that none of them holds a timer.
//!
//! Idle and linger limits, maximum age, keepalive for those that outlive their first second, peers that may have stopped
//! reading, and publishing byte counts while they flow. A connection is only woken when there is something for it to do:
//! to see whether its peers read, once in half the user timeout while bytes flow, once more after they have stopped.

use std::time::{Duration, Instant};

use crate::config::settings::{OnEndpointRemoved, Settings};
use crate::proxy::account;
use crate::proxy::registry::{Direction, Entry, Order, State};
use crate::telemetry::CloseReason;

/// Between two sweeps while there are connections: the precision of `relay.halfCloseLinger`.
pub const TICK: Duration = Duration::from_millis(250);
/// Between two sweeps of an idle worker: its heartbeat.
pub const IDLE_TICK: Duration = Duration::from_secs(1);
/// Connections that end sooner never pay for keepalive options.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(1);

/// Looks after one connection, by the settings that it was accepted under.
pub fn sweep(entry: &Entry, now: Instant) {
    account::publish_bytes(entry);
    let settings = &entry.settings;
    if let Some(reason) = expired(entry, settings, now) {
        entry.kill(reason);
        return;
    }
    if matches!(entry.state(), State::Opening | State::Connecting) {
        return;
    }
    if now.saturating_duration_since(entry.accepted) >= KEEPALIVE_AFTER && entry.first_time(Order::KeepAlive) {
        entry.order(Order::KeepAlive);
    }
    let patience = settings.keepalive.user_timeout.map_or(Duration::from_secs(15), |timeout| timeout / 2);
    // What fits into the kernel's buffer blocks nothing, and its peer can have a closed window all the same.
    let stalled = Direction::BOTH.into_iter().any(|direction| {
        entry.blocked_for(direction, now).max(entry.unsettled_for(direction, now)).is_some_and(|time| time >= patience)
    });
    if stalled {
        entry.order(Order::CheckStall);
    }
}

/// Whether a limit of time has run out.
fn expired(entry: &Entry, settings: &Settings, now: Instant) -> Option<CloseReason> {
    let idle = entry.idle(now);
    let over = |limit: Option<Duration>, value: Duration| limit.is_some_and(|limit| value >= limit);
    if matches!(entry.state(), State::HalfClosed(_)) && over(settings.relay.half_close_linger, idle) {
        return Some(CloseReason::HalfCloseLinger);
    }
    if matches!(entry.state(), State::Established | State::HalfClosed(_)) && over(settings.relay.idle_timeout, idle) {
        return Some(CloseReason::IdleTimeout);
    }
    let removed = match settings.on_endpoint_removed {
        OnEndpointRemoved::Keep => None,
        OnEndpointRemoved::Drain(time) => Some(time),
        OnEndpointRemoved::Close => Some(Duration::ZERO),
    };
    if let (Some(time), Some(orphaned)) = (removed, entry.orphaned_for(now))
        && orphaned >= time
    {
        return Some(CloseReason::EndpointRemoved);
    }
    let age = now.saturating_duration_since(entry.accepted);
    // Up to a tenth later, by id, so that connections made together do not all end together.
    let max_age = settings.relay.max_age.map(|age| age + age.mul_f64(f64::from(entry.jitter()) / 2560.0));
    over(max_age, age).then_some(CloseReason::MaxAge)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::net::address::PeerAddr;
    use crate::proxy::registry::{Registered, Registry};
    use crate::telemetry::Door;

    fn entry_with(state: State, settings: Rc<Settings>) -> Registered {
        let registry = Rc::new(Registry::new(0));
        let entry = registry.register(Door::Outbound, PeerAddr::new("10.0.0.1:1".parse().expect("address")), settings);
        entry.set_state(state);
        entry
    }

    fn entry(state: State) -> Registered {
        entry_with(state, Rc::default())
    }

    fn after(seconds: f64) -> Instant {
        Instant::now() + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn limits_of_time_apply_in_their_state_only() {
        let mut settings = Settings::default();
        settings.relay.half_close_linger = Some(Duration::from_secs(2));
        let cases = [
            (State::HalfClosed(Direction::Up), 1.5, None),
            (State::HalfClosed(Direction::Up), 2.1, Some(CloseReason::HalfCloseLinger)),
            (State::Established, 1000.0, None),
            (State::Flushing, 1000.0, None),
        ];
        for (state, seconds, want) in cases {
            assert_eq!(expired(&entry(state), &settings, after(seconds)), want, "{state:?} {seconds}");
        }
        settings.relay.idle_timeout = Some(Duration::from_secs(1));
        assert_eq!(expired(&entry(State::Established), &settings, after(1.1)), Some(CloseReason::IdleTimeout));
        settings.relay.idle_timeout = None;
        settings.relay.max_age = Some(Duration::from_secs(10));
        assert_eq!(expired(&entry(State::Established), &settings, after(9.0)), None);
        assert_eq!(expired(&entry(State::Established), &settings, after(11.1)), Some(CloseReason::MaxAge));
    }

    #[test]
    fn a_connection_whose_endpoint_is_gone() {
        let mut settings = Settings::default();
        let entry = entry(State::Established);
        let mut at = |removed, seconds| {
            settings.on_endpoint_removed = removed;
            expired(&entry, &settings, after(seconds))
        };
        let drain = OnEndpointRemoved::Drain(Duration::from_secs(5));
        assert_eq!(at(OnEndpointRemoved::Close, 1000.0), None, "it is there");
        entry.set_orphaned(true);
        assert_eq!(at(OnEndpointRemoved::Keep, 1000.0), None);
        assert_eq!((at(drain, 4.9), at(drain, 5.1)), (None, Some(CloseReason::EndpointRemoved)));
        assert_eq!(at(OnEndpointRemoved::Close, 0.1), Some(CloseReason::EndpointRemoved));
        entry.set_orphaned(false);
        assert_eq!(at(OnEndpointRemoved::Close, 1000.0), None, "it has come back");
    }

    #[test]
    fn traffic_pushes_the_linger_out() {
        let mut settings = Settings::default();
        settings.relay.half_close_linger = Some(Duration::from_secs(2));
        let entry = entry(State::HalfClosed(Direction::Up));
        entry.moved(Direction::Down, 1);
        assert_eq!(expired(&entry, &settings, after(1.9)), None);
    }

    #[test]
    fn keepalive_is_ordered_once_after_a_second() {
        let entry = entry(State::Established);
        sweep(&entry, after(0.5));
        assert!(!entry.take_order(Order::KeepAlive));
        sweep(&entry, after(1.5));
        assert!(entry.take_order(Order::KeepAlive));
        sweep(&entry, after(2.5));
        assert!(!entry.take_order(Order::KeepAlive));
        assert!(!entry.take_order(Order::CheckStall), "nothing was written");
    }

    #[test]
    fn what_may_be_unacknowledged_is_looked_at_until_it_is_settled() {
        for direction in Direction::BOTH {
            let entry = entry(State::Established);
            let ordered = |seconds| {
                sweep(&entry, after(seconds));
                entry.take_order(Order::CheckStall)
            };
            entry.moved(direction, 1);
            assert_eq!([0.1, 9.0, 20.0, 20.1].map(ordered), [false, false, true, true], "{direction:?}");
            // Bytes that follow do not push the look out: the window may have closed before them.
            entry.moved(direction, 1);
            assert!(ordered(20.0));
            entry.settling(direction, after(20.0));
            assert_eq!([20.1, 29.0, 40.0].map(ordered), [false, false, true]);
            entry.settled(direction);
            assert!(!ordered(100.0));
            entry.blocked(direction);
            assert_eq!([0.1, 20.0].map(ordered), [false, true]);
        }
    }
}
