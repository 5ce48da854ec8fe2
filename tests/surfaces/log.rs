//! A stderr that nobody reads: the log loses lines, and counts them; traffic loses nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::kit::daemon::get;
use crate::kit::{LIMIT, Lab, isolated, until};
use crate::serve::echo;
use crate::wire::{SETTINGS, ask, to_address};

/// More than the pipe (64 KiB) and the queue (8,192 lines) hold between them.
const LINES: usize = 9_500;

#[test]
fn a_blocked_stderr_stalls_nobody() {
    isolated(|| {
        let lab = Lab::new();
        echo(&lab.server, 7000);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let settings = folder.path().join("adit.yaml");
        fs::write(&settings, SETTINGS).expect("our own folder");
        let mut command = lab.adit.command(env!("CARGO_BIN_EXE_adit"));
        command.arg("--config").arg(&settings).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary under test");
        let unread = child.stderr.take().expect("piped");
        let ready = || get(&lab.adit, 15021, "/healthz/ready").filter(|answer| answer.starts_with("HTTP/1.1 200"));
        until(LIMIT, "readiness", || ready().map(drop));
        let dropped = || -> u64 {
            let scrape = get(&lab.adit, 15020, "/metrics").expect("metrics");
            let line = scrape.lines().find_map(|line| line.strip_prefix("adit_log_lines_dropped_total "));
            line.expect("the counter").parse().expect("a number")
        };

        let request = to_address((lab.server.v4, 7000).into());
        let exchange = || {
            let (mut client, answer) = ask(&lab.adit, &request);
            assert_eq!(answer.code, 0);
            client.write_all(b"hello").expect("write");
            client.shutdown(Shutdown::Write).expect("shutdown");
            let mut back = Vec::new();
            client.read_to_end(&mut back).expect("a clean end");
            assert_eq!(back, b"hello");
        };
        // A thousand whole connections after the queue is full. Filling it is quicker by what the admin port logs.
        fill(&lab);
        until(LIMIT, "lines to be dropped", || (dropped() > 0).then_some(()));
        let before = dropped();
        for _ in 0..1000 {
            exchange();
        }
        until(LIMIT, "every line of theirs to be counted", || (dropped() >= before + 1000).then_some(()));
        assert!(ready().is_some());

        // It can be stopped all the same, and does not wait for its reader.
        kill_process(Pid::from_child(&child), Signal::TERM).expect("a running daemon");
        let status = until(LIMIT, "the end", || child.try_wait().expect("our child"));
        assert!(status.success(), "{status}");
        // What did get out is whole lines, but for the last.
        let lines: Vec<String> = BufReader::new(unread).lines().map_while(Result::ok).collect();
        assert!(lines.len() > 100 && lines[..lines.len() - 1].iter().all(|line| line.split('\t').count() >= 4));
    });
}

/// Requests on one connection that are answered and logged one by one.
fn fill(lab: &Lab) {
    let address = ([127, 0, 0, 1], 15000).into();
    let mut stream = crate::kit::door::Dial::default().connect(&lab.adit, address).expect("the admin port");
    let mut reader = stream.try_clone().expect("a second descriptor");
    let request = "PUT /logging HTTP/1.1\r\nHost: localhost\r\nX-Adit: 1\r\nContent-Length: 4\r\n\r\ninfo";
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..LINES {
                stream.write_all(request.as_bytes()).expect("write");
            }
            stream.shutdown(Shutdown::Write).expect("shutdown");
        });
        let mut answers = Vec::new();
        reader.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
        reader.read_to_end(&mut answers).expect("answers");
        let count = answers.windows(15).filter(|bytes| bytes == b"HTTP/1.1 200 OK").count();
        assert_eq!(count, LINES, "the admin port answers whatever becomes of the log");
    });
}
