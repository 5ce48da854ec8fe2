//! How loading, changing and deciding behave with the size of the mesh: `cargo bench --bench scale`.
//!
//! For each size it writes a mesh (`scale/generate.rs`), loads it as a start does, changes one workload at a time as a controller would, and resolves and
//! authorizes connections in it. Every size runs in a process of its own, so that memory is that size's. Prints a table; a
//! figure that the targets below forbid ends it with exit code 1 when `--check` is given.
//!
//! `cargo bench --bench scale -- [--check] [WORKLOADS ...]`

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a table is what it is for")]

#[path = "scale/decide.rs"]
mod decide;
#[path = "scale/generate.rs"]
mod generate;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use adit::files::{Pace, WatchMode};
use adit::lifecycle::Lifecycle;
use adit::mesh::FileSource;
use anyhow::{Context, Result, bail, ensure};
use generate::Size;
use tokio::sync::mpsc;
use tokio::time::timeout;

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
/// Asks this program to measure one size.
const INSIDE: &str = "--inside";
const CHANGES: usize = 9;

/// At 100,000 workloads.
const LOAD: Duration = Duration::from_secs(5);
const MEMORY_MIB: u64 = 300;
const CHANGE: Duration = Duration::from_millis(200);
const DECISION: Duration = Duration::from_micros(2);

/// What was measured of one size, as it travels between the two processes.
#[derive(Debug, Default)]
struct Measured {
    files: usize,
    load_us: u64,
    peak_kib: u64,
    resident_kib: u64,
    change_us: u64,
    decide_ns: u64,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [inside, workloads] = arguments.as_slice()
        && inside == INSIDE
    {
        let it = measure(workloads.parse().context("a number of workloads")?)?;
        println!("{} {} {} {} {} {}", it.files, it.load_us, it.peak_kib, it.resident_kib, it.change_us, it.decide_ns);
        return Ok(true);
    }
    let check = arguments.iter().position(|argument| argument == "--check").map(|at| arguments.remove(at)).is_some();
    let sizes: Vec<usize> = match arguments.as_slice() {
        [] => SIZES.to_vec(),
        chosen => chosen.iter().map(|it| it.parse()).collect::<Result<_, _>>().context("numbers of workloads")?,
    };
    println!("workloads  files     load  peak MiB  resident MiB  one change  resolve + authorize");
    let mut good = true;
    for size in sizes {
        let it = in_a_process_of_its_own(size)?;
        println!(
            "{size:>9}  {:>5}  {:>5} ms  {:>8}  {:>12}  {:>7.1} ms  {:>16} ns",
            it.files,
            it.load_us / 1000,
            it.peak_kib / 1024,
            it.resident_kib / 1024,
            Duration::from_micros(it.change_us).as_secs_f64() * 1000.0,
            it.decide_ns
        );
        good &= it.load_us <= micros(LOAD)
            && it.peak_kib / 1024 <= MEMORY_MIB
            && it.change_us <= micros(CHANGE)
            && Duration::from_nanos(it.decide_ns) <= DECISION;
    }
    println!(
        "at most: {LOAD:?}, {MEMORY_MIB} MiB, {CHANGE:?} beside the time that files are given to settle ({:?}), {DECISION:?}",
        Pace::default().settle
    );
    Ok(good || !check)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn in_a_process_of_its_own(size: usize) -> Result<Measured> {
    let program = std::env::current_exe().context("this program")?;
    let output = Command::new(program).args([INSIDE, &size.to_string()]).output().context("this program")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("numbers")?;
    let numbers: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>().context("numbers")?;
    let [files, load_us, peak_kib, resident_kib, change_us, decide_ns] = numbers[..] else { bail!("{text}") };
    let files = usize::try_from(files).context("files")?;
    Ok(Measured { files, load_us, peak_kib, resident_kib, change_us, decide_ns })
}

fn measure(workloads: usize) -> Result<Measured> {
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let size = Size { workloads, services: workloads.div_ceil(20), policies: workloads.div_ceil(10) };
    let files = generate::generate(folder.path(), size, 7).context("the mesh")?.files;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    runtime.block_on(load_and_change(folder.path(), size, files))
}

async fn load_and_change(folder: &Path, size: Size, files: usize) -> Result<Measured> {
    let pace = Pace::default();
    let start = Instant::now();
    let mut opened = FileSource::open(vec![folder.to_owned()], pace, WatchMode::Events);
    opened.source.load_first().await.map_err(|problems| anyhow::anyhow!("{problems}"))?;
    let load_us = micros(start.elapsed());
    let (peak_kib, resident_kib) = (status("VmHWM:")?, status("VmRSS:")?);
    let snapshot = std::sync::Arc::clone(&opened.snapshots.borrow_and_update());
    ensure!(snapshot.workload_count() == size.workloads, "not all of it was loaded");
    let decide_ns = decide::nanos(&snapshot, size)?;
    drop(snapshot);
    let (_requests, receiver) = mpsc::channel(1);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(opened.source.run(receiver, Lifecycle::default()));
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let weight = u32::try_from(change).unwrap_or_default() + 50;
        generate::change_one(folder, change * size.workloads / CHANGES, weight).context("a change")?;
        let written = Instant::now();
        let changed = timeout(Duration::from_secs(30), opened.snapshots.changed());
        changed.await.context("the change is not noticed")?.context("the source has ended")?;
        times.push(written.elapsed().saturating_sub(pace.settle));
        opened.snapshots.borrow_and_update();
        // So that the next change is one of its own.
        tokio::time::sleep(pace.settle * 3).await;
    }
    tasks.abort_all();
    times.sort_unstable();
    let change_us = times.get(CHANGES / 2).map_or(0, |median| micros(*median));
    Ok(Measured { files, load_us, peak_kib, resident_kib, change_us, decide_ns })
}

/// A value of `/proc/self/status`, in KiB.
fn status(key: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)).context("an unknown kernel")?;
    value.trim().trim_end_matches(" kB").parse().context("kilobytes")
}
