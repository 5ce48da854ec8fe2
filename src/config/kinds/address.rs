//! Where doors listen: an IP address and a port, `off`, and for the admin door also a path.

use std::net::SocketAddr;

use serde_json::json;

use super::{Kind, is_off, off};
use crate::config::settings::AdminAddr;
use crate::config::yaml::{Checked, Mismatch, Node};

pub(in crate::config) static DOOR: Kind<Option<SocketAddr>> = Kind {
    parse: |node| if is_off(node) { Ok(None) } else { address(node, "ADDRESS:PORT or off").map(Some) },
    show: |value| value.map_or_else(off, |address| json!(address)),
};

pub(in crate::config) static ADMIN_DOOR: Kind<Option<AdminAddr>> = Kind {
    parse: admin_door,
    show: |value| match value {
        None => off(),
        Some(AdminAddr::Tcp(address)) => json!(address),
        Some(AdminAddr::Unix(path)) => json!(format!("unix:{}", path.display())),
    },
};

fn admin_door(node: &Node) -> Checked<Option<AdminAddr>> {
    /// `sun_path` of a Unix socket address, without its closing zero.
    const LONGEST: usize = 107;
    if is_off(node) {
        return Ok(None);
    }
    let Some(path) = node.as_text().and_then(|text| text.strip_prefix("unix:")) else {
        return address(node, "ADDRESS:PORT, unix:/PATH or off").map(|address| Some(AdminAddr::Tcp(address)));
    };
    let mismatch = Mismatch::new(node, "unix: and an absolute path of at most 107 bytes");
    if !path.starts_with('/') {
        return Err(mismatch.hint(format!("write unix:/run/adit/{}", path.rsplit('/').next().unwrap_or("admin.sock"))));
    }
    if path.len() > LONGEST || path.contains('\0') || path.ends_with('/') {
        return Err(mismatch);
    }
    Ok(Some(AdminAddr::Unix(path.into())))
}

fn address(node: &Node, expected: &'static str) -> Checked<SocketAddr> {
    let mismatch = Mismatch::new(node, expected);
    match node {
        Node::Unsigned(port) if *port <= 65535 => Err(mismatch.hint(format!("write \"[::]:{port}\""))),
        Node::Text(text) => text.parse().map_err(|_not_an_address: std::net::AddrParseError| {
            let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
            match (host, port.parse::<u16>()) {
                ("localhost", Ok(port)) => mismatch.hint(format!("write \"127.0.0.1:{port}\"")),
                ("" | "*", Ok(port)) => mismatch.hint(format!("write \"[::]:{port}\"")),
                (host, Ok(port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
                    mismatch.hint(format!("write \"[{host}]:{port}\""))
                }
                (_, Ok(_)) => mismatch.hint("names are not resolved here: write an IP address"),
                _ => mismatch,
            }
        }),
        _ => Err(mismatch),
    }
}
