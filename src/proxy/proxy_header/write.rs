//! PROXY protocol headers to send: who is behind a connection that adit makes.
//!
//! In: the client's address, the address that it asked for, and its identity. Out: the bytes to send before all others.
//! They are not the client's and count nowhere. Addresses of one family are written as they are; of two families, as the
//! protocol's "unspecified", which tells the application nothing but the identity. Nothing here can fail.

use std::net::{IpAddr, SocketAddr};

use crate::mesh::service::ProxyProtocol;

pub(super) const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// The specification has receivers refuse any other byte without addresses.
const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// ztunnel's: the client's SPIFFE URI as text.
const IDENTITY: u8 = 0xd0;
/// The longest that SPIFFE allows; a longer one is no identity and is not sent.
const LONGEST_IDENTITY: usize = 2048;

/// The header of that version for a connection of `source` to `target`.
#[must_use]
pub fn header(version: ProxyProtocol, source: SocketAddr, target: SocketAddr) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => proxy_v1(source, target),
        ProxyProtocol::V2 => proxy_v2(source, target, None),
    }
}

/// Version 1, which has no room for an identity.
#[must_use]
pub fn proxy_v1(source: SocketAddr, target: SocketAddr) -> Vec<u8> {
    let (from, to) = (source.ip().to_canonical(), target.ip().to_canonical());
    let family = match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => "TCP4",
        (IpAddr::V6(_), IpAddr::V6(_)) => "TCP6",
        _ => return b"PROXY UNKNOWN\r\n".to_vec(),
    };
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), target.port()).into_bytes()
}

/// Version 2. `identity`: the client's SPIFFE URI, if it has proved one.
#[must_use]
pub fn proxy_v2(source: SocketAddr, target: SocketAddr, identity: Option<&str>) -> Vec<u8> {
    let (family, addresses) = addresses(source, target);
    let mut body = Vec::with_capacity(36 + 3 + identity.map_or(0, str::len));
    body.extend_from_slice(&addresses);
    let identity = identity.filter(|identity| !identity.is_empty() && identity.len() <= LONGEST_IDENTITY);
    if let Some((identity, length)) = identity.and_then(|uri| Some((uri, u16::try_from(uri.len()).ok()?))) {
        body.push(IDENTITY);
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(identity.as_bytes());
    }
    // At most 36 of addresses and 3 + 2048 of identity.
    let length = u16::try_from(body.len()).unwrap_or_default();
    let mut header = Vec::with_capacity(SIGNATURE.len() + 4 + body.len());
    header.extend_from_slice(&SIGNATURE);
    header.extend_from_slice(&[PROXY, family]);
    header.extend_from_slice(&length.to_be_bytes());
    header.append(&mut body);
    header
}

fn addresses(source: SocketAddr, target: SocketAddr) -> (u8, Vec<u8>) {
    let ports = [source.port().to_be_bytes(), target.port().to_be_bytes()].concat();
    match (source.ip().to_canonical(), target.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            (TCP_OVER_IPV4, [&source.octets()[..], &target.octets(), &ports].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            (TCP_OVER_IPV6, [&source.octets()[..], &target.octets(), &ports].concat())
        }
        _ => (UNSPECIFIED, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(source: &str, target: &str, identity: Option<&str>) -> Vec<u8> {
        proxy_v2(source.parse().expect("address"), target.parse().expect("address"), identity)
    }

    const START: [u8; 13] = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21];

    #[test]
    fn every_byte() {
        let ipv4 = [0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 0x04, 0xd2, 0x1f, 0x90];
        assert_eq!(header("10.0.0.1:1234", "10.0.0.2:8080", None), [&START[..], &ipv4].concat());
        assert_eq!(header("[::ffff:10.0.0.1]:1234", "10.0.0.2:8080", None), [&START[..], &ipv4].concat());

        let mut ipv6 = vec![0x21, 0, 36];
        ipv6.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        ipv6.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        ipv6.extend([0x04, 0xd2, 0x01, 0xbb]);
        assert_eq!(header("[2001:db8::1]:1234", "[fd00::2]:443", None), [&START[..], &ipv6].concat());

        let mixed = [&START[..], &[0x00, 0, 0]].concat();
        assert_eq!(header("10.0.0.1:1234", "[fd00::2]:443", None), mixed);
        assert_eq!(header("[2001:db8::1]:1234", "10.0.0.2:443", None), mixed);
    }

    #[test]
    fn version_1_is_a_line() {
        let line = |source: &str, target: &str| {
            let bytes = proxy_v1(source.parse().expect("address"), target.parse().expect("address"));
            String::from_utf8(bytes).expect("text")
        };
        for (source, target, want) in [
            ("10.0.0.1:1234", "10.0.0.2:8080", "PROXY TCP4 10.0.0.1 10.0.0.2 1234 8080\r\n"),
            ("[::ffff:10.0.0.1]:1234", "10.0.0.2:8080", "PROXY TCP4 10.0.0.1 10.0.0.2 1234 8080\r\n"),
            ("[2001:db8::1]:1234", "[fd00::2]:443", "PROXY TCP6 2001:db8::1 fd00::2 1234 443\r\n"),
            ("[fe80::1%7]:1", "[fd00::2]:443", "PROXY TCP6 fe80::1 fd00::2 1 443\r\n"),
            ("10.0.0.1:1234", "[fd00::2]:443", "PROXY UNKNOWN\r\n"),
            ("[2001:db8::1]:1234", "10.0.0.2:443", "PROXY UNKNOWN\r\n"),
        ] {
            assert_eq!(line(source, target), want);
        }
    }

    #[test]
    fn the_identity_follows_the_addresses() {
        let uri = "spiffe://cluster.local/ns/shop/sa/cart";
        let tlv = [&[0xd0, 0, 38][..], uri.as_bytes()].concat();
        let ipv4 = [0x11, 0, 12 + 41, 10, 0, 0, 1, 10, 0, 0, 2, 0x04, 0xd2, 0x1f, 0x90];
        assert_eq!(header("10.0.0.1:1234", "10.0.0.2:8080", Some(uri)), [&START[..], &ipv4, &tlv].concat());
        assert_eq!(header("10.0.0.1:1234", "[fd00::2]:443", Some(uri)), [&START[..], &[0x00, 0, 41], &tlv].concat());
        let longest = "x".repeat(LONGEST_IDENTITY);
        let bytes = header("10.0.0.1:1", "10.0.0.2:2", Some(&longest));
        assert_eq!(bytes[14..16], [0x08, 0x0f]);
        assert_eq!(bytes.len(), 16 + 0x080f);
        let none = header("10.0.0.1:1", "10.0.0.2:2", None);
        assert_eq!(header("10.0.0.1:1", "10.0.0.2:2", Some("")), none);
        assert_eq!(header("10.0.0.1:1", "10.0.0.2:2", Some(&"x".repeat(LONGEST_IDENTITY + 1))), none);
        assert_eq!(header("10.0.0.1:1", "10.0.0.2:2", Some(&"x".repeat(100_000))), none);
    }

    proptest! {
        #[test]
        fn the_length_is_that_of_what_follows(
            source in any::<(IpAddr, u16)>(), target in any::<(IpAddr, u16)>(), identity in any::<Option<String>>()
        ) {
            let bytes = proxy_v2(source.into(), target.into(), identity.as_deref());
            prop_assert_eq!(usize::from(u16::from_be_bytes([bytes[14], bytes[15]])), bytes.len() - 16);
        }
    }
}
