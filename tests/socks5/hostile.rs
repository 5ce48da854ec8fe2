//! Clients that speak something else, nothing, or vanish in the middle.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use socket2::SockRef;

use crate::kit::{Adit, Door, LIMIT, Lab, isolated, until};
use crate::program::{need, run};
use crate::serve::echo;
use crate::wire::{GREETING, SETTINGS, ask, door, knock, rest, to_address, to_name};

/// The door still serves.
fn still_serves(lab: &Lab) {
    let (mut client, answer) = ask(&lab.adit, &to_address((lab.server.v4, 7000).into()));
    assert_eq!(answer.code, 0);
    client.write_all(b"still there").expect("write");
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(rest(&mut client).expect("a clean end"), b"still there");
}

pub(crate) fn descriptors(adit: &Adit) -> usize {
    let path = format!("/proc/{}/fd", adit.pid().as_raw_nonzero());
    std::fs::read_dir(path).expect("a running daemon").count()
}

#[test]
fn other_protocols_get_no_answer_and_a_prompt_end() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        echo(&lab.server, 7000);
        let mut adit = lab.adit(SETTINGS, "");
        adit.expect_log("socks_protocol");
        let tls = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 500]].concat();
        let socks4 = [4, 1, 0, 80, 10, 77, 0, 3, b'm', b'e', 0];
        for garbage in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &tls, &socks4, &[0; 4096], &[0xff; 70_000]] {
            let mut client = knock(&lab.adit);
            let start = Instant::now();
            // It may be over before everything is written.
            let _ = client.write_all(garbage);
            assert!(rest(&mut client).is_none_or(|answer| answer.is_empty()), "{:?}", garbage.first());
            // Well before the door would have given up waiting for a request.
            assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
        }
        // After a good greeting, too.
        for request in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[4, 1, 0, 1]] {
            let mut client = knock(&lab.adit);
            client.write_all(&[&GREETING, request].concat()).expect("write");
            assert!(rest(&mut client).is_none_or(|answer| answer == [5, 0]));
        }
        let done = run(&lab.adit, "curl", &["--silent", "--max-time", "5", &format!("http://{}/", door())]);
        assert!(matches!(done.code, Some(52 | 56)), "an empty answer or a reset, not {:?}", done.code);
        still_serves(&lab);
        adit.stop();
    });
}

/// All at once, so that the test takes the door's patience (10 s) once.
#[test]
fn silence_ends_after_ten_seconds() {
    isolated(|| {
        let lab = Lab::new();
        echo(&lab.server, 7000);
        let mut adit = lab.adit(SETTINGS, "");
        adit.expect_log("socks_timeout");
        let request = to_address((lab.server.v4, 7000).into());
        let begun: [&[u8]; 6] =
            [&[], &[5], &[5, 2, 0], &GREETING, &[5, 1, 0, 5, 1], &[&GREETING[..], &request[..9]].concat()];
        let start = Instant::now();
        let mut clients: Vec<TcpStream> = begun
            .iter()
            .map(|begun| {
                let mut client = knock(&lab.adit);
                client.write_all(begun).expect("write");
                client.set_read_timeout(Some(Duration::from_secs(30))).expect("SO_RCVTIMEO");
                client
            })
            .collect();
        still_serves(&lab);
        for (client, begun) in clients.iter_mut().zip(begun) {
            assert_eq!(rest(client), None, "{begun:?}: nothing was said, so nothing ends well");
            let took = start.elapsed();
            assert!((9..25).contains(&took.as_secs()), "{begun:?}: {took:?}");
        }
        adit.stop();
    });
}

/// By FIN and by reset, after every byte of a conversation; nothing is left of any of them.
#[test]
fn clients_may_vanish_at_every_step() {
    isolated(|| {
        let lab = Lab::new();
        echo(&lab.server, 7000);
        let mut adit = lab.adit(&format!("{SETTINGS}socks5AllowLocal: true\n"), "");
        still_serves(&lab);
        let before = descriptors(&adit);
        for request in [to_address((lab.server.v4, 7000).into()), to_name("10.77.0.3", 7000)] {
            let conversation = [&GREETING[..], &request, b"data"].concat();
            for length in 0..=conversation.len() {
                for reset in [false, true] {
                    let mut client = knock(&lab.adit);
                    client.write_all(&conversation[..length]).expect("write");
                    if reset {
                        SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
                    }
                }
            }
        }
        adit.expect_log("downstream_gone");
        until(LIMIT, "all descriptors to be back", || (descriptors(&adit) <= before + 8).then_some(()));
        still_serves(&lab);
        adit.stop();
    });
}

/// A client that gives up while adit connects ends the attempt: a reset at once; a FIN alone does not, since what was
/// sent before it is still wanted.
#[test]
fn giving_up_while_connecting() {
    isolated(|| {
        let lab = Lab::new();
        echo(&lab.server, 7000);
        // Long enough that no attempt ends by itself.
        let mut adit = lab.adit(&format!("{SETTINGS}connect: {{ timeout: 60s, deadline: 60s }}\n"), "");
        lab.server.black_hole("tcp dport 7000");
        let begin = || {
            let mut client = knock(&lab.adit);
            let request = to_address((lab.server.v4, 7000).into());
            client.write_all(&[&GREETING[..], &request, b"last words"].concat()).expect("write");
            client
        };
        let gone = begin();
        until(LIMIT, "the attempt", || syn_sent(&lab).then_some(()));
        SockRef::from(&gone).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        drop(gone);
        until(LIMIT, "the attempt to end", || (!syn_sent(&lab)).then_some(()));
        adit.expect_log("downstream_gone");

        let mut client = begin();
        client.shutdown(Shutdown::Write).expect("shutdown");
        until(LIMIT, "the attempt", || syn_sent(&lab).then_some(()));
        lab.server.heal();
        let answer = rest(&mut client).expect("a clean end");
        assert_eq!(answer.first_chunk::<4>(), Some(&[5, 0, 5, 0]));
        assert!(answer.ends_with(b"last words"), "{answer:?}");
        adit.stop();
    });
}

/// The server must not take it for a client that had nothing to say.
#[test]
fn a_client_that_is_gone_before_it_is_answered_resets_its_upstream() {
    isolated(|| {
        let lab = Lab::new();
        let server = Door::open(&lab.server, 7000);
        let mut adit = lab.adit(&format!("{SETTINGS}connect: {{ timeout: 60s, deadline: 60s }}\n"), "");
        adit.expect_log("downstream_gone");
        lab.server.black_hole("tcp dport 7000");
        let mut client = knock(&lab.adit);
        let request = to_address((lab.server.v4, 7000).into());
        client.write_all(&[&GREETING[..], &request].concat()).expect("write");
        until(LIMIT, "the attempt", || syn_sent(&lab).then_some(()));
        // While the daemon stands still the upstream connects and the client goes: it finds both when it wakes.
        kill_process(adit.pid(), Signal::STOP).expect("a running daemon");
        lab.server.heal();
        let mut upstream = server.accept().stream;
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        drop(client);
        kill_process(adit.pid(), Signal::CONT).expect("a stopped daemon");
        upstream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
        assert_eq!(rest(&mut upstream), None, "an end that looks like one");
        adit.stop();
    });
}

/// Whether somebody in host `adit` waits for an answer to a SYN.
fn syn_sent(lab: &Lab) -> bool {
    let table = lab.adit.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp")).expect("proc");
    table.lines().skip(1).any(|line| line.split_whitespace().nth(3) == Some("02"))
}
