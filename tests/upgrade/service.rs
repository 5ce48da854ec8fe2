//! A service manager's side: sockets that it opens (the real `systemd-socket-activate`), and what it is told.

use std::os::unix::net::UnixDatagram;

use rustix::process::Signal;

use crate::kit::{Door, LIMIT, isolated, until};
use crate::line::{Line, PORT, carries, send, wait_gone, with};
use crate::world::captured;

/// Where a service manager listens.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
    said: Vec<String>,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("bound");
        socket.set_nonblocking(true).expect("non-blocking");
        Self { socket, folder, said: Vec::new() }
    }

    fn variable(&self) -> String {
        format!("NOTIFY_SOCKET={}", self.folder.path().join("notify").display())
    }

    /// Waits for a message with all these lines that has come since the last one that was waited for.
    fn wait(&mut self, lines: &[&str]) -> String {
        until(LIMIT, &format!("{lines:?}; said: {:?}", self.said), || {
            let mut buffer = [0; 4096];
            let count = self.socket.recv(&mut buffer).ok()?;
            let message = String::from_utf8_lossy(&buffer[..count]).into_owned();
            self.said.push(message.clone());
            lines.iter().all(|line| message.lines().any(|said| said == *line)).then_some(message)
        })
    }
}

#[test]
fn a_service_manager_is_told_of_every_stage() {
    isolated(|| {
        let lab = captured();
        let mut manager = Manager::new();
        let variable = manager.variable();
        let line = Line::start_unready(&lab.adit, "shutdown: { deadline: 7s }\n", "", |program| {
            with(&lab.adit, &[&variable, "WATCHDOG_USEC=400000"], program)
        });
        let main_pid = |pid: rustix::process::Pid| format!("MAINPID={}", pid.as_raw_pid());
        manager.wait(&["READY=1", &main_pid(line.first())]);
        for _ in 0..3 {
            manager.wait(&["WATCHDOG=1"]);
        }
        send(line.pid(), Signal::HUP);
        let reloading = manager.wait(&["RELOADING=1"]);
        assert!(reloading.lines().any(|said| said.starts_with("MONOTONIC_USEC=")), "{reloading}");
        manager.wait(&["READY=1"]);

        // Whoever has taken over is the one to watch; the old one says nothing about its end.
        line.replace_program();
        line.upgraded();
        let second = line.pid();
        manager.wait(&["READY=1", &main_pid(second)]);
        wait_gone(line.first(), LIMIT);
        manager.wait(&["WATCHDOG=1"]);
        // More time for the one that drains would be more time for the watchdog of the other.
        let said = |word: &str| manager.said.iter().any(|said| said.contains(word));
        assert!(!said("STOPPING=1") && !said("EXTEND_TIMEOUT_USEC="), "{:?}", manager.said);
        assert!(line.status()["ready"].as_bool().expect("a word"));

        send(second, Signal::TERM);
        let stopping = manager.wait(&["STOPPING=1"]);
        assert!(stopping.contains("STATUS=draining"), "{stopping}");
        manager.wait(&["EXTEND_TIMEOUT_USEC=15000000"]);
        wait_gone(second, LIMIT);
    });
}

/// A manager that does not read must not hold up what it manages.
#[test]
fn a_service_manager_that_does_not_read_holds_up_nothing() {
    isolated(|| {
        let lab = captured();
        let manager = Manager::new();
        let (variable, socket) = (manager.variable(), manager.folder.path().join("notify"));
        let flood = UnixDatagram::unbound().expect("a socket");
        flood.set_nonblocking(true).expect("non-blocking");
        let full = until(LIMIT, "a full queue", || flood.send_to(b"x", &socket).err());
        assert_eq!(full.kind(), std::io::ErrorKind::WouldBlock);
        let mut line =
            Line::start_by(&lab.adit, "", "", |program| with(&lab.adit, &[&variable, "WATCHDOG_USEC=100000"], program));
        line.upgraded();
        assert!(line.wait_first().success());
        line.stop(&["does not read what it is told"]);
    });
}

#[test]
fn sockets_of_a_service_manager_are_used_by_name_and_move_on() {
    isolated(|| {
        let lab = captured();
        let door = Door::open(&lab.server, PORT);
        let line = Line::start_unready(&lab.adit, "workers: 2\nlisten: { inbound: off }\n", "", |program| {
            let mut command = lab.adit.command("systemd-socket-activate");
            command.args([
                "--listen=[::]:15001",
                "--listen=127.0.0.1:15000",
                "--listen=[::]:15020",
                "--listen=127.0.0.1:9",
            ]);
            command.args(["--fdname=outbound:admin:metrics:nonsense", program]);
            command
        });
        // The tool starts it when somebody comes.
        until(LIMIT, "the admin port", || line.cli(&["status"]).status.success().then_some(()));
        line.wait_ready();
        carries(&lab, &door);
        let said = line.wait_log("a socket was given for a listener that is off or that nobody knows: closed");
        assert!(said.contains("nonsense"), "{said}");
        let report = line.upgraded();
        // One socket that two workers share, and three surfaces, of which one is its own.
        assert_eq!((&report["moved"], &report["left"]), (&serde_json::json!(4), &serde_json::json!([])), "{report}");
        wait_gone(line.first(), LIMIT);
        for _ in 0..8 {
            carries(&lab, &door);
        }
        line.stop(&["that nobody knows: closed"]);
    });
}

#[test]
fn a_variable_set_by_hand_is_refused() {
    isolated(|| {
        let lab = captured();
        for starter in ["predecessor", "supervisor", "somebody"] {
            let mut line = Line::start_unready(&lab.adit, "", "", |program| {
                with(&lab.adit, &[&format!("ADIT_STARTED_BY={starter}")], program)
            });
            assert_eq!(line.wait_first().code(), Some(1), "{}", line.log());
            assert!(line.log().contains("it is not for setting by hand"), "{}", line.log());
        }
    });
}
