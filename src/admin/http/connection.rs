//! One connection of an HTTP server: reads requests in full, has them answered, and watches its deadlines.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::admin::body::{Body, Guard};
use crate::admin::http::{Endpoint, HttpLimits, error};
use crate::lifecycle::{Lifecycle, Phase};

/// How often deadlines are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often whether a request has come, once no further one is to be answered.
const LOOK_FOR_A_REQUEST: Duration = Duration::from_millis(5);
/// How long a connection may take to finish its answer once the process is stopped.
const STOP_WITHIN: Duration = Duration::from_millis(500);
/// How long and how much a peer may still send after the last answer, so that the answer is not destroyed by a reset.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: u64 = 256 * 1024;

const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Regular,
    /// What came was no HTTP/1.1.
    Garbage,
    /// We ended it.
    Cut,
}

/// What the server knows of a connection.
pub(super) struct Connection {
    endpoint: Arc<dyn Endpoint>,
    limits: HttpLimits,
    started: Instant,
    busy: AtomicBool,
    /// Whether a request has come.
    asked: AtomicBool,
    /// Milliseconds after `started` at which it became busy or idle.
    since: AtomicU64,
    evicted: Notify,
}

impl Connection {
    pub(super) fn new(endpoint: Arc<dyn Endpoint>, limits: HttpLimits) -> Self {
        let started = Instant::now();
        Self {
            endpoint,
            limits,
            started,
            busy: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            since: AtomicU64::new(0),
            evicted: Notify::new(),
        }
    }

    /// `None` while a request is being answered.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (!self.busy.load(Ordering::Relaxed)).then(|| self.since())
    }

    pub(super) fn evict(&self) {
        self.evicted.notify_one();
    }

    /// Until the peer is done, a deadline passes, it is evicted, or the process stops.
    pub(super) async fn serve(self: &Arc<Self>, mut stream: Stream, lifecycle: &Lifecycle) {
        let end = self.exchange(&mut stream, lifecycle).await;
        if end == End::Garbage && !stream.answered {
            // hyper answers most garbage itself, but not HTTP/2.
            let _ = stream.write_all(BAD_REQUEST).await;
        }
        if end != End::Cut {
            linger(&mut stream).await;
        }
    }

    async fn exchange(self: &Arc<Self>, stream: &mut Stream, lifecycle: &Lifecycle) -> End {
        let connection = Arc::clone(self);
        let service = service_fn(move |request| {
            let connection = Arc::clone(&connection);
            async move { Ok::<_, Infallible>(connection.answer(request).await) }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .half_close(true)
            .header_read_timeout(self.limits.header_within)
            .max_header_size(self.limits.header_bytes)
            // hyper's least is 8 KiB, and it panics below.
            .max_buf_size(self.limits.header_bytes.max(8192));
        let mut http = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut stopped = pin!(self.over(lifecycle));
        let mut stopping = false;
        let mut stop_by = Instant::now();
        loop {
            tokio::select! {
                ended = http.as_mut() => {
                    return if ended.is_err_and(|error| error.is_parse()) { End::Garbage } else { End::Regular };
                }
                () = self.evicted.notified() => return End::Cut,
                () = &mut stopped, if !stopping => {
                    stopping = true;
                    stop_by = Instant::now() + STOP_WITHIN;
                    http.as_mut().graceful_shutdown();
                }
                () = tokio::time::sleep_until(stop_by), if stopping => return End::Cut,
                () = tokio::time::sleep(LOOK_EVERY), if !stopping => {
                    if self.is_overdue() {
                        return End::Cut;
                    }
                }
            }
        }
    }

    /// Returns when no further request is to be answered: once the process is stopped. When another one serves in its place,
    /// who has come to this one before and has not asked yet is still answered.
    async fn over(&self, lifecycle: &Lifecycle) {
        lifecycle.relieved().await;
        while !self.asked.load(Ordering::Relaxed) && lifecycle.phase() < Phase::Stopped {
            tokio::time::sleep(LOOK_FOR_A_REQUEST).await;
        }
    }

    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        self.asked.store(true, Ordering::Relaxed);
        self.mark(true);
        let connection = Arc::clone(self);
        let guard = Guard(Box::new(move || connection.mark(false)));
        let response = match self.read(request).await {
            Ok(request) => self.endpoint.answer(request).await,
            Err(refusal) => refusal,
        };
        response.map(|body| body.guarded(guard))
    }

    /// The request with its whole body; an answer if that cannot be had.
    async fn read(&self, request: Request<Incoming>) -> Result<Request<Bytes>, Response<Body>> {
        let (head, body) = request.into_parts();
        // What is announced as too large is not waited for.
        if body.size_hint().lower() > u64::try_from(self.limits.body_bytes).unwrap_or(u64::MAX) {
            return Err(closing(too_large()));
        }
        let body = Limited::new(body, self.limits.body_bytes).collect();
        match tokio::time::timeout(self.limits.body_within, body).await {
            Ok(Ok(body)) => Ok(Request::from_parts(head, body.to_bytes())),
            Ok(Err(problem)) if problem.is::<LengthLimitError>() => Err(closing(too_large())),
            Ok(Err(_malformed)) => Err(closing(error(StatusCode::BAD_REQUEST, "the request's body is malformed"))),
            Err(_elapsed) => Err(closing(error(StatusCode::REQUEST_TIMEOUT, "the request's body took too long"))),
        }
    }

    fn is_overdue(&self) -> bool {
        self.busy.load(Ordering::Relaxed) && self.since().elapsed() > self.limits.exchange_within
    }

    fn mark(&self, busy: bool) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(now, Ordering::Relaxed);
        self.busy.store(busy, Ordering::Relaxed);
    }

    fn since(&self) -> Instant {
        self.started + Duration::from_millis(self.since.load(Ordering::Relaxed))
    }
}

fn too_large() -> Response<Body> {
    error(StatusCode::PAYLOAD_TOO_LARGE, "the request's body is too large")
}

/// The rest of the body will not be read: no further request can follow.
fn closing(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(hyper::header::CONNECTION, hyper::header::HeaderValue::from_static("close"));
    response
}

/// Ends our side and takes what the peer still sends: closing over unread input would be a reset, and a reset can
/// destroy an answer that is still on its way.
async fn linger(stream: &mut Stream) {
    let drain = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    // However it went, the socket is closed now.
    let _ = tokio::time::timeout(LINGER, drain).await;
}

/// A socket of either kind, and whether anything was sent on it.
pub(super) struct Stream {
    pub(super) socket: Socket,
    answered: bool,
}

pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl From<Socket> for Stream {
    fn from(socket: Socket) -> Self {
        Self { socket, answered: false }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.answered = true;
        match &mut this.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
