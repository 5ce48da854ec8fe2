//! Starts under odd conditions, and a worker that stops turning.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::kit::door::{Dial, talk};
use crate::kit::{Adit, Door, LIMIT, Lab, isolated, until};
use crate::world::{PLAIN, World, captured, expect_reset, request};

const PORT: u16 = 8080;

/// The addresses that the daemon says it listens on.
fn listening(world: &World) -> Vec<String> {
    let status = world.json(&["status", "--json"]);
    let listeners = status["connections"]["listeners"].as_array().expect("a list").iter();
    listeners.map(|listener| listener["address"].as_str().expect("text").to_owned()).collect()
}

fn carries_ipv4(world: &World) {
    let server = Door::open(&world.lab.server, PORT);
    let application = Door::open(&world.lab.client, PORT);
    world.outbound(&server, PORT).talk();
    let mut client = Dial::default().connect(&world.lab.adit, (world.lab.client.v4, PORT).into()).expect("captured");
    talk(&mut client, &mut application.accept().stream);
}

#[test]
fn ipv6_may_be_disabled() {
    isolated(|| {
        let lab = Lab::new();
        for interface in ["all", "default", "lo", "eth0"] {
            lab.adit.sysctl(&format!("ipv6/conf/{interface}/disable_ipv6"), "1");
        }
        crate::world::capture(&lab.adit);
        let adit = lab.adit(PLAIN, "");
        let world = World { lab, adit };
        carries_ipv4(&world);
        world.adit.stop();
    });
}

/// As under `ipv6.disable=1`: the kernel has no such sockets at all.
#[test]
fn ipv6_may_be_missing() {
    isolated(|| {
        let lab = captured();
        // A filter belongs to its thread and to what that starts.
        let adit = thread::scope(|scope| {
            let start = || {
                seccomp::refuse_ipv6();
                Adit::start(&lab.adit, PLAIN, "")
            };
            scope.spawn(start).join().expect("started")
        });
        let mut world = World { lab, adit };
        world.adit.wait_ready(&world.lab.adit);
        let addresses = listening(&world);
        assert_eq!(addresses, ["0.0.0.0:15001", "0.0.0.0:15006"]);
        carries_ipv4(&world);
        world.adit.stop();
    });
}

#[test]
fn a_second_adit_fails_naming_listener_address_and_errno() {
    isolated(|| {
        let world = World::new("");
        let server = Door::open(&world.lab.server, PORT);
        let mut pair = world.outbound(&server, PORT);
        for (listen, name, address) in [
            ("", "admin", "127.0.0.1:15000"),
            ("admin: off", "metrics", "[::]:15020"),
            ("admin: off, metrics: off", "readiness", "[::]:15021"),
            ("admin: off, metrics: off, readiness: off", "outbound", "[::]:15001"),
            ("admin: off, metrics: off, readiness: off, outbound: off", "inbound", "[::]:15006"),
        ] {
            let mut second = Adit::start(&world.lab.adit, &format!("{PLAIN}listen: {{ {listen} }}\n"), "");
            let status = second.wait(LIMIT);
            let log = second.log().join("\n");
            assert_eq!(status.code(), Some(1), "{log}");
            let wanted = [&format!("listener {name}"), address, "Address already in use", "os error 98"];
            assert!(wanted.iter().all(|text| log.contains(*text)), "{wanted:?}: {log}");
            pair.talk();
        }
        world.outbound(&server, PORT).talk();
        drop(pair);
        world.adit.stop();
    });
}

/// It has no state to judge by: an empty one would let everything pass.
#[test]
fn a_daemon_that_is_stopped_before_its_first_state_carries_nothing() {
    isolated(|| {
        let lab = captured();
        let settings = "mesh: { files: [not-there.yaml] }\nshutdown: { preDrain: 2s, deadline: 2s }\n";
        let mut adit = Adit::start(&lab.adit, &format!("{PLAIN}{settings}"), "");
        until(LIMIT, "a probe to be answered", || request(&lab.adit, 15021, "GET", "/healthz/ready"));
        let server = Door::open(&lab.server, PORT);
        let dial = || Dial::default().connect(&lab.adit, (lab.server.v4, PORT).into());
        let mut before = dial().expect("the kernel completes it");
        kill_process(adit.pid(), Signal::TERM).expect("a running daemon");
        adit.wait_log("draining");
        // Those that come later find the door closed, or are reset as it closes.
        for _ in 0..10 {
            if let Ok(mut late) = dial() {
                expect_reset(&mut late, LIMIT);
            }
        }
        expect_reset(&mut before, LIMIT);
        assert!(adit.wait(LIMIT).success());
        assert!(server.is_quiet(), "a connection was carried without a state");
    });
}

/// A scrape in which a family or a sample comes twice is refused as a whole.
#[test]
fn every_family_and_every_sample_is_told_once() {
    isolated(|| {
        let world = World::new("");
        let metrics = world.metrics();
        let names = |line: &str| match line.strip_prefix("# ") {
            Some(about) => about.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" "),
            None => line.rsplit_once(' ').map_or_else(String::new, |(sample, _)| sample.to_owned()),
        };
        let mut seen = BTreeSet::new();
        for line in metrics.lines() {
            assert!(seen.insert(names(line)), "twice: {line}");
        }
        assert!(seen.contains("adit_workers"));
        world.adit.stop();
    });
}

/// Demand F4. Only the worker's thread is stopped, as a debugger does it; the rest of the process runs.
#[test]
fn a_worker_that_stops_turning_fails_liveness_until_it_turns_again() {
    isolated(|| {
        let world = World::new("");
        let live = || request(&world.lab.adit, 15021, "GET", "/healthz/live").expect("an answer");
        assert_eq!(live().0, 200);
        let worker = thread_named(world.pid(), "adit-data-1");
        trace::stop(worker);
        // Ten seconds, a beat and what the machine takes.
        until(Duration::from_secs(30), "liveness to fail", || {
            let (status, body) = live();
            (status == 503 && body.contains("\"worker 1\"") && !body.contains("\"worker 0\"")).then_some(())
        });
        assert!(world.cli(&["status"]).status.success());
        assert!(world.metric("adit_workers") > 1.5);
        trace::go_on(worker);
        until(LIMIT, "liveness to come back", || (live().0 == 200).then_some(()));
        world.adit.stop();
    });
}

fn thread_named(process: Pid, name: &str) -> Pid {
    let folder = format!("/proc/{}/task", process.as_raw_pid());
    let threads = fs::read_dir(folder).expect("a running daemon").filter_map(|entry| Some(entry.ok()?.path()));
    let mut named = threads.filter(|path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name));
    let path = named.next().unwrap_or_else(|| panic!("no thread {name}"));
    let number = path.file_name().and_then(|name| name.to_str()).expect("a number").parse().expect("a number");
    Pid::from_raw(number).expect("not zero")
}

#[expect(unsafe_code, reason = "no crate at hand wraps ptrace")]
mod trace {
    use std::ptr;

    use rustix::process::Pid;

    /// Stops one thread.
    pub(super) fn stop(thread: Pid) {
        request(libc::PTRACE_SEIZE, thread);
        request(libc::PTRACE_INTERRUPT, thread);
        let mut status = 0;
        // SAFETY: `status` is a valid place for an int, and the call keeps no pointer.
        let waited = unsafe { libc::waitpid(thread.as_raw_pid(), &raw mut status, libc::__WALL) };
        assert_eq!(waited, thread.as_raw_pid(), "{}", std::io::Error::last_os_error());
    }

    /// Lets a stopped thread run again.
    pub(super) fn go_on(thread: Pid) {
        request(libc::PTRACE_DETACH, thread);
    }

    fn request(request: libc::c_uint, thread: Pid) {
        // SAFETY: these requests take no address and no data; they change nothing in this process.
        let result = unsafe {
            libc::ptrace(request, thread.as_raw_pid(), ptr::null_mut::<libc::c_void>(), ptr::null_mut::<libc::c_void>())
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

#[expect(unsafe_code, reason = "no crate at hand wraps seccomp")]
mod seccomp {
    /// From now on, `socket(AF_INET6, ..)` fails with EAFNOSUPPORT on this thread and in what it starts.
    pub(super) fn refuse_ipv6() {
        const LOAD_WORD: u16 = 0x20;
        const JUMP_IF_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
        let number = |value: i64| u32::try_from(value).expect("a small number");
        let refuse = libc::SECCOMP_RET_ERRNO | number(libc::EAFNOSUPPORT.into());
        // In `seccomp_data`, the number of the call is at 0 and its first argument at 16.
        let mut program = [
            step(LOAD_WORD, 0, 0, 0),
            step(JUMP_IF_EQUAL, number(libc::SYS_socket), 0, 3),
            step(LOAD_WORD, 16, 0, 0),
            step(JUMP_IF_EQUAL, number(libc::AF_INET6.into()), 0, 1),
            step(RETURN, refuse, 0, 0),
            step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
        ];
        let length = u16::try_from(program.len()).expect("six");
        let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
        // SAFETY: takes numbers only.
        let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(privileges, 0);
        // SAFETY: `program` describes an array that lives until the call returns; the kernel copies it.
        let filtered = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        assert_eq!(filtered, 0, "{}", std::io::Error::last_os_error());
    }
}
