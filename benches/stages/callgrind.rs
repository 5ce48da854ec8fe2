//! Counts the instructions of stages: each in a process of its own under valgrind's callgrind, as many at a time as there are cores.
//!
//! In: stages. Out: instructions per operation, without those of the preparation: callgrind counts within one function only.
//! A process of its own, because what the allocator does depends on what was done before. Fails if anything fails: a
//! stage, valgrind, or if nothing was counted (the function has another name, or was inlined).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::{INSIDE, Stage};

/// Of [`crate::counted_rounds`]; what surrounds it depends on how the compiler writes names.
const COUNTED: &str = "*counted_rounds*";

pub(crate) fn count_all<'a>(stages: &[&'a Stage]) -> Result<BTreeMap<&'a str, u64>> {
    let version = Command::new("valgrind").arg("--version").output();
    version.context("valgrind does not run\nhint: install the package valgrind")?;
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let next = Mutex::new(stages.iter());
    let some = || {
        let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next().copied();
        let counted = std::iter::from_fn(take).map(|stage| Ok((stage.name, count(stage, folder.path())?)));
        counted.collect::<Result<Vec<_>>>()
    };
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..thread::available_parallelism().map_or(1, usize::from)).map(|_| scope.spawn(some)).collect();
        let mut counted = BTreeMap::new();
        for thread in threads {
            match thread.join() {
                Ok(some) => counted.extend(some?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(counted)
    })
}

fn count(stage: &Stage, folder: &Path) -> Result<u64> {
    let out = folder.join(stage.name.replace('/', "-"));
    let mut out_option = OsString::from("--callgrind-out-file=");
    out_option.push(&out);
    let output = Command::new("valgrind")
        .args(["--quiet", "--tool=callgrind", &format!("--toggle-collect={COUNTED}")])
        .arg(out_option)
        .arg(std::env::current_exe().context("this program")?)
        .args([INSIDE, stage.name])
        .output()
        .context("valgrind")?;
    ensure!(output.status.success(), "{}: {}", stage.name, String::from_utf8_lossy(&output.stderr));
    let profile = std::fs::read_to_string(&out).with_context(|| format!("{}: callgrind's file", stage.name))?;
    let total = total(&profile).with_context(|| format!("{}: no total in callgrind's file", stage.name))?;
    ensure!(total > 0, "{}: no function is called {COUNTED}", stage.name);
    Ok(total.div_ceil(u64::try_from(stage.rounds)?))
}

fn total(profile: &str) -> Option<u64> {
    profile.lines().find_map(|line| line.strip_prefix("totals:"))?.trim().parse().ok()
}
