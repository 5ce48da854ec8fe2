//! The sending half: from plaintext to sealed records, and from those to the socket, several at a time.
//!
//! In: slices of plaintext. Out: records on the wire. Invariants: the plaintext is copied once, into its record, which
//! is sealed in place and handed to the socket from there; no more than [`QUEUE_BYTES`] of data wait; what we owe beside
//! the data (a new key, an alert, a farewell) is small and owed once.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ContentType;
use rustls::crypto::cipher::OutboundChunks;
use tokio::io::AsyncWrite as _;
use tokio::net::TcpStream;

use crate::hbone::io::error::{Alert, TlsError};
use crate::hbone::io::records::{Keys, MAX_PLAIN, MAX_SEALED};

/// Sealed data that may wait for the socket; the most that one write carries.
pub const QUEUE_BYTES: usize = 4 * MAX_SEALED;
/// Slices that one call looks at, of plaintext or of records.
const SLICES: usize = 32;

/// A message that announces our next key and asks for nothing.
const KEY_UPDATE: &[u8] = &[24, 0, 0, 1, 0];
const WARNING: u8 = 1;
const FATAL: u8 = 2;

#[derive(Default)]
pub(super) struct Outbound {
    queue: VecDeque<Vec<u8>>,
    /// How much of the first has gone.
    sent: usize,
    pub(super) bytes: usize,
    owes_key: bool,
    farewell: bool,
}

impl Outbound {
    /// The peer wants us to change our key. However often it asks before we can: once.
    pub(super) const fn owe_key(&mut self) {
        self.owes_key = true;
    }

    pub(super) const fn owes_key(&self) -> bool {
        self.owes_key
    }

    const fn has_room(&self) -> bool {
        self.bytes + MAX_SEALED <= QUEUE_BYTES
    }

    /// Seals as much as there is room for, and waits when there is none.
    pub(super) fn poll_write(
        &mut self,
        socket: &mut TcpStream,
        keys: &mut Keys,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize, TlsError>> {
        while !self.has_room() {
            ready!(self.poll_send(socket, cx))?;
        }
        let mut chunks: [&[u8]; SLICES] = [&[]; SLICES];
        let full = slices.iter().filter(|slice| !slice.is_empty());
        let used = chunks.iter_mut().zip(full).map(|(chunk, slice)| *chunk = slice).count();
        let mut rest = OutboundChunks::new(&chunks[..used]);
        let mut taken = 0;
        while !rest.is_empty() && self.has_room() {
            let (record, after) = rest.split_at(MAX_PLAIN);
            taken += record.len();
            self.put_data(keys, record)?;
            rest = after;
        }
        if !self.has_room() {
            let _waits: Poll<()> = self.poll_send(socket, cx)?;
        }
        Poll::Ready(Ok(taken))
    }

    fn put_data(&mut self, keys: &mut Keys, record: OutboundChunks<'_>) -> Result<(), TlsError> {
        if keys.is_worn() {
            self.owes_key = true;
        }
        self.settle_key(keys)?;
        self.put(keys, ContentType::ApplicationData, record)
    }

    fn put(&mut self, keys: &mut Keys, typ: ContentType, content: OutboundChunks<'_>) -> Result<(), TlsError> {
        let record = keys.seal(typ, content)?;
        self.bytes += record.len();
        self.queue.push_back(record);
        Ok(())
    }

    fn settle_key(&mut self, keys: &mut Keys) -> Result<(), TlsError> {
        if std::mem::take(&mut self.owes_key) {
            self.put(keys, ContentType::Handshake, OutboundChunks::Single(KEY_UPDATE))?;
            keys.next_to_seal()?;
        }
        Ok(())
    }

    /// One write, of all that is queued.
    fn poll_send(&mut self, socket: &mut TcpStream, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        let (slices, used) = self.slices();
        let written = ready!(Pin::new(socket).poll_write_vectored(cx, &slices[..used]));
        match written {
            Ok(0) => Poll::Ready(Err(TlsError::Socket { kind: io::ErrorKind::WriteZero, errno: None })),
            Ok(written) => {
                self.advance(written);
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(TlsError::socket(&error))),
        }
    }

    fn slices(&self) -> ([IoSlice<'_>; SLICES], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut skip = self.sent;
        let filled = slices.iter_mut().zip(&self.queue).map(|(slice, record)| {
            *slice = IoSlice::new(record.get(skip..).unwrap_or_default());
            skip = 0;
        });
        let used = filled.count();
        (slices, used)
    }

    fn advance(&mut self, written: usize) {
        self.bytes -= written.min(self.bytes);
        self.sent += written;
        while let Some(first) = self.queue.front()
            && self.sent >= first.len()
        {
            self.sent -= first.len();
            self.queue.pop_front();
        }
    }

    /// Sends all that is queued and owed.
    pub(super) fn poll_flush(
        &mut self,
        socket: &mut TcpStream,
        keys: &mut Keys,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TlsError>> {
        self.settle_key(keys)?;
        while self.bytes > 0 {
            ready!(self.poll_send(socket, cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more comes, sends all, ends the sending half of the socket.
    pub(super) fn poll_shutdown(
        &mut self,
        socket: &mut TcpStream,
        keys: &mut Keys,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TlsError>> {
        if !self.farewell {
            self.settle_key(keys)?;
            self.put(keys, ContentType::Alert, OutboundChunks::Single(&[WARNING, 0]))?;
            self.farewell = true;
        }
        ready!(self.poll_flush(socket, keys, cx))?;
        Pin::new(socket).poll_shutdown(cx).map_err(|error| TlsError::socket(&error))
    }

    pub(super) const fn is_shut(&self) -> bool {
        self.farewell
    }

    /// Complains, as the last thing, as far as the socket takes it without waiting.
    pub(super) fn complain(&mut self, socket: &TcpStream, keys: &mut Keys, alert: Alert) {
        if std::mem::replace(&mut self.farewell, true)
            || self.put(keys, ContentType::Alert, OutboundChunks::Single(&[FATAL, alert.0])).is_err()
        {
            return;
        }
        while self.bytes > 0 {
            let (slices, used) = self.slices();
            let written: io::Result<usize> = socket.try_write_vectored(&slices[..used]);
            match written {
                Ok(written) if written > 0 => self.advance(written),
                _ => return,
            }
        }
    }
}
