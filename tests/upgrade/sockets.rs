//! Which sockets move: by name and address, whatever has changed around them.

use std::net::TcpStream;
use std::os::unix::fs::FileTypeExt as _;
use std::process::Command;

use serde_json::{Value, json};

use crate::kit::door::{Dial, talk};
use crate::kit::isolate::finish;
use crate::kit::{Door, Family, LIMIT, Lab, isolated, isolated_in_cgroup, until};
use crate::line::{Line, PORT, Pair, runs, wait_gone};
use crate::world::{captured, request};

/// What a version says when it finds the changed settings before it is followed.
const RESTART: &str = "restart";

/// By both families, often enough to come to every worker.
fn carries_all(lab: &Lab, door: &Door) {
    for family in Family::BOTH {
        for _ in 0..8 {
            Pair::by(family, lab, door).talk();
        }
    }
}

/// Names of listeners and their addresses.
fn listening(line: &Line<'_>) -> Vec<(String, String)> {
    let status = line.status();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let listeners = status["connections"]["listeners"].as_array().expect("a list").iter();
    listeners.map(|listener| (text(&listener["name"]), text(&listener["address"]))).collect()
}

fn opens(line: &Line<'_>, address: &str) -> bool {
    line.host.run(|| TcpStream::connect(address)).is_ok()
}

#[test]
fn every_number_of_workers_follows_every_other() {
    isolated(|| {
        let lab = captured();
        let door = Door::open(&lab.server, PORT);
        let line = Line::start(&lab.adit, "workers: 2\n", "");
        // Two doors, three surfaces. A socket that was made stays, however few or many there are to serve it.
        for workers in [1, 4, 3, 2] {
            let before = line.pid();
            line.configure(&format!("workers: {workers}\n"));
            let report = line.upgraded();
            assert_eq!((&report["moved"], &report["opened"], &report["left"]), (&json!(7), &json!([]), &json!([])));
            assert_eq!(line.status()["workers"], workers);
            carries_all(&lab, &door);
            wait_gone(before, LIMIT);
        }
        line.stop(&[RESTART]);
    });
}

/// The kernel's map of inbound doors is one of sockets, which move on; no rule captures.
#[test]
fn inbound_capture_at_the_sockets_goes_on() {
    isolated_in_cgroup(|cgroup| {
        finish(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]));
        let lab = Lab::new();
        let application = Door::open(&lab.adit, PORT);
        let line = Line::start(&lab.adit, "workers: 2\ncapture: connect\n", "");
        let arguments = ["redirect", "apply", "--kind", "connect", "--cgroup"];
        let applied = line.cli(&[&arguments[..], &[cgroup.to_str().expect("text")]].concat());
        let told = String::from_utf8_lossy(&applied.stdout).into_owned();
        assert!(applied.status.success() && !told.contains("by a rule"), "{applied:?}");
        for workers in [1, 4, 2] {
            let before = line.pid();
            line.configure(&format!("workers: {workers}\ncapture: connect\n"));
            line.upgraded();
            wait_gone(before, LIMIT);
            for family in Family::BOTH {
                for _ in 0..8 {
                    let to = (lab.adit.address(family), PORT).into();
                    let mut client = Dial::default().connect(&lab.client, to).expect("the door accepts");
                    let mut accepted = application.accept();
                    // From adit, on this host.
                    assert_eq!(accepted.peer.ip(), lab.adit.address(family));
                    talk(&mut client, &mut accepted.stream);
                }
            }
        }
        line.stop(&[RESTART]);
    });
}

#[test]
fn changed_addresses_are_opened_and_what_is_not_wanted_any_more_is_closed() {
    isolated(|| {
        let lab = captured();
        let door = Door::open(&lab.server, PORT);
        let line = Line::start(&lab.adit, "listen: { socks5: '127.0.0.1:15080', readiness: '127.0.0.1:15021' }\n", "");
        let first = line.pid();
        // So that what it has closed is not closed by its end.
        let mut kept = Pair::new(&lab, &door);
        // Metrics and SOCKS5 move, the readiness port is off.
        line.configure(
            "workers: 1\nlisten: { socks5: '127.0.0.1:15081', readiness: off, metrics: '127.0.0.1:15022' }\n",
        );
        let report = line.upgraded();
        assert_eq!(report["opened"], json!(["metrics", "socks5"]), "{report}");
        let left = report["left"].as_array().expect("a list");
        for name in ["metrics", "readiness", "socks5"] {
            assert!(left.contains(&json!(name)), "{report}");
        }
        for closed in ["127.0.0.1:15080", "127.0.0.1:15020", "127.0.0.1:15021"] {
            until(LIMIT, &format!("{closed} to be closed"), || (!opens(&line, closed)).then_some(()));
        }
        kept.talk();
        assert!(runs(first));
        drop(kept);
        wait_gone(first, LIMIT);
        assert!(listening(&line).contains(&("socks5".into(), "127.0.0.1:15081".into())));
        assert!(opens(&line, "127.0.0.1:15081") && opens(&line, "127.0.0.1:15022"));
        carries_all(&lab, &door);

        // Port 0 is any port, and so the one that it was.
        line.configure("workers: 1\nlisten: { socks5: '127.0.0.1:0', metrics: '127.0.0.1:15022' }\n");
        let report = line.upgraded();
        assert_eq!(report["opened"], json!(["readiness"]), "{report}");
        assert!(listening(&line).contains(&("socks5".into(), "127.0.0.1:15081".into())));
        let useless = ["a socket that was given is of no use", "a socket was given for a listener that is off"];
        for text in useless {
            assert!(line.log().contains(text), "what is closed is said: {text}");
        }
        let last = line.pid();
        line.stop(&[useless[0], useless[1], RESTART]);
        wait_gone(last, LIMIT);
    });
}

/// The file of a Unix socket stays as long as somebody listens on it.
#[test]
fn an_admin_socket_file_moves_too() {
    isolated(|| {
        let lab = captured();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("admin.sock");
        let settings = format!("listen: {{ admin: 'unix:{}' }}\n", file.display());
        let mut line = Line::start(&lab.adit, &settings, "");
        let address = format!("unix:{}", file.display());
        let pid = || {
            let output = line.cli(&["status", "--json", "--admin", &address]);
            let status: Value =
                serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
            status["pid"].as_i64().expect("a number")
        };
        let mut before = pid();
        for _ in 0..3 {
            let output = line.cli(&["upgrade", "--admin", &address]);
            assert!(output.status.success(), "{output:?}");
            let after = until(LIMIT, "another process", || Some(pid()).filter(|pid| *pid != before));
            before = after;
        }
        let first = line.first();
        wait_gone(first, LIMIT);
        assert!(std::fs::metadata(&file).expect("the file is there").file_type().is_socket());
        let output = line.cli(&["drain", "--admin", &address]);
        assert!(output.status.success(), "{output:?}");
        until(LIMIT, "the file to be removed", || (!file.exists()).then_some(()));
        assert!(line.wait_first().success());
        until(LIMIT, "nobody to answer", || request(&lab.adit, 15020, "GET", "/metrics").is_none().then_some(()));
    });
}
