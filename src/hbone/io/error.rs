//! What can go wrong with TLS, in our own words: while shaking hands, and afterwards.
//!
//! In: the library's errors, alerts, errors of the socket. Out: closed enums, a label for metrics, a sentence for a log.
//! Invariant: no text of a library is ever printed.

use std::fmt;
use std::io;

use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved};

use crate::identity::verify::PeerError;

/// What the peer said before it went away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alert(pub u8);

impl Alert {
    pub(super) const ACCESS_DENIED: Self = Self(49);
    pub(super) const BAD_RECORD_MAC: Self = Self(20);
    pub(super) const DECODE_ERROR: Self = Self(50);
    pub(super) const INTERNAL_ERROR: Self = Self(80);
    pub(super) const RECORD_OVERFLOW: Self = Self(22);
    pub(super) const UNEXPECTED_MESSAGE: Self = Self(10);

    /// Whether it speaks of the certificate, or of who presented it.
    #[must_use]
    pub const fn is_about_certificate(self) -> bool {
        matches!(self.0, 41..=46 | 48 | 49 | 113 | 116)
    }

    #[must_use]
    pub const fn words(self) -> &'static str {
        match self.0 {
            0 => "it closed",
            10 => "a message was not expected",
            20 => "a record was not authentic",
            22 => "a record was too long",
            40 => "no common parameters",
            42 => "the certificate is bad",
            43 => "the kind of certificate is not supported",
            44 => "the certificate is revoked",
            45 => "the certificate has expired or is not yet valid",
            46 => "the certificate is not acceptable",
            47 => "a field is out of range",
            48 => "no trusted root has signed the certificate",
            49 => "access denied",
            50 => "a message is malformed",
            51 => "a signature does not hold",
            70 => "no common version of the protocol",
            71 => "security not sufficient",
            80 => "an internal error",
            86 => "an inappropriate fallback",
            90 => "cancelled by its user",
            109 => "an extension is missing",
            110 => "an extension is not supported",
            112 => "the name is not known",
            116 => "a certificate is required",
            120 => "no common application protocol",
            _ => "a reason that we do not know",
        }
    }
}

impl From<AlertDescription> for Alert {
    fn from(description: AlertDescription) -> Self {
        Self(description.into())
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (alert {})", self.words(), self.0)
    }
}

/// How a peer broke the protocol after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    NotSealed,
    RecordTooLong,
    UnknownKind,
    TooManyWithoutData,
    MessageTooLong,
    MessageMalformed,
    MessageUnexpected,
    MessageInterrupted,
    MessageSpansKeys,
    KeyWornOut,
}

impl Breach {
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::NotSealed => "a record is not sealed",
            Self::RecordTooLong => "a record is too long",
            Self::UnknownKind => "a record is of no known kind",
            Self::TooManyWithoutData => "too many records without data",
            Self::MessageTooLong => "a message is too long",
            Self::MessageMalformed => "a message is malformed",
            Self::MessageUnexpected => "a message is not expected any more",
            Self::MessageInterrupted => "a message is interrupted",
            Self::MessageSpansKeys => "a message spans two keys",
            Self::KeyWornOut => "a key is worn out",
        }
    }

    const fn alert(self) -> Alert {
        match self {
            Self::RecordTooLong => Alert::RECORD_OVERFLOW,
            Self::MessageTooLong | Self::MessageMalformed => Alert::DECODE_ERROR,
            _ => Alert::UNEXPECTED_MESSAGE,
        }
    }
}

/// Why an established stream has ended badly; inside every [`io::Error`] that a stream returns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// To a client this may be the answer to its certificate.
    #[error("the peer refused: {0}")]
    Alert(Alert),
    #[error("the peer went away without saying so")]
    Truncated,
    #[error("a record from the peer is not authentic")]
    Decrypt,
    #[error("the peer broke the protocol: {}", .0.words())]
    Protocol(Breach),
    #[error("the socket failed: {}", Errno(*errno))]
    Socket { kind: io::ErrorKind, errno: Option<i32> },
    #[error("written to after it was shut down")]
    Closed,
    #[error("records cannot be made any more")]
    Seal,
}

/// The name of an error of the system, without the library's words around it.
struct Errno(Option<i32>);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::CONNRESET) => f.write_str("reset by the peer"),
            Some(rustix::io::Errno::PIPE) => f.write_str("closed by the peer"),
            Some(rustix::io::Errno::TIMEDOUT) => f.write_str("the peer does not answer"),
            Some(errno) => write!(f, "error {}", errno.raw_os_error()),
            None => f.write_str("no reason given"),
        }
    }
}

impl TlsError {
    /// A metric label.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Alert(_) => "alert",
            Self::Truncated => "truncated",
            Self::Decrypt => "decrypt",
            Self::Protocol(_) => "protocol",
            Self::Socket { .. } => "socket",
            Self::Closed => "closed",
            Self::Seal => "internal",
        }
    }

    /// The reason inside an error that a stream returned.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    pub(super) fn socket(error: &io::Error) -> Self {
        Self::Socket { kind: error.kind(), errno: error.raw_os_error() }
    }

    /// What the peer is to be told; nothing when it has gone or is the one that complained.
    pub(super) const fn alert(&self) -> Option<Alert> {
        match self {
            Self::Decrypt => Some(Alert::BAD_RECORD_MAC),
            Self::Protocol(breach) => Some(breach.alert()),
            Self::Seal => Some(Alert::INTERNAL_ERROR),
            Self::Alert(_) | Self::Truncated | Self::Socket { .. } | Self::Closed => None,
        }
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        let kind = match &error {
            TlsError::Alert(_) => io::ErrorKind::ConnectionAborted,
            TlsError::Truncated => io::ErrorKind::UnexpectedEof,
            TlsError::Decrypt | TlsError::Protocol(_) => io::ErrorKind::InvalidData,
            TlsError::Socket { kind, .. } => *kind,
            TlsError::Closed => io::ErrorKind::BrokenPipe,
            TlsError::Seal => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// How far a handshake had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is agreed yet.
    Hello,
    /// The peer's certificate is awaited or judged.
    Certificate,
    /// The peer's certificate is good; the rest is missing.
    Finish,
}

impl Phase {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Certificate => "certificate",
            Self::Finish => "finish",
        }
    }
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
#[error("{cause} (phase: {})", phase.name())]
pub struct HandshakeError {
    pub phase: Phase,
    pub cause: Cause,
}

/// What made a handshake fail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    #[error("the peer is refused: {0}")]
    Peer(#[from] PeerError),
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// The verifiers said yes, but nobody knows whom they meant.
    #[error("the peer is refused: who it is was not established")]
    Unidentified,
    #[error("the peer refused: {0}")]
    Alert(Alert),
    #[error("the peer went away")]
    Closed,
    #[error("what the peer sent is not TLS")]
    NotTls,
    #[error("nothing in common with the peer: {0}")]
    Incompatible(&'static str),
    #[error("the peer offers no application protocol that is spoken here")]
    ApplicationProtocol,
    #[error("what the peer sent is too long")]
    TooLong,
    #[error("the peer broke the protocol")]
    Protocol,
    #[error("a record from the peer is not authentic")]
    Decrypt,
    #[error("the socket failed: {}", Errno(*errno))]
    Socket { kind: io::ErrorKind, errno: Option<i32> },
    #[error("TLS cannot be set up")]
    Internal,
}

impl HandshakeError {
    /// A metric label: of the peer's certificate when that was the reason, else of its own.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match &self.cause {
            Cause::Peer(error) => error.reason(),
            Cause::NoCertificate => "no_certificate",
            Cause::Unidentified => "unidentified",
            Cause::Alert(_) => "alert",
            Cause::Closed => "closed",
            Cause::NotTls => "not_tls",
            Cause::Incompatible(_) => "incompatible",
            Cause::ApplicationProtocol => "alpn",
            Cause::TooLong => "too_long",
            Cause::Protocol => "protocol",
            Cause::Decrypt => "decrypt",
            Cause::Socket { .. } => "socket",
            Cause::Internal => "other",
        }
    }
}

impl HandshakeError {
    /// Of a library that shakes hands itself, and keeps its reason inside the error.
    pub(in crate::hbone) fn of(error: &io::Error) -> Self {
        let cause = match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => Cause::of(error, false),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Cause::Closed,
            None => Cause::socket(error),
        };
        let phase = if matches!(cause, Cause::Peer(_)) { Phase::Certificate } else { Phase::Hello };
        Self { phase, cause }
    }
}

impl Cause {
    pub(super) fn socket(error: &io::Error) -> Self {
        Self::Socket { kind: error.kind(), errno: error.raw_os_error() }
    }

    /// `first`: nothing of the peer has been understood yet.
    pub(super) fn of(error: &Error, first: bool) -> Self {
        if let Some(error) = PeerError::of(error) {
            return Self::Peer(error);
        }
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(alert) => Self::Alert((*alert).into()),
            Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion)
                if first =>
            {
                Self::NotTls
            }
            Error::InvalidMessage(
                InvalidMessage::HandshakePayloadTooLarge
                | InvalidMessage::CertificatePayloadTooLarge
                | InvalidMessage::MessageTooLarge,
            )
            | Error::PeerSentOversizedRecord => Self::TooLong,
            Error::PeerIncompatible(what) => Self::Incompatible(incompatible(what)),
            Error::NoApplicationProtocol
            | Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedApplicationProtocol) => Self::ApplicationProtocol,
            Error::InvalidCertificate(_) => Self::Peer(PeerError::Rule("not supported")),
            Error::InvalidMessage(_)
            | Error::PeerMisbehaved(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. } => Self::Protocol,
            Error::DecryptError => Self::Decrypt,
            _ => Self::Internal,
        }
    }
}

fn incompatible(what: &PeerIncompatible) -> &'static str {
    use PeerIncompatible as P;
    match what {
        P::SupportedVersionsExtensionRequired
        | P::Tls12NotOffered
        | P::Tls12NotOfferedOrEnabled
        | P::Tls13RequiredForQuic
        | P::ServerDoesNotSupportTls12Or13
        | P::ServerSentHelloRetryRequestWithUnknownExtension
        | P::ServerTlsVersionIsDisabledByOurConfig => "it does not speak TLS 1.3",
        P::NoCipherSuitesInCommon => "no cipher",
        P::NoKxGroupsInCommon | P::NamedGroupsExtensionRequired | P::KeyShareExtensionRequired => "no key exchange",
        P::NoSignatureSchemesInCommon
        | P::NoCertificateRequestSignatureSchemesInCommon
        | P::SignatureAlgorithmsExtensionRequired => "no signature algorithm",
        _ => "a feature is missing",
    }
}
