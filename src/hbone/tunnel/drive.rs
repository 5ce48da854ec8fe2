//! The task behind a tunnel: polls its HTTP/2 connection, asks a silent peer whether it lives, and does what the tunnel
//! has been told. It ends with the tunnel and says how; nothing else ends one.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, sleep_until, timeout};

use crate::hbone::io::{Handle, TlsError};
use crate::hbone::tunnel::{Meter, Tunnel};
use crate::telemetry::TunnelEnd;

/// How long the last bytes of a tunnel that ends in order may take: GOAWAY, close_notify, FIN.
const GOODBYE: Duration = Duration::from_millis(250);

/// An HTTP/2 connection in one of its roles.
pub trait Driven {
    /// Moves it on. Ready when it is over: in order, or not.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>>;

    /// Starts the polite end: no new streams, the others finish. May be called more than once.
    fn retire(&mut self);

    /// Ends it now; polling goes on for a moment to write the goodbye.
    fn cut(&mut self, why: TunnelEnd);
}

/// When a silent peer is asked, and for how long an answer is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Pulse {
    pub interval: Duration,
    pub timeout: Duration,
}

/// What a connection runs over, beside itself.
pub struct Wire {
    /// Of the TLS stream under it; nothing where there is none.
    pub handle: Option<Handle>,
    pub pings: Option<PingPong>,
    pub pulse: Pulse,
}

/// Runs the connection to its end, which the tunnel then knows, and logs.
pub async fn drive(tunnel: &Rc<Tunnel>, mut connection: impl Driven, wire: Wire) {
    let Wire { handle, pings, pulse } = wire;
    let handle = handle.as_ref();
    if let Some(handle) = handle {
        handle.cork();
    }
    let mut dead = pin!(silence(&tunnel.meter, pings, pulse));
    let (mut retired, mut ended) = (false, None);
    let result = loop {
        if let Some(why) = tunnel.cutting() {
            ended = Some(why);
            connection.cut(why);
            // What cannot be said in a moment is not said.
            let _ = timeout(GOODBYE, poll_fn(|cx| turn(&mut connection, handle, cx))).await;
            break Ok(());
        }
        if tunnel.retiring().is_some() && !retired {
            retired = true;
            connection.retire();
        }
        tokio::select! {
            biased;
            result = poll_fn(|cx| turn(&mut connection, handle, cx)) => break result,
            () = &mut dead => {
                ended = Some(TunnelEnd::PingTimeout);
                break Ok(());
            }
            () = tunnel.told.notified() => {}
        }
    };
    let (end, detail) = match (ended, result) {
        (Some(end), _) => (end, None),
        (None, Ok(())) if tunnel.meter.truncated() => (TunnelEnd::NoCloseNotify, None),
        (None, Ok(())) => (tunnel.retiring().unwrap_or(TunnelEnd::PeerClosed), None),
        (None, Err(error)) => match handle.and_then(Handle::ended) {
            Some(Err(error)) => of_tls(&error),
            _ => end_of(&error),
        },
    };
    // Its streams learn of the end by this, if they have not by an error.
    drop(connection);
    tunnel.ended(end, detail.as_deref()).await;
    if !matches!(end, TunnelEnd::PingTimeout | TunnelEnd::Broken)
        && let Some(handle) = handle
    {
        // Bytes of a peer that has not heard of it yet.
        let _ = timeout(GOODBYE, poll_fn(|cx| handle.poll_discard(cx))).await;
    }
}

/// Moves the connection on. It flushes after every frame, which would be a write each: the stream under it waits with
/// that, and sends all that one turn has made at its end.
fn turn(connection: &mut impl Driven, handle: Option<&Handle>, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
    let result = connection.poll(cx);
    if let Some(Poll::Ready(Err(_told_at_its_next_call))) = handle.map(|handle| handle.poll_flush(cx)) {
        cx.waker().wake_by_ref();
    }
    result
}

/// Returns when the peer has been silent for too long.
async fn silence(meter: &Meter, pings: Option<PingPong>, pulse: Pulse) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        let asked = loop {
            let due = meter.last_received() + pulse.interval;
            if due <= Instant::now() {
                break Instant::now();
            }
            sleep_until(due).await;
        };
        // The answer to an earlier one, which came together with other frames.
        let _ = poll_fn(|cx| Poll::Ready(pings.poll_pong(cx).is_ready())).await;
        // Fails only while an earlier one is unanswered, or when the connection is over: that ends the driver itself.
        let _ = pings.send_ping(Ping::opaque());
        let answer_by = asked + pulse.timeout;
        while meter.last_received() < asked {
            if Instant::now() >= answer_by {
                return;
            }
            // Whatever comes counts as an answer; the pong is taken so that the next ping can be sent.
            tokio::select! {
                Ok(_) = poll_fn(|cx| pings.poll_pong(cx)) => {}
                () = sleep_until(answer_by) => {}
            }
        }
    }
}

/// What an error of the connection means for the tunnel, and its number if there is one; no library's words.
fn end_of(error: &h2::Error) -> (TunnelEnd, Option<String>) {
    if let Some(io) = error.get_io() {
        return of_io(io);
    }
    let reason = error.reason().map(reason_name);
    let end = if error.is_remote() { TunnelEnd::PeerError } else { TunnelEnd::Http2 };
    match (error.is_remote(), error.reason()) {
        (true, Some(h2::Reason::NO_ERROR)) => (TunnelEnd::PeerClosed, None),
        _ => (end, reason),
    }
}

/// The library above keeps of an error of TLS only its kind.
fn of_tls(error: &TlsError) -> (TunnelEnd, Option<String>) {
    match error {
        TlsError::Truncated => (TunnelEnd::NoCloseNotify, None),
        TlsError::Socket { errno, .. } => {
            (TunnelEnd::Broken, errno.map(|errno| std::io::Error::from_raw_os_error(errno).to_string()))
        }
        error => (TunnelEnd::Tls, Some(error.to_string())),
    }
}

fn of_io(error: &std::io::Error) -> (TunnelEnd, Option<String>) {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => (TunnelEnd::NoCloseNotify, None),
        // An alert, or bytes that are not TLS. An established socket does not say "aborted" itself.
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::ConnectionAborted => (TunnelEnd::Tls, None),
        _ => {
            (TunnelEnd::Broken, error.raw_os_error().map(|errno| std::io::Error::from_raw_os_error(errno).to_string()))
        }
    }
}

/// The name that HTTP/2 gives the code.
fn reason_name(reason: h2::Reason) -> String {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    let code = u32::from(reason);
    let known = usize::try_from(code).ok().and_then(|code| NAMES.get(code));
    known.map_or_else(|| format!("code {code}"), |name| (*name).to_owned())
}
