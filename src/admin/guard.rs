//! Who may talk to the admin port. It listens on loopback, so what is left to fear is a browser on the same machine that a
//! web page has put to use. Three rules, each failing closed: the `Host` must be loopback (a page reached by DNS
//! rebinding has another), no request may carry an `Origin` (browsers add it to cross-origin requests), and what changes
//! something needs a header of our own (which a page cannot add without a preflight, and that carries an `Origin`).

use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::header::{self, HeaderMap};
use hyper::{Request, Uri};

/// The header that requests which change something must carry, and its value.
pub(crate) const CHANGE_HEADER: &str = "x-adit";
pub(crate) const CHANGE_VALUE: &str = "1";

/// Which `Host` is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostRule {
    /// `localhost`, 127.0.0.0/8 and ::1, with any port.
    Loopback,
    /// Any, or none: for Unix sockets, and where `admin.allowRemote` says so.
    Any,
}

/// Why a request is refused, in words for whoever sent it.
pub(super) fn refusal<B>(request: &Request<B>, rule: HostRule) -> Option<&'static str> {
    if request.headers().contains_key(header::ORIGIN) {
        return Some("requests with an Origin are refused: this API is not for web pages");
    }
    if rule == HostRule::Loopback && !is_loopback_request(request.uri(), request.headers()) {
        return Some("the Host must be loopback; to allow others, set admin.allowRemote");
    }
    None
}

/// Whether the request carries the header that changes need.
pub(super) fn may_change(headers: &HeaderMap) -> bool {
    headers.get(CHANGE_HEADER).is_some_and(|value| value.as_bytes() == CHANGE_VALUE.as_bytes())
}

/// Exactly one `Host`, and it and the URI's authority, if there is one, are loopback.
fn is_loopback_request(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    host.to_str().is_ok_and(is_loopback_authority)
        && uri.authority().is_none_or(|authority| is_loopback_authority(authority.as_str()))
}

fn is_loopback_authority(authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let Some((host, port)) = rest.split_once(']') else { return false };
            if host.parse::<Ipv6Addr>().is_ok_and(|address| is_loopback_v6(&address)) {
                ("localhost", port)
            } else {
                return false;
            }
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port_is_fine = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    let host_is_fine =
        host.eq_ignore_ascii_case("localhost") || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback());
    port_is_fine && host_is_fine
}

fn is_loopback_v6(address: &Ipv6Addr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("request")
    }

    #[test]
    fn only_loopback_hosts() {
        for host in [
            "localhost",
            "LocalHost:15000",
            "127.0.0.1",
            "127.0.0.1:15000",
            "127.8.9.1:1",
            "[::1]",
            "[::1]:15000",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert_eq!(refusal(&request("/", &[("host", host)]), HostRule::Loopback), None, "{host}");
        }
        for host in [
            "",
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "10.0.0.1",
            "0.0.0.0",
            "[::2]",
            "[::1",
            "::1",
            "[::1]x",
            "localhost:",
            "localhost:99999",
            "localhost:80:80",
            "user@localhost",
            "127.1",
            "0x7f.1",
        ] {
            assert!(refusal(&request("/", &[("host", host)]), HostRule::Loopback).is_some(), "{host}");
            assert_eq!(refusal(&request("/", &[("host", host)]), HostRule::Any), None, "{host}");
        }
    }

    #[test]
    fn missing_double_and_contradicting_hosts() {
        let local = ("host", "localhost");
        assert!(refusal(&request("/", &[]), HostRule::Loopback).is_some());
        assert_eq!(refusal(&request("/", &[]), HostRule::Any), None);
        assert!(refusal(&request("/", &[local, local]), HostRule::Loopback).is_some());
        assert!(refusal(&request("http://example.com/", &[local]), HostRule::Loopback).is_some());
        assert_eq!(refusal(&request("http://localhost/", &[local]), HostRule::Loopback), None);
    }

    #[test]
    fn any_origin_is_refused_everywhere() {
        for origin in ["http://localhost", "null", ""] {
            let request = request("/", &[("host", "localhost"), ("origin", origin)]);
            for rule in [HostRule::Loopback, HostRule::Any] {
                assert!(refusal(&request, rule).is_some_and(|text| text.contains("Origin")), "{origin}");
            }
        }
    }

    #[test]
    fn changes_need_our_header() {
        for (headers, want) in [(&[][..], false), (&[("x-adit", "1")], true), (&[("x-adit", "0")], false)] {
            assert_eq!(may_change(request("/", headers).headers()), want);
        }
    }
}
