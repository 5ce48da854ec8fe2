//! Envoy: a plain TCP proxy, and the two ends of a tunnel as Istio's proxies configure them. Its settings are JSON, which is YAML.
//!
//! No access log, no limit that the load could meet, HTTP/2 windows as by default (16 MiB a stream, 24 MiB a connection).

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::namespace::{HOST, SERVER};
use super::tunnel::{ENTRANCE, FAR, HBONE, NEAR, spiffe};
use super::{ENVOY, Part};

/// What to do where it is missing.
pub(super) const INSTALL: &str = "run .ci/install-envoy";

pub(super) const PLAIN_ADMIN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9903);
pub(super) const NEAR_ADMIN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9901);
pub(super) const FAR_ADMIN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9902);

/// Streams, requests and connections at the same time; above every shape.
const MANY: u32 = 20_000;

/// Where `.ci/install-envoy` puts it.
pub(super) fn installed() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/envoy");
    fs::canonicalize(path).ok()
}

/// One Envoy with one worker thread.
pub(super) fn part(program: &Path, config: String, admin: SocketAddrV4) -> Part {
    let arguments = &[
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--log-level",
        "warn",
        "--drain-strategy",
        "immediate",
        "--config-path",
    ];
    Part { readiness: Some((admin, "/ready")), ..Part::new(program, arguments, config) }
}

/// A TCP proxy to the server and nothing else.
pub(super) fn plain() -> String {
    let proxy = json!({ "stat_prefix": "plain", "cluster": "server", "idle_timeout": "0s" });
    let listener = entrance("plain", SocketAddrV4::new(HOST, ENVOY), proxy);
    bootstrap(PLAIN_ADMIN, &listener, &cluster("server", SERVER))
}

/// The end that takes tunnels and connects each stream to the address in its authority.
pub(super) fn far() -> String {
    let manager = json!({
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "http2_protocol_options": { "allow_connect": true },
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
            "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({ "suppress_envoy_headers": true })),
        }],
    });
    let filter = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config":
            typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", manager),
    });
    let tls = tls(FAR, &json!({ "prefix": "spiffe://cluster.local/" }));
    let listener = json!({
        "name": "hbone",
        "address": address(HBONE),
        "tcp_backlog_size": 65_535,
        "filter_chains": [{ "transport_socket": transport("Downstream", tls), "filters": [filter] }],
    });
    let authority = json!({
        "name": "authority",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "circuit_breakers": breakers(),
        "original_dst_lb_config": { "use_http_header": true, "http_header_name": ":authority" },
    });
    bootstrap(FAR_ADMIN, &listener, &authority)
}

/// The end that opens tunnels, one CONNECT for each connection to its entrance.
pub(super) fn near() -> String {
    let proxy = json!({
        "stat_prefix": "entrance",
        "cluster": "far",
        "idle_timeout": "0s",
        "tunneling_config": { "hostname": SERVER.to_string() },
    });
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let mut far = cluster("far", HBONE);
    far["typed_extension_protocol_options"] =
        json!({ options: typed(options, json!({ "explicit_http_config": { "http2_protocol_options": {} } })) });
    far["transport_socket"] = transport("Upstream", tls(NEAR, &json!({ "exact": spiffe(FAR) })));
    bootstrap(NEAR_ADMIN, &entrance("entrance", ENTRANCE, proxy), &far)
}

/// A listener whose connections go through a TCP proxy.
fn entrance(name: &str, at: SocketAddrV4, proxy: Value) -> Value {
    json!({
        "name": name,
        "address": address(at),
        "tcp_backlog_size": 65_535,
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": typed("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy),
        }] }],
    })
}

/// A cluster of one endpoint.
fn cluster(name: &str, endpoint: SocketAddrV4) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": breakers(),
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
            { "endpoint": { "address": address(endpoint) } },
        ] }] },
    })
}

fn typed(kind: &str, mut value: Value) -> Value {
    value["@type"] = format!("type.googleapis.com/{kind}").into();
    value
}

fn address(address: SocketAddrV4) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}

fn breakers() -> Value {
    json!({ "thresholds": [{
        "max_connections": MANY, "max_pending_requests": MANY, "max_requests": MANY, "max_retries": MANY,
    }] })
}

fn bootstrap(admin: SocketAddrV4, listener: &Value, cluster: &Value) -> String {
    let settings = json!({
        "admin": { "address": address(admin) },
        // Not in the middle of a shape.
        "stats_flush_interval": "299s",
        "static_resources": { "listeners": [listener], "clusters": [cluster] },
        "overload_manager": { "resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": typed(
                "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                json!({ "max_active_downstream_connections": MANY }),
            ),
        }] },
    });
    settings.to_string()
}

/// TLS 1.3 with the certificate of `end`, and a peer whose URI name is as `peer` says.
fn tls(end: &str, peer: &Value) -> Value {
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{
            "certificate_chain": { "filename": format!("{end}.crt") },
            "private_key": { "filename": format!("{end}.key") },
        }],
        "validation_context": {
            "trusted_ca": { "filename": "root.crt" },
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": peer }],
        },
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
