//! A workload that the state knows by a host name only, which the system's own resolver looks up when somebody connects.

use std::io::Read;

use super::*;
use crate::kit::Door;
use crate::kit::daemon::get;
use crate::kit::door::{Dial, talk};
use crate::program::names;

#[test]
fn a_workload_that_has_only_a_name() {
    isolated(|| {
        let lab = Lab::new();
        names(&format!("{} named.test\n", lab.server.v4));
        adit(&lab.adit, &["redirect", "apply", "--force"]).ok();
        let mesh = "workloads:\n\
            - { uid: own, name: own, namespace: test, workloadIps: [10.77.0.2] }\n\
            - { uid: named, name: named, namespace: test, workloadIps: [], hostname: named.test, services: { test/web.test: {} } }\n\
            - { uid: lost, name: lost, namespace: test, workloadIps: [], hostname: lost.test, services: { test/lost.test: {} } }\n\
            services:\n\
            - { name: web, namespace: test, hostname: web.test, vips: [/10.99.0.1], ports: { 80: 8080 } }\n\
            - { name: lost, namespace: test, hostname: lost.test, vips: [/10.99.0.2], ports: { 80: 8080 } }\n";
        let mut daemon = lab.adit("workload: { name: own, namespace: test }\nworkers: 1\n", mesh);
        daemon.expect_log("hostname_unresolved");
        let door = Door::open(&lab.server, 8080);
        let dial = |vip: [u8; 4]| Dial::default().connect(&lab.adit, (vip, 80).into());
        for _ in 0..3 {
            talk(&mut dial([10, 99, 0, 1]).expect("captured"), &mut door.accept().stream);
        }
        let line = daemon.wait_log("connection complete");
        assert!(line.contains("dst.workload=\"named\"") && line.contains(" dst.addr=10.77.0.3:8080 "), "{line}");
        // Nobody knows the other: a reset, and nobody is connected to.
        let lost = dial([10, 99, 0, 2]).and_then(|mut stream| {
            stream.set_read_timeout(Some(LIMIT))?;
            stream.read(&mut [0])
        });
        assert_eq!(lost.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
        daemon.wait_log("hostname_unresolved");
        assert!(door.is_quiet());
        let metrics = get(&lab.adit, 15020, "/metrics").expect("metrics");
        let sample = |start: &str, label: &str| {
            let mut lines = metrics.lines().filter(|line| line.starts_with(start) && line.contains(label));
            lines.next().and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        assert_eq!(sample("adit_hostname_lookups_total", "result=\"found\""), Some(1.0), "then it is known");
        assert_eq!(sample("adit_hostname_lookups_total", "result=\"cached\"").map(|count| count >= 2.0), Some(true));
        let own = |name: &str| format!("hostname=\"{name}\"");
        assert_eq!(sample("istio_on_demand_dns_total{source_workload=\"own\"", &own("named.test")), Some(3.0));
        assert!(sample("istio_on_demand_dns_total{source_workload=\"own\"", &own("lost.test")).is_some());
        daemon.stop();
    });
}
