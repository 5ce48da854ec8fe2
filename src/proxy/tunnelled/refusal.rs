//! Why a stream is refused, and what its client is told: a status and a word, a reset, or nothing.

use h2::Reason;
use http::StatusCode;

use crate::hbone::request::Rejected;
use crate::proxy::connect::ConnectError;
use crate::proxy::next_hop::Refusal as NoHop;
use crate::telemetry::CloseReason;

/// Why a stream is refused, and what the client is told.
pub(super) struct Refusal {
    pub(super) reason: CloseReason,
    pub(super) answer: Answer,
    pub(super) detail: Option<Box<str>>,
}

pub(super) enum Answer {
    Status(StatusCode, &'static str),
    Reset(Reason),
    /// Nobody listens any more.
    None,
}

impl Refusal {
    pub(super) fn unavailable(reason: CloseReason) -> Self {
        let answer = Answer::Status(StatusCode::SERVICE_UNAVAILABLE, reason.as_str());
        Self { reason, answer, detail: None }
    }

    /// The source makes more connections than it may.
    pub(super) fn too_many() -> Self {
        let reason = CloseReason::RateLimited;
        Self { reason, answer: Answer::Status(StatusCode::TOO_MANY_REQUESTS, reason.as_str()), detail: None }
    }

    /// What adit itself ends before there is an answer.
    pub(super) fn killed(reason: CloseReason) -> Self {
        Self { reason, answer: Answer::Reset(Reason::CANCEL), detail: None }
    }

    pub(super) const fn gone(reason: CloseReason) -> Self {
        Self { reason, answer: Answer::None, detail: None }
    }
}

impl From<Rejected> for Refusal {
    fn from(rejected: Rejected) -> Self {
        let answer = Answer::Status(rejected.status(), rejected.word());
        let source = std::error::Error::source(&rejected);
        let detail = source.map_or_else(|| rejected.to_string(), |source| format!("{rejected}: {source}"));
        Self { reason: CloseReason::BadConnect, answer, detail: Some(detail.into()) }
    }
}

impl From<NoHop> for Refusal {
    fn from(refusal: NoHop) -> Self {
        let reason = match refusal {
            NoHop::ForbiddenAddress(_) | NoHop::IpMismatch { .. } => CloseReason::NotLocal,
            NoHop::UnknownLocalWorkload | NoHop::UnknownHostname => CloseReason::UnknownWorkload,
            NoHop::NoServicePort(_) | NoHop::NoServiceAddress => CloseReason::NoServicePort,
            NoHop::OwnPort(_) => CloseReason::LoopRefused,
        };
        let answer = Answer::Status(refusal.status(), refusal.word());
        Self { reason, answer, detail: Some(refusal.to_string().into()) }
    }
}

impl From<ConnectError> for Refusal {
    fn from(ConnectError { reason, detail, .. }: ConnectError) -> Self {
        let status = match reason {
            CloseReason::PolicyDenied => StatusCode::UNAUTHORIZED,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let answer = Answer::Status(status, reason.as_str());
        Self { reason, answer, detail: detail.map(|error| error.to_string().into()) }
    }
}
