//! The receiving half: from ciphertext in a buffer to plaintext, record by record.
//!
//! In: bytes that the socket put into [`Inbound::room`]. Out: plaintext, opened into the reader's own buffer, or copied
//! there once where that has no room for a whole record; and what the peer says beside it ([`Step`]). Invariants: a
//! buffer is lent only while something is in it; what waits for the rest of its record lies in memory of its own size
//! ([`Inbound::park`]). Messages of a handshake that has ended are few: new keys are obeyed, tickets are dropped, all
//! else is refused.

use std::ops::Range;

use rustls::ContentType;
use tokio::io::ReadBuf;

use crate::hbone::io::error::{Alert, Breach, TlsError};
use crate::hbone::io::records::{HEADER, Keys, MAX_RECORD, TAG};
use crate::net::buffers::{Buffer, LARGE_BYTES, lend, lend_large};

/// Records without data in a row. A peer that sends more wastes our time.
const FRUITLESS: u8 = 32;
/// A message beside the data, at most; tickets are the longest.
const MAX_MESSAGE: usize = 64 * 1024;

const TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// What the next record was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Plaintext is there, or something without meaning was passed over.
    Done,
    /// The peer has changed its key, and wants us to change ours.
    ChangeKey,
    /// The peer sends nothing more.
    Closed,
    /// The record is not whole.
    More,
}

pub(super) struct Inbound {
    /// Only the side that connected may be sent tickets.
    takes_tickets: bool,
    buffer: Option<Buffer>,
    /// The last read filled all the room there was.
    bulk: bool,
    /// The beginning of a record, while nothing more comes.
    pub(super) parked: Vec<u8>,
    /// Opened and not yet read.
    plain: Range<usize>,
    /// Not yet opened.
    sealed: Range<usize>,
    /// The beginning of a message that continues in the next record.
    message: Vec<u8>,
    fruitless: u8,
}

impl Inbound {
    /// `parked`: what came together with the end of the handshake.
    pub(super) const fn new(takes_tickets: bool, parked: Vec<u8>) -> Self {
        Self {
            takes_tickets,
            buffer: None,
            bulk: false,
            parked,
            plain: 0..0,
            sealed: 0..0,
            message: Vec::new(),
            fruitless: 0,
        }
    }

    /// Moves plaintext to its reader.
    pub(super) fn read(&mut self, out: &mut ReadBuf<'_>) {
        let Some(buffer) = &self.buffer else { return };
        let len = self.plain.len().min(out.remaining());
        out.put_slice(&buffer[self.plain.start..self.plain.start + len]);
        self.plain.start += len;
    }

    /// Opens the next record: into `out` where that has room for whatever is in it, else where it is. To be called only when
    /// all plaintext has been read.
    pub(super) fn step(&mut self, keys: &mut Keys, out: &mut ReadBuf<'_>) -> Result<Step, TlsError> {
        if has_record(&self.parked) {
            self.unpark();
        }
        let Some(buffer) = &mut self.buffer else { return Ok(Step::More) };
        let sealed = &mut buffer[self.sealed.clone()];
        let [typ, _, _, high, low, rest @ ..] = sealed else { return Ok(Step::More) };
        if ContentType::from(*typ) != ContentType::ApplicationData {
            return Err(TlsError::Protocol(Breach::NotSealed));
        }
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        if HEADER + len > MAX_RECORD {
            return Err(TlsError::Protocol(Breach::RecordTooLong));
        }
        let Some(payload) = rest.get_mut(..len) else { return Ok(Step::More) };
        let inner = len.checked_sub(TAG).ok_or(TlsError::Decrypt)?;
        let is_direct = inner <= out.remaining();
        let (typ, plain) = if is_direct {
            let room = out.initialize_unfilled_to(inner);
            let (typ, plain) = keys.open(payload, room)?;
            if typ != ContentType::ApplicationData {
                // It is not for the reader.
                payload[..plain].copy_from_slice(&room[..plain]);
            }
            (typ, plain)
        } else {
            keys.open_in_place(payload)?
        };
        let start = self.sealed.start + HEADER;
        self.sealed.start = start + len;
        let content = start..start + plain;
        if typ == ContentType::ApplicationData && plain > 0 && self.message.is_empty() {
            if is_direct {
                out.advance(plain);
            } else {
                self.plain = content;
            }
            self.fruitless = 0;
            return Ok(Step::Done);
        }
        self.fruitless += 1;
        if self.fruitless > FRUITLESS {
            return Err(TlsError::Protocol(Breach::TooManyWithoutData));
        }
        self.beside(typ, content, keys)
    }

    /// A record that is not data.
    fn beside(&mut self, typ: ContentType, content: Range<usize>, keys: &mut Keys) -> Result<Step, TlsError> {
        let Some(buffer) = &self.buffer else { return Ok(Step::More) };
        match (typ, &buffer[content]) {
            (ContentType::Handshake, bytes) if !bytes.is_empty() => {
                self.message.extend_from_slice(bytes);
                self.messages(keys)
            }
            _ if !self.message.is_empty() => Err(TlsError::Protocol(Breach::MessageInterrupted)),
            (ContentType::ApplicationData, []) | (ContentType::Alert, [_, USER_CANCELED]) => Ok(Step::Done),
            (ContentType::Alert, [_, CLOSE_NOTIFY]) => Ok(Step::Closed),
            (ContentType::Alert, &[_, code]) => Err(TlsError::Alert(Alert(code))),
            (ContentType::Alert, _) => Err(TlsError::Protocol(Breach::MessageMalformed)),
            _ => Err(TlsError::Protocol(Breach::UnknownKind)),
        }
    }

    /// All whole messages; the rest waits for the next record.
    fn messages(&mut self, keys: &mut Keys) -> Result<Step, TlsError> {
        let mut rest = self.message.as_slice();
        let mut step = Step::Done;
        while let [kind, a, b, c, after @ ..] = rest {
            let len = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if len > MAX_MESSAGE {
                return Err(TlsError::Protocol(Breach::MessageTooLong));
            }
            match *kind {
                KEY_UPDATE if len == 1 => {}
                KEY_UPDATE => return Err(TlsError::Protocol(Breach::MessageMalformed)),
                TICKET if self.takes_tickets => {}
                _ => return Err(TlsError::Protocol(Breach::MessageUnexpected)),
            }
            let Some((body, after)) = after.split_at_checked(len) else { break };
            if *kind == KEY_UPDATE {
                step = match (body, after) {
                    ([0], []) => Step::Done,
                    ([1], []) => Step::ChangeKey,
                    (_, []) => return Err(TlsError::Protocol(Breach::MessageMalformed)),
                    _ => return Err(TlsError::Protocol(Breach::MessageSpansKeys)),
                };
                keys.next_to_open()?;
            }
            rest = after;
        }
        self.message = rest.to_vec();
        Ok(step)
    }

    /// Where the socket is to put what comes next: room for a record at least. Everything opened must have been read.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.unpark();
        let small = self.buffer.take_if(|buffer| self.bulk && buffer.len() < LARGE_BYTES);
        let buffer = self.buffer.get_or_insert_with(if self.bulk { lend_large } else { lend });
        match small {
            Some(small) => buffer[..self.sealed.len()].copy_from_slice(&small[self.sealed.clone()]),
            None => buffer.copy_within(self.sealed.clone(), 0),
        }
        (self.plain, self.sealed) = (0..0, 0..self.sealed.len());
        &mut buffer[self.sealed.end..]
    }

    pub(super) fn filled(&mut self, len: usize) {
        self.sealed.end += len;
        self.bulk = self.buffer.as_ref().is_some_and(|buffer| self.sealed.end == buffer.len());
    }

    fn unpark(&mut self) {
        if self.parked.is_empty() {
            return;
        }
        let parked = std::mem::take(&mut self.parked);
        let buffer = self.buffer.get_or_insert_with(lend);
        buffer[..parked.len()].copy_from_slice(&parked);
        self.sealed = 0..parked.len();
    }

    /// Nothing of the peer matters any more.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.takes_tickets, Vec::new());
    }

    /// Gives the buffer back, if nothing is in it.
    pub(super) fn settle(&mut self) {
        if self.plain.is_empty() && self.sealed.is_empty() {
            self.buffer = None;
            (self.plain, self.sealed) = (0..0, 0..0);
        }
    }

    /// Gives the buffer back before a wait; the beginning of a record is kept apart.
    pub(super) fn park(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.parked = buffer[self.sealed.clone()].to_vec();
            (self.plain, self.sealed) = (0..0, 0..0);
        }
    }
}

fn has_record(bytes: &[u8]) -> bool {
    matches!(bytes, [_, _, _, high, low, rest @ ..] if rest.len() >= usize::from(u16::from_be_bytes([*high, *low])))
}
