//! Capture at the socket in a real kernel: programs of a cgroup in place of the outbound rules.
//!
//! As in `redirect.rs`, adit is played by listening sockets where only capture is under test. Every test has a cgroup of its
//! own, and needs root: only the first user namespace may attach programs.

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use std::{fs, iter};

use adit::net::bpf::{Hook, attached};
use adit::net::cgroup::Cgroup;
use adit::net::redirect::{self, Confirmation, Kind, Options, RedirectError, Safeguards};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use socket2::{Domain, Protocol, Socket, Type};

use crate::command::{fails, succeeds};
use crate::kit::daemon::get;
use crate::kit::door::{Dial, talk};
use crate::kit::{Door, Family, Host, LIMIT, Lab, isolated_in_cgroup, until};

const UNASKED: Safeguards = Safeguards { host: false, readiness: None };
const HOOKS: [Hook; 6] =
    [Hook::GetSockOpt, Hook::PeerName4, Hook::PeerName6, Hook::SockOps, Hook::Connect4, Hook::Connect6];

pub(super) fn options(cgroup: &Path) -> Options {
    Options { kind: Kind::Connect, cgroup: Some(cgroup.to_owned()), ..Options::default() }
}

pub(super) fn apply(host: &Host, options: &Options) {
    if let Err(error) = host.run(|| redirect::apply(options, &UNASKED)) {
        let causes: Vec<String> =
            iter::successors(Some(&error as &dyn Error), |&error| error.source()).map(ToString::to_string).collect();
        panic!("{}", causes.join(": "));
    }
}

/// adit's outbound door.
fn door(host: &Host) -> Door {
    Door::capture(host, 15001, 1337, false)
}

pub(super) fn at(host: &Host, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(host.address(family), port)
}

pub(super) fn dial(host: &Host, to: SocketAddr) -> TcpStream {
    Dial::default().connect(host, to).unwrap_or_else(|error| panic!("{} to {to}: {error}", host.name))
}

/// How many programs each hook of the cgroup has.
fn programs(cgroup: &Path) -> [usize; 6] {
    programs_at(cgroup, HOOKS)
}

pub(super) fn programs_at<const N: usize>(cgroup: &Path, hooks: [Hook; N]) -> [usize; N] {
    let cgroup = Cgroup::open(cgroup).expect("the test's cgroup");
    hooks.map(|hook| attached(cgroup.fd(), hook).expect("asked as root").len())
}

#[test]
fn outbound_connections_are_captured_with_their_destination() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        apply(&lab.adit, &options(cgroup));
        let door = door(&lab.adit);
        for family in Family::BOTH {
            // Nobody listens there, and 192.0.2.7 does not even exist.
            let nowhere: IpAddr = match family {
                Family::V4 => [192, 0, 2, 7].into(),
                Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into(),
            };
            for to in [at(&lab.server, family, 8080), at(&lab.server, family, 15006), SocketAddr::new(nowhere, 443)] {
                let mut application = dial(&lab.adit, to);
                let mut captured = door.accept();
                assert_eq!(captured.original, to);
                assert_eq!(captured.peer, application.local_addr().expect("an address"));
                assert_eq!(captured.peer.ip(), lab.adit.address(family));
                // The application does not notice.
                assert_eq!(application.peer_addr().expect("an address"), to);
                talk(&mut application, &mut captured.stream);
            }
        }
        assert!(door.is_quiet());
    });
}

/// Whatever kind of socket it is, and however it was prepared.
#[test]
fn every_way_to_dial_is_captured() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        apply(&lab.adit, &options(cgroup));
        let door = door(&lab.adit);
        let server = Door::open(&lab.server, 8080);
        let to = at(&lab.server, Family::V4, 8080);
        let mapped = SocketAddr::from((lab.server.v4.to_ipv6_mapped(), 8080));
        let own = SocketAddr::from((lab.adit.v4, 0));
        type Prepare<'a> = &'a (dyn Fn(&Socket) -> io::Result<()> + Sync);
        let ways: [(&str, Domain, Protocol, SocketAddr, Prepare<'_>); 7] = [
            ("plain", Domain::IPV4, Protocol::TCP, to, &|_| Ok(())),
            ("mapped", Domain::IPV6, Protocol::TCP, mapped, &|socket| socket.set_only_v6(false)),
            ("multipath", Domain::IPV4, Protocol::MPTCP, to, &|_| Ok(())),
            ("bound to a device", Domain::IPV4, Protocol::TCP, to, &|socket| socket.bind_device(Some(b"eth0"))),
            ("bound to an address", Domain::IPV4, Protocol::TCP, to, &|socket| socket.bind(&own.into())),
            ("fast open", Domain::IPV4, Protocol::TCP, to, &set_fast_open_connect),
            ("bound to loopback", Domain::IPV4, Protocol::TCP, to, &|socket| {
                socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            }),
        ];
        for (name, domain, protocol, to, prepare) in ways {
            let mut application = lab.adit.run(|| {
                let socket = Socket::new(domain, Type::STREAM, Some(protocol)).expect(name);
                prepare(&socket).expect(name);
                socket.connect_timeout(&to.into(), LIMIT).expect(name);
                TcpStream::from(socket)
            });
            // With fast open, what is written first begins the connection.
            application.write_all(b"early").expect(name);
            let mut captured = door.accept();
            assert_eq!(captured.original, SocketAddr::new(to.ip().to_canonical(), to.port()), "{name}");
            captured.stream.read_exact(&mut [0; 5]).expect(name);
            talk(&mut application, &mut captured.stream);
        }
        assert!(server.is_quiet() && door.is_quiet());
    });
}

/// `TCP_FASTOPEN_CONNECT`: `connect` only remembers, and the first write dials.
fn set_fast_open_connect(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    #[expect(unsafe_code, reason = "nobody wraps this option")]
    // SAFETY: an open descriptor, and four bytes that live through the call.
    let status = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, (&raw const on).cast(), 4)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn connections_to_this_namespace_and_this_link_are_left_alone() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        apply(&lab.adit, &options(cgroup));
        let door = door(&lab.adit);
        let application = Door::open(&lab.adit, 7000);
        let addresses = ["127.0.0.1", "127.9.8.7", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"];
        let addresses = addresses.map(|ip| ip.parse::<IpAddr>().expect("an address"));
        for ip in addresses.into_iter().chain(Family::BOTH.map(|family| lab.adit.address(family))) {
            let mut local = dial(&lab.adit, SocketAddr::new(ip, 7000));
            talk(&mut local, &mut application.accept().stream);
        }
        let (ip, device) = link_local(&lab.adit);
        let mut local = dial(&lab.adit, SocketAddrV6::new(ip, 7000, 0, device).into());
        talk(&mut local, &mut application.accept().stream);
        // Its own door, called directly, has no other destination.
        let _direct = dial(&lab.adit, SocketAddr::from(([127, 0, 0, 1], 15001)));
        assert_eq!(door.accept().original, SocketAddr::from(([127, 0, 0, 1], 15001)));
        assert!(door.is_quiet());
    });
}

/// The link-local address of a host, once it has passed its check for duplicates, and the number of its device.
fn link_local(host: &Host) -> (Ipv6Addr, u32) {
    until(LIMIT, "a link-local address", || {
        let list = host.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6")).expect("proc");
        list.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| u32::from_str_radix(fields[at], 16).expect("hexadecimal");
            let ip = Ipv6Addr::from(u128::from_str_radix(fields[0], 16).expect("an address"));
            let tentative = number(4) & 0x40 != 0;
            (ip.is_unicast_link_local() && !tentative).then(|| (ip, number(1)))
        })
    })
}

/// What the kernel refuses at the end leaves what there was: nothing, or the programs of before.
#[test]
fn a_failed_apply_changes_nothing() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let (door, server) = (door(&lab.adit), Door::open(&lab.server, 8080));
        let to = at(&lab.server, Family::V4, 8080);
        // No nft takes such a time, and the programs are attached by then.
        let mut impossible = Options { rollback_after: Some(Duration::MAX), ..options(cgroup) };
        impossible.outbound.exclude_ports = "8080".parse().expect("ports");
        let fail = || {
            let error = lab.adit.run(|| redirect::apply(&impossible, &UNASKED)).expect_err("no such time");
            assert!(matches!(error, RedirectError::Nft(_)), "{error}");
        };
        fail();
        assert_eq!(programs(cgroup), [0; 6]);
        apply(&lab.adit, &options(cgroup));
        fail();
        assert_eq!(programs(cgroup), [1; 6]);
        let _stream = dial(&lab.adit, to);
        assert_eq!(door.accept().original, to);
        assert!(server.is_quiet());
    });
}

#[test]
fn what_adit_opens_is_left_alone() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let door = door(&lab.adit);
        let server = Door::open(&lab.server, 8080);
        for family in Family::BOTH {
            let to = at(&lab.server, family, 8080);
            apply(&lab.adit, &options(cgroup));
            for (mark, captured) in [(1337, false), (0x8000_0539, false), (1338, true)] {
                let _stream = Dial { mark: Some(mark), ..Dial::default() }.connect(&lab.adit, to).expect("a way");
                let reached = if captured { door.accept() } else { server.accept() };
                assert_eq!(reached.original, to, "{mark:#x}");
            }
            for (uid, captured) in [(0, false), (4711, true)] {
                apply(&lab.adit, &Options { mark: None, uids: vec![1, uid], ..options(cgroup) });
                let _stream = dial(&lab.adit, to);
                let reached = if captured { door.accept() } else { server.accept() };
                assert_eq!(reached.original, to, "{uid}");
            }
        }
        assert!(server.is_quiet() && door.is_quiet());
    });
}

#[test]
fn exclusions_hold() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let mut options = options(cgroup);
        options.outbound.exclude_ports = "25,8000-8010".parse().expect("ports");
        options.outbound.include_ports = Some("20-30,8000-8100".parse().expect("ports"));
        apply(&lab.adit, &options);
        let door = door(&lab.adit);
        for family in Family::BOTH {
            for (port, captured) in [(24, true), (25, false), (8005, false), (8011, true), (8101, false)] {
                let direct = Door::open(&lab.server, port);
                let to = at(&lab.server, family, port);
                let _stream = dial(&lab.adit, to);
                let reached = if captured { door.accept() } else { direct.accept() };
                assert_eq!(reached.original, to);
                assert!(direct.is_quiet() && door.is_quiet());
            }
        }
        options.outbound.exclude_cidrs = ["10.77.0.0/31", "10.77.0.3", "fd77::2/127"]
            .map(|net| net.parse().or_else(|_| net.parse::<IpAddr>().map(Into::into)).expect("net"))
            .to_vec();
        apply(&lab.adit, &options);
        let direct = [Door::open(&lab.server, 24), Door::open(&lab.client, 24)];
        for (host, server, captured) in [(&lab.server, 0, [false, false]), (&lab.client, 1, [false, true])] {
            for (family, captured) in Family::BOTH.into_iter().zip(captured) {
                let to = at(host, family, 24);
                let _stream = dial(&lab.adit, to);
                let reached = if captured { door.accept() } else { direct[server].accept() };
                assert_eq!(reached.original, to);
            }
        }
    });
}

/// Programs run for every process of the cgroup, and look at one network namespace only.
#[test]
fn other_namespaces_of_the_cgroup_are_left_alone() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        apply(&lab.adit, &options(cgroup));
        let (ours, theirs) = (door(&lab.adit), door(&lab.client));
        let server = Door::open(&lab.server, 8080);
        for family in Family::BOTH {
            let to = at(&lab.server, family, 8080);
            let _direct = dial(&lab.client, to);
            server.accept();
            // Each has its own, and they do not mix.
            apply(&lab.client, &options(cgroup));
            let _mine = dial(&lab.client, to);
            assert_eq!(theirs.accept().original, to);
            let _ours = dial(&lab.adit, to);
            assert_eq!(ours.accept().original, to);
            assert_eq!(programs(cgroup), [2; 6]);
            lab.client.run(redirect::remove).expect("removed");
            assert_eq!(programs(cgroup), [1; 6]);
        }
        assert!(server.is_quiet() && ours.is_quiet() && theirs.is_quiet());
    });
}

/// Whether the kernel tracks connections in this namespace.
pub(super) fn tracks(host: &Host) -> bool {
    host.forget_connections();
    let door = Door::open(host, 7777);
    drop((dial(host, at(host, Family::V4, 7777)), door.accept()));
    !host.output("conntrack", &["-L", "-p", "tcp"]).is_empty()
}

#[test]
fn inbound_is_captured_with_or_without_the_clients_address() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let inbound = Door::capture(&lab.adit, 15006, 1337, true);
        // Older than the rules: it stays as it is.
        let older = Door::open(&lab.adit, 8081);
        let mut uncaptured = dial(&lab.client, at(&lab.adit, Family::V4, 8081));
        let mut direct = older.accept().stream;
        for preserve_source in [true, false] {
            apply(&lab.adit, &Options { preserve_source, ..options(cgroup) });
            let rules = lab.adit.output("nft", &["list", "table", "inet", "adit"]);
            assert!(rules.contains("chain inbound") && !rules.contains("chain outbound"), "{rules}");
            assert!(!tracks(&lab.adit));
            for family in Family::BOTH {
                let to = at(&lab.adit, family, 8080);
                let mut client = dial(&lab.client, to);
                let mut captured = inbound.accept();
                assert_eq!((captured.original, captured.peer.ip()), (to, lab.client.address(family)));
                talk(&mut client, &mut captured.stream);
                // Excluded, and adit's own doors.
                let own = Door::open(&lab.adit, 15008);
                let _tunnel = dial(&lab.client, at(&lab.adit, family, 15008));
                own.accept();
                // Out of this namespace, and answers from outside.
                let server = Door::open(&lab.server, 9000);
                let marked = Dial { mark: Some(1337), ..Dial::default() };
                let mut upstream = marked.connect(&lab.adit, at(&lab.server, family, 9000)).expect("adit's own");
                talk(&mut upstream, &mut server.accept().stream);
            }
            talk(&mut uncaptured, &mut direct);
            assert!(inbound.is_quiet());
        }
        // The kernel keeps nothing of a client that it answers with a cookie: its next packet belongs to nobody yet.
        lab.adit.sysctl("ipv4/tcp_syncookies", "2");
        let _application = Door::open(&lab.adit, 8080);
        for family in Family::BOTH {
            let to = at(&lab.adit, family, 8080);
            let mut client = dial(&lab.client, to);
            let mut captured = inbound.accept();
            assert_eq!((captured.original, captured.peer.ip()), (to, lab.client.address(family)));
            talk(&mut client, &mut captured.stream);
        }
        drop(inbound);
        for family in Family::BOTH {
            let error = Dial::default().connect(&lab.client, at(&lab.adit, family, 8080)).expect_err("nobody there");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        }
        // Without inbound capture there is nothing that could track connections.
        let mut outbound_only = options(cgroup);
        outbound_only.inbound.include_ports = Some("none".parse().expect("ports"));
        apply(&lab.adit, &outbound_only);
        assert_eq!(lab.adit.output("nft", &["list", "ruleset"]), "");
        assert_eq!(programs(cgroup), [1; 6]);
    });
}

#[test]
fn without_adit_a_captured_connection_is_refused() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let _server = Door::open(&lab.server, 8080);
        apply(&lab.adit, &options(cgroup));
        for family in Family::BOTH {
            let error = Dial::default().connect(&lab.adit, at(&lab.server, family, 8080)).expect_err("nobody there");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        }
        // What was refused has left its destination behind. Whoever dials the door from there does not get it.
        let door = door(&lab.adit);
        lab.adit.sysctl("ipv4/ip_local_port_range", "40000 40003");
        for _ in 0..4 {
            let source = Some(SocketAddr::from((lab.adit.v4, 0)));
            let to = SocketAddr::from(([127, 0, 0, 1], 15001));
            let _direct = Dial { source, ..Dial::default() }.connect(&lab.adit, to).expect("the door");
            assert_eq!(door.accept().original, to);
        }
    });
}

/// Applied again and again, at one cgroup and another: no connection fails, and none goes past adit.
#[test]
fn no_connection_is_lost_while_it_is_applied() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let inside = enter_below(cgroup);
        let (door, server) = (door(&lab.adit), Door::open(&lab.server, 8080));
        let to = at(&lab.server, Family::V4, 8080);
        apply(&lab.adit, &options(cgroup));
        let done = AtomicBool::new(false);
        let dialled = thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut dialled = 0;
                while !done.load(Ordering::Relaxed) {
                    let mut application = dial(&lab.adit, to);
                    let mut captured = door.accept();
                    assert_eq!(captured.original, to, "after {dialled}");
                    talk(&mut application, &mut captured.stream);
                    dialled += 1;
                }
                dialled
            });
            for cgroup in [cgroup, &inside, &inside, cgroup, cgroup].repeat(6) {
                apply(&lab.adit, &options(cgroup));
            }
            done.store(true, Ordering::Relaxed);
            client.join().expect("no connection is lost")
        });
        assert!(dialled > 30, "{dialled}");
        assert!(server.is_quiet(), "past adit");
        assert_eq!((programs(cgroup), programs(&inside)), ([1; 6], [0; 6]));
    });
}

/// From one kind to another and back: what is dialled meanwhile is captured one way or the other, or fails.
#[test]
fn no_connection_goes_past_adit_while_the_kind_changes() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let (door, server) = (door(&lab.adit), Door::open(&lab.server, 8080));
        let to = at(&lab.server, Family::V6, 8080);
        apply(&lab.adit, &options(cgroup));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let hasty = Dial { limit: Some(Duration::from_millis(500)), ..Dial::default() };
                let mut captured = 0;
                while !done.load(Ordering::Relaxed) {
                    let _application = hasty.connect(&lab.adit, to);
                    while !door.is_quiet() {
                        door.accept();
                        captured += 1;
                    }
                }
                captured
            });
            for kind in [Kind::Redirect, Kind::Connect].repeat(6) {
                let cgroup = (kind == Kind::Connect).then(|| cgroup.to_owned());
                apply(&lab.adit, &Options { kind, cgroup, ..Options::default() });
            }
            done.store(true, Ordering::Relaxed);
            assert!(client.join().expect("no panic") > 30);
        });
        assert!(server.is_quiet(), "past adit");
        apply(&lab.adit, &Options::default());
        assert_eq!(programs(cgroup), [0; 6]);
    });
}

/// A cgroup below the test's, with the test in it.
fn enter_below(cgroup: &Path) -> PathBuf {
    let inside = cgroup.join("inside");
    fs::create_dir(&inside).expect("a cgroup below");
    fs::write(inside.join("cgroup.procs"), "0").expect("our own");
    inside
}

#[test]
fn open_connections_outlive_their_programs() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let door = door(&lab.adit);
        apply(&lab.adit, &options(cgroup));
        let to = at(&lab.server, Family::V6, 8080);
        let mut application = dial(&lab.adit, to);
        let mut captured = door.accept();
        let waiting = dial(&lab.adit, to);
        // What waits to be accepted is still answered: removing waits for it.
        let (removed, asked) = thread::scope(|scope| {
            let removed = scope.spawn(|| lab.adit.run(redirect::remove));
            until(LIMIT, "nothing new to be captured", || (programs(cgroup)[4..] == [0, 0]).then_some(()));
            let asked = door.accept();
            (removed.join().expect("no panic"), asked)
        });
        removed.expect("removed");
        assert_eq!(asked.original, to);
        assert_eq!(programs(cgroup), [0; 6]);
        talk(&mut application, &mut captured.stream);
        drop(waiting);
        lab.adit.run(redirect::remove).expect("removing nothing is fine");
    });
}

#[test]
fn a_rollback_is_kept_by_the_kernel_and_confirmed() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let (door, server) = (door(&lab.adit), Door::open(&lab.server, 8080));
        let to = at(&lab.server, Family::V4, 8080);
        let mut outbound_only = options(cgroup);
        outbound_only.inbound.include_ports = Some("none".parse().expect("ports"));
        for options in [options(cgroup), outbound_only] {
            assert!(matches!(lab.adit.run(redirect::confirm), Err(RedirectError::NotApplied)));
            apply(&lab.adit, &Options { rollback_after: Some(Duration::from_secs(3)), ..options.clone() });
            let _early = dial(&lab.adit, to);
            assert_eq!(door.accept().original, to);
            until(LIMIT, "the rollback", || {
                let _stream = dial(&lab.adit, to);
                until(LIMIT, "either to be reached", || (!door.is_quiet() || !server.is_quiet()).then_some(()));
                if server.is_quiet() { Some(door.accept()).and(None) } else { Some(server.accept()) }
            });
            assert!(matches!(lab.adit.run(redirect::confirm), Err(RedirectError::RolledBack)));
            let after = Duration::from_millis(1500);
            apply(&lab.adit, &Options { rollback_after: Some(Duration::from_secs(3600)), ..options.clone() });
            assert_eq!(lab.adit.run(redirect::confirm).expect("in time"), Confirmation::Confirmed);
            assert_eq!(lab.adit.run(redirect::confirm).expect("again"), Confirmation::NothingPending);
            apply(&lab.adit, &Options { rollback_after: Some(after), ..options });
            assert_eq!(lab.adit.run(redirect::confirm).expect("in time"), Confirmation::Confirmed);
            crate::kit::wait::pause(after + Duration::from_millis(200));
            let _late = dial(&lab.adit, to);
            assert_eq!(door.accept().original, to);
            lab.adit.run(redirect::remove).expect("removed");
        }
    });
}

/// `ip netns exec` hides all cgroups.
#[test]
fn programs_that_cannot_be_reached_are_not_forgotten() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        apply(&lab.adit, &Options { rollback_after: Some(Duration::from_secs(600)), ..options(cgroup) });
        let mount = adit::net::cgroup::mount().expect("its mount");
        let blindly = |arguments: &str| {
            let script =
                format!("umount -l {} && {} redirect {arguments}", mount.display(), env!("CARGO_BIN_EXE_adit"));
            let output = lab.adit.command("unshare").args(["--mount", "--", "sh", "-c", &script]).output();
            let output = output.expect("unshare");
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        for arguments in ["remove", "apply --force", "apply --force --kind connect"] {
            let (done, told) = blindly(arguments);
            assert!(!done && (told.contains("cannot be seen here") || told.contains("is mounted here")), "{told}");
        }
        // That takes no cgroup.
        assert_eq!(blindly("confirm"), (true, String::new()));
        assert_eq!(programs(cgroup), [1; 6]);
        lab.adit.run(redirect::remove).expect("removed");
        assert_eq!(blindly("remove"), (true, String::new()));
    });
}

#[test]
fn what_stands_in_the_way_is_told() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let told =
            |arguments: &str, code| fails(&lab.adit, &format!("redirect apply --force --kind {arguments}"), code);
        let no_cgroup = told("connect --cgroup /tmp", 1);
        assert!(no_cgroup.contains("/tmp is not a folder of a cgroup") && no_cgroup.contains("hint: "), "{no_cgroup}");
        assert!(told("connect --cgroup /nonexistent", 1).contains("/nonexistent: No such file"));
        assert!(told("redirect --cgroup /tmp", 64).contains("--kind connect"));
        let refusal = lab.adit.run(|| {
            let mut sets = capabilities(None).expect("our capabilities");
            sets.effective.remove(CapabilitySet::SYS_ADMIN | CapabilitySet::BPF);
            set_capabilities(None, sets).expect("fewer");
            redirect::apply(&options(cgroup), &UNASKED).map(drop)
        });
        let refusal = refusal.expect_err("no capability");
        assert!(refusal.hint().is_some_and(|hint| hint.contains("CAP_SYS_ADMIN")), "{refusal}");
        // Nothing was half done.
        assert_eq!((programs(cgroup), lab.adit.output("nft", &["list", "ruleset"])), ([0; 6], String::new()));
        // A kernel that takes no more programs than it does: what had been attached is taken back, and the rules stay out.
        let namespaces: Vec<Host> = (4..=67).map(|number| lab.add_host(&format!("full-{number}"), number)).collect();
        for host in &namespaces {
            apply(host, &options(cgroup));
        }
        let full = lab.adit.run(|| redirect::apply(&options(cgroup), &UNASKED)).expect_err("64 are the most");
        assert!(full.to_string().contains("cannot attach"), "{full}");
        assert_eq!((programs(cgroup), lab.adit.output("nft", &["list", "ruleset"])), ([64; 6], String::new()));
    });
}

/// The whole way, as an operator goes it.
#[test]
fn traffic_goes_through_the_daemon() {
    isolated_in_cgroup(|cgroup| {
        let lab = Lab::new();
        let daemon = lab.adit("capture: connect\nlisten: { inbound: off }\n", "");
        let flags = format!("--kind connect --include-inbound-ports none --cgroup {}", cgroup.display());
        let told = succeeds(&lab.adit, &format!("redirect apply {flags}"));
        assert!(told.contains("(connect)"), "{told}");
        for family in Family::BOTH {
            let server = Door::open(&lab.server, 8080);
            let to = at(&lab.server, family, 8080);
            let mut client = dial(&lab.adit, to);
            let mut accepted = server.accept();
            assert_ne!(accepted.peer.port(), client.local_addr().expect("an address").port(), "not through adit");
            talk(&mut client, &mut accepted.stream);
            let own = client.local_addr().expect("an address");
            let connections = get(&lab.adit, 15000, "/connections").expect("an answer");
            assert!(connections.contains(&own.to_string()) && connections.contains(&to.to_string()), "{connections}");
        }
        let script = succeeds(&lab.adit, "redirect print --kind connect --include-inbound-ports none");
        assert!(script.starts_with("# At the sockets: BPF programs"), "{script}");
        succeeds(&lab.adit, "redirect remove");
        assert_eq!(programs(cgroup), [0; 6]);
        daemon.stop();
    });
}
