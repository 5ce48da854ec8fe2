//! Accept: takes connections from one listening socket and starts a task for each. Begins when there is a state to judge
//! them by, never before (fails closed). Ends only on drain.
//!
//! Errors by class: a connection that was gone before it was accepted is skipped; when descriptors or memory run out it
//! waits a moment, is not ready meanwhile, and heals by itself; anything else is logged and waited for likewise. Beyond
//! a limit, connections are reset at once and counted.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::time::sleep;

use crate::config::settings::Keepalive;
use crate::lifecycle::Phase;
use crate::net::address::PeerAddr;
use crate::net::adopt::take_up;
use crate::net::descriptors::Lent;
use crate::net::listen::{ListenOptions, set_keepalive};
use crate::proxy::carry;
use crate::proxy::relay::reset;
use crate::proxy::worker::{Accepted, Command, Worker, hand_over_to};
use crate::telemetry::Door;

/// Pause when the system has nothing left to accept with.
const BACK_OFF: Duration = Duration::from_millis(100);
/// At most one line about it in this time.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Descriptors that each connection needs: both sockets. A tunnel has one, and each stream in it takes one for itself.
const fn descriptors(door: Door) -> usize {
    match door {
        Door::Hbone => 1,
        Door::Outbound | Door::Inbound | Door::Socks5 => 2,
    }
}

/// What an `accept` error means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AcceptError {
    /// This one connection is gone.
    Skip,
    /// Descriptors, buffers or memory.
    Exhausted,
    Unexpected,
}

fn classify(error: &io::Error) -> AcceptError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(
            Errno::CONNABORTED
            | Errno::INTR
            | Errno::PROTO
            | Errno::NETDOWN
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH
            | Errno::PERM,
        ) => AcceptError::Skip,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => AcceptError::Exhausted,
        _ => AcceptError::Unexpected,
    }
}

/// Accepts at `door` from when the process is ready until the door closes.
pub async fn accept(
    worker: &Rc<Worker>,
    door: Door,
    listener: Arc<std::net::TcpListener>,
    adopted: Option<ListenOptions>,
) {
    #[expect(deprecated, reason = "the descriptor of a listener stays the same for as long as it lives")]
    let watched = AsyncFd::with_interest(listener, Interest::READABLE);
    let listener = match watched {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(listener = door.as_str(), %error, "the listener cannot be used");
            return;
        }
    };
    worker.shared.lifecycle.reached(Phase::Ready).await;
    if !worker.shared.lifecycle.may_accept() {
        // Told to stop before there was a state: an empty one would let through what the real one refuses. Whoever waits
        // is reset as the socket closes.
        return;
    }
    if let Some(options) = adopted
        && let Err((step, error)) = take_up(listener.get_ref(), options)
    {
        tracing::error!(listener = door.as_str(), step, %error, "an option of the listener cannot be set");
    }
    // The worker's own loop follows the state too, but need not have had its turn.
    worker.follow(Arc::clone(&worker.shared.snapshot.borrow()));
    let keepalive = worker.settings().keepalive;
    let mut acceptor = Acceptor { worker, door, listener, exhausted: false, keepalive };
    while let Some((stream, peer, lent)) = acceptor.next().await {
        admit(worker, door, stream, peer, lent);
    }
    acceptor.accept_the_rest().await;
}

/// Want of descriptors or memory, as all acceptors of the process share it.
#[derive(Debug, Default)]
pub struct Exhaustion {
    /// How many suffer from it.
    acceptors: AtomicUsize,
    /// When it was last said: milliseconds since the start of the process and one more, 0 for never.
    said: AtomicU64,
    /// Whether it was said since the last time that all was well.
    told: AtomicBool,
}

impl Exhaustion {
    /// Whether a line about it is due, `now` after the start of the process.
    fn may_say(&self, now: Duration) -> bool {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let now = millis(now).saturating_add(1);
        let before = self.said.load(Ordering::Relaxed);
        let due = before == 0 || now.saturating_sub(before) >= millis(LINE_EVERY);
        due && self.said.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

struct Acceptor<'a> {
    worker: &'a Rc<Worker>,
    door: Door,
    listener: AsyncFd<Arc<std::net::TcpListener>>,
    exhausted: bool,
    /// What the listening socket passes on to the connections it accepts.
    keepalive: Keepalive,
}

impl Acceptor<'_> {
    /// The next connection, or `None` when the door closes.
    async fn next(&mut self) -> Option<(TcpStream, SocketAddr, Lent)> {
        loop {
            consume_budget().await;
            let worker = self.worker;
            let waiting = tokio::select! {
                biased;
                () = worker.closing(self.door) => return None,
                ready = self.listener.readable() => ready,
            };
            let error = match waiting {
                Ok(mut waiting) => {
                    // Only now: a door that nobody stands at holds none, however many there are.
                    let Some(lent) = worker.shared.budget.take(descriptors(self.door)) else {
                        self.back_off(&Errno::MFILE.into()).await?;
                        continue;
                    };
                    match waiting.try_io(|listener| take_one(listener.get_ref())) {
                        Ok(Ok((stream, peer))) => {
                            self.healed();
                            self.follow_keepalive(&stream);
                            return Some((stream, peer, lent));
                        }
                        Ok(Err(error)) => error,
                        // When nobody waits to be accepted, nothing is wanting any more: a process that is not ready
                        // gets no connection to heal by.
                        Err(_nobody) => {
                            self.healed();
                            continue;
                        }
                    }
                }
                Err(error) => error,
            };
            match classify(&error) {
                AcceptError::Skip => {}
                AcceptError::Exhausted | AcceptError::Unexpected => self.back_off(&error).await?,
            }
        }
    }

    /// After a reload the values differ from those that the socket has inherited.
    fn follow_keepalive(&mut self, accepted: &TcpStream) {
        let wanted = self.worker.settings().keepalive;
        if wanted == self.keepalive {
            return;
        }
        let listener = set_keepalive(&SockRef::from(self.listener.get_ref()), wanted);
        if let Err(error) = listener.and_then(|()| set_keepalive(&SockRef::from(accepted), wanted)) {
            tracing::warn!(listener = self.door.as_str(), %error, "cannot set the new keepalive");
        }
        self.keepalive = wanted;
    }

    /// Waits a moment; `None` when the door closes meanwhile.
    async fn back_off(&mut self, error: &io::Error) -> Option<()> {
        let shared = &self.worker.shared;
        self.worker.counters.accept_backoff();
        if !std::mem::replace(&mut self.exhausted, true)
            && shared.exhaustion.acceptors.fetch_add(1, Ordering::Relaxed) == 0
        {
            shared.readiness.block("descriptors", Some(error.to_string()));
        }
        if shared.exhaustion.may_say(shared.started.elapsed()) {
            shared.exhaustion.told.store(true, Ordering::Relaxed);
            tracing::warn!(listener = self.door.as_str(), %error, "cannot accept; waiting for descriptors or memory");
        }
        tokio::select! {
            () = self.worker.closing(self.door) => { self.healed(); None }
            () = sleep(BACK_OFF) => Some(()),
        }
    }

    fn healed(&mut self) {
        let shared = &self.worker.shared;
        let exhaustion = &shared.exhaustion;
        if std::mem::take(&mut self.exhausted) && exhaustion.acceptors.fetch_sub(1, Ordering::Relaxed) == 1 {
            shared.readiness.clear("descriptors");
            if exhaustion.told.swap(false, Ordering::Relaxed) {
                tracing::info!(listener = self.door.as_str(), "accepting again");
            }
        }
    }

    /// The kernel has completed these handshakes already; closing the socket now would reset them, unless another process has
    /// it, too. It is asked itself: what
    /// the runtime knows of the socket may be older than they are. Where descriptors are wanting it waits for some, until
    /// connections are cut.
    async fn accept_the_rest(&self) {
        let shared = &self.worker.shared;
        while shared.lifecycle.phase() < Phase::Forced {
            consume_budget().await;
            let Some(lent) = shared.budget.take(descriptors(self.door)) else {
                sleep(BACK_OFF).await;
                continue;
            };
            match take_one(self.listener.get_ref()) {
                Ok((stream, peer)) => admit(self.worker, self.door, stream, peer, lent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => match classify(&error) {
                    AcceptError::Skip => {}
                    AcceptError::Exhausted => sleep(BACK_OFF).await,
                    AcceptError::Unexpected => return,
                },
            }
        }
    }
}

/// Accepts whoever waits; `WouldBlock` when nobody does.
fn take_one(listener: &std::net::TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (socket, peer) = acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    // A TCP socket has a peer with an address, or is gone.
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(Errno::CONNABORTED)?;
    Ok((TcpStream::from_std(std::net::TcpStream::from(socket))?, peer))
}

/// Lets the connection in, on this worker or on one with less to do, or resets it.
fn admit(worker: &Rc<Worker>, door: Door, stream: TcpStream, peer: SocketAddr, lent: Lent) {
    let admitted = match worker.shared.limits.admit(door) {
        Ok(admitted) => admitted,
        Err(scope) => {
            worker.counters.refused(scope);
            reset(stream);
            if worker.admit_line(door) {
                tracing::warn!(listener = door.as_str(), scope = scope.as_str(), "connection refused: limit reached");
            }
            return;
        }
    };
    let accepted = Accepted { door, stream, peer: PeerAddr::new(peer), admitted, lent };
    match hand_over_to(&worker.shared.posts, worker.index) {
        None => carry(worker, accepted),
        Some(other) => hand_over(worker, accepted, other),
    }
}

fn hand_over(worker: &Rc<Worker>, accepted: Accepted<TcpStream>, other: usize) {
    let Accepted { door, stream, peer, admitted, lent } = accepted;
    // Reserved first, so that a full queue costs nothing: then it stays here.
    let Ok(permit) = worker.shared.posts[other].commands.try_reserve() else {
        carry(worker, Accepted { door, stream, peer, admitted, lent });
        return;
    };
    match stream.into_std() {
        Ok(stream) => {
            worker.shared.posts[other].load.fetch_add(1, Ordering::Relaxed);
            permit.send(Command::Carry(Box::new(Accepted { door, stream, peer, admitted, lent })));
        }
        Err(error) => tracing::warn!(%error, "a connection was lost between two workers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_five_seconds_whoever_asks() {
        let exhaustion = Exhaustion::default();
        let said = |millis| exhaustion.may_say(Duration::from_millis(millis));
        assert_eq!([0, 1, 4999, 5000, 5001, 9999, 10_000].map(said), [true, false, false, true, false, false, true]);
    }

    #[test]
    fn accept_errors_by_class() {
        for (errno, want) in [
            (Errno::CONNABORTED, AcceptError::Skip),
            (Errno::INTR, AcceptError::Skip),
            (Errno::MFILE, AcceptError::Exhausted),
            (Errno::NFILE, AcceptError::Exhausted),
            (Errno::NOBUFS, AcceptError::Exhausted),
            (Errno::NOMEM, AcceptError::Exhausted),
            (Errno::INVAL, AcceptError::Unexpected),
        ] {
            assert_eq!(classify(&errno.into()), want, "{errno:?}");
        }
    }
}
