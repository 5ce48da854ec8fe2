//! What the service manager is told (systemd's `sd_notify`), when there is one: `NOTIFY_SOCKET`. Nothing waits for it: the
//! library's own way to send would, while the manager's queue is full.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

/// How often, and how many times, what could not be sent is sent again.
const RETRY_AFTER: Duration = Duration::from_millis(100);
const RETRIES: u32 = 50;

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

/// The end has begun.
pub fn stopping(connections: usize) {
    let status = format!("draining, {connections} connections at the beginning");
    tell(&[NotifyState::Stopping, NotifyState::Status(&status)]);
}

/// It is still at it: the unit's limits of time end `by` from now at the earliest.
pub fn extend(by: Duration) {
    tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(by.as_micros()).unwrap_or(u32::MAX))]);
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

/// Sends at once, and for some seconds again while the other side does not read: a manager that has much to do must hear of it,
/// and must not hold up what it manages.
fn tell(states: &[NotifyState<'_>]) {
    let Some(address) = address() else { return };
    let message: String = states.iter().map(|state| format!("{state}\n")).collect();
    match send(&address, &message) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            tokio::task::spawn_local(async move {
                for _ in 0..RETRIES {
                    tokio::time::sleep(RETRY_AFTER).await;
                    if !send(&address, &message).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                        return;
                    }
                }
                tracing::warn!("the service manager does not read what it is told");
            });
        }
        Err(error) => tracing::debug!(%error, "the service manager cannot be told"),
        Ok(()) => {}
    }
}

fn send(address: &SocketAddr, message: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message.as_bytes(), address)?;
    Ok(())
}

/// A path, or a name of the abstract kind.
fn address() -> Option<SocketAddr> {
    let given = std::env::var_os("NOTIFY_SOCKET")?;
    match given.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name).ok(),
        None => SocketAddr::from_pathname(&given).ok(),
    }
}
