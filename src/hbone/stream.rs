//! One connection inside a tunnel: bytes in, bytes out, and how each direction ends.
//!
//! Poll-based, over the HTTP/2 library's halves. What is received counts as held ([`Stream::held`], and the tunnel's
//! gauge) until [`Stream::release`], which alone gives window back to the sender: so a slow reader holds at most one
//! stream window. What is sent needs capacity first; capacity is reserved only by a caller that has something to send
//! and given back by [`Stream::give_back`], so an idle stream keeps none of the tunnel's window from the others.
//!
//! The library resets a stream that is dropped unfinished, with a code of its own choice. Here dropping an unfinished
//! stream says CANCEL; everything else is said by [`Stream::finish`] and [`Stream::reset`].

mod outbox;

pub use outbox::Chunk;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use crate::hbone::io::RECORD_BYTES;
use crate::hbone::tunnel::Lease;
use crate::net::buffers::{self, Buffer};
use crate::telemetry::TunnelEnd;

use outbox::Outbox;

/// What is sent at one go; one frame, if the peer takes those. Large frames cost less: a stream that is alone in its
/// tunnel sends the most, several send less each, so that a round of them all is about as long. With its header a frame
/// fills whole records, and four of those are one packet.
pub const CHUNK_BYTES: usize = 4 * RECORD_BYTES - FRAME_HEADER;
pub const MOST_CHUNK_BYTES: usize = 16 * RECORD_BYTES - FRAME_HEADER;
/// What HTTP/2 puts before each frame.
const FRAME_HEADER: usize = 9;
/// What the library may keep queued for one stream: no more than a stream hands to it.
pub(super) const SEND_BUFFER: usize = MOST_CHUNK_BYTES;
/// Less capacity than this is not worth a frame while others are still queued.
const WORTH_A_FRAME: usize = 16 * 1024;

/// Why a stream is over before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer has all it needs: what it sent is complete, what we would send it does not want.
    #[error("the peer needs nothing more")]
    Stopped,
    #[error("the peer reset the stream: {0}")]
    Reset(Reason),
    /// A rule of HTTP/2 was broken on this stream, so the library has reset it.
    #[error("the stream broke the protocol: {0}")]
    Protocol(Reason),
    #[error("the tunnel was lost")]
    TunnelLost,
}

/// Both halves of a stream, and its part in the tunnel.
#[derive(Debug)]
pub struct Stream {
    send: SendStream<Chunk>,
    receive: RecvStream,
    outbox: Rc<Outbox>,
    /// Bytes received and not released.
    held: usize,
    /// END_STREAM was received.
    ended: bool,
    /// END_STREAM was sent.
    finished: bool,
    /// Capacity is reserved.
    reserved: bool,
    /// Nothing more can be said: it was reset by either side, or lost.
    over: bool,
    /// Dropped last: the tunnel lives as long as its streams.
    pub lease: Lease,
}

impl Stream {
    #[must_use]
    pub fn new(send: SendStream<Chunk>, receive: RecvStream, lease: Lease) -> Self {
        Self {
            send,
            receive,
            outbox: Rc::default(),
            held: 0,
            ended: false,
            finished: false,
            reserved: false,
            over: false,
            lease,
        }
    }

    /// The next bytes, or nothing at the end of the stream. Bytes that came before an error are returned first.
    ///
    /// # Errors
    /// Each way in which a stream is over. Must not be called again then.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        match ready!(self.receive.poll_data(cx)) {
            Some(Ok(bytes)) => {
                self.hold(bytes.len());
                Poll::Ready(Ok(Some(bytes)))
            }
            // Trailers say nothing that TCP could carry; they are an end as well.
            None => {
                self.ended = true;
                Poll::Ready(Ok(None))
            }
            Some(Err(error)) => Poll::Ready(Err(self.failed(&error))),
        }
    }

    /// `count` received bytes have gone on: the peer may send as many more.
    pub fn release(&mut self, count: usize) {
        let count = count.min(self.held);
        self.held -= count;
        self.lease.hold(-change(count));
        // Refused only for bytes that were never received.
        let _ = self.receive.flow_control().release_capacity(count);
    }

    /// Bytes received and not released.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// How many bytes may be sent now, at most one frame. Reserves them, so call it only with bytes at hand.
    ///
    /// # Errors
    /// When the sending half is closed.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
        if !self.outbox.has_room() {
            self.outbox.listen(cx);
            return Poll::Pending;
        }
        let chunk = self.chunk();
        self.send.reserve_capacity(chunk);
        self.reserved = true;
        loop {
            let capacity = self.send.capacity();
            if capacity >= WORTH_A_FRAME || (capacity > 0 && self.outbox.bytes() == 0) {
                return Poll::Ready(Ok(capacity.min(chunk)));
            }
            match self.send.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(StreamError::TunnelLost)),
                Poll::Pending => {
                    self.outbox.listen(cx);
                    return Poll::Pending;
                }
            }
        }
    }

    /// The most that is sent at one go now: between [`CHUNK_BYTES`] and [`MOST_CHUNK_BYTES`].
    fn chunk(&self) -> usize {
        let streams = usize::try_from(self.lease.streams()).unwrap_or(usize::MAX);
        (MOST_CHUNK_BYTES / streams.max(1)).max(CHUNK_BYTES)
    }

    /// Gives unused capacity back to the other streams of the tunnel.
    pub fn give_back(&mut self) {
        if std::mem::take(&mut self.reserved) {
            self.send.reserve_capacity(0);
        }
    }

    /// Queues the first `count` bytes of `buffer`.
    ///
    /// # Errors
    /// When the sending half is closed.
    pub fn send(&mut self, buffer: Buffer, count: usize) -> Result<(), StreamError> {
        let chunk = Chunk::new(&self.outbox, buffer, count);
        self.send.send_data(chunk, false).or(Err(StreamError::TunnelLost))
    }

    /// Sends bytes that are not the connection's own, before any of those, and waits until they are passed on. They do not
    /// count as moved.
    ///
    /// # Errors
    /// When the sending half is closed, or ends meanwhile.
    pub async fn send_first(&mut self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let capacity = poll_fn(|cx| self.poll_capacity(cx)).await?;
            let mut buffer = buffers::lend();
            let (now, later) = bytes.split_at(bytes.len().min(capacity).min(buffer.len()));
            buffer.iter_mut().zip(now).for_each(|(place, byte)| *place = *byte);
            self.send(buffer, now.len())?;
            bytes = later;
        }
        self.give_back();
        poll_fn(|cx| self.poll_taken(cx)).await?;
        let _not_the_connections = self.take_moved();
        Ok(())
    }

    /// Queues END_STREAM: the end of this direction, and of nothing else.
    ///
    /// # Errors
    /// When the sending half is closed.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        if self.finished {
            return Ok(());
        }
        self.give_back();
        self.send.send_data(Chunk::empty(&self.outbox), true).or(Err(StreamError::TunnelLost))?;
        self.finished = true;
        Ok(())
    }

    /// Ready when the library has passed on everything that was queued.
    ///
    /// # Errors
    /// When it has dropped some of it: the stream was reset by the peer, or lost.
    pub fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.outbox.has_dropped() {
            let error = self.reset_by(cx).unwrap_or_else(|| {
                // Of a stream that has ended both ways the library does not say why: a lost tunnel is known here, and
                // all else is a RST_STREAM with some code.
                let lost = self.tunnel_end().is_some();
                if lost { StreamError::TunnelLost } else { StreamError::Reset(Reason::STREAM_CLOSED) }
            });
            return Poll::Ready(Err(self.over(error)));
        }
        if self.outbox.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.outbox.listen(cx);
        Poll::Pending
    }

    /// Bytes that have been passed on since this was last asked.
    #[must_use]
    pub fn take_moved(&self) -> usize {
        self.outbox.take_moved()
    }

    /// While something is queued: wakes the task of `cx` when the library takes more of it.
    pub fn listen(&self, cx: &Context<'_>) {
        if !self.outbox.is_empty() {
            self.outbox.listen(cx);
        }
    }

    /// Bytes that are queued and not passed on.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.outbox.bytes()
    }

    /// Waits for a reset by the peer after its END_STREAM; before that, [`Stream::poll_receive`] tells of it.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.reset_by(cx).map_or(Poll::Pending, Poll::Ready)
    }

    fn reset_by(&mut self, cx: &mut Context<'_>) -> Option<StreamError> {
        let Poll::Ready(result) = self.send.poll_reset(cx) else { return None };
        // A code may be that of a RST_STREAM or of a GOAWAY: the receiving half knows, except of a reset that came
        // after END_STREAM, and that is a RST_STREAM.
        let error = match self.receive.poll_data(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Err(error))) => self.failed(&error),
            _ => match result {
                Ok(reason) => self.over(of_code(reason)),
                Err(_) => self.over(StreamError::TunnelLost),
            },
        };
        Some(error)
    }

    /// Ends both directions at once with this code; drops what is queued. Does nothing to a stream that has ended.
    pub fn reset(&mut self, reason: Reason) {
        if !std::mem::replace(&mut self.over, true) {
            self.send.send_reset(reason);
        }
    }

    /// Why the tunnel has ended, or is about to.
    #[must_use]
    pub fn tunnel_end(&self) -> Option<TunnelEnd> {
        self.lease.cutting().or_else(|| self.lease.end())
    }

    fn hold(&mut self, count: usize) {
        self.held += count;
        self.lease.hold(change(count));
    }

    fn failed(&mut self, error: &h2::Error) -> StreamError {
        let error = match error.reason() {
            Some(reason) if error.is_reset() && error.is_remote() => of_code(reason),
            Some(reason) if error.is_reset() => StreamError::Protocol(reason),
            _ => StreamError::TunnelLost,
        };
        self.over(error)
    }

    fn over(&mut self, error: StreamError) -> StreamError {
        self.over = true;
        if error == StreamError::TunnelLost {
            self.lease.lose();
        }
        error
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.lease.hold(-change(self.held));
        if !(self.ended && self.finished) {
            self.reset(Reason::CANCEL);
        }
    }
}

fn of_code(reason: Reason) -> StreamError {
    if reason == Reason::NO_ERROR { StreamError::Stopped } else { StreamError::Reset(reason) }
}

fn change(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
