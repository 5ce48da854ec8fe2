//! The CONNECT request of a tunnel's stream and its answer, as pure functions: no I/O, no state.
//!
//! ```text
//! client: ConnectRequest::build  -->  headers of h2  -->  read: server      (authority, baggage, scratch, trace)
//! client: read_answer            <--  headers of h2  <--  accepted | refused: server            (claims, answer)
//! ```
//!
//! The form is ztunnel's: a method, an authority, and a few headers that describe the client. Only the authority decides
//! anything; all other headers are [`Claims`]: for logs and metrics, bounded, never for authorization. Fails closed: a
//! request that is not plainly a CONNECT to a sound authority is refused with a status and a word.
//!
//! What is constant is made once: the baggage of a workload is a header value that every request shares.
//! Deliberately absent: where an authority may lead, which is the data path's to decide.

mod answer;
mod authority;
mod baggage;
mod claims;
mod scratch;
mod trace;

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, request};

pub use answer::{Refused, accepted, claims_of, read_answer, reason_of, refused};
pub use authority::{Authority, AuthorityError, HostName, LONGEST_AUTHORITY, NotAName};
pub use baggage::baggage_of;
pub use claims::Claims;
use scratch::Scratch;
pub use trace::Traceparent;

static BAGGAGE: HeaderName = HeaderName::from_static("baggage");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");
/// Why a stream is refused, in one word.
static REASON: HeaderName = HeaderName::from_static("x-adit-reason");

/// `for="[` 39 digits and colons `]:65535";host=` and a name.
const LONGEST_FORWARDED: usize = 5 + 47 + 1 + 6 + 253;

/// What a client asks of the far end of a tunnel.
#[derive(Debug, Clone, Copy)]
pub struct ConnectRequest<'a> {
    pub authority: &'a Authority,
    /// Of the source workload, from [`baggage_of`].
    pub baggage: Option<&'a HeaderValue>,
    /// Where the connection came from.
    pub client: SocketAddr,
    /// The host name of the service that it addressed; not sent if it is not a DNS name.
    pub service: Option<&'a str>,
    pub trace: Traceparent,
    /// The own network, only to a workload of another network behind its gateway.
    pub network: Option<&'a HeaderValue>,
}

impl ConnectRequest<'_> {
    /// The request as it goes to h2. Four allocations: authority, header table, `forwarded`, `traceparent`.
    #[must_use]
    pub fn build(&self) -> Request<()> {
        let mut headers = HeaderMap::with_capacity(4);
        if let Some(baggage) = self.baggage {
            headers.insert(BAGGAGE.clone(), baggage.clone());
        }
        if let Some(forwarded) = forwarded(self.client, self.service) {
            headers.insert(FORWARDED, forwarded);
        }
        if let Some(trace) = self.trace.header() {
            headers.insert(TRACEPARENT.clone(), trace);
        }
        if let Some(network) = self.network {
            headers.insert(NETWORK.clone(), network.clone());
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = self.authority.to_uri();
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = headers;
        request
    }
}

/// `for="<client>"` and, for a service, `;host=<name>`. Always made: whatever is in it is printable and within the bound.
fn forwarded(client: SocketAddr, service: Option<&str>) -> Option<HeaderValue> {
    let port = client.port();
    let mut text = Scratch::<LONGEST_FORWARDED>::new();
    match client.ip().to_canonical() {
        IpAddr::V4(ip) => write!(text, "for=\"{ip}:{port}\""),
        IpAddr::V6(ip) => write!(text, "for=\"[{ip}]:{port}\""),
    }
    .ok()?;
    if let Some(service) = service.filter(|service| authority::is_host_name(service)) {
        write!(text, ";host={service}").ok()?;
    }
    HeaderValue::from_bytes(text.bytes()).ok()
}

/// A request that asks for something sound.
#[derive(Debug, Clone)]
pub struct Connect<'a> {
    pub authority: Authority,
    pub claims: Claims<'a>,
}

/// Why a request is refused before anything is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("expected method CONNECT")]
    Method,
    #[error("extended CONNECT is not supported")]
    Extended,
    #[error("no valid authority")]
    Authority(#[source] AuthorityError),
}

impl Rejected {
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Method | Self::Authority(_) => StatusCode::BAD_REQUEST,
            // RFC 9220: the answer to a `:protocol` that a server does not know.
            Self::Extended => StatusCode::NOT_IMPLEMENTED,
        }
    }

    /// For the far side's log.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Method => "not_connect",
            Self::Extended => "extended_connect",
            Self::Authority(_) => "bad_authority",
        }
    }
}

/// Reads a request as a server.
///
/// h2 has refused before what HTTP/2 itself forbids, with a reset of the stream: a missing method, a scheme or path in a
/// CONNECT, an authority with characters that no URI has.
///
/// # Errors
/// See [`Rejected`].
pub fn read(parts: &request::Parts) -> Result<Connect<'_>, Rejected> {
    if parts.method != Method::CONNECT {
        return Err(Rejected::Method);
    }
    if parts.extensions.get::<h2::ext::Protocol>().is_some() {
        return Err(Rejected::Extended);
    }
    let authority = parts.uri.authority().map_or("", |authority| authority.as_str());
    let authority = authority.parse().map_err(Rejected::Authority)?;
    Ok(Connect { authority, claims: Claims(&parts.headers) })
}

#[cfg(test)]
mod tests;
