//! The sending half: from plaintext to sealed records, and from those to the socket, several at a time.
//!
//! In: slices of plaintext. Out: records on the wire. Invariants: plaintext is read where it lies and sealed into the
//! buffer that is sent, one record behind the other; no more than [`QUEUE_BYTES`] of data wait; what we owe beside
//! the data (a new key, an alert, a farewell) is small and owed once; a buffer is lent only while something is in it.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ContentType;
use tokio::io::AsyncWrite as _;
use tokio::net::TcpStream;

use crate::hbone::io::error::{Alert, TlsError};
use crate::hbone::io::records::{Keys, MAX_SEALED, PACKET_BYTES, RECORD_BYTES};
use crate::net::buffers::{BUFFER_BYTES, Buffer, lend};

/// Sealed data that may wait for the socket; the most that one write carries.
pub const QUEUE_BYTES: usize = 4 * MAX_SEALED;
/// Pieces of plaintext that one record is made of, at most.
const PIECES: usize = 32;

const _: () = assert!(QUEUE_BYTES <= PACKET_BYTES);
// What we owe finds room behind the data.
const _: () = assert!(QUEUE_BYTES + 1024 <= BUFFER_BYTES);

/// A message that announces our next key and asks for nothing.
const KEY_UPDATE: &[u8] = &[24, 0, 0, 1, 0];
const WARNING: u8 = 1;
const FATAL: u8 = 2;

#[derive(Default)]
pub(super) struct Outbound {
    buffer: Option<Buffer>,
    /// Of the buffer: sealed and not sent.
    queue: Range<usize>,
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

    /// What waits for the socket.
    pub(super) fn queued(&self) -> &[u8] {
        self.buffer.as_ref().and_then(|buffer| buffer.get(self.queue.clone())).unwrap_or_default()
    }

    const fn has_room(&self) -> bool {
        self.queue.end + MAX_SEALED <= QUEUE_BYTES
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
        let mut taken = 0;
        let mut slices = slices.iter().map(|slice| &**slice).filter(|slice| !slice.is_empty());
        let mut next = slices.next();
        while next.is_some() && self.has_room() {
            let mut pieces: [&[u8]; PIECES] = [&[]; PIECES];
            let (mut used, mut room) = (0, RECORD_BYTES);
            while let Some(slice) = next
                && room > 0
                && let Some(piece) = pieces.get_mut(used)
            {
                let (now, later) = slice.split_at(slice.len().min(room));
                *piece = now;
                (used, room) = (used + 1, room - now.len());
                next = if later.is_empty() { slices.next() } else { Some(later) };
            }
            self.put_data(keys, pieces.get(..used).unwrap_or_default())?;
            taken += RECORD_BYTES - room;
        }
        if !self.has_room() {
            let _waits: Poll<()> = self.poll_send(socket, cx)?;
        }
        Poll::Ready(Ok(taken))
    }

    fn put_data(&mut self, keys: &mut Keys, pieces: &[&[u8]]) -> Result<(), TlsError> {
        if keys.is_worn() {
            self.owes_key = true;
        }
        self.settle_key(keys)?;
        self.put(keys, ContentType::ApplicationData, pieces)
    }

    fn put(&mut self, keys: &mut Keys, typ: ContentType, pieces: &[&[u8]]) -> Result<(), TlsError> {
        let buffer = self.buffer.get_or_insert_with(lend);
        let room = buffer.get_mut(self.queue.end..).unwrap_or_default();
        self.queue.end += keys.seal(typ, pieces, room)?;
        Ok(())
    }

    fn settle_key(&mut self, keys: &mut Keys) -> Result<(), TlsError> {
        if std::mem::take(&mut self.owes_key) {
            self.put(keys, ContentType::Handshake, &[KEY_UPDATE])?;
            keys.next_to_seal()?;
        }
        Ok(())
    }

    /// One write, of all that is queued.
    fn poll_send(&mut self, socket: &mut TcpStream, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        let written = ready!(Pin::new(socket).poll_write(cx, self.queued()));
        match written {
            Ok(0) => Poll::Ready(Err(TlsError::Socket { kind: io::ErrorKind::WriteZero, errno: None })),
            Ok(written) => {
                self.advance(written);
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(TlsError::socket(&error))),
        }
    }

    fn advance(&mut self, written: usize) {
        self.queue.start += written;
        if self.queue.is_empty() {
            (self.buffer, self.queue) = (None, 0..0);
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
        while !self.queue.is_empty() {
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
            self.put(keys, ContentType::Alert, &[&[WARNING, 0]])?;
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
            || self.put(keys, ContentType::Alert, &[&[FATAL, alert.0]]).is_err()
        {
            return;
        }
        while !self.queue.is_empty() {
            match socket.try_write(self.queued()) {
                Ok(written) if written > 0 => self.advance(written),
                _ => return,
            }
        }
    }
}
