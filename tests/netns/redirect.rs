//! The capture rules in a real kernel: what they capture, what they leave alone, and that nothing is left of them.
//!
//! adit itself is played by two listening sockets, so that only the rules are under test.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use adit::net::namespace::{self, Verdict};
use adit::net::redirect::{self, Confirmation, Kind, Options, RedirectError, Safeguards};

use crate::kit::door::{Dial, talk};
use crate::kit::{Door, Family, Host, LIMIT, Lab, isolated, until};

const KINDS: [Kind; 2] = [Kind::Redirect, Kind::Tproxy];
const UNASKED: Safeguards = Safeguards { host: false, readiness: None };
/// A dial that is not captured and finds nobody must fail well before the usual limit.
const AT_ONCE: Duration = Duration::from_secs(5);

fn options(kind: Kind) -> Options {
    Options { kind, ..Options::default() }
}

fn apply(host: &Host, options: &Options) {
    host.run(|| redirect::apply(options, &UNASKED)).expect("the rules are applied");
}

/// adit's two capture doors.
struct Doors {
    outbound: Door,
    inbound: Door,
}

fn doors(host: &Host, kind: Kind) -> Doors {
    let open = |port| Door::capture(host, port, 1337, kind == Kind::Tproxy);
    Doors { outbound: open(15001), inbound: open(15006) }
}

impl Doors {
    fn are_quiet(&self) -> bool {
        self.outbound.is_quiet() && self.inbound.is_quiet()
    }
}

/// Runs `body` for both kinds and both families, each after an `apply` with `change` made to the options.
fn everywhere(change: impl Fn(&mut Options), body: impl Fn(&Lab, &Doors, Kind, Family)) {
    let lab = Lab::new();
    for kind in KINDS {
        let mut options = options(kind);
        change(&mut options);
        apply(&lab.adit, &options);
        let doors = doors(&lab.adit, kind);
        for family in Family::BOTH {
            body(&lab, &doors, kind, family);
            assert!(doors.are_quiet(), "{kind} {family:?}: a connection nobody expected");
        }
    }
}

fn at(host: &Host, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(host.address(family), port)
}

fn dial(host: &Host, to: SocketAddr) -> TcpStream {
    Dial::default().connect(host, to).unwrap_or_else(|error| panic!("{} to {to}: {error}", host.name))
}

fn refused(result: std::io::Result<TcpStream>) {
    let error = result.expect_err("must be refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

/// Until the kernel has done on its own what it does when a link comes up: a link-local address that has passed its check
/// for duplicates, which takes a second or two. Where IPv6 is off, there is none to wait for.
fn settle(host: &Host) {
    until(LIMIT, "the link to be settled", || {
        let addresses = host.output("ip", &["-6", "address", "show", "dev", "eth0"]);
        let settled = addresses.contains("inet6 fe80:") && !addresses.contains("tentative");
        let linked = !host.output("ip", &["-4", "route", "show", "table", "all"]).contains("linkdown");
        (linked && (settled || addresses.is_empty())).then_some(())
    });
}

/// Everything that an `apply` could change.
fn state(host: &Host) -> String {
    settle(host);
    let mut state = String::new();
    for (program, arguments) in [
        ("nft", "list ruleset"),
        ("ip", "-4 rule list"),
        ("ip", "-6 rule list"),
        ("ip", "-4 route show table all"),
        ("ip", "-6 route show table all"),
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        state.push_str(&host.output(program, &arguments));
    }
    state
}

#[test]
fn outbound_connections_are_captured_with_their_destination() {
    isolated(|| {
        everywhere(
            |_| {},
            |lab, doors, kind, family| {
                // Nobody listens there, and 192.0.2.7 does not even exist.
                let nowhere: IpAddr =
                    if family == Family::V4 { [192, 0, 2, 7].into() } else { [0x2001, 0xdb8, 0, 0, 0, 0, 0, 7].into() };
                for to in [at(&lab.server, family, 8080), at(&lab.server, family, 15006), SocketAddr::new(nowhere, 443)]
                {
                    let mut application = dial(&lab.adit, to);
                    let mut captured = doors.outbound.accept();
                    assert_eq!(captured.original, to, "{kind}");
                    assert_eq!(captured.peer, application.local_addr().expect("an address"));
                    assert_eq!(captured.peer.ip(), lab.adit.address(family));
                    talk(&mut application, &mut captured.stream);
                }
            },
        );
    });
}

#[test]
fn inbound_connections_are_captured_with_their_destination() {
    isolated(|| {
        everywhere(
            |_| {},
            |lab, doors, kind, family| {
                for port in [80, 9090, 15001, 15006] {
                    let to = at(&lab.adit, family, port);
                    let mut client = dial(&lab.client, to);
                    let mut captured = doors.inbound.accept();
                    assert_eq!(captured.original, to, "{kind}");
                    assert_eq!(captured.peer, client.local_addr().expect("an address"));
                    assert_eq!(captured.peer.ip(), lab.client.address(family));
                    talk(&mut client, &mut captured.stream);
                }
            },
        );
    });
}

#[test]
fn connections_to_this_namespace_are_left_alone() {
    isolated(|| {
        everywhere(
            |_| {},
            |lab, _, _, family| {
                let application = Door::open(&lab.adit, 7000);
                let loopback: IpAddr =
                    if family == Family::V4 { [127, 0, 0, 1].into() } else { "::1".parse().expect("::1") };
                for ip in [loopback, lab.adit.address(family)] {
                    let mut local = dial(&lab.adit, SocketAddr::new(ip, 7000));
                    talk(&mut local, &mut application.accept().stream);
                }
            },
        );
    });
}

#[test]
fn what_adit_opens_is_left_alone_by_its_mark() {
    isolated(|| {
        everywhere(
            |_| {},
            |lab, doors, _, family| {
                let server = Door::open(&lab.server, 8080);
                let to = at(&lab.server, family, 8080);
                // The mark's low twelve bits count; the others may be somebody else's.
                for mark in [1337, 0x8000_0539] {
                    let mut ours = Dial { mark: Some(mark), ..Dial::default() }.connect(&lab.adit, to).expect("direct");
                    let mut accepted = server.accept();
                    assert_eq!(accepted.original, to);
                    talk(&mut ours, &mut accepted.stream);
                }
                // Another mark is not ours.
                let _other = Dial { mark: Some(1338), ..Dial::default() }.connect(&lab.adit, to).expect("captured");
                assert_eq!(doors.outbound.accept().original, to);
                assert!(server.is_quiet());
            },
        );
    });
}

#[test]
fn what_adit_opens_is_left_alone_by_its_user() {
    isolated(|| {
        // Inside, everybody is user 0.
        for (uid, captured) in [(0, false), (4711, true)] {
            let lab = Lab::new();
            for kind in KINDS {
                apply(&lab.adit, &Options { mark: None, uids: vec![uid], ..options(kind) });
                let doors = doors(&lab.adit, kind);
                for family in Family::BOTH {
                    let server = Door::open(&lab.server, 8080);
                    let _stream = dial(&lab.adit, at(&lab.server, family, 8080));
                    let reached = if captured { doors.outbound.accept() } else { server.accept() };
                    assert_eq!(reached.original, at(&lab.server, family, 8080), "{kind} {uid}");
                    assert!(server.is_quiet() && doors.are_quiet());
                }
            }
        }
    });
}

#[test]
fn exclusions_hold_in_both_directions() {
    isolated(|| {
        let exclude = |options: &mut Options| {
            for filter in [&mut options.outbound, &mut options.inbound] {
                filter.exclude_ports = "25,8000-8010".parse().expect("ports");
                filter.include_ports = Some("20-30,8000-8100".parse().expect("ports"));
            }
            let nets = ["192.0.2.0/24", "2001:db8::/32"].map(|net| net.parse().expect("net"));
            options.outbound.exclude_cidrs = nets.to_vec();
        };
        everywhere(exclude, |lab, doors, kind, family| {
            for (port, captured) in [(24, true), (25, false), (8005, false), (8011, true), (8101, false)] {
                for (from, to, door) in
                    [(&lab.adit, &lab.server, &doors.outbound), (&lab.client, &lab.adit, &doors.inbound)]
                {
                    let direct = Door::open(to, port);
                    let to = at(to, family, port);
                    let _stream = dial(from, to);
                    let reached = if captured { door.accept() } else { direct.accept() };
                    assert_eq!(reached.original, to, "{kind}");
                    assert!(direct.is_quiet());
                }
            }
        });
        everywhere(
            |options| {
                options.inbound.exclude_cidrs =
                    ["10.77.0.1/32", "fd77::1/128"].map(|net| net.parse().expect("net")).to_vec()
            },
            |lab, doors, kind, family| {
                let application = Door::open(&lab.adit, 8080);
                let to = at(&lab.adit, family, 8080);
                let _excluded = dial(&lab.client, to);
                assert_eq!(application.accept().peer.ip(), lab.client.address(family), "{kind}");
                let _other = dial(&lab.server, to);
                assert_eq!(doors.inbound.accept().original, to);
            },
        );
    });
}

#[test]
fn adits_own_doors_are_reached_from_outside() {
    isolated(|| {
        everywhere(
            |_| {},
            |lab, _, _, family| {
                for port in [15008, 15020, 15021] {
                    let door = Door::open(&lab.adit, port);
                    let _probe = dial(&lab.client, at(&lab.adit, family, port));
                    assert_eq!(door.accept().original, at(&lab.adit, family, port));
                }
                // Admin listens on loopback only: nobody answers from outside.
                refused(Dial::default().connect(&lab.client, at(&lab.adit, family, 15000)));
            },
        );
    });
}

#[test]
fn forwarded_connections_are_left_alone() {
    isolated(|| {
        let lab = Lab::new();
        lab.server.ip("address add 10.88.0.1/32 dev lo\n");
        lab.adit.ip("route add 10.88.0.1 via 10.77.0.3\n");
        lab.client.ip("route add 10.88.0.1 via 10.77.0.2\n");
        lab.adit.sysctl("ipv4/ip_forward", "1");
        lab.adit.sysctl("ipv4/conf/all/send_redirects", "0");
        for kind in KINDS {
            apply(&lab.adit, &options(kind));
            let doors = doors(&lab.adit, kind);
            let server = Door::open(&lab.server, 8080);
            let to = SocketAddr::from(([10, 88, 0, 1], 8080));
            let mut client = dial(&lab.client, to);
            let mut accepted = server.accept();
            assert_eq!(accepted.peer, client.local_addr().expect("an address"), "{kind}");
            talk(&mut client, &mut accepted.stream);
            assert!(doors.are_quiet(), "{kind}");
        }
    });
}

#[test]
fn the_application_is_reached_from_the_clients_address() {
    isolated(|| {
        everywhere(
            |_| {},
            |lab, doors, kind, family| {
                let application = Door::open(&lab.adit, 8080);
                let to = at(&lab.adit, family, 8080);
                let mut client = dial(&lab.client, to);
                let mut captured = doors.inbound.accept();
                assert_eq!(captured.original, to);

                let source = SocketAddr::new(captured.peer.ip(), 0);
                let borrowed = Dial { mark: Some(1337), source: Some(source), ..Dial::default() };
                let mut upstream = borrowed.connect(&lab.adit, to).expect("the handshake completes");
                let mut accepted = application.accept();
                assert_eq!(accepted.peer.ip(), lab.client.address(family), "{kind}");
                talk(&mut upstream, &mut accepted.stream);
                talk(&mut client, &mut captured.stream);

                // From an address that adit has, as when the source is not borrowed.
                let plain = Dial { mark: Some(1337), ..Dial::default() };
                let mut upstream = plain.connect(&lab.adit, to).expect("direct");
                talk(&mut upstream, &mut application.accept().stream);

                // A refusal finds its way back as well.
                refused(borrowed.connect(&lab.adit, at(&lab.adit, family, 8081)));
            },
        );
    });
}

#[test]
fn without_preserve_source_a_borrowed_address_gets_no_answer() {
    isolated(|| {
        everywhere(
            |options| options.preserve_source = false,
            |lab, _, kind, family| {
                let _application = Door::open(&lab.adit, 8080);
                let source = SocketAddr::new(lab.client.address(family), 0);
                let limit = Some(Duration::from_millis(300));
                let borrowed = Dial { mark: Some(1337), source: Some(source), limit };
                let error = borrowed.connect(&lab.adit, at(&lab.adit, family, 8080)).expect_err("no answer");
                assert!(matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::ConnectionRefused), "{kind}: {error}");
            },
        );
    });
}

#[test]
fn a_borrowed_address_may_have_the_clients_own_port() {
    isolated(|| {
        everywhere(
            |_| {},
            |lab, doors, kind, family| {
                let application = Door::open(&lab.adit, 8080);
                let to = at(&lab.adit, family, 8080);
                let mut client = dial(&lab.client, to);
                let mut captured = doors.inbound.accept();
                let borrowed = Dial { mark: Some(1337), source: Some(captured.peer), ..Dial::default() };
                let mut upstream = borrowed.connect(&lab.adit, to).expect("the handshake completes");
                let mut accepted = application.accept();
                assert_eq!(accepted.peer.ip(), captured.peer.ip());
                // The same two ends twice in one socket table cannot be: there, the kernel takes another port.
                assert_eq!(accepted.peer == captured.peer, kind == Kind::Redirect);
                talk(&mut upstream, &mut accepted.stream);
                talk(&mut client, &mut captured.stream);
            },
        );
    });
}

#[test]
fn a_borrowed_address_works_by_user_too() {
    isolated(|| {
        everywhere(
            |options| {
                options.mark = None;
                options.uids = vec![0];
            },
            |lab, _, kind, family| {
                let application = Door::open(&lab.adit, 8080);
                let source = SocketAddr::new(lab.client.address(family), 0);
                let borrowed = Dial { source: Some(source), ..Dial::default() };
                let mut upstream =
                    borrowed.connect(&lab.adit, at(&lab.adit, family, 8080)).expect("the handshake completes");
                let mut accepted = application.accept();
                assert_eq!(accepted.peer.ip(), source.ip(), "{kind}");
                talk(&mut upstream, &mut accepted.stream);
            },
        );
    });
}

#[test]
fn connections_older_than_the_rules_stay_as_they_are() {
    isolated(|| {
        for kind in KINDS {
            let lab = Lab::new();
            let (server, application) = (Door::open(&lab.server, 8080), Door::open(&lab.adit, 8080));
            let mut old = Vec::new();
            for family in Family::BOTH {
                let stream = dial(&lab.adit, at(&lab.server, family, 8080));
                old.push((stream, server.accept().stream));
                let stream = dial(&lab.client, at(&lab.adit, family, 8080));
                old.push((stream, application.accept().stream));
            }
            let doors = doors(&lab.adit, kind);
            apply(&lab.adit, &options(kind));
            for (a, b) in &mut old {
                talk(b, a);
                talk(a, b);
            }
            assert!(doors.are_quiet(), "{kind}");
        }
    });
}

#[test]
fn captured_connections_outlive_the_rules_being_applied_again() {
    isolated(|| {
        let lab = Lab::new();
        for kind in KINDS {
            apply(&lab.adit, &options(kind));
            let doors = doors(&lab.adit, kind);
            let mut open = Vec::new();
            for family in Family::BOTH {
                let stream = dial(&lab.adit, at(&lab.server, family, 8080));
                open.push((stream, doors.outbound.accept().stream));
                let stream = dial(&lab.client, at(&lab.adit, family, 8080));
                open.push((stream, doors.inbound.accept().stream));
            }
            let mut changed = options(kind);
            changed.outbound.exclude_ports = "8080".parse().expect("ports");
            changed.inbound.exclude_ports = "8080".parse().expect("ports");
            apply(&lab.adit, &changed);
            for (a, b) in &mut open {
                talk(a, b);
            }
        }
    });
}

#[test]
fn without_adit_a_captured_connection_is_refused() {
    isolated(|| {
        let lab = Lab::new();
        let _server = Door::open(&lab.server, 8080);
        let _application = Door::open(&lab.adit, 8080);
        for kind in KINDS {
            apply(&lab.adit, &options(kind));
            for family in Family::BOTH {
                let dial = Dial { limit: Some(AT_ONCE), ..Dial::default() };
                refused(dial.connect(&lab.adit, at(&lab.server, family, 8080)));
                refused(dial.connect(&lab.client, at(&lab.adit, family, 8080)));
            }
        }
    });
}

#[test]
fn bulk_arrives_whole_both_ways() {
    isolated(|| {
        everywhere(
            |_| {},
            |lab, doors, kind, family| {
                let mut application = dial(&lab.adit, at(&lab.server, family, 8080));
                let mut captured = doors.outbound.accept().stream;
                let sent: Vec<u8> = (0_u32..2_000_000).map(|index| (index % 251) as u8).collect();
                let echo = thread::spawn(move || {
                    let mut got = Vec::new();
                    captured.read_to_end(&mut got).expect("read");
                    captured.write_all(&got).expect("write");
                });
                application.write_all(&sent).expect("write");
                application.shutdown(std::net::Shutdown::Write).expect("shutdown");
                let mut back = Vec::new();
                application.read_to_end(&mut back).expect("read");
                echo.join().expect("echo");
                assert!(back == sent, "{kind} {family:?}: {} of {} bytes", back.len(), sent.len());
            },
        );
    });
}

#[test]
fn apply_is_idempotent_and_remove_leaves_nothing() {
    isolated(|| {
        let lab = Lab::new();
        // Not ours, and to stay.
        lab.adit.ip("rule add priority 111 fwmark 0x111/0xfff lookup 100\nroute add 10.99.0.0/24 dev eth0 table 100\n");
        lab.adit.nft("table inet other { chain c { type filter hook output priority 0\n tcp dport 1 drop\n }\n }\n");
        let before = state(&lab.adit);
        for kind in KINDS {
            apply(&lab.adit, &options(kind));
            let once = state(&lab.adit);
            assert_ne!(once, before);
            apply(&lab.adit, &options(kind));
            assert_eq!(state(&lab.adit), once, "{kind}: applied twice");
            lab.adit.run(redirect::remove).expect("removed");
            assert_eq!(state(&lab.adit), before, "{kind}: removed");
            lab.adit.run(redirect::remove).expect("removing nothing is fine");
            assert_eq!(state(&lab.adit), before);
        }
        // From one kind to another: what the new one does not need is gone.
        let plain = Options { preserve_source: false, ..options(Kind::Redirect) };
        apply(&lab.adit, &options(Kind::Tproxy));
        apply(&lab.adit, &plain);
        let switched = state(&lab.adit);
        lab.adit.run(redirect::remove).expect("removed");
        apply(&lab.adit, &plain);
        assert_eq!(state(&lab.adit), switched);
        lab.adit.run(redirect::remove).expect("removed");
        assert_eq!(state(&lab.adit), before);
    });
}

#[test]
fn remove_takes_away_what_a_half_done_apply_left() {
    isolated(|| {
        let lab = Lab::new();
        let before = state(&lab.adit);
        lab.adit.ip("rule add priority 112 fwmark 0x112/0xfff lookup 44311\nroute add local ::/0 dev lo table 44311\n");
        lab.adit.run(redirect::remove).expect("removed");
        assert_eq!(state(&lab.adit), before);
        lab.adit.nft("table inet adit { chain c { type filter hook output priority 0\n }\n }\n");
        lab.adit.run(redirect::remove).expect("removed");
        assert_eq!(state(&lab.adit), before);
        // An apply whose table the kernel refuses leaves nothing itself.
        let impossible = Options { rollback_after: Some(Duration::MAX), ..options(Kind::Tproxy) };
        let error = lab.adit.run(|| redirect::apply(&impossible, &UNASKED)).expect_err("no such time");
        assert!(matches!(error, RedirectError::Nft(_)), "{error}");
        assert_eq!(state(&lab.adit), before);
    });
}

#[test]
fn where_ipv6_is_disabled_the_rest_is_applied() {
    isolated(|| {
        let lab = Lab::new();
        for interface in ["all", "lo", "eth0"] {
            lab.adit.sysctl(&format!("ipv6/conf/{interface}/disable_ipv6"), "1");
        }
        let before = state(&lab.adit);
        for kind in KINDS {
            apply(&lab.adit, &options(kind));
            let doors = doors(&lab.adit, kind);
            let to = at(&lab.server, Family::V4, 8080);
            let _stream = dial(&lab.adit, to);
            assert_eq!(doors.outbound.accept().original, to, "{kind}");
            lab.adit.run(redirect::remove).expect("removed");
            assert_eq!(state(&lab.adit), before, "{kind}");
        }
    });
}

#[test]
fn many_connections_of_one_client_are_answered_from_its_address() {
    isolated(|| {
        for kind in KINDS {
            let lab = Lab::new();
            apply(&lab.adit, &options(kind));
            let doors = doors(&lab.adit, kind);
            let application = Door::open(&lab.adit, 8080);
            // So few ports that those of adit's connections and of the client's must meet.
            for host in [&lab.client, &lab.adit] {
                host.sysctl("ipv4/ip_local_port_range", "40000 40119");
            }
            for family in Family::BOTH {
                let to = at(&lab.adit, family, 8080);
                let mut open = Vec::new();
                for _ in 0..50 {
                    let client = dial(&lab.client, to);
                    let captured = doors.inbound.accept();
                    let source = SocketAddr::new(captured.peer.ip(), 0);
                    let borrowed = Dial { mark: Some(1337), source: Some(source), ..Dial::default() };
                    let mut upstream = borrowed.connect(&lab.adit, to).expect("the handshake completes");
                    let mut accepted = application.accept();
                    assert_eq!(accepted.peer.ip(), source.ip());
                    talk(&mut upstream, &mut accepted.stream);
                    open.push((client, captured.stream, upstream, accepted.stream));
                }
                for (client, captured, upstream, accepted) in &mut open {
                    talk(client, captured);
                    talk(upstream, accepted);
                }
            }
        }
    });
}

#[test]
fn print_does_what_apply_does() {
    isolated(|| {
        let lab = Lab::new();
        let mut filtered = Options { uids: vec![1000], ..options(Kind::Tproxy) };
        filtered.outbound.exclude_ports = "1-1024".parse().expect("ports");
        filtered.inbound.exclude_cidrs = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("net")).to_vec();
        let plain = Options { preserve_source: false, ..options(Kind::Redirect) };
        for options in [options(Kind::Redirect), options(Kind::Tproxy), filtered, plain] {
            apply(&lab.adit, &options);
            let applied = state(&lab.adit);
            lab.adit.run(redirect::remove).expect("removed");
            let script = redirect::rules(&options).to_string();
            // Twice: the script is as idempotent as what it stands for.
            lab.adit.output("sh", &["-c", &script]);
            lab.adit.output("sh", &["-c", &script]);
            assert_eq!(state(&lab.adit), applied);
        }
    });
}

#[test]
fn an_unconfirmed_apply_ends_by_itself() {
    isolated(|| {
        let lab = Lab::new();
        let server = Door::open(&lab.server, 8080);
        let to = at(&lab.server, Family::V4, 8080);
        for kind in KINDS {
            let doors = doors(&lab.adit, kind);
            let pending = Options { rollback_after: Some(Duration::from_secs(4)), ..options(kind) };
            apply(&lab.adit, &pending);
            let mut early = dial(&lab.adit, to);
            let mut captured = doors.outbound.accept().stream;
            until(LIMIT, "the rollback", || {
                let _stream = dial(&lab.adit, to);
                // Whoever dials may know of the connection before the one who is dialled does.
                until(LIMIT, "either to be reached", || {
                    (!doors.outbound.is_quiet() || !server.is_quiet()).then_some(())
                });
                if server.is_quiet() { Some(doors.outbound.accept()).and(None) } else { Some(server.accept()) }
            });
            // What was captured in time goes on; inbound is rolled back as well.
            talk(&mut early, &mut captured);
            refused(Dial::default().connect(&lab.client, at(&lab.adit, Family::V6, 9090)));
            assert!(matches!(lab.adit.run(redirect::confirm), Err(RedirectError::RolledBack)));
        }
    });
}

#[test]
fn a_confirmed_apply_stays() {
    isolated(|| {
        let lab = Lab::new();
        let to = at(&lab.server, Family::V6, 8080);
        assert!(matches!(lab.adit.run(redirect::confirm), Err(RedirectError::NotApplied)));
        let doors = doors(&lab.adit, Kind::Redirect);
        let start = Instant::now();
        let after = Duration::from_secs(5);
        apply(&lab.adit, &Options { rollback_after: Some(after), ..options(Kind::Redirect) });
        assert_eq!(lab.adit.run(redirect::confirm).expect("in time"), Confirmation::Confirmed);
        assert_eq!(lab.adit.run(redirect::confirm).expect("again"), Confirmation::NothingPending);
        until(LIMIT, "the time that would have rolled back", || {
            let _stream = dial(&lab.adit, to);
            assert_eq!(doors.outbound.accept().original, to);
            (start.elapsed() > after + Duration::from_millis(500)).then_some(())
        });
        apply(&lab.adit, &options(Kind::Redirect));
        assert_eq!(lab.adit.run(redirect::confirm).expect("applied"), Confirmation::NothingPending);
    });
}

#[test]
fn without_the_capability_it_says_so() {
    isolated(|| {
        let lab = Lab::new();
        let before = state(&lab.adit);
        let refusals = lab.adit.run(|| {
            let mut sets = rustix::thread::capabilities(None).expect("our capabilities");
            sets.effective.remove(rustix::thread::CapabilitySet::NET_ADMIN);
            rustix::thread::set_capabilities(None, sets).expect("fewer");
            let apply = redirect::apply(&options(Kind::Redirect), &UNASKED).map(drop);
            [apply, redirect::confirm().map(drop), redirect::remove()]
        });
        for refusal in refusals {
            let error = refusal.expect_err("no capability");
            assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        }
        assert_eq!(state(&lab.adit), before);
    });
}

#[test]
fn it_waits_for_a_ready_adit() {
    isolated(|| {
        let lab = Lab::new();
        let before = state(&lab.adit);
        let safeguards = Safeguards { readiness: Some(SocketAddr::from(([127, 0, 0, 1], 15021))), ..UNASKED };
        let apply = || lab.adit.run(|| redirect::apply(&options(Kind::Redirect), &safeguards));
        let error = apply().expect_err("nobody there");
        assert!(error.to_string().contains("127.0.0.1:15021"), "{error}");
        let door = Door::open(&lab.adit, 15021);
        let answer = |status: &str, body: &str| {
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            thread::scope(|scope| {
                let probe = scope.spawn(apply);
                let mut stream = door.accept().stream;
                let mut request = [0; 512];
                let length = stream.read(&mut request).expect("a request");
                assert!(request[..length].starts_with(b"GET /healthz/ready HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).expect("write");
                drop(stream);
                probe.join().expect("no panic")
            })
        };
        let error = answer("503 Service Unavailable", "[{\"name\":\"mesh\"}]").expect_err("not ready");
        assert!(error.to_string().contains("mesh"), "{error}");
        assert_eq!(state(&lab.adit), before);
        answer("200 OK", "").expect("ready");
        assert_ne!(state(&lab.adit), before);
    });
}

#[test]
fn a_namespace_of_ones_own_is_private() {
    isolated(|| {
        assert_eq!(namespace::current(), Verdict::Private);
        assert_eq!(Lab::new().adit.run(namespace::current), Verdict::Private);
    });
}
