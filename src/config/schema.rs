//! The one list of all keys: where each lives in [`Settings`], of what kind it is, and whether it applies live.
//!
//! Reading a layer, showing the settings, listing the keys and comparing two settings are all visits of this list.

use super::kinds::{self as kind, Kind};
use super::settings::Settings;

/// What a changed key does at a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reload {
    /// Applies at once or from the next connection on.
    Live,
    /// The running value stays until a restart.
    Restart,
}
use Reload::{Live, Restart};

/// Something that is shown every key in turn.
pub(super) trait Visit {
    fn leaf<T: 'static>(&mut self, key: &'static str, reload: Reload, kind: &'static Kind<T>, slot: &mut T);
}

/// Shows `visitor` every key, by sections.
pub(super) fn visit(settings: &mut Settings, visitor: &mut impl Visit) {
    daemon(settings, visitor);
    identity(settings, visitor);
    policy(settings, visitor);
    doors(settings, visitor);
    tunnels(settings, visitor);
    traffic(settings, visitor);
    surfaces(settings, visitor);
}

/// Every key path, in the order of the list.
pub(super) fn keys() -> Vec<&'static str> {
    struct Keys(Vec<&'static str>);
    impl Visit for Keys {
        fn leaf<T: 'static>(&mut self, key: &'static str, _: Reload, _: &'static Kind<T>, _: &mut T) {
            self.0.push(key);
        }
    }
    let mut keys = Keys(Vec::new());
    visit(&mut Settings::default(), &mut keys);
    keys.0
}

fn daemon(s: &mut Settings, v: &mut impl Visit) {
    v.leaf("mode", Restart, &kind::MODE, &mut s.mode);
    v.leaf("workload.name", Restart, &kind::NAME, &mut s.workload.name);
    v.leaf("workload.namespace", Restart, &kind::REQUIRED_NAME, &mut s.workload.namespace);
    v.leaf("workload.serviceAccount", Restart, &kind::REQUIRED_NAME, &mut s.workload.service_account);
    v.leaf("workload.trustDomain", Restart, &kind::REQUIRED_NAME, &mut s.workload.trust_domain);
    v.leaf("network", Restart, &kind::NAME, &mut s.network);
    v.leaf("node", Restart, &kind::TEXT, &mut s.node);
    v.leaf("workers", Restart, &kind::WORKERS, &mut s.workers);
    v.leaf("capture", Restart, &kind::CAPTURE, &mut s.capture);
    v.leaf("preserveSource", Restart, &kind::PRESERVE_SOURCE, &mut s.preserve_source);
    v.leaf("packetMark", Restart, &kind::PACKET_MARK, &mut s.packet_mark);
    v.leaf("egress", Live, &kind::EGRESS, &mut s.egress);
    v.leaf("mesh.files", Restart, &kind::PATHS, &mut s.mesh.files);
}

fn identity(s: &mut Settings, v: &mut impl Visit) {
    v.leaf("identity.source", Restart, &kind::IDENTITY_SOURCE, &mut s.identity.source);
    v.leaf("identity.dev.folder", Restart, &kind::PATH, &mut s.identity.dev.folder);
    v.leaf("identity.files.cert", Restart, &kind::PATH, &mut s.identity.files.cert);
    v.leaf("identity.files.key", Restart, &kind::PATH, &mut s.identity.files.key);
    v.leaf("identity.files.roots", Restart, &kind::PATHS, &mut s.identity.files.roots);
    v.leaf("identity.files.crls", Restart, &kind::PATHS, &mut s.identity.files.crls);
    v.leaf("identity.trustDomainAliases", Live, &kind::NAMES, &mut s.identity.trust_domain_aliases);
    v.leaf("identity.rootGrace", Restart, &kind::DURATION, &mut s.identity.root_grace);
}

fn policy(s: &mut Settings, v: &mut impl Visit) {
    v.leaf("policy.onMissing", Live, &kind::ON_MISSING, &mut s.policy.on_missing);
    v.leaf("balance.ejectAfter", Live, &kind::EJECT_AFTER, &mut s.balance.eject_after);
    v.leaf("balance.ejectTime", Live, &kind::POSITIVE, &mut s.balance.eject_time);
    v.leaf("balance.ejectMax", Live, &kind::POSITIVE, &mut s.balance.eject_max);
    v.leaf("onEndpointRemoved", Live, &kind::ON_ENDPOINT_REMOVED, &mut s.on_endpoint_removed);
}

fn doors(s: &mut Settings, v: &mut impl Visit) {
    v.leaf("listen.outbound", Restart, &kind::DOOR, &mut s.listen.outbound);
    v.leaf("listen.inbound", Restart, &kind::DOOR, &mut s.listen.inbound);
    v.leaf("listen.hbone", Restart, &kind::DOOR, &mut s.listen.hbone);
    v.leaf("listen.socks5", Restart, &kind::DOOR, &mut s.listen.socks5);
    v.leaf("listen.admin", Restart, &kind::ADMIN_DOOR, &mut s.listen.admin);
    v.leaf("listen.metrics", Restart, &kind::DOOR, &mut s.listen.metrics);
    v.leaf("listen.readiness", Restart, &kind::DOOR, &mut s.listen.readiness);
    v.leaf("socks5AllowRemote", Restart, &kind::SWITCH, &mut s.socks5_allow_remote);
    v.leaf("socks5AllowLocal", Live, &kind::SWITCH, &mut s.socks5_allow_local);
}

fn tunnels(s: &mut Settings, v: &mut impl Visit) {
    v.leaf("inbound.plaintext", Live, &kind::PLAINTEXT, &mut s.inbound.plaintext);
    v.leaf("inbound.plaintextPorts", Live, &kind::PORTS, &mut s.inbound.plaintext_ports);
    v.leaf("inbound.proxyProtocolFrom", Live, &kind::RANGES, &mut s.inbound.proxy_protocol_from);
    v.leaf("inbound.proxyProtocolTimeout", Live, &kind::POSITIVE, &mut s.inbound.proxy_protocol_timeout);
    v.leaf("tunnel.connectTimeout", Live, &kind::POSITIVE, &mut s.tunnel.connect_timeout);
    v.leaf("tunnel.handshakeTimeout", Live, &kind::POSITIVE, &mut s.tunnel.handshake_timeout);
    v.leaf("tunnel.responseTimeout", Live, &kind::POSITIVE, &mut s.tunnel.response_timeout);
    v.leaf("tunnel.idleRelease", Live, &kind::POSITIVE, &mut s.tunnel.idle_release);
    v.leaf("tunnel.maxAge", Live, &kind::POSITIVE_OR_OFF, &mut s.tunnel.max_age);
    v.leaf("tunnel.maxStreams", Live, &kind::STREAMS, &mut s.tunnel.max_streams);
    v.leaf("tunnel.maxPerPeer", Live, &kind::TUNNELS, &mut s.tunnel.max_per_peer);
    v.leaf("tunnel.pingInterval", Live, &kind::POSITIVE, &mut s.tunnel.ping_interval);
    v.leaf("tunnel.pingTimeout", Live, &kind::POSITIVE, &mut s.tunnel.ping_timeout);
    v.leaf("tunnel.streamWindow", Live, &kind::WINDOW, &mut s.tunnel.stream_window);
    v.leaf("tunnel.connectionWindow", Live, &kind::WINDOW, &mut s.tunnel.connection_window);
    v.leaf("tunnel.bufferedBytes", Live, &kind::BYTES, &mut s.tunnel.buffered_bytes);
}

fn traffic(s: &mut Settings, v: &mut impl Visit) {
    v.leaf("connect.timeout", Live, &kind::POSITIVE, &mut s.connect.timeout);
    v.leaf("connect.deadline", Live, &kind::POSITIVE, &mut s.connect.deadline);
    v.leaf("connect.attempts", Live, &kind::ATTEMPTS, &mut s.connect.attempts);
    v.leaf("connect.backoff", Live, &kind::DURATION, &mut s.connect.backoff);
    v.leaf("relay.idleTimeout", Live, &kind::POSITIVE_OR_OFF, &mut s.relay.idle_timeout);
    v.leaf("relay.maxAge", Live, &kind::POSITIVE_OR_OFF, &mut s.relay.max_age);
    v.leaf("relay.halfCloseLinger", Live, &kind::POSITIVE_OR_OFF, &mut s.relay.half_close_linger);
    v.leaf("relay.resetFlush", Live, &kind::POSITIVE, &mut s.relay.reset_flush);
    v.leaf("relay.zeroCopy", Live, &kind::AUTO_SWITCH, &mut s.relay.zero_copy);
    v.leaf("keepalive.idle", Live, &kind::KEEPALIVE, &mut s.keepalive.idle);
    v.leaf("keepalive.interval", Live, &kind::KEEPALIVE, &mut s.keepalive.interval);
    v.leaf("keepalive.probes", Live, &kind::PROBES, &mut s.keepalive.probes);
    v.leaf("keepalive.userTimeout", Live, &kind::USER_TIMEOUT, &mut s.keepalive.user_timeout);
    v.leaf("limits.connections", Live, &kind::CONNECTIONS, &mut s.limits.connections);
    v.leaf("limits.outbound", Live, &kind::LIMIT_OR_OFF, &mut s.limits.outbound);
    v.leaf("limits.inbound", Live, &kind::LIMIT_OR_OFF, &mut s.limits.inbound);
    v.leaf("limits.socks5", Live, &kind::LIMIT_OR_OFF, &mut s.limits.socks5);
    v.leaf("limits.hbone", Live, &kind::LIMIT_OR_OFF, &mut s.limits.hbone);
    v.leaf("limits.handshakes", Live, &kind::HANDSHAKES, &mut s.limits.handshakes);
    v.leaf("limits.perEndpoint", Live, &kind::LIMIT32_OR_OFF, &mut s.limits.per_endpoint);
    v.leaf("limits.perService", Live, &kind::LIMIT32_OR_OFF, &mut s.limits.per_service);
    v.leaf("limits.sourceRate", Live, &kind::RATE_OR_OFF, &mut s.limits.source_rate);
    v.leaf("limits.sourceBurst", Live, &kind::BURST, &mut s.limits.source_burst);
}

fn surfaces(s: &mut Settings, v: &mut impl Visit) {
    v.leaf("shutdown.preDrain", Live, &kind::DURATION, &mut s.shutdown.pre_drain);
    v.leaf("shutdown.deadline", Live, &kind::DURATION_OR_OFF, &mut s.shutdown.deadline);
    v.leaf("metrics.labels", Live, &kind::LABELS, &mut s.metrics.labels);
    v.leaf("log.format", Restart, &kind::LOG_FORMAT, &mut s.log.format);
    v.leaf("log.filter", Live, &kind::LOG_FILTER, &mut s.log.filter);
    v.leaf("log.access", Live, &kind::SWITCH, &mut s.log.access);
    v.leaf("admin.allowRemote", Restart, &kind::SWITCH, &mut s.admin.allow_remote);
}
