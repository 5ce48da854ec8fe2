//! The server's end of a tunnel: from a socket that a peer has opened to an HTTP/2 connection that is driven.
//!
//! In: the socket, the credentials in force, the limits of tunnels. Out: an [`Arrival`], whose peer has proved who it is
//! and has spoken HTTP/2; then, from [`Arrival::serve`], what the driver polls: each request goes to a callback.
//!
//! - A retired tunnel says GOAWAY and takes what the peer opened before it heard of it, for `GOAWAY_WITHIN` at most:
//!   what a peer that does not answer the GOAWAY opens later is reset, unseen. It ends when its last stream has.
//! - What a peer may make us hold is bounded by HTTP/2's settings: streams, header lists, windows.
//!
//! Has no deadline of its own: whoever shakes hands puts one around it. Fails closed. No library's words come out of it.
//! Deliberately absent: what becomes of a request.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::server::{Builder, Connection, SendResponse};
use h2::{PingPong, Reason, RecvStream};
use http::Request;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::settings::Tunnel as Limits;
use crate::hbone::io::{self, Handle, HandshakeError, Handshaken, Phase};
use crate::hbone::stream::Chunk;
use crate::hbone::tunnel::{Driven, Meter, Metered};
use crate::hbone::window::{Grant, Windows, configure_server};
use crate::identity::{PeerIdentity, TlsGeneration};
use crate::net::turns::later;
use crate::telemetry::TunnelEnd;

/// How long the peer may take to answer a GOAWAY before it opens streams in vain, and a tunnel without any is closed.
const GOAWAY_WITHIN: Duration = Duration::from_secs(2);

/// Requests taken in one turn: a peer that floods must not keep the worker from its other connections.
const REQUESTS_PER_TURN: usize = 32;

/// The preface, and the head of the first frame, which is SETTINGS.
const PREFACE_AND_SETTINGS: u64 = 24 + 9;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum ArrivalError {
    #[error(transparent)]
    Tls(HandshakeError),
    /// The TLS handshake succeeded; what came then was not HTTP/2.
    #[error("no HTTP/2")]
    Http2,
    /// The peer went away between the handshake and its first frame.
    #[error("the peer went away")]
    Gone,
}

/// How far a handshake has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    Tls(Phase),
    /// TLS is complete; the preface and SETTINGS are awaited.
    Http2,
}

impl Reached {
    pub const START: Self = Self::Tls(Phase::Hello);

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tls(phase) => phase.name(),
            Self::Http2 => "preface",
        }
    }
}

/// A request, and where its answer goes.
pub struct Asked {
    pub request: Request<RecvStream>,
    pub respond: SendResponse<Chunk>,
}

/// A tunnel that nobody drives yet.
pub struct Arrival<T> {
    connection: Box<Connection<Metered<T>, Chunk>>,
    first: Option<Asked>,
    pub meter: Rc<Meter>,
    grant: Grant,
}

/// Who has arrived.
pub struct Proven {
    pub peer: Arc<PeerIdentity>,
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the TLS stream, for the driver.
    pub handle: Handle,
}

/// TLS first, then HTTP/2. `reached` says at any time how far it has come.
///
/// # Errors
/// Why the peer is refused, or has gone.
pub async fn arrive(
    socket: TcpStream,
    tls: &Arc<TlsGeneration>,
    limits: &Limits,
    windows: &Arc<Windows>,
    reached: &Cell<Reached>,
) -> Result<(Proven, Arrival<impl AsyncRead + AsyncWrite + Unpin + use<>>), ArrivalError> {
    let tell = |phase| reached.set(Reached::Tls(phase));
    let shaken = Box::pin(io::accept_telling(socket, tls, &tell)).await;
    let Handshaken { stream, peer, chain, .. } = shaken.map_err(ArrivalError::Tls)?;
    reached.set(Reached::Http2);
    let handle = stream.handle();
    let arrival = Box::pin(speak(stream, limits, windows)).await?;
    Ok((Proven { peer, chain, handle }, arrival))
}

/// The HTTP/2 part, over any stream: complete when the peer's preface and the head of its SETTINGS have come.
async fn speak<T: AsyncRead + AsyncWrite + Unpin>(
    stream: T,
    limits: &Limits,
    windows: &Arc<Windows>,
) -> Result<Arrival<T>, ArrivalError> {
    let (stream, meter) = Metered::new(stream);
    let grant = windows.grant(limits.connection_window.get(), limits.buffered_bytes);
    let mut builder = Builder::new();
    configure_server(&mut builder, limits, &grant);
    let connection = builder.handshake(stream).await.map_err(|error| refused(&error))?;
    let mut arrival = Arrival { connection: Box::new(connection), first: None, meter, grant };
    poll_fn(|cx| arrival.poll_settings(cx)).await?;
    Ok(arrival)
}

fn refused(error: &h2::Error) -> ArrivalError {
    if error.is_io() { ArrivalError::Gone } else { ArrivalError::Http2 }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Arrival<T> {
    fn poll_settings(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ArrivalError>> {
        match self.connection.poll_accept(cx) {
            Poll::Ready(Some(Ok((request, respond)))) => {
                self.first = Some(Asked { request, respond });
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(refused(&error))),
            Poll::Ready(None) => Poll::Ready(Err(ArrivalError::Gone)),
            Poll::Pending if self.meter.received() >= PREFACE_AND_SETTINGS => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// For the driver; `take` gets each request, in order, and must not block.
    pub fn serve<F: FnMut(Asked)>(mut self, take: F) -> (Served<T, F>, Option<PingPong>) {
        let pings = self.connection.ping_pong();
        let connection = self.connection;
        (Served { connection, first: self.first, take, hurry: None, is_closed: false, _grant: self.grant }, pings)
    }
}

/// A tunnel as the driver sees it.
pub struct Served<T, F> {
    connection: Box<Connection<Metered<T>, Chunk>>,
    /// What came together with the SETTINGS.
    first: Option<Asked>,
    take: F,
    /// Once retired: when it is closed if the peer has not answered and has no stream.
    hurry: Option<Pin<Box<Sleep>>>,
    /// The peer has had its time: no new streams.
    is_closed: bool,
    _grant: Grant,
}

impl<T: AsyncRead + AsyncWrite + Unpin, F: FnMut(Asked)> Served<T, F> {
    /// A peer that never answers the GOAWAY would otherwise hold the tunnel for as long as it likes.
    fn poll_hurry(&mut self, cx: &mut Context<'_>) {
        let Some(hurry) = &mut self.hurry else { return };
        if hurry.as_mut().poll(cx).is_pending() {
            return;
        }
        self.is_closed = true;
        if self.connection.has_streams() {
            hurry.as_mut().reset(Instant::now() + GOAWAY_WITHIN);
            // Registers the timer again.
            let _ = hurry.as_mut().poll(cx);
        } else {
            self.hurry = None;
            self.connection.abrupt_shutdown(Reason::NO_ERROR);
            cx.waker().wake_by_ref();
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin, F: FnMut(Asked)> Driven for Served<T, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if let Some(first) = self.first.take() {
            (self.take)(first);
        }
        self.poll_hurry(cx);
        for _ in 0..REQUESTS_PER_TURN {
            match self.connection.poll_accept(cx) {
                // Says that nothing was done with it: it may be asked for again, in another tunnel.
                Poll::Ready(Some(Ok((_, mut respond)))) if self.is_closed => respond.send_reset(Reason::REFUSED_STREAM),
                Poll::Ready(Some(Ok((request, respond)))) => (self.take)(Asked { request, respond }),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        later(cx);
        Poll::Pending
    }

    fn retire(&mut self) {
        self.connection.graceful_shutdown();
        if self.hurry.is_none() {
            self.hurry = Some(Box::pin(sleep_until(Instant::now() + GOAWAY_WITHIN)));
        }
    }

    fn cut(&mut self, _: TunnelEnd) {
        self.connection.abrupt_shutdown(Reason::NO_ERROR);
    }
}

#[cfg(test)]
mod tests;
