//! Folders and files that change under the watcher, as people, editors and Kubernetes change them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::{TempDir, tempdir};
use tokio::time::{Instant, timeout};

use super::*;

/// Nothing in a test takes this long unless it is broken.
const LONG: Duration = Duration::from_secs(30);

fn set(sources: &[&Path]) -> FileSet {
    FileSet::new(sources.iter().map(|path| path.to_path_buf()).collect(), Bounds::default())
}

fn nothing_known(_: &Path, _: ContentHash) -> bool {
    false
}

fn all_known(_: &Path, _: ContentHash) -> bool {
    true
}

/// File names and contents.
fn seen(scan: &Scan) -> Vec<(String, String)> {
    let shown = |file: &FileContent| {
        let bytes = file.bytes.as_deref().unwrap_or(b"(not read)");
        let name = file.path.file_name().unwrap().to_string_lossy().into_owned();
        (name, String::from_utf8_lossy(bytes).into_owned())
    };
    scan.files.iter().map(shown).collect()
}

fn faults(scan: &Scan) -> Vec<String> {
    scan.errors.iter().map(|error| error.fault.to_string()).collect()
}

/// As the kubelet writes a volume: a new folder, a rename of `..data` over the old link, the old folder removed.
fn atomic_write(folder: &Path, generation: usize, files: &[(&str, &str)]) {
    let name = format!("..2024_{generation}");
    fs::create_dir(folder.join(&name)).unwrap();
    for (file, content) in files {
        fs::write(folder.join(&name).join(file), content).unwrap();
    }
    let old = fs::read_link(folder.join("..data")).ok();
    symlink(&name, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    for (file, _) in files {
        if fs::read_link(folder.join(file)).is_err() {
            symlink(format!("..data/{file}"), folder.join(file)).unwrap();
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(folder.join(old)).unwrap();
    }
}

#[test]
fn a_folder_is_its_yaml_files_in_order() {
    let dir = tempdir().unwrap();
    for name in ["b.yaml", "a.yml", ".hidden.yaml", "..data.yaml", "c.json", "d.yaml.bak", "yaml"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    fs::create_dir(dir.path().join("folder.yaml")).unwrap();
    let extra = dir.path().join("c.json");
    let scan = set(&[&extra, dir.path(), &dir.path().join("b.yaml")]).scan(Effort::Full, nothing_known);
    let pair = |name: &str| (name.to_owned(), name.to_owned());
    assert_eq!(seen(&scan), [pair("c.json"), pair("a.yml"), pair("b.yaml")], "each once");
    assert!(scan.errors.is_empty());
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("file"), "").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), rustix::fs::Mode::RWXU).unwrap();
    symlink("loop", path("loop")).unwrap();
    for (name, fault) in [
        ("missing", "no such file or folder"),
        ("file/below", "no such file or folder"),
        ("empty", "the folder has no *.yaml or *.yml in it"),
        ("fifo", "not a regular file"),
        ("loop", "cannot look at it: Too many levels of symbolic links (os error 40)"),
    ] {
        let scan = set(&[&path(name)]).scan(Effort::Full, nothing_known);
        assert_eq!(faults(&scan), [fault], "{name}");
        assert!(scan.files.is_empty());
        assert_eq!(scan.errors[0].path, path(name));
    }
    let missing = set(&[&path("missing")]).scan(Effort::Full, nothing_known);
    assert!(missing.errors[0].is_absence());
    assert!(missing.errors[0].to_string().ends_with("missing: no such file or folder"));
}

#[test]
fn bounds_hold() {
    let dir = tempdir().unwrap();
    for name in ["a.yaml", "b.yaml", "c.yaml"] {
        fs::write(dir.path().join(name), "12345").unwrap();
    }
    let ample = Bounds { file_bytes: 5, total_bytes: 15, files: 3 };
    for (bounds, files, fault) in [
        (ample, 3, None),
        (Bounds { file_bytes: 4, ..ample }, 0, Some("larger than 4 bytes")),
        (Bounds { total_bytes: 14, ..ample }, 3, Some("more than 14 bytes together with the files before it")),
        (Bounds { files: 2, ..ample }, 2, Some("more than 2 files")),
    ] {
        let scan = FileSet::new(vec![dir.path().to_owned()], bounds).scan(Effort::Full, nothing_known);
        assert_eq!(scan.files.len(), files, "{bounds:?}");
        assert_eq!(faults(&scan).first().map(String::as_str), fault, "{bounds:?}");
    }
}

#[test]
fn an_unchanged_file_is_read_twice_and_then_not_again() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, "one").unwrap();
    let mut set = set(&[&path]);
    let mut look = || set.scan(Effort::Gated, all_known).files[0].hash;
    assert_eq!([look(), look()], [ContentHash::of(b"one"); 2]);
    assert!(set.seen[&path].confirmed);

    // Of the same size and with the time of the old content: only the time of change gives it away.
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "two").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    assert_eq!(set.scan(Effort::Gated, all_known).files[0].hash, ContentHash::of(b"two"));
    assert!(!set.seen[&path].confirmed, "once is not enough: it may change again within a tick of the clock");
}

#[test]
fn known_contents_come_without_bytes() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, "one").unwrap();
    let mut set = set(&[&path]);
    let first = set.scan(Effort::Full, nothing_known);
    for effort in [Effort::Gated, Effort::Full, Effort::Gated] {
        let again = set.scan(effort, all_known);
        assert_eq!(again.digest, first.digest);
        assert!(again.files[0].bytes.is_none());
    }
    assert!(set.scan(Effort::Gated, nothing_known).files[0].bytes.is_some(), "who forgot may ask again");
    fs::write(&path, "two").unwrap();
    let only = ContentHash::of(b"one");
    let changed = set.scan(Effort::Gated, |_, hash| hash == only);
    assert_ne!(changed.digest, first.digest);
    assert_eq!(changed.files[0].bytes.as_deref(), Some(&b"two"[..]));
}

#[test]
fn the_source_hash_is_of_contents() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    assert_eq!(set(&[]).scan(Effort::Full, nothing_known).source_hash(), "");
    fs::write(&path, "abc").unwrap();
    let one = set(&[&path]).scan(Effort::Full, nothing_known).source_hash();
    assert_eq!(one, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "as sha256sum says");
    fs::write(dir.path().join("b.yaml"), "abc").unwrap();
    let two = set(&[dir.path()]).scan(Effort::Full, nothing_known).source_hash();
    assert_ne!(two, one);
    fs::rename(&path, dir.path().join("0.yaml")).unwrap();
    assert_eq!(set(&[dir.path()]).scan(Effort::Full, nothing_known).source_hash(), two);
}

/// A reader in one thread, swaps in another: no scan ever shows files of two generations.
#[test]
fn a_scan_never_mixes_two_states_of_a_folder() {
    let dir = tempdir().unwrap();
    let write = |generation: usize| {
        let content = generation.to_string();
        atomic_write(dir.path(), generation, &[("a.yaml", &content), ("b.yaml", &content), ("c.yaml", &content)]);
    };
    write(0);
    let mut set = set(&[dir.path()]);
    let mut whole = 0;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..400).for_each(write));
        while !writer.is_finished() {
            let scan = set.scan(Effort::Gated, nothing_known);
            if scan.errors.is_empty() {
                let contents: Vec<String> = seen(&scan).into_iter().map(|(_, content)| content).collect();
                assert_eq!(contents.len(), 3);
                assert!(contents.iter().all(|content| *content == contents[0]), "{contents:?}");
                whole += 1;
            }
        }
    });
    assert!(whole > 0);
    assert_eq!(seen(&set.scan(Effort::Gated, nothing_known))[2].1, "399");
}

// ---- when to look ----

fn quick() -> Pace {
    Pace {
        period: LONG * 10,
        full: LONG * 20,
        settle: Duration::from_millis(10),
        settle_max: Duration::from_millis(100),
    }
}

/// A watched set that has settled: no wake-up is due.
async fn watched(sources: Vec<PathBuf>) -> (FileSet, Wakeups) {
    let (mut set, mut wakeups) = watch(sources, Bounds::default(), quick(), WatchMode::Events);
    set.scan(Effort::Gated, nothing_known);
    while timeout(Duration::from_millis(300), wakeups.next()).await.is_ok() {
        set.scan(Effort::Gated, nothing_known);
    }
    (set, wakeups)
}

/// Looks at every wake-up until `done`; a wake-up that never comes fails the test.
async fn look_until(set: &mut FileSet, wakeups: &mut Wakeups, done: impl Fn(&Scan) -> bool) {
    let end = Instant::now() + LONG;
    while !done(&set.scan(Effort::Gated, nothing_known)) {
        let woken = tokio::time::timeout_at(end, wakeups.next()).await;
        assert!(woken.is_ok(), "no event came");
    }
}

fn shows(want: &str) -> impl Fn(&Scan) -> bool {
    move |scan| seen(scan).first().is_some_and(|(_, content)| content == want)
}

#[tokio::test]
async fn any_way_to_change_a_file_wakes() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, "0").unwrap();
    let (mut set, mut wakeups) = watched(vec![path.clone()]).await;
    fs::write(&path, "in place").unwrap();
    look_until(&mut set, &mut wakeups, shows("in place")).await;
    fs::write(dir.path().join("new"), "renamed over").unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    look_until(&mut set, &mut wakeups, shows("renamed over")).await;
    fs::remove_file(&path).unwrap();
    look_until(&mut set, &mut wakeups, |scan| scan.files.is_empty()).await;
    fs::write(dir.path().join("target"), "linked").unwrap();
    symlink("target", &path).unwrap();
    look_until(&mut set, &mut wakeups, shows("linked")).await;
}

#[tokio::test]
async fn a_folder_that_appears_later_or_is_replaced_wakes() {
    let dir = tempdir().unwrap();
    let folder = dir.path().join("not/yet/there");
    let (mut set, mut wakeups) = watched(vec![folder.clone()]).await;
    for round in ["1", "2", "3"] {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("a.yaml"), round).unwrap();
        look_until(&mut set, &mut wakeups, shows(round)).await;
        // A later write into the folder that was made anew.
        fs::write(folder.join("0.yaml"), format!("more {round}")).unwrap();
        look_until(&mut set, &mut wakeups, shows(&format!("more {round}"))).await;
        fs::remove_dir_all(dir.path().join("not")).unwrap();
        look_until(&mut set, &mut wakeups, |scan| scan.files.is_empty()).await;
    }
}

/// A new folder may even have the inode of the old one, but not its watch.
#[tokio::test]
async fn a_folder_replaced_at_once_is_watched_anew() {
    let dir = tempdir().unwrap();
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.yaml"), "0").unwrap();
    let (mut set, mut wakeups) = watched(vec![folder.clone()]).await;
    for round in 1..10 {
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.yaml"), format!("new {round}")).unwrap();
        look_until(&mut set, &mut wakeups, shows(&format!("new {round}"))).await;
        while timeout(Duration::from_millis(200), wakeups.next()).await.is_ok() {
            set.scan(Effort::Gated, nothing_known);
        }
        fs::write(folder.join("a.yaml"), format!("later {round}")).unwrap();
        look_until(&mut set, &mut wakeups, shows(&format!("later {round}"))).await;
    }
}

/// What changes between listing a folder and watching it is not heard: so there is one more look.
#[tokio::test]
async fn a_new_watch_asks_for_another_look() {
    let dir = tempdir().unwrap();
    let (mut set, mut wakeups) =
        watch(vec![dir.path().join("folder/a.yaml")], Bounds::default(), quick(), WatchMode::Events);
    set.scan(Effort::Gated, nothing_known);
    assert!(timeout(LONG, wakeups.next()).await.is_ok());
}

#[tokio::test]
async fn swaps_of_links_wake() {
    let dir = tempdir().unwrap();
    let volume = dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    atomic_write(&volume, 0, &[("a.yaml", "0")]);
    symlink("volume", dir.path().join("current")).unwrap();
    // Through a link to the folder, as deployments do; and to one file of it, as mounts of a volume do.
    for source in ["current", "volume/a.yaml"] {
        let (mut set, mut wakeups) = watched(vec![dir.path().join(source)]).await;
        for generation in 1..20_usize {
            let generation = generation + if source == "current" { 0 } else { 100 };
            atomic_write(&volume, generation, &[("a.yaml", &generation.to_string())]);
            look_until(&mut set, &mut wakeups, shows(&generation.to_string())).await;
        }
    }
    let other: TempDir = tempdir().unwrap();
    fs::write(other.path().join("a.yaml"), "other").unwrap();
    let (mut set, mut wakeups) = watched(vec![dir.path().join("current")]).await;
    symlink(other.path(), dir.path().join("next")).unwrap();
    fs::rename(dir.path().join("next"), dir.path().join("current")).unwrap();
    look_until(&mut set, &mut wakeups, shows("other")).await;
}

/// Our own reading must not wake us, or we would never rest.
#[tokio::test]
async fn looking_does_not_wake() {
    let dir = tempdir().unwrap();
    // The folder's parent is watched too, and other tests are busy in the parent of `dir`.
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.yaml"), "0").unwrap();
    let (mut set, mut wakeups) = watched(vec![folder]).await;
    for _ in 0..3 {
        set.scan(Effort::Full, nothing_known);
    }
    assert!(timeout(Duration::from_millis(500), wakeups.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn without_events_the_period_wakes_and_now_and_then_fully() {
    let pace = Pace { period: Duration::from_secs(5), full: Duration::from_secs(60), ..Pace::default() };
    let (_set, mut wakeups) = watch(Vec::new(), Bounds::default(), pace, WatchMode::Polling);
    let start = Instant::now();
    let mut full = Vec::new();
    for look in 1..=36_u32 {
        let effort = wakeups.next().await;
        assert_eq!(start.elapsed().as_secs(), u64::from(look) * 5);
        if effort == Effort::Full {
            full.push(look);
        }
    }
    assert_eq!(full, [12, 24, 36]);
}

#[tokio::test]
async fn polling_finds_what_events_would_have_told() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("later/a.yaml");
    let pace = Pace { period: Duration::from_millis(5), ..Pace::default() };
    let (mut set, mut wakeups) = watch(vec![path.clone()], Bounds::default(), pace, WatchMode::Polling);
    assert!(set.scan(Effort::Gated, nothing_known).files.is_empty());
    fs::create_dir(dir.path().join("later")).unwrap();
    for content in ["one", "two"] {
        fs::write(&path, content).unwrap();
        look_until(&mut set, &mut wakeups, shows(content)).await;
    }
}
