//! Settings that change while connections are open: none of them is touched, whatever the key; the next
//! connection sees the new value; what needs a restart is refused by name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use adit::config::Settings;

use crate::kit::door::{Dial, talk};
use crate::kit::{Door, LIMIT, isolated, isolated_within, until};
use crate::world::{Pair, SLACK, World, expect_eof, expect_refusal, expect_reset, half_close, let_pass};

const PORT: u16 = 8080;
/// Where the server host drops everything.
const SILENT_PORT: u16 = 9999;

/// Every key that applies live, with a value that is not the default and that would hurt an open connection, if anything
/// would.
const LIVE: [(&str, &str); 52] = [
    ("egress", "registryOnly"),
    ("socks5AllowLocal", "true"),
    ("connect.timeout", "10ms"),
    ("connect.deadline", "6s"),
    ("connect.attempts", "1"),
    ("connect.backoff", "1ms"),
    ("relay.idleTimeout", "1s"),
    ("relay.maxAge", "1s"),
    ("relay.halfCloseLinger", "1s"),
    ("relay.resetFlush", "1ms"),
    ("relay.zeroCopy", "off"),
    ("keepalive.idle", "1s"),
    ("keepalive.interval", "1s"),
    ("keepalive.probes", "1"),
    ("keepalive.userTimeout", "off"),
    ("limits.connections", "1"),
    ("limits.outbound", "1"),
    ("limits.inbound", "1"),
    ("limits.socks5", "1"),
    ("limits.hbone", "1"),
    ("limits.handshakes", "1"),
    ("limits.perEndpoint", "1"),
    ("limits.perService", "1"),
    ("limits.sourceRate", "1"),
    ("limits.sourceBurst", "1"),
    ("policy.onMissing", "ignore"),
    ("balance.ejectAfter", "1"),
    ("balance.ejectTime", "1s"),
    ("balance.ejectMax", "10s"),
    ("onEndpointRemoved", "close"),
    ("identity.trustDomainAliases", "[other.example]"),
    ("inbound.plaintext", "deny"),
    ("inbound.plaintextPorts", "[1]"),
    ("inbound.proxyProtocolFrom", "[0.0.0.0/0]"),
    ("inbound.proxyProtocolTimeout", "1ms"),
    ("tunnel.connectTimeout", "1ms"),
    ("tunnel.handshakeTimeout", "1ms"),
    ("tunnel.responseTimeout", "1ms"),
    ("tunnel.idleRelease", "1ms"),
    ("tunnel.maxAge", "1ms"),
    ("tunnel.maxStreams", "1"),
    ("tunnel.maxPerPeer", "1"),
    ("tunnel.pingInterval", "1ms"),
    ("tunnel.pingTimeout", "1ms"),
    ("tunnel.streamWindow", "64KiB"),
    ("tunnel.connectionWindow", "8MiB"),
    ("tunnel.bufferedBytes", "64MiB"),
    ("shutdown.preDrain", "1s"),
    ("shutdown.deadline", "0s"),
    ("metrics.labels", "[source_workload]"),
    ("log.filter", "debug"),
    ("log.access", "false"),
];

/// Every other key, with a value that is not the running one.
const RESTART: [(&str, &str); 22] = [
    ("workload.name", "other"),
    ("workload.namespace", "other"),
    ("workload.serviceAccount", "other"),
    ("workload.trustDomain", "other.local"),
    ("network", "other"),
    ("node", "other"),
    ("workers", "1"),
    ("capture", "tproxy"),
    ("preserveSource", "prefer"),
    ("packetMark", "4711"),
    ("mesh.files", "[/nonexistent]"),
    ("listen.outbound", "\"[::]:16001\""),
    ("listen.inbound", "\"[::]:16006\""),
    ("listen.hbone", "off"),
    ("listen.socks5", "\"127.0.0.1:16080\""),
    ("listen.admin", "\"127.0.0.1:16000\""),
    ("listen.metrics", "\"[::]:16020\""),
    ("listen.readiness", "\"[::]:16021\""),
    ("socks5AllowRemote", "true"),
    ("admin.allowRemote", "true"),
    ("identity.source", "dev"),
    ("identity.rootGrace", "2h"),
];
/// Of these there is no other valid value, or the log that the test reads would change its form, or they are sections of
/// their own.
const NOT_TRIED: [&str; 4] = ["mode", "log.format", "identity.dev", "identity.files"];

/// What there is beside that for a tunnel from adit to itself: SOCKS5 at one end of it, an application at the other.
const TUNNELLED: [(&str, &str); 3] =
    [("workload.name", "own"), ("identity.source", "dev"), ("identity.dev", "{ folder: identity }")];
const OWN_WORKLOAD: &str =
    "workloads: [{ uid: own, name: own, namespace: default, workloadIps: [10.77.0.2], protocol: HBONE }]\n";
const BASE_WORKLOAD: &str = "workloads: [{ uid: base, name: base, namespace: default, workloadIps: [10.77.0.2] }]\n";

/// What runs, and on top of it the changes.
fn settings(changes: &[(&str, &str)]) -> String {
    let base =
        [("workload.name", "base"), ("preserveSource", "off"), ("listen.socks5", "127.0.0.1:15080"), ("workers", "2")];
    let mut flat: BTreeMap<&str, &str> = base.into_iter().collect();
    flat.extend(changes.iter().copied());
    let mut sections: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut text = String::new();
    for (key, value) in flat {
        match key.split_once('.') {
            Some((section, key)) => sections.entry(section).or_default().push(format!("{key}: {value}")),
            None => text.push_str(&format!("{key}: {value}\n")),
        }
    }
    for (section, keys) in sections {
        text.push_str(&format!("{section}: {{ {} }}\n", keys.join(", ")));
    }
    text
}

fn change(world: &World, changes: &[(&str, &str)]) -> serde_json::Value {
    crate::world::replace(&world.adit.folder().join("adit.yaml"), &settings(changes));
    let report = world.json(&["reload", "--json"]);
    assert_ne!(report["config"]["result"], "rejected", "{changes:?}: {report}");
    report
}

/// The lines that name what a reload has changed.
fn changes_logged(world: &World, key: &str) -> usize {
    let named = |line: &String| line.contains("new settings") && line.contains(key);
    world.adit.log().iter().filter(|line| named(line)).count()
}

fn socks5(world: &World, to: SocketAddr) -> (TcpStream, u8) {
    use std::io::{Read, Write};
    let mut stream = Dial::default().connect(&world.lab.adit, (Ipv4Addr::LOCALHOST, 15080).into()).expect("the door");
    let SocketAddr::V4(to) = to else { panic!("IPv4 only") };
    let mut request = vec![5, 1, 0, 5, 1, 0, 1];
    request.extend(to.ip().octets());
    request.extend(to.port().to_be_bytes());
    stream.write_all(&request).expect("adit reads");
    stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).expect("both replies");
    (stream, reply[3])
}

/// Connections of every kind, all open.
struct Open {
    pairs: Vec<Pair>,
    /// The client has ended its half.
    half_closed: Pair,
}

impl Open {
    fn new(world: &World, server: &Door, application: &Door) -> Self {
        let (client, code) = socks5(world, (world.lab.server.v4, PORT).into());
        assert_eq!(code, 0, "refused");
        let through_socks5 = Pair { client, server: server.accept().stream };
        let mut half_closed = world.outbound(server, PORT);
        half_close(&half_closed.client);
        expect_eof(&mut half_closed.server);
        let (client, code) = socks5(world, (world.lab.adit.v4, PORT).into());
        assert_eq!(code, 0, "refused");
        let tunnelled = Pair { client, server: application.accept().stream };
        let listed = world.json(&["connections", "--json"]).to_string();
        assert!(listed.contains("\"listener\":\"hbone\""), "not through a tunnel: {listed}");
        let pairs = vec![world.outbound(server, PORT), world.inbound(application, PORT), through_socks5, tunnelled];
        let mut open = Self { pairs, half_closed };
        open.check("before");
        open
    }

    fn check(&mut self, after: &str) {
        use std::io::{Read, Write};
        for pair in &mut self.pairs {
            pair.client.write_all(after.as_bytes()).unwrap_or_else(|error| panic!("{after}: {error}"));
            pair.server.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
            let mut got = vec![0; after.len()];
            pair.server.read_exact(&mut got).unwrap_or_else(|error| panic!("{after}: {error}"));
            pair.talk();
        }
        let Pair { client, server } = &mut self.half_closed;
        server.write_all(after.as_bytes()).unwrap_or_else(|error| panic!("{after}, half closed: {error}"));
        client.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
        let mut got = vec![0; after.len()];
        client.read_exact(&mut got).unwrap_or_else(|error| panic!("{after}, half closed: {error}"));
    }
}

fn world() -> (World, Door, Door) {
    world_with(&[], "")
}

fn world_with(changes: &[(&str, &str)], mesh: &str) -> (World, Door, Door) {
    let lab = crate::world::captured();
    let adit = lab.adit(&settings(changes), mesh);
    let world = World { lab, adit };
    let (server, application) = (Door::open(&world.lab.server, PORT), Door::open(&world.lab.adit, PORT));
    (world, server, application)
}

/// The tables name every key that there is.
#[test]
fn no_key_is_left_out() {
    let mut all = BTreeSet::new();
    let document = Settings::default().to_json();
    for (key, value) in document.as_object().expect("a mapping") {
        match value.as_object() {
            Some(section) => all.extend(section.keys().map(|inner| format!("{key}.{inner}"))),
            None => drop(all.insert(key.clone())),
        }
    }
    let tried = LIVE.iter().chain(&RESTART).map(|(key, _)| *key).chain(NOT_TRIED);
    assert_eq!(tried.map(str::to_owned).collect::<BTreeSet<_>>(), all);
}

#[test]
fn no_change_touches_an_open_connection() {
    isolated_within(Duration::from_secs(150), || {
        let (mut world, server, application) = world_with(&TUNNELLED, OWN_WORKLOAD);
        world.adit.expect_log("not for production");
        let change = |changes: &[(&str, &str)]| change(&world, &[&TUNNELLED[..], changes].concat());
        let mut open = Open::new(&world, &server, &application);
        for (key, value) in LIVE {
            let report = change(&[(key, value)]);
            assert_eq!(report["refusedKeys"].as_array().map(Vec::len), Some(0), "{key}: {report}");
            // Whatever the value would do to an idle connection, it does within its time (a second; of tunnels one
            // millisecond) and two ticks.
            let patience = match key.split('.').next() {
                Some("relay" | "keepalive") => 1600,
                Some("tunnel") => 600,
                _ => 300,
            };
            let_pass(Duration::from_millis(patience));
            open.check(key);
            change(&[]);
        }
        for (key, _) in LIVE {
            until(LIMIT, &format!("{key} to be changed and changed back"), || {
                (changes_logged(&world, key) >= 2).then_some(())
            });
        }
        drop(open);
        world.adit.stop();
    });
}

#[test]
fn the_next_connection_sees_the_new_value() {
    isolated(|| {
        let (mut world, server, application) = world_with(&[], BASE_WORKLOAD);
        world.lab.server.black_hole(&format!("tcp dport {SILENT_PORT}"));
        let mut old = world.outbound(&server, PORT);

        // connect.*
        change(&world, &[("connect.timeout", "300ms"), ("connect.attempts", "1")]);
        let start = Instant::now();
        let mut client = world.dial_out(SILENT_PORT).expect("the capture door accepts");
        expect_reset(&mut client, LIMIT);
        assert!(start.elapsed() >= Duration::from_millis(300));
        assert!(start.elapsed() <= Duration::from_millis(300) + SLACK, "{:?}", start.elapsed());
        assert_eq!(world.closing(&client, LIMIT).reason(), "connect_timeout");

        // egress
        change(&world, &[("egress", "registryOnly")]);
        expect_refusal(world.dial_out(PORT));
        world.adit.wait_log("close_reason=\"unknown_destination\"");

        // relay.*
        for (key, reason) in [("relay.idleTimeout", "idle_timeout"), ("relay.maxAge", "max_age")] {
            change(&world, &[(key, "1s")]);
            let mut pair = world.outbound(&server, PORT);
            expect_reset(&mut pair.client, LIMIT);
            assert_eq!(world.closing(&pair.client, LIMIT).reason(), reason);
        }
        change(&world, &[("relay.halfCloseLinger", "1s")]);
        let mut pair = world.outbound(&server, PORT);
        half_close(&pair.client);
        expect_reset(&mut pair.client, LIMIT);
        assert_eq!(world.closing(&pair.client, LIMIT).reason(), "half_close_linger");

        // limits.*: one is open.
        change(&world, &[("limits.outbound", "1")]);
        expect_refusal(world.dial_out(PORT));
        world.inbound(&application, PORT).talk();

        // socks5AllowLocal
        let local = (Ipv4Addr::LOCALHOST, PORT).into();
        assert_eq!(socks5(&world, local).1, 2);
        change(&world, &[("socks5AllowLocal", "true")]);
        let (mut client, code) = socks5(&world, local);
        assert_eq!(code, 0);
        talk(&mut client, &mut application.accept().stream);

        old.talk();
        drop((old, client, pair));
        for text in ["connect_timeout", "unknown_destination", "connection refused: limit reached", "local_destination"]
        {
            world.adit.expect_log(text);
        }
        world.adit.stop();
    });
}

#[test]
fn logs_and_labels_follow_at_once() {
    isolated(|| {
        let (world, server, _) = world();
        let port_of = |client: &TcpStream| client.local_addr().expect("an address").port();
        let finish = |pair: Pair| {
            let port = port_of(&pair.client);
            let before = world.metric(FINISHED);
            drop(pair);
            world.wait_metric(FINISHED, before + 1.0);
            port
        };
        let mut silent = Vec::new();
        for quiet in [("log.access", "false"), ("log.filter", "warn")] {
            // Open before the change and after it.
            let old = world.outbound(&server, PORT);
            change(&world, &[quiet]);
            silent.push(finish(old));
            silent.push(finish(world.outbound(&server, PORT)));
            change(&world, &[]);
            let port = finish(world.outbound(&server, PORT));
            assert_eq!(world.closing_of(port, LIMIT).reason(), "finished");
        }
        for port in silent {
            assert!(!world.adit.log().iter().any(|line| line.contains(&format!(":{port} "))), "{port} was logged");
        }
        assert!(world.metrics().contains("destination_service=\""));
        change(&world, &[("metrics.labels", "[source_workload]")]);
        finish(world.outbound(&server, PORT));
        assert_eq!(
            world.metric(
                "istio_tcp_connections_opened_total{reporter=\"source\",source_workload=\"unknown\",response_flags=\"-\"}"
            ),
            1.0
        );
        world.adit.stop();
    });
}

const FINISHED: &str = "adit_connections_closed_total{side=\"-\",phase=\"relay\",reason=\"finished\"}";

#[test]
fn what_needs_a_restart_is_refused_by_name_and_shown() {
    isolated(|| {
        let (mut world, server, _) = world();
        let mut pair = world.outbound(&server, PORT);
        let running = world.json(&["status", "--json"])["config"]["hash"].clone();
        for (key, value) in RESTART {
            let report = change(&world, &[(key, value)]);
            assert_eq!(report["refusedKeys"], serde_json::json!([key]), "{report}");
            let status = world.json(&["status", "--json"]);
            assert_eq!(status["refusedKeys"], serde_json::json!([key]));
            assert_eq!(status["config"]["hash"], running, "{key}: the old value is not kept");
            let shown = String::from_utf8(world.cli(&["status"]).stdout).expect("text");
            assert!(shown.lines().any(|line| line.starts_with("restart for") && line.ends_with(key)), "{shown}");
            world.adit.wait_log(&format!("key=\"{key}\""));
            pair.talk();
        }
        world.outbound(&server, PORT).talk();
        assert_eq!(change(&world, &[])["refusedKeys"], serde_json::json!([]));
        assert_eq!(world.json(&["status", "--json"])["refusedKeys"], serde_json::json!([]));
        drop(pair);
        world.adit.expect_log("this setting needs a restart");
        world.adit.stop();
    });
}

/// The file alone, without being asked; a wrong one changes nothing and says so.
#[test]
fn the_settings_file_is_watched_and_a_bad_one_is_refused() {
    isolated(|| {
        let (mut world, server, _) = world();
        let mut pair = world.outbound(&server, PORT);
        let file = world.adit.folder().join("adit.yaml");
        crate::world::replace(&file, "egress: registryOnly\nrelay: { idelTimeout: 3s }\n");
        world.adit.wait_log("the settings are not valid");
        until(LIMIT, "the status to say so", || {
            let errors = world.json(&["status", "--json"])["config"]["rejected"]["errors"].to_string();
            (errors.contains("idelTimeout") && errors.contains("adit.yaml:2")).then_some(())
        });
        assert!(world.metric("adit_reloads_total{what=\"config\",result=\"rejected\"}") >= 1.0);
        pair.talk();
        world.outbound(&server, PORT).talk();
        let report = world.cli(&["reload"]);
        assert_eq!(report.status.code(), Some(1), "{report:?}");

        let running = || world.json(&["status", "--json"])["config"]["hash"].clone();
        let before = running();
        crate::world::replace(&file, &settings(&[("egress", "registryOnly")]));
        world.adit.wait_log("new settings");
        until(LIMIT, "the new settings to be in force", || (running() != before).then_some(()));
        expect_refusal(world.dial_out(PORT));
        pair.talk();
        drop(pair);
        world.adit.expect_log("the settings are not valid");
        world.adit.expect_log("unknown_destination");
        world.adit.stop();
    });
}
