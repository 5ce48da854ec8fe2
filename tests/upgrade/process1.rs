//! adit as process 1 of a PID namespace, as in a container: a small supervisor and the versions that it starts.

use std::fs;
use std::process::Command;

use rustix::process::{Pid, Signal};

use crate::kit::{Door, Host, LIMIT, Lab, isolated, until};
use crate::line::{Line, PORT, Pair, carries, pid_of, send, wait_gone};
use crate::world::captured;

/// In a PID namespace of its own, where what it starts is process 1.
fn first_process(host: &Host, program: &str) -> Command {
    let mut command = host.command("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", program]);
    command
}

fn start<'a>(lab: &'a Lab, settings: &str) -> Line<'a> {
    Line::start_by(&lab.adit, settings, "", |program| first_process(&lab.adit, program))
}

/// The children of a process, in our namespace, with the name that each has been started by and its state.
pub(crate) fn children(parent: Pid) -> Vec<(Pid, char)> {
    let number = parent.as_raw_pid().to_string();
    let processes = fs::read_dir("/proc").expect("proc").filter_map(|entry| {
        let path = entry.ok()?.path();
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let state = fields.next()?.chars().next()?;
        let pid = path.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw)?;
        (fields.next()? == number).then_some((pid, state))
    });
    processes.collect()
}

/// Process 1 of the namespace, in ours.
fn supervisor(line: &Line<'_>) -> Pid {
    // `nsenter` has become `unshare`, which waits for its only child.
    until(LIMIT, "process 1", || children(line.first()).first().map(|(pid, _)| *pid))
}

#[test]
fn process_1_starts_every_version_passes_signals_on_and_ends_with_the_last() {
    isolated(|| {
        let lab = captured();
        let door = Door::open(&lab.server, PORT);
        let mut line = start(&lab, "shutdown: { deadline: 20s }\n");
        let process1 = supervisor(&line);
        let inner = line.status()["pid"].as_i64().expect("a number");
        assert_ne!(inner, 1, "the daemon is a child of process 1");
        carries(&lab, &door);

        send(process1, Signal::HUP);
        line.wait_log("reload");
        let mut kept = Pair::new(&lab, &door);
        let mut before = inner;
        for round in 0..2 {
            line.replace_program();
            // Both ways.
            if round % 2 == 0 {
                send(process1, Signal::USR2);
            } else {
                line.upgraded();
            }
            before = until(LIMIT, "another version to serve", || {
                let pid = line.status()["pid"].as_i64();
                pid.filter(|pid| *pid != before)
            });
            carries(&lab, &door);
            if round == 0 {
                // While the first version drains, the second is the one that signals are for.
                kept.talk();
                assert_eq!(children(process1).len(), 2);
            }
        }
        drop(kept);
        until(LIMIT, "the older versions to end and to be reaped", || (children(process1).len() == 1).then_some(()));

        // An orphan of somebody else's (`kubectl exec`) is reaped, too.
        let mut exec = Command::new("nsenter");
        exec.args(["-t", &process1.as_raw_pid().to_string(), "--pid", "--", "sh", "-c", "(sleep 0.2 &) ; exit 0"]);
        assert!(exec.status().expect("nsenter").success());
        until(LIMIT, "the orphan to be reaped", || {
            let all = children(process1);
            (all.len() == 1 && all.iter().all(|(_, state)| *state != 'Z')).then_some(())
        });

        send(process1, Signal::TERM);
        let status = line.wait_first();
        assert_eq!(status.code(), Some(0), "{}", line.log());
        wait_gone(process1, LIMIT);
        assert!(line.log().contains("drained"), "{}", line.log());
    });
}

#[test]
fn process_1_says_how_the_version_that_served_has_ended() {
    isolated(|| {
        let lab = captured();
        let mut line = start(&lab, "");
        let process1 = supervisor(&line);
        let daemon = children(process1).first().expect("the daemon").0;
        send(daemon, Signal::KILL);
        // `unshare` passes the status on.
        assert_eq!(line.wait_first().code(), Some(128 + 9), "{}", line.log());

        let mut line = Line::start_unready(&lab.adit, "listen: { outbound: 5 }\n", "", |program| {
            first_process(&lab.adit, program)
        });
        assert_eq!(line.wait_first().code(), Some(78), "{}", line.log());
        assert!(line.log().contains("listen.outbound"), "{}", line.log());
    });
}

#[test]
fn a_version_that_cannot_serve_leaves_the_other_to_process_1() {
    isolated(|| {
        let lab = captured();
        let door = Door::open(&lab.server, PORT);
        let mut line = start(&lab, "");
        let process1 = supervisor(&line);
        let inner = line.status()["pid"].clone();
        for script in ["#!/bin/sh\nexit 3\n", "#!/bin/sh\nexec sleep 1000\n", "nothing\n"] {
            line.replace_program_by(script);
            let error = line.upgrade().expect_err("no version");
            assert!(error.contains("cannot s"), "{error}");
            carries(&lab, &door);
            assert_eq!(line.status()["pid"], inner);
            until(LIMIT, "nothing to be left of it", || (children(process1).len() == 1).then_some(()));
        }
        line.replace_program();
        let report = line.upgraded();
        assert_ne!(pid_of(&report["to"]["pid"]), pid_of(&inner));
        carries(&lab, &door);
        send(process1, Signal::TERM);
        assert_eq!(line.wait_first().code(), Some(0), "{}", line.log());
    });
}

/// Where a container shares its PID namespace the daemon is not process 1, and the container ends with it all the same.
#[test]
fn a_supervisor_can_be_had_anywhere() {
    isolated(|| {
        let lab = captured();
        let mut line = Line::start_by(&lab.adit, "", "", |program| {
            // `--supervise` belongs to `run`, which comes next.
            let mut command = lab.adit.command("sh");
            command.args(["-c", "program=$1; shift 2; exec \"$program\" run --supervise \"$@\"", "sh", program]);
            command
        });
        let supervisor = line.first();
        assert_ne!(line.pid(), supervisor);
        line.upgraded();
        send(supervisor, Signal::TERM);
        assert_eq!(line.wait_first().code(), Some(0), "{}", line.log());
    });
}
