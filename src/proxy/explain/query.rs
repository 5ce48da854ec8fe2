//! What is asked, as text: from a command line, and from one adit to another.

use std::net::{IpAddr, SocketAddr};

use super::Query;
use crate::identity::SpiffeId;

impl Query {
    /// `IP` or `IP:PORT`; the port of a client decides nothing.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse_from(text: &str) -> Result<IpAddr, String> {
        let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
        let ip = text.parse::<IpAddr>().ok().or_else(with_port);
        ip.map(|ip| ip.to_canonical()).ok_or_else(|| "expected IP or IP:PORT".to_owned())
    }

    /// # Errors
    /// What is wrong with it.
    pub fn parse_identity(text: &str) -> Result<SpiffeId, String> {
        text.parse::<SpiffeId>().map_err(|error| error.to_string())
    }

    /// `from=..&to=..&identity=..`: none of these has a character that would have to be escaped.
    #[must_use]
    pub fn to_query_string(&self) -> String {
        let identity = self.identity.as_ref().map(|identity| format!("&identity={identity}")).unwrap_or_default();
        format!("from={}&to={}{identity}", self.from, self.to)
    }

    /// Reads [`Query::to_query_string`].
    ///
    /// # Errors
    /// What is wrong with which part.
    pub fn from_query_string(text: &str, now_ms: u64) -> Result<Self, String> {
        let (mut from, mut to, mut identity) = (None, None, None);
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let told = |why: String| format!("{key}: {why}");
            match key {
                "from" => from = Some(Self::parse_from(value).map_err(told)?),
                "to" => {
                    let address = value.parse::<SocketAddr>();
                    to = Some(address.map_err(|_unparsable| told("expected IP:PORT".to_owned()))?);
                }
                "identity" => identity = Some(Self::parse_identity(value).map_err(told)?),
                _ => return Err(format!("{key}: expected from, to and identity")),
            }
        }
        match (from, to) {
            (Some(from), Some(to)) => Ok(Self { from, to, identity, now_ms: Some(now_ms) }),
            (None, _) => Err("from is missing".to_owned()),
            (_, None) => Err("to is missing".to_owned()),
        }
    }
}
