//! The SOCKS5 messages of RFC 1928 that adit speaks, without any I/O: greeting, CONNECT request, reply.
//!
//! Parsers take what has arrived so far and answer "need more", a value with its length, or why it is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest request: header, a name of 255 bytes with its length, port.
pub const LONGEST_REQUEST: usize = 4 + 1 + 255 + 2;
/// The longest greeting: version, count, 255 methods.
pub const LONGEST_GREETING: usize = 2 + 255;
const VERSION: u8 = 5;
const NO_AUTH: u8 = 0;
const CONNECT: u8 = 1;

/// Answers to the greeting.
pub const METHOD_NO_AUTH: [u8; 2] = [VERSION, NO_AUTH];
pub const METHOD_NONE: [u8; 2] = [VERSION, 0xff];

/// What a parser found: the value and how many bytes it took, or `None` while bytes are missing.
pub type Parsed<T> = Result<Option<(T, usize)>, SocksError>;

/// Where a client wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Address(SocketAddr),
    /// A name as it was sent: any bytes that are UTF-8.
    Name(String, u16),
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SocksError {
    #[error("not SOCKS version 5")]
    Version,
    #[error("the client does not offer to go without authentication")]
    Method,
    #[error("only CONNECT is supported")]
    Command,
    #[error("unknown address type")]
    AddressType,
    #[error("the name is empty or not text")]
    Name,
}

impl SocksError {
    /// What the client is told; `None`: it does not speak SOCKS5, so nothing.
    #[must_use]
    pub const fn reply(self) -> Option<Reply> {
        match self {
            Self::Version | Self::Method => None,
            Self::Command => Some(Reply::CommandNotSupported),
            Self::AddressType => Some(Reply::AddressTypeNotSupported),
            Self::Name => Some(Reply::GeneralFailure),
        }
    }
}

/// Reply codes of RFC 1928, section 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    Succeeded = 0,
    GeneralFailure = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    ConnectionRefused = 5,
    TtlExpired = 6,
    CommandNotSupported = 7,
    AddressTypeNotSupported = 8,
}

/// Parses a greeting; the value is whether going without authentication is offered.
///
/// # Errors
/// Another version.
pub fn parse_greeting(bytes: &[u8]) -> Parsed<bool> {
    match bytes {
        [] => Ok(None),
        [VERSION] => Ok(None),
        [VERSION, count, methods @ ..] => {
            let count = usize::from(*count);
            Ok(methods.get(..count).map(|methods| (methods.contains(&NO_AUTH), 2 + count)))
        }
        [_, ..] => Err(SocksError::Version),
    }
}

/// Parses a request.
///
/// # Errors
/// See [`SocksError`]; an error is found as soon as its byte has arrived.
pub fn parse_request(bytes: &[u8]) -> Parsed<Destination> {
    if bytes.first().is_some_and(|version| *version != VERSION) {
        return Err(SocksError::Version);
    }
    if bytes.get(1).is_some_and(|command| *command != CONNECT) {
        return Err(SocksError::Command);
    }
    let Some((address_type, rest)) = bytes.get(3..).and_then(|rest| rest.split_first()) else { return Ok(None) };
    let port = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    let address =
        |ip: IpAddr, len: usize| port(len).map(|port| (Destination::Address(SocketAddr::new(ip, port)), 4 + len + 2));
    match address_type {
        1 => Ok(octets::<4>(rest).and_then(|octets| address(Ipv4Addr::from(octets).into(), 4))),
        4 => Ok(octets::<16>(rest).and_then(|octets| address(Ipv6Addr::from(octets).into(), 16))),
        3 => {
            let Some(len) = rest.first().copied().map(usize::from) else { return Ok(None) };
            if len == 0 {
                return Err(SocksError::Name);
            }
            let (Some(name), Some(port)) = (rest.get(1..=len), port(1 + len)) else { return Ok(None) };
            let name = std::str::from_utf8(name).map_err(|_not_text| SocksError::Name)?;
            if name.contains('\0') {
                return Err(SocksError::Name);
            }
            Ok(Some((Destination::Name(name.to_owned(), port), 4 + 1 + len + 2)))
        }
        _ => Err(SocksError::AddressType),
    }
}

fn octets<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.get(..N)?.try_into().ok()
}

/// Encodes a reply; `bound` is the address that adit connects from, unspecified when it has none.
#[must_use]
pub fn encode_reply(reply: Reply, bound: Option<SocketAddr>) -> Vec<u8> {
    let bound = bound.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    let mut bytes = vec![VERSION, reply as u8, 0];
    match bound.ip() {
        IpAddr::V4(ip) => {
            bytes.push(1);
            bytes.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.push(4);
            bytes.extend_from_slice(&ip.octets());
        }
    }
    bytes.extend_from_slice(&bound.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(destination: &Destination) -> Vec<u8> {
        let mut bytes = vec![5, 1, 0];
        let port = match destination {
            Destination::Address(address) => {
                match address.ip() {
                    IpAddr::V4(ip) => {
                        bytes.push(1);
                        bytes.extend_from_slice(&ip.octets());
                    }
                    IpAddr::V6(ip) => {
                        bytes.push(4);
                        bytes.extend_from_slice(&ip.octets());
                    }
                }
                address.port()
            }
            Destination::Name(name, port) => {
                bytes.extend_from_slice(&[3, u8::try_from(name.len()).expect("short")]);
                bytes.extend_from_slice(name.as_bytes());
                *port
            }
        };
        bytes.extend_from_slice(&port.to_be_bytes());
        bytes
    }

    #[test]
    fn greetings() {
        let cases: [(&[u8], Parsed<bool>); 8] = [
            (&[], Ok(None)),
            (&[5], Ok(None)),
            (&[5, 1], Ok(None)),
            (&[5, 1, 0], Ok(Some((true, 3)))),
            (&[5, 2, 2, 0, 9], Ok(Some((true, 4)))),
            (&[5, 1, 2], Ok(Some((false, 3)))),
            (&[5, 0], Ok(Some((false, 2)))),
            (b"GET / HTTP/1.1\r\n", Err(SocksError::Version)),
        ];
        for (bytes, want) in cases {
            assert_eq!(parse_greeting(bytes), want, "{bytes:?}");
        }
    }

    #[test]
    fn bad_requests_are_refused_at_the_byte_that_is_wrong() {
        let cases: [(&[u8], SocksError); 6] = [
            (&[4], SocksError::Version),
            (&[5, 2], SocksError::Command),
            (&[5, 3], SocksError::Command),
            (&[5, 1, 0, 2], SocksError::AddressType),
            (&[5, 1, 0, 3, 0], SocksError::Name),
            (&[5, 1, 0, 3, 1, 0xff, 0, 80], SocksError::Name),
        ];
        for (bytes, want) in cases {
            assert_eq!(parse_request(bytes), Err(want), "{bytes:?}");
        }
    }

    #[test]
    fn replies_carry_the_bound_address() {
        assert_eq!(encode_reply(Reply::ConnectionRefused, None), [5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
        let bound = "[::1]:258".parse().expect("address");
        assert_eq!(encode_reply(Reply::Succeeded, Some(bound)).len(), 22);
        assert_eq!(encode_reply(Reply::Succeeded, Some(bound))[20..], [1, 2]);
    }

    fn destinations() -> impl Strategy<Value = Destination> {
        prop_oneof![
            any::<SocketAddr>().prop_map(|address| Destination::Address(SocketAddr::new(address.ip(), address.port()))),
            ("[a-z0-9.-]{1,255}", any::<u16>()).prop_map(|(name, port)| Destination::Name(name, port)),
        ]
    }

    proptest! {
        #[test]
        fn every_prefix_needs_more_and_the_whole_round_trips(destination in destinations(), tail in any::<[u8; 3]>()) {
            let mut bytes = encode(&destination);
            let whole = bytes.len();
            for len in 0..whole {
                prop_assert_eq!(parse_request(&bytes[..len]), Ok(None));
            }
            prop_assert!(whole <= LONGEST_REQUEST);
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(parse_request(&bytes), Ok(Some((destination, whole))));
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_greeting(&bytes);
            if let Ok(Some((_, len))) = parse_request(&bytes) {
                prop_assert!(len <= bytes.len());
            }
        }
    }
}
