//! The smaller parts of the file format: names, addresses, ports, keys, gateways.
//!
//! In: a node or a cursor. Out: the value, or what was expected instead. Whatever is wrong is reported once; what a
//! function returns besides does not matter then, because nothing of that file is used.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::names::Names;
use crate::config::yaml::{Checked, Cursor, Mismatch, Node, integer, text};
use crate::mesh::service::ServiceKey;
use crate::mesh::workload::{GatewayAddress, GatewayDestination, Health, PortMap};

pub(super) const STATUS: [(&str, Health); 3] =
    [("Healthy", Health::Healthy), ("Unhealthy", Health::Unhealthy), ("Terminating", Health::Terminating)];

/// Of the format as a whole, as `/mesh` writes it.
pub(super) const SCHEMA_VERSION: u64 = 1;

const SERVICE_KEY: &str = "namespace/hostname";
const PORT: &str = "a port, 1 to 65535";

/// The cursor, unless nothing is there, which is then reported: a key without a value is what a cut-off file ends with.
pub(super) fn present<'c, 'a>(cursor: &'c Cursor<'a>, expected: &'static str) -> Option<&'c Cursor<'a>> {
    if matches!(cursor.node(), Node::Null) {
        cursor.report(Mismatch::new(cursor.node(), expected));
        return None;
    }
    Some(cursor)
}

/// Of a dump: one that means something else is not guessed at.
pub(super) fn schema_version(node: &Node) -> Checked<()> {
    match node {
        Node::Unsigned(SCHEMA_VERSION) => Ok(()),
        _ => Err(Mismatch::new(node, format!("{SCHEMA_VERSION}"))),
    }
}

/// Text, which may be empty if it says so.
pub(super) fn name(names: &Names) -> impl Fn(&Node) -> Checked<Arc<str>> + Copy {
    |node| match node {
        Node::Text(text) => Ok(names.share(text)),
        Node::Null => Err(Mismatch::new(node, "text").hint("leave the key out, or write \"\"")),
        // Reports what it is instead.
        _ => text(node).map(|text| names.share(&text)),
    }
}

/// Text that is not empty.
pub(super) fn filled(names: &Names) -> impl Fn(&Node) -> Checked<Arc<str>> + Copy {
    move |node| match name(names)(node) {
        Ok(name) if !name.is_empty() => Ok(name),
        Err(mismatch) if !matches!(node, Node::Null) => Err(mismatch),
        _ => Err(Mismatch::new(node, "text that is not empty")),
    }
}

pub(super) fn ip(node: &Node) -> Checked<IpAddr> {
    node.as_text().and_then(parse_ip).ok_or_else(|| Mismatch::new(node, "an IP address"))
}

/// `network/ip`; without a slash in the default network.
pub(super) fn network_ip(names: &Names) -> impl Fn(&Node) -> Checked<(Arc<str>, IpAddr)> + Copy {
    |node| {
        let split = node.as_text().and_then(|text| match text.rsplit_once('/') {
            Some((network, ip)) => Some((names.share(network), parse_ip(ip)?)),
            None => Some((names.share(""), parse_ip(text)?)),
        });
        split.ok_or_else(|| Mismatch::new(node, "network/address, or /address in the default network"))
    }
}

pub(super) fn service_key(names: &Names) -> impl Fn(&Node) -> Checked<ServiceKey> + Copy {
    |node| {
        let key = node.as_text().and_then(|text| split_key(names, text));
        key.ok_or_else(|| Mismatch::new(node, SERVICE_KEY))
    }
}

/// An address wins over a name: `network/ip` is tried first.
fn destination(names: &Names) -> impl Fn(&Node) -> Checked<GatewayDestination> + Copy {
    |node| {
        let split = node.as_text().and_then(|text| {
            let address = text.rsplit_once('/').and_then(|(network, ip)| Some((names.share(network), parse_ip(ip)?)));
            match address {
                Some((network, ip)) => Some(GatewayDestination::Address { network, ip }),
                None => split_key(names, text).map(GatewayDestination::Hostname),
            }
        });
        split.ok_or_else(|| Mismatch::new(node, "network/address or namespace/hostname"))
    }
}

pub(super) fn gateway(cursor: &Cursor<'_>, names: &Names) -> Option<GatewayAddress> {
    let fields = present(cursor, "a map")?.fields(&["destination", "hboneMtlsPort"])?;
    let destination = fields.required("destination", destination(names));
    let hbone_mtls_port = fields.required("hboneMtlsPort", port);
    Some(GatewayAddress { destination: destination?, hbone_mtls_port: hbone_mtls_port? })
}

pub(super) fn port(node: &Node) -> Checked<u16> {
    match integer(PORT)(node) {
        Ok(0) => Err(Mismatch::new(node, PORT)),
        checked => checked,
    }
}

/// Service port -> target port. A key may be quoted, as it must be in JSON.
pub(super) fn ports(cursor: &Cursor<'_>) -> Option<PortMap> {
    map(cursor, port_key, |value| value.read(integer("a port, 0 to 65535 (0: named by the workload)")))
}

/// Quoted or not.
pub(super) fn port_key(node: &Node) -> Checked<u16> {
    let quoted = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    match node.as_text().and_then(quoted) {
        Some(number) if number > 0 => Ok(number),
        _ => port(node),
    }
}

/// A map that is there; every wrong key and value is reported and left out.
pub(super) fn map<K: Ord, V>(
    cursor: &Cursor<'_>,
    read_key: impl Fn(&Node) -> Checked<K>,
    read_value: impl Fn(&Cursor<'_>) -> Option<V>,
) -> Option<BTreeMap<K, V>> {
    let mut map = BTreeMap::new();
    for (key, value) in present(cursor, "a map")?.entries()? {
        let key = read_key(key).map_err(|mismatch| value.report_as_key(mismatch)).ok();
        let value = read_value(&value);
        map.extend(key.zip(value));
    }
    Some(map)
}

/// A list that is there; every wrong item is reported and left out.
pub(super) fn list<T>(cursor: &Cursor<'_>, read: impl Fn(&Cursor<'_>) -> Option<T>) -> Option<Vec<T>> {
    Some(present(cursor, "a list")?.items()?.filter_map(|item| read(&item)).collect())
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn split_key(names: &Names, text: &str) -> Option<ServiceKey> {
    let (namespace, hostname) = text.split_once('/')?;
    (!namespace.is_empty() && !hostname.is_empty()).then(|| names.key(namespace, hostname))
}
