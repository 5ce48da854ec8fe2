//! Counts what goes through a tunnel's socket, in plaintext bytes: that is how a silent peer is noticed.
//!
//! And makes the tunnel's task stop reading after [`TURN`], so that its streams take out what has come before more
//! comes: the frames that wait in the HTTP/2 library are those of one turn. And after [`TURN_TIME`]: small frames, which a
//! peer can send without end, cost a hundred times as much per byte as large ones. Then it waits until the worker has
//! looked at all its sockets ([`later`]).

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::net::turns::later;

/// What is read before the streams get their turn. In frames of one byte each: 13,000.
pub const TURN: usize = 128 * 1024;

/// How long a turn may take. One of large frames takes a tenth of it.
const TURN_TIME: Duration = Duration::from_millis(1);

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
    /// Read since others had their turn, and since when.
    turn: usize,
    turn_began: Option<Instant>,
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
        (Self { inner, meter: Rc::clone(&meter), turn: 0, turn_began: None }, meter)
    }

    fn count_sent(&self, sent: usize) {
        self.meter.sent.set(self.meter.sent.get() + sent as u64);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let now = Instant::now();
        let began = *self.turn_began.get_or_insert(now);
        if self.turn >= TURN || now - began >= TURN_TIME {
            (self.turn, self.turn_began) = (0, None);
            later(cx);
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let Poll::Ready(result) = Pin::new(&mut self.inner).poll_read(cx, buffer) else {
            (self.turn, self.turn_began) = (0, None);
            return Poll::Pending;
        };
        let read = buffer.filled().len() - before;
        self.turn += read;
        if read > 0 {
            self.meter.received.set(self.meter.received.get() + read as u64);
            self.meter.last_received.set(now);
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A task whose peer sends without end takes turns with everything that waits for a socket.
    #[tokio::test]
    async fn the_worker_looks_at_its_sockets_after_every_turn() {
        let turns = Rc::new(Cell::new(0_u32));
        let (mut endless, _meter) = Metered::new(tokio::io::repeat(0));
        let counted = Rc::clone(&turns);
        let reading = std::future::poll_fn(move |cx| {
            let mut bytes = [0; 4096];
            while Pin::new(&mut endless).poll_read(cx, &mut ReadBuf::new(&mut bytes)).is_ready() {}
            counted.set(counted.get() + 1);
            Poll::<()>::Pending
        });
        let tasks = tokio::task::LocalSet::new();
        tasks.spawn_local(reading);
        let (mut near, mut far) = tokio::net::UnixStream::pair().expect("a pair");
        tasks
            .run_until(async {
                tokio::task::yield_now().await;
                for _ in 0..20 {
                    let before = turns.get();
                    near.write_all(b"x").await.expect("room");
                    far.read_exact(&mut [0]).await.expect("a byte");
                    assert!(turns.get() - before <= 3, "{} turns", turns.get() - before);
                }
            })
            .await;
        assert!(turns.get() > 0);
    }
}
