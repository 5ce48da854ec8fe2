//! Takes the PROXY protocol header from an accepted socket, and not one byte of what follows.
//!
//! In: a socket whose peer must send a header. Out: what it says, or why there is none. What has arrived is looked at
//! first; as long as it is no whole header all of it belongs to one and is taken, so the socket never stays ready for
//! bytes that are known already, and the last piece is taken to the header's end only.
//!
//! Fails closed, within the time that the caller gives.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::read::{Ends, LONGEST, Malformed, Parsed, parse};
use crate::proxy::connect::ConnectError;
use crate::telemetry::CloseReason;

/// Looked at at one go. Most headers are shorter, and none is longer than a few of these.
const PIECE: usize = 512;

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("no complete header in time")]
    Timeout,
    #[error(transparent)]
    Malformed(Malformed),
    #[error("closed before the header was complete")]
    Closed,
    #[error("reading the header failed")]
    Io(#[source] io::Error),
}

impl HeaderError {
    #[must_use]
    pub const fn close_reason(&self) -> CloseReason {
        match self {
            Self::Timeout => CloseReason::ProxyHeaderTimeout,
            Self::Malformed(_) => CloseReason::ProxyHeaderInvalid,
            Self::Closed | Self::Io(_) => CloseReason::DownstreamGone,
        }
    }
}

impl From<HeaderError> for ConnectError {
    fn from(error: HeaderError) -> Self {
        let reason = error.close_reason();
        let detail = match error {
            // The reason says as much.
            HeaderError::Timeout | HeaderError::Closed => None,
            HeaderError::Malformed(malformed) => Some(io::Error::other(malformed)),
            HeaderError::Io(error) => Some(error),
        };
        Self::new(reason, detail)
    }
}

/// `None`: the client is the socket's peer.
///
/// # Errors
/// There is no valid header within that time.
pub async fn read_header(stream: &TcpStream, within: Duration) -> Result<Option<Ends>, HeaderError> {
    timeout(within, read(stream)).await.unwrap_or(Err(HeaderError::Timeout))
}

async fn read(stream: &TcpStream) -> Result<Option<Ends>, HeaderError> {
    let mut header = Vec::with_capacity(PIECE);
    loop {
        let mut ahead = [0; PIECE];
        let room = PIECE.min(LONGEST.saturating_sub(header.len()));
        let piece = ahead.get_mut(..room).unwrap_or_default();
        let count = stream.peek(piece).await.map_err(HeaderError::Io)?;
        if count == 0 {
            return Err(HeaderError::Closed);
        }
        let taken = header.len();
        header.extend_from_slice(piece.get(..count).unwrap_or_default());
        match parse(&header).map_err(HeaderError::Malformed)? {
            Parsed::Incomplete => take(stream, count).await.map_err(HeaderError::Io)?,
            Parsed::Header { length, source } => {
                take(stream, length.saturating_sub(taken)).await.map_err(HeaderError::Io)?;
                return Ok(source);
            }
        }
    }
}

/// Takes bytes that have been seen.
async fn take(stream: &TcpStream, mut count: usize) -> io::Result<()> {
    let mut seen = [0; PIECE];
    while count > 0 {
        stream.readable().await?;
        match stream.try_read(seen.get_mut(..count.min(PIECE)).unwrap_or_default()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => count -= read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
