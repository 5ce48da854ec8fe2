//! The same with `capture: connect`, where programs of a cgroup capture what leaves: that needs root, and a cgroup.

use adit::net::redirect::Kind;

use crate::kit::isolated_in_cgroup;
use crate::{ends, inbound, integrity, loops, outbound};

#[test]
fn unknown_destinations_are_passed_through() {
    isolated_in_cgroup(|_| outbound::passthrough(Kind::Connect));
}

#[test]
fn workloads_are_reached_and_named() {
    isolated_in_cgroup(|_| outbound::workload(Kind::Connect));
}

#[test]
fn services_lead_to_each_endpoint_at_its_port() {
    isolated_in_cgroup(|_| outbound::service(Kind::Connect));
}

#[test]
fn half_a_connection_outlives_the_other_half() {
    isolated_in_cgroup(|_| ends::half_closed(Kind::Connect));
}

#[test]
fn random_data_arrives_unchanged() {
    isolated_in_cgroup(|_| integrity::random_data_both_ways(Kind::Connect, "auto"));
}

#[test]
fn own_doors_are_refused_in_every_form() {
    isolated_in_cgroup(|_| loops::direct_hits(Kind::Connect));
}

#[test]
fn the_application_sees_the_client_or_adit() {
    isolated_in_cgroup(|_| {
        for preserve in ["prefer", "require"] {
            inbound::whom_the_application_sees(Kind::Connect, preserve, |scene, family| {
                scene.lab.client.address(family)
            });
        }
        inbound::whom_the_application_sees(Kind::Connect, "off", |scene, family| scene.lab.adit.address(family));
    });
}
