//! What is refused, with which code, and what stands in the log about it.

use std::net::{IpAddr, SocketAddr};

use crate::kit::wait::pause;
use crate::kit::{LIMIT, Lab, isolated, until};
use crate::program::names;
use crate::serve::echo;
use crate::wire::{SETTINGS, ask, knock, read, refusal, rest, to_address, to_name};

const FAILED: u8 = 1;
const NOT_ALLOWED: u8 = 2;
const NETWORK_UNREACHABLE: u8 = 3;
const HOST_UNREACHABLE: u8 = 4;
const REFUSED: u8 = 5;

fn at(text: &str) -> Vec<u8> {
    to_address(text.parse().expect("an address"))
}

#[test]
fn codes_say_how_the_connect_failed() {
    isolated(|| {
        names("");
        let lab = Lab::new();
        // Networks to which there is no route, and hosts that a route declares unreachable.
        lab.adit.ip("route delete 0.0.0.0/0\nroute delete ::/0\nroute add unreachable 198.51.100.0/24\n");
        let mut adit = lab.adit(&format!("{SETTINGS}connect: {{ timeout: 300ms }}\n"), "");
        lab.server.black_hole("tcp dport 82");
        for (request, code, reason) in [
            (at("10.77.0.3:81"), REFUSED, "connect_refused"),
            (at("[fd77::3]:81"), REFUSED, "connect_refused"),
            (at("192.0.2.1:80"), NETWORK_UNREACHABLE, "connect_unreachable"),
            (at("[2001:db8::1]:80"), NETWORK_UNREACHABLE, "connect_unreachable"),
            (at("198.51.100.1:80"), HOST_UNREACHABLE, "connect_unreachable"),
            (at("10.77.0.3:82"), HOST_UNREACHABLE, "connect_timeout"),
            (to_name("nowhere.test", 80), HOST_UNREACHABLE, "name_unresolved"),
        ] {
            assert_eq!(refusal(&lab.adit, &request), code, "{reason} {request:?}");
            adit.expect_log(reason);
        }
        adit.stop();
    });
}

/// No address that only this host can mean, in any form, unless a workload has it.
#[test]
fn local_destinations_need_a_workload() {
    let mesh = "workloads:\n\
         - { uid: w1, name: w1, namespace: default, workloadIps: [127.0.0.7], protocol: TCP, services: { default/svc.test: { 80: 7000 } } }\n\
         services:\n\
         - { name: svc, namespace: default, hostname: svc.test, vips: [/10.99.0.1], ports: { 80: 7000 } }\n";
    isolated(move || {
        names("127.0.0.1 sneaky.test\n");
        let lab = Lab::new();
        echo(&lab.adit, 7000);
        lab.adit.ip("address add 169.254.7.7/16 dev lo\n");
        let mut adit = lab.adit(SETTINGS, mesh);
        adit.expect_log("local_destination");
        let local = [
            at("127.0.0.1:7000"),
            at("127.3.2.1:7000"),
            at("[::1]:7000"),
            at("0.0.0.0:7000"),
            at("[::]:7000"),
            at("[::ffff:127.0.0.1]:7000"),
            at("[::ffff:0.0.0.0]:7000"),
            at("169.254.7.7:7000"),
            at("[::ffff:169.254.7.7]:7000"),
            at("[fe80::1]:7000"),
            to_name("localhost", 7000),
            to_name("sneaky.test", 7000),
            to_name("127.0.0.1", 7000),
            to_name("::1", 7000),
            to_name("::ffff:127.0.0.1", 7000),
        ];
        for request in &local {
            assert_eq!(refusal(&lab.adit, request), NOT_ALLOWED, "{request:?}");
        }
        for request in [at("127.0.0.7:7000"), at("10.99.0.1:80"), to_name("svc.test", 80)] {
            assert_eq!(ask(&lab.adit, &request).1.code, 0, "{request:?}");
        }
        // The key is live.
        let settings = format!("{SETTINGS}socks5AllowLocal: true\n");
        let hash = || {
            let status = crate::program::adit(&lab.adit, &["status", "--json"]).ok();
            serde_json::from_str::<serde_json::Value>(&status).expect("JSON")["config"]["hash"].clone()
        };
        let before = hash();
        adit.replace("adit.yaml", &settings);
        until(LIMIT, "the new settings to be in force", || (hash() != before).then_some(()));
        adit.wait_log("socks5AllowLocal");
        for request in local.iter().filter(|request| !request.starts_with(&[5, 1, 0, 4, 0xfe, 0x80])) {
            assert_eq!(ask(&lab.adit, request).1.code, 0, "{request:?}");
        }
        adit.stop();
    });
}

/// Ports that adit listens on are never dialled on an address of this host, whatever is allowed.
#[test]
fn loops_are_refused_in_every_form() {
    isolated(|| {
        names("127.0.0.1 me.test\n");
        let lab = Lab::new();
        let mut adit = lab.adit(&format!("{SETTINGS}socks5AllowLocal: true\n"), "");
        adit.expect_log("loop_refused");
        for port in [15080, 15000] {
            for ip in ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "10.77.0.2", "fd77::2"] {
                let address = SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), port);
                assert_eq!(refusal(&lab.adit, &to_address(address)), NOT_ALLOWED, "{address}");
            }
            assert_eq!(refusal(&lab.adit, &to_name("me.test", port)), NOT_ALLOWED, "{port}");
        }
        // Metrics and readiness relay nothing, so they may be reached.
        for port in [15020, 15021] {
            assert_eq!(ask(&lab.adit, &to_address((lab.adit.v4, port).into())).1.code, 0, "{port}");
        }
        // The same port on another host is ordinary traffic.
        echo(&lab.server, 15080);
        assert_eq!(ask(&lab.adit, &to_address((lab.server.v4, 15080).into())).1.code, 0);
        adit.stop();
    });
}

#[test]
fn registry_only_reaches_what_the_mesh_knows() {
    let mesh = "workloads:\n\
         - { uid: w1, name: w1, namespace: default, workloadIps: [10.77.0.3], protocol: TCP, services: { default/svc.test: { 80: 7000 } } }\n\
         - { uid: w2, name: w2, namespace: default, workloadIps: [10.77.0.9], protocol: HBONE }\n\
         - { uid: w3, name: w3, namespace: default, workloadIps: [10.77.0.10], waypoint: { destination: /10.77.0.3, hboneMtlsPort: 15008 } }\n\
         services:\n\
         - { name: svc, namespace: default, hostname: svc.test, vips: [/10.99.0.1], ports: { 80: 7000 } }\n";
    isolated(move || {
        names("10.77.0.1 other.test\n10.77.0.3 known.test\n");
        let lab = Lab::new();
        echo(&lab.server, 7000);
        echo(&lab.client, 7000);
        let mut adit = lab.adit(&format!("{SETTINGS}egress: registryOnly\n"), mesh);
        adit.expect_log("unknown_destination");
        adit.expect_log("no_identity");
        // Five refusals before a connect, which a worker may log in a second.
        adit.expect_log("no_service_port");
        for request in [at("10.77.0.3:7000"), at("10.99.0.1:80"), to_name("svc.test", 80), to_name("10.77.0.3", 7000)] {
            assert_eq!(ask(&lab.adit, &request).1.code, 0, "{request:?}");
        }
        // What needs a tunnel is never carried in the clear.
        assert_eq!(refusal(&lab.adit, &at("10.77.0.9:7000")), FAILED, "there is no identity to open a tunnel with");
        assert_eq!(refusal(&lab.adit, &at("10.77.0.10:7000")), FAILED, "nor one to the waypoint");
        for request in [at("10.77.0.1:7000"), to_name("other.test", 7000), to_name("known.test", 7000)] {
            assert_eq!(refusal(&lab.adit, &request), NOT_ALLOWED, "{request:?}");
        }
        assert_eq!(refusal(&lab.adit, &to_name("svc.test", 81)), HOST_UNREACHABLE, "the service has no such port");
        adit.stop();
    });
}

#[test]
fn what_is_no_connect_without_authentication() {
    isolated(|| {
        let lab = Lab::new();
        let mut adit = lab.adit(SETTINGS, "");
        adit.expect_log("socks_protocol");
        let known = [1, 10, 77, 0, 3, 27, 88];
        for command in [0, 2, 3, 0xf0, 255] {
            assert_eq!(refusal(&lab.adit, &[&[5, command, 0][..], &known].concat()), 7, "command {command}");
        }
        for kind in [0, 2, 5, 255] {
            assert_eq!(refusal(&lab.adit, &[5, 1, 0, kind, 1, 2, 3, 4, 0, 80]), 8, "address type {kind}");
        }
        for name in [&b""[..], b"\xff\xfe", b"nul\0.test"] {
            assert_eq!(refusal(&lab.adit, &to_name(name, 80)), 1, "{name:?}");
        }
        // Another version in the request: not SOCKS5 any more, so no answer in its words.
        use std::io::Write;
        for greeting in [&[5, 1, 2][..], &[5, 0], &[5, 2, 1, 2]] {
            let mut client = knock(&lab.adit);
            client.write_all(greeting).expect("write");
            assert_eq!(read::<2>(&mut client), [5, 0xff], "{greeting:?}");
            assert_eq!(rest(&mut client), Some(Vec::new()), "{greeting:?}");
        }
        adit.stop();
    });
}

/// A name is text of a peer: it stays on its line and in its field, in both formats.
#[test]
fn names_cannot_forge_log_lines() {
    isolated(|| {
        names("");
        let lab = Lab::new();
        let evil = "a\n2026-01-01T00:00:00Z\terror\tforged\t\"x\" y='z'\u{1b}[31m\u{202e}\\ \r";
        for format in ["text", "json"] {
            let mut adit = lab.adit(&format!("{SETTINGS}log: {{ format: {format} }}\n"), "");
            assert_eq!(refusal(&lab.adit, &to_name(evil, 80)), HOST_UNREACHABLE);
            adit.expect_log("name_unresolved");
            let line = adit.wait_log("name_unresolved");
            assert!(line.chars().all(|c| c == '\t' || !c.is_control()), "{line:?}");
            assert!(!line.contains('\u{202e}'), "{line:?}");
            let requested = if format == "json" {
                let value: serde_json::Value = serde_json::from_str(&line).expect("one JSON object on a line");
                value["dst.requested"].as_str().expect("a string").to_owned()
            } else {
                let (_, rest) = line.split_once("dst.requested=\"").expect("the field");
                rest.to_owned()
            };
            assert!(requested.contains("a\\n2026") || requested.contains("a\\\\n2026"), "{requested:?}");
            assert!(!adit.log().iter().any(|line| line.starts_with("2026-01-01T00:00:00Z")), "a forged line");
            adit.stop();
        }
    });
}

/// A flood of refusals writes a few lines a second, and says how many it held back.
#[test]
fn refusals_cannot_flood_the_log() {
    isolated(|| {
        let lab = Lab::new();
        let mut adit = lab.adit(SETTINGS, "");
        adit.expect_log("local_destination");
        let count = 500;
        for _ in 0..count {
            assert_eq!(refusal(&lab.adit, &at("127.0.0.1:7000")), NOT_ALLOWED);
        }
        let metrics = until(LIMIT, "all to be accounted for", || {
            let scrape = crate::kit::daemon::get(&lab.adit, 15020, "/metrics")?;
            let wanted = format!("reason=\"local_destination\"}} {count}");
            pause(std::time::Duration::from_millis(20));
            scrape.lines().any(|line| line.contains(&wanted)).then_some(scrape)
        });
        let written = adit.log().iter().filter(|line| line.contains("local_destination")).count();
        assert!(written < count / 2, "{written} lines");
        assert!(metrics.contains("adit_log_lines_suppressed_total"), "{metrics}");
        adit.stop();
    });
}
