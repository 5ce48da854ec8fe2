//! What the proxy and the load cost, from the scheduler's own books.
//!
//! Comes in: `/proc`, as the cell's PID namespace shows it: process 1 is the cell, every other process belongs to the peer. Goes out: CPU time in
//! nanoseconds, run-queue waiting time, resident memory, the sockets of each worker.
//!
//! CPU time is the sum of `/proc/PID/task/TID/schedstat` over all threads of all processes of the peer. A thread that ended takes its line with it, so the sum is
//! checked against `utime + stime` of the processes, which keep the time of ended threads but count in ticks of 10 ms: the larger wins, less two ticks a process.
//! Time spent in soft interrupts is charged to whoever they interrupted, unless the kernel has CONFIG_IRQ_TIME_ACCOUNTING.
//!
//! Deliberately absent: cgroups (they need a writable hierarchy) and getrusage (it knows children only once they have ended).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use anyhow::{Context, Result};

/// Ticks by which `utime + stime` may be ahead of the scheduler's sum without meaning anything, per process.
const SLACK_TICKS: u64 = 2;

/// CPU time at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    proxy: Account,
    load: Account,
}

#[derive(Debug, Clone, Default)]
struct Account {
    /// (process, thread) -> (time on a core, time waiting for one), in nanoseconds.
    threads: BTreeMap<(u32, u32), (u64, u64)>,
    /// process -> utime + stime in ticks.
    ticks: BTreeMap<u32, u64>,
}

/// CPU time between two moments, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Spent {
    pub(crate) proxy_cpu_ns: u64,
    /// Ready to run, but something else had the core. Noise, or threads of the proxy in each other's way.
    pub(crate) proxy_wait_ns: u64,
    pub(crate) load_wait_ns: u64,
}

impl Usage {
    /// Reads the books now.
    pub(crate) fn now() -> Result<Self> {
        let mut usage = Self::default();
        usage.load.enter(std::process::id())?;
        for process in peer_processes()? {
            usage.proxy.enter(process)?;
        }
        Ok(usage)
    }

    /// What was spent since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Spent {
        let (proxy_cpu_ns, proxy_wait_ns) = self.proxy.since(&earlier.proxy);
        let (_, load_wait_ns) = self.load.since(&earlier.load);
        Spent { proxy_cpu_ns, proxy_wait_ns, load_wait_ns }
    }
}

impl Account {
    fn enter(&mut self, process: u32) -> Result<()> {
        for thread in numbered(&format!("/proc/{process}/task"))? {
            let path = format!("/proc/{process}/task/{thread}/schedstat");
            let Some(text) = read_if_there(&path)? else { continue };
            let mut fields = text.split_ascii_whitespace().map(str::parse::<u64>);
            let (Some(Ok(run)), Some(Ok(wait))) = (fields.next(), fields.next()) else {
                anyhow::bail!("{path}: expected two numbers, found {text:?}");
            };
            self.threads.insert((process, thread), (run, wait));
        }
        let path = format!("/proc/{process}/stat");
        if let Some(text) = read_if_there(&path)? {
            // The second field is the command in parentheses and may hold anything; utime and stime are the 12th and 13th after it.
            let after = text.rsplit_once(')').map_or("", |(_, after)| after);
            let mut fields = after.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
            let (Some(Ok(user)), Some(Ok(system))) = (fields.next(), fields.next()) else {
                anyhow::bail!("{path}: no utime and stime in {text:?}");
            };
            self.ticks.insert(process, user + system);
        }
        Ok(())
    }

    fn since(&self, earlier: &Self) -> (u64, u64) {
        let (mut run_ns, mut wait_ns) = (0, 0);
        for (thread, (run, wait)) in &self.threads {
            let (run_before, wait_before) = earlier.threads.get(thread).copied().unwrap_or_default();
            run_ns += run.saturating_sub(run_before);
            wait_ns += wait.saturating_sub(wait_before);
        }
        let ticks_ns: u64 = self.ticks.iter().map(|(process, ticks)| self.ticks_ns(earlier, *process, *ticks)).sum();
        (run_ns.max(ticks_ns), wait_ns)
    }

    /// What the ticks prove that a process spent at least.
    fn ticks_ns(&self, earlier: &Self, process: u32, ticks: u64) -> u64 {
        let before = earlier.ticks.get(&process).copied().unwrap_or_default();
        let spent = ticks.saturating_sub(before).saturating_sub(SLACK_TICKS);
        spent * (1_000_000_000 / rustix::param::clock_ticks_per_second().max(1))
    }
}

/// Resident memory of the peer in bytes: `Rss` of `/proc/PID/smaps_rollup`, which walks the page tables and so is exact where `statm` is not.
pub(crate) fn resident() -> Result<u64> {
    let mut bytes = 0;
    for process in peer_processes()? {
        let path = format!("/proc/{process}/smaps_rollup");
        let Some(text) = read_if_there(&path)? else { continue };
        let kib =
            text.lines().find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix("kB")?.trim().parse().ok());
        let kib: u64 = kib.with_context(|| format!("{path}: no Rss"))?;
        bytes += kib * 1024;
    }
    Ok(bytes)
}

/// The sockets that each worker of the peer waits for: by process, then by worker.
///
/// A worker is whoever has an epoll of its own, and the kernel says what is in it: `/proc/PID/fdinfo/FD` has a line `tfd` for each. This asks nothing of the peer.
pub(crate) fn sockets() -> Result<Vec<Vec<u64>>> {
    let mut all = Vec::new();
    for process in peer_processes()? {
        let folder = format!("/proc/{process}/fdinfo");
        let mut texts = Vec::new();
        for descriptor in numbered(&folder)? {
            texts.extend(read_if_there(&format!("{folder}/{descriptor}"))?);
        }
        all.push(held(&texts));
    }
    Ok(all)
}

/// What is in each of a process's epolls, of what its descriptors say.
///
/// An epoll may have several descriptors; they read the same, down to the worker's own tokens. Those with less than a tenth of the fullest one's sockets are no workers.
pub(crate) fn held(descriptors: &[String]) -> Vec<u64> {
    let entries = |text: &String| text.lines().filter(|line| line.starts_with("tfd:")).map(str::to_owned).collect();
    let epolls: BTreeSet<BTreeSet<String>> = descriptors.iter().map(entries).collect();
    let most = epolls.iter().map(BTreeSet::len).max().unwrap_or(0);
    let full = epolls.iter().map(BTreeSet::len).filter(|sockets| *sockets > 0 && sockets * 10 >= most);
    full.map(|sockets| sockets as u64).collect()
}

/// Every process of this PID namespace but ourselves.
pub(crate) fn peer_processes() -> Result<Vec<u32>> {
    let ourselves = std::process::id();
    Ok(numbered("/proc")?.into_iter().filter(|process| *process != ourselves).collect())
}

/// The entries of a folder of `/proc` that are numbers. A folder that is gone has none.
fn numbered(folder: &str) -> Result<Vec<u32>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error).context(folder.to_owned()),
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

fn read_if_there(path: &str) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
    }
}

/// True when the process or thread ended meanwhile.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}
