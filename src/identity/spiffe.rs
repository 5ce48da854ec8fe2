//! SPIFFE identities: who a workload is, as a URI such as `spiffe://cluster.local/ns/shop/sa/cart`.
//!
//! In: text from certificates, settings and the mesh. Out: [`TrustDomain`] and [`SpiffeId`], which exist only if the
//! text keeps to the grammar: lower-case scheme and trust domain, path segments of letters, digits, `.`, `-`, `_`, none of
//! them empty, `.` or `..`, no port, user, query or fragment, bounded lengths. Comparison is of bytes.
//!
//! Fails closed: what does not parse is nobody. Deliberately absent: escapes, other schemes, normalisation.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";
const MAX_TRUST_DOMAIN: usize = 255;
const MAX_ID: usize = 2048;

/// A trust domain, such as `cluster.local`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// A workload's identity: a trust domain and a path that is not empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: TrustDomain,
}

/// What Istio's form `spiffe://td/ns/NS/sa/SA` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IstioName<'a> {
    pub namespace: &'a str,
    pub service_account: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    #[error("it does not begin with spiffe://")]
    Scheme,
    #[error("the trust domain is not 1 to {MAX_TRUST_DOMAIN} of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain,
    #[error("there is no path after the trust domain")]
    NoPath,
    #[error("a segment of the path is empty, '.' or '..', or has other characters than letters, digits, '.', '-', '_'")]
    Segment,
    #[error("it is longer than {MAX_ID} bytes")]
    TooLong,
}

impl TrustDomain {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        let sound = !text.is_empty() && text.len() <= MAX_TRUST_DOMAIN && text.bytes().all(allowed);
        if sound { Ok(Self(text.into())) } else { Err(SpiffeError::TrustDomain) }
    }
}

impl SpiffeId {
    /// The identity of a service account, in Istio's form.
    pub fn of_service_account(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeError> {
        // A slash in a name must not become another segment.
        if !is_segment(namespace) || !is_segment(service_account) {
            return Err(SpiffeError::Segment);
        }
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The URI, to be kept without copying it.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.uri)
    }

    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Without the slash that it begins with.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri.get(SCHEME.len() + self.trust_domain.0.len() + 1..).unwrap_or_default()
    }

    /// Without `spiffe://`: what policies call a principal.
    #[must_use]
    pub fn principal(&self) -> &str {
        self.uri.get(SCHEME.len()..).unwrap_or_default()
    }

    /// Namespace and service account, if the path has exactly Istio's form.
    #[must_use]
    pub fn istio(&self) -> Option<IstioName<'_>> {
        let mut segments = self.path().split('/');
        match [(); 5].map(|()| segments.next()) {
            [Some("ns"), Some(namespace), Some("sa"), Some(service_account), None] => {
                Some(IstioName { namespace, service_account })
            }
            _ => None,
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > MAX_ID {
            return Err(SpiffeError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        let (trust_domain, path) = match rest.split_once('/') {
            Some((trust_domain, path)) => (trust_domain.parse()?, path),
            None => (rest.parse()?, ""),
        };
        if path.is_empty() {
            return Err(SpiffeError::NoPath);
        }
        if !path.split('/').all(is_segment) {
            return Err(SpiffeError::Segment);
        }
        Ok(Self { uri: text.into(), trust_domain })
    }
}

fn is_segment(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !matches!(text, "" | "." | "..") && text.bytes().all(allowed)
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_grammar_is_strict() {
        let long = format!("spiffe://{}/a", "t".repeat(256));
        let longer = format!("spiffe://td/{}", "a".repeat(2048));
        for (text, want) in [
            ("spiffe://cluster.local/ns/default/sa/web", None),
            ("spiffe://td/a", None),
            ("spiffe://t_d-1.x/A/b.c/_", None),
            ("", Some(SpiffeError::Scheme)),
            ("SPIFFE://td/a", Some(SpiffeError::Scheme)),
            ("https://td/a", Some(SpiffeError::Scheme)),
            ("spiffe:///a", Some(SpiffeError::TrustDomain)),
            ("spiffe://TD/a", Some(SpiffeError::TrustDomain)),
            ("spiffe://td:80/a", Some(SpiffeError::TrustDomain)),
            ("spiffe://u@td/a", Some(SpiffeError::TrustDomain)),
            ("spiffe://td", Some(SpiffeError::NoPath)),
            ("spiffe://td/", Some(SpiffeError::NoPath)),
            ("spiffe://td//a", Some(SpiffeError::Segment)),
            ("spiffe://td/a/", Some(SpiffeError::Segment)),
            ("spiffe://td/a/../b", Some(SpiffeError::Segment)),
            ("spiffe://td/./b", Some(SpiffeError::Segment)),
            ("spiffe://td/a?b", Some(SpiffeError::Segment)),
            ("spiffe://td/a#b", Some(SpiffeError::Segment)),
            ("spiffe://td/%61", Some(SpiffeError::Segment)),
            ("spiffe://td/ä", Some(SpiffeError::Segment)),
            ("spiffe://td/a\0", Some(SpiffeError::Segment)),
            (&long, Some(SpiffeError::TrustDomain)),
            (&longer, Some(SpiffeError::TooLong)),
        ] {
            assert_eq!(text.parse::<SpiffeId>().err(), want, "{text}");
        }
    }

    #[test]
    fn istio_names_need_the_whole_form() {
        for (text, want) in [
            ("spiffe://td/ns/a/sa/b", Some(("a", "b"))),
            ("spiffe://td/ns/a/sa/b/c", None),
            ("spiffe://td/ns/a/sa", None),
            ("spiffe://td/sa/b/ns/a", None),
            ("spiffe://td/web", None),
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!(id.istio().map(|name| (name.namespace, name.service_account)), want, "{text}");
        }
        let trust_domain = "td".parse().unwrap();
        for (namespace, account) in [("a/sa/b", "c"), ("", "c"), ("a", ".."), ("a", "b c")] {
            let id = SpiffeId::of_service_account(&trust_domain, namespace, account);
            assert_eq!(id, Err(SpiffeError::Segment), "{namespace} {account}");
        }
    }

    proptest! {
        #[test]
        fn what_is_put_together_comes_apart(
            domain in "[a-z0-9._-]{1,40}", namespace in "[a-zA-Z0-9_-]{1,20}", account in "[a-zA-Z0-9_-]{1,20}"
        ) {
            let trust_domain: TrustDomain = domain.parse().unwrap();
            let id = SpiffeId::of_service_account(&trust_domain, &namespace, &account).unwrap();
            prop_assert_eq!(&id.as_str().parse::<SpiffeId>().unwrap(), &id);
            prop_assert_eq!(id.trust_domain(), &trust_domain);
            prop_assert_eq!(id.istio(), Some(IstioName { namespace: &namespace, service_account: &account }));
        }

        #[test]
        fn any_text_is_taken_as_it_is_or_refused(text in ".*", prefix in "(spiffe://)?[a-z./]{0,8}") {
            let text = format!("{prefix}{text}");
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), &text);
                prop_assert_eq!(format!("spiffe://{}/{}", id.trust_domain(), id.path()), text.clone());
                prop_assert_eq!(format!("spiffe://{}", id.principal()), text);
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let text = String::from_utf8_lossy(&bytes);
            let _either = text.parse::<SpiffeId>();
            let _either = text.parse::<TrustDomain>();
        }
    }
}
