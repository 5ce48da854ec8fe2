//! Which core the proxy gets and which one the load, and going there.

use std::fs;

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

/// One core each.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Cores {
    pub(crate) proxy: usize,
    pub(crate) load: usize,
}

impl Cores {
    /// The two cores named on the command line, or two of those we may run on that are not two halves of one.
    pub(crate) fn choose(named: &[usize]) -> Result<Self> {
        let allowed = sched_getaffinity(None).context("cannot read the CPU affinity")?;
        let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
        if let [proxy, load] = *named {
            if proxy == load || !allowed.contains(&proxy) || !allowed.contains(&load) {
                bail!("--cores {proxy},{load}: expected two different cores of {allowed:?}");
            }
            return Ok(Self { proxy, load });
        }
        // The last one, because device interrupts tend to land on the first.
        let Some(&proxy) = allowed.last() else { bail!("the CPU affinity is empty") };
        let siblings = siblings(proxy);
        match allowed.iter().find(|core| !siblings.contains(core)) {
            Some(&load) => Ok(Self { proxy, load }),
            None => bail!(
                "this bench needs two cores that share nothing, and may run only on {allowed:?} (--cores overrides)"
            ),
        }
    }
}

/// Moves this thread, and with it every process that it starts from now on, to one core.
pub(crate) fn go_to(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("cannot move to core {core}"))
}

/// The core itself and those that share its execution units; only itself where the kernel does not say.
fn siblings(core: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut cores = vec![core];
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            cores.extend(first..=last);
        }
    }
    cores
}
