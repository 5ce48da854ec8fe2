//! Text that goes into logs, made harmless: no line breaks, no control or invisible characters, bounded length. What
//! comes in may have been chosen by a peer; what goes out stays on its line and cannot be taken for another field.

use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest value of one field, in bytes before escaping.
pub(crate) const MAX_VALUE_BYTES: usize = 2048;
/// A SOCKS5 name has at most 255 bytes; nothing that a peer says needs to be longer in a log.
const MAX_PEER_BYTES: usize = 256;
/// 9999-12-31T23:59:59Z, the last second that RFC 3339 can write.
const LAST_SECOND: u64 = 253_402_300_799;

/// Words of a peer, for example the name that a SOCKS5 client asked for. Printable whatever the bytes were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerText(Box<str>);

impl PeerText {
    /// Keeps printable text; everything else is written as `\n`, `\u{..}` or, if it is no UTF-8, as `\xNN`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let kept = bytes.get(..MAX_PEER_BYTES).unwrap_or(bytes);
        let mut text = String::with_capacity(kept.len());
        for chunk in kept.utf8_chunks() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{}", OneLine(chunk.valid()));
            for byte in chunk.invalid() {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
        if kept.len() < bytes.len() {
            text.push('…');
        }
        Self(text.into())
    }

    #[must_use]
    pub const fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text on one line: control and invisible characters are escaped, quotes stay as they are.
pub(crate) struct OneLine<'a>(pub(crate) &'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' | '\'' | '\\' => f.write_char(c)?,
                c => write!(f, "{}", c.escape_debug())?,
            }
        }
        Ok(())
    }
}

/// `text`, or its first `limit` bytes (at a character's border) when it is longer; true when it was cut.
pub(crate) fn bounded(text: &str, limit: usize) -> (&str, bool) {
    let end = text.floor_char_boundary(limit);
    (text.get(..end).unwrap_or(text), end < text.len())
}

/// RFC 3339 in UTC with microseconds; times outside the years 1970 to 9999 are clamped.
pub(crate) struct Rfc3339(pub(crate) SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = UNIX_EPOCH + Duration::from_secs(LAST_SECOND);
        humantime::format_rfc3339_micros(self.0.clamp(UNIX_EPOCH, last)).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn peer_text_is_printable() {
        for (bytes, want) in [
            (&b"example.com"[..], "example.com"),
            (b"a\nb\r\tc\0", "a\\nb\\r\\tc\\0"),
            (b"\xff\xfeabc\xc3", "\\xff\\xfeabc\\xc3"),
            ("caf\u{e9} \u{202e}evil\u{2028}".as_bytes(), "caf\u{e9} \\u{202e}evil\\u{2028}"),
            (b"\x1b[31mred", "\\u{1b}[31mred"),
            (b"quo\"te\\", "quo\"te\\"),
        ] {
            assert_eq!(PeerText::from_bytes(bytes).as_str(), want);
        }
    }

    #[test]
    fn peer_text_is_bounded() {
        let text = PeerText::from_bytes(&[b'a'; 5000]);
        assert_eq!(text.as_str().chars().count(), MAX_PEER_BYTES + 1);
        assert!(text.as_str().ends_with('…'));
    }

    #[test]
    fn times_are_clamped() {
        for (time, want) in [
            (UNIX_EPOCH, "1970-01-01T00:00:00.000000Z"),
            (UNIX_EPOCH - Duration::from_secs(5), "1970-01-01T00:00:00.000000Z"),
            (UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456), "2023-11-14T22:13:20.123456Z"),
            (UNIX_EPOCH + Duration::from_secs(LAST_SECOND * 2), "9999-12-31T23:59:59.000000Z"),
        ] {
            assert_eq!(Rfc3339(time).to_string(), want);
        }
    }

    proptest! {
        #[test]
        fn nothing_breaks_a_line(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let text = PeerText::from_bytes(&bytes);
            prop_assert!(text.as_str().chars().all(|c| !c.is_control()));
        }

        #[test]
        fn bounded_is_a_prefix(text in ".*", limit in 0_usize..40) {
            let (kept, cut) = bounded(&text, limit);
            prop_assert!(text.starts_with(kept) && kept.len() <= limit);
            prop_assert_eq!(cut, kept.len() < text.len());
        }
    }
}
