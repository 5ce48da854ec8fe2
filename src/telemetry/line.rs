//! One log line, as text or as JSON. Whoever has something to log says keys and values once and need not know the format.
//!
//! Text: time, level, scope and message separated by tabs, then `key=value` pairs separated by spaces; strings are
//! quoted. JSON: one flat object, `level`, `time`, `scope`, `message` and then the fields. A line never contains a line
//! break, whatever the values are; values are bounded.

use std::fmt::Display;
use std::io::Write;
use std::time::SystemTime;

use tracing::Level;

use crate::config::settings::LogFormat;
use crate::telemetry::text::{MAX_VALUE_BYTES, OneLine, Rfc3339, bounded};

/// Our own targets are shown without it.
const CRATE_PREFIX: &str = "adit::";
/// Keys that the head of a JSON line takes.
const HEAD_KEYS: [&str; 4] = ["level", "time", "scope", "message"];

/// A line that is being written to the end of a buffer.
pub(crate) struct Line<'a> {
    out: &'a mut Vec<u8>,
    format: LogFormat,
    fields: usize,
}

impl<'a> Line<'a> {
    pub(crate) fn begin(
        out: &'a mut Vec<u8>,
        format: LogFormat,
        at: SystemTime,
        level: Level,
        target: &str,
        message: &str,
    ) -> Self {
        let scope = target.strip_prefix(CRATE_PREFIX).unwrap_or(target);
        match format {
            LogFormat::Text => {
                let (message, cut) = bounded(message, MAX_VALUE_BYTES);
                let dots = if cut { "…" } else { "" };
                // Writing to a Vec cannot fail.
                let _ = write!(out, "{}\t{}\t{scope}\t{}{dots}", Rfc3339(at), word(level), OneLine(message));
            }
            LogFormat::Json => {
                let _ = write!(out, r#"{{"level":"{}","time":"{}","scope":"#, word(level), Rfc3339(at));
                json_string(out, scope);
                out.extend_from_slice(br#","message":"#);
                json_string(out, message);
            }
        }
        Self { out, format, fields: 0 }
    }

    /// A string: quoted in both formats.
    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        match self.format {
            LogFormat::Text => {
                let (value, cut) = bounded(value, MAX_VALUE_BYTES);
                let _ =
                    if cut { write!(self.out, "{:?}", format!("{value}…")) } else { write!(self.out, "{value:?}") };
            }
            LogFormat::Json => json_string(self.out, value),
        }
    }

    /// Something like an address: bare in text where it cannot be misread, a string in JSON.
    pub(crate) fn bare(&mut self, key: &str, value: impl Display) {
        let value = value.to_string();
        let plain = !value.is_empty()
            && value.len() <= MAX_VALUE_BYTES
            && value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
        if self.format == LogFormat::Text && plain {
            self.key(key);
            self.out.extend_from_slice(value.as_bytes());
        } else {
            self.text(key, &value);
        }
    }

    /// A number or a boolean: bare in both formats.
    pub(crate) fn number(&mut self, key: &str, value: impl Display) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }

    pub(crate) fn end(self) {
        self.out.extend_from_slice(match self.format {
            LogFormat::Text => b"\n",
            LogFormat::Json => b"}\n",
        });
    }

    fn key(&mut self, key: &str) {
        match self.format {
            LogFormat::Text => {
                let separator = if self.fields == 0 { '\t' } else { ' ' };
                let _ = write!(self.out, "{separator}{}=", OneLine(key));
            }
            LogFormat::Json => {
                self.out.push(b',');
                if HEAD_KEYS.contains(&key) {
                    json_string(self.out, &format!("field.{key}"));
                } else {
                    json_string(self.out, key);
                }
                self.out.push(b':');
            }
        }
        self.fields += 1;
    }
}

const fn word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn json_string(out: &mut Vec<u8>, value: &str) {
    let (value, cut) = bounded(value, MAX_VALUE_BYTES);
    // A string always serializes, and a Vec always takes it.
    let _ = if cut { serde_json::to_writer(out, &format!("{value}…")) } else { serde_json::to_writer(out, value) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn line(format: LogFormat, target: &str, message: &str, value: &str) -> String {
        let mut out = Vec::new();
        let at = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001);
        let mut line = Line::begin(&mut out, format, at, Level::WARN, target, message);
        line.text("name", value);
        line.bare("addr", "[::1]:80");
        line.bare("odd", value);
        line.number("bytes", 7);
        line.end();
        String::from_utf8(out).expect("utf-8")
    }

    #[test]
    fn text() {
        assert_eq!(
            line(LogFormat::Text, "adit::mesh::file", "it\nhappened", "a \"b\"\n"),
            "2023-11-14T22:13:20.000001Z\twarn\tmesh::file\tit\\nhappened\tname=\"a \\\"b\\\"\\n\" addr=[::1]:80 \
             odd=\"a \\\"b\\\"\\n\" bytes=7\n"
        );
    }

    #[test]
    fn json() {
        let line = line(LogFormat::Json, "access", "it\nhappened", "a \"b\"\n\u{1b}");
        assert!(line.starts_with(
            r#"{"level":"warn","time":"2023-11-14T22:13:20.000001Z","scope":"access","message":"it\nhappened","name":"#
        ));
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).expect("json");
        assert_eq!(value["name"], "a \"b\"\n\u{1b}");
        assert_eq!(value["odd"], "a \"b\"\n\u{1b}");
        assert_eq!(value["addr"], "[::1]:80");
        assert_eq!(value["bytes"], 7);
    }

    #[test]
    fn a_field_cannot_replace_the_head() {
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out, LogFormat::Json, UNIX_EPOCH, Level::INFO, "t", "m");
        line.text("level", "x");
        line.end();
        let value: serde_json::Value = serde_json::from_slice(&out).expect("json");
        assert_eq!((&value["level"], &value["field.level"]), (&"info".into(), &"x".into()));
    }

    #[test]
    fn long_values_are_cut() {
        let long = "é".repeat(5000);
        for format in [LogFormat::Text, LogFormat::Json] {
            let line = line(format, "t", &long, &long);
            assert!(line.len() < 4 * MAX_VALUE_BYTES, "{}", line.len());
            assert!(line.contains('…'));
        }
    }
}
