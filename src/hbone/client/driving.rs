//! The HTTP/2 connection of a client, as the driver of tunnels moves it.
//!
//! A client has no GOAWAY of its own while streams live: it retires by giving its sender away, and the library
//! says goodbye and closes when the last stream has ended. To cut it the connection is dropped, which breaks all streams;
//! the socket is shared with it and outlives it for close_notify and FIN.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use h2::PingPong;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::hbone::client::Client;
use crate::hbone::stream::Chunk;
use crate::hbone::tunnel::{Driven, Metered};
use crate::telemetry::TunnelEnd;

pub type HttpConnection<T> = h2::client::Connection<Shared<Metered<T>>, Chunk>;

/// A connection together with what it tells its surroundings.
pub struct Driving<T: AsyncRead + AsyncWrite + Unpin, F> {
    connection: Option<HttpConnection<T>>,
    io: Shared<Metered<T>>,
    client: Rc<Client>,
    /// Called after each move but the last.
    moved: F,
}

impl<T: AsyncRead + AsyncWrite + Unpin, F: FnMut()> Driving<T, F> {
    /// And what pings are sent by.
    pub fn new(
        mut connection: HttpConnection<T>,
        io: Shared<Metered<T>>,
        client: Rc<Client>,
        moved: F,
    ) -> (Self, Option<PingPong>) {
        let pings = connection.ping_pong();
        (Self { connection: Some(connection), io, client, moved }, pings)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin, F: FnMut()> Driven for Driving<T, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let Some(connection) = &mut self.connection else {
            // Whether the goodbye arrives is no longer of interest.
            return Pin::new(&mut self.io).poll_shutdown(cx).map(|_| Ok(()));
        };
        let result = Pin::new(&mut *connection).poll(cx);
        if result.is_pending() {
            self.client.look(connection.max_concurrent_send_streams(), cx);
            (self.moved)();
        }
        result
    }

    fn retire(&mut self) {
        self.client.close();
    }

    fn cut(&mut self, _: TunnelEnd) {
        self.client.close();
        self.connection = None;
    }
}

/// Bytes that the connection and its driver both hold. Borrowed only within one call.
#[derive(Debug)]
pub struct Shared<T>(Rc<RefCell<T>>);

impl<T> Shared<T> {
    pub(super) fn new(inner: T) -> Self {
        Self(Rc::new(RefCell::new(inner)))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Shared<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Shared<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(cx)
    }
}
