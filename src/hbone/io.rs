//! TLS 1.3 over a socket, both sides authenticated, made for bulk.
//!
//! In: a socket, the [`TlsGeneration`] to use, for who connects also whom to accept. Out: a [`TlsStream`] and who is at
//! the other end ([`Handshaken`]), or why not ([`HandshakeError`]). Invariants: nobody is served whose identity was not
//! established; an idle stream holds no buffer; what waits to be sent is bounded by [`QUEUE_BYTES`]. Fails closed.
//! Deliberately absent: deadlines (the caller's), TLS 1.2, resumption, early data, key export.
//!
//! ```text
//! handshake  the library's state machine, one record at a time      error  what can go wrong, in our own words
//! records    keys, sealing and opening
//! inbound    ciphertext to plaintext      outbound  the other way      stream  both, for the layer above
//! ```
//!
//! # Why the records are counted here
//!
//! The library shakes hands (its unbuffered connection) and derives keys; its ciphers seal and open records. Which record
//! comes next is ours, since each of the library's ways to do that copies: its buffered connection reads 4 KiB at a
//! time, keeps every opened record in memory of its own and copies it again to the reader; its unbuffered one
//! does the latter too, and copies sealed records once more. Here a record is opened from where the socket put it to where
//! the reader wants it, and sealed from where the writer has it to where it is sent from: no copy at all, where the
//! reader has room for a whole record and the writer has it in one piece. Two cores, loopback, AES-128-GCM, one way, CPU
//! seconds (user and system) of both ends together per GiB, medians of 9 interleaved runs (5 through HTTP/2) on a busy
//! machine; subtract the first line to see what TLS costs. Calls: of the receiver, of the sender, per MiB.
//!
//! ```text
//!                              64 KiB writes           HTTP/2, frames of 16 KiB   of 256 KiB
//! no TLS                       0.38
//! tokio-rustls                 0.63   66 and 17 calls  1.10   65 and 64 calls     1.19
//! the same, 72 KiB reads       0.60   14 and 17        0.92
//! the library's unbuffered     0.58   18 and 16
//! this                         0.54   16 and 16        0.97   30 and 65           0.68
//! this, corked                                         0.75   17 and 23           0.70
//! ```
//!
//! The last two lines were measured when each record was still copied once on either side. Without that, a pair of proxies
//! needs 2 to 5 % less for bulk and 3 to 8 % less for small messages (medians of 4 interleaved runs of the peers bench).
//!
//! HTTP/2 flushes after each frame, so without [`Handle::cork`] each frame is a write. Opening with AES-256-GCM
//! (0.56, sent by tokio-rustls) and with AES-128-GCM (0.54) did not differ by more than the noise.

pub mod error;
mod handshake;
mod inbound;
mod outbound;
mod records;
mod stream;

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{CipherSuite, ClientConfig, NamedGroup, SupportedCipherSuite};
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;

pub use crate::hbone::io::error::{Alert, Cause, HandshakeError, Phase, TlsError};
use crate::hbone::io::handshake::{Shake, Side, farewell};
use crate::hbone::io::inbound::Inbound;
pub use crate::hbone::io::outbound::QUEUE_BYTES;
use crate::hbone::io::records::Keys;
pub use crate::hbone::io::records::RECORD_BYTES;
pub use crate::hbone::io::stream::{Handle, TlsStream};
use crate::identity::tls::{TlsGeneration, no_name};
use crate::identity::verify::{PeerIdentity, Usage};
use crate::net::sockopt::set_unsent_limit;

/// What may wait in a tunnel's socket to be sent, beside what is on its way. A small message waits behind it, and without a
/// limit that is megabytes while other streams send all they can; with less, bulk costs more (`docs/performance.md`).
const UNSENT_BYTES: i32 = 512 * 1024;

/// A connection whose peer is known.
pub struct Handshaken {
    pub stream: TlsStream,
    pub peer: Arc<PeerIdentity>,
    /// What the peer presented, its leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whether the peer spoke of an application protocol; if so it was the one that is spoken here.
    pub agreed_protocol: bool,
    pub cipher: CipherSuite,
    pub key_exchange: Option<NamedGroup>,
}

/// Shakes hands with whoever connected. Waits as long as the peer makes it wait: put a deadline around it, and
/// drop it to give up.
///
/// # Errors
/// Why the peer is refused, or has gone. It has been told, as far as that is possible, which takes a quarter of a second
/// at most.
pub async fn accept(socket: TcpStream, tls: &Arc<TlsGeneration>) -> Result<Handshaken, HandshakeError> {
    accept_telling(socket, tls, &|_| {}).await
}

/// As [`accept`]; `tell` hears how far it has come, for whoever gives up on it.
///
/// # Errors
/// As in [`accept`].
pub async fn accept_telling(
    socket: TcpStream,
    tls: &Arc<TlsGeneration>,
    tell: &dyn Fn(Phase),
) -> Result<Handshaken, HandshakeError> {
    let mut config = Arc::clone(tls.server());
    if !config.enable_secret_extraction {
        Arc::make_mut(&mut config).enable_secret_extraction = true;
    }
    let side = UnbufferedServerConnection::new(config).map_err(|_detail| internal())?;
    shake(socket, tls, Box::new(side), false, tell).await
}

/// Shakes hands with whom we connected to; `config` says who that may be. Deadline and errors as in [`accept`].
///
/// That this succeeds does not say that the server likes our certificate: if it does not, its alert is the first
/// thing that a read gives.
///
/// # Errors
/// As in [`accept`].
pub async fn connect(
    socket: TcpStream,
    tls: &Arc<TlsGeneration>,
    mut config: Arc<ClientConfig>,
) -> Result<Handshaken, HandshakeError> {
    if !config.enable_secret_extraction {
        Arc::make_mut(&mut config).enable_secret_extraction = true;
    }
    let side = UnbufferedClientConnection::new(config, no_name()).map_err(|_detail| internal())?;
    shake(socket, tls, Box::new(side), true, &|_| {}).await
}

async fn shake<S: Side>(
    mut socket: TcpStream,
    tls: &Arc<TlsGeneration>,
    side: Box<S>,
    is_client: bool,
    tell: &dyn Fn(Phase),
) -> Result<Handshaken, HandshakeError> {
    let (side, rest) = Shake::new(side, tell).run(&mut socket).await?;
    let state = side.state();
    let chain: Vec<_> = state.peer_certificates().unwrap_or_default().to_vec();
    let peer = tls.peer(Some(&chain), if is_client { Usage::Server } else { Usage::Client });
    let agreed_protocol = state.alpn_protocol().is_some();
    let key_exchange = state.negotiated_key_exchange_group().map(|group| group.name());
    let Some(SupportedCipherSuite::Tls13(suite)) = state.negotiated_cipher_suite() else { return Err(internal()) };
    let (secrets, schedule) = side.secrets().map_err(|_detail| internal())?;
    let keys = Keys::new(suite, secrets, schedule).ok_or_else(internal)?;
    let Some(peer) = peer else {
        let mut outbound = outbound::Outbound::default();
        let mut keys = keys;
        outbound.complain(&socket, &mut keys, Alert::ACCESS_DENIED);
        farewell(&mut socket, &[], true).await;
        return Err(HandshakeError { phase: Phase::Finish, cause: Cause::Unidentified });
    };
    // A socket that refuses the option is gone, and says so when it is used.
    let _ = set_unsent_limit(&socket, UNSENT_BYTES);
    let stream = TlsStream::new(socket, keys, Inbound::new(is_client, rest));
    Ok(Handshaken { stream, peer, chain, agreed_protocol, cipher: suite.common.suite, key_exchange })
}

const fn internal() -> HandshakeError {
    HandshakeError { phase: Phase::Hello, cause: Cause::Internal }
}

#[cfg(test)]
mod tests;
