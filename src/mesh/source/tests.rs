//! The source of states on real folders: what is applied, what is refused, what is waited for.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use tempfile::{TempDir, tempdir};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;

/// Nothing in a test takes this long unless it is broken.
const LONG: Duration = Duration::from_secs(30);

/// As in production, but settling sooner.
fn brisk() -> Pace {
    Pace { settle: Duration::from_millis(5), settle_max: Duration::from_millis(100), ..Pace::default() }
}

/// Only requests make it look.
fn on_request() -> (Pace, WatchMode) {
    let pace = Pace { period: LONG * 100, settle: Duration::from_millis(1), settle_max: LONG, ..Pace::default() };
    (pace, WatchMode::Polling)
}

/// A running source.
struct Running {
    dir: TempDir,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    status: watch::Receiver<Arc<MeshStatus>>,
    requests: mpsc::Sender<oneshot::Sender<ReloadOutcome>>,
    lifecycle: Lifecycle,
    tasks: JoinSet<()>,
}

impl Running {
    /// On `source`, relative to a folder that `prepare` may fill.
    async fn start(prepare: impl FnOnce(&Path), source: &str, pace: Pace, mode: WatchMode) -> Result<Self, Problems> {
        let dir = tempdir().unwrap();
        prepare(dir.path());
        let opened = FileSource::open(vec![dir.path().join(source)], pace, mode);
        opened.source.load_first().await?;
        let (requests, receiver) = mpsc::channel(1);
        let lifecycle = Lifecycle::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(opened.source.run(receiver, lifecycle.clone()));
        let (snapshots, status) = (opened.snapshots, opened.status);
        Ok(Self { dir, snapshots, status, requests, lifecycle, tasks })
    }

    /// All at once: an empty or half-written file would be a content of its own.
    fn write(&self, name: &str, text: &str) {
        let beside = tempfile::NamedTempFile::new().unwrap();
        fs::write(beside.path(), text).unwrap();
        beside.persist(self.dir.path().join(name)).unwrap();
    }

    fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    async fn reload(&self) -> ReloadOutcome {
        let (answer, outcome) = oneshot::channel();
        self.requests.send(answer).await.unwrap();
        timeout(LONG, outcome).await.unwrap().unwrap()
    }

    async fn until_uids(&mut self, want: &[&str]) {
        let reached = timeout(LONG, self.snapshots.wait_for(|snapshot| uids(snapshot) == want)).await.is_ok();
        assert!(reached, "wanted {want:?}, still {:?}", uids(&self.now()));
    }

    async fn until_status(&mut self, what: &str, holds: impl FnMut(&Arc<MeshStatus>) -> bool) -> Arc<MeshStatus> {
        match timeout(LONG, self.status.wait_for(holds)).await {
            Ok(status) => Arc::clone(&status.unwrap()),
            Err(_) => panic!("never {what}"),
        }
    }
}

fn uids(snapshot: &Snapshot) -> Vec<&str> {
    let mut uids: Vec<&str> = snapshot.workloads().map(|it| &*it.uid).collect();
    uids.sort_unstable();
    uids
}

fn yaml(uids: &[&str]) -> String {
    let each =
        |uid: &&str| format!("- uid: {uid}\n  namespace: ns\n  workloadIps: [10.0.0.1]\n  serviceAccount: web\n");
    format!("workloads:\n{}", uids.iter().map(each).collect::<String>())
}

fn json(uid: &str) -> String {
    format!(
        r#"{{"workloads":[{{"uid":"{uid}","namespace":"ns","workloadIps":["::1"],"services":{{"n/h":{{"80":1}}}}}}]}}"#
    )
}

/// As the kubelet writes a volume.
fn atomic_write(folder: &Path, generation: usize, file: &str, text: &str) {
    let name = format!("..2024_{generation}");
    fs::create_dir_all(folder.join(&name)).unwrap();
    fs::write(folder.join(&name).join(file), text).unwrap();
    let old = fs::read_link(folder.join("..data")).ok();
    symlink(&name, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    if fs::read_link(folder.join(file)).is_err() {
        symlink(format!("..data/{file}"), folder.join(file)).unwrap();
    }
    if let Some(old) = old {
        fs::remove_dir_all(folder.join(old)).unwrap();
    }
}

#[tokio::test]
async fn a_hundred_volume_swaps_and_none_is_missed() {
    for source in ["volume", "volume/mesh.yaml"] {
        let swap = |dir: &Path, n: usize| {
            atomic_write(&dir.join("volume"), n, "mesh.yaml", &yaml(&[&format!("u{n}")]));
        };
        let mut running = Running::start(|dir| swap(dir, 0), source, brisk(), WatchMode::Events).await.unwrap();
        for n in 1..=50 {
            swap(running.dir.path(), n);
            running.until_uids(&[&format!("u{n}")]).await;
        }
        let status = running.until_status("in sync", |status| status.in_sync && status.generation == 51).await;
        assert_eq!((status.reloads.rejected, &status.last_rejected), (0, &None), "no swap was seen halfway");
    }
}

#[tokio::test]
async fn a_file_cut_short_anywhere_leaves_the_state_alone() {
    let (pace, mode) = on_request();
    let running =
        Running::start(|dir| fs::write(dir.join("a.yaml"), json("a")).unwrap(), "a.yaml", pace, mode).await.unwrap();
    let good = json("b");
    for cut in 0..good.len() {
        let before = running.now();
        let short = good.get(..cut).unwrap();
        running.write("a.yaml", short);
        let outcome = running.reload().await;
        assert!(matches!(&outcome, ReloadOutcome::Rejected(problems) if !problems.is_empty()), "{cut}: {outcome:?}");
        assert!(Arc::ptr_eq(&before, &running.now()), "{cut}");
        assert!(!running.status.borrow().in_sync);
        running.write("a.yaml", &json(&format!("good-{cut}")));
        assert!(matches!(running.reload().await, ReloadOutcome::Applied { changes: 2, .. }), "{cut}");
        assert_eq!(uids(&running.now()), [format!("good-{cut}")]);
    }
}

/// Block style may be cut where it is still well formed: then it is what it says, and nothing else.
#[tokio::test]
async fn a_block_style_file_cut_short_is_refused_or_taken_at_its_word() {
    let (pace, mode) = on_request();
    let good = yaml(&["a", "b"]);
    let running =
        Running::start(|dir| fs::write(dir.join("a.yaml"), &good).unwrap(), "a.yaml", pace, mode).await.unwrap();
    let mut refused = 0;
    for cut in 0..good.len() {
        let before = running.now();
        let short = good.get(..cut).unwrap();
        running.write("a.yaml", short);
        match (running.reload().await, crate::mesh::snapshot_of("a.yaml", short)) {
            (ReloadOutcome::Rejected(_), Err(_)) => {
                refused += 1;
                assert!(Arc::ptr_eq(&before, &running.now()), "{cut}");
            }
            (ReloadOutcome::Applied { .. }, Ok(alone)) => {
                assert_eq!(running.now().to_document(), alone.to_document(), "{cut}");
            }
            (outcome, alone) => panic!("{cut}: {outcome:?} but alone {alone:?}"),
        }
        running.write("a.yaml", &good);
        running.reload().await;
        assert_eq!(uids(&running.now()), ["a", "b"], "{cut}");
    }
    assert!(refused > good.len() / 2, "{refused} of {}", good.len());
}

#[tokio::test]
async fn a_deleted_file_leaves_the_state_and_its_return_heals() {
    let mut running = Running::start(
        |dir| fs::write(dir.join("a.yaml"), yaml(&["a"])).unwrap(),
        "a.yaml",
        brisk(),
        WatchMode::Events,
    )
    .await
    .unwrap();
    let before = running.now();
    fs::remove_file(running.dir.path().join("a.yaml")).unwrap();
    let status = running.until_status("out of sync", |status| !status.in_sync).await;
    let problems = &status.last_rejected.as_ref().unwrap().problems;
    assert!(problems.to_string().ends_with("a.yaml: no such file or folder"), "{problems}");
    assert!(Arc::ptr_eq(&before, &running.now()));
    assert!(status.has_state() && status.waiting_for.is_empty());

    running.write("a.yaml", &yaml(&["a"]));
    let status = running.until_status("in sync", |status| status.in_sync).await;
    assert!(status.last_rejected.is_some(), "what was wrong can still be read");
    assert!(Arc::ptr_eq(&before, &running.now()), "nothing had changed");
    running.write("a.yaml", &yaml(&["b"]));
    running.until_uids(&["b"]).await;
}

#[tokio::test]
async fn a_file_gone_from_a_folder_takes_its_resources_but_the_last_one_does_not() {
    let prepare = |dir: &Path| {
        fs::write(dir.join("a.yaml"), yaml(&["a"])).unwrap();
        fs::write(dir.join("b.yaml"), yaml(&["b"])).unwrap();
    };
    let mut running = Running::start(prepare, "", brisk(), WatchMode::Events).await.unwrap();
    fs::remove_file(running.dir.path().join("a.yaml")).unwrap();
    running.until_uids(&["b"]).await;
    fs::remove_file(running.dir.path().join("b.yaml")).unwrap();
    running.until_status("out of sync", |status| !status.in_sync).await;
    assert_eq!(uids(&running.now()), ["b"]);
}

#[tokio::test]
async fn a_missing_file_is_waited_for_with_and_without_events() {
    let polling = Pace { period: Duration::from_millis(20), ..brisk() };
    for (pace, mode) in [(brisk(), WatchMode::Events), (polling, WatchMode::Polling)] {
        let mut running = Running::start(|_| (), "later/a.yaml", pace, mode).await.unwrap();
        let status = Arc::clone(&running.status.borrow());
        assert!(!status.has_state());
        assert_eq!(status.waiting_for.len(), 1);
        assert!(status.waiting_for[0].ends_with("later/a.yaml: no such file or folder"));
        assert!(matches!(running.reload().await, ReloadOutcome::Waiting(_)));
        assert_eq!(running.now().generation(), 0);

        // Bad content is refused but not the end: adit runs already.
        fs::create_dir(running.dir.path().join("later")).unwrap();
        running.write("later/a.yaml", "workloads: 1");
        let status = running.until_status("refused", |status| status.last_rejected.is_some()).await;
        assert!(!status.has_state() && status.waiting_for.is_empty());

        running.write("later/a.yaml", &yaml(&["a"]));
        running.until_uids(&["a"]).await;
        let status = running.until_status("in sync", |status| status.in_sync).await;
        assert_eq!((status.generation, status.workloads, status.files), (1, 1, 1));
        assert_eq!(*status.hash, *running.now().source_hash());
    }
}

#[tokio::test]
async fn bad_content_at_the_start_is_the_callers_problem() {
    let bad = |dir: &Path| fs::write(dir.join("a.yaml"), "workloads: [1]\npolicies: [1]\n").unwrap();
    let Err(problems) = Running::start(bad, "a.yaml", brisk(), WatchMode::Events).await else { panic!("started") };
    assert_eq!(problems.len(), 2, "{problems}");
    let checked = {
        let dir = tempdir().unwrap();
        bad(dir.path());
        crate::mesh::check(vec![dir.path().to_owned(), dir.path().join("missing.yaml")]).unwrap_err()
    };
    assert_eq!(checked.len(), 3, "check also misses the file: {checked}");
}

#[tokio::test]
async fn check_counts() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), json("a")).unwrap();
    fs::write(dir.path().join("b.yaml"), yaml(&["b", "c"])).unwrap();
    let summary = crate::mesh::check(vec![dir.path().to_owned()]).unwrap();
    assert_eq!((summary.files, summary.workloads, summary.services, summary.dangling.len()), (2, 3, 0, 1));
}

#[tokio::test]
async fn no_files_at_all_is_an_empty_state() {
    let opened = FileSource::open(Vec::new(), Pace::default(), WatchMode::Events);
    assert!(!opened.status.borrow().has_state(), "nothing was read yet");
    opened.source.load_first().await.unwrap();
    assert!(opened.status.borrow().has_state());
    assert_eq!(opened.snapshots.borrow().workload_count(), 0);
}

/// Old snapshots go as soon as nobody reads them, and never in the hands of a reader.
#[tokio::test]
async fn a_thousand_reloads_leave_one_snapshot() {
    let (pace, mode) = on_request();
    let text = |n: usize| {
        let each = |at: usize| {
            format!("- {{uid: u{at}, namespace: ns, workloadIps: [], capacity: {}}}\n", if at == 7 { n } else { 1 })
        };
        format!("workloads:\n{}", (0..20).map(each).collect::<String>())
    };
    let running =
        Running::start(|dir| fs::write(dir.join("a.yaml"), text(0)).unwrap(), "a.yaml", pace, mode).await.unwrap();
    let untouched = |snapshot: &Snapshot| Arc::clone(snapshot.workload_by_uid("u1").unwrap());
    let first = untouched(&running.now());
    let baseline = Arc::strong_count(&first);
    let mut old: Vec<Weak<Snapshot>> = Vec::new();
    let reader = running.now();
    for n in 1..=1_000 {
        old.push(Arc::downgrade(&running.now()));
        running.write("a.yaml", &text(n));
        assert!(matches!(running.reload().await, ReloadOutcome::Applied { changes: 1, .. }), "{n}");
        let alive = old.iter().filter(|snapshot| snapshot.strong_count() > 0).count();
        assert_eq!(alive, 1, "only what is still read, after {n}");
    }
    assert_eq!(running.now().generation(), 1_001);
    assert!(Arc::ptr_eq(&first, &untouched(&running.now())), "a thousand parses, one workload");

    let weak = Arc::downgrade(&reader);
    drop(reader);
    assert_eq!(weak.strong_count(), 1, "held for the control side to drop");
    running.reload().await;
    assert_eq!(weak.strong_count(), 0);
    assert_eq!(Arc::strong_count(&first), baseline);
    let status = running.status.borrow();
    assert_eq!((status.reloads.applied, status.reloads.unchanged), (1_001, 1));
}

#[tokio::test]
async fn refused_content_is_reported_once_until_somebody_asks() {
    let pace = Pace { period: Duration::from_millis(5), ..brisk() };
    let good = |dir: &Path| fs::write(dir.join("a.yaml"), yaml(&["a"])).unwrap();
    let mut running = Running::start(good, "a.yaml", pace, WatchMode::Polling).await.unwrap();
    running.write("a.yaml", "workloads: 1");
    running.until_status("refused", |status| status.reloads.rejected == 1).await;
    // Each answered request means that looks have happened in between.
    for asked in 2..5 {
        assert!(matches!(running.reload().await, ReloadOutcome::Rejected(_)));
        assert_eq!(running.status.borrow().reloads.rejected, asked);
    }
}

/// A file that never stands still is taken as it is found, not put off for ever.
#[tokio::test]
async fn a_file_that_changes_all_the_time_is_still_followed() {
    let good = |dir: &Path| fs::write(dir.join("a.yaml"), yaml(&["u0"])).unwrap();
    let mut running = Running::start(good, "a.yaml", brisk(), WatchMode::Events).await.unwrap();
    let path = running.dir.path().join("a.yaml");
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let writer = std::thread::spawn(move || {
        let temporary = path.with_extension("tmp");
        for n in 1_u64.. {
            if stopping.load(std::sync::atomic::Ordering::Relaxed) {
                break;
            }
            fs::write(&temporary, yaml(&[&format!("u{n}")])).unwrap();
            fs::rename(&temporary, &path).unwrap();
        }
    });
    running.until_status("applied meanwhile", |status| status.generation >= 5).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
}

#[tokio::test]
async fn it_ends_when_the_process_stops() {
    let good = |dir: &Path| fs::write(dir.join("a.yaml"), yaml(&["a"])).unwrap();
    let mut running = Running::start(good, "a.yaml", brisk(), WatchMode::Events).await.unwrap();
    running.lifecycle.advance(Phase::DrainAll);
    assert!(matches!(running.reload().await, ReloadOutcome::Unchanged { .. }), "it goes on while draining");
    running.lifecycle.advance(Phase::Stopped);
    assert!(timeout(LONG, running.tasks.join_next()).await.unwrap().unwrap().is_ok());
    assert!(running.requests.send(oneshot::channel().0).await.is_err(), "nobody is left to ask");
}
