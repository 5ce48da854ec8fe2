//! Single values: from a [`Node`] to a type, or to what was found and what was expected instead. Pure.

use std::borrow::Cow;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

use super::{Node, did_you_mean};

/// A value that keeps its own error, so that one wrong value does not hide the next.
pub type Checked<T> = Result<T, Mismatch>;

/// Why a value is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    pub found: String,
    pub expected: Cow<'static, str>,
    pub hint: Option<String>,
}

impl Mismatch {
    pub fn new(found: &Node, expected: impl Into<Cow<'static, str>>) -> Self {
        Self { found: found.to_string(), expected: expected.into(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Text. Nothing (`key:`) is the empty text; numbers and booleans are not text, because YAML may already have changed
/// them (`010`, `1.10`).
pub fn text(node: &Node) -> Checked<String> {
    match node {
        Node::Text(text) => Ok(text.to_string()),
        Node::Null => Ok(String::new()),
        Node::Bool(_) | Node::Unsigned(_) | Node::Signed(_) | Node::Float(_) => {
            Err(Mismatch::new(node, "text").hint(format!("put it in quotes: \"{node}\"")))
        }
        Node::List(_) | Node::Map(_) | Node::Tagged(_) => Err(Mismatch::new(node, "text")),
    }
}

pub fn boolean(node: &Node) -> Checked<bool> {
    match node {
        Node::Bool(value) => Ok(*value),
        _ => Err(Mismatch::new(node, "true or false")),
    }
}

/// A whole number that fits `T`, described as `expected` ("a port, 1 to 65535").
pub fn integer<T: TryFrom<u64>>(expected: &'static str) -> impl Fn(&Node) -> Checked<T> + Copy {
    move |node| {
        match node {
            Node::Unsigned(value) => T::try_from(*value).ok(),
            _ => None,
        }
        .ok_or_else(|| {
            let mismatch = Mismatch::new(node, expected);
            match node {
                Node::Text(text) if text.parse::<u64>().is_ok() => mismatch.hint("write the number without quotes"),
                _ => mismatch,
            }
        })
    }
}

/// Text that `T` can be parsed from, described as `expected` ("an IP address").
pub fn parsed<T: FromStr>(expected: &'static str) -> impl Fn(&Node) -> Checked<T> + Copy {
    move |node| node.as_text().and_then(|text| text.parse().ok()).ok_or_else(|| Mismatch::new(node, expected))
}

/// A range of addresses. Host bits are dropped; a range of IPv4 addresses written as IPv6 is a range of IPv4 addresses.
pub fn range(node: &Node) -> Checked<IpNet> {
    let parse = |text: &str| {
        let net = text.parse::<IpNet>().ok()?;
        let mapped = net.prefix_len().checked_sub(96).and_then(|length| match net.addr().to_canonical() {
            IpAddr::V4(v4) if net.addr().is_ipv6() => Ipv4Net::new(v4, length).ok(),
            _ => None,
        });
        Some(mapped.map_or(net, IpNet::V4).trunc())
    };
    node.as_text().and_then(parse).ok_or_else(|| Mismatch::new(node, "a range such as 10.0.0.0/8"))
}

/// One of a few words, spelt exactly so.
pub fn choice<T: Clone>(options: &[(&'static str, T)]) -> impl Fn(&Node) -> Checked<T> {
    move |node| {
        let found = node.as_text().and_then(|text| options.iter().find(|(word, _)| *word == text));
        found.map(|(_, value)| value.clone()).ok_or_else(|| {
            let words: Vec<&str> = options.iter().map(|(word, _)| *word).collect();
            let mismatch = Mismatch::new(node, one_of(&words));
            match node.as_text().and_then(|text| did_you_mean(text, words)) {
                Some(word) => mismatch.hint(format!("did you mean \"{word}\"?")),
                None => mismatch,
            }
        })
    }
}

/// `a`, `a or b`, `a, b or c`.
fn one_of(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [only] => (*only).to_owned(),
        [init @ .., last] => format!("{} or {last}", init.join(", ")),
    }
}
