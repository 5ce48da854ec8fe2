//! The authority of a CONNECT: where the client wants the stream to go, as `address:port` or `name:port`.
//!
//! In: text from a peer. Out: an [`Authority`], only if every part keeps to its grammar: a port of 1 to 65535 without
//! sign or leading zero, IPv6 in brackets and without a zone, a name of DNS labels. What is accepted prints as text that
//! parses to the same value. Addresses are canonical (`::ffff:a.b.c.d` is `a.b.c.d`), names are in lower case.
//!
//! Fails closed. Deliberately absent: user names, escapes, a default port, the root's dot, old spellings of IPv4.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use http::Uri;
use http::uri;

use super::scratch::Scratch;

const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
/// A name, a colon and five digits.
pub const LONGEST_AUTHORITY: usize = MAX_NAME + 6;

/// Where a stream is to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// Made by [`Authority::of_address`] or parsed: canonical, and the scope of a link-local address is not sent.
    Address(SocketAddr),
    Name {
        host: HostName,
        port: NonZeroU16,
    },
}

/// A DNS name in lower case, without the root's dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Box<str>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    #[error("it is longer than {LONGEST_AUTHORITY} bytes")]
    TooLong,
    #[error("it has no port from 1 to 65535")]
    Port,
    #[error("what is in brackets is not an IPv6 address")]
    Ipv6,
    #[error("the host is neither an address nor a DNS name")]
    Name,
}

impl Authority {
    #[must_use]
    pub fn of_address(address: SocketAddr) -> Self {
        Self::Address(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// Nothing if `host` is not a DNS name, or the port is 0.
    #[must_use]
    pub fn of_name(host: &str, port: u16) -> Option<Self> {
        Some(Self::Name { host: host.parse().ok()?, port: NonZeroU16::new(port)? })
    }

    #[must_use]
    pub const fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Name { port, .. } => port.get(),
        }
    }

    /// The URI of a CONNECT: the authority and nothing else. One allocation.
    #[must_use]
    pub fn to_uri(&self) -> Uri {
        let text = Scratch::<LONGEST_AUTHORITY>::of(format_args!("{self}"));
        let authority = uri::Authority::try_from(text.bytes());
        authority.expect("digits, letters, '-', '_', '.', ':' and brackets around IPv6 are an authority").into()
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        if text.len() > LONGEST_AUTHORITY {
            return Err(AuthorityError::TooLong);
        }
        let (host, port) = text.rsplit_once(':').ok_or(AuthorityError::Port)?;
        let port = parse_port(port).ok_or(AuthorityError::Port)?;
        if let Some(rest) = host.strip_prefix('[') {
            let ip = rest.strip_suffix(']').and_then(|ip| ip.parse::<Ipv6Addr>().ok()).ok_or(AuthorityError::Ipv6)?;
            return Ok(Self::of_address((ip, port.get()).into()));
        }
        if let Ok(ip) = host.parse::<Ipv4Addr>() {
            return Ok(Self::Address((ip, port.get()).into()));
        }
        let host = host.parse().map_err(|_not_a_name| AuthorityError::Name)?;
        Ok(Self::Name { host, port })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => match address.ip() {
                IpAddr::V4(ip) => write!(f, "{ip}:{}", address.port()),
                IpAddr::V6(ip) => write!(f, "[{ip}]:{}", address.port()),
            },
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

fn parse_port(text: &str) -> Option<NonZeroU16> {
    let digits = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

impl HostName {
    #[must_use]
    pub const fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a DNS name")]
pub struct NotAName;

impl FromStr for HostName {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        if is_host_name(text) { Ok(Self(text.to_ascii_lowercase().into())) } else { Err(NotAName) }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Labels of letters, digits, `-` and `_` (which Kubernetes forbids and others use), in any case. A last label that is a
/// number makes it an address in some old spelling (`127.1`, `0x7f000001`), not a name.
pub(super) fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= MAX_NAME && text.split('.').all(label) && !is_number(last)
}

fn is_number(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn label(length: usize) -> String {
        "a".repeat(length)
    }

    #[test]
    fn what_is_accepted_and_how_it_prints() {
        let longest = [label(63), label(63), label(63), label(61)].join(".");
        assert_eq!(longest.len(), MAX_NAME);
        let longest = format!("{longest}:65535");
        for (given, want) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("10.0.0.1:65535", "10.0.0.1:65535"),
            ("[2001:DB8:0:0::1]:1", "[2001:db8::1]:1"),
            ("[::1]:8080", "[::1]:8080"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            ("cart.shop.svc.cluster.local:80", "cart.shop.svc.cluster.local:80"),
            ("Cart.Shop:80", "cart.shop:80"),
            ("a:1", "a:1"),
            ("my_db-1.example:5432", "my_db-1.example:5432"),
            ("1.2.3.4a:80", "1.2.3.4a:80"),
            ("0xyz:80", "0xyz:80"),
            (&longest, &longest),
        ] {
            let parsed: Authority = given.parse().unwrap_or_else(|error| panic!("{given}: {error}"));
            assert_eq!(parsed.to_string(), want);
            assert_eq!(parsed.to_uri(), want, "as a URI");
            assert!(parsed.to_uri().scheme().is_none() && parsed.to_uri().path().is_empty());
        }
    }

    #[test]
    fn what_is_refused() {
        use AuthorityError::{Ipv6, Name, Port, TooLong};
        let too_long = format!("{}:1", [label(63), label(63), label(63), label(62)].join("."));
        let huge = format!("{}:80", label(100_000));
        let label_64 = format!("{}.b:80", label(64));
        for (given, want) in [
            ("", Port),
            ("10.0.0.1", Port),
            ("cart.shop", Port),
            ("10.0.0.1:", Port),
            ("10.0.0.1:0", Port),
            ("10.0.0.1:080", Port),
            ("10.0.0.1:+80", Port),
            ("10.0.0.1:-80", Port),
            ("10.0.0.1: 80", Port),
            ("10.0.0.1:80 ", Port),
            ("10.0.0.1:65536", Port),
            ("10.0.0.1:99999999999999999999", Port),
            ("10.0.0.1:http", Port),
            ("10.0.0.1:８０", Port),
            (":", Port),
            ("[::1]", Port),
            (":80", Name),
            ("::1:80", Name),
            ("2001:db8::1:80", Name),
            ("[::1:80", Ipv6),
            ("[::1]]:80", Ipv6),
            ("[::1]x:80", Ipv6),
            ("[]:80", Ipv6),
            ("[fe80::1%eth0]:80", Ipv6),
            ("[fe80::1%25eth0]:80", Ipv6),
            ("[10.0.0.1]:80", Ipv6),
            ("[v1.a]:80", Ipv6),
            ("user@10.0.0.1:80", Name),
            ("user:pass@cart:80", Name),
            ("http://cart:80", Name),
            ("cart:80:80", Name),
            ("cart/x:80", Name),
            ("cart,dog:80", Name),
            ("ca rt:80", Name),
            ("ca%41rt:80", Name),
            ("cart\0:80", Name),
            ("cart\n:80", Name),
            ("caf\u{e9}:80", Name),
            ("*.example:80", Name),
            (".cart:80", Name),
            ("cart.:80", Name),
            ("ca..rt:80", Name),
            ("-cart:80", Name),
            ("cart-.shop:80", Name),
            ("010.0.0.1:80", Name),
            ("10.0.0.01:80", Name),
            ("127.1:80", Name),
            ("2130706433:80", Name),
            ("0x7f000001:80", Name),
            ("0X7F.1:80", Name),
            ("0x:80", Name),
            ("256.0.0.1:80", Name),
            (&label_64, Name),
            (&too_long, Name),
            (&huge, TooLong),
        ] {
            assert_eq!(given.parse::<Authority>(), Err(want), "{given:?}");
        }
    }

    #[test]
    fn an_address_is_canonical_and_loses_its_scope() {
        let of = |text: &str| Authority::of_address(text.parse().expect("address")).to_string();
        assert_eq!(of("[::ffff:10.0.0.1]:80"), "10.0.0.1:80");
        assert_eq!(of("[fe80::1%7]:80"), "[fe80::1]:80");
    }

    proptest! {
        #[test]
        fn never_accepts_what_it_would_not_print(text in "[a-zA-Z0-9_.:\\[\\]@% -]{0,40}") {
            if let Ok(parsed) = text.parse::<Authority>() {
                let printed = parsed.to_string();
                prop_assert_eq!(printed.parse::<Authority>(), Ok(parsed.clone()));
                prop_assert_eq!(&parsed.to_uri().to_string(), &printed);
                // A name may only have changed its case; an address is one that the standard library reads.
                match parsed {
                    Authority::Name { .. } => prop_assert!(printed.eq_ignore_ascii_case(&text)),
                    Authority::Address(address) => {
                        let read: SocketAddr = text.parse().expect("an address of the standard library");
                        prop_assert_eq!(address, Authority::canonical_of(read));
                    }
                }
            }
        }

        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = text.parse::<Authority>();
        }

        #[test]
        fn addresses_round_trip(ip in any::<IpAddr>(), port in 1_u16..) {
            let authority = Authority::of_address((ip, port).into());
            prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority.clone()));
            prop_assert_eq!(authority.to_uri().to_string(), authority.to_string());
        }

        #[test]
        fn names_round_trip(name in "[a-z0-9]([a-z0-9_-]{0,60}[a-z0-9])?(\\.[a-z]{1,20}){0,5}", port in 1_u16..) {
            let text = format!("{name}z:{port}");
            let parsed: Authority = text.parse().expect("a name");
            prop_assert_eq!(parsed.to_string(), text);
        }
    }

    impl Authority {
        fn canonical_of(address: SocketAddr) -> SocketAddr {
            SocketAddr::new(address.ip().to_canonical(), address.port())
        }
    }
}
