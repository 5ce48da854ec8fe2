//! PEM files as people and tools write them: comments, CRLF, blank lines and duplicates are fine, a cut-off end is not.
//!
//! In: bytes and the file they are from. Out: certificates, a key (PKCS#8, SEC1, PKCS#1), or revocation lists (PEM or
//! one DER); or what is wrong in which block of which file. Fails closed: one bad block refuses the file, and
//! a file without the blocks that are wanted is an error, never an empty set. Nothing of a key is ever shown.

use std::path::{Path, PathBuf};

use rustls_pki_types::pem::{self, PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

/// Blocks of one file at most.
const MAX_BLOCKS: usize = 1000;

/// What is wrong with a PEM file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {fault}", .file.display(), at(*.block))]
pub struct PemError {
    pub file: PathBuf,
    /// Counted from one; nothing: the file as a whole.
    pub block: Option<usize>,
    pub fault: PemFault,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemFault {
    #[error("the end is missing: is the file still being written?")]
    CutOff,
    #[error("the line that begins or ends a block is malformed")]
    Marker,
    #[error("the base64 is malformed")]
    Base64,
    #[error("there is no {0} in it")]
    Nothing(&'static str),
    #[error("more than one private key")]
    TwoKeys,
    #[error("the private key is encrypted, which is not supported")]
    EncryptedKey,
    #[error("more than {MAX_BLOCKS} blocks")]
    TooMany,
    #[error("{0}")]
    Content(String),
}

fn at(block: Option<usize>) -> String {
    block.map(|block| format!(": block {block}")).unwrap_or_default()
}

/// All certificates, in order, each with the number of its block; duplicates are kept.
pub fn certificates(file: &Path, bytes: &[u8]) -> Result<Vec<(usize, CertificateDer<'static>)>, PemError> {
    let blocks = blocks(file, bytes)?.into_iter();
    let found: Vec<_> = blocks
        .filter(|(_, (kind, _))| *kind == SectionKind::Certificate)
        .map(|(block, (_, der))| (block, CertificateDer::from(der)))
        .collect();
    if found.is_empty() { Err(error(file, None, PemFault::Nothing("certificate"))) } else { Ok(found) }
}

/// The one private key.
pub fn private_key(file: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    let mut found = None;
    for (block, (kind, der)) in blocks(file, bytes)? {
        let key = match kind {
            SectionKind::PrivateKey => PrivateKeyDer::Pkcs8(der.into()),
            SectionKind::EcPrivateKey => PrivateKeyDer::Sec1(der.into()),
            SectionKind::RsaPrivateKey => PrivateKeyDer::Pkcs1(der.into()),
            _ => continue,
        };
        if found.replace(key).is_some() {
            return Err(error(file, Some(block), PemFault::TwoKeys));
        }
    }
    let encrypted = || bytes.windows(21).any(|window| window == b"ENCRYPTED PRIVATE KEY");
    found.ok_or_else(|| {
        let fault = if encrypted() { PemFault::EncryptedKey } else { PemFault::Nothing("private key") };
        error(file, None, fault)
    })
}

/// All revocation lists, each with the number of its block. A file that is not text is one list in DER; an empty file
/// has none.
pub fn revocation_lists(
    file: &Path,
    bytes: &[u8],
) -> Result<Vec<(usize, CertificateRevocationListDer<'static>)>, PemError> {
    const DER_SEQUENCE: u8 = 0x30;
    if bytes.first() == Some(&DER_SEQUENCE) && !bytes.is_ascii() {
        return Ok(vec![(1, bytes.to_vec().into())]);
    }
    let blocks = blocks(file, bytes)?.into_iter();
    let found: Vec<_> = blocks
        .filter(|(_, (kind, _))| *kind == SectionKind::Crl)
        .map(|(block, (_, der))| (block, CertificateRevocationListDer::from(der)))
        .collect();
    if found.is_empty() && !bytes.trim_ascii().is_empty() {
        return Err(error(file, None, PemFault::Nothing("revocation list")));
    }
    Ok(found)
}

/// One block.
#[must_use]
pub fn encode(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut base64 = String::new();
    for group in der.chunks(3) {
        let bits = group.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - group.len()));
        for index in 0..4 {
            let letter = ALPHABET.get(bits >> (18 - 6 * index) & 63).copied().unwrap_or(b'=');
            base64.push(if index <= group.len() { char::from(letter) } else { '=' });
        }
        if base64.len() % 65 == 64 {
            base64.push('\n');
        }
    }
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", base64.trim_end())
}

type Block = (usize, (SectionKind, Vec<u8>));

fn blocks(file: &Path, bytes: &[u8]) -> Result<Vec<Block>, PemError> {
    check_markers(file, bytes)?;
    let mut found = Vec::new();
    for (index, block) in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes).enumerate() {
        let number = Some(index + 1);
        if index == MAX_BLOCKS {
            return Err(error(file, number, PemFault::TooMany));
        }
        let block = block.map_err(|wrong| {
            let fault = match wrong {
                pem::Error::MissingSectionEnd { .. } => PemFault::CutOff,
                pem::Error::Base64Decode(_) => PemFault::Base64,
                _ => PemFault::Marker,
            };
            error(file, number, fault)
        })?;
        found.push((index + 1, block));
    }
    Ok(found)
}

/// The reader skips what is not a marker, so a marker that is cut off would make a shorter list, not an error.
fn check_markers(file: &Path, bytes: &[u8]) -> Result<(), PemError> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    const END: &[u8] = b"-----END ";
    const DASHES: &[u8] = b"-----";
    let mut block = 0;
    let mut open = false;
    let mut lines = bytes.split(|byte| *byte == b'\n').peekable();
    while let Some(raw) = lines.next() {
        let line = raw.trim_ascii();
        if !line.starts_with(b"-") {
            continue;
        }
        let begins = line.starts_with(BEGIN);
        block += usize::from(begins);
        let number = Some(block.max(1));
        let marker = begins || line.starts_with(END);
        let whole = marker && line.len() > BEGIN.len() && line.ends_with(DASHES);
        if whole && begins != open && raw.starts_with(b"-") {
            open = begins;
        } else if whole {
            return Err(error(file, number, PemFault::Marker));
        } else if lines.peek().is_none() && (marker || BEGIN.starts_with(line) || END.starts_with(line)) {
            return Err(error(file, number, PemFault::CutOff));
        } else if line.starts_with(DASHES) {
            return Err(error(file, number, PemFault::Marker));
        }
    }
    if open { Err(error(file, Some(block), PemFault::CutOff)) } else { Ok(()) }
}

pub(super) fn error(file: &Path, block: Option<usize>, fault: PemFault) -> PemError {
    PemError { file: file.to_owned(), block, fault }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::identity::authority::Authority;

    fn file() -> &'static Path {
        Path::new("roots.pem")
    }

    fn root_pem() -> (String, String) {
        let (root, key) = Authority::new_root("test", SystemTime::now(), Duration::from_secs(60)).unwrap();
        (root.certificate_pem().to_owned(), key)
    }

    #[test]
    fn files_as_people_write_them() {
        let (a, b) = (root_pem().0, root_pem().0);
        for (text, blocks) in [
            (format!("{a}{b}"), vec![1, 2]),
            (format!("# first\n\n{a}\nsubject=CN = x\n - a dash\n{b}\n\n"), vec![1, 2]),
            (format!("{a}{b}{a}").replace('\n', "\r\n").replace("\r\r", "\r"), vec![1, 2, 3]),
            (a.trim_end().to_owned(), vec![1]),
        ] {
            let found = certificates(file(), text.as_bytes()).unwrap();
            assert_eq!(found.iter().map(|(block, _)| *block).collect::<Vec<_>>(), blocks, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for length in [1, 2, 3, 47, 48, 49, 200] {
            let der = vec![0xfb; length];
            let found = certificates(file(), encode("CERTIFICATE", &der).as_bytes()).unwrap();
            assert_eq!(found[0].1.as_ref(), der);
        }
        let (root, _) = root_pem();
        assert_eq!(
            encode("CERTIFICATE", &certificates(file(), root.as_bytes()).unwrap()[0].1),
            root.replace("\r\n", "\n")
        );
    }

    #[test]
    fn errors_name_the_file_and_the_block() {
        let (a, key) = root_pem();
        let broken = a.replacen("MII", "M*I", 1);
        let indented = a.replace("-----BEGIN", " -----BEGIN");
        for (text, want) in [
            (String::new(), "roots.pem: there is no certificate in it"),
            ("hello".to_owned(), "roots.pem: there is no certificate in it"),
            (key.clone(), "roots.pem: there is no certificate in it"),
            (format!("{a}{broken}"), "roots.pem: block 2: the base64 is malformed"),
            (indented, "roots.pem: block 1: the line that begins or ends a block is malformed"),
            (format!("{a}-----BEGIN CERT"), "roots.pem: block 2: the end is missing: is the file still being written?"),
        ] {
            assert_eq!(certificates(file(), text.as_bytes()).unwrap_err().to_string(), want, "{text}");
        }
        let keys = |text: &str| private_key(file(), text.as_bytes()).unwrap_err().fault;
        assert_eq!(keys(&format!("{key}{key}")), PemFault::TwoKeys);
        assert_eq!(keys(&key.replace(" PRIVATE", " ENCRYPTED PRIVATE")), PemFault::EncryptedKey);
        assert_eq!(keys(&a), PemFault::Nothing("private key"));
        assert_eq!(revocation_lists(file(), b"\n").unwrap().len(), 0);
        assert_eq!(revocation_lists(file(), a.as_bytes()).unwrap_err().fault, PemFault::Nothing("revocation list"));
    }

    /// Two blocks, cut at every byte: an error or whole blocks, and never one block while the second has begun.
    #[test]
    fn what_is_cut_off_is_not_shorter() {
        let (a, b) = (root_pem().0, root_pem().0);
        let text = format!("{a}{b}");
        for length in 0..text.len() {
            let whole = |end: usize| length + 1 >= end;
            let found = certificates(file(), text.get(..length).unwrap().as_bytes());
            match found {
                Ok(found) if found.len() == 2 => assert!(whole(text.len()), "{length}"),
                Ok(found) => assert!(found.len() == 1 && (a.len() - 1..=a.len()).contains(&length), "{length}"),
                Err(error) => assert_eq!(error.file, file()),
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in "-{0,6}(BEGIN|END)? ?") {
            for bytes in [bytes.clone(), [&bytes, cut.as_bytes()].concat()] {
                let _either = certificates(file(), &bytes);
                let _either = private_key(file(), &bytes);
                let _either = revocation_lists(file(), &bytes);
            }
        }
    }
}
