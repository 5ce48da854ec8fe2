//! CONNECT in a reserved place, and its answer.
//!
//! Nothing but the request is sent before the answer is there, so a request whose tunnel turns out to be gone may be
//! made again elsewhere; [`Failed::stale`] says when that is so.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use h2::Reason;
use http::{Request, StatusCode, response};
use tokio::time::{Instant, timeout_at};

use crate::hbone::client::error::OpenError;
use crate::hbone::client::{Client, Slot};
use crate::hbone::stream::Stream;
use crate::hbone::tunnel::Tunnel;
use crate::telemetry::TunnelEnd;

/// A stream that the far side has accepted.
#[derive(Debug)]
pub struct Opened {
    pub stream: Stream,
    /// What came with the 200.
    pub answer: response::Parts,
    pub tunnel: Rc<Tunnel>,
}

/// Why there is no stream.
#[derive(Debug)]
pub struct Failed {
    pub error: OpenError,
    /// Whether the tunnel was the reason, and not the far side's decision.
    pub stale: bool,
}

/// Sends the request and waits for the answer until `by`. Dropped before, it takes the request back.
///
/// # Errors
/// Another status than 200, no answer in time, or none at all.
pub async fn ask(slot: Slot, request: Request<()>, by: Instant) -> Result<Opened, Failed> {
    let Slot { client, lease, mut send } = slot;
    let asked = Instant::now();
    let (response, sending) = match send.send_request(request, false) {
        Ok(sent) => sent,
        Err(_detail) => {
            // Either the connection takes no streams any more, or the request is not one.
            let gone = !matches!(send.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())));
            let error = if gone { OpenError::Lost { end: client.end() } } else { OpenError::BadRequest };
            return Err(Failed { error, stale: gone });
        }
    };
    // Held any longer it would keep a retired connection open.
    drop(send);
    let answer = match timeout_at(by, response).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(failed(&client, &error)),
        Err(_elapsed) => {
            client.doubted.set(Some(asked));
            return Err(Failed { error: OpenError::ResponseTimeout, stale: false });
        }
    };
    let (answer, receiving) = answer.into_parts();
    if answer.status != StatusCode::OK {
        let error = OpenError::Refused { status: answer.status, headers: Arc::new(answer.headers) };
        return Err(Failed { error, stale: false });
    }
    Ok(Opened { stream: Stream::new(sending, receiving, lease), answer, tunnel: Rc::clone(&client.tunnel) })
}

fn failed(client: &Client, error: &h2::Error) -> Failed {
    if error.is_reset() {
        let reason = error.reason().unwrap_or(Reason::INTERNAL_ERROR);
        // This one says that nothing was done with the request.
        let stale = error.is_remote() && reason == Reason::REFUSED_STREAM;
        return Failed { error: OpenError::Reset { code: reason.into() }, stale };
    }
    if error.is_go_away() && error.is_remote() {
        // The request was behind the last one that the peer has taken.
        return Failed { error: OpenError::Lost { end: client.end() }, stale: true };
    }
    // A tunnel that ends before its first SETTINGS was never one: the next would end alike.
    if !client.is_settled() {
        return Failed { error: client.unsettled(), stale: false };
    }
    match client.end() {
        Some(TunnelEnd::Http2) => Failed { error: OpenError::Http2, stale: false },
        // Another tunnel would be to the same peer.
        end @ Some(TunnelEnd::Revoked | TunnelEnd::Untrusted) => {
            Failed { error: OpenError::Lost { end }, stale: false }
        }
        end => Failed { error: OpenError::Lost { end }, stale: true },
    }
}
