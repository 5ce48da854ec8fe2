//! The keys of an established connection: how records are sealed and opened, and how keys follow each other.
//!
//! In: the secrets that the handshake agreed on. Out: sealed records; opened records, in place. The cryptography is
//! the library's (the same code that its own connections call); what is here is the counting. Invariants: no number is
//! used twice with one key; a key seals no more records than its cipher allows, the next key comes before that.

use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets, ProtocolVersion, Tls13CipherSuite};

use crate::hbone::io::error::{Breach, TlsError};

/// Plaintext in a record, at most.
pub(super) const MAX_PLAIN: usize = 16 * 1024;
pub(super) const HEADER: usize = 5;
/// What a record may hold beside its plaintext, at most (RFC 8446, 5.2).
const MAX_EXPANSION: usize = 256;
/// The longest record that a peer may send.
pub(super) const MAX_RECORD: usize = HEADER + MAX_PLAIN + MAX_EXPANSION;
/// The longest record that we send: header, plaintext, content type, tag.
pub(super) const MAX_SEALED: usize = HEADER + MAX_PLAIN + 1 + 16;

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
    suite: &'static Tls13CipherSuite,
    schedule: Box<dyn Schedule>,
    seal: (u64, Box<dyn MessageEncrypter>),
    open: (u64, Box<dyn MessageDecrypter>),
    /// Records that one key may seal.
    pub(super) limit: u64,
}

impl Keys {
    /// Nothing may have been sealed or opened with these secrets yet: the cipher counts along from the first record.
    pub(super) fn new(
        suite: &'static Tls13CipherSuite,
        secrets: ExtractedSecrets,
        schedule: Box<dyn Schedule>,
    ) -> Option<Self> {
        let ExtractedSecrets { tx: (0, tx), rx: (0, rx) } = secrets else { return None };
        let seal = (0, encrypter(suite, tx)?);
        let open = (0, decrypter(suite, rx)?);
        Some(Self { suite, schedule, seal, open, limit: suite.common.confidentiality_limit })
    }

    /// Whether the next record must be the one that changes the key.
    pub(super) fn is_worn(&self) -> bool {
        self.seal.0 >= self.limit.saturating_sub(1)
    }

    /// One record, header and all. The plaintext is copied once, into the record.
    pub(super) fn seal(&mut self, typ: ContentType, payload: OutboundChunks<'_>) -> Result<Vec<u8>, TlsError> {
        let (number, key) = &mut self.seal;
        if *number >= self.limit {
            return Err(TlsError::Seal);
        }
        let plain = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_3, payload };
        let record = key.encrypt(plain, *number).map_err(|_detail| TlsError::Seal)?;
        *number += 1;
        Ok(record.encode())
    }

    /// Opens one record in place: `payload` is what follows its header. The plaintext is at the front.
    pub(super) fn open(&mut self, payload: &mut [u8]) -> Result<(ContentType, usize), TlsError> {
        let (number, key) = &mut self.open;
        let sealed = InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, payload);
        let plain = key.decrypt(sealed, *number).map_err(|error| TlsError::record(&error))?;
        *number = number.checked_add(1).ok_or(TlsError::Protocol(Breach::KeyWornOut))?;
        Ok((plain.typ, plain.payload.len()))
    }

    /// To be called when the record that announces it has been sealed.
    pub(super) fn next_to_seal(&mut self) -> Result<(), TlsError> {
        let (number, secret) = self.schedule.next_to_seal().map_err(|_detail| TlsError::Seal)?;
        self.seal = (number, encrypter(self.suite, secret).ok_or(TlsError::Seal)?);
        Ok(())
    }

    /// To be called when the peer has announced it.
    pub(super) fn next_to_open(&mut self) -> Result<(), TlsError> {
        let (number, secret) = self.schedule.next_to_open().map_err(|_detail| TlsError::Seal)?;
        self.open = (number, decrypter(self.suite, secret).ok_or(TlsError::Seal)?);
        Ok(())
    }
}

fn encrypter(suite: &Tls13CipherSuite, secret: ConnectionTrafficSecrets) -> Option<Box<dyn MessageEncrypter>> {
    use ConnectionTrafficSecrets as S;
    let (S::Aes128Gcm { key, iv } | S::Aes256Gcm { key, iv } | S::Chacha20Poly1305 { key, iv }) = secret else {
        return None;
    };
    Some(suite.aead_alg.encrypter(key, iv))
}

fn decrypter(suite: &Tls13CipherSuite, secret: ConnectionTrafficSecrets) -> Option<Box<dyn MessageDecrypter>> {
    use ConnectionTrafficSecrets as S;
    let (S::Aes128Gcm { key, iv } | S::Aes256Gcm { key, iv } | S::Chacha20Poly1305 { key, iv }) = secret else {
        return None;
    };
    Some(suite.aead_alg.decrypter(key, iv))
}
