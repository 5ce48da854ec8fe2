//! Connections that would come back to adit are refused at once, in whatever form they name it, on every door.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use adit::net::redirect::{self, Kind, Options, Safeguards};

use crate::bytes::End;
use crate::kit::door::Dial;
use crate::kit::{Adit, Door, Family, Host, LIMIT, Lab, isolated};
use crate::scene::{KINDS, MESH, NO_RECORDS, Scene, at, captured_lab, dial, fate, probe, settings};

/// 50 ms on an idle machine.
const AT_ONCE: Duration = Duration::from_secs(4);

/// Every way to write an address of host `adit`.
const FORMS: [&str; 9] =
    ["127.0.0.1", "127.9.9.9", "0.0.0.0", "10.77.0.2", "::1", "::", "fd77::2", "::ffff:127.0.0.1", "::ffff:10.77.0.2"];

fn address(form: &str, port: u16) -> SocketAddr {
    SocketAddr::new(form.parse().expect("an IP address"), port)
}

/// What a refused loop may change: it is counted, it cost at most one connection more, and nobody was dialled.
struct Before {
    refused: f64,
    accepted: f64,
    attempts: f64,
}

impl Before {
    fn look(scene: &Scene) -> Self {
        Self {
            refused: scene.metric("adit_loop_refused_total", &[]),
            accepted: scene.metric("adit_connections_accepted_total", &[]),
            attempts: scene.metric("adit_connect_attempts_total", &[]),
        }
    }

    fn check(&self, scene: &Scene, what: &str) {
        scene.wait_metric("adit_loop_refused_total", &[], self.refused + 1.0);
        scene.wait_metric("adit_connections_open", &[], 0.0);
        let accepted = scene.metric("adit_connections_accepted_total", &[]) - self.accepted;
        assert!((1.0..=2.0).contains(&accepted), "{what}: {accepted} connections");
        assert_eq!(scene.metric("adit_connect_attempts_total", &[]), self.attempts, "{what} was dialled");
    }
}

fn refused(scene: &Scene, what: &str, host: &Host, to: SocketAddr) {
    let before = Before::look(scene);
    let begun = Instant::now();
    assert_eq!(fate(host, to).1, End::Reset, "{what}");
    assert!(begun.elapsed() < AT_ONCE, "{what}: {:?}", begun.elapsed());
    before.check(scene, what);
}

pub(crate) fn direct_hits(kind: Kind) {
    let scene = Scene::new(kind, NO_RECORDS, MESH);
    for port in [15001, 15006] {
        for form in FORMS {
            let to = address(form, port);
            refused(&scene, &to.to_string(), &scene.lab.adit, to);
        }
        for family in Family::BOTH {
            let to = at(&scene.lab.adit, family, port);
            refused(&scene, &format!("{to} from outside"), &scene.lab.client, to);
        }
    }
    scene.adit.stop();
}

#[test]
fn own_doors_are_refused_in_every_form_redirect() {
    isolated(|| direct_hits(Kind::Redirect));
}

#[test]
fn own_doors_are_refused_in_every_form_tproxy() {
    isolated(|| direct_hits(Kind::Tproxy));
}

/// Anyone can cause them, so the log does not grow with their number; the count does.
#[test]
fn refused_loops_are_logged_at_a_limited_rate() {
    const LOOPS: u32 = 200;
    isolated(|| {
        let mut scene = Scene::new(Kind::Redirect, "workers: 1", MESH);
        for text in ["loop_refused", "their lines were left out"] {
            scene.adit.expect_log(text);
        }
        let begun = Instant::now();
        for _ in 0..LOOPS {
            assert_eq!(fate(&scene.lab.adit, address("127.0.0.1", 15001)).1, End::Reset);
        }
        scene.wait_metric("adit_loop_refused_total", &[], f64::from(LOOPS));
        scene.adit.wait_log("their lines were left out");
        let seconds = usize::try_from(begun.elapsed().as_secs()).expect("small") + 1;
        let lines = scene.records().len();
        assert!((1..=10 * seconds).contains(&lines), "{lines} lines in {seconds} s");
        scene.wait_metric(
            "adit_log_lines_suppressed_total",
            &[],
            f64::from(LOOPS - u32::try_from(lines).expect("few")),
        );
        scene.adit.stop();
    });
}

#[test]
fn services_that_lead_to_own_doors_are_refused() {
    isolated(|| {
        for kind in KINDS {
            let mut mesh = String::from("workloads:\n");
            let mut services = String::from("services:\n");
            for (index, form) in FORMS.iter().enumerate() {
                // The last two name the same workload again.
                let uid = format!("door-{index}");
                mesh += &format!(
                    "- {{ uid: {uid}, name: {uid}, namespace: test, workloadIps: ['{form}'], network: '', services: \
                     {{ test/{uid}.svc: {{ 80: 15001, 81: 15006, 82: 15000 }} }} }}\n"
                );
                services += &format!(
                    "- {{ name: {uid}, namespace: test, hostname: {uid}.svc, vips: [10.96.1.{index}, 'fd96::1:{index}'], \
                     ports: {{ 80: 80, 81: 81, 82: 82 }} }}\n"
                );
            }
            mesh += &services;
            let scene = Scene::new(kind, NO_RECORDS, &mesh);
            for (index, form) in FORMS.iter().enumerate() {
                for vip in [format!("10.96.1.{index}"), format!("fd96::1:{index}")] {
                    for port in [80, 81, 82] {
                        let to = address(&vip, port);
                        refused(&scene, &format!("{kind} {form} by {to}"), &scene.lab.adit, to);
                    }
                }
            }
            scene.adit.stop();
        }
    });
}

/// Greeting and request for an address; the whole answer to the request.
fn socks(scene: &Scene, to: SocketAddr) -> (TcpStream, [u8; 2]) {
    let mut stream = scene.dial(SocketAddr::from((Ipv4Addr::LOCALHOST, 15080)));
    let mut request = vec![5, 1, 0, 5, 1, 0];
    match to {
        SocketAddr::V4(to) => {
            request.push(1);
            request.extend(to.ip().octets());
        }
        SocketAddr::V6(to) => {
            request.push(4);
            request.extend(to.ip().octets());
        }
    }
    request.extend(to.port().to_be_bytes());
    stream.write_all(&request).expect("write");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).expect("a reply");
    assert_eq!(answer[..3], [5, 0, 5]);
    (stream, [answer[2], answer[3]])
}

#[test]
fn socks_requests_for_own_doors_are_refused() {
    isolated(|| {
        let more = format!("{NO_RECORDS}listen: {{ socks5: '127.0.0.1:15080' }}\nsocks5AllowLocal: true");
        let scene = Scene::new(Kind::Redirect, &more, MESH);
        for port in [15001, 15006, 15080, 15000] {
            for form in FORMS {
                let before = Before::look(&scene);
                let begun = Instant::now();
                let (stream, reply) = socks(&scene, address(form, port));
                assert_eq!(reply, [5, 2], "{form} {port}: not allowed");
                assert!(begun.elapsed() < AT_ONCE, "{form} {port}: {:?}", begun.elapsed());
                drop(stream);
                before.check(&scene, form);
            }
        }
        // Metrics and readiness are not own doors: they relay nothing.
        for form in ["127.0.0.1", "10.77.0.2", "::1"] {
            for (port, path) in [(15020, "/metrics"), (15021, "/healthz/ready")] {
                let (mut stream, reply) = socks(&scene, address(form, port));
                assert_eq!(reply, [5, 0], "{form} {port}");
                let mut rest = [0; 20];
                let bound = if form.contains(':') { 20 } else { 8 };
                stream.read_exact(&mut rest[..bound]).expect("the bound address");
                let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).expect("write");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).expect("an answer");
                assert!(answer.starts_with("HTTP/1.1 200"), "{form} {port}: {answer}");
            }
        }
        scene.adit.stop();
    });
}

#[test]
fn metrics_and_readiness_stay_reachable() {
    isolated(|| {
        for kind in KINDS {
            let scene = Scene::new(kind, "", MESH);
            for host in [&scene.lab.adit, &scene.lab.client] {
                for family in Family::BOTH {
                    for (port, path) in [(15020, "/metrics"), (15021, "/healthz/ready")] {
                        let to = at(&scene.lab.adit, family, port);
                        assert!(probe(host, to, path).is_some(), "{kind}: {to} from {}", host.name);
                    }
                }
            }
            scene.adit.stop();
        }
    });
}

/// Nothing marks adit's own connections, and nobody told the rules by which user adit runs: the worst case.
#[test]
fn a_loop_that_the_rules_allow_ends_after_one_connection_more() {
    isolated(|| {
        for kind in KINDS {
            let lab = Lab::new();
            let options = Options { kind, mark: None, uids: vec![4711], ..Options::default() };
            let unasked = Safeguards { host: false, readiness: None };
            lab.adit.run(|| redirect::apply(&options, &unasked)).expect("the rules are applied");
            let more = format!("{NO_RECORDS}packetMark: off\npreserveSource: off");
            let scene = Scene { adit: lab.adit(&settings(kind, &more), MESH), lab };
            let server = Door::open(&scene.lab.server, 8080);
            for family in Family::BOTH {
                let before = Before::look(&scene);
                let begun = Instant::now();
                let (_, end) = fate(&scene.lab.adit, at(&scene.lab.server, family, 8080));
                assert_eq!(end, End::Reset, "{kind} {family:?}");
                assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
                scene.wait_metric("adit_loop_refused_total", &[], before.refused + 1.0);
                scene.wait_metric("adit_connections_open", &[], 0.0);
                let accepted = scene.metric("adit_connections_accepted_total", &[]) - before.accepted;
                assert_eq!(accepted, 2.0, "{kind} {family:?}");
                assert!(server.is_quiet());
            }
            scene.adit.stop();
        }
    });
}

/// The daemon without the right to mark: a script that drops it before it becomes the daemon.
fn without_marks(lab: &Lab, more: &str) -> Adit {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = folder.path().join("adit");
    let text = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-net_admin,-net_raw --inh-caps=-net_admin,-net_raw -- {} \"$@\"\n",
        env!("CARGO_BIN_EXE_adit")
    );
    std::fs::write(&script, text).expect("a writable folder");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("our own file");
    let program = script.to_str().expect("text");
    let adit = Adit::start_program(program, &lab.adit, &settings(Kind::Redirect, more), MESH);
    adit.wait_log("open files limit");
    adit
}

#[test]
fn without_the_right_to_mark_adit_does_not_start() {
    isolated(|| {
        let lab = captured_lab(Kind::Redirect);
        let mut adit = without_marks(&lab, "");
        let status = adit.wait(LIMIT);
        let log = adit.log().join("\n");
        assert_eq!(status.code(), Some(1), "{log}");
        for word in ["packetMark", "SO_MARK 1337", "hint:", "CAP_NET_ADMIN", "packetMark: off"] {
            assert!(log.contains(word), "{word} in:\n{log}");
        }
        // Nothing was opened meanwhile.
        assert!(Dial::default().connect(&lab.adit, address("127.0.0.1", 15001)).is_err());
    });
}

#[test]
fn without_the_right_to_mark_adit_starts_when_told_so() {
    isolated(|| {
        let lab = Lab::new();
        // Inside, everybody is user 0; so that something is captured at all, only the inbound direction is.
        let options = Options { mark: None, uids: vec![0], ..Options::default() };
        let unasked = Safeguards { host: false, readiness: None };
        lab.adit.run(|| redirect::apply(&options, &unasked)).expect("the rules are applied");
        let mut adit = without_marks(&lab, "packetMark: off\npreserveSource: off");
        adit.wait_ready(&lab.adit);
        let application = Door::open(&lab.adit, 8080);
        for family in Family::BOTH {
            let mut client = dial(&lab.client, at(&lab.adit, family, 8080));
            let mut accepted = application.accept();
            assert_eq!(accepted.peer.ip(), lab.adit.address(family));
            crate::kit::door::talk(&mut client, &mut accepted.stream);
        }
        adit.stop();
    });
}
