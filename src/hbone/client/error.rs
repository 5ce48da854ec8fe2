//! Why there is no stream to the far side: the step that failed, in own words.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use crate::hbone::io::{Cause, HandshakeError};
use crate::net::dial::DialError;
use crate::telemetry::close_reason::Side;
use crate::telemetry::{CloseReason, TunnelEnd};

/// Cloned for everybody who waited for the same tunnel.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    #[error("there is no usable certificate of our own")]
    NoIdentity,
    #[error("the connection was not made in time")]
    ConnectTimeout,
    #[error("cannot connect to {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        error: Arc<DialError>,
    },
    /// Of TLS, or of HTTP/2's first frames.
    #[error("the handshake was not complete in time")]
    HandshakeTimeout,
    #[error("no TLS with the peer")]
    Handshake(#[source] Arc<HandshakeError>),
    /// Its answer to our certificate comes after its part of the handshake.
    #[error("the peer ended TLS after the handshake, most often because it refuses our certificate")]
    TurnedAway,
    #[error("the peer does not speak HTTP/2 as it should")]
    Http2,
    #[error("the peer takes no streams")]
    NoStreams,
    #[error("the far side answered with status {}", status.as_u16())]
    Refused { status: StatusCode, headers: Arc<HeaderMap> },
    #[error("the far side reset the stream instead of an answer (code {code})")]
    Reset { code: u32 },
    #[error("no answer to CONNECT in time")]
    ResponseTimeout,
    #[error("the tunnel was lost before the answer{}", cause(*end))]
    Lost { end: Option<TunnelEnd> },
    #[error("the request cannot be sent")]
    BadRequest,
}

fn cause(end: Option<TunnelEnd>) -> String {
    end.map(|end| format!(" ({})", end.as_str())).unwrap_or_default()
}

impl OpenError {
    /// What it means that a tunnel has ended before it could be used.
    #[must_use]
    pub fn early(end: Option<TunnelEnd>) -> Self {
        match end {
            Some(TunnelEnd::Tls) => Self::TurnedAway,
            Some(TunnelEnd::Http2 | TunnelEnd::PeerError) => Self::Http2,
            _ => Self::Lost { end },
        }
    }

    #[must_use]
    pub fn close_reason(&self) -> CloseReason {
        match self {
            Self::NoIdentity => CloseReason::NoIdentity,
            Self::ConnectTimeout => CloseReason::TunnelConnectTimeout,
            Self::Connect { error, .. } => dial_reason(error),
            Self::HandshakeTimeout => CloseReason::TunnelHandshakeTimeout,
            Self::Handshake(error) => match error.cause {
                Cause::Peer(_) | Cause::NoCertificate | Cause::Unidentified => CloseReason::PeerRefused,
                _ => CloseReason::TlsFailed,
            },
            Self::TurnedAway => CloseReason::TlsFailed,
            Self::Http2 | Self::NoStreams | Self::BadRequest => CloseReason::Http2Failed,
            Self::Refused { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. } => CloseReason::TunnelDenied,
            Self::Refused { .. } | Self::Reset { .. } => CloseReason::TunnelRefused,
            Self::ResponseTimeout => CloseReason::TunnelResponseTimeout,
            Self::Lost { end: Some(TunnelEnd::Revoked) } => CloseReason::PeerRevoked,
            Self::Lost { end: Some(TunnelEnd::Untrusted) } => CloseReason::PeerUntrusted,
            Self::Lost { .. } => CloseReason::TunnelLost,
        }
    }

    #[must_use]
    pub fn side(&self) -> Side {
        self.close_reason().side()
    }

    /// Whether another endpoint might do better.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::NoIdentity | Self::BadRequest => false,
            Self::Connect { error, .. } => dial_reason(error) != CloseReason::ConnectError,
            // It has understood and does not want: the others have the same policy.
            Self::Refused { status, .. } => status.is_server_error(),
            Self::ConnectTimeout
            | Self::HandshakeTimeout
            | Self::Handshake(_)
            | Self::TurnedAway
            | Self::Http2
            | Self::NoStreams
            | Self::Reset { .. }
            | Self::ResponseTimeout
            | Self::Lost { .. } => true,
        }
    }
}

/// On the way to a tunnel a silent port has a meaning of its own.
fn dial_reason(error: &DialError) -> CloseReason {
    match error.close_reason() {
        CloseReason::ConnectTimeout => CloseReason::TunnelConnectTimeout,
        reason => reason,
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::hbone::io::Phase;
    use crate::net::address::UpstreamAddr;

    fn connect(errno: Errno) -> OpenError {
        let address: SocketAddr = "10.0.0.1:15008".parse().expect("address");
        let error = DialError::Connect { address: UpstreamAddr::new(address), error: errno.into() };
        OpenError::Connect { address, error: Arc::new(error) }
    }

    fn refused(status: StatusCode) -> OpenError {
        OpenError::Refused { status, headers: Arc::default() }
    }

    #[test]
    fn each_failure_has_its_reason_and_says_whether_another_endpoint_helps() {
        let handshake = |cause| OpenError::Handshake(Arc::new(HandshakeError { phase: Phase::Certificate, cause }));
        for (error, reason, retryable) in [
            (OpenError::NoIdentity, CloseReason::NoIdentity, false),
            (OpenError::ConnectTimeout, CloseReason::TunnelConnectTimeout, true),
            (connect(Errno::CONNREFUSED), CloseReason::ConnectRefused, true),
            (connect(Errno::TIMEDOUT), CloseReason::TunnelConnectTimeout, true),
            (connect(Errno::HOSTUNREACH), CloseReason::ConnectUnreachable, true),
            (connect(Errno::CONNRESET), CloseReason::ConnectReset, true),
            (connect(Errno::ADDRNOTAVAIL), CloseReason::ConnectError, false),
            (OpenError::HandshakeTimeout, CloseReason::TunnelHandshakeTimeout, true),
            (handshake(Cause::NoCertificate), CloseReason::PeerRefused, true),
            (OpenError::TurnedAway, CloseReason::TlsFailed, true),
            (OpenError::early(Some(TunnelEnd::Tls)), CloseReason::TlsFailed, true),
            (OpenError::early(Some(TunnelEnd::Http2)), CloseReason::Http2Failed, true),
            (OpenError::early(Some(TunnelEnd::Broken)), CloseReason::TunnelLost, true),
            (refused(StatusCode::SERVICE_UNAVAILABLE), CloseReason::TunnelRefused, true),
            (refused(StatusCode::UNAUTHORIZED), CloseReason::TunnelDenied, false),
            (refused(StatusCode::BAD_REQUEST), CloseReason::TunnelRefused, false),
            (OpenError::Reset { code: 8 }, CloseReason::TunnelRefused, true),
            (OpenError::ResponseTimeout, CloseReason::TunnelResponseTimeout, true),
            (OpenError::BadRequest, CloseReason::Http2Failed, false),
        ] {
            assert_eq!((error.close_reason(), error.retryable()), (reason, retryable), "{error}");
        }
    }
}
