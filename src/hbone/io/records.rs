//! The keys of an established connection: how records are sealed and opened, and how keys follow each other.
//!
//! In: the secrets that the handshake agreed on. Out: sealed records, opened records. The ciphers are those that the
//! library's own connections call, but called so that they read in one place and write in another: sealing and opening are
//! the copies that have to be made anyway. What is here besides is the form of a record (RFC 8446, 5.2 and 5.3) and the
//! counting. Invariants: no number is used twice with one key; a key seals no more records than its cipher allows, the
//! next key comes before that; nothing of a record that is not authentic is given out.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{self, Iv, make_tls13_aad};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets, Tls13CipherSuite};

use crate::hbone::io::error::{Breach, TlsError};

/// Plaintext in a record of a peer's, at most.
pub(super) const MAX_PLAIN: usize = 16 * 1024;
pub(super) const HEADER: usize = 5;
/// What a record may hold beside its plaintext, at most (RFC 8446, 5.2).
const MAX_EXPANSION: usize = 256;
/// The longest record that a peer may send.
pub(super) const MAX_RECORD: usize = HEADER + MAX_PLAIN + MAX_EXPANSION;
/// Behind the plaintext: its type.
const TYPE: usize = 1;
/// At the end of a record, with each of the three ciphers.
pub(super) const TAG: usize = 16;
/// Plaintext in a record that we send, at most. A little less than TLS allows, so that four records are one packet to the
/// kernel (`PACKET_BYTES`): a packet costs as much as its bytes do, and a fifth record would begin another.
pub const RECORD_BYTES: usize = 16_256;
/// The longest record that we send: header, plaintext, content type, tag.
pub(super) const MAX_SEALED: usize = HEADER + RECORD_BYTES + TYPE + TAG;
/// What Linux sends in one packet and cuts into segments only behind TCP, if at all (GSO): 64 KiB, less the room that it keeps
/// for headers.
pub(super) const PACKET_BYTES: usize = 64 * 1024 - 321;

/// What remains of the handshake: it derives the next keys.
pub(super) trait Schedule {
    fn next_to_seal(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error>;
    fn next_to_open(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error>;
}

macro_rules! schedule {
    ($data:ty) => {
        impl Schedule for KernelConnection<$data> {
            fn next_to_seal(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
                self.update_tx_secret()
            }

            fn next_to_open(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
                self.update_rx_secret()
            }
        }
    };
}

schedule!(ClientConnectionData);
schedule!(ServerConnectionData);

/// All keys of a connection.
pub(super) struct Keys {
    schedule: Box<dyn Schedule>,
    seal: Key,
    open: Key,
    /// Records that one key may seal.
    pub(super) limit: u64,
}

/// One direction's key, and how many records it has sealed or opened.
struct Key {
    cipher: LessSafeKey,
    iv: Iv,
    number: u64,
}

impl Key {
    fn new((number, secret): (u64, ConnectionTrafficSecrets)) -> Option<Self> {
        use ConnectionTrafficSecrets as S;
        let (algorithm, key, iv) = match secret {
            S::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            S::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            S::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return None,
        };
        let cipher = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?);
        (algorithm.tag_len() == TAG).then_some(Self { cipher, iv, number })
    }

    /// What the next record is sealed or opened with.
    fn nonce(&self) -> Nonce {
        Nonce::assume_unique_for_key(cipher::Nonce::new(&self.iv, self.number).0)
    }

    /// One record has been sealed or opened. A number that could not be told from an earlier one is not used.
    fn count(&mut self) -> Result<(), TlsError> {
        self.number = self.number.checked_add(1).ok_or(TlsError::Protocol(Breach::KeyWornOut))?;
        Ok(())
    }
}

impl Keys {
    /// Nothing may have been sealed or opened with these secrets yet: the cipher counts along from the first record.
    pub(super) fn new(
        suite: &'static Tls13CipherSuite,
        secrets: ExtractedSecrets,
        schedule: Box<dyn Schedule>,
    ) -> Option<Self> {
        let ExtractedSecrets { tx: tx @ (0, _), rx: rx @ (0, _) } = secrets else { return None };
        Some(Self { schedule, seal: Key::new(tx)?, open: Key::new(rx)?, limit: suite.common.confidentiality_limit })
    }

    /// Whether the next record must be the one that changes the key.
    pub(super) fn is_worn(&self) -> bool {
        self.seal.number >= self.limit.saturating_sub(1)
    }

    /// Seals `pieces`, at most [`RECORD_BYTES`] together, into a record at the front of `room`, and says how long it is. A
    /// single piece is not copied before.
    pub(super) fn seal(&mut self, typ: ContentType, pieces: &[&[u8]], room: &mut [u8]) -> Result<usize, TlsError> {
        let key = &mut self.seal;
        if key.number >= self.limit {
            return Err(TlsError::Seal);
        }
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let sealed = len + TYPE + TAG;
        let header = make_tls13_aad(sealed);
        let (front, rest) = room.split_at_mut_checked(HEADER).ok_or(TlsError::Seal)?;
        let (text, rest) = rest.split_at_mut_checked(len).ok_or(TlsError::Seal)?;
        let end = rest.get_mut(..TYPE + TAG).ok_or(TlsError::Seal)?;
        front.copy_from_slice(&header);
        let (nonce, aad, typ) = (key.nonce(), Aad::from(header), [u8::from(typ)]);
        let result = match pieces {
            [piece] => key.cipher.seal_out_of_place_scatter(nonce, aad, piece, text, &typ, end),
            _ => {
                let mut after = &mut *text;
                for piece in pieces {
                    let (place, rest) = after.split_at_mut(piece.len());
                    place.copy_from_slice(piece);
                    after = rest;
                }
                key.cipher.seal_in_place_scatter(nonce, aad, text, &typ, end)
            }
        };
        result.map_err(|_unspecified| TlsError::Seal)?;
        key.count()?;
        Ok(HEADER + sealed)
    }

    /// Opens what follows the header of a record into `room`, which is as long as that without its tag. The plaintext is at
    /// the front.
    pub(super) fn open(&mut self, sealed: &[u8], room: &mut [u8]) -> Result<(ContentType, usize), TlsError> {
        let key = &mut self.open;
        let (text, tag) = sealed.split_at_checked(room.len()).ok_or(TlsError::Decrypt)?;
        let aad = Aad::from(make_tls13_aad(sealed.len()));
        let opened = key.cipher.open_separate_gather(key.nonce(), aad, text, tag, room);
        opened.map_err(|_unspecified| TlsError::Decrypt)?;
        key.count()?;
        unpad(room)
    }

    /// The same, where it is.
    pub(super) fn open_in_place(&mut self, sealed: &mut [u8]) -> Result<(ContentType, usize), TlsError> {
        let key = &mut self.open;
        let aad = Aad::from(make_tls13_aad(sealed.len()));
        let opened = key.cipher.open_in_place(key.nonce(), aad, sealed);
        let inner = opened.map_err(|_unspecified| TlsError::Decrypt)?;
        key.count()?;
        unpad(inner)
    }

    /// To be called when the record that announces it has been sealed.
    pub(super) fn next_to_seal(&mut self) -> Result<(), TlsError> {
        let next = self.schedule.next_to_seal().map_err(|_detail| TlsError::Seal)?;
        self.seal = Key::new(next).ok_or(TlsError::Seal)?;
        Ok(())
    }

    /// To be called when the peer has announced it.
    pub(super) fn next_to_open(&mut self) -> Result<(), TlsError> {
        let next = self.schedule.next_to_open().map_err(|_detail| TlsError::Seal)?;
        self.open = Key::new(next).ok_or(TlsError::Seal)?;
        Ok(())
    }
}

/// The type of an opened record and the length of its plaintext: behind that come the type and any number of zeros.
fn unpad(inner: &[u8]) -> Result<(ContentType, usize), TlsError> {
    if inner.len() > MAX_PLAIN + TYPE {
        return Err(TlsError::Protocol(Breach::RecordTooLong));
    }
    let len = inner.iter().rposition(|byte| *byte != 0).ok_or(TlsError::Protocol(Breach::UnknownKind))?;
    Ok((ContentType::from(inner[len]), len))
}
