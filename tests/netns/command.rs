//! `adit redirect` as an operator types it, beside a real daemon: captured traffic arrives where it was going.

use std::net::SocketAddr;
use std::process::Output;

use crate::kit::daemon::{Adit, get};
use crate::kit::door::{Dial, talk};
use crate::kit::{Door, Family, Host, LIMIT, Lab, isolated, until};

const DAEMON: &str = "packetMark: 1337\n";

fn adit(host: &Host, arguments: &str) -> Output {
    host.command(env!("CARGO_BIN_EXE_adit")).args(arguments.split_whitespace()).output().expect("the binary")
}

/// What it printed; fails unless it succeeded without a message.
pub(crate) fn succeeds(host: &Host, arguments: &str) -> String {
    let output = adit(host, arguments);
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && messages.is_empty(), "adit {arguments}: {}\n{messages}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// The message; fails unless it ended with `code` and printed nothing else.
pub(crate) fn fails(host: &Host, arguments: &str, code: i32) -> String {
    let output = adit(host, arguments);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(code), &b""[..]), "adit {arguments}");
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn captured_traffic_goes_through_the_daemon() {
    isolated(|| {
        let lab = Lab::new();
        for kind in ["redirect", "tproxy"] {
            let mut daemon = lab.adit(&format!("{DAEMON}capture: {kind}\n"), "");
            // As long as there are no rules, and then it tries again.
            daemon.expect_log("source preservation is off");
            let told = succeeds(&lab.adit, &format!("redirect apply --kind {kind}"));
            assert!(told.contains(kind), "{told}");
            until(LIMIT, "both families to be preserved", || {
                let works = daemon.log().iter().filter(|line| line.contains("source preservation works")).count();
                (works == 2).then_some(())
            });
            for family in Family::BOTH {
                let outbound = (&lab.adit, &lab.server);
                let inbound = (&lab.client, &lab.adit);
                for (from, to) in [outbound, inbound] {
                    let application = Door::open(to, 8080);
                    let address = SocketAddr::new(to.address(family), 8080);
                    let mut client = Dial::default().connect(from, address).expect("through adit");
                    let mut accepted = application.accept();
                    // Outbound it is adit's host anyway; inbound adit borrows the client's address.
                    assert_eq!(accepted.peer.ip(), from.address(family), "{kind}");
                    assert_ne!(
                        accepted.peer.port(),
                        client.local_addr().expect("an address").port(),
                        "not through adit"
                    );
                    talk(&mut client, &mut accepted.stream);
                }
            }
            succeeds(&lab.adit, "redirect remove");
            daemon.stop();
        }
    });
}

#[test]
fn a_daemon_that_requires_the_rules_gets_them() {
    isolated(|| {
        let lab = Lab::new();
        let mut daemon = Adit::start(&lab.adit, "preserveSource: require\n", "");
        until(LIMIT, "the rules to be missed", || {
            get(&lab.adit, 15021, "/healthz/ready").filter(|answer| answer.contains("preserveSource"))
        });
        succeeds(&lab.adit, "redirect apply");
        daemon.wait_ready(&lab.adit);
        daemon.stop();
    });
}

#[test]
fn apply_wants_a_ready_daemon_or_force() {
    isolated(|| {
        let lab = Lab::new();
        let told = fails(&lab.adit, "redirect apply", 1);
        assert!(told.starts_with("error: adit does not answer") && told.contains("hint: "), "{told}");
        assert_eq!(lab.adit.output("nft", &["list", "ruleset"]), "");
        succeeds(&lab.adit, "redirect apply --force");
        assert!(lab.adit.output("nft", &["list", "ruleset"]).contains("table inet adit"));
        assert!(fails(&lab.adit, "redirect apply --mark off", 64).contains("--exclude-uid"));
    });
}

#[test]
fn confirm_and_remove_tell_what_they_did() {
    isolated(|| {
        let lab = Lab::new();
        assert!(fails(&lab.adit, "redirect confirm", 1).contains("nothing to confirm"));
        let told = succeeds(&lab.adit, "redirect apply --force --rollback-after 5m");
        assert!(told.contains("for 5m only") && told.contains("confirm"), "{told}");
        assert_eq!(succeeds(&lab.adit, "redirect confirm"), "confirmed: the rules stay\n");
        assert_eq!(succeeds(&lab.adit, "redirect confirm"), "the rules stay: no rollback was pending\n");
        succeeds(&lab.adit, "redirect remove");
        succeeds(&lab.adit, "redirect remove");
        assert_eq!(lab.adit.output("nft", &["list", "ruleset"]), "");
    });
}
