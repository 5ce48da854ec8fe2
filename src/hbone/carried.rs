//! A stream of a tunnel as bytes, so that a connection of its own can be inside it: TLS and HTTP/2 to a peer that only the
//! far end of the tunnel can reach.
//!
//! Windows, ends and resets are the stream's: what is not read is not given back, what cannot be sent is not taken, an end
//! is END_STREAM in either direction. A reset, or the loss of the tunnel, is an error; the latter also tells the
//! connection inside why, which would otherwise only know that its bytes have ended.

use std::cell::OnceCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::hbone::stream::{Stream, StreamError};
use crate::hbone::tunnel::Tunnel;
use crate::net::buffers;

/// Set once the connection inside is a tunnel.
pub(super) type Inner = Rc<OnceCell<Weak<Tunnel>>>;

pub(super) struct Carried {
    stream: Stream,
    /// Received and not read.
    rest: Bytes,
    /// How reading ended.
    end: Option<StreamError>,
    inner: Inner,
}

impl Carried {
    pub(super) fn new(stream: Stream) -> (Self, Inner) {
        let inner = Inner::default();
        (Self { stream, rest: Bytes::new(), end: None, inner: Rc::clone(&inner) }, inner)
    }

    fn failed(&mut self, error: StreamError) -> io::Error {
        self.end = Some(error);
        if error == StreamError::TunnelLost
            && let Some(why) = self.stream.tunnel_end()
            && let Some(inner) = self.inner.get().and_then(Weak::upgrade)
        {
            inner.cut(why);
        }
        let kind = match error {
            StreamError::TunnelLost => io::ErrorKind::BrokenPipe,
            StreamError::Stopped | StreamError::Reset(_) | StreamError::Protocol(_) => io::ErrorKind::ConnectionReset,
        };
        io::Error::new(kind, error)
    }

    /// As many of the bytes as there is capacity for, in one frame.
    fn poll_send(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let capacity = match ready!(self.stream.poll_capacity(cx)) {
            Ok(capacity) => capacity,
            Err(error) => return Poll::Ready(Err(self.failed(error))),
        };
        let mut buffer = buffers::lend();
        let capacity = capacity.min(buffer.len());
        let mut filled = 0;
        for slice in slices {
            let room = buffer.get_mut(filled..capacity).unwrap_or_default();
            let count = room.len().min(slice.len());
            for (to, from) in room.iter_mut().zip(slice.iter().take(count)) {
                *to = *from;
            }
            filled += count;
        }
        match self.stream.send(buffer, filled) {
            Ok(()) => Poll::Ready(Ok(filled)),
            Err(error) => Poll::Ready(Err(self.failed(error))),
        }
    }
}

impl AsyncRead for Carried {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match self.end {
                // The far side needs nothing more, and what it has sent is complete.
                Some(StreamError::Stopped) => return Poll::Ready(Ok(())),
                Some(error) => return Poll::Ready(Err(self.failed(error))),
                None => {}
            }
            match ready!(self.stream.poll_receive(cx)) {
                Ok(Some(bytes)) => self.rest = bytes,
                Ok(None) => return Poll::Ready(Ok(())),
                Err(error) => self.end = Some(error),
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(self.rest.get(..count).unwrap_or_default());
        self.rest.advance(count);
        self.stream.release(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Carried {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The tunnel's own task sends what is queued.
    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.give_back();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.finish() {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(self.failed(error))),
        }
    }
}
