//! Whatever is wrong with the new version: the old one serves on as if nothing had been, and says why.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::kit::{Door, LIMIT, isolated, until};
use crate::line::{Line, PORT, Pair, carries, runs, send, wait_gone};
use crate::world::captured;

/// Processes that an upgrade has started in the daemon's network namespace, launchers left out, the one that serves too.
fn started_by(line: &Line<'_>) -> usize {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let serves = line.pid().as_raw_pid().to_string();
    let here = namespace(&serves).expect("it runs");
    let processes = fs::read_dir("/proc").expect("proc").filter_map(|entry| {
        let pid = entry.ok()?.file_name().into_string().ok()?;
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let started = environment.split(|byte| *byte == 0).any(|it| it == b"ADIT_STARTED_BY=predecessor");
        (started && pid != serves && namespace(&pid)? == here).then_some(())
    });
    processes.count()
}

/// A socket file outlives an upgrade that fails, and is there as long as there is anything to ask.
#[test]
fn the_admin_socket_file_stays_as_long_as_the_version_that_serves() {
    isolated(|| {
        let lab = captured();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = format!("unix:{}", folder.path().join("admin.sock").display());
        let settings = format!("listen: {{ admin: '{address}' }}\nshutdown: {{ preDrain: 3s, deadline: 1s }}\n");
        let mut line = Line::start(&lab.adit, &settings, "");
        let ask = |command: &str| line.cli(&[command, "--admin", &address]).status.success();
        fs::write(line.file("broken.yaml"), "workloads: 3\n").expect("a writable folder");
        line.configure(&format!("{settings}mesh: {{ files: [broken.yaml] }}\n"));
        for _ in 0..2 {
            assert!(!ask("upgrade"));
            assert!(ask("status"), "the file is gone");
        }
        line.configure(&settings);
        assert!(ask("upgrade"));
        let first = line.first();
        until(LIMIT, "the first version to end", || (!runs(first)).then_some(()));
        assert!(ask("status"), "the file went with the old version");
        // To watch a drain is what it is for.
        assert!(ask("drain"));
        until(LIMIT, "the drain to be seen", || {
            let output = line.cli(&["status", "--admin", &address]);
            String::from_utf8_lossy(&output.stdout).contains("draining").then_some(())
        });
        until(LIMIT, "the end", || (!folder.path().join("admin.sock").exists()).then_some(()));
        assert!(line.wait_first().success());
    });
}

#[test]
fn a_new_version_that_cannot_serve_changes_nothing_and_says_why() {
    isolated(|| {
        let lab = captured();
        let line = Line::start(&lab.adit, "", "");
        let door = Door::open(&lab.server, PORT);
        let old = line.pid();
        let mut kept = Pair::new(&lab, &door);
        let mut refused = |what: &str, reasons: &[&str]| {
            let error = line.upgrade().expect_err(what);
            assert!(reasons.iter().all(|reason| error.contains(reason)), "{what}: {reasons:?}: {error}");
            assert_eq!(line.pid(), old, "{what}");
            assert!(line.healthy(), "{what}");
            carries(&lab, &door);
            kept.talk();
            until(LIMIT, "no process to be left", || (started_by(&line) == 0).then_some(()));
        };

        line.replace_program_by("#!/bin/sh\nexit 3\n");
        refused("it ends", &["cannot serve", "exit status: 3", "before it was ready"]);

        line.replace_program_by("#!/bin/sh\nkill -SEGV $$\n");
        refused("it crashes", &["cannot serve", "signal: 11"]);

        line.replace_program_by("not a program\n");
        refused("it is no program", &["cannot start", "adit: Exec format error"]);

        // Whoever says nothing is given up, and ended.
        line.replace_program_by("#!/bin/sh\nexec sleep 1000\n");
        let start = Instant::now();
        refused("it hangs", &["did not answer within 5s"]);
        assert!(start.elapsed() < Duration::from_secs(15));

        fs::remove_file(line.file("adit")).expect("our own file");
        refused("it is not there", &["cannot start", "No such file or directory"]);

        line.replace_program();
        line.configure("listen: { outbound: 5 }\n");
        refused("its settings are wrong", &["cannot serve", "adit.yaml:2", "listen.outbound"]);

        line.configure("listen: { metrics: '203.0.113.1:1' }\n");
        refused("it cannot listen", &["cannot serve", "listener metrics", "203.0.113.1:1", "Cannot assign"]);

        line.configure("mesh: { files: [broken.yaml] }\n");
        fs::write(line.file("broken.yaml"), "workloads: 3\n").expect("a writable folder");
        refused("its state is wrong", &["cannot serve", "broken.yaml"]);

        line.configure("");
        line.upgraded();
        carries(&lab, &door);
        assert_ne!(line.pid(), old);
        drop(kept);
        wait_gone(old, LIMIT);
        line.stop(&["the upgrade has failed", "error: ", "broken.yaml", "adit.yaml", "restart"]);
    });
}

/// A new version that comes to nothing is never the one that answers, with sockets that are both's.
#[test]
fn nobody_who_asks_sees_anything_of_upgrades_that_fail() {
    isolated(|| {
        let lab = captured();
        let line = Line::start(&lab.adit, "", "");
        fs::write(line.file("broken.yaml"), "workloads: 3\n").expect("a writable folder");
        line.configure("mesh: { files: [broken.yaml] }\n");
        let over = AtomicBool::new(false);
        let (answered, wrong) = thread::scope(|scope| {
            let asking = scope.spawn(|| line.ask(&over));
            let failing = scope.spawn(|| {
                for _ in 0..15 {
                    line.upgrade().expect_err("a state that is wrong");
                }
            });
            let failed = failing.join();
            over.store(true, Ordering::Relaxed);
            failed.expect("every one fails");
            asking.join().expect("no panics")
        });
        assert!(wrong.is_empty(), "{} of {answered}: {wrong:#?}", wrong.len());
        assert!(answered > 30, "{answered} are no questions");
        line.stop(&["the upgrade has failed", "broken.yaml", "error: ", "restart"]);
    });
}

/// Sockets are both's, options and all: those of a version that comes to nothing must never be in force.
#[test]
fn a_failed_upgrade_leaves_the_options_of_sockets_alone() {
    isolated(|| {
        let lab = captured();
        let line = Line::start(&lab.adit, "", "");
        let marks = || lab.adit.output("ss", &["-Htlne", "sport = :15001"]).matches("fwmark:0x539").count();
        let before = marks();
        assert!(before > 0, "{}", lab.adit.output("ss", &["-Htlne"]));
        fs::write(line.file("broken.yaml"), "workloads: 3\n").expect("a writable folder");
        line.configure("packetMark: off\nmesh: { files: [broken.yaml] }\n");
        line.upgrade().expect_err("a state that is wrong");
        assert_eq!(marks(), before);
        line.configure("packetMark: off\n");
        line.upgraded();
        until(LIMIT, "the new version's options", || (marks() == 0).then_some(()));
        line.stop(&["the upgrade has failed", "broken.yaml", "error: ", "restart"]);
    });
}

/// The version that is told to stop takes the one that it has started with it.
#[test]
fn a_version_that_stops_takes_the_upgrade_back() {
    isolated(|| {
        let lab = captured();
        let line = Line::start(&lab.adit, "shutdown: { deadline: 5s }\n", "");
        let old = line.pid();
        line.replace_program_by("#!/bin/sh\necho waiting >&2\nexec sleep 1000\n");
        send(old, Signal::USR2);
        line.wait_log("waiting");
        until(LIMIT, "the new process", || (started_by(&line) == 1).then_some(()));
        send(old, Signal::TERM);
        wait_gone(old, LIMIT);
        let left = || {
            let processes = fs::read_dir("/proc").expect("proc").filter_map(|entry| {
                let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
                line.starts_with(b"sleep\x001000\x00").then_some(())
            });
            processes.count()
        };
        until(LIMIT, "the new process to be ended", || (left() == 0).then_some(()));
        assert!(line.log().contains("adit is stopping"), "{}", line.log());
    });
}

/// Nothing is asked of a version that is about to take over; one that has lost its predecessor does not wait for it.
#[test]
fn a_predecessor_that_is_killed_leaves_its_place() {
    isolated(|| {
        let lab = captured();
        let mut line = Line::start(&lab.adit, "", "workloads: []\n");
        let door = Door::open(&lab.server, PORT);
        let old = line.pid();
        // The new one waits for a file, and so the old one for the new one.
        line.configure("mesh: { files: [late.yaml] }\n");
        fs::rename(line.file("files.yaml"), line.file("files.old")).expect("our own file");
        fs::write(line.file("files.yaml"), "{}\n").expect("a writable folder");
        send(old, Signal::USR2);
        line.wait_log("upgrade: the new version has been started");
        until(LIMIT, "the new process", || (started_by(&line) == 1).then_some(()));
        line.wait_log("late.yaml");
        assert_eq!(line.pid(), old);
        carries(&lab, &door);
        send(old, Signal::KILL);
        line.wait_first();
        fs::write(line.file("late.yaml"), "workloads: []\n").expect("a writable folder");
        until(LIMIT, "the new one to serve", || line.healthy().then_some(()));
        assert_ne!(line.pid(), old);
        assert!(!runs(old));
        carries(&lab, &door);
        line.wait_log("the version before has died: taken over");
        line.stop(&["has died: taken over", "late.yaml", "restart"]);
    });
}
