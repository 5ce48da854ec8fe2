//! Limits on connections: what exceeds is reset and counted, everything else goes on, and room is used at once.

use std::time::{Duration, Instant};

use crate::kit::{Door, LIMIT, isolated, until};
use crate::world::{Pair, World, expect_refusal, request};

const PORT: u16 = 8080;

fn refused(scope: &str) -> String {
    format!("adit_connections_refused_total{{scope=\"{scope}\"}}")
}

fn current(scope: &str) -> String {
    format!("adit_connections_current{{scope=\"{scope}\"}}")
}

fn limit(scope: &str) -> String {
    format!("adit_connections_limit{{scope=\"{scope}\"}}")
}

#[test]
fn what_exceeds_is_reset_and_counted_and_room_is_used_at_once() {
    isolated(|| {
        let mut world = World::new("limits: { connections: 6, outbound: 4 }\n");
        let server = Door::open(&world.lab.server, PORT);
        let application = Door::open(&world.lab.adit, PORT);
        assert_eq!((world.metric(&limit("total")), world.metric(&limit("outbound"))), (6.0, 4.0));
        let mut outbound: Vec<Pair> = (0..4).map(|_| world.outbound(&server, PORT)).collect();
        for excess in 1..=3 {
            let start = Instant::now();
            expect_refusal(world.dial_out(PORT));
            assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
            world.wait_metric(&refused("outbound"), f64::from(excess));
        }
        // The other door has room until the total is reached.
        let mut inbound: Vec<Pair> = (0..2).map(|_| world.inbound(&application, PORT)).collect();
        expect_refusal(world.dial_in(PORT));
        world.wait_metric(&refused("total"), 1.0);
        assert_eq!((world.metric(&refused("outbound")), world.metric(&refused("inbound"))), (3.0, 0.0));
        let currents = ["total", "outbound", "inbound"].map(|scope| world.metric(&current(scope)));
        assert_eq!(currents, [6.0, 4.0, 2.0]);

        // Full is no fault: everything else answers, and what is carried goes on.
        assert_eq!(world.readiness().0, 200);
        assert_eq!(request(&world.lab.adit, 15021, "GET", "/healthz/live").expect("an answer").0, 200);
        let status = world.json(&["status", "--json"]);
        assert_eq!((&status["connections"]["open"], &status["connections"]["limit"]), (&6.into(), &6.into()));
        assert_eq!(world.json(&["connections", "--json"])["connections"].as_array().map(Vec::len), Some(6));
        outbound.iter_mut().chain(&mut inbound).for_each(Pair::talk);

        // The first one after the load has fallen.
        for _ in 0..20 {
            drop(outbound.pop());
            world.wait_metric(&current("outbound"), 3.0);
            outbound.push(world.outbound(&server, PORT));
            outbound.iter_mut().for_each(Pair::talk);
        }
        drop((outbound, inbound));
        until(LIMIT, "all to be over", || (world.metric(&current("total")) < 0.5).then_some(()));
        assert_eq!(world.metric(&refused("outbound")), 3.0);
        assert_eq!(world.metric(&refused("total")), 1.0);
        world.adit.expect_log("connection refused: limit reached");
        world.adit.stop();
    });
}

/// At 100 % a drain works too.
#[test]
fn a_full_daemon_drains() {
    isolated(|| {
        let mut world = World::new("limits: { connections: 2 }\n");
        let server = Door::open(&world.lab.server, PORT);
        let pairs = [world.outbound(&server, PORT), world.outbound(&server, PORT)];
        expect_refusal(world.dial_out(PORT));
        assert!(world.cli(&["drain"]).status.success());
        world.wait_not_ready("drain");
        drop(pairs);
        assert!(world.adit.wait(LIMIT).success());
    });
}
