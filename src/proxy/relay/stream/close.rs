//! How the relay of a stream ends: what was received before a reset is handed on before the reset is, and both sides have
//! one deadline for it, `relay.resetFlush`.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::Reason;
use tokio::time::timeout;

use crate::proxy::registry::{Order, State};
use crate::proxy::relay::stall::leave_to_kernel;
use crate::proxy::relay::{Outcome, finish};
use crate::telemetry::{CloseReason, Side};

use super::{InEnd, OutEnd, Relaying};

/// Long enough for an application that is busy with something else.
const STUCK: Duration = Duration::from_secs(300);

impl Relaying<'_> {
    /// Tells both ends how it ended.
    pub(super) async fn close(&mut self, outcome: Outcome) -> Outcome {
        self.watch = None;
        match outcome {
            Outcome::Finished if self.outgoing.end == OutEnd::Stopped => {
                // Closing on unread input is a reset, which must not overtake the bytes before it.
                let mut delivered = std::pin::pin!(finish::acknowledged_unless_stuck(self.socket, self.patience()));
                let reason = match self.entry.unless_killed(delivered.as_mut()).await {
                    Ok(true) => return outcome,
                    Ok(false) => CloseReason::HalfCloseLinger,
                    Err(reason) => reason,
                };
                finish::reset_on_close(self.socket);
                return Outcome::Killed(reason);
            }
            Outcome::Finished => {
                // A socket that was dialled has none before its first second is over.
                let is_dialled = self.side == Side::Downstream;
                if !(is_dialled && self.entry.first_time(Order::KeepAlive)) {
                    leave_to_kernel(self.socket, self.options.keepalive.user_timeout);
                }
                return outcome;
            }
            Outcome::Killed(_) => self.stream.reset(Reason::CANCEL),
            Outcome::TunnelLost { .. } => self.deliver_incoming().await,
            Outcome::Broken { side, .. } if side == self.side => self.deliver_incoming().await,
            Outcome::Broken { .. } => {
                self.deliver_outgoing().await;
                self.stream.reset(Reason::CONNECT_ERROR);
            }
        }
        finish::reset_on_close(self.socket);
        outcome
    }

    /// How long the socket's peer may take nothing: the sweep's linger bounds that, or the kernel; where both are off, this.
    fn patience(&self) -> Option<Duration> {
        let linger = self.entry.settings.relay.half_close_linger;
        (linger.is_none() && self.options.keepalive.user_timeout.is_none()).then_some(STUCK)
    }

    /// The stream is gone: writes what it had received, with its end if there was one, and waits until it has arrived.
    async fn deliver_incoming(&mut self) {
        self.entry.set_state(State::Flushing);
        // Giving up is not an error of its own: the connection already ends with the reason of the reset.
        let _ = timeout(self.options.reset_flush, async {
            if poll_fn(|cx| self.poll_write(cx)).await.is_ok() {
                if self.incoming.end != InEnd::Open {
                    // Fails only when the socket is gone too.
                    let _ = self.send_fin();
                }
                finish::acknowledged(self.socket).await;
            }
        })
        .await;
    }

    /// The socket is gone: sends what it had received, and waits until the tunnel has taken it.
    async fn deliver_outgoing(&mut self) {
        self.entry.set_state(State::Flushing);
        let _ = timeout(self.options.reset_flush, async {
            let read = poll_fn(|cx| {
                self.discard(cx);
                self.poll_outgoing(cx)
            });
            if read.await.is_err() {
                // Nothing more can be read; what was read still goes. If the stream has failed too, this ends at once.
                let taken = poll_fn(|cx| {
                    self.discard(cx);
                    self.stream.poll_taken(cx)
                });
                let _ = taken.await;
            }
        })
        .await;
    }

    /// Takes out what comes for a socket that is gone, so that it does not count against the tunnel.
    fn discard(&mut self, cx: &mut Context<'_>) {
        while self.incoming.end == InEnd::Open {
            match self.stream.poll_receive(cx) {
                Poll::Ready(Ok(Some(bytes))) => self.stream.release(bytes.len()),
                Poll::Ready(Ok(None) | Err(_)) => self.incoming.end = InEnd::Received,
                Poll::Pending => return,
            }
        }
    }
}
