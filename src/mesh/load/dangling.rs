//! References that lead nowhere: allowed, since what they name may come later, and mostly a slip of the pen.
//!
//! In: the files that are applied, and the state that they mean. Out: one problem for each reference, in the order of the
//! files, with its line. The lines are looked up only now, with one pass over each file concerned.

use std::path::Path;

use crate::config::problem::{Origin, Position, Problem};
use crate::config::yaml::{push_index, push_key};
use crate::files::{Bounds, FileContent};
use crate::mesh::file::{self, FileContents, Section, Site};
use crate::mesh::load::duplicates::text_of;
use crate::mesh::workload::GatewayDestination;
use crate::mesh::{GatewayAddress, ServiceSpec, Snapshot, Workload};

/// More than these are only counted.
const MAX_SHOWN: usize = 100;

/// One reference.
struct Dangling {
    site: Site,
    /// Of the reference in its document.
    key_path: String,
    /// What it should be.
    kind: &'static str,
    target: String,
}

/// All of one state. `files`: everything that it was made from.
pub(super) fn problems<'a>(
    snapshot: &Snapshot,
    files: impl Iterator<Item = (&'a FileContent, &'a FileContents)>,
    bounds: Bounds,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut more: Option<(&Path, usize)> = None;
    for (file, contents) in files {
        let mut found = of_file(snapshot, contents);
        let left = MAX_SHOWN - problems.len();
        if found.len() > left {
            let before = more.map_or(0, |(_, count)| count);
            more = Some((&file.path, before + found.len() - left));
            found.truncate(left);
        }
        problems.extend(located(file, found, bounds));
    }
    problems.extend(more.map(|(path, count)| {
        Problem::of(Origin::File(path.to_owned()), format!("and {count} more references that lead nowhere"))
    }));
    problems
}

fn of_file(snapshot: &Snapshot, contents: &FileContents) -> Vec<Dangling> {
    let mut found = Vec::new();
    for (site, workload) in &contents.workloads {
        of_workload(snapshot, *site, workload, &mut found);
    }
    for (site, spec) in &contents.services {
        of_service(snapshot, *site, spec, &mut found);
    }
    found.sort_by_key(|it| it.site);
    found
}

fn of_workload(snapshot: &Snapshot, site: Site, workload: &Workload, found: &mut Vec<Dangling>) {
    let base = site.key_path(Section::Workloads);
    for key in workload.services.keys() {
        if snapshot.service_by_key(&key.namespace, &key.hostname).is_none() {
            let key_path = below(&base, &["services", &key.to_string()]);
            found.push(Dangling { site, key_path, kind: "service", target: key.to_string() });
        }
    }
    for (index, key) in workload.authorization_policies.iter().enumerate() {
        if snapshot.policy(key).is_none() {
            let mut key_path = below(&base, &["authorizationPolicies"]);
            push_index(&mut key_path, index);
            found.push(Dangling { site, key_path, kind: "policy", target: key.to_string() });
        }
    }
    let gateways = [
        ("waypoint", &workload.waypoint, "waypoint"),
        ("networkGateway", &workload.network_gateway, "network gateway"),
    ];
    for (key, gateway, kind) in gateways {
        if let Some(target) = gateway.as_ref().and_then(|gateway| missing(snapshot, gateway)) {
            found.push(Dangling { site, key_path: below(&base, &[key, "destination"]), kind, target });
        }
    }
}

fn of_service(snapshot: &Snapshot, site: Site, spec: &ServiceSpec, found: &mut Vec<Dangling>) {
    let base = site.key_path(Section::Services);
    let service = &spec.service;
    let kind = "waypoint";
    if let Some(target) = service.waypoint.as_ref().and_then(|waypoint| missing(snapshot, waypoint)) {
        found.push(Dangling { site, key_path: below(&base, &["waypoint", "destination"]), kind, target });
    }
    for (index, (waypoint, _)) in service.weighted_waypoints.iter().enumerate() {
        if let Some(target) = missing(snapshot, waypoint) {
            let mut item = below(&base, &["weightedWaypoints"]);
            push_index(&mut item, index);
            found.push(Dangling { site, key_path: below(&item, &["destination", "destination"]), kind, target });
        }
    }
    for endpoint in &spec.endpoints {
        let uid = &endpoint.workload_uid;
        if snapshot.workload_by_uid(uid).is_none() {
            // Most often the key is the uid; where it is not, the line is that of the endpoints.
            let key_path = below(&base, &["endpoints", uid, "workloadUid"]);
            found.push(Dangling { site, key_path, kind: "workload", target: uid.to_string() });
        }
    }
}

fn below(base: &str, keys: &[&str]) -> String {
    let mut path = base.to_owned();
    keys.iter().for_each(|key| push_key(&mut path, key));
    path
}

/// What the reference names, if it is not there, whoever may see it.
fn missing(snapshot: &Snapshot, gateway: &GatewayAddress) -> Option<String> {
    let is_there = match &gateway.destination {
        GatewayDestination::Address { network, ip } => {
            snapshot.services_at(network, *ip).next().is_some() || snapshot.workload(network, *ip).is_some()
        }
        GatewayDestination::Hostname(key) => {
            snapshot.service_by_key(&key.namespace, &key.hostname).is_some()
                || snapshot.workload_by_hostname(&key.namespace, &key.hostname).is_some()
        }
    };
    (!is_there).then(|| gateway.destination.to_string())
}

fn located(file: &FileContent, found: Vec<Dangling>, bounds: Bounds) -> Vec<Problem> {
    let positions = if found.is_empty() { Vec::new() } else { positions(file, &found, bounds) };
    let positions = positions.into_iter().chain(std::iter::repeat(None));
    let path: &Path = &file.path;
    found
        .into_iter()
        .zip(positions)
        .map(|(Dangling { key_path, kind, target, .. }, position)| {
            Problem::of(Origin::File(path.to_owned()), format!("unknown {kind}"))
                .at(position)
                .key(key_path)
                .found(format!("{target:?}"))
        })
        .collect()
}

fn positions(file: &FileContent, found: &[Dangling], bounds: Bounds) -> Vec<Option<Position>> {
    let Some(text) = text_of(file, bounds) else { return Vec::new() };
    let Ok(text) = std::str::from_utf8(&text) else { return Vec::new() };
    file::positions_of(text, found.iter().map(|it| (it.site, it.key_path.clone())))
}
