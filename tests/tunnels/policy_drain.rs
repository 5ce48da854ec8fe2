//! Policies that change while the far adit drains: its tunnels are retired, and what is in them is judged all the same.

use std::io::ErrorKind;

use rustix::process::{Signal, kill_process};

use crate::bytes::{End, end};
use crate::kit::door::talk;
use crate::kit::{Door, Family, LIMIT, isolated, until};
use crate::policies::{DENY_NEAR, NOBODY, open, plain, publish, try_plain, wait_records, with, world};
use crate::world::{APP, Side};

#[test]
fn a_change_during_a_drain_cuts_streams_of_retired_tunnels() {
    isolated(|| {
        let world = world(NOBODY, "shutdown: { deadline: 80s }");
        let door = Door::open(world.far_host(), APP);
        let mut denied = Family::BOTH.map(|family| open(&door, world.dial(family, APP)));
        let mut spared = open(&door, plain(&world, Family::V4));
        kill_process(world.far.adit().pid(), Signal::TERM).expect("a running daemon");
        until(LIMIT, "the doors to be closed", || {
            let refused =
                try_plain(&world, Family::V4).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
            while !door.is_quiet() {
                drop(door.accept());
            }
            refused.then_some(())
        });
        for (client, server) in denied.iter_mut().chain([&mut spared]) {
            talk(client, server);
        }
        publish(&world, &with(&world, DENY_NEAR));
        for (client, server) in &mut denied {
            assert_eq!((end(client), end(server)), (End::Reset, End::Reset));
        }
        let records = wait_records(world.far.adit(), "policy_changed", 2);
        assert!(records.iter().all(|record| record["policy"] == "test/no-near"), "{records:?}");
        talk(&mut spared.0, &mut spared.1);
        drop(spared);
        let Side::Adit(mut far) = world.far else { panic!("an adit") };
        let status = far.wait(LIMIT);
        assert!(status.success(), "{status}");
        let log = far.log().join("\n");
        let line = log.lines().find(|line| line.contains("\"message\":\"drained\"")).expect("an exit line");
        assert!(line.contains("\"cut\":0"), "what policy ended is not what the drain cut: {line}");
    });
}
