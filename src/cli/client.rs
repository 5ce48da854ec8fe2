//! Commands that talk to a running daemon: `status`, `connections`, `certs`, `reload`, `drain`,
//! `upgrade` and `healthcheck`.
//!
//! Each is one request to the daemon's admin (or readiness) port with a deadline over all. Data goes to stdout; an error is
//! one line and a hint on stderr. Exit code 0 is success, 1 anything else. What the daemon sends is shown with control
//! characters escaped.

pub mod certs;
pub mod connections;
pub mod drain;
pub mod healthcheck;
pub mod reload;
pub mod status;
mod table;
pub mod upgrade;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{CONNECTION, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, UnixStream};

use crate::cli::{Exit, Output};

/// More than a table of a million connections.
const MAX_ANSWER_BYTES: usize = 512 << 20;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the daemon is and how long to wait for it.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// The daemon's admin port: IP:PORT, localhost:PORT, PORT, or unix:/PATH
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    pub admin: Address,

    /// How long to wait for the answer, for example 5s [default: 10s, reload and upgrade 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_timeout)]
    pub timeout: Option<Duration>,
}

/// Where to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug, Error)]
pub enum ClientError {
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("no answer from {address} within {}", humantime::format_duration(*timeout))]
    Timeout { address: String, timeout: Duration },
    #[error("{address} does not speak HTTP as adit does: {source}")]
    Http { address: String, source: hyper::Error },
    #[error("the answer of {address} is malformed: {detail}")]
    Malformed { address: String, detail: String },
    #[error("{address} answered {status}: {message}")]
    Refused { address: String, status: StatusCode, message: String },
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
}

impl ClientError {
    /// What to do about it.
    const fn hint(&self) -> &'static str {
        match self {
            Self::Connect { .. } => {
                "is adit running? its admin address is the setting listen.admin; pass it with --admin"
            }
            Self::Timeout { .. } => "is adit overloaded or stopped? try a longer --timeout",
            Self::Http { .. } | Self::Malformed { .. } => "is that the admin port of an adit of this version?",
            Self::Refused { status: StatusCode::FORBIDDEN, .. } => {
                "ask from the daemon's own host, or set admin.allowRemote"
            }
            Self::Refused { .. } => "see the daemon's log",
            Self::Output(_) => "is the reader of the output still there?",
            Self::Runtime(_) => "are descriptors or memory used up?",
        }
    }
}

/// What the daemon answered.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    body: Bytes,
    address: String,
}

impl Answer {
    /// The document, whatever the status is.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body)
            .map_err(|problem| ClientError::Malformed { address: self.address.clone(), detail: problem.to_string() })
    }

    /// The document of a success; the daemon's own words otherwise.
    pub(crate) fn success<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        if self.status.is_success() { self.parse() } else { Err(self.refused()) }
    }

    pub(crate) fn refused(&self) -> ClientError {
        let document: Option<serde_json::Value> = serde_json::from_slice(&self.body).ok();
        let told = document.as_ref().and_then(|document| document.get("error")?.as_str());
        let message = table::shown(told.unwrap_or("no reason given"));
        ClientError::Refused { address: self.address.clone(), status: self.status, message }
    }

    /// The answer as it came, for `--json`.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }
}

impl AdminArgs {
    pub(crate) fn ask(&self, method: Method, path: &str) -> Result<Answer, ClientError> {
        self.admin.ask(method, path, self.timeout.unwrap_or(DEFAULT_TIMEOUT))
    }
}

impl Address {
    /// One request; everything together within `timeout`.
    pub(crate) fn ask(&self, method: Method, path: &str, timeout: Duration) -> Result<Answer, ClientError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Runtime)?;
        runtime.block_on(async {
            match tokio::time::timeout(timeout, self.exchange(method, path)).await {
                Ok(answer) => answer,
                Err(_elapsed) => Err(ClientError::Timeout { address: self.to_string(), timeout }),
            }
        })
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<Answer, ClientError> {
        let refused = |source| ClientError::Connect { address: self.to_string(), source };
        match self {
            Self::Tcp(address) => {
                let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
                let stream = socket.map_err(refused)?.connect(*address).await.map_err(refused)?;
                self.request(stream, method, path).await
            }
            Self::Unix(file) => {
                let stream = UnixStream::connect(file).await.map_err(refused)?;
                self.request(stream, method, path).await
            }
        }
    }

    async fn request(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        method: Method,
        path: &str,
    ) -> Result<Answer, ClientError> {
        let http = |source| ClientError::Http { address: self.to_string(), source };
        let malformed = |detail: String| ClientError::Malformed { address: self.to_string(), detail };
        let host = match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix(_) => "localhost".into(),
        };
        let request = Request::builder().method(method).uri(path).header(HOST, host).header(CONNECTION, "close");
        let request = request.header("x-adit", "1").body(Empty::<Bytes>::new());
        let request = request.map_err(|problem| malformed(problem.to_string()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        let answer = async {
            let (head, body) = sender.send_request(request).await.map_err(http)?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|problem| malformed(problem.to_string()))?.to_bytes();
            Ok(Answer { status: head.status, body, address: self.to_string() })
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            // The connection may be over before the last of the answer has been looked at.
            _ended = connection => answer.await,
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err("unix: needs a path".into()) } else { Ok(Self::Unix(path.into())) };
        }
        let loopback = |port: u16| Self::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        let port = text.strip_prefix("localhost:").or_else(|| text.strip_prefix(':')).unwrap_or(text);
        if let Ok(port) = port.parse() {
            return Ok(loopback(port));
        }
        text.parse()
            .map(Self::Tcp)
            .map_err(|_unparsable| "expected IP:PORT, localhost:PORT, PORT, or unix:/PATH".into())
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Duration with a unit, more than nothing.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(timeout) if !timeout.is_zero() => Ok(timeout),
        Ok(_) => Err("a timeout must be more than 0s".into()),
        Err(problem) => Err(problem.to_string()),
    }
}

/// Runs a command's body; its error becomes one line and a hint.
pub(super) fn run(
    output: &mut Output<'_>,
    body: impl FnOnce(&mut dyn Write, &mut dyn Write) -> Result<Exit, ClientError>,
) -> Exit {
    let result = body(output.data, output.messages).and_then(|exit| {
        output.data.flush().map_err(ClientError::Output)?;
        Ok(exit)
    });
    match result {
        Ok(exit) => exit,
        // The reader has seen enough.
        Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => {
            output.error(&error, Some(error.hint()));
            Exit::Failed
        }
    }
}

#[cfg(test)]
mod tests;
