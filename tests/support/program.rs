//! Programs run to their end with a time limit, and files of the mount namespace that every program reads.

use std::fs;
use std::process::{Command, Output, Stdio};

use crate::kit::host::Host;
use crate::kit::isolate::finish;

/// What a program did.
pub struct Done {
    /// Exit code; `None`: a signal.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    /// What it printed; panics with what it said if it failed.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.out, self.err);
        self.out
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

/// Runs `program` in `host`, killed after 60 s (exit code 124 or 137).
pub fn run(host: &Host, program: &str, arguments: &[&str]) -> Done {
    let mut command = host.command("timeout");
    command.args(["--kill-after=1", "60", program]).args(arguments);
    wait(&mut command)
}

/// [`run`] for one line of shell.
pub fn shell(host: &Host, line: &str) -> Done {
    run(host, "sh", &["-c", line])
}

/// The binary under test.
pub fn adit(host: &Host, arguments: &[&str]) -> Done {
    run(host, env!("CARGO_BIN_EXE_adit"), arguments)
}

pub fn wait(command: &mut Command) -> Done {
    let output = command.stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}")).into()
}

/// Panics unless every program is there: a test without its client must fail, not skip.
pub fn need(programs: &[&str]) {
    for program in programs {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().expect("sh");
        assert!(found.status.success(), "{program} is not installed; .ci/run says which packages tests need");
    }
}

/// Names that the system's resolver knows, beside `localhost`; asking for any other fails at once.
pub fn names(hosts: &str) {
    for (path, text) in [
        ("/etc/hosts", format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n{hosts}")),
        ("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n".to_owned()),
    ] {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), text).expect("our own file");
        let target = fs::canonicalize(path).unwrap_or_else(|_missing| path.into());
        finish(Command::new("mount").arg("--bind").arg(file.path()).arg(target));
        // Stays as long as it is mounted.
    }
}

/// Says that a part of a test is not run for want of a program that CI does not install either.
#[expect(clippy::print_stderr, reason = "a skip must be seen")]
pub fn absent(program: &str) {
    eprintln!("NOT TESTED: {program} is not installed");
}
