//! The kit itself: what must fail does fail, and nothing outlives a test.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs, io, process};

use crate::kit::door::{Dial, talk};
use crate::kit::isolate::finish;
use crate::kit::wait::pause;
use crate::kit::{Adit, Door, Family, LIMIT, Lab, isolated, isolated_within, until};

#[test]
#[should_panic(expected = "did not end within")]
fn a_test_that_hangs_is_killed() {
    isolated_within(Duration::from_secs(1), || {
        loop {
            pause(LIMIT);
        }
    });
}

#[test]
#[should_panic(expected = "failed inside its namespaces")]
fn a_failure_inside_is_a_failure() {
    isolated(|| panic!("as it should"));
}

#[test]
#[should_panic(expected = "was not run inside")]
fn a_test_that_is_not_found_inside_is_a_failure() {
    fn misnamed() {
        isolated(|| {});
    }
    misnamed();
}

/// A program that the body leaves running is gone when the test is over.
#[test]
fn nothing_outlives_a_test() {
    let pid_file = |pid: u32| -> PathBuf { env::temp_dir().join(format!("adit-kit-{pid}")) };
    isolated(|| {
        let pid = finish(process::Command::new("sh").args(["-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]));
        fs::write(pid_file(std::os::unix::process::parent_id()), pid.trim()).expect("a temporary file");
    });
    // Inside there is no such file: the body above has already run.
    let path = pid_file(process::id());
    let Ok(pid) = fs::read_to_string(&path) else { return };
    fs::remove_file(&path).expect("our own file");
    until(LIMIT, "the child's child to be gone", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn hosts_reach_each_other_and_black_holes_swallow() {
    isolated(|| {
        let lab = Lab::new();
        for host in ["client", "adit", "server"] {
            let door = Door::open(lab.host(host), 7000);
            for family in Family::BOTH {
                let to = (lab.host(host).address(family), 7000).into();
                let fourth = lab.add_host(&format!("{host}-{family:?}"), 4);
                for from in [&lab.client, &lab.adit, &lab.server, &fourth] {
                    let mut stream = Dial::default().connect(from, to).expect("connected");
                    talk(&mut stream, &mut door.accept().stream);
                }
            }
        }
        let door = Door::open(&lab.server, 8000);
        let to = (lab.server.address(Family::V4), 8000).into();
        lab.client.black_hole("tcp dport 8000");
        let hasty = Dial { limit: Some(Duration::from_millis(200)), ..Dial::default() };
        assert_eq!(hasty.connect(&lab.client, to).expect_err("swallowed").kind(), io::ErrorKind::TimedOut);
        lab.client.heal();
        let _stream = Dial::default().connect(&lab.client, to).expect("healed");
        door.accept();
    });
}

/// A script that stands in for the daemon: logs `log`, ends with `status` on SIGTERM.
fn stand_in(lab: &Lab, log: &str, status: u8) -> Adit {
    let folder = tempfile::tempdir().expect("a temporary folder").keep();
    let script = folder.join("adit");
    let text = format!(
        "#!/bin/sh\nrm -r {}\ntrap 'exit {status}' TERM\nprintf '{log}\\nready\\n' >&2\nwhile :; do sleep 0.02; done\n",
        folder.display()
    );
    fs::write(&script, text).expect("a writable folder");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("our own file");
    let adit = Adit::start_program(script.to_str().expect("text"), &lab.adit, "", "");
    adit.wait_log("ready");
    adit
}

#[test]
fn a_clean_daemon_passes() {
    isolated(|| {
        let lab = Lab::new();
        stand_in(&lab, "now\\tinfo\\tapp\\tno WARN here", 0).stop();
        let mut noisy = stand_in(&lab, "now\\twarn\\tapp\\tas expected", 0);
        noisy.expect_log("as expected");
        noisy.stop();
    });
}

#[test]
#[should_panic(expected = "failed inside its namespaces")]
fn an_unexpected_warning_fails() {
    isolated(|| stand_in(&Lab::new(), "now\\twarn\\tapp\\toops", 0).stop());
}

#[test]
#[should_panic(expected = "failed inside its namespaces")]
fn an_unexpected_error_in_json_fails() {
    isolated(|| stand_in(&Lab::new(), "{\"level\":\"error\",\"message\":\"oops\"}", 0).stop());
}

#[test]
#[should_panic(expected = "failed inside its namespaces")]
fn an_expected_warning_that_does_not_come_fails() {
    isolated(|| {
        let mut quiet = stand_in(&Lab::new(), "now\\tinfo\\tapp\\tfine", 0);
        quiet.expect_log("oops");
        quiet.stop();
    });
}

#[test]
#[should_panic(expected = "failed inside its namespaces")]
fn a_daemon_that_ends_badly_fails() {
    isolated(|| stand_in(&Lab::new(), "now\\tinfo\\tapp\\tfine", 3).stop());
}
