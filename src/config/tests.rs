//! The loader as a whole: real files, made-up environments, everything wrong at once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::problem::Origin;
use super::settings::{AdminAddr, ConnectionLimit, PreserveSource, TrafficLabelSet};
use super::*;

/// Files in a folder of their own, and what else a start has.
struct Given {
    folder: tempfile::TempDir,
    sources: Sources,
}

impl Given {
    fn nothing() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sources =
            Sources { working_dir: folder.path().to_owned(), host_name: "host-1".into(), ..Sources::default() };
        Self { folder, sources }
    }

    fn file(mut self, name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self.sources.files.push(name.into());
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.into(), value.into()));
        self
    }

    fn set(mut self, key: &str, value: &str) -> Self {
        self.sources.flags.push((key.into(), value.into()));
        self
    }

    fn load(&self) -> Settings {
        load(&self.sources).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn problems(&self) -> Vec<String> {
        match load(&self.sources) {
            Ok(settings) => panic!("accepted: {settings:?}"),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn file(text: &str) -> Given {
    Given::nothing().file("a.yaml", text)
}

fn defaults() -> Settings {
    Settings { node: "host-1".into(), ..Settings::default() }
}

#[test]
fn nothing_written_means_the_defaults() {
    assert_eq!(Given::nothing().load(), defaults());
    for text in ["", "# a comment\n", "---\n", "{}", "listen:\nconnect: {}\nmesh: { files: }\n"] {
        assert_eq!(file(text).load(), defaults(), "{text:?}");
    }
}

#[test]
fn later_layers_win_key_by_key() {
    let given = Given::nothing()
        .file("a.yaml", "connect: { timeout: 1s, deadline: 9s, backoff: 1ms }\nmesh: { files: [one, two] }\n")
        .file("sub/b.yaml", "connect: { timeout: 2s, attempts: 7 }\nmesh: { files: [three] }\n")
        .env("ADIT__CONNECT__TIMEOUT", "3s")
        .env("ADIT__Connect__Back_Off", "4ms")
        .env("UNRELATED", "%%%")
        .set("connect.timeout", "4s");
    let settings = given.load();
    assert_eq!(settings.connect.timeout, Duration::from_secs(4));
    assert_eq!(settings.connect.deadline, Duration::from_secs(9));
    assert_eq!(settings.connect.backoff, Duration::from_millis(4));
    assert_eq!(settings.connect.attempts.get(), 7);
    assert_eq!(settings.mesh.files, [given.path("sub/three")], "lists replace; paths start at their file");
}

#[test]
fn paths_of_the_environment_and_flags_start_at_the_working_directory() {
    let given = file("mesh: { files: [x] }").env("ADIT__MESH__FILES", "[e, /abs]");
    assert_eq!(given.load().mesh.files, [given.path("e"), PathBuf::from("/abs")]);
    let given = given.set("mesh.files", "one");
    assert_eq!(given.load().mesh.files, [given.path("one")]);
}

#[test]
fn the_more_exact_variable_wins() {
    let given = Given::nothing().env("ADIT__CONNECT__TIMEOUT", "3s").env("ADIT__CONNECT", "{timeout: 9s, attempts: 2}");
    let connect = given.load().connect;
    assert_eq!((connect.timeout, connect.attempts.get()), (Duration::from_secs(3), 2));
}

#[test]
fn off_and_false_are_the_same_in_every_layer() {
    let keys = [
        "preserveSource",
        "packetMark",
        "listen.outbound",
        "listen.hbone",
        "listen.admin",
        "relay.idleTimeout",
        "relay.maxAge",
        "relay.halfCloseLinger",
        "relay.zeroCopy",
        "keepalive.userTimeout",
        "limits.connections",
        "limits.socks5",
        "shutdown.deadline",
        "log.access",
        "log.filter",
        "admin.allowRemote",
    ];
    for key in keys {
        let off = Given::nothing().set(key, "off").load();
        assert_eq!(Given::nothing().set(key, "false").load(), off, "{key}");
        assert_eq!(Given::nothing().set(key, "\"off\"").load(), off, "{key}");
        let variable = format!("ADIT__{}", key.replace('.', "__").to_uppercase());
        assert_eq!(Given::nothing().env(&variable, "off").load(), off, "{key}");
        assert_eq!(Given::nothing().env(&variable, "false").load(), off, "{key}");
        let (section, leaf) = key.split_once('.').unwrap_or(("", key));
        for word in ["off", "false"] {
            let text =
                if section.is_empty() { format!("{leaf}: {word}") } else { format!("{section}: {{{leaf}: {word}}}") };
            assert_eq!(file(&text).load(), off, "{key}");
        }
        assert!(off.to_json().to_string().contains("off") || key.contains("llow") || key == "log.access", "{key}");
    }
}

#[test]
fn every_kind_of_value_is_read() {
    let text = "\
workload: { name: web-1, namespace: shop, serviceAccount: web, trustDomain: corp.internal }
network: east
node: node-7
workers: 3
capture: tproxy
preserveSource: require
packetMark: 0x539
egress: registryOnly
listen: { socks5: \"[::1]:1080\", admin: \"unix:/run/adit/admin.sock\", metrics: off }
relay: { idleTimeout: 1m30s, zeroCopy: auto }
limits: { connections: 5000, outbound: 100 }
shutdown: { preDrain: 250ms, deadline: 0s }
metrics: { labels: [source_workload, response_flags] }
log: { format: json, filter: \"info,mesh=debug\", access: off }
";
    let settings = file(text).load();
    assert_eq!(&*settings.workload.trust_domain, "corp.internal");
    assert_eq!(&*settings.node, "node-7");
    assert_eq!(settings.packet_mark.map(|mark| mark.get()), Some(1337));
    assert_eq!(settings.preserve_source, PreserveSource::Require);
    assert_eq!(settings.listen.admin, Some(AdminAddr::Unix("/run/adit/admin.sock".into())));
    assert_eq!(settings.listen.metrics, None);
    assert_eq!(settings.relay.idle_timeout, Some(Duration::from_secs(90)));
    assert!(matches!(settings.limits.connections, ConnectionLimit::Fixed(limit) if limit.get() == 5000));
    assert_eq!(settings.shutdown.deadline, Some(Duration::ZERO));
    let labels = ["source_workload", "response_flags"].map(str::to_owned).to_vec();
    assert_eq!(settings.metrics.labels, TrafficLabelSet::Only(labels));
    assert!(!settings.log.access);
}

#[test]
fn every_problem_of_every_layer_is_reported_in_one_go() {
    let given = Given::nothing()
        .file(
            "a.yaml",
            "# settings\nconnect:\n  timeout: 5\n  timout: 5s\negress: allowAll\n\nkeepalive:\n  userTimeout: 20s\n",
        )
        .file(
            "b.yaml",
            "connect: { timeout: 7s }\nlisten:\n  socks5: 0.0.0.0:1080\n  metrics: \"[::]:15021\"\nlisten: {}\n",
        )
        .file("c.yaml", "a: [1\n")
        .env("ADIT__CONECT__TIMEOUT", "3s")
        .env("ADIT__RELAY__MAX_AGE", "{")
        .set("log.fliter", "info");
    std::fs::remove_file(given.path("c.yaml")).unwrap();
    let given = given.file("d.yaml", "a: [1\n");
    let problems = given.problems();
    let want = [
        "a.yaml:3:12: connect.timeout: found 5, expected a duration such as 250ms or 5s, more than zero\n  hint: a duration needs a unit: write 5s",
        "a.yaml:4:3: connect.timout: unknown key\n  hint: did you mean \"timeout\"?",
        "a.yaml:5:9: egress: found \"allowAll\", expected allowAny or registryOnly\n  hint: did you mean \"allowAny\"?",
        "b.yaml:5:1: listen: duplicate key\n  hint: it is already set on line 2",
        "c.yaml: cannot be read: No such file or directory (os error 2)\n  hint: check the path given with --config",
        "d.yaml:2:1: not valid YAML: did not find expected ',' or ']', while parsing a flow sequence at line 1 column 4",
        "environment variable ADIT__CONECT__TIMEOUT: conect: unknown key\n  hint: did you mean \"connect\"?",
        "environment variable ADIT__RELAY__MAX_AGE: relay.maxAge: not valid YAML: did not find expected node content, while parsing a flow node",
        "flag --set log.fliter: log.fliter: unknown key\n  hint: did you mean \"filter\"?",
        "a.yaml:8:16: keepalive.userTimeout: found a userTimeout of 20s, expected at least idle + interval * probes, which is 30s\n  hint: set keepalive.userTimeout to 30s or more, or to off",
        "b.yaml:3:11: listen.socks5: found 0.0.0.0:1080, expected a loopback address\n  hint: write \"127.0.0.1:1080\", or set socks5AllowRemote: true if everyone who can reach it may use it",
        "b.yaml:4:12: listen.metrics: found [::]:15021, expected a port of its own\n  hint: listen.readiness listens on [::]:15021",
    ];
    assert_eq!(problems, want);
}

/// A file, and the one problem across keys that it has.
#[test]
fn each_check_across_keys_names_its_place_and_a_way_out() {
    for (text, want) in [
        (
            "keepalive:\n  idle: 60s\n",
            "a.yaml:2:9: keepalive.idle: found a userTimeout of 30s, expected at least idle + interval * probes, which is 1m15s\n  hint: set keepalive.userTimeout to 1m15s or more, or to off",
        ),
        (
            "connect:\n  deadline: 3s\n",
            "a.yaml:2:13: connect.deadline: found a timeout of 5s, expected at most connect.deadline, which is 3s\n  hint: the deadline is over all attempts: raise connect.deadline or lower connect.timeout",
        ),
        (
            "listen:\n  admin: \"[::]:15000\"\n",
            "a.yaml:2:10: listen.admin: found [::]:15000, expected a loopback address\n  hint: write \"127.0.0.1:15000\", or set admin.allowRemote: true if everyone who can reach it may drain adit",
        ),
        (
            "listen:\n  socks5: 10.0.0.1:1080\n",
            "a.yaml:2:11: listen.socks5: found 10.0.0.1:1080, expected a loopback address\n  hint: write \"127.0.0.1:1080\", or set socks5AllowRemote: true if everyone who can reach it may use it",
        ),
        (
            "listen:\n  outbound: off\n  inbound: false\n",
            "a.yaml:2:13: listen.outbound: found every door for traffic off, expected listen.outbound, listen.inbound, listen.socks5, or with an identity listen.hbone open\n  hint: there would be nothing to do: open at least one",
        ),
        (
            "packetMark: off\npreserveSource: require\n",
            "a.yaml:2:17: preserveSource: found preserveSource: require with packetMark: off, expected a packetMark\n  hint: answers to a borrowed address find their way back by the mark: set packetMark, or preserveSource: prefer",
        ),
        (
            "limits:\n  connections: 10\n  outbound: 11\n",
            "a.yaml:3:13: limits.outbound: found 11, expected at most limits.connections, which is 10\n  hint: this limit could never be reached",
        ),
        (
            "listen:\n  socks5: 127.0.0.1:15000\n",
            "a.yaml:2:11: listen.socks5: found 127.0.0.1:15000, expected a port of its own\n  hint: listen.admin listens on 127.0.0.1:15000",
        ),
        (
            "listen:\n  inbound: 127.0.0.1:15001\n",
            "a.yaml:2:12: listen.inbound: found 127.0.0.1:15001, expected a port of its own\n  hint: listen.outbound listens on [::]:15001",
        ),
    ] {
        assert_eq!(file(text).problems(), [want]);
    }
}

#[test]
fn what_a_check_forbids_can_be_allowed() {
    for text in [
        "listen: { outbound: off, inbound: off }\nidentity: { source: dev, dev: { folder: ca } }\n\
         workload: { name: app, namespace: shop, serviceAccount: app }\n",
        "listen: { admin: \"[::]:15000\" }\nadmin: { allowRemote: true }\n",
        "listen: { admin: \"[::ffff:127.0.0.1]:15000\" }\n",
        "listen: { admin: \"127.3.2.1:15000\", socks5: \"[::1]:1080\" }\n",
        "listen: { socks5: \"0.0.0.0:1080\" }\nsocks5AllowRemote: true\n",
        "listen: { outbound: off, inbound: off, socks5: \"127.0.0.1:1080\" }\n",
        "keepalive: { idle: 60s, userTimeout: off }\n",
        "listen: { outbound: \"127.0.0.1:0\", inbound: \"127.0.0.1:0\" }\n",
        "packetMark: off\npreserveSource: require\nlisten: { inbound: off }\n",
        "limits: { outbound: 11 }\n",
    ] {
        file(text).load();
    }
}

#[test]
fn a_check_is_silent_while_one_of_its_keys_is_wrong_in_itself() {
    let problems = file("listen: { admin: \"0.0.0.0:15000\" }\nadmin: { allowRemote: ja }\n").problems();
    assert_eq!(problems, ["a.yaml:2:23: admin.allowRemote: found \"ja\", expected true or false"]);
}

#[test]
fn two_variables_for_one_key_are_refused() {
    let given = Given::nothing().env("ADIT__PACKETMARK", "1").env("ADIT__PACKET_MARK", "2");
    assert_eq!(
        given.problems(),
        [
            "environment variable ADIT__PACKET_MARK: packetMark: two variables for one key\n  hint: unset it or ADIT__PACKETMARK"
        ]
    );
}

#[test]
fn unreadable_files_are_problems_with_a_reason() {
    let given = Given::nothing().file("bin.yaml", b"mode: sidecar\nnode: \xff\n".as_slice());
    assert_eq!(given.problems(), ["bin.yaml:2:1: not valid UTF-8"]);
    let big = Given::nothing().file("big.yaml", "#".repeat(1024 * 1024 + 1));
    assert_eq!(big.problems(), ["big.yaml: too large: found 1048577 bytes, expected at most 1048576 bytes"]);
    let two = file("mode: sidecar\n---\nmode: sidecar\n");
    assert_eq!(two.problems().len(), 1);
    assert!(two.problems()[0].starts_with("a.yaml: more than one document"), "{:?}", two.problems());
    let mut folder = Given::nothing();
    folder.sources.files.push(".".into());
    assert!(folder.problems()[0].starts_with(".: cannot be read: "), "{:?}", folder.problems());
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt as _;
        let mut given = Given::nothing();
        given.sources.environment.push(("ADIT__NODE".into(), std::ffi::OsStr::from_bytes(b"\xff").into()));
        assert_eq!(given.problems(), ["environment variable ADIT__NODE: node: not valid UTF-8"]);
    }
}

#[test]
fn problems_are_data_too() {
    let problems = load(&file("connect:\n  timeout: 5\n").sources).unwrap_err();
    let json = serde_json::to_value(&problems).unwrap();
    assert_eq!(json[0]["origin"], "a.yaml");
    assert_eq!(json[0]["position"]["line"], 2);
    assert_eq!(json[0]["keyPath"], "connect.timeout");
    assert!(matches!(&problems.iter().next().unwrap().origin, Origin::File(file) if file == Path::new("a.yaml")));
}

#[test]
fn the_shipped_file_shows_every_key_with_its_default() {
    let text = include_str!("../../config/adit.yaml");
    assert_eq!(file(text).load(), defaults());
    let shipped: serde_json::Value = serde_yaml::from_str(text).unwrap();
    let shown: BTreeSet<String> = leaves(&shipped);
    let known: BTreeSet<String> = schema::keys().into_iter().map(str::to_owned).collect();
    assert_eq!(shown, known);
    for (line, text) in text.lines().enumerate() {
        assert!(text.chars().count() <= 120, "line {}", line + 1);
    }
}

#[test]
fn the_demo_opens_socks5_and_tunnels_and_needs_no_privileges() {
    let mut given = Given::nothing();
    given.sources.built_in = Some(demo::settings("/demo".into()));
    let settings = given.load();
    assert_eq!(settings.listen.socks5.unwrap().to_string(), "127.0.0.1:15080");
    assert_eq!((settings.listen.outbound, settings.listen.inbound), (None, None));
    assert_eq!(settings.listen.hbone.unwrap().to_string(), "127.0.0.1:15008");
    assert_eq!(settings.identity.dev.folder, PathBuf::from("/demo/identity"));
    assert_eq!(settings.packet_mark, None);
    assert_eq!(settings.mesh.files, [PathBuf::from("/demo/mesh.yaml")]);
    let mesh: serde_json::Value = serde_yaml::from_str(demo::MESH).unwrap();
    assert_eq!(mesh["services"][0]["ports"]["80"], demo::ECHO_PORT);
    let without = given.env("ADIT__LISTEN__SOCKS5", "off");
    assert_eq!(without.load().listen.socks5, None, "the door for tunnels is left");
    let problems = without.env("ADIT__LISTEN__HBONE", "off").problems();
    assert!(problems[0].contains("found every door for traffic off"), "{problems:?}");
}

#[test]
fn settings_are_shown_as_they_could_be_written() {
    let json = defaults().to_json();
    assert_eq!(json["connect"]["timeout"], "5s");
    assert_eq!(json["listen"]["socks5"], "off");
    assert_eq!(json["limits"]["connections"], "auto");
    assert_eq!(file(&json.to_string()).load(), defaults());
    assert_eq!(file(&serde_yaml::to_string(&defaults()).unwrap()).load(), defaults());
}

fn leaves(value: &serde_json::Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (key, value) in value.as_object().unwrap() {
        if value.is_object() {
            found.extend(leaves(value).into_iter().map(|inner| format!("{key}.{inner}")));
        } else {
            found.insert(key.clone());
        }
    }
    found
}

#[test]
fn sections_within_sections_are_read_from_every_layer() {
    let folder = |given: Given| given.load().identity.dev.folder;
    assert_eq!(folder(file("identity: { dev: { folder: /a } }")), Path::new("/a"));
    assert_eq!(folder(Given::nothing().env("ADIT__IDENTITY__DEV__FOLDER", "/b")), Path::new("/b"));
    assert_eq!(folder(Given::nothing().set("identity.dev.folder", "/c")), Path::new("/c"));
    assert_eq!(folder(Given::nothing().env("HOME", "/home/u")), Path::new("/home/u/.local/state/adit/dev-identity"));
    let problems = file("identity: { dev: { folders: /a } }").problems();
    assert!(problems[0].contains("identity.dev.folders"), "{problems:?}");
    let problems = file("identity: { source: files, files: { cert: /c } }").problems();
    assert!(problems[0].contains("without key, roots"), "{problems:?}");
    assert!(problems[1].contains("no workload.name"), "{problems:?}");
    let closed = file("identity: { source: dev, dev: { folder: /a } }\nlisten: { hbone: off }").load();
    assert_eq!(&*closed.workload.name, "", "whoever only opens tunnels needs no name");
}

/// What the values below are tried with: an identity needs a workload.
fn with_a_workload() -> Given {
    Given::nothing().set("workload.name", "own")
}

/// A value for each key that differs from its default and is valid beside a workload's name and the defaults of all others.
fn changed_values() -> Vec<(&'static str, &'static str)> {
    let mut values = changed_tunnel_values();
    values.extend([
        ("workload.name", "w"),
        ("workload.namespace", "n"),
        ("workload.serviceAccount", "s"),
        ("workload.trustDomain", "t"),
        ("network", "net"),
        ("node", "other"),
        ("workers", "7"),
        ("capture", "tproxy"),
        ("preserveSource", "off"),
        ("packetMark", "99"),
        ("egress", "registryOnly"),
        ("mesh.files", "[/m]"),
        ("identity.source", "dev"),
        ("identity.dev.folder", "/d"),
        ("identity.files.cert", "/c"),
        ("identity.files.key", "/k"),
        ("identity.files.roots", "[/r]"),
        ("identity.files.crls", "[/l]"),
        ("identity.trustDomainAliases", "[a, b]"),
        ("identity.rootGrace", "2h"),
        ("listen.outbound", "127.0.0.1:1"),
        ("listen.inbound", "127.0.0.1:2"),
        ("listen.hbone", "127.0.0.1:3"),
        ("listen.socks5", "127.0.0.1:4"),
        ("listen.admin", "127.0.0.1:5"),
        ("listen.metrics", "127.0.0.1:6"),
        ("listen.readiness", "127.0.0.1:7"),
        ("socks5AllowRemote", "true"),
        ("socks5AllowLocal", "true"),
        ("connect.timeout", "6s"),
        ("connect.deadline", "16s"),
        ("connect.attempts", "4"),
        ("connect.backoff", "26ms"),
        ("relay.idleTimeout", "1h"),
        ("relay.maxAge", "2h"),
        ("relay.halfCloseLinger", "61s"),
        ("relay.resetFlush", "2s"),
        ("relay.zeroCopy", "off"),
        ("keepalive.idle", "14s"),
        ("keepalive.interval", "4s"),
        ("keepalive.probes", "2"),
        ("keepalive.userTimeout", "31s"),
        ("limits.connections", "9"),
        ("limits.outbound", "8"),
        ("limits.inbound", "7"),
        ("limits.socks5", "6"),
        ("limits.hbone", "5"),
        ("limits.handshakes", "4"),
        ("limits.perEndpoint", "5"),
        ("limits.perService", "6"),
        ("limits.sourceRate", "7"),
        ("limits.sourceBurst", "8"),
        ("policy.onMissing", "ignore"),
        ("balance.ejectAfter", "off"),
        ("balance.ejectTime", "1s"),
        ("balance.ejectMax", "1m"),
        ("onEndpointRemoved", "drain 1m30s"),
        ("shutdown.preDrain", "1s"),
        ("shutdown.deadline", "31s"),
        ("metrics.labels", "[reporter]"),
        ("log.format", "json"),
        ("log.filter", "debug"),
        ("log.access", "off"),
        ("admin.allowRemote", "on"),
    ]);
    values
}

fn changed_tunnel_values() -> Vec<(&'static str, &'static str)> {
    vec![
        ("inbound.plaintext", "deny"),
        ("inbound.plaintextPorts", "[8080, 9]"),
        ("inbound.proxyProtocolFrom", "[10.0.0.0/8, \"2001:db8::1\"]"),
        ("inbound.proxyProtocolTimeout", "1s"),
        ("tunnel.connectTimeout", "1s"),
        ("tunnel.handshakeTimeout", "2s"),
        ("tunnel.responseTimeout", "3s"),
        ("tunnel.idleRelease", "4s"),
        ("tunnel.maxAge", "5s"),
        ("tunnel.maxStreams", "6"),
        ("tunnel.maxPerPeer", "7"),
        ("tunnel.pingInterval", "8s"),
        ("tunnel.pingTimeout", "9s"),
        ("tunnel.streamWindow", "64KiB"),
        ("tunnel.connectionWindow", "24MiB"),
        ("tunnel.bufferedBytes", "64MiB"),
    ]
}

#[test]
fn every_key_round_trips_alone_and_together() {
    let changes = changed_values();
    let covered: BTreeSet<&str> = changes.iter().map(|(key, _)| *key).chain(["mode"]).collect();
    assert_eq!(covered, schema::keys().into_iter().collect(), "a key has no example");
    let mut all = Given::nothing();
    for (key, value) in changes {
        let settings = with_a_workload().set(key, value).load();
        assert_ne!(settings, with_a_workload().load(), "{key}");
        assert_eq!(file(&settings.to_json().to_string()).load(), settings, "{key}");
        all = all.set(key, value);
    }
    let settings = all.load();
    assert_eq!(file(&serde_yaml::to_string(&settings).unwrap()).load(), settings);
}

#[test]
fn a_reload_applies_live_keys_and_names_the_others() {
    let running = with_a_workload().load();
    for (key, value) in changed_values() {
        let wanted = with_a_workload().set(key, value).load();
        let plan = reload::diff(&running, &wanted);
        match (plan.changed.as_slice(), plan.refused.as_slice()) {
            ([changed], []) => {
                assert_eq!(*changed, key);
                assert_eq!(plan.applied, wanted, "{key}");
            }
            ([], [refused]) => {
                assert_eq!(refused.key, key);
                assert_ne!(refused.running, refused.wanted);
                assert_eq!(plan.applied, running, "{key}");
            }
            other => panic!("{key}: {other:?}"),
        }
    }
    let same = reload::diff(&running, &running);
    assert_eq!((same.changed.len(), same.refused.len()), (0, 0));
}

#[test]
fn addresses_workers_mode_and_capture_need_a_restart_and_times_and_limits_do_not() {
    let plan = |key, value: &str| reload::diff(&with_a_workload().load(), &with_a_workload().set(key, value).load());
    for (key, value) in changed_values() {
        let restart = ["listen.", "workload.", "admin.", "identity."].iter().any(|section| key.starts_with(section))
            && key != "identity.trustDomainAliases"
            || ["workers", "capture", "packetMark", "preserveSource", "network", "node"].contains(&key)
            || ["socks5AllowRemote", "mesh.files", "log.format"].contains(&key);
        assert_eq!(plan(key, value).refused.len(), usize::from(restart), "{key}");
    }
    let refused = &plan("listen.socks5", "127.0.0.1:9").refused[0];
    assert_eq!((refused.running.as_str(), refused.wanted.as_str()), (Some("off"), Some("127.0.0.1:9")));
}

/// Of each key, config/adit.yaml says what a change does: on its line, or in the comment above its block.
#[test]
fn the_shipped_file_says_what_applies_live() {
    let says = |line: &str| match (line.contains("[live]"), line.contains("[restart]")) {
        (true, false) => Some(schema::Reload::Live),
        (false, true) => Some(schema::Reload::Restart),
        _ => None,
    };
    let (mut sections, mut block, mut said) = (Vec::new(), None, std::collections::BTreeMap::new());
    for line in include_str!("../../config/adit.yaml").lines() {
        if line.is_empty() {
            block = None;
        } else if line.starts_with('#') {
            block = says(line).or(block);
        } else if let Some((key, value)) = line.split_once(':') {
            let value = value.split('#').next().unwrap_or("").trim();
            sections.truncate((line.len() - line.trim_start().len()) / 2);
            sections.push(key.trim());
            if !value.is_empty() {
                said.insert(sections.join("."), says(line).or(block));
            }
        }
    }
    let known = render::flat(&defaults()).into_iter().map(|shown| (shown.key.to_owned(), Some(shown.reload)));
    assert_eq!(said, known.collect());
}

proptest! {
    #[test]
    fn no_file_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _any = load(&Given::nothing().file("a.yaml", bytes).sources);
    }

    #[test]
    fn no_yaml_like_file_panics(text in "(connect|timeout|listen|5s|off|[-:,{}\\[\\]&*!'\" \n#?|]){0,40}") {
        let _any = load(&file(&text).sources);
    }

    #[test]
    fn no_variable_or_flag_panics(name in "(ADIT__)?[A-Za-z_.]{0,20}", value in "\\PC{0,30}") {
        let _any = load(&Given::nothing().env(&name, &value).set(&name, &value).sources);
    }

    #[test]
    fn durations_round_trip(millis in 1_u64..10_000_000_000) {
        let settings = Given::nothing().set("relay.maxAge", &format!("{millis}ms")).load();
        prop_assert_eq!(settings.relay.max_age, Some(Duration::from_millis(millis)));
        prop_assert_eq!(file(&settings.to_json().to_string()).load(), settings);
    }

    #[test]
    fn any_mix_of_valid_values_round_trips(picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..20)) {
        let changes = changed_values();
        let mut given = Given::nothing();
        for pick in picks {
            let (key, value) = changes[pick.index(changes.len())];
            given = given.set(key, value);
        }
        if let Ok(settings) = load(&given.sources) {
            prop_assert_eq!(file(&settings.to_json().to_string()).load(), settings);
        }
    }
}
