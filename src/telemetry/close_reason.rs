//! Why a connection ended: one closed vocabulary, used alike as metric label and as log field.
//!
//! A reason answers three questions: whose doing it was ([`Side`]), when it happened ([`Phase`]) and what it was (the
//! variant's word). `docs/close-reasons.md` has the table for operators, with ztunnel's `response_flags` beside each.

/// Whose doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Nobody's: a regular end.
    Neither,
    Downstream,
    Upstream,
    Proxy,
}

impl Side {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Neither => "-",
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Proxy => "proxy",
        }
    }
}

/// When in a connection's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    Accept,
    Resolve,
    Authorize,
    Connect,
    Relay,
    Drain,
}

impl Phase {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Resolve => "resolve",
            Self::Authorize => "authorize",
            Self::Connect => "connect",
            Self::Relay => "relay",
            Self::Drain => "drain",
        }
    }
}

/// ztunnel's coarse word for the same thing, kept so that existing dashboards work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResponseFlag {
    None,
    Connect,
    Deny,
    TlsFailure,
    H2Handshake,
    NetworkPolicy,
    Identity,
    Revoked,
}

impl ResponseFlag {
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Connect,
        Self::Deny,
        Self::TlsFailure,
        Self::H2Handshake,
        Self::NetworkPolicy,
        Self::Identity,
        Self::Revoked,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Connect => "CONNECT",
            Self::Deny => "DENY",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2Handshake => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::Identity => "IDENTITY_ERROR",
            Self::Revoked => "CERT_REVOKED",
        }
    }
}

macro_rules! close_reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $side:ident, $phase:ident, $flag:ident, $text:literal;)*) => {
        /// Why a connection ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum CloseReason { $($(#[$doc])* $variant,)* }

        impl CloseReason {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word in logs and metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $word,)* } }

            #[must_use]
            pub const fn side(self) -> Side { match self { $(Self::$variant => Side::$side,)* } }

            #[must_use]
            pub const fn phase(self) -> Phase { match self { $(Self::$variant => Phase::$phase,)* } }

            #[must_use]
            pub const fn response_flag(self) -> ResponseFlag { match self { $(Self::$variant => ResponseFlag::$flag,)* } }

            /// The sentence for the access log's `error` field; log queries made for ztunnel find their tokens in it.
            #[must_use]
            pub const fn text(self) -> &'static str { match self { $(Self::$variant => $text,)* } }
        }
    };
}

close_reasons! {
    /// Both directions ended by FIN.
    Finished = "finished", Neither, Relay, None, "";
    DownstreamReset = "downstream_reset", Downstream, Relay, None, "receive: connection reset by the client";
    UpstreamReset = "upstream_reset", Upstream, Relay, None, "send: connection reset by the destination";
    /// The client acknowledged nothing for `keepalive.userTimeout`, or answered no keepalive probe.
    DownstreamUserTimeout = "downstream_user_timeout", Downstream, Relay, Connect, "receive: the client is unreachable";
    UpstreamUserTimeout = "upstream_user_timeout", Upstream, Relay, Connect, "send: the destination is unreachable";
    /// Another error of the client's socket.
    DownstreamError = "downstream_error", Downstream, Relay, Connect, "receive: error on the client's socket";
    UpstreamError = "upstream_error", Upstream, Relay, Connect, "send: error on the destination's socket";
    /// One half had ended and the other was silent for `relay.halfCloseLinger`.
    HalfCloseLinger = "half_close_linger", Proxy, Relay, None, "half closed and silent for too long";
    IdleTimeout = "idle_timeout", Proxy, Relay, None, "idle for too long";
    MaxAge = "max_age", Proxy, Relay, None, "older than relay.maxAge";
    /// The original destination could not be learned.
    NoOriginalDst = "no_original_dst", Proxy, Accept, Connect, "connection failed: no original destination";
    ConnectionLimit = "connection_limit", Proxy, Accept, Connect, "connection failed: too many connections";
    SocksProtocol = "socks_protocol", Downstream, Accept, Connect, "connection failed: not a valid SOCKS5 request";
    SocksTimeout = "socks_timeout", Downstream, Accept, Connect, "connection failed: no complete SOCKS5 request in time";
    /// A peer that connected to the HBONE door closed before the tunnel was there: a probe, or one that gave up.
    HandshakeGone = "handshake_gone", Downstream, Accept, None, "the peer went away during the handshake";
    HandshakeFailed = "handshake_failed", Downstream, Accept, TlsFailure, "tls handshake error";
    HandshakeTimeout = "handshake_timeout", Downstream, Accept, TlsFailure, "tls handshake error: not complete in time";
    /// `limits.handshakes`: its time was over before its turn came.
    HandshakeShed = "handshake_shed", Proxy, Accept, TlsFailure, "tls handshake error: too many at the same time";
    /// There was no certificate of our own that could be used, and none came in time.
    HandshakeUnready = "handshake_unready", Proxy, Accept, Identity, "identity error: no usable certificate of our own";
    PrefaceFailed = "preface_failed", Downstream, Accept, H2Handshake, "http2 handshake failed";
    /// The client went away before its request was complete.
    DownstreamGone = "downstream_gone", Downstream, Connect, Connect, "client disconnected before the destination answered";
    /// The destination is one of adit's own ports on this host.
    LoopRefused = "loop_refused", Proxy, Resolve, Connect, "attempted recursive call to ourselves";
    /// An inbound destination that is not an address of this network namespace.
    NotLocal = "not_local", Proxy, Resolve, Connect, "connection failed: destination is not an address of this host";
    /// `egress: registryOnly` and the state does not know the destination.
    UnknownDestination = "unknown_destination", Proxy, Resolve, Deny, "no service or workload for the destination";
    /// A SOCKS5 client asked for a loopback or link-local address.
    LocalDestination = "local_destination", Proxy, Resolve, Deny, "connection failed: loopback and link-local destinations are refused";
    NameUnresolved = "name_unresolved", Proxy, Resolve, Connect, "connection failed: the name has no address";
    NoServicePort = "no_service_port", Proxy, Resolve, Connect, "no healthy upstream: the service has no such port";
    NoHealthyUpstream = "no_healthy_upstream", Proxy, Resolve, Connect, "no healthy upstream";
    /// The waypoint that the target names is not in the state, or has no endpoint that could be used.
    WaypointUnavailable = "waypoint_unavailable", Proxy, Resolve, Connect, "unknown waypoint";
    /// The target is in another network and has no gateway there, or one that is not available.
    GatewayUnavailable = "gateway_unavailable", Proxy, Resolve, Connect, "no valid routing destination for workload: unknown network gateway";
    /// A workload that is known by a host name only, which has no address.
    HostnameUnresolved = "hostname_unresolved", Proxy, Resolve, Connect, "no ip addresses were resolved for workload";
    /// `limits.sourceRate`.
    RateLimited = "rate_limited", Proxy, Accept, Connect, "connection failed: too many new connections of this source";
    /// A source that has to send a PROXY protocol header sent something else.
    ProxyHeaderInvalid = "proxy_header_invalid", Downstream, Accept, Connect, "connection failed: no valid PROXY protocol header";
    ProxyHeaderTimeout = "proxy_header_timeout", Downstream, Accept, Connect, "connection failed: no complete PROXY protocol header in time";
    /// A policy says no, or policies say yes and none of them to this.
    PolicyDenied = "policy_denied", Proxy, Authorize, Deny, "connection closed due to policy rejection";
    /// A policy or a workload was changed, and what is in force now says no.
    PolicyChanged = "policy_changed", Proxy, Relay, Deny, "connection closed due to policy change";
    /// `onEndpointRemoved`.
    EndpointRemoved = "endpoint_removed", Proxy, Relay, None, "the endpoint has left the state";
    /// Each endpoint that could be used has `maxConnections.perEndpoint`, or `limits.perEndpoint`, already.
    EndpointLimit = "endpoint_limit", Proxy, Connect, Connect, "connection failed: too many connections to each endpoint";
    ServiceLimit = "service_limit", Proxy, Connect, Connect, "connection failed: too many connections to the service";
    ConnectRefused = "connect_refused", Upstream, Connect, Connect, "connection failed: connection refused";
    ConnectTimeout = "connect_timeout", Upstream, Connect, Connect, "connection failed: timed out";
    ConnectUnreachable = "connect_unreachable", Upstream, Connect, Connect, "connection failed: unreachable";
    ConnectReset = "connect_reset", Upstream, Connect, Connect, "connection failed: connection reset";
    /// adit itself could not open the socket.
    ConnectError = "connect_error", Proxy, Connect, Connect, "connection failed: no socket";
    /// `preserveSource: require` and the client's address could not be borrowed.
    SourceUnavailable = "source_unavailable", Proxy, Connect, Connect, "connection failed: the client's address cannot be used";
    /// `inbound.plaintext: deny`.
    PlaintextDenied = "plaintext_denied", Proxy, Resolve, Deny, "connection failed: plaintext is denied here";
    /// The request inside a tunnel is not a CONNECT for an address or a name with a port.
    BadConnect = "bad_connect", Downstream, Resolve, Connect, "no valid authority pseudo header or method";
    /// The state does not have the workload that this daemon serves, or not the service that a tunnel asks for.
    UnknownWorkload = "unknown_workload", Proxy, Resolve, Connect, "failed to fetch information about local workload";
    /// There is no certificate of our own that could be used.
    NoIdentity = "no_identity", Proxy, Connect, Identity, "identity error: no usable certificate of our own";
    TunnelConnectTimeout = "tunnel_connect_timeout", Upstream, Connect, NetworkPolicy, "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008";
    TunnelHandshakeTimeout = "tunnel_handshake_timeout", Upstream, Connect, TlsFailure, "tls handshake error: not complete in time";
    TlsFailed = "tls_failed", Upstream, Connect, TlsFailure, "tls handshake error";
    /// The peer is not who the target allows, or cannot prove who it is.
    PeerRefused = "peer_refused", Proxy, Connect, TlsFailure, "identity verification error: peer did not present the expected SAN";
    Http2Failed = "preface_refused", Upstream, Connect, H2Handshake, "http2 handshake failed";
    /// The other end of the tunnel answered with another status than 200.
    TunnelRefused = "tunnel_refused", Upstream, Connect, Connect, "http status";
    /// It answered with 401 or 403: denied by policy there.
    TunnelDenied = "tunnel_denied", Upstream, Connect, Deny, "connection closed due to policy rejection by the far side";
    TunnelResponseTimeout = "tunnel_response_timeout", Upstream, Connect, Connect, "h2 failed: no answer to CONNECT in time";
    /// The tunnel ended under the connection.
    TunnelLost = "tunnel_lost", Upstream, Relay, Connect, "h2 failed: the tunnel was lost";
    /// The tunnel that the connection came in ended under it.
    TunnelGone = "tunnel_gone", Downstream, Relay, Connect, "h2 failed: the tunnel was lost";
    PeerRevoked = "peer_revoked", Proxy, Relay, Revoked, "connection closed: peer certificate revoked by CRL";
    /// No trusted root, or no accepted trust domain, stands behind the peer any more.
    PeerUntrusted = "peer_untrusted", Proxy, Relay, Deny, "connection closed: the peer is no longer trusted";
    Drain = "drain", Proxy, Drain, Connect, "connection closed due to connection drain";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn words_are_unique_and_lower_case() {
        let words: BTreeSet<_> = CloseReason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), CloseReason::ALL.len());
        assert!(words.iter().all(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
    }

    #[test]
    fn every_failure_says_what_happened() {
        for reason in CloseReason::ALL {
            assert_eq!(reason.text().is_empty(), *reason == CloseReason::Finished, "{reason:?}");
        }
    }

    /// The operators' table says of every reason what the code says of it, in the same order, and nothing else.
    #[test]
    fn the_documented_table_agrees() {
        let table: Vec<Vec<&str>> = include_str!("../../docs/close-reasons.md")
            .lines()
            .filter(|line| line.starts_with('|'))
            .skip(2)
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        for (reason, row) in CloseReason::ALL.iter().zip(&table) {
            let word = format!("`{}`", reason.as_str());
            let want = [&*word, reason.side().as_str(), reason.phase().as_str(), reason.response_flag().as_str()];
            assert_eq!(row.get(..4), Some(&want[..]));
            let told: Vec<_> = row.iter().skip(4).map(|cell| cell.ends_with('.') || cell.ends_with('?')).collect();
            assert_eq!(told, [true, true], "{reason:?}: what it means and what to do");
        }
        assert_eq!(table.len(), CloseReason::ALL.len());
    }
}
