//! Shaking hands: the library's state machine, fed one record at a time.
//!
//! In: a socket, the state machine of either side. Out: the keys, and the bytes that came after the handshake,
//! untouched. Invariants: what a peer may send before it is known is bounded by [`MAX_RECEIVED`]; on failure the alert
//! is handed to the socket before it closes, and given a moment to arrive, since closing a socket with unread bytes
//! resets it and takes the alert away.

use std::io;
use std::time::Duration;

use bytes::BufMut as _;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{CommonState, Error, ExtractedSecrets};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::hbone::io::error::{Cause, HandshakeError, Phase};
use crate::hbone::io::records::{HEADER, MAX_RECORD, Schedule};
use crate::net::buffers::BUFFER_BYTES;

/// Bytes of a peer that are kept until a message is whole. The library allows messages of 64 KiB.
const MAX_RECEIVED: usize = 128 * 1024;
/// Read at once. What comes with the last record must fit the buffer of the stream.
const READ_BYTES: usize = 8 * 1024;
const _: () = assert!(READ_BYTES + MAX_RECORD <= BUFFER_BYTES);
/// How long a refused peer is listened to, so that it can read why.
const LINGER: Duration = Duration::from_millis(250);
/// How much of it is thrown away meanwhile.
const LINGER_BYTES: usize = 256 * 1024;
/// Records that an error leaves to be sent; more than one flight ever has.
const LAST_RECORDS: usize = 16;

/// Either side of the library.
pub(super) trait Side {
    type Data;
    fn step<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn state(&self) -> &CommonState;
    fn secrets(self) -> Result<(ExtractedSecrets, Box<dyn Schedule>), Error>;
}

macro_rules! side {
    ($connection:ty, $data:ty) => {
        impl Side for $connection {
            type Data = $data;

            fn step<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, $data> {
                self.process_tls_records(bytes)
            }

            fn state(&self) -> &CommonState {
                self
            }

            fn secrets(self) -> Result<(ExtractedSecrets, Box<dyn Schedule>), Error> {
                let (secrets, schedule) = self.dangerous_into_kernel_connection()?;
                Ok((secrets, Box::new(schedule)))
            }
        }
    };
}

side!(UnbufferedClientConnection, ClientConnectionData);
side!(UnbufferedServerConnection, ServerConnectionData);

/// A handshake in progress.
pub(super) struct Shake<'a, S> {
    side: Box<S>,
    /// Hears how far it has come.
    tell: &'a dyn Fn(Phase),
    received: Vec<u8>,
    /// How much of `received` are whole records that the library has been given.
    whole: usize,
    /// How much it has been given; more than `whole` when it was shown the beginning of a record.
    given: usize,
    to_send: Vec<u8>,
}

enum Next {
    Again,
    /// All that was given is used up.
    More,
    Failed(Cause),
}

impl<'a, S: Side> Shake<'a, S> {
    pub(super) const fn new(side: Box<S>, tell: &'a dyn Fn(Phase)) -> Self {
        Self { side, tell, received: Vec::new(), whole: 0, given: 0, to_send: Vec::new() }
    }

    /// Shakes hands. On success all of ours has been sent.
    pub(super) async fn run(mut self, socket: &mut TcpStream) -> Result<(Box<S>, Vec<u8>), HandshakeError> {
        let Err(cause) = self.drive(socket).await else { return Ok((self.side, self.received)) };
        let phase = match cause {
            Cause::NotTls | Cause::Incompatible(_) | Cause::ApplicationProtocol => Phase::Hello,
            _ => self.phase(),
        };
        let is_over = matches!(cause, Cause::Alert(_) | Cause::Closed | Cause::Socket { .. });
        self.last_records();
        farewell(socket, &self.to_send, !is_over).await;
        Err(HandshakeError { phase, cause })
    }

    async fn drive(&mut self, socket: &mut TcpStream) -> Result<(), Cause> {
        loop {
            match self.step() {
                Next::Again => continue,
                Next::Failed(cause) => return Err(cause),
                Next::More => {}
            }
            if !self.side.state().is_handshaking() {
                // Keys change with the last message: nothing given may be left over.
                let is_used_up = self.given == 0;
                self.send(socket).await?;
                return if is_used_up { Ok(()) } else { Err(Cause::Protocol) };
            }
            (self.tell)(self.phase());
            while !self.offer() {
                self.send(socket).await?;
                self.receive(socket).await?;
            }
        }
    }

    fn step(&mut self) -> Next {
        let first = self.side.state().protocol_version().is_none();
        let given = self.received.get_mut(..self.given).unwrap_or_default();
        let UnbufferedStatus { discard, state, .. } = self.side.step(given);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.to_send),
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Next::Again
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Next::More,
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Next::Failed(Cause::Closed),
            Ok(_) => Next::Failed(Cause::Protocol),
            Err(error) => Next::Failed(Cause::of(&error, first)),
        };
        let discard = discard.min(self.given);
        self.received.drain(..discard);
        self.given -= discard;
        self.whole = self.whole.saturating_sub(discard);
        next
    }

    /// Gives the library the next record, or shows it the beginning of one, so that garbage is refused at once.
    fn offer(&mut self) -> bool {
        let rest = self.received.get(self.whole..).unwrap_or_default();
        if let [_, _, _, high, low, ..] = rest {
            let end = HEADER + usize::from(u16::from_be_bytes([*high, *low]));
            if rest.len() >= end {
                self.whole += end;
                self.given = self.whole;
                return true;
            }
        }
        let shown = self.given;
        self.given = self.received.len();
        self.given > shown
    }

    async fn send(&mut self, socket: &mut TcpStream) -> Result<(), Cause> {
        if !self.to_send.is_empty() {
            let sent = socket.write_all(&self.to_send).await;
            self.to_send = Vec::new();
            sent.map_err(|error| self.last_heard(socket).unwrap_or_else(|| Cause::socket(&error)))?;
        }
        Ok(())
    }

    /// The socket takes nothing more: perhaps the peer has said why.
    fn last_heard(&mut self, socket: &TcpStream) -> Option<Cause> {
        self.received.reserve(READ_BYTES);
        let _nothing = socket.try_read_buf(&mut (&mut self.received).limit(READ_BYTES));
        while self.offer() {
            let next = std::iter::repeat_with(|| self.step()).find(|next| !matches!(next, Next::Again));
            match next {
                Some(Next::More) => {}
                Some(Next::Failed(cause @ Cause::Alert(_))) => return Some(cause),
                _ => return None,
            }
        }
        None
    }

    async fn receive(&mut self, socket: &mut TcpStream) -> Result<(), Cause> {
        if self.received.len() >= MAX_RECEIVED {
            return Err(Cause::TooLong);
        }
        self.received.reserve(READ_BYTES);
        match socket.read_buf(&mut (&mut self.received).limit(READ_BYTES)).await {
            Ok(0) => Err(Cause::Closed),
            Ok(_) => Ok(()),
            Err(error) => Err(Cause::socket(&error)),
        }
    }

    fn phase(&self) -> Phase {
        let state = self.side.state();
        match (state.negotiated_cipher_suite(), state.peer_certificates()) {
            (None, _) => Phase::Hello,
            (Some(_), None) => Phase::Certificate,
            (Some(_), Some(_)) => Phase::Finish,
        }
    }

    /// What an error has left to be sent: the alert. Nothing more is read from the peer.
    fn last_records(&mut self) {
        for _ in 0..LAST_RECORDS {
            if !self.side.state().wants_write() {
                return;
            }
            let given = self.received.get_mut(..self.given).unwrap_or_default();
            let Ok(ConnectionState::EncodeTlsData(data)) = self.side.step(given).state else { return };
            if matches!(encode(data, &mut self.to_send), Next::Failed(_)) {
                return;
            }
        }
    }
}

fn encode<Data>(mut data: EncodeTlsData<'_, Data>, to_send: &mut Vec<u8>) -> Next {
    let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) else { return Next::Failed(Cause::Internal) };
    let start = to_send.len();
    to_send.resize(start + size.required_size, 0);
    match data.encode(to_send.get_mut(start..).unwrap_or_default()) {
        Ok(_) => Next::Again,
        Err(_) => Next::Failed(Cause::Internal),
    }
}

/// Sends the last bytes, as far as the socket takes them without waiting, and ends the connection. With `linger`
/// the peer has a moment to read them before the socket closes.
pub(super) async fn farewell(socket: &mut TcpStream, bytes: &[u8], linger: bool) {
    let mut rest = bytes;
    while !rest.is_empty() {
        match socket.try_write(rest) {
            Ok(written) if written > 0 => rest = rest.get(written..).unwrap_or_default(),
            _ => break,
        }
    }
    if socket.shutdown().await.is_ok() && linger {
        let _expired = timeout(LINGER, drain(socket)).await;
    }
}

async fn drain(socket: &mut TcpStream) -> io::Result<()> {
    let mut left = LINGER_BYTES;
    let mut waste = vec![0; READ_BYTES];
    while left > 0 {
        match socket.read(&mut waste).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}
