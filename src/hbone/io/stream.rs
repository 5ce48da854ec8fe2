//! An established stream: both halves over one socket, as the HTTP/2 layer wants them.
//!
//! In and out: plaintext, through [`AsyncRead`] and [`AsyncWrite`]. Failure: every error is a [`TlsError`] inside an
//! [`io::Error`], the same at every later call; since layers above keep only its text, [`Handle::ended`] tells it too.
//! A stream that is dropped without a shutdown ends the connection without close_notify.
//!
//! [`Handle::cork`] is for layers that flush after each frame (HTTP/2 does): then only whole queues are written, and
//! whoever polls that layer sends the rest with [`Handle::poll_flush`] when it has nothing more to do.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::hbone::io::error::TlsError;
use crate::hbone::io::inbound::{Inbound, Step};
use crate::hbone::io::outbound::Outbound;
use crate::hbone::io::records::Keys;
use crate::net::buffers;

/// TLS 1.3 over a socket, after the handshake.
pub struct TlsStream(Rc<RefCell<Connection>>);

/// A second hand on a stream that another layer owns. Holding it keeps the socket open.
#[derive(Clone)]
pub struct Handle(pub(super) Rc<RefCell<Connection>>);

pub(super) struct Connection {
    pub(super) socket: TcpStream,
    pub(super) keys: Keys,
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    /// Nothing more is read.
    ended: Option<Result<(), TlsError>>,
    /// The socket takes nothing more. What the peer still says may explain it.
    stuck: Option<TlsError>,
    corked: bool,
}

impl TlsStream {
    pub(super) fn new(socket: TcpStream, keys: Keys, inbound: Inbound) -> Self {
        let outbound = Outbound::default();
        let connection = Connection { socket, keys, inbound, outbound, ended: None, stuck: None, corked: false };
        Self(Rc::new(RefCell::new(connection)))
    }

    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Rc::clone(&self.0))
    }
}

impl Handle {
    /// From now on a flush from above sends nothing until a whole queue has gathered.
    pub fn cork(&self) {
        self.0.borrow_mut().corked = true;
    }

    /// Sends all that is queued, corked or not. An error is also told to the layer above, at its next call.
    ///
    /// # Errors
    /// As a write does.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_flush(cx).map_err(io::Error::from)
    }

    /// Throws away what the peer still sends, until it has closed. To be called after a shutdown, before the socket is let
    /// go: closing it on unread bytes would be a reset, which destroys our last ones.
    pub fn poll_discard(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut connection = self.0.borrow_mut();
        let mut thrown = buffers::lend();
        loop {
            let mut room = ReadBuf::new(&mut thrown);
            match Pin::new(&mut connection.socket).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) if !room.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// How the stream has ended: by the peer's close_notify, by an error, or not yet.
    #[must_use]
    pub fn ended(&self) -> Option<Result<(), TlsError>> {
        let connection = self.0.borrow();
        let stuck = || connection.stuck.clone().map(Err);
        connection.ended.clone().or_else(stuck)
    }
}

impl Connection {
    fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<Result<(), TlsError>> {
        let before = out.filled().len();
        let result = loop {
            self.inbound.read(out);
            let progress = out.filled().len() > before;
            if out.remaining() == 0 {
                break Poll::Ready(Ok(()));
            }
            match &self.ended {
                Some(Err(error)) if !progress => break Poll::Ready(Err(error.clone())),
                Some(_) => break Poll::Ready(Ok(())),
                None => {}
            }
            match self.inbound.step(&mut self.keys, out) {
                Ok(Step::Done) => {}
                Ok(Step::ChangeKey) => self.outbound.owe_key(),
                Ok(Step::Closed) => {
                    self.ended = Some(Ok(()));
                    self.inbound.clear();
                }
                Ok(Step::More) if progress => break Poll::Ready(Ok(())),
                Ok(Step::More) if self.poll_fill(cx).is_pending() => break Poll::Pending,
                Ok(Step::More) => {}
                Err(error) => self.fail(error),
            }
        };
        self.inbound.settle();
        if self.outbound.owes_key() && !self.outbound.is_shut() && !self.corked {
            let _waits = self.poll_flush(cx);
        }
        result
    }

    /// One large read.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.socket.poll_read_ready(cx).is_pending() {
            self.inbound.park();
            return Poll::Pending;
        }
        let mut room = ReadBuf::new(self.inbound.room());
        let read = Pin::new(&mut self.socket).poll_read(cx, &mut room);
        let len = room.filled().len();
        match read {
            Poll::Pending => {
                self.inbound.park();
                return Poll::Pending;
            }
            Poll::Ready(Ok(())) if len > 0 => self.inbound.filled(len),
            Poll::Ready(Ok(())) => self.fail(TlsError::Truncated),
            Poll::Ready(Err(error)) => self.fail(TlsError::socket(&error)),
        }
        Poll::Ready(())
    }

    /// The first error stays; the peer is told if it has to know.
    fn fail(&mut self, error: TlsError) {
        if let Some(alert) = error.alert() {
            self.outbound.complain(&self.socket, &mut self.keys, alert);
        }
        if !matches!(self.ended, Some(Err(_))) {
            self.ended = Some(Err(error));
        }
        self.inbound.clear();
    }

    /// Why nothing can be sent any more, if so.
    fn refusal(&self) -> Option<TlsError> {
        match &self.ended {
            Some(Err(error)) => Some(error.clone()),
            _ => self.stuck.clone(),
        }
    }

    fn note<T>(&mut self, result: Poll<Result<T, TlsError>>) -> Poll<Result<T, TlsError>> {
        if let Poll::Ready(Err(error)) = &result {
            self.stuck = Some(error.clone());
        }
        result
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<Result<usize, TlsError>> {
        if let Some(error) = self.refusal() {
            return Poll::Ready(Err(error));
        }
        if self.outbound.is_shut() {
            return Poll::Ready(Err(TlsError::Closed));
        }
        let result = self.outbound.poll_write(&mut self.socket, &mut self.keys, cx, slices);
        self.note(result)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        if let Some(error) = self.refusal() {
            return Poll::Ready(Err(error));
        }
        let result = self.outbound.poll_flush(&mut self.socket, &mut self.keys, cx);
        self.note(result)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        if let Some(error) = self.refusal() {
            let _ended = Pin::new(&mut self.socket).poll_shutdown(cx);
            return Poll::Ready(Err(error));
        }
        let result = self.outbound.poll_shutdown(&mut self.socket, &mut self.keys, cx);
        self.note(result)
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, out).map_err(io::Error::from)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[IoSlice::new(bytes)]).map_err(io::Error::from)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, slices).map_err(io::Error::from)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut connection = self.0.borrow_mut();
        if connection.corked {
            return Poll::Ready(Ok(()));
        }
        connection.poll_flush(cx).map_err(io::Error::from)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_shutdown(cx).map_err(io::Error::from)
    }
}
