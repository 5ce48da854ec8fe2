//! Relay: carries bytes both ways between two established sockets with TCP's own semantics; `stream` does it between
//! a socket and a stream of a tunnel.
//!
//! In: both streams, the connection's [`Entry`], the worker's [`Pool`]. Out: an [`Outcome`]; when it returns, dropping
//! the sockets ends the connection as it should.
//!
//! - A half that ends by FIN ends the other side's half by FIN; the other direction goes on until it ends too or, in
//!   silence, until the sweep's linger cuts it.
//! - A reset is relayed as a reset, after everything that was received before it has been written and acknowledged
//!   (at most `reset_flush`); a direction that had ended by FIN stays a clean end.
//! - Whatever adit itself ends is a reset.
//! - No buffer, pipe or timer is held while both directions wait for bytes.

mod finish;
mod half;
mod stall;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use finish::{reset, say_goodbye};
pub use stream::relay_stream;

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::io::Errno;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::config::Settings;
use crate::config::settings::Keepalive;
use crate::net::listen::set_keepalive;
use crate::proxy::pool::Pool;
use crate::proxy::registry::{Direction, Entry, Order, State};
use crate::telemetry::{CloseReason, Side};

use half::{Half, HalfError};
use stall::is_gone;

/// What the relay needs of the settings; read once, when the connection is established.
#[derive(Debug, Clone, Copy)]
pub struct RelayOptions {
    pub zero_copy: bool,
    /// How long delivering and acknowledging may take after a reset.
    pub reset_flush: Duration,
    pub keepalive: Keepalive,
}

impl RelayOptions {
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        Self {
            zero_copy: settings.relay.zero_copy,
            reset_flush: settings.relay.reset_flush,
            keepalive: settings.keepalive,
        }
    }
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Both directions ended by FIN.
    Finished,
    /// One side's socket or stream failed.
    Broken { side: Side, errno: Option<i32> },
    /// The tunnel ended under the stream that was this side.
    TunnelLost { side: Side },
    /// adit ended it.
    Killed(CloseReason),
}

impl Outcome {
    /// The word for logs and metrics.
    #[must_use]
    pub fn close_reason(self) -> CloseReason {
        let (side, errno) = match self {
            Self::Finished => return CloseReason::Finished,
            Self::Killed(reason) => return reason,
            Self::TunnelLost { side: Side::Downstream } => return CloseReason::TunnelGone,
            Self::TunnelLost { .. } => return CloseReason::TunnelLost,
            Self::Broken { side, errno } => (side, errno),
        };
        let down = matches!(side, Side::Downstream);
        let is = |errnos: &[Errno]| errnos.iter().any(|known| errno == Some(known.raw_os_error()));
        if is(&[Errno::CONNRESET, Errno::PIPE]) {
            if down { CloseReason::DownstreamReset } else { CloseReason::UpstreamReset }
        } else if is(&[Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::NETUNREACH]) {
            if down { CloseReason::DownstreamUserTimeout } else { CloseReason::UpstreamUserTimeout }
        } else if down {
            CloseReason::DownstreamError
        } else {
            CloseReason::UpstreamError
        }
    }
}

/// Both sockets of a connection. Closed by dropping after [`relay`].
#[derive(Debug)]
pub struct Sockets {
    pub downstream: TcpStream,
    pub upstream: TcpStream,
}

/// Relays until the connection is over and says how; the sockets are then to be dropped, and nothing else.
pub async fn relay(sockets: &Sockets, entry: &Entry, pool: &Rc<Pool>, options: &RelayOptions) -> Outcome {
    let Sockets { downstream, upstream } = sockets;
    entry.set_state(State::Established);
    let mut relaying = Relaying {
        halves: [
            Half::new(Direction::Up, downstream, upstream, options.zero_copy),
            Half::new(Direction::Down, upstream, downstream, options.zero_copy),
        ],
        watches: [None, None],
        lifted: [false, false],
        entry,
        pool,
        options,
    };
    let outcome = poll_fn(|cx| relaying.poll(cx)).await;
    if let Outcome::Broken { side, .. } = outcome {
        entry.set_state(State::Flushing);
        relaying.watches = [None, None];
        let half = &mut relaying.halves[reading_from(side).index()];
        // Boxed: an idle connection does not carry the room for its last second.
        Box::pin(finish::deliver(half, entry, pool, options.reset_flush)).await;
    }
    if outcome == Outcome::Finished {
        stall::leave_to_kernel(downstream, options.keepalive.user_timeout);
        if !entry.first_time(Order::KeepAlive) {
            stall::leave_to_kernel(upstream, options.keepalive.user_timeout);
        }
    } else {
        finish::reset_on_close(downstream);
        finish::reset_on_close(upstream);
    }
    outcome
}

/// The direction whose bytes come from `side`.
fn reading_from(side: Side) -> Direction {
    if matches!(side, Side::Downstream) { Direction::Up } else { Direction::Down }
}

/// Waits for an error event on a socket that is not read; boxed, because few connections are half closed or blocked for
/// long.
type Watch<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

struct Relaying<'a> {
    halves: [Half<'a>; 2],
    /// By the direction whose reading socket is watched.
    watches: [Option<Watch<'a>>; 2],
    /// By the direction whose writing socket had its user timeout lifted.
    lifted: [bool; 2],
    entry: &'a Entry,
    pool: &'a Rc<Pool>,
    options: &'a RelayOptions,
}

impl<'a> Relaying<'a> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.entry.listen(cx);
        if let Some(reason) = self.entry.killed() {
            return Poll::Ready(Outcome::Killed(reason));
        }
        if let Some(outcome) = self.obey() {
            return Poll::Ready(outcome);
        }
        for direction in Direction::BOTH {
            let half = &mut self.halves[direction.index()];
            if half.ended() {
                continue;
            }
            match half.poll(cx, self.entry, self.pool) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => {
                    self.entry.touch();
                    self.entry.set_state(State::HalfClosed(direction));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(self.broken(direction, &error)),
            }
        }
        if self.halves.iter().all(Half::ended) {
            return Poll::Ready(Outcome::Finished);
        }
        // Only now, when everything that is there has been moved: a half that ended needs its FIN sent at once.
        for direction in Direction::BOTH {
            if self.halves[direction.index()].ended() {
                if let Err(error) = self.halves[direction.index()].send_fin(self.entry) {
                    return Poll::Ready(self.broken(direction, &HalfError::Write(error)));
                }
            } else if !self.entry.is_blocked(direction) {
                self.watches[direction.index()] = None;
                continue;
            }
            if let Poll::Ready(outcome) = self.watch(direction, cx) {
                return Poll::Ready(outcome);
            }
        }
        Poll::Pending
    }

    /// What is not read, because it has ended or because the other side takes nothing, tells of a reset only by an error
    /// event and in `SO_ERROR`.
    fn watch(&mut self, direction: Direction, cx: &mut Context<'_>) -> Poll<Outcome> {
        let socket: &'a TcpStream = self.halves[direction.index()].from;
        let watch = self.watches[direction.index()].get_or_insert_with(|| {
            Box::pin(async {
                // An error here means that the runtime is going away; the kill that comes with it ends the relay.
                let _ = socket.ready(Interest::ERROR).await;
            })
        });
        if watch.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let error = socket.take_error().unwrap_or_else(Some);
        Poll::Ready(self.broken(direction, &HalfError::Read(error.unwrap_or_else(|| Errno::CONNRESET.into()))))
    }

    /// Which side's socket failed when the half of `direction` met `error`.
    fn broken(&mut self, direction: Direction, error: &HalfError) -> Outcome {
        let (side, error) = match (direction, error) {
            (Direction::Up, HalfError::Read(error)) | (Direction::Down, HalfError::Write(error)) => {
                (Side::Downstream, error)
            }
            (Direction::Down, HalfError::Read(error)) | (Direction::Up, HalfError::Write(error)) => {
                (Side::Upstream, error)
            }
        };
        // Linux reports EPIPE instead of ECONNRESET when the peer had sent its FIN before it reset: then an EOF that is
        // still to be read is a real one. Otherwise an EOF read from a broken socket only says that it is gone.
        let fin_came_first = error.raw_os_error() == Some(Errno::PIPE.raw_os_error());
        self.halves[reading_from(side).index()].broken(fin_came_first);
        Outcome::Broken { side, errno: error.raw_os_error() }
    }

    /// Does what the sweep has asked for.
    fn obey(&mut self) -> Option<Outcome> {
        if self.entry.take_order(Order::KeepAlive) {
            // The downstream socket has inherited its values. A socket that is gone by now will say so when used.
            let _ = set_keepalive(&SockRef::from(self.halves[0].to), self.options.keepalive);
        }
        if !self.entry.take_order(Order::CheckStall) {
            return None;
        }
        Direction::BOTH.into_iter().find_map(|direction| self.check_stall(direction))
    }

    /// For half the user timeout a write has been blocked, or what was written may be unacknowledged.
    fn check_stall(&mut self, direction: Direction) -> Option<Outcome> {
        let index = direction.index();
        let user_timeout = self.options.keepalive.user_timeout;
        let gone = is_gone(self.halves[index].to, self.entry, direction, &mut self.lifted[index], user_timeout);
        gone.then(|| self.broken(direction, &HalfError::Write(Errno::TIMEDOUT.into())))
    }
}
