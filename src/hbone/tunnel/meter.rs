//! Counts what goes through a tunnel's socket, in plaintext bytes: that is how a silent peer is noticed.
//!
//! And makes the tunnel's task stop reading after [`TURN`], so that its streams take out what has come before more
//! comes: the frames that wait in the HTTP/2 library are those of one turn.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// What is read before the streams get their turn. In frames of one byte each: 13,000.
pub const TURN: usize = 128 * 1024;

#[derive(Debug)]
pub struct Meter {
    received: Cell<u64>,
    sent: Cell<u64>,
    last_received: Cell<Instant>,
    truncated: Cell<bool>,
}

impl Meter {
    /// Bytes that the peer has sent.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Whether the peer's bytes ended without TLS's closing message. Told here because HTTP/2 takes it for a regular end.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.truncated.get()
    }

    /// When the peer was last heard.
    #[must_use]
    pub fn last_received(&self) -> Instant {
        self.last_received.get()
    }
}

/// A stream of bytes whose traffic is counted.
#[derive(Debug)]
pub struct Metered<T> {
    inner: T,
    meter: Rc<Meter>,
    /// Read since others had their turn.
    turn: usize,
}

impl<T> Metered<T> {
    pub fn new(inner: T) -> (Self, Rc<Meter>) {
        let now = Instant::now();
        let meter = Rc::new(Meter {
            received: Cell::new(0),
            sent: Cell::new(0),
            last_received: Cell::new(now),
            truncated: Cell::new(false),
        });
        (Self { inner, meter: Rc::clone(&meter), turn: 0 }, meter)
    }

    fn count_sent(&self, sent: usize) {
        self.meter.sent.set(self.meter.sent.get() + sent as u64);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.turn >= TURN {
            self.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let Poll::Ready(result) = Pin::new(&mut self.inner).poll_read(cx, buffer) else {
            self.turn = 0;
            return Poll::Pending;
        };
        let read = buffer.filled().len() - before;
        self.turn += read;
        if read > 0 {
            self.meter.received.set(self.meter.received.get() + read as u64);
            self.meter.last_received.set(Instant::now());
        }
        if matches!(&result, Err(error) if error.kind() == io::ErrorKind::UnexpectedEof) {
            self.meter.truncated.set(true);
        }
        Poll::Ready(result)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.count_sent(sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, slices))?;
        self.count_sent(sent);
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
