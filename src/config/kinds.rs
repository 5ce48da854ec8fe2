//! What kinds of value the settings have: how each is read, and how it is written so that it can be read again.
//!
//! In: a node of any layer. Out: a checked value, or its own error. `off` and `false` mean the same wherever something
//! can be off; a duration has a unit; a number that makes no sense is refused here, once, and not where it is used.
//! Nothing here reads anything but its argument.

mod address;
mod duration;
mod mesh;
mod size;

pub(super) use address::{ADMIN_DOOR, DOOR};
pub(super) use duration::{DURATION, DURATION_OR_OFF, KEEPALIVE, POSITIVE, POSITIVE_OR_OFF, USER_TIMEOUT};
pub(super) use mesh::{BURST, EJECT_AFTER, LIMIT32_OR_OFF, ON_ENDPOINT_REMOVED, ON_MISSING, RANGES, RATE_OR_OFF};
pub(super) use size::{BYTES, WINDOW, written};

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::settings::{
    Capture, ConnectionLimit, Egress, IdentitySource, LogFormat, Mode, Plaintext, PreserveSource, TRAFFIC_LABELS,
    TrafficLabelSet, Workers,
};
use super::yaml::{self, Checked, Mismatch, Node, did_you_mean};
use crate::telemetry::Filter;

/// One kind of value.
pub(in crate::config) struct Kind<T: 'static> {
    pub(in crate::config) parse: fn(&Node) -> Checked<T>,
    pub(in crate::config) show: fn(&T) -> Value,
}

pub(in crate::config) static MODE: Kind<Mode> = Kind { parse: mode, show: |Mode::Sidecar| json!("sidecar") };

pub(in crate::config) static CAPTURE: Kind<Capture> = Kind {
    parse: |node| {
        yaml::choice(&[("redirect", Capture::Redirect), ("tproxy", Capture::Tproxy), ("connect", Capture::Connect)])(
            node,
        )
    },
    show: |value| match value {
        Capture::Redirect => json!("redirect"),
        Capture::Tproxy => json!("tproxy"),
        Capture::Connect => json!("connect"),
    },
};

pub(in crate::config) static PRESERVE_SOURCE: Kind<PreserveSource> = Kind {
    parse: |node| match node {
        Node::Bool(false) => Ok(PreserveSource::Off),
        _ => {
            let (require, prefer) = (PreserveSource::Require, PreserveSource::Prefer);
            yaml::choice(&[("require", require), ("prefer", prefer), ("off", PreserveSource::Off)])(node)
        }
    },
    show: |value| match value {
        PreserveSource::Require => json!("require"),
        PreserveSource::Prefer => json!("prefer"),
        PreserveSource::Off => off(),
    },
};

pub(in crate::config) static EGRESS: Kind<Egress> = Kind {
    parse: |node| yaml::choice(&[("allowAny", Egress::AllowAny), ("registryOnly", Egress::RegistryOnly)])(node),
    show: |value| match value {
        Egress::AllowAny => json!("allowAny"),
        Egress::RegistryOnly => json!("registryOnly"),
    },
};

pub(in crate::config) static LOG_FORMAT: Kind<LogFormat> = Kind {
    parse: |node| yaml::choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])(node),
    show: |value| match value {
        LogFormat::Text => json!("text"),
        LogFormat::Json => json!("json"),
    },
};

pub(in crate::config) static IDENTITY_SOURCE: Kind<IdentitySource> = Kind {
    parse: |node| {
        let known = [("none", IdentitySource::None), ("dev", IdentitySource::Dev), ("files", IdentitySource::Files)];
        yaml::choice(&known)(node)
    },
    show: |value| match value {
        IdentitySource::None => json!("none"),
        IdentitySource::Dev => json!("dev"),
        IdentitySource::Files => json!("files"),
    },
};

/// Any text, also none.
pub(in crate::config) static TEXT: Kind<Arc<str>> =
    Kind { parse: |node| yaml::text(node).map(Into::into), show: |t| json!(&**t) };

/// Text that becomes part of an identity, or none.
pub(in crate::config) static NAME: Kind<Arc<str>> = Kind { parse: name, show: |text| json!(&**text) };

/// Text that becomes part of an identity.
pub(in crate::config) static REQUIRED_NAME: Kind<Arc<str>> = Kind {
    parse: |node| match name(node)? {
        empty if empty.is_empty() => Err(Mismatch::new(node, "a name, not empty")),
        name => Ok(name),
    },
    show: |text| json!(&**text),
};

/// A list of names, each as [`REQUIRED_NAME`]; one may stand for a list of one.
pub(in crate::config) static NAMES: Kind<Vec<Arc<str>>> = Kind {
    parse: |node| match node {
        Node::List(items) => items.iter().map(REQUIRED_NAME.parse).collect(),
        Node::Null => Ok(Vec::new()),
        one => (REQUIRED_NAME.parse)(one).map(|name| vec![name]),
    },
    show: |names| names.iter().map(|name| json!(&**name)).collect(),
};

pub(in crate::config) static SWITCH: Kind<bool> = Kind {
    parse: |node| match (node, node.as_text()) {
        (Node::Bool(value), _) => Ok(*value),
        (_, Some("off")) => Ok(false),
        (_, Some("on")) => Ok(true),
        _ => Err(Mismatch::new(node, "true or false")),
    },
    show: |value| json!(value),
};

/// `auto` (true) or `off` (false).
pub(in crate::config) static AUTO_SWITCH: Kind<bool> = Kind {
    parse: |node| match node {
        Node::Text(text) if &**text == "auto" => Ok(true),
        _ if is_off(node) => Ok(false),
        _ => Err(Mismatch::new(node, "auto or off")),
    },
    show: |value| if *value { json!("auto") } else { off() },
};

pub(in crate::config) static WORKERS: Kind<Workers> = Kind {
    parse: workers,
    show: |value| match value {
        Workers::Auto => json!("auto"),
        Workers::Fixed(count) => json!(count),
    },
};

pub(in crate::config) static PACKET_MARK: Kind<Option<NonZeroU32>> =
    Kind { parse: packet_mark, show: |value| value.map_or_else(off, |mark| json!(mark)) };

/// One path, or none.
pub(in crate::config) static PATH: Kind<PathBuf> = Kind {
    parse: |node| match node.as_text() {
        Some("") => Ok(PathBuf::new()),
        _ => path(node, "a path"),
    },
    show: |path| json!(path.display().to_string()),
};

/// One path may stand for a list of one.
pub(in crate::config) static PATHS: Kind<Vec<PathBuf>> = Kind {
    parse: |node| match node {
        Node::List(items) => items.iter().map(listed_path).collect(),
        Node::Null => Ok(Vec::new()),
        one => listed_path(one).map(|path| vec![path]),
    },
    show: |paths| paths.iter().map(|path| json!(path.display().to_string())).collect(),
};

pub(in crate::config) static PROBES: Kind<NonZeroU32> =
    Kind { parse: |node| up_to(node, 127, "a number of probes, 1 to 127"), show: |value| json!(value) };

pub(in crate::config) static ATTEMPTS: Kind<NonZeroU32> =
    Kind { parse: |node| up_to(node, 1000, "a number of attempts, 1 to 1000"), show: |value| json!(value) };

pub(in crate::config) static STREAMS: Kind<NonZeroU32> =
    Kind { parse: |node| up_to(node, 65_536, "a number of streams, 1 to 65536"), show: |value| json!(value) };

pub(in crate::config) static TUNNELS: Kind<NonZeroU32> =
    Kind { parse: |node| up_to(node, 1024, "a number of tunnels, 1 to 1024"), show: |value| json!(value) };

pub(in crate::config) static HANDSHAKES: Kind<NonZeroUsize> =
    Kind { parse: |node| limit(node, "a number of handshakes, at least 1"), show: |value| json!(value) };

/// A list of ports; one may stand for a list of one.
pub(in crate::config) static PORTS: Kind<Vec<u16>> = Kind {
    parse: |node| match node {
        Node::List(items) => items.iter().map(port).collect(),
        Node::Null => Ok(Vec::new()),
        one => port(one).map(|port| vec![port]),
    },
    show: |ports| json!(ports),
};

pub(in crate::config) static PLAINTEXT: Kind<Plaintext> = Kind {
    parse: |node| yaml::choice(&[("allow", Plaintext::Allow), ("deny", Plaintext::Deny)])(node),
    show: |value| match value {
        Plaintext::Allow => json!("allow"),
        Plaintext::Deny => json!("deny"),
    },
};

pub(in crate::config) static CONNECTIONS: Kind<ConnectionLimit> = Kind {
    parse: |node| match node {
        Node::Text(text) if &**text == "auto" => Ok(ConnectionLimit::Auto),
        _ if is_off(node) => Ok(ConnectionLimit::Off),
        _ => limit(node, "auto, off or a number of connections, at least 1").map(ConnectionLimit::Fixed),
    },
    show: |value| match value {
        ConnectionLimit::Auto => json!("auto"),
        ConnectionLimit::Fixed(limit) => json!(limit),
        ConnectionLimit::Off => off(),
    },
};

pub(in crate::config) static LIMIT_OR_OFF: Kind<Option<NonZeroUsize>> = Kind {
    parse: |node| {
        if is_off(node) { Ok(None) } else { limit(node, "off or a number of connections, at least 1").map(Some) }
    },
    show: |value| value.map_or_else(off, |limit| json!(limit)),
};

pub(in crate::config) static LABELS: Kind<TrafficLabelSet> = Kind {
    parse: labels,
    show: |value| match value {
        TrafficLabelSet::Default => json!("default"),
        TrafficLabelSet::Only(labels) => json!(labels),
    },
};

pub(in crate::config) static LOG_FILTER: Kind<String> = Kind { parse: log_filter, show: |value| json!(value) };

fn off() -> Value {
    json!("off")
}

fn is_off(node: &Node) -> bool {
    matches!(node, Node::Bool(false)) || node.as_text() == Some("off")
}

fn mode(node: &Node) -> Checked<Mode> {
    if node.as_text() == Some("node") {
        return Err(Mismatch::new(node, "sidecar").hint("node mode is not supported yet: only sidecar"));
    }
    yaml::choice(&[("sidecar", Mode::Sidecar)])(node)
}

fn workers(node: &Node) -> Checked<Workers> {
    const EXPECTED: &str = "auto or a number of threads, 1 to 1024";
    if node.as_text() == Some("auto") {
        return Ok(Workers::Auto);
    }
    let count = up_to(node, 1024, EXPECTED)?;
    NonZeroUsize::try_from(count).map(Workers::Fixed).map_err(|_too_large| Mismatch::new(node, EXPECTED))
}

fn name(node: &Node) -> Checked<Arc<str>> {
    let name = yaml::text(node)?;
    if name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) {
        return Err(Mismatch::new(node, "a name without spaces and slashes"));
    }
    Ok(name.into())
}

fn packet_mark(node: &Node) -> Checked<Option<NonZeroU32>> {
    const EXPECTED: &str = "off or a mark, 1 to 4294967295";
    if is_off(node) {
        return Ok(None);
    }
    match up_to(node, u32::MAX, EXPECTED)? {
        mark if mark.get() == 0x111 || mark.get() == 0x112 => Err(Mismatch::new(node, EXPECTED)
            .hint("0x111 (273) and 0x112 (274) are used by the redirect rules themselves: take another")),
        mark => Ok(Some(mark)),
    }
}

fn listed_path(node: &Node) -> Checked<PathBuf> {
    path(node, "paths of files or folders")
}

fn path(node: &Node, expected: &'static str) -> Checked<PathBuf> {
    match node.as_text() {
        Some(text) if !text.is_empty() && !text.contains('\0') => Ok(text.into()),
        _ => Err(Mismatch::new(node, expected)),
    }
}

/// A number from one to `max`.
fn up_to(node: &Node, max: u32, expected: &'static str) -> Checked<NonZeroU32> {
    let value: u32 = yaml::integer(expected)(node)?;
    NonZeroU32::new(value).filter(|value| value.get() <= max).ok_or_else(|| Mismatch::new(node, expected))
}

fn port(node: &Node) -> Checked<u16> {
    const EXPECTED: &str = "ports, 1 to 65535";
    let port = up_to(node, 65_535, EXPECTED)?;
    u16::try_from(port.get()).map_err(|_large| Mismatch::new(node, EXPECTED))
}

fn limit(node: &Node, expected: &'static str) -> Checked<NonZeroUsize> {
    let value: usize = yaml::integer(expected)(node)?;
    NonZeroUsize::new(value).ok_or_else(|| Mismatch::new(node, expected))
}

fn labels(node: &Node) -> Checked<TrafficLabelSet> {
    const EXPECTED: &str = "default or a list of traffic labels";
    match node {
        Node::Text(text) if &**text == "default" => Ok(TrafficLabelSet::Default),
        Node::List(items) => {
            let known = |item: &Node| item.as_text().is_some_and(|label| TRAFFIC_LABELS.contains(&label));
            let unknown: Vec<&Node> = items.iter().filter(|item| !known(item)).collect();
            let Some(first) = unknown.first() else {
                return Ok(TrafficLabelSet::Only(items.iter().filter_map(Node::as_text).map(str::to_owned).collect()));
            };
            let found: Vec<String> = unknown.iter().map(ToString::to_string).collect();
            let meant = first.as_text().and_then(|label| did_you_mean(label, TRAFFIC_LABELS));
            let hint = meant.map_or_else(
                || format!("known labels: {}", TRAFFIC_LABELS.join(", ")),
                |meant| format!("did you mean \"{meant}\"?"),
            );
            Err(Mismatch { found: found.join(", "), expected: "names of traffic labels".into(), hint: Some(hint) })
        }
        _ => Err(Mismatch::new(node, EXPECTED)),
    }
}

fn log_filter(node: &Node) -> Checked<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    if is_off(node) {
        return Ok("off".to_owned());
    }
    let mismatch = Mismatch::new(node, "a log filter such as info or info,mesh=debug");
    let Some(filter) = node.as_text().filter(|text| !text.trim().is_empty()) else { return Err(mismatch) };
    match (filter.parse::<Filter>(), did_you_mean(filter, LEVELS)) {
        (Ok(_), _) => Ok(filter.to_owned()),
        (Err(_), Some(level)) => Err(mismatch.hint(format!("did you mean \"{level}\"?"))),
        (Err(error), None) => Err(mismatch.hint(error.to_string())),
    }
}

#[cfg(test)]
mod tests;
