//! Kinds of the settings about policy, balancing and sources.

use std::num::NonZeroU32;

use ipnet::IpNet;
use serde_json::json;

use super::{Kind, duration, is_off, off, up_to};
use crate::config::settings::{OnEndpointRemoved, OnMissing};
use crate::config::yaml::{self, Checked, Mismatch, Node};

pub(in crate::config) static ON_MISSING: Kind<OnMissing> = Kind {
    parse: |node| yaml::choice(&[("deny", OnMissing::Deny), ("ignore", OnMissing::Ignore)])(node),
    show: |value| match value {
        OnMissing::Deny => json!("deny"),
        OnMissing::Ignore => json!("ignore"),
    },
};

pub(in crate::config) static EJECT_AFTER: Kind<Option<NonZeroU32>> = Kind {
    parse: |node| match is_off(node) {
        true => Ok(None),
        false => up_to(node, 1000, "off or a number of failures, 1 to 1000").map(Some),
    },
    show: |value| value.map_or_else(off, |count| json!(count)),
};

pub(in crate::config) static LIMIT32_OR_OFF: Kind<Option<NonZeroU32>> = Kind {
    parse: |node| match is_off(node) {
        true => Ok(None),
        false => up_to(node, u32::MAX, "off or a number of connections, at least 1").map(Some),
    },
    show: |value| value.map_or_else(off, |limit| json!(limit)),
};

/// New connections a second.
pub(in crate::config) static RATE_OR_OFF: Kind<Option<NonZeroU32>> = Kind {
    parse: |node| match is_off(node) {
        true => Ok(None),
        false => up_to(node, 1_000_000, "off or connections a second, 1 to 1000000").map(Some),
    },
    show: |value| value.map_or_else(off, |rate| json!(rate)),
};

pub(in crate::config) static BURST: Kind<NonZeroU32> =
    Kind { parse: |node| up_to(node, 1_000_000, "a number of connections, 1 to 1000000"), show: |value| json!(value) };

pub(in crate::config) static ON_ENDPOINT_REMOVED: Kind<OnEndpointRemoved> = Kind {
    parse: removed,
    show: |value| match value {
        OnEndpointRemoved::Keep => json!("keep"),
        OnEndpointRemoved::Drain(time) => json!(format!("drain {}", duration::written(*time))),
        OnEndpointRemoved::Close => json!("close"),
    },
};

/// A list of ranges of addresses; one may stand for a list of one, an address for a range of one.
pub(in crate::config) static RANGES: Kind<Vec<IpNet>> = Kind {
    parse: |node| match node {
        Node::List(items) => items.iter().map(range).collect(),
        Node::Null => Ok(Vec::new()),
        one => range(one).map(|range| vec![range]),
    },
    show: |ranges| ranges.iter().map(|range| json!(range.to_string())).collect(),
};

fn range(node: &Node) -> Checked<IpNet> {
    match node.as_text().and_then(|text| text.parse::<std::net::IpAddr>().ok()) {
        Some(ip) => Ok(IpNet::from(ip.to_canonical())),
        None => yaml::range(node),
    }
}

fn removed(node: &Node) -> Checked<OnEndpointRemoved> {
    const EXPECTED: &str = "keep, drain with a duration (drain 30s), or close";
    let words: Vec<&str> = node.as_text().map(|text| text.split_whitespace().collect()).unwrap_or_default();
    match words.as_slice() {
        ["keep"] => Ok(OnEndpointRemoved::Keep),
        ["close"] => Ok(OnEndpointRemoved::Close),
        ["drain"] => Err(Mismatch::new(node, EXPECTED).hint("say for how long: drain 30s")),
        ["drain", time] => duration::positive(&Node::Text((*time).into()), EXPECTED)
            .map(OnEndpointRemoved::Drain)
            .map_err(|mismatch| Mismatch { found: node.to_string(), ..mismatch }),
        _ => Err(Mismatch::new(node, EXPECTED)),
    }
}
