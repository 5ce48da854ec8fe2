//! Durations: always with a unit, so that nobody has to guess what `5` is.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Kind, is_off, off};
use crate::config::yaml::{Checked, Mismatch, Node};

pub(in crate::config) static DURATION: Kind<Duration> =
    Kind { parse: |node| duration(node, "a duration such as 250ms or 5s"), show: show_duration };

pub(in crate::config) static POSITIVE: Kind<Duration> =
    Kind { parse: |node| positive(node, "a duration such as 250ms or 5s, more than zero"), show: show_duration };

pub(in crate::config) static POSITIVE_OR_OFF: Kind<Option<Duration>> = Kind {
    parse: |node| {
        if is_off(node) {
            return Ok(None);
        }
        let mismatch = |mismatch: Mismatch| match node {
            Node::Unsigned(0) => mismatch.hint("write off"),
            Node::Text(text) if text.parse() == Ok(0) || text.starts_with("0") => mismatch.hint("write off"),
            _ => mismatch,
        };
        positive(node, "a duration such as 250ms or 5s, more than zero, or off").map(Some).map_err(mismatch)
    },
    show: |value| value.as_ref().map_or_else(off, show_duration),
};

/// Zero means at once, off means never.
pub(in crate::config) static DURATION_OR_OFF: Kind<Option<Duration>> = Kind {
    parse: |node| {
        if is_off(node) { Ok(None) } else { duration(node, "a duration such as 250ms or 5s, or off").map(Some) }
    },
    show: |value| value.as_ref().map_or_else(off, show_duration),
};

/// What the kernel takes for TCP keepalive: whole seconds.
pub(in crate::config) static KEEPALIVE: Kind<Duration> = Kind {
    parse: |node| {
        const EXPECTED: &str = "a duration of whole seconds, 1s to 32767s";
        match duration(node, EXPECTED)? {
            value if value.subsec_nanos() == 0 && (1..=32767).contains(&value.as_secs()) => Ok(value),
            _ => Err(Mismatch::new(node, EXPECTED)),
        }
    },
    show: show_duration,
};

/// What the kernel takes for `TCP_USER_TIMEOUT`: milliseconds in 31 bits.
pub(in crate::config) static USER_TIMEOUT: Kind<Option<Duration>> = Kind {
    parse: |node| {
        const EXPECTED: &str = "a duration of whole milliseconds, 1ms to 24d, or off";
        let other = |mismatch: Mismatch| Mismatch { expected: EXPECTED.into(), ..mismatch };
        let value = (POSITIVE_OR_OFF.parse)(node).map_err(other)?;
        let allowed =
            |value: &Duration| value.subsec_nanos().is_multiple_of(1_000_000) && value.as_millis() <= 2_147_483_647;
        match value {
            Some(value) if !allowed(&value) => Err(Mismatch::new(node, EXPECTED)),
            fine => Ok(fine),
        }
    },
    show: |value| value.as_ref().map_or_else(off, show_duration),
};

pub(super) fn positive(node: &Node, expected: &'static str) -> Checked<Duration> {
    match duration(node, expected)? {
        Duration::ZERO => Err(Mismatch::new(node, expected)),
        value => Ok(value),
    }
}

fn duration(node: &Node, expected: &'static str) -> Checked<Duration> {
    /// Longer is a mistake, and clocks cannot add it.
    const LONGEST: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
    let mismatch = Mismatch::new(node, expected);
    let text = match node {
        Node::Text(text) => text,
        Node::Unsigned(number) => return Err(mismatch.hint(format!("a duration needs a unit: write {number}s"))),
        Node::Float(_) => return Err(mismatch.hint(format!("a duration needs a unit: write {node}s"))),
        _ => return Err(mismatch),
    };
    if text.parse::<f64>().is_ok() {
        return Err(mismatch.hint(format!("a duration needs a unit: write {}s", text.trim())));
    }
    if text.contains('M') {
        // humantime's months.
        return Err(mismatch.hint("minutes are m, milliseconds are ms"));
    }
    match humantime::parse_duration(text) {
        Ok(value) if value > LONGEST => Err(mismatch.hint("the longest is 3650d")),
        Ok(value) => Ok(value),
        Err(humantime::DurationError::UnknownUnit { .. }) => Err(mismatch.hint("units are ms, s, m, h and d")),
        Err(_) => Err(mismatch),
    }
}

fn show_duration(value: &Duration) -> Value {
    json!(written(*value))
}

/// As it can be read again.
pub(super) fn written(value: Duration) -> String {
    humantime::format_duration(value).to_string().replace(' ', "")
}
