//! `adit demo` as a new user meets it: an ordinary user without a capability, who pastes what it prints.

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "netns/kit.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod kit;
#[path = "support/program.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod program;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use kit::door::Dial;
use kit::{Door, Host, LIMIT, Lab, isolated, until};
use program::{Done, need, run, shell, wait};

/// The issue says one second; a debug build on a machine busy with other tests gets six.
const READY_WITHIN: Duration = Duration::from_secs(6);

/// User 65534 in a user namespace of its own: after `exec` it has no capability, not even there.
const AS_NOBODY: [&str; 4] = ["--user", "--map-user=65534", "--map-group=65534", "--"];

/// A running demo. Killed when dropped.
struct Demo {
    child: Child,
    said: Arc<Mutex<String>>,
    log: Arc<Mutex<String>>,
    temporary: TempDir,
    home: TempDir,
}

impl Demo {
    fn start(host: &Host, arguments: &[&str]) -> Self {
        Self::start_in(host, tempfile::tempdir().expect("a temporary folder"), arguments)
    }

    fn start_in(host: &Host, temporary: TempDir, arguments: &[&str]) -> Self {
        let mut command = host.command("unshare");
        command.args(AS_NOBODY).arg(env!("CARGO_BIN_EXE_adit")).arg("demo").args(arguments);
        let home = tempfile::tempdir().expect("a temporary folder");
        command.env("HOME", home.path()).env_remove("XDG_STATE_HOME").env("TMPDIR", temporary.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("unshare");
        let said = collect(child.stdout.take().expect("piped"));
        let log = collect(child.stderr.take().expect("piped"));
        Self { child, said, log, temporary, home }
    }

    /// Waits for the last line of the greeting, and returns it all.
    fn greeting(&mut self) -> String {
        until(LIMIT, "the greeting", || {
            assert!(self.child.try_wait().expect("our child").is_none(), "it ended: {}", text(&self.log));
            Some(text(&self.said)).filter(|said| said.contains("ctrl-C"))
        })
    }

    fn ctrl_c(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("a running demo");
    }

    fn wait(&mut self, limit: Duration) -> ExitStatus {
        until(limit, "the demo to end", || self.child.try_wait().expect("our child"))
    }

    /// What is in its temporary folder.
    fn leftovers(&self) -> Vec<PathBuf> {
        entries(self.temporary.path())
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    fn mesh_file(&self) -> PathBuf {
        let folders = self.leftovers();
        let [folder] = folders.as_slice() else { panic!("one folder, not {folders:?}") };
        folder.join("mesh.yaml")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Fails if it has ended, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(pipe: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let sink = Arc::clone(&text);
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
            sink.push_str(&line);
            sink.push('\n');
        }
    });
    text
}

fn text(collected: &Mutex<String>) -> String {
    collected.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
}

/// Puts a whole file in place at once.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).expect("a writable folder");
    fs::rename(&beside, path).expect("the same folder");
}

/// The line that curl is given, with what curl itself needs to fail on an error.
fn paste(host: &Host, line: &str) -> String {
    let done = shell(host, line);
    assert_eq!(done.code, Some(0), "{line}: {}", done.err);
    done.out
}

#[test]
fn what_it_prints_works_when_pasted() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        let started = Instant::now();
        let mut demo = Demo::start(&lab.adit, &[]);
        let greeting = demo.greeting();
        let took = started.elapsed();
        assert!(took < READY_WITHIN, "ready after {took:?}");
        let status = fs::read_to_string(format!("/proc/{}/status", demo.child.id())).expect("a running demo");
        for set in ["CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
        }

        let lines: Vec<&str> = greeting.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
        let answers: Vec<String> = lines.iter().map(|line| paste(&lab.adit, line)).collect();
        let [hello, metrics, connections] = answers.as_slice() else { panic!("three lines to paste: {greeting}") };
        assert!(hello.contains("GET /hello HTTP/1.1"), "{hello}");
        assert!(metrics.contains("istio_tcp_connections_opened_total") && metrics.ends_with("# EOF\n"), "{metrics}");
        let connections: serde_json::Value = serde_json::from_str(connections).expect("JSON");
        assert!(connections["connections"].is_array(), "{connections}");

        // The words in `--help` are pasted as well.
        let help = run(&lab.adit, env!("CARGO_BIN_EXE_adit"), &["demo", "--help"]).ok();
        let line = help.lines().map(str::trim).find(|line| line.starts_with("curl ")).expect("an example");
        assert!(paste(&lab.adit, line).contains("adit carried this"), "{line}");

        calm(&text(&demo.log));
        demo.ctrl_c();
        assert!(demo.wait(LIMIT).success());
    });
}

/// The one line of a demo that goes well that is not `info`.
const NOT_FOR_PRODUCTION: &str = "the certificates come from the dev source, which is not for production";

/// Nothing in the log alarms anybody, but the dev source names itself.
fn calm(log: &str) {
    let level = |line: &&str| line.contains("\twarn\t") || line.contains("\terror\t") || line.contains("panicked");
    let alarms: Vec<&str> = log.lines().filter(level).filter(|line| !line.contains(NOT_FOR_PRODUCTION)).collect();
    assert!(alarms.is_empty(), "{alarms:#?}");
    assert!(log.contains(NOT_FOR_PRODUCTION), "{log}");
}

const IDENTITY: &str = "spiffe://cluster.local/ns/demo/sa/echo";

/// The access line of that listener.
fn line(demo: &Demo, listener: &str) -> String {
    until(LIMIT, &format!("a line of {listener}"), || {
        let log = text(&demo.log);
        let of = |line: &&str| line.contains("\taccess\t") && line.contains(&format!("listener=\"{listener}\""));
        log.lines().find(of).map(str::to_owned)
    })
}

#[test]
fn it_goes_through_a_tunnel_and_says_so() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        let mut demo = Demo::start(&lab.adit, &[]);
        let greeting = demo.greeting();
        for word in ["tunnel", "mutual TLS", "not for production"] {
            assert!(greeting.contains(word), "{word}: {greeting}");
        }
        let curl = "curl --silent --proxy socks5h://127.0.0.1:15080 http://echo.demo.svc.cluster.local/";
        paste(&lab.adit, curl);
        // Both ends of the stream, which is one connection to the client and one to the far side.
        for (listener, direction) in [("socks5", "outbound"), ("hbone", "inbound")] {
            let line = line(&demo, listener);
            for word in [
                format!("src.identity=\"{IDENTITY}\""),
                format!("dst.identity=\"{IDENTITY}\""),
                format!("direction=\"{direction}\""),
                "dst.addr=127.0.0.1:15008 ".to_owned(),
                "dst.hbone_addr=\"127.0.0.1:18080\"".to_owned(),
                "close_reason=\"finished\"".to_owned(),
            ] {
                assert!(line.contains(&word), "{word}: {line}");
            }
        }
        let adit = |arguments: &[&str]| run(&lab.adit, env!("CARGO_BIN_EXE_adit"), arguments).ok();
        let certs = adit(&["certs"]);
        assert!(certs.contains(IDENTITY) && certs.contains("CN=adit dev root"), "{certs}");
        assert!(certs.contains("by the own certificate and peers"), "{certs}");
        until(LIMIT, "both ends of the tunnel in the status", || {
            let status = adit(&["status"]);
            ["to peers", "from peers"]
                .iter()
                .all(|end| status.contains(&format!("  {end:<10} 1, open streams 0\n")))
                .then_some(())
        });

        // A stream that is open is listed at both ends.
        let mut client = Dial::default().connect(&lab.adit, (Ipv4Addr::LOCALHOST, 15080).into()).expect("the door");
        client.write_all(&[5, 1, 0, 5, 1, 0, 1, 10, 99, 0, 1, 0, 80]).expect("write");
        client.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
        client.read_exact(&mut [0; 12]).expect("an answer");
        let listed = adit(&["connections"]);
        for listener in ["socks5", "hbone"] {
            let of = |row: &&str| row.split_whitespace().nth(2) == Some(listener);
            let row = listed.lines().find(of).unwrap_or_else(|| panic!("{listener}: {listed}"));
            assert!(row.contains(&format!("{IDENTITY} -> {IDENTITY}")), "{row}");
        }
        drop(client);

        // In the clear from the next connection on, and the file says how.
        let file = demo.mesh_file();
        let mesh = fs::read_to_string(&file).expect("the mesh");
        let log = Arc::clone(&demo.log);
        let lines = || text(&log).lines().filter(|line| line.contains("\taccess\t")).count();
        until(LIMIT, "both lines of both connections", || (lines() == 4).then_some(()));
        replace(&file, &mesh.replace("protocol: HBONE", "protocol: TCP"));
        until(LIMIT, "the new mesh", || text(&demo.log).contains("generation=2").then_some(()));
        paste(&lab.adit, curl);
        let plain = until(LIMIT, "its line", || {
            text(&demo.log).lines().filter(|line| line.contains("\taccess\t")).nth(4).map(str::to_owned)
        });
        assert!(plain.contains("listener=\"socks5\"") && plain.contains("dst.addr=127.0.0.1:18080 "), "{plain}");
        assert!(!plain.contains("hbone_addr") && !plain.contains("identity="), "{plain}");
        calm(&text(&demo.log));
        demo.ctrl_c();
        assert!(demo.wait(LIMIT).success());
        assert_eq!(lines(), 5, "no other line of a connection: {}", text(&demo.log));
        assert_eq!(demo.leftovers(), Vec::<PathBuf>::new());
    });
}

/// Its certificates are its own: nothing of the user's is read or written.
#[test]
fn its_identity_lies_in_its_own_folder() {
    isolated(|| {
        let lab = Lab::new();
        let mut demo = Demo::start(&lab.adit, &[]);
        demo.greeting();
        let mesh = demo.mesh_file();
        let identity = mesh.parent().expect("a folder").join("identity");
        assert!(!entries(&identity).is_empty(), "{identity:?}");
        assert!(!demo.home().join(".local").exists() && !demo.home().join(".config").exists());
        demo.ctrl_c();
        assert!(demo.wait(LIMIT).success());
        assert_eq!(demo.leftovers(), Vec::<PathBuf>::new());
        assert_eq!(entries(demo.home()), Vec::<PathBuf>::new());
    });
}

#[test]
fn ctrl_c_stops_it_and_leaves_nothing() {
    isolated(|| {
        let lab = Lab::new();
        // Again on the same ports, at once.
        for _ in 0..3 {
            let mut demo = Demo::start(&lab.adit, &[]);
            demo.greeting();
            assert!(demo.mesh_file().is_file());
            demo.ctrl_c();
            let status = demo.wait(LIMIT);
            assert_eq!(status.code(), Some(0), "{}", text(&demo.log));
            assert_eq!(demo.leftovers(), Vec::<PathBuf>::new());
        }
    });
}

/// A connection that stays open holds the first ctrl-C up, not the second.
#[test]
fn a_second_ctrl_c_stops_it_at_once() {
    isolated(|| {
        let lab = Lab::new();
        let mut demo = Demo::start(&lab.adit, &["--set", "shutdown.deadline=1h"]);
        demo.greeting();
        let door = (Ipv4Addr::LOCALHOST, 15080).into();
        let mut client = Dial::default().connect(&lab.adit, door).expect("the SOCKS5 door");
        client.write_all(&[5, 1, 0, 5, 1, 0, 1, 10, 99, 0, 1, 0, 80]).expect("write");
        client.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
        let mut answer = [0; 12];
        client.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer[3], 0, "{answer:?}");
        demo.ctrl_c();
        until(LIMIT, "the drain", || text(&demo.log).contains("draining").then_some(()));
        // Draining is not over: the connection still carries.
        client.write_all(b"still there?").expect("write");
        let mut echo = [0; 12];
        client.read_exact(&mut echo).expect("the echo");
        assert_eq!(&echo, b"still there?");
        assert!(demo.child.try_wait().expect("our child").is_none(), "it cut a live connection");
        demo.ctrl_c();
        assert_eq!(demo.wait(LIMIT).code(), Some(0), "{}", text(&demo.log));
        assert_eq!(demo.leftovers(), Vec::<PathBuf>::new());
    });
}

#[test]
fn an_edited_mesh_applies_at_once() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        let mut demo = Demo::start(&lab.adit, &[]);
        let greeting = demo.greeting();
        let file = demo.mesh_file();
        assert!(greeting.contains(file.to_str().expect("text")), "the greeting names the file: {greeting}");
        let curl = |name: &str| -> Done {
            let url = format!("http://{name}/");
            let mut curl = lab.adit.command("curl");
            wait(curl.args(["--silent", "--proxy", "socks5h://127.0.0.1:15080", "--max-time", "20", &url]))
        };
        assert_eq!(curl("echo.demo.svc.cluster.local").code, Some(0));
        let mesh = fs::read_to_string(&file).expect("the mesh");
        // A half-written file changes nothing; the next good one counts.
        let half = u64::try_from(mesh.len() / 2).expect("small");
        fs::File::options().write(true).open(&file).and_then(|file| file.set_len(half)).expect("our own file");
        until(LIMIT, "the refusal in the log", || text(&demo.log).contains("\twarn\t").then_some(()));
        assert_eq!(curl("echo.demo.svc.cluster.local").code, Some(0));
        replace(&file, &mesh.replace("echo.demo.svc", "renamed.demo.svc"));
        until(LIMIT, "the new name", || (curl("renamed.demo.svc.cluster.local").code == Some(0)).then_some(()));
        assert_eq!(curl("echo.demo.svc.cluster.local").code, Some(97), "the old name is gone");
        demo.ctrl_c();
        assert!(demo.wait(LIMIT).success());
    });
}

#[test]
fn a_taken_port_is_named() {
    isolated(|| {
        let lab = Lab::new();
        for (listener, port) in
            [("admin", 15000), ("metrics", 15020), ("readiness", 15021), ("socks5", 15080), ("demo", 18080)]
        {
            let taken = Door::open(&lab.adit, port);
            let mut demo = Demo::start(&lab.adit, &[]);
            let status = demo.wait(LIMIT);
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let error = until(LIMIT, "the error", || {
                text(&demo.log).lines().find(|line| line.starts_with("error: ")).map(str::to_owned)
            });
            assert_eq!(status.code(), Some(1), "{error}");
            for word in [listener, &address.to_string(), "Address already in use", "os error 98"] {
                assert!(error.contains(word), "{word}: {error}");
            }
            assert_eq!(text(&demo.said), "", "nothing was promised");
            assert_eq!(demo.leftovers(), Vec::<PathBuf>::new());
            drop(taken);
        }
        // Another demo is the likeliest reason.
        let mut first = Demo::start(&lab.adit, &[]);
        first.greeting();
        let mut second = Demo::start(&lab.adit, &[]);
        assert_eq!(second.wait(LIMIT).code(), Some(1));
        first.ctrl_c();
        assert!(first.wait(LIMIT).success());
    });
}

/// Other ports, and what it prints follows.
#[test]
fn settings_are_ordinary_ones() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        let mut demo =
            Demo::start(&lab.adit, &["--set", "listen.socks5=127.0.0.1:0", "--set", "listen.admin=127.0.0.1:0"]);
        let greeting = demo.greeting();
        assert!(!greeting.contains(":0/") && !greeting.contains("15080"), "{greeting}");
        for line in greeting.lines().map(str::trim).filter(|line| line.starts_with("curl ")) {
            assert!(!paste(&lab.adit, line).is_empty(), "{line}");
        }
        demo.ctrl_c();
        assert!(demo.wait(LIMIT).success());
        let mut wrong = Demo::start(&lab.adit, &["--set", "connect.timeout=5"]);
        assert_eq!(wrong.wait(LIMIT).code(), Some(78), "{}", text(&wrong.log));
        assert_eq!(wrong.leftovers(), Vec::<PathBuf>::new());
    });
}

/// What a demo that was killed has left does not keep the next one from starting, even with the same process id.
#[test]
fn a_folder_left_behind_is_no_obstacle() {
    isolated(|| {
        let lab = Lab::new();
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let mut command = lab.adit.command("sh");
        command.args(["-c", "mkdir $TMPDIR/adit-demo-$$-0; exec \"$0\" demo", env!("CARGO_BIN_EXE_adit")]);
        command.env("TMPDIR", temporary.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("sh");
        let (said, log) = (collect(child.stdout.take().expect("piped")), collect(child.stderr.take().expect("piped")));
        let mut demo = Demo { child, said, log, temporary, home: tempfile::tempdir().expect("a temporary folder") };
        demo.greeting();
        assert_eq!(demo.leftovers().len(), 2);
        demo.ctrl_c();
        assert!(demo.wait(LIMIT).success());
        assert_eq!(demo.leftovers().len(), 1, "only what was not its own");
    });
}
