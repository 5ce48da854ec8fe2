//! Proper requests, however they are cut into segments, and what is answered to them.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};
use std::time::Duration;

use crate::kit::door::talk;
use crate::kit::wait::pause;
use crate::kit::{Door, Family, Lab, isolated};
use crate::program::names;
use crate::serve::echo;
use crate::wire::{GREETING, SETTINGS, ask, is_silent, knock, read, read_answer, rest, to_address, to_name};

#[test]
fn success_carries_the_address_that_the_server_sees() {
    isolated(|| {
        let lab = Lab::new();
        let door = Door::open(&lab.server, 7000);
        let adit = lab.adit(SETTINGS, "");
        for family in Family::BOTH {
            let to = SocketAddr::new(lab.server.address(family), 7000);
            let (mut client, answer) = ask(&lab.adit, &to_address(to));
            let mut accepted = door.accept();
            assert_eq!((answer.code, answer.bound), (0, accepted.peer));
            assert_eq!(answer.bound.ip(), lab.adit.address(family));
            talk(&mut accepted.stream, &mut client);
            talk(&mut client, &mut accepted.stream);
        }
        adit.stop();
    });
}

/// An IPv4 address in IPv6 form is the IPv4 address.
#[test]
fn a_mapped_address_is_the_ipv4_address() {
    isolated(|| {
        let lab = Lab::new();
        let door = Door::open(&lab.server, 7000);
        let adit = lab.adit(SETTINGS, "");
        let to = SocketAddr::new(IpAddr::V6(lab.server.v4.to_ipv6_mapped()), 7000);
        let answer = ask(&lab.adit, &to_address(to)).1;
        assert_eq!((answer.code, answer.bound), (0, door.accept().peer));
        adit.stop();
    });
}

#[test]
fn no_answer_before_the_upstream_connection_stands() {
    isolated(|| {
        let lab = Lab::new();
        let door = Door::open(&lab.server, 7000);
        let adit = lab.adit(&format!("{SETTINGS}connect: {{ timeout: 60s, deadline: 60s }}\n"), "");
        lab.server.black_hole("tcp dport 7000");
        let mut client = knock(&lab.adit);
        client.write_all(&[&GREETING[..], &to_address((lab.server.v4, 7000).into())].concat()).expect("write");
        assert_eq!(read::<2>(&mut client), [5, 0]);
        assert!(is_silent(&client, Duration::from_millis(300)), "success before there was any");
        lab.server.heal();
        // The kernel tries again within a second or a few.
        assert_eq!(read_answer(&mut client).code, 0);
        talk(&mut client, &mut door.accept().stream);
        drop(client);
        adit.stop();
    });
}

/// Whichever the resolver names first; to the limit of the source it is one connection.
#[test]
#[expect(clippy::disallowed_methods, reason = "a server of one family only, which the kit does not have")]
fn every_address_of_a_name_is_tried() {
    isolated(|| {
        let lab = Lab::new();
        names("10.77.0.3 two.test\nfd77::3 two.test\n");
        let adit = lab.adit(&format!("{SETTINGS}limits: {{ sourceRate: 1, sourceBurst: 2 }}\n"), "");
        for family in Family::BOTH {
            // Of one family only: the other address refuses.
            let server = lab.server.run(|| TcpListener::bind((lab.server.address(family), 7000)).expect("bind"));
            let (mut client, answer) = ask(&lab.adit, &to_name("two.test", 7000));
            assert_eq!(answer.code, 0, "{family:?}");
            talk(&mut client, &mut server.accept().expect("accept").0);
        }
        adit.stop();
    });
}

fn requests(lab: &Lab) -> [Vec<u8>; 5] {
    names("10.77.0.3 four.test\n");
    [
        to_address((lab.server.v4, 7000).into()),
        to_address((lab.server.v6, 7000).into()),
        to_name("four.test", 7000),
        // Addresses in words.
        to_name("10.77.0.3", 7000),
        to_name("fd77::3", 7000),
    ]
}

#[test]
fn a_request_may_come_byte_by_byte() {
    isolated(|| {
        let lab = Lab::new();
        echo(&lab.server, 7000);
        let adit = lab.adit(SETTINGS, "");
        for request in requests(&lab) {
            let mut client = knock(&lab.adit);
            let mut send = |bytes: &[u8]| {
                for byte in bytes {
                    client.write_all(&[*byte]).expect("write");
                    // Lets most bytes be read alone; nothing depends on it.
                    pause(Duration::from_millis(2));
                }
            };
            // Methods that adit does not know, and then none.
            send(&[5, 3, 2, 1, 0]);
            send(&request);
            send(b"after");
            assert_eq!(read::<2>(&mut client), [5, 0]);
            assert_eq!(read_answer(&mut client).code, 0, "{request:?}");
            client.shutdown(Shutdown::Write).expect("shutdown");
            assert_eq!(rest(&mut client).expect("a clean end"), b"after");
        }
        adit.stop();
    });
}

/// Everything at once, without waiting for any answer: nothing that follows the request may be lost.
#[test]
fn what_is_sent_ahead_is_carried() {
    isolated(|| {
        let lab = Lab::new();
        echo(&lab.server, 7000);
        let adit = lab.adit(SETTINGS, "");
        let ahead: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
        for request in requests(&lab) {
            let mut client = knock(&lab.adit);
            let mut writer = client.try_clone().expect("a second descriptor");
            let all = [&GREETING[..], &request, &ahead].concat();
            let (back, answer) = std::thread::scope(|scope| {
                scope.spawn(move || {
                    writer.write_all(&all).expect("write");
                    writer.shutdown(Shutdown::Write).expect("shutdown");
                });
                assert_eq!(read::<2>(&mut client), [5, 0]);
                let answer = read_answer(&mut client);
                let mut back = Vec::new();
                client.read_to_end(&mut back).expect("a clean end");
                (back, answer)
            });
            assert_eq!(answer.code, 0, "{request:?}");
            assert!(back == ahead, "{} of {} bytes came back", back.len(), ahead.len());
        }
        adit.stop();
    });
}

/// The longest name that fits, and the longest greeting.
#[test]
fn the_longest_messages_fit() {
    isolated(|| {
        let lab = Lab::new();
        names("");
        let mut adit = lab.adit(SETTINGS, "");
        adit.expect_log("name_unresolved");
        let mut client = knock(&lab.adit);
        let mut greeting = vec![5, 255];
        greeting.extend((1..=254).chain([0]));
        client.write_all(&greeting).expect("write");
        assert_eq!(read::<2>(&mut client), [5, 0]);
        client.write_all(&to_name([b'a'; 255], 80)).expect("write");
        assert_eq!(read_answer(&mut client).code, 4);
        adit.stop();
    });
}
