//! The units of `config/systemd` under a real systemd, which is process 1 of namespaces of its own: hardening must not be in
//! adit's way, and starting, reloading, upgrading, restarting, crashing and stopping must be what the units say.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::thread;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::kit::isolate::finish;
use crate::kit::{Door, Host, LIMIT, isolated_as_root, until};
use crate::line::{PORT, carries, pid_of, put, send};
use crate::process1::children;
use crate::world::{BINARY, captured};

const UNITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/systemd");

/// A machine that runs systemd, but for its network, which is a host's.
struct Machine<'a> {
    host: &'a Host,
    folder: tempfile::TempDir,
    unshare: Child,
    systemd: Pid,
}

impl<'a> Machine<'a> {
    fn start(host: &'a Host, settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path().join("root");
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a writable folder");
            fs::write(path, text).expect("a writable folder");
        };
        for unit in fs::read_dir(UNITS).expect("the units") {
            let unit = unit.expect("an entry");
            let name = unit.file_name().into_string().expect("text");
            write(&format!("etc/systemd/system/{name}"), &fs::read_to_string(unit.path()).expect("text"));
        }
        // No journal here.
        let log = "[Service]\nStandardOutput=append:/var/log/adit.log\nStandardError=append:/var/log/adit.log\n";
        write("etc/systemd/system/adit.service.d/log.conf", log);
        write("etc/adit/adit.yaml", settings);
        let passwd = fs::read_to_string("/etc/passwd").expect("text");
        write("etc/passwd", &format!("{passwd}adit:x:64000:64000::/nonexistent:/usr/sbin/nologin\n"));
        fs::create_dir_all(root.join("usr/local/bin")).expect("a writable folder");
        put(BINARY.as_ref(), &root.join("usr/local/bin/adit"));
        for path in ["", "etc", "etc/adit", "usr", "usr/local", "usr/local/bin", "usr/local/bin/adit"] {
            fs::set_permissions(root.join(path), PermissionsExt::from_mode(0o755)).expect("our own file");
        }
        let console = File::create(folder.path().join("console")).expect("a writable folder");
        let mut command = host.command("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts", "--cgroup", "sh"]);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/upgrade/systemd-root.sh")).arg(&root);
        command.stdin(Stdio::null()).stdout(console.try_clone().expect("a file")).stderr(console);
        let mut unshare = command.spawn().expect("unshare");
        let said = || fs::read_to_string(folder.path().join("console")).unwrap_or_default();
        let systemd = until(LIMIT, "systemd", || {
            let ended = unshare.try_wait().expect("our child");
            assert!(ended.is_none(), "{ended:?}: {}", said());
            children(Pid::from_child(&unshare)).first().map(|(pid, _)| *pid)
        });
        let machine = Self { host, folder, unshare, systemd };
        until(LIMIT, &format!("systemd to answer; {}", machine.console()), || {
            machine.run(&["systemctl", "list-units"]).status.success().then_some(())
        });
        machine
    }

    /// A program on the machine.
    fn run(&self, program: &[&str]) -> Output {
        let mut command = self.host.command("nsenter");
        command.args(["-t", &self.systemd.as_raw_pid().to_string(), "-m", "-p", "-i", "-u", "-r", "-w", "--"]);
        command.args(program).output().expect("nsenter")
    }

    fn ok(&self, program: &[&str]) -> String {
        let output = self.run(program);
        assert!(output.status.success(), "{program:?}: {output:?}\n{}\n{}", self.console(), self.log());
        String::from_utf8(output.stdout).expect("text")
    }

    /// A property of `adit.service`.
    fn show(&self, property: &str) -> String {
        self.ok(&["systemctl", "show", "--value", "-p", property, "adit.service"]).trim().to_owned()
    }

    fn wait(&self, property: &str, want: &str) {
        let what = format!("{property} {want}");
        until(LIMIT, &what, || (self.show(property) == want).then_some(()));
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["adit", "status", "--json"])).expect("JSON")
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.run(&["cat", "/var/log/adit.log"]).stdout).into_owned()
    }

    fn console(&self) -> String {
        fs::read_to_string(self.folder.path().join("console")).unwrap_or_default()
    }

    fn replace(&self, path: &str, text: &str) {
        self.ok(&["sh", "-c", &format!("cat > {path} <<'E'\n{text}E")]);
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            show(&format!("{}\n{}", self.console(), self.log()));
        }
        // With it ends the namespace and whatever runs in it.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

#[expect(clippy::print_stderr, reason = "what systemd and the daemon said is half of every failure")]
fn show(said: &str) {
    eprintln!("{said}");
}

#[test]
fn the_units_do_what_they_say() {
    isolated_as_root(|| {
        let lab = captured();
        let door = Door::open(&lab.server, PORT);
        let settings = "preserveSource: off\nshutdown: { deadline: 3s }\n";
        let machine = Machine::start(&lab.adit, settings);
        machine.ok(&["systemctl", "start", "adit-outbound.socket", "adit-inbound.socket", "adit.service"]);
        assert_eq!(machine.show("ActiveState"), "active", "{}", machine.log());
        let first = machine.show("MainPID");
        assert_eq!(machine.status()["pid"].to_string(), first);
        assert_eq!(machine.show("StatusText"), "accepting connections");
        assert!(!machine.log().contains("warn"), "{}", machine.log());
        carries(&lab, &door);

        machine.ok(&["systemctl", "reload", "adit.service"]);
        machine.replace("/etc/adit/adit.yaml", "nonsense: 1\n");
        assert!(!machine.run(&["systemctl", "reload", "adit.service"]).status.success(), "settings that are not valid");
        assert_eq!(machine.show("ActiveState"), "active");
        machine.replace("/etc/adit/adit.yaml", settings);
        machine.ok(&["systemctl", "reload", "adit.service"]);

        // An upgrade is no restart: another main process, the same service.
        machine.ok(&[
            "sh",
            "-c",
            "cp /usr/local/bin/adit /usr/local/bin/new && mv /usr/local/bin/new /usr/local/bin/adit",
        ]);
        let report: Value = serde_json::from_str(&machine.ok(&["adit", "upgrade", "--json"])).expect("JSON");
        let second = pid_of(&report["to"]["pid"]).as_raw_pid().to_string();
        machine.wait("MainPID", &second);
        assert_ne!(second, first);
        until(LIMIT, "the first to end", || {
            (!machine.run(&["test", "-d", &format!("/proc/{first}")]).status.success()).then_some(())
        });
        assert_eq!((machine.show("ActiveState"), machine.show("NRestarts")), ("active".into(), "0".into()));
        carries(&lab, &door);

        // While it restarts, connections wait.
        let waited = thread::scope(|scope| {
            let restarting = scope.spawn(|| machine.ok(&["systemctl", "restart", "adit.service"]));
            let mut carried = 0;
            while !restarting.is_finished() {
                carries(&lab, &door);
                carried += 1;
            }
            carried
        });
        assert!(waited > 0);
        assert_ne!(machine.show("MainPID"), second);
        carries(&lab, &door);

        // A crash is followed by a start, and whoever has come meanwhile is served.
        let third = machine.show("MainPID");
        machine.ok(&["kill", "-KILL", &third]);
        carries(&lab, &door);
        machine.wait("NRestarts", "1");
        machine.wait("ActiveState", "active");

        // Settings that are wrong are not tried again and again.
        machine.replace("/etc/adit/adit.yaml", "nonsense: 1\n");
        assert!(!machine.run(&["systemctl", "restart", "adit.service"]).status.success());
        assert_eq!((machine.show("ActiveState"), machine.show("ExecMainStatus")), ("failed".into(), "78".into()));
        machine.replace("/etc/adit/adit.yaml", settings);
        machine.ok(&["systemctl", "reset-failed", "adit.service"]);
        machine.ok(&["systemctl", "start", "adit.service"]);
        carries(&lab, &door);
        machine.ok(&["systemctl", "stop", "adit.service"]);
        assert_eq!(machine.show("Result"), "success", "{}", machine.log());
        send(machine.systemd, Signal::KILL);
    });
}

/// What systemd itself thinks of the units.
#[test]
fn the_units_are_valid_and_tight() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut units = Vec::new();
    for unit in fs::read_dir(UNITS).expect("the units") {
        let path = unit.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("text").replace("/usr/local/bin/adit", BINARY);
        let copy = folder.path().join(path.file_name().expect("a name"));
        fs::write(&copy, text).expect("a writable folder");
        units.push(copy);
    }
    assert_eq!(units.len(), 5);
    let mut verify = std::process::Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).args(&units).env("SYSTEMD_LOG_LEVEL", "warning");
    let output = verify.output().expect("systemd-analyze");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
    // 0 is safest, 10 nothing done. A service of defaults has 9.6.
    let of = |unit: &str, most: &str| {
        let mut command = std::process::Command::new("systemd-analyze");
        command.args(["security", "--offline=yes", "--no-pager", &format!("--threshold={most}")]);
        finish(command.arg(Path::new(folder.path()).join(unit)))
    };
    of("adit.service", "25");
    of("adit-redirect.service", "50");
}
