//! What the ports and commands tell is what is, and can be given back as input.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use crate::curl::admin;
use crate::kit::{Host, LIMIT, Lab, isolated, until};
use crate::program::{Done, adit, need};
use crate::serve::echo;
use crate::wire::{SETTINGS, ask, to_address, to_name};

const MESH: &str = "\
workloads:
  - { uid: w1, name: web-1, namespace: shop, serviceAccount: web, workloadIps: [10.77.0.3, 'fd77::3'], protocol: TCP, node: n1, services: { shop/web.shop.svc.cluster.local: { 80: 7000 } } }
  - { uid: w2, name: app, namespace: shop, serviceAccount: app, workloadIps: [10.77.0.2], protocol: HBONE, capacity: 3, status: Unhealthy, locality: { region: r, zone: z } }
services:
  - { name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [/10.99.0.1], ports: { 80: 7000 } }
";

fn check(host: &Host, files: &[&Path]) -> Done {
    let mut arguments = vec!["check"];
    for file in files {
        arguments.extend(["--config", file.to_str().expect("text")]);
    }
    adit(host, &arguments)
}

#[test]
fn the_mesh_round_trips() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        let daemon = lab.adit(SETTINGS, MESH);
        let first = admin(&lab.adit, "/mesh", &[]);
        let document = first.json();
        assert_eq!(document["schemaVersion"], 1);
        assert_eq!(document["workloads"].as_array().map(Vec::len), Some(2));
        assert_eq!(document["hash"].as_str().map(str::len), Some(64));
        assert_eq!(document["rejected"], serde_json::Value::Null);
        assert!(document["source"][0].as_str().expect("a path").ends_with("mesh.yaml"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("dump.yaml"), &first.body).expect("our own folder");
        let settings = folder.path().join("adit.yaml");
        fs::write(&settings, format!("{SETTINGS}mesh: {{ files: [dump.yaml] }}\n")).expect("our own folder");
        let said = check(&lab.adit, &[&settings]).ok();
        assert!(said.contains("2 workloads, 1 service and 0 policies"), "{said}");

        // A file that is refused is told about, and changes nothing.
        daemon.replace("mesh.yaml", "workloads: [{ name: 3 }]\n");
        let refused = until(LIMIT, "the refusal", || {
            let document = admin(&lab.adit, "/mesh", &[]).json();
            (!document["rejected"].is_null()).then_some(document)
        });
        assert!(refused["rejected"]["errors"][0].as_str().expect("words").contains("mesh.yaml:1"), "{refused}");
        assert_eq!(refused["workloads"], document["workloads"]);

        // The dump as input gives the same dump.
        daemon.replace("mesh.yaml", &first.body);
        let second = until(LIMIT, "the dump in force", || {
            let document = admin(&lab.adit, "/mesh", &[]).json();
            (document["hash"] != refused["hash"]).then_some(document)
        });
        for section in ["workloads", "services", "policies"] {
            assert_eq!(second[section], document[section], "{section}");
        }
        let mut daemon = daemon;
        daemon.expect_log("mesh.yaml");
        daemon.stop();
    });
}

#[test]
fn the_settings_round_trip() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        let settings = format!(
            "{SETTINGS}connect: {{ timeout: 1500ms, backoff: 7ms }}\nrelay: {{ idleTimeout: 1h30m, zeroCopy: off }}\n\
             keepalive: {{ userTimeout: off }}\nlimits: {{ connections: 500, socks5: 7 }}\nshutdown: {{ deadline: off }}\n\
             metrics: {{ labels: [source_workload] }}\nlog: {{ filter: \"info,mesh=debug\" }}\nnode: here\n"
        );
        let daemon = lab.adit(&settings, "");
        let first = admin(&lab.adit, "/config", &[]);
        assert_eq!(first.json()["connect"]["timeout"], "1s500ms");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("dump.yaml");
        fs::write(&file, &first.body).expect("our own folder");
        check(&lab.adit, &[&file]).ok();
        daemon.stop();
        // A daemon on the dump says the same.
        let again = lab.adit(&first.body, "");
        assert_eq!(admin(&lab.adit, "/config", &[]).json(), first.json());
        again.stop();
    });
}

#[test]
fn connections_are_listed_with_both_ends() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        echo(&lab.server, 7000);
        let settings = format!("{SETTINGS}workload: {{ name: app, namespace: shop, serviceAccount: app }}\n");
        let daemon = lab.adit(&settings, MESH);
        assert_eq!(adit(&lab.adit, &["connections"]).ok(), "no connections\n");
        let (mut client, answer) = ask(&lab.adit, &to_name("web.shop.svc.cluster.local", 80));
        assert_eq!(answer.code, 0);
        client.write_all(b"hello").expect("write");
        client.read_exact(&mut [0; 5]).expect("the echo");
        let (mut passing, answer) = ask(&lab.adit, &to_address((lab.client.v4, 15021).into()));
        // Nobody is there; a refusal is over at once, and listed no more.
        assert_eq!(answer.code, 5);
        let _ = passing.read_to_end(&mut Vec::new());
        drop(passing);

        let list = until(LIMIT, "one connection with its bytes", || {
            let text = adit(&lab.adit, &["connections", "--json"]).ok();
            let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            let list = list["connections"].as_array().expect("a list").clone();
            (list.len() == 1 && list[0]["bytesFromUpstream"] == 5).then_some(list)
        });
        let one = &list[0];
        for (key, value) in [
            ("direction", "outbound"),
            ("listener", "socks5"),
            ("originalDst", "10.99.0.1:80"),
            ("upstream", "10.77.0.3:7000"),
            ("service", "web.shop.svc.cluster.local"),
            ("state", "open"),
        ] {
            assert_eq!(one[key], value, "{key}: {one}");
        }
        assert_eq!(one["downstream"], client.local_addr().expect("an address").to_string());
        assert_eq!(one["bytesFromDownstream"], 5);
        assert_eq!((&one["source"]["workload"], &one["source"]["namespace"]), (&"app".into(), &"shop".into()), "{one}");
        assert_eq!(one["destination"]["workload"], "web-1", "{one}");
        let (age, idle) = (one["ageMs"].as_u64().expect("a number"), one["idleMs"].as_u64().expect("a number"));
        assert!(idle <= age && age < 60_000, "{one}");
        for (end, account) in [("source", "app"), ("destination", "web")] {
            assert_eq!(one[end]["identity"], format!("spiffe://cluster.local/ns/shop/sa/{account}"), "{one}");
        }

        let table = adit(&lab.adit, &["connections"]).ok();
        let (head, row) = table.split_once('\n').expect("two lines");
        for column in ["ID", "DIRECTION", "CLIENT", "UPSTREAM", "FROM", "TO", "SERVICE", "AGE", "IDLE", "STATE"] {
            assert!(head.contains(column), "{column}: {table}");
        }
        assert!(row.contains("shop/app") && row.contains("shop/web-1") && row.contains("10.77.0.3:7000"), "{table}");

        client.shutdown(std::net::Shutdown::Write).expect("shutdown");
        client.read_to_end(&mut Vec::new()).expect("a clean end");
        until(LIMIT, "an empty list", || (adit(&lab.adit, &["connections"]).ok() == "no connections\n").then_some(()));
        let status = adit(&lab.adit, &["status", "--json"]).ok();
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        assert_eq!((&status["ready"], &status["mesh"]["counts"]["workloads"]), (&true.into(), &2.into()));
        assert_eq!(status["pid"], daemon.pid().as_raw_nonzero().get());
        assert!(adit(&lab.adit, &["status"]).ok().contains("ready"));
        let mut daemon = daemon;
        daemon.expect_log("connect_refused");
        daemon.stop();
    });
}

/// The same connection, explained from the files and by the daemon that has read them.
#[test]
fn a_connection_is_explained_from_files_and_live() {
    const POLICIES: &str = "policies:\n- { name: only-web, namespace: shop, scope: Namespace, action: Allow, dryRun: false, \
         rules: [[[{ principals: [{ exact: cluster.local/ns/shop/sa/web }] }]]] }\n";
    isolated(|| {
        let lab = Lab::new();
        let mesh = format!("{MESH}{POLICIES}");
        let daemon = lab.adit(SETTINGS, &mesh);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let settings = folder.path().join("adit.yaml");
        fs::write(folder.path().join("mesh.yaml"), &mesh).expect("our own folder");
        fs::write(&settings, format!("{SETTINGS}mesh: {{ files: [mesh.yaml] }}\n")).expect("our own folder");
        let config = ["--config", settings.to_str().expect("text")];
        // (from, to, exit code, what is told)
        let rows: [(&str, &str, i32, &[&str]); 4] = [
            (
                "10.77.0.3",
                "10.99.0.1:80",
                1,
                &[
                    "service shop/web.shop.svc.cluster.local, port 80 to 7000",
                    "in the clear to 10.77.0.3:7000",
                    "ALLOW shop/only-web (Namespace) does not match: rule 1, clause 1: principals",
                    "verdict      refused: policy_denied: allow policies exist, but none allowed",
                ],
            ),
            ("10.77.0.3", "10.77.0.2:80", 0, &["tunnel to 10.77.0.2:15008", "allowed by: shop/only-web"]),
            ("10.77.0.3", "10.99.0.1:81", 1, &["no_service_port"]),
            ("10.77.0.9", "192.0.2.1:443", 0, &["passed through", "verdict      allowed"]),
        ];
        for (from, to, code, told) in rows {
            let asked = ["explain", "--from", from, "--to", to];
            let offline = adit(&lab.adit, &[&asked[..], &config].concat());
            let live = adit(&lab.adit, &[&asked[..], &["--live"]].concat());
            for (way, said) in [("offline", &offline), ("live", &live)] {
                assert_eq!(said.code, Some(code), "{way} {to}: {}{}", said.out, said.err);
                for told in told {
                    assert!(said.out.contains(told), "{way} {to}: no {told:?} in\n{}", said.out);
                }
            }
            let document: serde_json::Value =
                serde_json::from_str(&adit(&lab.adit, &[&asked[..], &config, &["--json"]].concat()).out).expect("JSON");
            assert_eq!(document["verdict"]["allowed"], code == 0, "{document}");
        }
        let wrong = adit(&lab.adit, &["explain", "--from", "nowhere", "--to", "10.0.0.1:80"]);
        assert_eq!(wrong.code, Some(64), "{}", wrong.err);
        daemon.stop();
    });
}
