//! Envoy's settings, as JSON: the two roles of a tunnel's ends, each as Istio's proxies configure it.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::pki::Leaf;

pub(crate) const ADMIN: u16 = 9901;
pub(crate) const HBONE: u16 = 15008;

/// A listener that carries what it accepts through a tunnel.
#[derive(Debug, Clone)]
pub(crate) struct Entrance {
    /// Both families.
    pub(crate) port: u16,
    /// The tunnel's other end.
    pub(crate) peer: SocketAddr,
    /// The `:authority` of the CONNECT request.
    pub(crate) authority: String,
}

/// What a test may want different.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tweaks {
    /// `SETTINGS_MAX_CONCURRENT_STREAMS` that a server sends, or how many streams a client puts into one tunnel.
    pub(crate) max_streams: Option<u32>,
    /// Key exchange groups by BoringSSL's names; empty: Envoy's own.
    pub(crate) groups: Vec<String>,
    /// Log every frame and every header.
    pub(crate) frames: bool,
    /// Revocation lists that apply to peers.
    pub(crate) revocations: Option<PathBuf>,
}

fn typed(kind: &str, mut value: Value) -> Value {
    value["@type"] = format!("type.googleapis.com/{kind}").into();
    value
}

fn socket_address(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port, "ipv4_compat": address == "::" } })
}

fn bootstrap(listeners: Vec<Value>, clusters: Vec<Value>) -> Value {
    json!({
        "admin": { "address": socket_address("127.0.0.1", ADMIN) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
        // Else Envoy keeps asking for something that has no effect here.
        "overload_manager": { "resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": typed(
                "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                json!({ "max_active_downstream_connections": 20_000 }),
            ),
        }] },
    })
}

/// TLS 1.3 with a certificate, and a peer whose URI name begins with (server) or is one of (client) `peers`.
fn tls(leaf: &Leaf, tweaks: &Tweaks, peers: &[Value]) -> Value {
    let matchers: Vec<_> = peers.iter().map(|matcher| json!({ "san_type": "URI", "matcher": matcher })).collect();
    let mut validation = json!({ "trusted_ca": { "filename": leaf.roots }, "match_typed_subject_alt_names": matchers });
    if let Some(list) = &tweaks.revocations {
        validation["crl"] = json!({ "filename": list });
    }
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": tweaks.groups,
        },
        "tls_certificates": [{ "certificate_chain": { "filename": leaf.cert }, "private_key": { "filename": leaf.key } }],
        "validation_context": validation,
    })
}

fn transport(direction: &str, tls: Value) -> Value {
    let mut context = json!({ "common_tls_context": tls });
    if direction == "Downstream" {
        context["require_client_certificate"] = true.into();
    }
    let kind = format!("envoy.extensions.transport_sockets.tls.v3.{direction}TlsContext");
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": typed(&kind, context) })
}

/// An end of tunnels on 15008 that connects each stream to the address in its authority, as a waypoint does. It takes any
/// client of trust domain `cluster.local`.
pub(crate) fn server(leaf: &Leaf, tweaks: &Tweaks) -> Value {
    let mut http2 = json!({ "allow_connect": true });
    if let Some(streams) = tweaks.max_streams {
        http2["max_concurrent_streams"] = streams.into();
    }
    let manager = json!({
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "http2_protocol_options": http2,
        "stream_idle_timeout": "0s",
        "route_config": { "virtual_hosts": [{ "name": "any", "domains": ["*"], "routes": [{
            "match": { "connect_matcher": {} },
            "route": {
                "cluster": "authority",
                "timeout": "0s",
                "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
            },
        }] }] },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
        }],
        "access_log": [{
            "name": "envoy.access_loggers.stdout",
            "typed_config": typed("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", json!({ "log_format": {
                "json_format": {
                    "scope": "access",
                    "method": "%REQ(:METHOD)%",
                    "authority": "%REQ(:AUTHORITY)%",
                    "scheme": "%REQ(:SCHEME)%",
                    "path": "%REQ(:PATH)%",
                    "baggage": "%REQ(BAGGAGE)%",
                    "forwarded": "%REQ(FORWARDED)%",
                    "traceparent": "%REQ(TRACEPARENT)%",
                    "network": "%REQ(X-FORWARDED-NETWORK)%",
                    "status": "%RESPONSE_CODE%",
                    "flags": "%RESPONSE_FLAGS%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    "peer": "%DOWNSTREAM_PEER_URI_SAN%",
                    "tls": "%DOWNSTREAM_TLS_VERSION%",
                    "cipher": "%DOWNSTREAM_TLS_CIPHER%",
                    "from": "%DOWNSTREAM_REMOTE_ADDRESS%",
                    "received": "%BYTES_RECEIVED%",
                    "sent": "%BYTES_SENT%",
                },
            } })),
        }],
    });
    let listener = json!({
        "name": "hbone",
        "address": socket_address("::", HBONE),
        "filter_chains": [{
            "transport_socket": transport("Downstream", tls(leaf, tweaks, &[json!({ "prefix": "spiffe://cluster.local/" })])),
            "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": typed(
                    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    manager,
                ),
            }],
        }],
    });
    let authority = json!({
        "name": "authority",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "original_dst_lb_config": { "use_http_header": true, "http_header_name": ":authority" },
    });
    bootstrap(vec![listener], vec![authority])
}

/// An end of tunnels that opens them: its peers must have identity `peer`.
pub(crate) fn client(leaf: &Leaf, peer: &str, entrances: &[Entrance], tweaks: &Tweaks) -> Value {
    let mut http2 = json!({});
    if let Some(streams) = tweaks.max_streams {
        http2["max_concurrent_streams"] = streams.into();
    }
    let listener = |entrance: &Entrance| {
        let proxy = json!({
            "stat_prefix": "entrance",
            "cluster": entrance.peer.to_string(),
            "idle_timeout": "0s",
            "tunneling_config": { "hostname": entrance.authority, "propagate_response_headers": true },
            "access_log": [{
                "name": "envoy.access_loggers.stdout",
                "typed_config": typed("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", json!({ "log_format": {
                    "json_format": {
                        "scope": "access",
                        "authority": entrance.authority,
                        "answer": "%FILTER_STATE(envoy.tcp_proxy.propagate_response_headers)%",
                        "flags": "%RESPONSE_FLAGS%",
                        "why": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
                    },
                } })),
            }],
        });
        json!({
            "name": entrance.port.to_string(),
            "address": socket_address("::", entrance.port),
            "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": typed("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy),
            }] }],
        })
    };
    let mut peers: Vec<_> = entrances.iter().map(|entrance| entrance.peer).collect();
    peers.sort_unstable();
    peers.dedup();
    let cluster = |address: &SocketAddr| {
        json!({
            "name": address.to_string(),
            "type": "STATIC",
            "connect_timeout": "5s",
            "circuit_breakers": { "thresholds": [{ "max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096 }] },
            "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                json!({ "explicit_http_config": { "http2_protocol_options": http2 } }),
            ) },
            "transport_socket": transport("Upstream", tls(leaf, tweaks, &[json!({ "exact": peer })])),
            "load_assignment": { "cluster_name": address.to_string(), "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": socket_address(&address.ip().to_string(), address.port()) } },
            ] }] },
        })
    };
    bootstrap(entrances.iter().map(listener).collect(), peers.iter().map(cluster).collect())
}
