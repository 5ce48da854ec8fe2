//! One hardened HTTP/1.1 server for every surface. In: a bound listener and an [`Endpoint`]. Out: answers, until the
//! process is stopped.
//!
//! What a peer can do is bounded: a header must be complete within 2 s and 8 KiB, a body within 2 s and 64 KiB, an
//! answer must be taken within a minute, and there is a limit on connections at which the one that has been idle longest
//! makes room (a new one is closed only if all are being answered). Garbage is answered with 400. Nothing that a peer
//! sends ends the server; running out of descriptors is survived with the [`FdReserve`].
//! Deliberately absent: TLS, HTTP/2, upgrades.

mod connection;

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use rustix::io::Errno;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use crate::admin::body::Body;
use crate::admin::reserve::FdReserve;
use crate::lifecycle::Lifecycle;
use connection::{Connection, Socket, Stream};

/// Connections of one server at a time.
pub const CONNECTIONS: usize = 64;
/// How long accept waits when there is no descriptor and the reserve is used up.
const BACK_OFF: Duration = Duration::from_millis(100);
/// How long connections may take to finish once the process is stopped.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// What answers the requests of one server. Called on the control thread: must not block.
pub trait Endpoint: Send + Sync + 'static {
    fn answer(&self, request: Request<Bytes>) -> Pin<Box<dyn Future<Output = Response<Body>> + Send + '_>>;
}

/// What a peer may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    pub connections: usize,
    /// From the first byte of a request, or from the end of the last answer, to the end of the header.
    pub header_within: Duration,
    pub header_bytes: usize,
    pub body_within: Duration,
    pub body_bytes: usize,
    /// From the end of the header until the whole answer has been taken.
    pub exchange_within: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            header_within: Duration::from_secs(2),
            header_bytes: 8192,
            body_within: Duration::from_secs(2),
            body_bytes: 64 * 1024,
            exchange_within: Duration::from_secs(60),
        }
    }
}

/// A bound, listening, non-blocking socket.
#[derive(Debug)]
pub enum HttpListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A server that is ready to run.
pub struct HttpServer {
    name: &'static str,
    listener: HttpListener,
    endpoint: Arc<dyn Endpoint>,
    limits: HttpLimits,
    reserve: FdReserve,
}

impl HttpServer {
    /// `name` is for the log.
    #[must_use]
    pub fn new(name: &'static str, listener: HttpListener, endpoint: Arc<dyn Endpoint>, reserve: FdReserve) -> Self {
        Self { name, listener, endpoint, limits: HttpLimits::default(), reserve }
    }

    #[must_use]
    pub const fn with_limits(mut self, limits: HttpLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Serves until the process is [`Phase::Stopped`](crate::lifecycle::Phase::Stopped), so that drain can watch itself, or
    /// another process serves in its place.
    pub async fn run(self, lifecycle: Lifecycle) {
        let mut tasks = JoinSet::new();
        let mut connections: HashMap<u64, Arc<Connection>> = HashMap::new();
        let mut next_id = 0_u64;
        let mut stopped = pin!(lifecycle.relieved());
        loop {
            tokio::select! {
                () = &mut stopped => break,
                Some(ended) = tasks.join_next() => {
                    self.reserve.refill();
                    match ended {
                        Ok(id) => { connections.remove(&id); }
                        // A panic in an endpoint: its entry cannot be told from the others, so look who is gone.
                        Err(_panicked) => connections.retain(|_, connection| Arc::strong_count(connection) > 1),
                    }
                }
                stream = self.accept() => {
                    let Some(stream) = stream else { continue };
                    if connections.len() >= self.limits.connections && !evict_idle(&mut connections) {
                        tracing::debug!(server = self.name, "refused a connection: too many are being answered");
                        continue;
                    }
                    let id = next_id;
                    next_id += 1;
                    let connection = Arc::new(Connection::new(Arc::clone(&self.endpoint), self.limits));
                    connections.insert(id, Arc::clone(&connection));
                    let lifecycle = lifecycle.clone();
                    tasks.spawn(async move {
                        connection.serve(stream, &lifecycle).await;
                        id
                    });
                }
            }
        }
        drop(self.listener);
        let finish = async { while tasks.join_next().await.is_some() {} };
        // What is left is aborted when `tasks` is dropped.
        let _ = tokio::time::timeout(STOP_WITHIN, finish).await;
    }

    /// The next connection; `None` when this try failed and the next may be made at once.
    async fn accept(&self) -> Option<Stream> {
        match poll_fn(|context| self.poll_accept(context)).await {
            Ok(stream) => Some(stream),
            Err(error) if is_exhausted(&error) => {
                tokio::time::sleep(BACK_OFF).await;
                self.reserve.refill();
                None
            }
            Err(error) if is_passing(&error) => None,
            Err(error) => {
                tracing::warn!(server = self.name, %error, "accept failed");
                tokio::time::sleep(BACK_OFF).await;
                None
            }
        }
    }

    /// Accepts, if need be with descriptors of the reserve. `accept` looks for a free descriptor before it looks for a
    /// connection, so that there is none may be all it says although nobody waits: then the reserve is made whole again.
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        loop {
            match self.listener.poll_accept(context) {
                Poll::Ready(Err(error)) if is_exhausted(&error) && self.reserve.give_up_one() => {}
                Poll::Pending => {
                    self.reserve.refill();
                    return Poll::Pending;
                }
                ready => return ready,
            }
        }
    }
}

impl HttpListener {
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = ready!(listener.poll_accept(context))?;
                // A socket that is already dead fails here; reading it will tell.
                let _ = stream.set_nodelay(true);
                Poll::Ready(Ok(Socket::Tcp(stream).into()))
            }
            Self::Unix(listener) => {
                let (stream, _) = ready!(listener.poll_accept(context))?;
                Poll::Ready(Ok(Socket::Unix(stream).into()))
            }
        }
    }
}

impl From<TcpListener> for HttpListener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for HttpListener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

/// Makes room by ending the connection that has been idle longest; false when all are being answered.
fn evict_idle(connections: &mut HashMap<u64, Arc<Connection>>) -> bool {
    let idle = connections.iter().filter_map(|(id, connection)| Some((connection.idle_since()?, *id)));
    let Some((_, id)) = idle.min() else { return false };
    if let Some(connection) = connections.remove(&id) {
        connection.evict();
    }
    true
}

fn is_exhausted(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| exhausted.contains(&errno))
}

/// About the connection that would have been accepted, not about the listener.
fn is_passing(error: &io::Error) -> bool {
    let passing = [
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::AGAIN,
        Errno::PROTO,
        Errno::PERM,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::CONNRESET,
    ];
    Errno::from_io_error(error).is_some_and(|errno| passing.contains(&errno))
}

/// An answer with headers that no surface goes without: nothing is cached, nothing is guessed.
pub(super) fn answer(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", Body::full(text))
}

/// `{"error": ..}` with the status.
pub(super) fn error(status: StatusCode, message: &str) -> Response<Body> {
    json(status, &serde_json::json!({ "error": message }))
}

/// A short document; long ones are streamed.
pub(super) fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec_pretty(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            answer(status, "application/json", Body::full(bytes))
        }
        Err(problem) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the answer: {problem}\n")),
    }
}

/// 405, naming what is allowed.
pub(super) fn not_allowed(allow: &'static str) -> Response<Body> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, &format!("the method must be {allow}"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

#[cfg(test)]
mod tests;
