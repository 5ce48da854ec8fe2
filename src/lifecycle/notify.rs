//! What the service manager is told (systemd's `sd_notify`), when there is one: `NOTIFY_SOCKET`. A message that cannot be
//! sent is lost; nothing waits for it.

use std::time::Duration;

use sd_notify::NotifyState;

/// This process serves, and is the one to watch from now on, whoever was before.
pub fn ready() {
    tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id()), NotifyState::Status("accepting connections")]);
}

/// Settings and state are being read again; [`reloaded`] must follow.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

pub fn reloaded() {
    tell(&[NotifyState::Ready]);
}

/// The end has begun and takes `within` at most; nothing: as long as the last connection lasts.
pub fn stopping(connections: usize, within: Option<Duration>) {
    let status = format!("draining, {connections} connections at the beginning");
    let within = within.and_then(|within| u32::try_from(within.as_micros()).ok());
    let mut states = vec![NotifyState::Stopping, NotifyState::Status(&status)];
    // Longer than the unit may have said.
    states.extend(within.map(NotifyState::ExtendTimeoutUsec));
    tell(&states);
}

/// In words, for `systemctl status`.
pub fn status(words: &str) {
    tell(&[NotifyState::Status(words)]);
}

/// How often [`alive`] is expected, if at all.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|period| !period.is_zero())
}

/// This process is well.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
