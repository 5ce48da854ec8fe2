//! Sizes in bytes: a number, or one with a unit of 1,024s.

use std::num::{NonZeroU32, NonZeroUsize};

use serde_json::{Value, json};

use super::Kind;
use crate::config::yaml::{Checked, Mismatch, Node};

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// What HTTP/2 takes for a window, and no less than a buffer.
pub(in crate::config) static WINDOW: Kind<NonZeroU32> = Kind {
    parse: |node| {
        const EXPECTED: &str = "a size such as 256KiB or 4MiB, 64KiB to 1GiB";
        size(node, EXPECTED, 64 << 10, 1 << 30)
            .and_then(|bytes| NonZeroU32::try_from(bytes).map_err(|_large| Mismatch::new(node, EXPECTED)))
    },
    show: |value| show(value.get().into()),
};

/// What a whole process may hold.
pub(in crate::config) static BYTES: Kind<NonZeroUsize> = Kind {
    parse: |node| size(node, "a size such as 64MiB or 1GiB, at least 1MiB", 1 << 20, 1 << 40),
    show: |value| show(value.get() as u64),
};

fn size(node: &Node, expected: &'static str, least: u64, most: u64) -> Checked<NonZeroUsize> {
    let bytes = match node {
        Node::Unsigned(bytes) => Some(*bytes),
        _ => node.as_text().and_then(read),
    };
    bytes
        .filter(|bytes| (least..=most).contains(bytes))
        .and_then(|bytes| usize::try_from(bytes).ok())
        .and_then(NonZeroUsize::new)
        .ok_or_else(|| {
            let mismatch = Mismatch::new(node, expected);
            let unknown = node.as_text().is_some_and(|text| read(text).is_none());
            if unknown { mismatch.hint("units are KiB, MiB and GiB") } else { mismatch }
        })
}

fn read(text: &str) -> Option<u64> {
    let (digits, unit) = UNITS
        .iter()
        .find_map(|(unit, bytes)| text.strip_suffix(unit).map(|digits| (digits.trim_end(), *bytes)))
        .unwrap_or((text, 1));
    let digits = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// As it would be written.
pub(in crate::config) fn written(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

fn show(bytes: u64) -> Value {
    let unit = UNITS.iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
    unit.map_or_else(|| json!(bytes), |(name, unit)| json!(format!("{}{name}", bytes / unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024_and_bounds() {
        let window = |text: &str| (WINDOW.parse)(&Node::Text(text.into())).map(NonZeroU32::get).ok();
        for (text, want) in [
            ("64KiB", Some(64 << 10)),
            ("1 MiB", Some(1 << 20)),
            ("1GiB", Some(1 << 30)),
            ("65536", Some(65536)),
            ("65535", None),
            ("2GiB", None),
            ("1MB", None),
            ("-1MiB", None),
            ("+1MiB", None),
            ("MiB", None),
            ("", None),
            ("99999999999999999999GiB", None),
        ] {
            assert_eq!(window(text), want, "{text}");
        }
        assert_eq!((WINDOW.parse)(&Node::Unsigned(100_000)).map(NonZeroU32::get).ok(), Some(100_000));
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for bytes in [65536, 65537, 1 << 20, 3 << 20, 1 << 30] {
            let shown = show(bytes);
            let read = shown.as_str().map_or_else(|| shown.as_u64(), read);
            assert_eq!(read, Some(bytes));
        }
    }
}
