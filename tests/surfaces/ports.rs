//! The three HTTP ports: every path, who is answered, in which form.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::curl::{admin, curl};
use crate::kit::daemon::get;
use crate::kit::{Adit, LIMIT, Lab, isolated, until};
use crate::program::{absent, adit, need, run, shell};
use crate::serve::echo;
use crate::wire::{SETTINGS, ask, to_address};

#[test]
fn every_path_answers_in_its_form() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        let daemon = lab.adit(SETTINGS, "{}");
        let json = "application/json";
        for (method, path, status, form) in [
            ("GET", "/", 200, "text/html; charset=utf-8"),
            ("GET", "/status", 200, json),
            ("GET", "/config", 200, json),
            ("GET", "/mesh", 200, json),
            ("GET", "/connections", 200, json),
            ("GET", "/logging", 200, json),
            ("GET", "/nothing", 404, json),
            ("GET", "/status/", 404, json),
            ("GET", "/../etc/passwd", 404, json),
            ("GET", "/reload", 405, json),
            ("GET", "/drain", 405, json),
            ("GET", "/quitquitquit", 405, json),
            ("POST", "/status", 405, json),
            ("DELETE", "/mesh", 405, json),
            ("TRACE", "/config", 405, json),
            ("POST", "/reload", 200, json),
        ] {
            let answer = admin(&lab.adit, path, &["--path-as-is", "-X", method, "-H", "X-Adit: 1"]);
            assert_eq!((answer.status, answer.content_type.as_str()), (status, form), "{method} {path}: {answer:?}");
            match form {
                _ if form == json && status == 200 => drop(answer.json()),
                _ if form == json => assert!(answer.json()["error"].is_string(), "{answer:?}"),
                _ => assert!(answer.body.starts_with("<!doctype html>"), "{answer:?}"),
            }
        }
        for (port, path, status) in [
            (15020, "/metrics", 200),
            (15020, "/stats/prometheus", 200),
            (15020, "/", 404),
            (15021, "/healthz/ready", 200),
            (15021, "/healthz/live", 200),
            (15021, "/healthz", 404),
        ] {
            // These are for others: any name will do, and any address.
            for address in ["127.0.0.1", "10.77.0.2", "[fd77::2]"] {
                let url = format!("http://{address}:{port}{path}");
                let answer = curl(lab.client_or_self(address), &["-H", "Host: prometheus.example", &url]);
                assert_eq!(answer.status, status, "{url}: {answer:?}");
            }
            let url = format!("http://127.0.0.1:{port}{path}");
            assert_eq!(curl(&lab.adit, &["--head", &url]).status, status);
            assert_eq!(curl(&lab.adit, &["-X", "POST", &url]).status, if status == 200 { 405 } else { 404 });
        }
        daemon.stop();
    });
}

impl Lab {
    /// Who asks for `address` of host `adit`.
    fn client_or_self(&self, address: &str) -> &crate::kit::Host {
        if address == "127.0.0.1" { &self.adit } else { &self.client }
    }
}

/// A web page in a browser of this machine is kept out: by Host, by Origin, by a header that it cannot add.
#[test]
fn the_admin_port_is_not_for_web_pages() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        let daemon = lab.adit(SETTINGS, "");
        for (arguments, status) in [
            (&["-H", "Host: localhost:15000"][..], 200),
            (&["-H", "Host: [::1]:15000"], 200),
            (&["-H", "Host: adit.example"], 403),
            (&["-H", "Host: 10.77.0.2:15000"], 403),
            (&["-H", "Host: localhost.example"], 403),
            (&["-H", "Host:"], 400),
            (&["-H", "Origin: http://localhost:15000"], 403),
            (&["-H", "Origin: null"], 403),
        ] {
            // Without any Host a request of HTTP/1.1 is malformed, or simply not answered: refused either way.
            let got = admin(&lab.adit, "/status", arguments).status;
            assert!(got == status || (status == 400 && got == 403), "{arguments:?}: {got}");
        }
        for (method, path) in [("POST", "/reload"), ("POST", "/drain"), ("PUT", "/logging")] {
            for arguments in [&[][..], &["-H", "X-Adit: 0"], &["-H", "X-Adit: 1", "-H", "Origin: http://localhost"]] {
                let all = [&["-X", method, "-d", "debug"], arguments].concat();
                assert_eq!(admin(&lab.adit, path, &all).status, 403, "{all:?} {path}");
            }
        }
        let all = ["-X", "POST", "-H", "Origin: http://localhost"];
        assert_eq!(admin(&lab.adit, "/quitquitquit", &all).status, 403);
        assert_eq!(admin(&lab.adit, "/logging", &[]).json()["filter"], "info", "nothing was changed");
        assert_eq!(admin(&lab.adit, "/status", &[]).json()["phase"], "ready");
        // Nobody listens beyond loopback.
        let away = run(&lab.client, "curl", &["--silent", "--max-time", "5", "http://10.77.0.2:15000/status"]);
        assert_eq!(away.code, Some(7), "{}", away.out);
        daemon.stop();
    });
}

#[test]
fn admin_on_a_unix_socket_is_its_owners_alone() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("admin.sock");
        let text = path.to_str().expect("text");
        let settings = SETTINGS.replace("listen: {", &format!("listen: {{ admin: \"unix:{text}\","));
        // What a daemon that was killed has left behind.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        let daemon = lab.adit(&settings, "");
        let mode = fs::metadata(&path).expect("the socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{mode:o}");
        let answer = curl(&lab.adit, &["--unix-socket", text, "http://whatever.example/status"]);
        assert_eq!(answer.json()["phase"], "ready");
        let answer = curl(&lab.adit, &["--unix-socket", text, "-H", "Origin: http://x", "http://localhost/status"]);
        assert_eq!(answer.status, 403);
        let status = adit(&lab.adit, &["status", "--json", "--admin", &format!("unix:{text}")]).ok();
        assert!(status.contains("\"phase\": \"ready\""), "{status}");
        // A live one is not taken over.
        let mut second = Adit::start(&lab.adit, &settings, "");
        assert_eq!(second.wait(LIMIT).code(), Some(1));
        let said = second.log().join("\n");
        assert!(said.contains(text) && said.contains("another process listens there"), "{said}");
        daemon.stop();
        assert!(!path.exists(), "the socket is removed");
    });
}

#[test]
fn metrics_come_in_the_form_that_is_asked_for() {
    isolated(|| {
        need(&["curl", "gzip"]);
        let lab = Lab::new();
        let daemon = lab.adit(SETTINGS, "");
        let url = "http://127.0.0.1:15020/metrics";
        for (accept, form) in [
            ("*/*", "text/plain; charset=utf-8"),
            ("text/plain;version=0.0.4", "text/plain; charset=utf-8"),
            ("application/openmetrics-text", "application/openmetrics-text;charset=utf-8;version=1.0.0"),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1",
                "application/openmetrics-text;charset=utf-8;version=1.0.0",
            ),
        ] {
            let answer = curl(&lab.adit, &["-H", &format!("Accept: {accept}"), url]);
            assert_eq!(answer.content_type, form, "{accept}");
            assert!(answer.body.ends_with("# EOF\n"), "{accept}");
        }
        for family in ["istio_build{", "process_open_fds", "adit_connections_open{", "adit_workers", "adit_fd_limit"] {
            assert!(curl(&lab.adit, &[url]).body.contains(&format!("\n{family}")), "{family}");
        }
        for gauge in ["process_open_fds", "process_max_fds"] {
            let body = curl(&lab.adit, &[url]).body;
            let value = body.lines().find_map(|line| line.strip_prefix(gauge)?.strip_prefix(' '));
            assert!(value.expect(gauge).parse::<u64>().expect("a number") > 0, "{gauge}");
        }
        let zipped = format!("curl --silent -H 'Accept-Encoding: gzip' {url} | gzip --decompress --stdout | tail -n 1");
        assert_eq!(shell(&lab.adit, &zipped).ok(), "# EOF\n");
        let size = |arguments: &str| -> u32 {
            let line = format!("curl --silent {arguments} {url} | wc -c");
            shell(&lab.adit, &line).ok().trim().parse().expect("a number")
        };
        assert!(size("-H 'Accept-Encoding: gzip'") < size("-H 'Accept-Encoding: gzip;q=0'") / 2);
        daemon.stop();
    });
}

/// promtool reads the older text format, in which the help of a counter belongs to its full name: it misses that, and
/// nothing else. Beyond what CI installs, so it is asked only where it is.
#[test]
fn promtool_has_no_other_complaint() {
    isolated(|| {
        if Command::new("promtool").arg("--version").output().is_err() {
            return absent("promtool");
        }
        let lab = Lab::new();
        echo(&lab.server, 7000);
        let daemon = lab.adit(SETTINGS, "");
        assert_eq!(ask(&lab.adit, &to_address((lab.server.v4, 7000).into())).1.code, 0);
        until(LIMIT, "the connection to be counted", || {
            get(&lab.adit, 15020, "/metrics")?.contains("istio_tcp_connections_closed_total{").then_some(())
        });
        let done = shell(&lab.adit, "curl --silent http://127.0.0.1:15020/metrics | promtool check metrics");
        let complaints: Vec<&str> = [&done.out, &done.err]
            .into_iter()
            .flat_map(|text| text.lines())
            .filter(|line| !line.ends_with("_total no help text"))
            .collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
        daemon.stop();
    });
}

#[test]
fn readiness_names_what_is_missing_and_drain_is_not_ready() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        echo(&lab.server, 7000);
        let missing = format!("{SETTINGS}mesh: {{ files: [later.yaml] }}\nshutdown: {{ deadline: 1h }}\n");
        let daemon = Adit::start(&lab.adit, &missing, "");
        let ready = "http://127.0.0.1:15021/healthz/ready";
        // The port answers before the files have been looked for.
        until(LIMIT, "what is missing", || {
            get(&lab.adit, 15021, "/healthz/ready").filter(|answer| answer.contains("later.yaml")).map(drop)
        });
        let answer = curl(&lab.adit, &[ready]);
        assert_eq!((answer.status, answer.content_type.as_str()), (503, "application/json"));
        let blockers = answer.json();
        let mesh = blockers.as_array().expect("a list").iter().find(|blocker| blocker["name"] == "mesh");
        let mesh = mesh.unwrap_or_else(|| panic!("{blockers}"));
        assert!(mesh["error"].as_str().expect("words").contains("later.yaml"), "{mesh}");
        assert!(mesh["since"].as_str().expect("a time").ends_with('Z'), "{mesh}");
        let check = adit(&lab.adit, &["healthcheck"]);
        assert_eq!(check.code, Some(1));
        assert!(check.err.contains("mesh") && check.err.contains("later.yaml"), "{}", check.err);
        assert_eq!(adit(&lab.adit, &["healthcheck", "--live"]).code, Some(0), "waiting is not being stuck");

        daemon.replace("later.yaml", "{}\n");
        until(LIMIT, "readiness", || (curl(&lab.adit, &[ready]).status == 200).then_some(()));
        assert_eq!(adit(&lab.adit, &["healthcheck"]).ok(), "ready\n");

        let (client, answer) = ask(&lab.adit, &to_address((lab.server.v4, 7000).into()));
        assert_eq!(answer.code, 0);
        assert_eq!(admin(&lab.adit, "/drain", &["-X", "POST", "-H", "X-Adit: 1"]).status, 200);
        until(LIMIT, "the drain", || (curl(&lab.adit, &[ready]).status == 503).then_some(()));
        assert_eq!(curl(&lab.adit, &[ready]).json()[0]["name"], "drain");
        assert_eq!(adit(&lab.adit, &["healthcheck"]).code, Some(1));
        assert_eq!(adit(&lab.adit, &["healthcheck", "--live"]).code, Some(0));
        drop(client);
        // A drain that has begun ends by itself; the signal of `stop` would be the second request.
        let mut daemon = daemon;
        assert_eq!(daemon.wait(LIMIT).code(), Some(0));
        let check = adit(&lab.adit, &["healthcheck"]);
        assert_eq!(check.code, Some(1));
        assert!(check.err.contains("hint:"), "{}", check.err);
    });
}

/// Jobs with sidecars end theirs so, without any header.
#[test]
fn quitquitquit_answers_and_drains() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        let mut daemon = lab.adit(SETTINGS, "");
        assert_eq!(admin(&lab.adit, "/quitquitquit", &["-X", "POST"]).status, 200);
        assert_eq!(daemon.wait(LIMIT).code(), Some(0));
    });
}

#[test]
fn the_log_filter_changes_while_running() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        echo(&lab.server, 7000);
        let daemon = lab.adit(SETTINGS, "");
        let put =
            |filter: &str| admin(&lab.adit, "/logging", &["-X", "PUT", "-H", "X-Adit: 1", "--data-binary", filter]);
        let filter = || admin(&lab.adit, "/logging", &[]).json()["filter"].clone();
        let connect = || assert_eq!(ask(&lab.adit, &to_address((lab.server.v4, 7000).into())).1.code, 0);
        let lines = || daemon.log().iter().filter(|line| line.contains("connection complete")).count();
        connect();
        daemon.wait_log("connection complete");
        assert_eq!(put("info,access=off").status, 200);
        assert_eq!(filter(), "info,access=off");
        connect();
        let closed = |count: usize| {
            until(LIMIT, "the connections to be counted", || {
                let scrape = get(&lab.adit, 15020, "/metrics")?;
                scrape.contains(&format!("reason=\"finished\"}} {count}\n")).then_some(())
            });
        };
        closed(2);
        for wrong in ["nonsense=maybe", "info,=", "=", "\u{1}"] {
            let answer = put(wrong);
            assert_eq!(answer.status, 400, "{wrong:?}");
            assert!(answer.json()["error"].is_string());
            assert_eq!(filter(), "info,access=off", "{wrong:?}");
        }
        // Reading everything again puts the settings' filter in force.
        assert_eq!(adit(&lab.adit, &["reload"]).code, Some(0));
        assert_eq!(filter(), "info");
        connect();
        until(LIMIT, "the third line", || (lines() >= 2).then_some(()));
        assert_eq!(lines(), 2, "the second connection was not to be logged");
        daemon.stop();
    });
}

/// Clients that break every rule of HTTP, at all three ports at once; the next ordinary request is answered.
#[test]
fn hostile_http_disturbs_nobody() {
    isolated(|| {
        use std::io::{Read, Write};
        let lab = Lab::new();
        let daemon = lab.adit(SETTINGS, "");
        let long = "x".repeat(100_000);
        let headers = "a: b\r\n".repeat(10_000);
        let requests = [
            "\r\n\r\n\r\n".to_owned(),
            "nonsense\r\n\r\n".to_owned(),
            "GET / HTTP/9.9\r\n\r\n".to_owned(),
            format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"),
            format!("PUT /logging HTTP/1.1\r\nHost: localhost\r\nX-Adit: 1\r\nContent-Length: 100000\r\n\r\n{long}"),
            "PUT /logging HTTP/1.1\r\nHost: localhost\r\nX-Adit: 1\r\nContent-Length: 99999999999999999999\r\n\r\n"
                .to_owned(),
            "PUT /logging HTTP/1.1\r\nHost: localhost\r\nX-Adit: 1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
                .to_owned(),
            "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(),
            "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}".to_owned(),
        ];
        for port in [15000, 15020, 15021] {
            let address: SocketAddr = ([127, 0, 0, 1], port).into();
            let dial = || crate::kit::door::Dial::default().connect(&lab.adit, address).expect("the port");
            // Those that never finish a header, or never read, as many as are let in.
            let idle: Vec<_> = (0..100)
                .map(|_| {
                    let mut stream = dial();
                    let _ = stream.write_all(b"GET / HT");
                    stream
                })
                .collect();
            for request in &requests {
                let mut stream = dial();
                stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
                let _ = stream.write_all(request.as_bytes());
                let mut answer = Vec::new();
                let start: String = request.chars().take(20).collect();
                // A reset is an end, too; silence is not.
                if let Err(error) = stream.read_to_end(&mut answer) {
                    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{port}: no end to {start:?}");
                }
                let answer = String::from_utf8_lossy(&answer);
                assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{port} {start:?}: {answer}");
            }
            drop(idle);
        }
        let answered = |port, path| get(&lab.adit, port, path).is_some_and(|answer| answer.starts_with("HTTP/1.1 200"));
        assert!(answered(15000, "/status") && answered(15020, "/metrics") && answered(15021, "/healthz/ready"));
        daemon.stop();
    });
}
