//! The generator of large meshes: its files are small enough, the same every time, and mean what they should.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "../benches/scale/generate.rs"]
mod generate;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use adit::mesh::{self, Snapshot};
use generate::{FILE_BYTES, Generated, Size, change_one, service_address, workload_address};

const SIZE: Size = Size { workloads: 4_000, services: 200, policies: 2_000 };

fn contents(folder: &Path) -> BTreeMap<PathBuf, String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.strip_prefix(folder).unwrap().to_owned(), fs::read_to_string(&path).unwrap())).collect()
}

fn generated(size: Size, seed: u64) -> (tempfile::TempDir, Generated) {
    let folder = tempfile::tempdir().unwrap();
    let generated = generate::generate(folder.path(), size, seed).unwrap();
    (folder, generated)
}

/// All entries of one section, as one state.
fn snapshot(folder: &Path, sections: &[&str]) -> std::sync::Arc<Snapshot> {
    let wanted = |path: &Path| sections.iter().any(|section| path.to_str().unwrap().starts_with(section));
    let documents: Vec<String> =
        contents(folder).into_iter().filter(|(path, _)| wanted(path)).map(|(_, text)| text).collect();
    mesh::snapshot_of("generated", &documents.join("---\n")).unwrap()
}

#[test]
fn files_are_small_and_the_same_every_time() {
    let (first, about) = generated(SIZE, 7);
    let (second, _) = generated(SIZE, 7);
    let (other, _) = generated(SIZE, 8);
    let files = contents(first.path());
    assert!(files == contents(second.path()), "the same seed, another mesh");
    assert!(files != contents(other.path()), "another seed, the same mesh");
    assert_eq!(about.files, files.len());
    assert_eq!(about.bytes, files.values().map(|text| text.len() as u64).sum::<u64>());
    assert_eq!(about.largest, files.values().map(|text| text.len() as u64).max().unwrap());
    assert!(about.largest <= FILE_BYTES as u64);
    // Cut where it has to be, not before.
    assert!(about.files > 3 && about.largest > FILE_BYTES as u64 - 2_000, "{about:?}");
}

#[test]
fn the_mesh_has_the_size_that_was_asked_for() {
    let (folder, _) = generated(SIZE, 7);
    let snapshot = snapshot(folder.path(), &["workloads", "services"]);
    assert_eq!((snapshot.workload_count(), snapshot.service_count()), (SIZE.workloads, SIZE.services));
    assert_eq!(snapshot.undefined_services().count(), 0);
    for service in snapshot.services() {
        assert!((15..=25).contains(&service.endpoints.len()), "{} endpoints", service.endpoints.len());
    }
    for index in 0..SIZE.workloads {
        let workload = snapshot.workload("", IpAddr::V4(workload_address(index))).unwrap();
        assert!(!workload.services.is_empty() && !workload.identity.is_empty());
    }
    for index in 0..SIZE.services {
        assert!(snapshot.service("", IpAddr::V4(service_address(index)), "").is_some());
    }
    let localities: std::collections::HashSet<_> = snapshot.workloads().map(|it| it.locality.subzone.clone()).collect();
    assert_eq!(localities.len(), 2);
}

#[test]
fn every_policy_that_a_workload_names_is_there_and_every_kind_of_policy_too() {
    let (folder, _) = generated(SIZE, 7);
    let policies: String = contents(folder.path())
        .iter()
        .filter(|(path, _)| path.starts_with("policies-0000.yaml"))
        .map(|(_, it)| it.as_str())
        .collect();
    assert_eq!(policies.matches("  - name: ").count(), SIZE.policies);
    let entries: Vec<&str> = policies.split("  - name: ").skip(1).collect();
    let named: std::collections::HashSet<String> = entries
        .iter()
        .filter(|entry| entry.contains("scope: WorkloadSelector"))
        .map(|entry| {
            let mut lines = entry.lines();
            let name = lines.next().unwrap();
            format!("{}/{name}", lines.next().unwrap().trim().strip_prefix("namespace: ").unwrap())
        })
        .collect();
    for kind in ["Global", "Namespace", "WorkloadSelector"] {
        assert!(policies.contains(&format!("scope: {kind}\n")), "none for {kind}");
    }
    for word in ["Allow", "Deny", "!Exact", "!Prefix", "!Suffix", "sourceIps", "destinationPorts", "dryRun: true"] {
        assert!(policies.contains(word), "none with {word}");
    }
    let snapshot = snapshot(folder.path(), &["workloads"]);
    let selected: std::collections::HashSet<String> =
        snapshot.workloads().flat_map(|it| it.authorization_policies.iter().map(ToString::to_string)).collect();
    assert!(selected == named, "{} selected, {} selectors", selected.len(), named.len());
}

#[test]
fn one_workload_changes_and_nothing_else() {
    let (folder, _) = generated(SIZE, 7);
    let before = contents(folder.path());
    let old = snapshot(folder.path(), &["workloads"]);
    let changed = change_one(folder.path(), SIZE.workloads - 1, 99).unwrap();
    let after = contents(folder.path());
    let differ: Vec<&PathBuf> =
        after.iter().filter(|(path, text)| before.get(*path) != Some(text)).map(|(path, _)| path).collect();
    assert_eq!(differ, [changed.file.strip_prefix(folder.path()).unwrap()]);
    assert_eq!(before.len(), after.len());
    let new = snapshot(folder.path(), &["workloads"]);
    for workload in old.workloads() {
        let now = new.workload_by_uid(&workload.uid).unwrap();
        assert_eq!(now.capacity, if *workload.uid == changed.uid { 99 } else { workload.capacity });
    }
    assert!(change_one(folder.path(), SIZE.workloads, 1).is_err());
}
