//! Several files as one state: all or nothing, duplicates, references that lead nowhere, what is read again.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// A scan of files with these texts; a file of unchanged content comes as the loader wants it.
fn scan_of(files: &[(&str, &str)], loader: &Loader) -> Scan {
    let mut all = Scan::of_text("", "");
    all.files.clear();
    for (path, text) in files {
        let mut one = Scan::of_text(path, text);
        for file in &mut one.files {
            if loader.knows(&file.path, file.hash) {
                file.bytes = None;
            }
        }
        all.files.append(&mut one.files);
    }
    all
}

fn load(loader: &mut Loader, files: &[(&str, &str)]) -> Result<Option<Loaded>, Problems> {
    let mut scan = scan_of(files, loader);
    loader.load(&mut scan)
}

fn applied(loader: &mut Loader, files: &[(&str, &str)]) -> Loaded {
    match load(loader, files) {
        Ok(Some(loaded)) => loaded,
        other => panic!("not applied: {other:?}"),
    }
}

fn refused(loader: &mut Loader, files: &[(&str, &str)]) -> Vec<String> {
    load(loader, files).unwrap_err().iter().map(ToString::to_string).collect()
}

fn workload(uid: &str) -> String {
    format!("- {{uid: '{uid}', namespace: ns, workloadIps: []}}\n")
}

fn workloads(uids: &[&str]) -> String {
    "workloads:\n".to_owned() + &uids.iter().map(|uid| workload(uid)).collect::<String>()
}

fn uids(snapshot: &Snapshot) -> Vec<&str> {
    let mut uids: Vec<&str> = snapshot.workloads().map(|it| &*it.uid).collect();
    uids.sort_unstable();
    uids
}

/// One document with everything right, and one where each kind of reference leads nowhere.
const REFERENCES: &str = "workloads:
- { uid: w, namespace: ns, workloadIps: [10.0.0.1], hostname: w.test, services: { ns/s: {} },
    waypoint: { destination: ns/s, hboneMtlsPort: 15008 }, networkGateway: { destination: ns/W.test., hboneMtlsPort: 1 } }
services:
- { name: s, namespace: ns, hostname: s, vips: [/10.1.0.1], ports: {}, visibility: Namespace,
    waypoint: { destination: /10.0.0.1, hboneMtlsPort: 15008 },
    weightedWaypoints: [{ destination: { destination: /10.1.0.1, hboneMtlsPort: 1 }, weight: 1 }],
    endpoints: { w: { workloadUid: w, port: {}, status: Healthy } } }
---
workloads:
- uid: x
  namespace: ns
  workloadIps: []
  services:
    ns/s: {}
    ns/t.test: {}
  waypoint:
    destination: far/10.0.0.1
    hboneMtlsPort: 15008
  networkGateway: { destination: other/s, hboneMtlsPort: 15008 }
  authorizationPolicies: [ns/closed, ns/open]
policies:
- { name: open, namespace: ns, scope: WorkloadSelector, action: Allow, dryRun: false, rules: [] }
services:
- name: u
  namespace: ns
  hostname: u
  vips: []
  ports: {}
  waypoint: { destination: ns/nobody, hboneMtlsPort: 15008 }
  weightedWaypoints:
  - { destination: { destination: /10.0.0.1, hboneMtlsPort: 1 }, weight: 1 }
  - { destination: { destination: /10.0.0.9, hboneMtlsPort: 1 }, weight: 1 }
  endpoints:
    gone: { workloadUid: gone, port: {}, status: Healthy }
    named:
      workloadUid: gone-too
      port: {}
      status: Healthy
";

#[test]
fn references_that_lead_nowhere_are_named_with_their_lines() {
    let mut loader = Loader::default();
    let mut scan = scan_of(&[("a.yaml", REFERENCES)], &loader);
    assert!(loader.load(&mut scan).unwrap().is_some());
    let found: Vec<String> = loader.dangling(&scan).iter().map(ToString::to_string).collect();
    let want = [
        "a.yaml:16:16: workloads[0].services[\"ns/t.test\"]: unknown service: found \"ns/t.test\"",
        "a.yaml:21:27: workloads[0].authorizationPolicies[0]: unknown policy: found \"ns/closed\"",
        "a.yaml:18:18: workloads[0].waypoint.destination: unknown waypoint: found \"far/10.0.0.1\"",
        "a.yaml:20:34: workloads[0].networkGateway.destination: unknown network gateway: found \"other/s\"",
        "a.yaml:30:28: services[0].waypoint.destination: unknown waypoint: found \"ns/nobody\"",
        "a.yaml:33:35: services[0].weightedWaypoints[1].destination.destination: unknown waypoint: found \"/10.0.0.9\"",
        "a.yaml:35:26: services[0].endpoints.gone.workloadUid: unknown workload: found \"gone\"",
        "a.yaml:34:3: services[0].endpoints.gone-too.workloadUid: unknown workload: found \"gone-too\"",
    ];
    assert_eq!(found, want);
}

#[test]
fn of_very_many_references_some_are_shown_and_the_others_counted() {
    let mut loader = Loader::default();
    let many = |from: u32| {
        let one = |number| {
            format!("- {{ uid: 'w{number}', namespace: ns, workloadIps: [], services: {{ ns/gone: {{}} }} }}\n")
        };
        "workloads:\n".to_owned() + &(from..from + 80).map(one).collect::<String>()
    };
    let mut scan = scan_of(&[("a", &many(0)), ("b", &many(100)), ("c", &many(200))], &loader);
    assert!(loader.load(&mut scan).unwrap().is_some());
    let found = loader.dangling(&scan);
    assert_eq!((found.len(), found[100].to_string()), (101, "c: and 140 more references that lead nowhere".to_owned()));
    assert!(found[..100].iter().all(|problem| problem.line().is_some()));
}

#[test]
fn files_are_one_state_and_their_differences_are_applied() {
    let mut loader = Loader::default();
    let one = applied(&mut loader, &[("a", &workloads(&["1", "2"])), ("b", &workloads(&["3"]))]);
    assert_eq!((uids(&one.snapshot), one.snapshot.generation(), one.changes), (vec!["1", "2", "3"], 1, 3));
    assert!(load(&mut loader, &[("a", &workloads(&["1", "2"])), ("b", &workloads(&["3"]))]).unwrap().is_none());

    // Moved to another file, left, entered, untouched.
    let two = applied(&mut loader, &[("a", &workloads(&["2", "4"])), ("c", &workloads(&["3"]))]);
    assert_eq!((uids(&two.snapshot), two.snapshot.generation(), two.changes), (vec!["2", "3", "4"], 2, 2));
    for uid in ["2", "3"] {
        let of = |loaded: &Loaded| Arc::clone(loaded.snapshot.workload_by_uid(uid).unwrap());
        assert!(Arc::ptr_eq(&of(&one), &of(&two)), "{uid} is the same");
    }

    let comment = format!("# new\n{}", workloads(&["3"]));
    let three = applied(&mut loader, &[("a", &workloads(&["2", "4"])), ("c", &comment)]);
    assert_eq!((three.snapshot.generation(), three.changes), (3, 0));
    assert_ne!(three.snapshot.source_hash(), two.snapshot.source_hash());

    let none = applied(&mut loader, &[("a", "{}")]);
    assert_eq!((uids(&none.snapshot), none.changes), (vec![], 3));
}

#[test]
fn a_refused_load_changes_nothing_and_the_good_files_of_it_are_kept() {
    let mut loader = Loader::default();
    applied(&mut loader, &[("a", &workloads(&["1"])), ("b", &workloads(&["2"]))]);
    let bad = "workloads: [1]";
    for _ in 0..2 {
        let problems = refused(&mut loader, &[("a", &workloads(&["1", "3"])), ("b", bad), ("c", bad)]);
        assert_eq!(problems.len(), 2, "of all files: {problems:?}");
        assert!(problems[0].starts_with("b:1:13: workloads[0]: "), "{problems:?}");
    }
    assert_eq!(uids(&loader.applied.snapshot), ["1", "2"]);
    assert!(load(&mut loader, &[("a", &workloads(&["1"])), ("b", &workloads(&["2"]))]).unwrap().is_none());
    let after = applied(&mut loader, &[("a", &workloads(&["1", "3"])), ("b", &workloads(&["2"]))]);
    assert_eq!((uids(&after.snapshot), after.changes), (vec!["1", "2", "3"], 1));
}

#[test]
fn duplicates_name_both_places() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let service = "- {name: n, namespace: ns, hostname: h, vips: [], ports: {}}\n";
    let first = format!("{}services:\n{service}", workloads(&["1", "2"]));
    let second = format!("---\n# second\n{}---\nservices:\n{service}", workloads(&["3", "2", "3"]));
    let (a, b) = (write("a.yaml", &first), write("b.yaml", &second));
    let mut sorted = [
        format!(
            "{b}:5:3: workloads[1]: duplicate uid: found \"2\"\n  hint: it is already defined at {a}:3 (workloads[1])"
        ),
        format!(
            "{b}:6:3: workloads[2]: duplicate uid: found \"3\"\n  hint: it is already defined at {b}:4 (workloads[0])"
        ),
        format!(
            "{b}:9:3: services[0]: duplicate service: found \"ns/h\"\n  hint: it is already defined at {a}:5 (services[0])"
        ),
    ];
    sorted.sort();

    // All at once; the second file later; the first file later (the places are named in the order of the files all the same).
    for before in [vec![], vec![(a.as_str(), first.as_str())], vec![(b.as_str(), "{}")], vec![(a.as_str(), "{}")]] {
        let mut loader = Loader::default();
        applied(&mut loader, &before);
        let mut problems = refused(&mut loader, &[(&a, &first), (&b, &second)]);
        problems.sort();
        assert_eq!(problems, sorted, "after {before:?}");
    }

    // A file that is there twice.
    let copy = write("c.yaml", &first);
    let problems = refused(&mut Loader::default(), &[(&a, &first), (&copy, &first)]);
    assert_eq!(problems.len(), 3);
    let many = workloads(&["1"; 150]);
    let problems = refused(&mut Loader::default(), &[("many", &many)]);
    assert_eq!(problems.len(), MAX_DUPLICATES + 1);
    assert_eq!(problems[MAX_DUPLICATES], "many: and 49 more duplicates");
}

/// In whatever form and order.
#[test]
fn a_policy_that_is_there_twice_names_both_places() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let local = "policies:\n- {name: p, namespace: ns, scope: Global, action: Allow, rules: []}\n";
    let manifest = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  namespace: ns\n  name: p\nspec: {}\n";
    let (a, b) = (write("a.yaml", local), write("b.yaml", manifest));
    let of = |first: &str, place: &str, second: &str, other: &str| {
        format!("{first}: duplicate policy: found \"ns/p\"\n  hint: it is already defined at {second} ({other})")
            .replacen(": ", &format!(": {place}: "), 1)
    };
    assert_eq!(
        refused(&mut Loader::default(), &[(&a, local), (&b, manifest)]),
        [of(&format!("{b}:6:9"), "metadata.name", &format!("{a}:2"), "policies[0]")]
    );
    assert_eq!(
        refused(&mut Loader::default(), &[(&b, manifest), (&a, local)]),
        [of(&format!("{a}:2:3"), "policies[0]", &format!("{b}:6"), "metadata.name")]
    );
    let mut loader = Loader::default();
    assert_eq!(applied(&mut loader, &[(&a, local)]).snapshot.policy_count(), 1);
    let moved = applied(&mut loader, &[(&b, manifest)]);
    assert_eq!((moved.snapshot.policy_count(), moved.changes), (1, 1), "its scope is another now");
    assert_eq!(applied(&mut loader, &[("c", "{}")]).changes, 1);
}

#[test]
fn what_the_scan_could_not_read_refuses_the_load() {
    let mut loader = Loader::default();
    let mut scan = scan_of(&[("a", "workloads: [1]")], &loader);
    scan.errors.push(FileError { path: "b".into(), fault: FileFault::Missing });
    let problems: Vec<String> = loader.load(&mut scan).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["b: no such file or folder", "a:1:13: workloads[0]: found 1, expected a map"]);

    let mut scan = scan_of(&[("a", "{}")], &loader);
    scan.files[0].bytes = None;
    assert_eq!(loader.load(&mut scan).unwrap_err().to_string(), "a: changes while it is being read");
}

/// Of 20 files with 1,000 workloads each one changes: one file is parsed, one workload is new memory.
#[test]
fn a_change_in_one_of_many_files_costs_that_file() {
    let text = |file: usize, changed: bool| {
        let each = |n: usize| {
            let capacity = if changed && n == 500 { 7 } else { 1 };
            let service = format!("ns/s{}", n % 50);
            format!(
                "- {{uid: u{file}-{n}, namespace: ns, workloadIps: [10.{file}.{}.{}], capacity: {capacity}, services: {{{service}: {{80: 80}}}}}}\n",
                n / 250,
                n % 250
            )
        };
        "workloads:\n".to_owned() + &(0..1_000).map(each).collect::<String>()
    };
    let mut files: Vec<(String, String)> = (0..20).map(|file| (format!("{file:03}"), text(file, false))).collect();
    let mut loader = Loader::default();
    fn refs(files: &[(String, String)]) -> Vec<(&str, &str)> {
        files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect()
    }
    let before = applied(&mut loader, &refs(&files));
    assert_eq!(before.snapshot.workload_count(), 20_000);

    files[13].1 = text(13, true);
    let mut scan = scan_of(&refs(&files), &loader);
    assert_eq!(scan.files.iter().filter(|file| file.bytes.is_some()).count(), 1, "the others are known");
    let after = loader.load(&mut scan).unwrap().unwrap();
    assert_eq!(after.changes, 1);
    let replaced =
        before.snapshot.workloads().filter(|old| !Arc::ptr_eq(old, after.snapshot.workload_by_uid(&old.uid).unwrap()));
    assert_eq!(replaced.map(|old| &*old.uid).collect::<Vec<_>>(), ["u13-500"]);
    let kept = loader
        .applied
        .files
        .values()
        .flat_map(|(_, contents)| &contents.workloads)
        .filter(|(_, it)| Arc::ptr_eq(it, after.snapshot.workload_by_uid(&it.uid).unwrap()));
    assert_eq!(kept.count(), 20_000, "no second copy is kept of what was parsed again");
}

proptest! {
    /// Whatever files come and go, good and bad, in whatever order: the state is what the last good set says.
    #[test]
    fn loading_on_and_on_is_loading_once(
        sets in prop::collection::vec(
            prop::collection::btree_map(0..4_usize, prop::collection::vec((0..30_u32, 1..3_u32), 0..6), 0..4),
            1..12,
        )
    ) {
        let mut loader = Loader::default();
        for set in sets {
            let text = |list: &[(u32, u32)]| {
                let service = |(uid, n): &(u32, u32)| {
                    format!("- {{name: n, namespace: ns, hostname: h{uid}, vips: [/10.1.0.{n}], ports: {{}}}}\n")
                };
                let each = |(uid, n): &(u32, u32)| {
                    format!("- {{uid: u{uid}, namespace: ns, capacity: {n}, workloadIps: [10.0.0.{n}], services: {{ns/h{n}: {{}}}}, authorizationPolicies: [ns/p{n}]}}\n")
                };
                if list.is_empty() {
                    return "workloads: [1]".to_owned();
                }
                let policy = |(uid, n): &(u32, u32)| {
                    format!("- {{name: p{uid}, namespace: ns, scope: Namespace, action: Deny, rules: [[[{{destinationPorts: [{n}]}}]]]}}\n")
                };
                let policies: String = list.iter().skip(2).map(policy).collect();
                let policies = if list.len() < 3 { " []".to_owned() } else { format!("\n{policies}") };
                let workloads: String = list.iter().map(each).collect();
                let services: String = list.iter().skip(1).map(service).collect();
                format!(
                    "workloads:\n{workloads}services:{}\n{services}policies:{policies}\n",
                    if list.len() == 1 { " []" } else { "" }
                )
            };
            let set: BTreeMap<String, String> =
                set.iter().map(|(file, list)| (file.to_string(), text(list))).collect();
            let files: Vec<(&str, &str)> = set.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
            let before = Arc::clone(&loader.applied.snapshot);
            // A look while half of each was written.
            let halves: Vec<_> = files.iter().map(|(path, text)| (*path, text.get(..text.len() / 2).unwrap_or_default())).collect();
            let mut halves = scan_of(&halves, &loader);
            loader.prepare(&mut halves);
            let incremental = load(&mut loader, &files);
            let scratch = load(&mut Loader::default(), &files);
            match (incremental, scratch) {
                (Err(a), Err(b)) => {
                    // These files are not on disk, so a line that needs reading again is not known.
                    let sorted = |problems: Problems| {
                        let shown = |it: &Problem| format!("{} {} {} {}", it.origin, it.key_path, it.message, it.found);
                        let mut all: Vec<String> = problems.iter().map(shown).collect();
                        all.sort();
                        all
                    };
                    prop_assert_eq!(sorted(a), sorted(b));
                    prop_assert!(Arc::ptr_eq(&before, &loader.applied.snapshot));
                }
                (Ok(_), Ok(Some(scratch))) => {
                    let now = &loader.applied.snapshot;
                    prop_assert_eq!(now.to_document(), scratch.snapshot.to_document());
                    prop_assert_eq!(now.source_hash(), scratch.snapshot.source_hash());
                    let dangling = |it: &Snapshot| (it.undefined_services().count(), it.missing_policies().count());
                    prop_assert_eq!(dangling(now), dangling(&scratch.snapshot));
                    for uid in now.workloads() {
                        let ip = uid.ips[0];
                        let found = |it: &Snapshot| it.workload("", ip).map(|it| Arc::clone(&it.uid));
                        prop_assert_eq!(found(now), found(&scratch.snapshot));
                    }
                }
                (incremental, scratch) => prop_assert!(false, "{:?} but {:?}", incremental, scratch),
            }
        }
    }
}

/// Not a measurement, only far from what would be quadratic.
#[test]
fn thousands_on_one_address_and_in_one_service() {
    let each = |n: u32| {
        format!("- {{uid: u{n}, namespace: ns, name: w, workloadIps: [10.0.0.1], services: {{ns/h: {{}}}}}}\n")
    };
    let text = "workloads:\n".to_owned() + &(0..10_000).map(each).collect::<String>();
    let start = std::time::Instant::now();
    let loaded = applied(&mut Loader::default(), &[("a", &text)]);
    assert_eq!(loaded.snapshot.undefined_services().count(), 1);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

/// The state is the same, and what is wrong with it is found again on disk.
#[test]
fn the_texts_of_a_large_state_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let padding = format!("# {}\n", "x".repeat(KEPT_TEXTS / 4));
    let texts: Vec<(String, String)> = (0..5)
        .map(|file| {
            let path = dir.path().join(format!("{file}.yaml")).to_str().unwrap().to_owned();
            let text = format!("{padding}{}", workloads(&[&format!("u{file}")]));
            std::fs::write(&path, &text).unwrap();
            (path, text)
        })
        .collect();
    let files: Vec<(&str, &str)> = texts.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let mut loader = Loader::default();
    let mut scan = scan_of(&files, &loader);
    assert_eq!(loader.load(&mut scan).unwrap().unwrap().snapshot.workload_count(), 5);
    assert!(scan.files.iter().all(|file| file.bytes.is_none()));

    let twice = dir.path().join("6.yaml").to_str().unwrap().to_owned();
    std::fs::write(&twice, files[4].1).unwrap();
    let all = [&files[..], &[(twice.as_str(), files[4].1)]].concat();
    let problems = refused(&mut Loader::default(), &all);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with(&format!("{twice}:3:3: workloads[0]: duplicate uid")), "{problems:?}");
}

/// However many threads: the problems are in the order of the files, and the state is the same.
#[test]
fn many_files_are_as_one_after_the_other() {
    let bad = |file: usize| file % 7 == 3;
    let text = |file: usize| {
        if bad(file) { "workloads: [1]".to_owned() } else { workloads(&[&format!("a{file}"), &format!("b{file}")]) }
    };
    let texts: Vec<(String, String)> = (0..64).map(|file| (format!("{file:02}"), text(file))).collect();
    let files: Vec<(&str, &str)> = texts.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let problems = refused(&mut Loader::default(), &files);
    let want: Vec<String> = (0..64).filter(|file| bad(*file)).map(|file| format!("{file:02}:1:13")).collect();
    assert!(problems.iter().zip(&want).all(|(problem, want)| problem.starts_with(want)), "{problems:?}");
    assert_eq!(problems.len(), want.len());
    let good: Vec<(&str, &str)> = files.iter().enumerate().filter(|(file, _)| !bad(*file)).map(|(_, it)| *it).collect();
    assert_eq!(applied(&mut Loader::default(), &good).snapshot.workload_count(), 2 * good.len());
}
