//! Claims: what the other side of a tunnel says in headers of its own making.
//!
//! They are for logs and metrics only, never for authorization, and yield to what the state knows. Each is read when it
//! is asked for, costs nothing before, and is bounded: what is malformed or over a bound is as if it were not there.

use http::HeaderMap;
use http::header::FORWARDED;

use super::authority::is_host_name;
use super::trace::Traceparent;
use super::{BAGGAGE, NETWORK, TRACEPARENT, baggage};
use crate::telemetry::PeerLabels;

/// The longest `forwarded` header that is looked into.
const MAX_FORWARDED: usize = 1024;
const MAX_NETWORK: usize = 253;
const SPACE: [char; 2] = [' ', '\t'];

/// The headers of a request or an answer, to be asked.
#[derive(Debug, Clone, Copy)]
pub struct Claims<'a>(pub(super) &'a HeaderMap);

impl<'a> Claims<'a> {
    /// What `baggage` says of the other side's workload: neither its instance name nor its principal is ever in it.
    #[must_use]
    pub fn peer(&self) -> Option<PeerLabels> {
        baggage::parse(self.0.get_all(&BAGGAGE).iter())
    }

    /// The service that the client addressed: `host` in the first element of `forwarded`, if it is a DNS name.
    #[must_use]
    pub fn forwarded_host(&self) -> Option<&'a str> {
        let header = self.0.get(FORWARDED).filter(|header| header.len() <= MAX_FORWARDED)?;
        forwarded_host(header.to_str().ok()?)
    }

    #[must_use]
    pub fn trace(&self) -> Option<Traceparent> {
        Traceparent::parse(self.0.get(&TRACEPARENT)?.as_bytes())
    }

    /// The network that the client is in, when it comes through a gateway of another; may be empty.
    #[must_use]
    pub fn network(&self) -> Option<&'a str> {
        let text = self.0.get(&NETWORK)?.to_str().ok()?;
        (text.len() <= MAX_NETWORK && text.bytes().all(|byte| byte.is_ascii_graphic())).then_some(text)
    }
}

/// `host` of the first element, without quotes.
fn forwarded_host(mut text: &str) -> Option<&str> {
    loop {
        let (parameter, rest) = cut(text);
        if let Some((key, value)) = parameter.split_once('=')
            && key.trim_matches(SPACE).eq_ignore_ascii_case("host")
        {
            let value = value.trim_matches(SPACE);
            let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
            return is_host_name(unquoted).then_some(unquoted);
        }
        text = rest?.strip_prefix(';')?;
    }
}

/// The text before the first separator that is not in quotes, and from there on.
fn cut(text: &str) -> (&str, Option<&str>) {
    let (mut quoted, mut escaped) = (false, false);
    let separator = text.find(|c| {
        let literal = std::mem::take(&mut escaped);
        match c {
            '\\' if quoted && !literal => escaped = true,
            '"' if !literal => quoted = !quoted,
            ',' | ';' => return !quoted,
            _ => {}
        }
        false
    });
    match separator.and_then(|at| text.split_at_checked(at)) {
        Some((before, rest)) => (before, Some(rest)),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn map(name: &'static str, values: &[&[u8]]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append(name, HeaderValue::from_bytes(value).expect("a header"));
        }
        map
    }

    fn host(value: &[u8]) -> Option<String> {
        Claims(&map("forwarded", &[value])).forwarded_host().map(str::to_owned)
    }

    #[test]
    fn the_forwarded_host() {
        for (given, want) in [
            (r#"for="10.0.0.1:1234";host=cart.shop"#, Some("cart.shop")),
            (r#"for="[2001:db8::1]:1234";host=cart.shop;proto=tcp"#, Some("cart.shop")),
            (r#"for=10.0.0.1;host="cart.shop""#, Some("cart.shop")),
            ("host=cart.shop", Some("cart.shop")),
            ("Host = Cart.Shop ", Some("Cart.Shop")),
            (r#"for="a;host=evil,host=evil";host=cart"#, Some("cart")),
            (r#"for="a\";host=evil";host=cart"#, Some("cart")),
            (r#"for="a\\";host=cart"#, Some("cart")),
            ("for=a;host=cart, for=b;host=dog", Some("cart")),
            ("for=a, for=b;host=dog", None),
            ("", None),
            ("host", None),
            ("host=", None),
            ("host=\"\"", None),
            ("host=\"cart", None),
            ("host=cart:80", None),
            ("host=10.0.0.1", None),
            ("host=ca rt", None),
            ("nohost=cart", None),
            ("for=\"a;host=cart", None),
            (";;;", None),
            (",host=cart", None),
        ] {
            assert_eq!(host(given.as_bytes()).as_deref(), want, "{given}");
        }
        assert_eq!(host(b"host=caf\xc3\xa9"), None);
        assert_eq!(host(b"host=cart;for=\xff"), None);
        assert_eq!(host(format!("host=cart;for={}", "x".repeat(MAX_FORWARDED)).as_bytes()), None);
        assert_eq!(host(&[b';'; 1 << 20]), None);
        assert_eq!(Claims(&HeaderMap::new()).forwarded_host(), None);
        let two = map("forwarded", &[b"host=cart", b"host=dog"]);
        assert_eq!(Claims(&two).forwarded_host(), Some("cart"), "the first header");
    }

    #[test]
    fn the_network() {
        let network = |value: &[u8]| Claims(&map("x-forwarded-network", &[value])).network().map(str::to_owned);
        assert_eq!(network(b"east").as_deref(), Some("east"));
        assert_eq!(network(b"").as_deref(), Some(""));
        assert_eq!(network(b"ea st"), None);
        assert_eq!(network(b"\xff"), None);
        assert_eq!(network(&[b'x'; MAX_NETWORK + 1]), None);
        assert_eq!(Claims(&HeaderMap::new()).network(), None);
    }

    #[test]
    fn nothing_is_claimed_by_nothing() {
        let map = HeaderMap::new();
        let claims = Claims(&map);
        assert_eq!(claims.peer(), None);
        assert_eq!(claims.trace(), None);
    }

    proptest! {
        #[test]
        fn a_host_is_a_name_and_in_the_text(text in "[a-c=;,\"\\\\ .host]{0,40}") {
            if let Some(host) = forwarded_host(&text) {
                prop_assert!(is_host_name(host) && text.contains(host));
            }
        }

        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = forwarded_host(&text);
        }
    }
}
