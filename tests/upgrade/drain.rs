//! What stays behind: connections, for as long as they last or may last, seen from the new version.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::kit::{Door, Host, LIMIT, isolated, until};
use crate::line::{Line, PORT, Pair, pid_of, runs, send, wait_gone};
use crate::world::{SLACK, captured, expect_eof, expect_reset, let_pass};

fn metric(host: &Host, name: &str) -> f64 {
    let (_, body) = crate::world::request(host, 15020, "GET", "/metrics").expect("metrics answer");
    let value = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn a_connection_stays_with_its_version_and_ends_in_its_own_time() {
    isolated(|| {
        let lab = captured();
        let mut line = Line::start(&lab.adit, "shutdown: { deadline: 60s, preDrain: 30s }\n", "");
        let door = Door::open(&lab.server, PORT);
        let mut old = Pair::new(&lab, &door);
        line.replace_program();
        let report = line.upgraded();
        assert_eq!(report["connections"], 1);
        assert!(report["until"].as_str().is_some_and(|until| until.ends_with('Z')), "{report}");
        let first = line.first();
        assert_eq!(pid_of(&report["from"]["pid"]), first);
        assert_ne!(line.pid(), first);
        let said = line.wait_log("upgraded: what is open stays here and drains");
        assert!(said.contains("connections=1"), "{said}");
        old.client.set_read_timeout(Some(LIMIT)).expect("a socket");
        old.talk();
        let mut new = Pair::new(&lab, &door);
        new.talk();

        // Seen from the new one.
        let draining = until(LIMIT, "the old version's word", || {
            let draining = line.status()["draining"].clone();
            draining[0]["connections"].is_number().then_some(draining)
        });
        assert_eq!((pid_of(&draining[0]["pid"]), &draining[0]["connections"]), (first, &serde_json::json!(1)));
        assert_eq!(draining[0]["until"], report["until"]);
        let text = String::from_utf8(line.cli(&["status"]).stdout).expect("text");
        assert!(text.contains(&format!("1 connections in pid {}", first.as_raw_pid())), "{text}");
        let gauge = |name| metric(&lab.adit, name);
        assert!((gauge("adit_draining_processes") - 1.0).abs() < 0.1);
        assert!((gauge("adit_draining_connections") - 1.0).abs() < 0.1);

        assert!(runs(first));
        old.client.shutdown(std::net::Shutdown::Write).expect("an open socket");
        expect_eof(&mut old.server);
        drop(old.server);
        expect_eof(&mut old.client);
        assert!(line.wait_first().success(), "{}", line.log());
        until(LIMIT, "nothing to drain", || line.status().get("draining").is_none().then_some(()));
        assert!(gauge("adit_draining_processes").abs() < 0.1);
        // The connection has its line, from the process that carried it.
        line.wait_log("\taccess\t");
        new.talk();
    });
}

#[test]
fn what_outlasts_the_deadline_is_cut_and_the_old_version_ends() {
    isolated(|| {
        let lab = captured();
        let mut line = Line::start(&lab.adit, "shutdown: { deadline: 2s }\n", "");
        let door = Door::open(&lab.server, PORT);
        let mut old = Pair::new(&lab, &door);
        let start = Instant::now();
        line.upgraded();
        expect_reset(&mut old.client, Duration::from_secs(2) + SLACK);
        assert!(start.elapsed() > Duration::from_secs(1), "cut after {:?}", start.elapsed());
        assert!(line.wait_first().success());
        line.stop(&[]);
    });
}

#[test]
fn at_most_two_versions_drain_at_a_time() {
    isolated(|| {
        let lab = captured();
        let line = Line::start(&lab.adit, "shutdown: { deadline: off }\n", "");
        let door = Door::open(&lab.server, PORT);
        let mut kept = vec![Pair::new(&lab, &door)];
        let mut pids = vec![line.pid()];
        for _ in 0..2 {
            let report = line.upgraded();
            assert_eq!(report.get("until"), None, "it waits for the last");
            pids.push(line.pid());
            kept.push(Pair::new(&lab, &door));
        }
        let error = line.upgrade().expect_err("three versions would drain");
        assert!(error.contains("earlier versions are still draining"), "{error}");
        for pid in &pids[..2] {
            assert!(error.contains(&format!("pid {}", pid.as_raw_pid())), "{error}");
        }
        assert_eq!(line.pid(), pids[2]);
        for pair in &mut kept {
            pair.talk();
        }
        // The oldest's connection ends; its end is known two versions later.
        drop(kept.remove(0));
        wait_gone(pids[0], LIMIT);
        until(LIMIT, "its end to be known", || {
            (line.status()["draining"].as_array().map(Vec::len) == Some(1)).then_some(())
        });
        line.upgraded();
        for pair in &mut kept {
            pair.talk();
        }
        drop(kept);
        for pid in &pids {
            wait_gone(*pid, LIMIT);
        }
        line.stop(&["the upgrade has failed"]);
    });
}

/// A superseded version drains already: the first signal changes nothing, a second one ends it.
#[test]
fn a_version_that_drains_is_ended_by_the_second_signal() {
    isolated(|| {
        let lab = captured();
        let line = Line::start(&lab.adit, "shutdown: { deadline: off }\n", "");
        let door = Door::open(&lab.server, PORT);
        let mut old = Pair::new(&lab, &door);
        let first = line.pid();
        line.upgraded();
        line.wait_log("upgraded: what is open stays here");
        send(first, Signal::TERM);
        old.talk();
        assert!(runs(first));
        // Two signals of a kind that come at once are one.
        let_pass(Duration::from_millis(200));
        send(first, Signal::TERM);
        expect_reset(&mut old.client, LIMIT);
        wait_gone(first, LIMIT);
        assert!(line.healthy());
        line.stop(&["told twice to stop"]);
    });
}

/// Keep-alive connections of scrapers must not go on asking the old version.
#[test]
fn a_scraper_that_keeps_its_connection_is_sent_to_the_new_version() {
    isolated(|| {
        let lab = captured();
        let line = Line::start(&lab.adit, "shutdown: { deadline: 60s }\n", "");
        let door = Door::open(&lab.server, PORT);
        let old = Pair::new(&lab, &door);
        let mut scraper = lab.adit.run(|| TcpStream::connect("127.0.0.1:15020").expect("metrics"));
        scraper.set_read_timeout(Some(LIMIT)).expect("a socket");
        scraper.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost:15020\r\n\r\n").expect("sent");
        let mut some = [0; 64];
        scraper.read_exact(&mut some).expect("an answer");
        line.upgraded();
        let mut rest = Vec::new();
        // An end or a reset, within the time limit: what was unread may be lost with it.
        let ended = scraper.read_to_end(&mut rest);
        assert!(
            ended.as_ref().err().is_none_or(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
            "{ended:?}"
        );
        assert!(runs(line.first()), "the version itself goes on");
        drop(old);
        wait_gone(line.first(), LIMIT);
        line.stop(&[]);
    });
}
