//! The relay between a socket and a stream of a tunnel; TCP's semantics, in HTTP/2's words.
//!
//! | the socket | the stream |
//! | --- | --- |
//! | FIN | END_STREAM |
//! | reset | RST_STREAM(CONNECT_ERROR), after everything before it was passed on (at most `reset_flush`) |
//! | reset, after everything before it was delivered and acknowledged | RST_STREAM, or the tunnel is lost |
//! | FIN, and what it still sends is refused as by a closed peer | RST_STREAM(NO_ERROR) |
//! | reset | RST_STREAM(CANCEL): what adit itself ends |
//!
//! Bytes of both directions count as moved when they are handed on: to the socket, or by the HTTP/2 library to the
//! tunnel. What the stream has received is taken out as it comes, so that an end or a reset behind it is known at once,
//! but window is given back only for what the socket took: a slow reader holds at most one stream window. The socket is
//! read only into capacity that the stream already has. While both directions wait, no buffer, capacity or timer is
//! held. A peer that gives no window is full, not gone: the tunnel's PING tells whether it lives.

mod close;
mod inbox;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::hbone::stream::{CHUNK_BYTES, MOST_CHUNK_BYTES};
use crate::hbone::{Stream, StreamError};
use crate::net::buffers;
use crate::net::listen::set_keepalive;
use crate::net::turns::later;
use crate::proxy::registry::{Direction, Entry, Order, State};
use crate::telemetry::{CloseReason, Side, TunnelEnd};

use super::half::{receive, send_vectored};
use super::stall::is_gone;
use super::{Outcome, RelayOptions, reading_from};
use inbox::Inbox;

/// Reads in one poll before other connections of the worker get their turn.
const ROUNDS_PER_POLL: usize = 16;

/// Relays until the connection is over and says how; `side` is where the stream is. Both ends have then been told: the
/// socket and the stream are to be dropped, and nothing else.
pub async fn relay_stream(
    socket: &TcpStream,
    stream: &mut Stream,
    side: Side,
    entry: &Entry,
    options: &RelayOptions,
) -> Outcome {
    entry.set_state(State::Established);
    let from_stream = reading_from(side);
    let mut relaying = Relaying {
        socket,
        stream,
        side,
        entry,
        options,
        incoming: Incoming { direction: from_stream, inbox: Inbox::default(), end: InEnd::Open },
        outgoing: Outgoing { direction: from_stream.opposite(), end: OutEnd::Open, bulk: false },
        watch: None,
        lifted: false,
    };
    let outcome = poll_fn(|cx| relaying.poll(cx)).await;
    // Boxed: an idle connection does not carry the room for its last second.
    let outcome = Box::pin(relaying.close(outcome)).await;
    relaying.count_moved();
    outcome
}

/// Waits for an error event on a socket that is not read.
type Watch<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

struct Relaying<'a> {
    socket: &'a TcpStream,
    stream: &'a mut Stream,
    side: Side,
    entry: &'a Entry,
    options: &'a RelayOptions,
    incoming: Incoming,
    outgoing: Outgoing,
    watch: Option<Watch<'a>>,
    /// The socket's user timeout is off while its peer is full.
    lifted: bool,
}

/// From the stream to the socket.
struct Incoming {
    direction: Direction,
    inbox: Inbox,
    end: InEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InEnd {
    Open,
    /// All has been received.
    Received,
    /// And written.
    Written,
    FinSent,
}

/// From the socket to the stream.
struct Outgoing {
    direction: Direction,
    end: OutEnd,
    /// The last read brought at least an ordinary chunk.
    bulk: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutEnd {
    Open,
    /// The socket has failed: an EOF read from now on is a FIN only if `fin`.
    Broken {
        fin: bool,
    },
    /// Cut short: no END_STREAM may follow.
    Truncated,
    /// END_STREAM is queued.
    Queued,
    /// And passed on.
    Passed,
    /// The peer wants nothing more.
    Stopped,
}

/// What failed.
#[derive(Debug)]
enum Failure {
    Socket(io::Error),
    Stream(StreamError),
}

impl Relaying<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.entry.listen(cx);
        if let Some(reason) = self.entry.killed() {
            return Poll::Ready(Outcome::Killed(reason));
        }
        if let Some(outcome) = self.obey() {
            return Poll::Ready(outcome);
        }
        self.count_moved();
        if let Poll::Ready(Err(failure)) = self.poll_incoming(cx) {
            return Poll::Ready(self.broken(&failure));
        }
        if let Poll::Ready(Err(failure)) = self.poll_outgoing(cx) {
            return Poll::Ready(self.broken(&failure));
        }
        let written = matches!(self.incoming.end, InEnd::Written | InEnd::FinSent);
        if written && self.outgoing.end == OutEnd::Passed {
            return Poll::Ready(Outcome::Finished);
        }
        if self.incoming.end == InEnd::Written
            && let Err(error) = self.send_fin()
        {
            return Poll::Ready(self.broken(&Failure::Socket(error)));
        }
        if self.incoming.end == InEnd::FinSent && self.outgoing.end == OutEnd::Stopped {
            return Poll::Ready(Outcome::Finished);
        }
        self.stream.listen(cx);
        self.watch(cx)
    }

    /// Counts what the tunnel has taken since the last time.
    fn count_moved(&self) {
        self.entry.moved_if_any(self.outgoing.direction, self.stream.take_moved());
    }

    /// Takes what the stream has received and writes what the socket takes. Ready when all is written.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if matches!(self.incoming.end, InEnd::Written | InEnd::FinSent) {
            return Poll::Ready(self.poll_reset(cx));
        }
        if self.incoming.end == InEnd::Received {
            self.poll_reset(cx)?;
        }
        while self.incoming.end == InEnd::Open {
            match self.stream.poll_receive(cx) {
                Poll::Ready(Ok(Some(bytes))) => self.incoming.inbox.push(bytes),
                Poll::Ready(Ok(None)) => self.incoming.end = InEnd::Received,
                Poll::Ready(Err(StreamError::Stopped)) => {
                    self.incoming.end = InEnd::Received;
                    self.stop();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Stream(error))),
                Poll::Pending => break,
            }
        }
        ready!(self.poll_write(cx)).map_err(Failure::Socket)?;
        if self.incoming.end == InEnd::Open {
            return Poll::Pending;
        }
        self.incoming.end = InEnd::Written;
        self.entry.touch();
        self.entry.set_state(State::HalfClosed(self.incoming.direction));
        Poll::Ready(self.poll_reset(cx))
    }

    /// A reset may follow the end of what the peer sends.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        if matches!(self.outgoing.end, OutEnd::Stopped | OutEnd::Passed) {
            return Ok(());
        }
        match self.stream.poll_reset(cx) {
            Poll::Ready(StreamError::Stopped) => self.stop(),
            Poll::Ready(error) => return Err(Failure::Stream(error)),
            Poll::Pending => {}
        }
        Ok(())
    }

    /// The peer has all it needs: nothing more is read for it.
    fn stop(&mut self) {
        if self.outgoing.end != OutEnd::Passed {
            self.outgoing.end = OutEnd::Stopped;
            self.entry.touch();
            self.entry.set_state(State::HalfClosed(self.outgoing.direction));
        }
    }

    /// Writes all that was received.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.incoming.inbox.is_empty() {
            match self.incoming.inbox.write(|slices| send_vectored(self.socket, slices)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.entry.moved(self.incoming.direction, count);
                    self.stream.release(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.entry.blocked(self.incoming.direction);
                    ready!(self.socket.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what the socket has received. Ready when this direction has ended.
    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        for _ in 0..ROUNDS_PER_POLL {
            match self.outgoing.end {
                OutEnd::Open | OutEnd::Broken { .. } => ready!(self.poll_send(cx))?,
                OutEnd::Queued => {
                    ready!(self.stream.poll_taken(cx)).map_err(Failure::Stream)?;
                    self.outgoing.end = OutEnd::Passed;
                    self.entry.touch();
                    self.entry.set_state(State::HalfClosed(self.outgoing.direction));
                }
                OutEnd::Truncated => return self.stream.poll_taken(cx).map_err(Failure::Stream),
                OutEnd::Passed | OutEnd::Stopped => return Poll::Ready(Ok(())),
            }
        }
        later(cx);
        Poll::Pending
    }

    /// One read, into capacity that the stream has.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match self.socket.poll_read_ready(cx) {
            Poll::Ready(result) => result.map_err(Failure::Socket)?,
            Poll::Pending => {
                self.stream.give_back();
                return Poll::Pending;
            }
        }
        let Poll::Ready(capacity) = self.stream.poll_capacity(cx) else {
            // What is queued goes first, and who takes it wakes us. Else: an end needs no capacity, and an empty socket keeps none.
            if self.stream.queued() == 0 {
                match peek(self.socket) {
                    Ok(0) => return Poll::Ready(self.eof()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Ready(Ok(())),
                    Err(error) => return Poll::Ready(Err(Failure::Socket(error))),
                }
            }
            self.entry.blocked(self.outgoing.direction);
            return Poll::Pending;
        };
        let capacity = capacity.map_err(Failure::Stream)?;
        let (mut buffer, most) = match self.outgoing.bulk {
            true => (buffers::lend_large(), MOST_CHUNK_BYTES),
            false => (buffers::lend(), CHUNK_BYTES),
        };
        match receive(self.socket, buffer.get_mut(..capacity.min(most)).unwrap_or_default()) {
            Ok(0) => Poll::Ready(self.eof()),
            Ok(count) => {
                self.outgoing.bulk = count >= CHUNK_BYTES;
                Poll::Ready(self.stream.send(buffer, count).map_err(Failure::Stream))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(Failure::Socket(error))),
        }
    }

    fn eof(&mut self) -> Result<(), Failure> {
        if self.outgoing.end == (OutEnd::Broken { fin: false }) {
            self.stream.give_back();
            self.outgoing.end = OutEnd::Truncated;
            return Ok(());
        }
        self.outgoing.end = OutEnd::Queued;
        self.stream.finish().map_err(Failure::Stream)
    }

    fn send_fin(&mut self) -> io::Result<()> {
        self.incoming.end = InEnd::FinSent;
        self.entry.unsettle(self.incoming.direction, Instant::now());
        match rustix::net::shutdown(self.socket, rustix::net::Shutdown::Write) {
            // The peer has closed already: its reset or FIN is reported where it is read.
            Ok(()) | Err(Errno::NOTCONN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// While nothing is read, because it has ended or because the stream is full, a reset shows only as an error event and
    /// in `SO_ERROR`.
    fn watch(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        if self.outgoing.end == OutEnd::Open && !self.entry.is_blocked(self.outgoing.direction) {
            self.watch = None;
            return Poll::Pending;
        }
        let socket = self.socket;
        let watch = self.watch.get_or_insert_with(|| {
            Box::pin(async {
                // An error here means that the runtime is going away; the kill that comes with it ends the relay.
                let _ = socket.ready(Interest::ERROR).await;
            })
        });
        if watch.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let error = socket.take_error().unwrap_or_else(Some);
        Poll::Ready(self.broken(&Failure::Socket(error.unwrap_or_else(|| Errno::CONNRESET.into()))))
    }

    fn broken(&mut self, failure: &Failure) -> Outcome {
        let (side, errno) = match failure {
            Failure::Socket(error) => {
                let errno = error.raw_os_error();
                if self.outgoing.end == OutEnd::Open {
                    // Linux reports EPIPE when the peer had sent its FIN before it reset; see the relay of two sockets.
                    self.outgoing.end = OutEnd::Broken { fin: errno == Some(Errno::PIPE.raw_os_error()) };
                }
                let side = if self.side == Side::Downstream { Side::Upstream } else { Side::Downstream };
                return Outcome::Broken { side, errno };
            }
            Failure::Stream(StreamError::TunnelLost) => return self.tunnel_lost(),
            Failure::Stream(StreamError::Protocol(_)) => (self.side, Errno::PROTO),
            Failure::Stream(StreamError::Reset(_) | StreamError::Stopped) => (self.side, Errno::CONNRESET),
        };
        Outcome::Broken { side, errno: Some(errno.raw_os_error()) }
    }

    /// What we have ended ourselves has its own reason.
    fn tunnel_lost(&self) -> Outcome {
        match self.stream.tunnel_end() {
            Some(TunnelEnd::Revoked) => Outcome::Killed(CloseReason::PeerRevoked),
            Some(TunnelEnd::Untrusted) => Outcome::Killed(CloseReason::PeerUntrusted),
            Some(TunnelEnd::Drain) => Outcome::Killed(CloseReason::Drain),
            _ => Outcome::TunnelLost { side: self.side },
        }
    }

    /// Does what the sweep has asked for.
    fn obey(&mut self) -> Option<Outcome> {
        if self.entry.take_order(Order::KeepAlive) && self.side == Side::Downstream {
            // A downstream socket has inherited its values. One that is gone by now will say so when used.
            let _ = set_keepalive(&SockRef::from(self.socket), self.options.keepalive);
        }
        if !self.entry.take_order(Order::CheckStall) {
            return None;
        }
        // What the tunnel has taken is its own.
        self.entry.settled(self.outgoing.direction);
        let (direction, user_timeout) = (self.incoming.direction, self.options.keepalive.user_timeout);
        let gone = is_gone(self.socket, self.entry, direction, &mut self.lifted, user_timeout);
        gone.then(|| self.broken(&Failure::Socket(Errno::TIMEDOUT.into())))
    }
}

/// How many bytes a read of one would find.
fn peek(socket: &TcpStream) -> io::Result<usize> {
    socket.try_io(Interest::READABLE, || {
        Ok(rustix::net::recv(socket, &mut [0][..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?.1)
    })
}
