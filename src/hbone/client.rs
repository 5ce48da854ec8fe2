//! The client's end of one tunnel: makes it, drives it, opens streams in it.
//!
//! ```text
//! establish: dial -> TLS -> speak: HTTP/2 -> Client and Driving      ask: a reserved place -> CONNECT -> its answer
//! ```
//!
//! In: an address, a TLS configuration that says who may be there, a finished request. Out: a `Stream` whose CONNECT
//! was answered with 200, or an [`OpenError`]. Every step has its deadline; whatever is dropped half-way undoes itself (a
//! request by RST_STREAM, a place in a tunnel by its lease). Which tunnel a stream goes to is the pool's business.

mod ask;
mod driving;
mod error;

pub use ask::{Failed, Opened, ask};
pub use driving::Driving;
pub use error::OpenError;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::client::SendRequest;
use rustix::io::Errno;
use rustls::ClientConfig;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::config::settings::{Settings, Tunnel as Limits};
pub use crate::hbone::client::driving::{HttpConnection, Shared};
use crate::hbone::io::{self, Handle, TlsStream};
use crate::hbone::stream::Chunk;
use crate::hbone::tunnel::{About, Lease, Metered, Tunnel};
use crate::hbone::window::{Grant, Windows, configure_client};
use crate::identity::TlsGeneration;
use crate::net::address::UpstreamAddr;
use crate::net::descriptors::{Budget, Lent};
use crate::net::dial::{DialError, DialOptions, Dialled, dial};
use crate::net::listen::set_keepalive;
use crate::net::own_sockets::{OwnSocket, OwnSockets, Way};
use crate::telemetry::{Role, TunnelEnd};

/// What the library says of the peer's limit before the peer has said anything. No SETTINGS can set this value.
const LIMIT_UNKNOWN: usize = usize::MAX - 1;

/// A socket for a tunnel.
#[derive(Debug)]
pub struct TunnelSocket {
    pub dialled: Dialled,
    /// Its descriptor, accounted for.
    pub lent: Lent,
}

/// How the sockets of tunnels are opened. Needs no deadline of its own.
pub trait Dial {
    fn dial(&self, address: SocketAddr) -> Pin<Box<dyn Future<Output = Result<TunnelSocket, DialError>>>>;
}

/// The way out of this host, marked as our own.
#[derive(Debug, Clone)]
pub struct DialOut {
    pub mark: Option<NonZeroU32>,
    pub own_sockets: OwnSockets,
    pub budget: Budget,
    /// For its keepalive, which changes with them.
    pub settings: watch::Receiver<Arc<Settings>>,
}

impl Dial for DialOut {
    fn dial(&self, address: SocketAddr) -> Pin<Box<dyn Future<Output = Result<TunnelSocket, DialError>>>> {
        let Self { mark, own_sockets, budget, settings } = self.clone();
        let options = DialOptions { mark, source: None, way: Way::Out };
        Box::pin(async move {
            let lent = budget.take(1).ok_or_else(|| DialError::Socket(Errno::MFILE.into()))?;
            let dialled = dial(UpstreamAddr::new(address), options, &own_sockets).await?;
            let keepalive = settings.borrow().keepalive;
            // Where it fails the socket is gone, which its next use says; until then PINGs notice a dead peer too.
            let _ = set_keepalive(&SockRef::from(&dialled.stream), keepalive);
            Ok(TunnelSocket { dialled, lent })
        })
    }
}

/// A tunnel as those see it who open streams in it.
#[derive(Debug)]
pub struct Client {
    pub tunnel: Rc<Tunnel>,
    /// Counts up over all tunnels of a pool, in the order in which they come into being.
    pub serial: u64,
    /// Gone once the tunnel takes no new streams: when the last stream has ended too, the connection closes.
    send: RefCell<Option<SendRequest<Chunk>>>,
    peer_limit: Cell<Option<u32>>,
    is_settled: Cell<bool>,
    /// Since when an answer is missing.
    doubted: Cell<Option<Instant>>,
    settled: Notify,
}

impl Client {
    /// How many streams the peer allows at the same time; nothing until it has said so.
    #[must_use]
    pub fn peer_limit(&self) -> Option<u32> {
        self.peer_limit.get()
    }

    /// Whether the peer has ever said that it takes streams. Until then the tunnel is still under way.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_settled.get()
    }

    #[must_use]
    pub fn takes_streams(&self) -> bool {
        self.tunnel.retiring().is_none() && self.send.borrow().is_some()
    }

    /// Whether an answer is missing and nothing at all was heard since: new streams had better go elsewhere, until the peer is
    /// heard again or a PING settles the matter.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.doubted.get().is_some_and(|since| self.tunnel.meter.last_received() <= since)
    }

    /// Returns when the peer has said that it takes at least one stream.
    pub async fn settled(&self) {
        self.settled.notified().await;
    }

    /// Takes a place for one stream. It can be used even if the tunnel is retired in between.
    #[must_use]
    pub fn reserve(self: &Rc<Self>) -> Option<Slot> {
        let send = self.send.borrow().clone()?;
        Some(Slot { lease: self.tunnel.lease(), client: Rc::clone(self), send })
    }

    /// How it ended or is being ended.
    fn end(&self) -> Option<TunnelEnd> {
        self.tunnel.cutting().or_else(|| self.tunnel.end())
    }

    /// What it means that it has ended before it was settled.
    #[must_use]
    pub fn unsettled(&self) -> OpenError {
        match (self.tunnel.cutting(), self.peer_limit()) {
            // Whoever makes tunnels has given up on it.
            (Some(TunnelEnd::Http2), None) => OpenError::HandshakeTimeout,
            (Some(TunnelEnd::Http2), Some(_)) => OpenError::NoStreams,
            _ => OpenError::early(self.end()),
        }
    }

    /// Takes no new streams from here on.
    pub fn retire(&self, why: TunnelEnd) {
        self.tunnel.retire(why);
        self.close();
    }

    fn close(&self) {
        let send = self.send.borrow_mut().take();
        drop(send);
    }

    /// Learns what the last frames have changed, of a connection that goes on.
    fn look(&self, limit: usize, cx: &mut Context<'_>) {
        if limit != LIMIT_UNKNOWN {
            let limit = u32::try_from(limit).unwrap_or(u32::MAX);
            self.peer_limit.set(Some(limit));
            if limit > 0 && !self.is_settled.replace(true) {
                self.settled.notify_one();
            }
        }
        // Never pending: that is so only for a handle which has opened a stream itself.
        let ready = self.send.borrow_mut().as_mut().map(|send| send.poll_ready(cx));
        if let Some(Poll::Ready(Err(error))) = ready {
            // Said goodbye, or it has used up its numbers for streams.
            self.retire(if error.is_remote() { TunnelEnd::PeerClosed } else { TunnelEnd::MaxAge });
        }
    }
}

/// A place in a tunnel for one stream, taken until dropped.
#[derive(Debug)]
pub struct Slot {
    pub client: Rc<Client>,
    lease: Lease,
    send: SendRequest<Chunk>,
}

impl Slot {
    /// Whether the peer would take the stream now: it may have lowered its limit since the place was taken, and a request
    /// beyond the limit is not sent, but waits for an answer that nobody owes it.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.client.peer_limit().is_none_or(|limit| self.client.tunnel.streams() <= limit)
    }
}

/// How far making a tunnel has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Connecting,
    Handshaking,
}

/// HTTP/2 with a peer that is known, over any stream; its SETTINGS have still to come.
pub struct Spoken<T> {
    pub client: Rc<Client>,
    pub connection: HttpConnection<T>,
    pub io: Shared<Metered<T>>,
    /// What the peer may send before it is taken.
    pub grant: Grant,
}

/// A tunnel over a socket of its own.
pub struct Established {
    pub spoken: Spoken<TlsStream>,
    pub handle: Handle,
    /// Marks the socket as ours.
    pub own: OwnSocket,
    /// The socket's descriptor.
    pub lent: Lent,
    /// By when the SETTINGS must have come.
    pub settle_by: Instant,
}

/// Whom to connect to, and how.
pub struct Plan<'a> {
    pub address: SocketAddr,
    pub dial: &'a dyn Dial,
    pub tls: Arc<TlsGeneration>,
    pub config: Arc<ClientConfig>,
    pub limits: &'a Limits,
    pub windows: &'a Arc<Windows>,
    /// The number of the next tunnel that comes into being.
    pub next_serial: &'a Cell<u64>,
}

/// Connects, shakes hands, sends the preface.
///
/// # Errors
/// The step that failed, or was not done in time.
pub async fn establish(plan: Plan<'_>, stage: impl Fn(Stage)) -> Result<Established, OpenError> {
    let Plan { address, dial, tls, config, limits, windows, next_serial } = plan;
    stage(Stage::Connecting);
    let connected = timeout_at(after(limits.connect_timeout), dial.dial(address)).await;
    let TunnelSocket { dialled: Dialled { stream: socket, own }, lent } = connected
        .map_err(|_elapsed| OpenError::ConnectTimeout)?
        .map_err(|error| OpenError::Connect { address, error: Arc::new(error) })?;
    stage(Stage::Handshaking);
    let settle_by = after(limits.handshake_timeout);
    let local = socket.local_addr().unwrap_or(address);
    let shaken = timeout_at(settle_by, Box::pin(io::connect(socket, &tls, config))).await;
    let shaken = shaken
        .map_err(|_elapsed| OpenError::HandshakeTimeout)?
        .map_err(|error| OpenError::Handshake(Arc::new(error)))?;
    let about = About {
        role: Role::Client,
        peer: address,
        local,
        identity: shaken.peer,
        chain: shaken.chain,
        generation: tls.number,
    };
    let handle = shaken.stream.handle();
    let speaking = Speaking { about, limits, windows, next_serial, by: settle_by };
    let spoken = speak(shaken.stream, speaking).await?;
    Ok(Established { spoken, handle, own, lent, settle_by })
}

/// What HTTP/2 needs to begin.
pub struct Speaking<'a> {
    pub about: About,
    pub limits: &'a Limits,
    pub windows: &'a Arc<Windows>,
    pub next_serial: &'a Cell<u64>,
    pub by: Instant,
}

/// Sends the preface.
///
/// # Errors
/// It could not be sent, or not in time.
pub async fn speak<T: AsyncRead + AsyncWrite + Unpin>(
    stream: T,
    Speaking { about, limits, windows, next_serial, by }: Speaking<'_>,
) -> Result<Spoken<T>, OpenError> {
    let (metered, meter) = Metered::new(stream);
    let io = Shared::new(metered);
    let tunnel = Tunnel::new(about, meter);
    let grant = windows.grant(limits.connection_window.get(), limits.buffered_bytes);
    let preface = Box::pin(builder(limits, &grant).handshake(io.clone()));
    let (send, connection) = timeout_at(by, preface)
        .await
        .map_err(|_elapsed| OpenError::HandshakeTimeout)?
        .map_err(|_detail| OpenError::Http2)?;
    let client = Rc::new(Client {
        tunnel,
        serial: next_serial.replace(next_serial.get() + 1),
        send: RefCell::new(Some(send)),
        peer_limit: Cell::new(None),
        is_settled: Cell::new(false),
        doubted: Cell::new(None),
        settled: Notify::new(),
    });
    Ok(Spoken { client, connection, io, grant })
}

fn after(duration: Duration) -> Instant {
    Instant::now() + duration
}

fn builder(limits: &Limits, grant: &Grant) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    configure_client(&mut builder, limits, grant);
    // One stream goes ahead all the same: streams are counted before they are begun.
    builder.initial_max_send_streams(LIMIT_UNKNOWN);
    builder
}
