//! Inbound capture by the sockets: a program that the kernel asks who listens, in place of the one rule that there is where no BPF
//! file system is mounted (see `connect.rs`). adit is played by listening sockets.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use adit::net::redirect::{self, Kind, Options};

use crate::command::succeeds;
use crate::connect::{apply, at, dial, options, tracks};
use crate::kit::daemon::Adit;
use crate::kit::door::{Dial, talk};
use crate::kit::isolate::finish;
use crate::kit::{Door, Family, Host, LIMIT, Lab, isolated_in_cgroup, until};

/// In this test's own mount namespace.
fn mount_bpf() {
    finish(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]));
}

/// adit's inbound door.
fn door(host: &Host) -> Door {
    Door::capture(host, 15006, 1337, false)
}

/// Links of whatever namespaces are kept there.
fn kept() -> usize {
    let names = std::fs::read_dir("/sys/fs/bpf").expect("the BPF file system");
    names
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("adit")))
        .count()
}

fn refused(host: &Host, to: SocketAddr) {
    let error = Dial::default().connect(host, to).expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

/// Whether the connection is captured, with its destination.
fn captured(lab: &Lab, door: &Door, to: SocketAddr) {
    let mut client = dial(&lab.client, to);
    let mut accepted = door.accept();
    assert_eq!((accepted.original, accepted.peer), (to, client.local_addr().expect("an address")));
    talk(&mut client, &mut accepted.stream);
}

fn reaches(client: &Host, application: &Door, to: SocketAddr) -> (TcpStream, TcpStream) {
    let mut stream = dial(client, to);
    let mut accepted = application.accept().stream;
    talk(&mut stream, &mut accepted);
    (stream, accepted)
}

#[test]
fn inbound_connections_are_captured_without_a_rule() {
    isolated_in_cgroup(|cgroup| {
        mount_bpf();
        let lab = Lab::new();
        let ours = door(&lab.adit);
        let application = Door::open(&lab.adit, 8080);
        let tunnels = Door::open(&lab.adit, 15008);
        // Older than the capture: it stays as it is.
        let (mut older, mut direct) = reaches(&lab.client, &application, at(&lab.adit, Family::V4, 8080));
        let mut chosen = options(cgroup);
        chosen.inbound.exclude_ports = "8081".parse().expect("ports");
        apply(&lab.adit, &chosen);
        assert_eq!((lab.adit.output("nft", &["list", "ruleset"]), kept()), (String::new(), 1));
        let excluded = Door::open(&lab.adit, 8081);
        for family in Family::BOTH {
            captured(&lab, &ours, at(&lab.adit, family, 8080));
            // Nobody but adit listens there.
            captured(&lab, &ours, at(&lab.adit, family, 9999));
            reaches(&lab.client, &tunnels, at(&lab.adit, family, 15008));
            reaches(&lab.client, &excluded, at(&lab.adit, family, 8081));
            // From this namespace, adit's own among it.
            reaches(&lab.adit, &application, at(&lab.adit, family, 8080));
            // Answers from outside.
            let server = Door::open(&lab.server, 9000);
            let marked = Dial { mark: Some(1337), ..Dial::default() };
            let mut upstream = marked.connect(&lab.adit, at(&lab.server, family, 9000)).expect("adit's own");
            talk(&mut upstream, &mut server.accept().stream);
        }
        // adit to an address that came later, from that address.
        lab.adit.ip("addr add 10.88.0.1/24 dev eth0\naddr add fd88::1/64 dev eth0 nodad\n");
        for ip in ["10.88.0.1", "fd88::1"] {
            let to = SocketAddr::new(ip.parse().expect("an address"), 8080);
            let marked = Dial { mark: Some(1337), ..Dial::default() };
            let mut upstream = marked.connect(&lab.adit, to).expect("adit's own");
            talk(&mut upstream, &mut application.accept().stream);
        }
        talk(&mut older, &mut direct);
        assert!(ours.is_quiet() && application.is_quiet() && !tracks(&lab.adit));
        // The kernel keeps nothing of a client that it answers with a cookie.
        lab.adit.sysctl("ipv4/tcp_syncookies", "2");
        for family in Family::BOTH {
            captured(&lab, &ours, at(&lab.adit, family, 8080));
        }
        // Where adit does not listen, nobody does.
        drop(ours);
        for family in Family::BOTH {
            refused(&lab.client, at(&lab.adit, family, 8080));
        }
        let ours = door(&lab.adit);
        for family in Family::BOTH {
            captured(&lab, &ours, at(&lab.adit, family, 8080));
        }
        chosen.inbound.exclude_cidrs = Family::BOTH.map(|family| lab.client.address(family).into()).to_vec();
        apply(&lab.adit, &chosen);
        for family in Family::BOTH {
            reaches(&lab.client, &application, at(&lab.adit, family, 8080));
        }
        lab.adit.run(redirect::remove).expect("removed");
        assert_eq!(kept(), 0);
        for family in Family::BOTH {
            refused(&lab.client, at(&lab.adit, family, 9999));
        }
        assert!(ours.is_quiet());
    });
}

/// Applied again and again, by the sockets and by a rule, none goes past adit and none is refused.
#[test]
fn no_inbound_connection_goes_past_adit_while_it_is_applied() {
    isolated_in_cgroup(|cgroup| {
        mount_bpf();
        let lab = Lab::new();
        // Both kinds lead to it.
        let ours = Door::capture(&lab.adit, 15006, 1337, true);
        let application = Door::open(&lab.adit, 8080);
        apply(&lab.adit, &options(cgroup));
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let clients = scope.spawn(|| {
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    for family in Family::BOTH {
                        captured(&lab, &ours, at(&lab.adit, family, 8080));
                        count += 1;
                    }
                }
                count
            });
            for round in 0..12 {
                let kind = if round % 3 == 2 { Kind::Tproxy } else { Kind::Connect };
                let cgroup = (kind == Kind::Connect).then(|| cgroup.to_owned());
                apply(&lab.adit, &Options { kind, cgroup, ..Options::default() });
                assert_eq!(kept(), usize::from(kind == Kind::Connect));
            }
            over.store(true, Ordering::Relaxed);
            assert!(clients.join().expect("the clients") > 12);
        });
        assert!(application.is_quiet());
    });
}

#[test]
fn a_rollback_ends_it() {
    isolated_in_cgroup(|cgroup| {
        mount_bpf();
        let lab = Lab::new();
        let (ours, application) = (door(&lab.adit), Door::open(&lab.adit, 8080));
        let to = at(&lab.adit, Family::V4, 8080);
        let for_a_moment = Options { rollback_after: Some(Duration::from_secs(1)), ..options(cgroup) };
        apply(&lab.adit, &for_a_moment);
        captured(&lab, &ours, to);
        until(LIMIT, "the rollback", || {
            let _client = dial(&lab.client, to);
            (!application.is_quiet()).then(|| application.accept())
        });
        apply(&lab.adit, &Options { rollback_after: Some(Duration::from_secs(3600)), ..options(cgroup) });
        lab.adit.run(redirect::confirm).expect("in time");
        while !ours.is_quiet() {
            ours.accept();
        }
        captured(&lab, &ours, to);
    });
}

/// Whoever applies must see adit, if it listens already; if not, a rule does it.
#[test]
fn where_adit_cannot_be_seen_a_rule_captures() {
    isolated_in_cgroup(|cgroup| {
        mount_bpf();
        let lab = Lab::new();
        let ours = Door::capture(&lab.adit, 15006, 1337, true);
        let flags = format!("redirect apply --force --kind connect --cgroup {}", cgroup.display());
        let program = env!("CARGO_BIN_EXE_adit");
        let apart = ["--pid", "--fork", "--mount-proc", "--", program];
        let arguments: Vec<&str> = apart.into_iter().chain(flags.split(' ')).collect();
        let told = lab.adit.output("unshare", &arguments);
        assert!(told.contains("by a rule") && told.contains("port 15006"), "{told}");
        assert_eq!(kept(), 0);
        captured(&lab, &ours, at(&lab.adit, Family::V4, 8080));
        let told = succeeds(&lab.adit, &flags);
        assert!(!told.contains("by a rule"), "{told}");
        assert_eq!((lab.adit.output("nft", &["list", "ruleset"]), kept()), (String::new(), 1));
        captured(&lab, &ours, at(&lab.adit, Family::V4, 8080));
        // And where there is no file system for it.
        finish(Command::new("umount").arg("/sys/fs/bpf"));
        let told = succeeds(&lab.adit, &flags);
        assert!(told.contains("by a rule") && told.contains("no BPF file system"), "{told}");
        assert!(lab.adit.output("nft", &["list", "ruleset"]).contains("chain inbound"));
        captured(&lab, &ours, at(&lab.adit, Family::V4, 8080));
        assert!(Path::new("/sys/fs/bpf").exists());
    });
}

/// Every worker has a door of its own.
#[test]
fn every_worker_of_the_daemon_gets_connections() {
    isolated_in_cgroup(|cgroup| {
        mount_bpf();
        let lab = Lab::new();
        let mut daemon = Adit::start(&lab.adit, "capture: connect\nworkers: 3\n", "");
        daemon.wait_ready(&lab.adit);
        daemon.expect_log("source preservation is off");
        let told = succeeds(&lab.adit, &format!("redirect apply --kind connect --cgroup {}", cgroup.display()));
        assert!(!told.contains("by a rule"), "{told}");
        let application = Door::open(&lab.adit, 8080);
        let mut open = Vec::new();
        for family in Family::BOTH {
            for _ in 0..20 {
                open.push(reaches(&lab.client, &application, at(&lab.adit, family, 8080)));
            }
        }
        let listed = lab.adit.output(env!("CARGO_BIN_EXE_adit"), &["connections", "--json"]);
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
        let ids = listed["connections"].as_array().expect("a list").iter().map(|one| one["id"].as_u64());
        let workers: Vec<u64> = ids.map(|id| id.expect("a number") >> 48).collect();
        assert_eq!(workers.len(), open.len(), "past adit");
        for worker in 0..3 {
            assert!(workers.contains(&worker), "{workers:?}");
        }
        drop(open);
        assert!(!tracks(&lab.adit));
        succeeds(&lab.adit, "redirect remove");
        daemon.stop();
    });
}
