//! Runs the body of a test in a process of its own inside fresh namespaces.
//!
//! The test process starts itself again under `unshare`, asking libtest for exactly the one test; there, [`isolated`] finds
//! itself inside and runs the body. So `cargo test` counts, names and filters these tests like any other. Parent and child
//! watch each other: the parent kills the child's whole process group at the time limit and after its end; the child kills
//! the group when the parent is gone (its standard input closes).

use std::any::type_name;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;
use std::{env, fs};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpgrp, kill_process_group, pidfd_open, waitid,
};

use super::wait::{LIMIT, until};

/// Set for the child.
const INSIDE: &str = "ADIT_NETNS_INSIDE";
/// Set besides, for those that have one.
const CGROUP: &str = "ADIT_NETNS_CGROUP";
/// `skip` turns the failure on machines without user namespaces into a loud skip.
const TESTS: &str = "ADIT_NETNS_TESTS";
/// Before what a test has measured, so that it comes out where the test passes, too.
const MEASURED: &str = "measured: ";
/// Most tests take less than a second; the machine may be busy.
const TIME_LIMIT: Duration = Duration::from_secs(90);

/// Runs `body` isolated; fails if it panics or takes longer than 90 s. Must be called straight from the `#[test]` function
/// with a closure: the name of the test is read from the closure's type.
pub fn isolated<F: FnOnce()>(body: F) {
    isolated_within(TIME_LIMIT, body);
}

/// [`isolated`] with a time limit of its own.
pub fn isolated_within<F: FnOnce()>(limit: Duration, body: F) {
    if env::var_os(INSIDE).is_some() {
        thread::spawn(die_with_parent);
        body();
        return;
    }
    match unshare_arguments() {
        Ok(arguments) => start_again(&test_name::<F>(), arguments, limit),
        Err(why) if env::var_os(TESTS).is_some_and(|value| value == "skip") => {
            say(&format!("SKIPPED, as {TESTS}=skip demands: {}: {why}", test_name::<F>()));
        }
        Err(why) => panic!(
            "this test needs a network namespace of its own, which this machine refuses: {why}\n\
             Allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns, \
             the container's seccomp profile), run as root, or set {TESTS}=skip."
        ),
    }
}

/// [`isolated`] without a user namespace, for what needs more users than one: only root can do that.
pub fn isolated_as_root<F: FnOnce()>(body: F) {
    if env::var_os(INSIDE).is_some() {
        thread::spawn(die_with_parent);
        body();
        return;
    }
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    start_again(&test_name::<F>(), AS_ROOT, TIME_LIMIT);
}

/// [`isolated_as_root`] in a cgroup of its own, whose folder `body` is given; programs that are attached to it go with it.
pub fn isolated_in_cgroup<F: FnOnce(&Path)>(body: F) {
    if let Some(cgroup) = own_cgroup() {
        thread::spawn(die_with_parent);
        fs::write(cgroup.join("cgroup.procs"), "0").expect("our own cgroup");
        body(&cgroup);
        return;
    }
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let name = test_name::<F>();
    let cgroup = OwnCgroup::new(&name);
    start_again_with(&name, AS_ROOT, TIME_LIMIT, &[(CGROUP, cgroup.0.as_os_str())]);
}

/// That of [`isolated_in_cgroup`].
pub fn own_cgroup() -> Option<PathBuf> {
    env::var_os(CGROUP).map(PathBuf::from)
}

/// Removed with whoever it was made for.
struct OwnCgroup(PathBuf);

impl OwnCgroup {
    fn new(name: &str) -> Self {
        let mount = adit::net::cgroup::mount().expect("this test needs the file system cgroup2, mounted somewhere");
        let folder = mount.join(format!("adit-test-{}-{}", std::process::id(), name.replace("::", "-")));
        fs::create_dir(&folder).expect("a cgroup of our own");
        Self(folder)
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = remove_cgroup(&self.0);
        } else {
            // Those who were killed may take a moment to leave.
            until(LIMIT, "the cgroup to be left", || remove_cgroup(&self.0).ok());
        }
    }
}

/// With what the test made in it.
fn remove_cgroup(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.filter_map(Result::ok).filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path())?;
    }
    fs::remove_dir(folder)
}

/// Says what has been measured: seen with `--nocapture`, and where the test fails.
pub fn measured(what: &str) {
    say(&format!("{MEASURED}{what}"));
}

/// Runs a command to its end and returns what it printed; panics with what it said if it fails.
pub fn finish(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}{complained}", output.status);
    said
}

/// `netns::redirect::some_test::{{closure}}` -> `redirect::some_test`.
fn test_name<F>() -> String {
    let path = type_name::<F>().trim_end_matches("::{{closure}}");
    path.split_once("::").map_or(path, |(_, name)| name).to_owned()
}

const AS_ROOT: &[&str] = &["--net", "--mount"];

/// How this machine lets us have namespaces: as anybody by way of a user namespace, or as root without one.
fn unshare_arguments() -> Result<&'static [&'static str], &'static str> {
    const WITH_USER: &[&str] = &["--user", "--map-root-user", "--net", "--mount"];
    static ANSWER: OnceLock<Result<&[&str], String>> = OnceLock::new();
    ANSWER
        .get_or_init(|| {
            let mut complaints = String::new();
            for arguments in [WITH_USER, AS_ROOT] {
                // Also proves that the capabilities count there, which AppArmor can prevent.
                let output =
                    Command::new("unshare").args(arguments).args(["--", "ip", "link", "set", "lo", "up"]).output();
                match output {
                    Ok(output) if output.status.success() => return Ok(arguments),
                    Ok(output) => complaints.push_str(&String::from_utf8_lossy(&output.stderr)),
                    Err(error) => complaints.push_str(&format!("cannot run unshare: {error}\n")),
                }
            }
            Err(complaints)
        })
        .as_ref()
        .map(|arguments| *arguments)
        .map_err(String::as_str)
}

fn start_again(name: &str, arguments: &[&str], limit: Duration) {
    start_again_with(name, arguments, limit, &[]);
}

fn start_again_with(name: &str, arguments: &[&str], limit: Duration, environment: &[(&str, &OsStr)]) {
    let mut output = tempfile::tempfile().expect("a temporary file");
    let copy = || Stdio::from(output.try_clone().expect("a second descriptor"));
    let mut child = Command::new("unshare")
        .args(arguments)
        .arg("--")
        .arg(env::current_exe().expect("our own path"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(copy())
        .stderr(copy())
        .process_group(0)
        .spawn()
        .expect("unshare was there a moment ago");
    let status = wait_and_clean_up(&mut child, limit);
    let said = read_all(&mut output);
    match status {
        None => panic!("{name} did not end within {limit:?} and was killed; it said:\n{said}"),
        Some(status) if !status.success() => panic!("{name} failed inside its namespaces ({status}):\n{said}"),
        Some(_) => {
            assert!(said.contains("test result: ok. 1 passed"), "{name} was not run inside:\n{said}");
            said.lines()
                .filter_map(|line| line.split_once(MEASURED))
                .for_each(|(_, what)| say(&format!("{MEASURED}{what}")));
        }
    }
}

/// `None` if the time was over. Either way nothing of the child's process group is left.
fn wait_and_clean_up(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd_open, Linux 5.3");
    let limit = Timespec::try_from(limit).expect("a time limit in range");
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).expect("poll") == 1;
    if !ended {
        // What it was doing is in its output; the group goes first.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    // The group's number is ours as long as its leader has not been waited for.
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).expect("our child");
    let _ = kill_process_group(pid, Signal::KILL);
    let status = child.wait().expect("our child");
    ended.then_some(status)
}

fn read_all(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().expect("a file");
    file.read_to_end(&mut bytes).expect("a file");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn die_with_parent() {
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    let _ = kill_process_group(getpgrp(), Signal::KILL);
}

#[expect(clippy::print_stderr, reason = "a skip must be seen, and a measurement")]
fn say(text: &str) {
    eprintln!("{text}");
}
