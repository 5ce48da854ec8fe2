//! Idle connections: what each costs the peer in resident memory.
//!
//! Connections are opened one after another and exchange bytes once, then nothing moves until the peer's memory has settled. Afterwards each must still carry
//! a byte: a peer that dropped them would look frugal.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{Timespec, poll};

use super::super::account::Spent;
use super::{Load, Measured, nanoseconds};

/// Between two looks at the peer's memory.
const LOOK: Duration = Duration::from_millis(300);
/// Memory that changes by less than this between two looks has settled.
const STEADY: u64 = 64 * 1024;
/// No more looks after this. Sweepers and allocators that give back later than this are not waited for.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) fn run(load: &mut Load, connections: u32) -> Result<Measured> {
    let before = settled(load)?;
    let began = Instant::now();
    let mut pairs = Vec::new();
    for number in 0..connections {
        let pair = load.open().with_context(|| format!("connection {} of {connections}", number + 1))?;
        pair.answer(1)?;
        pairs.push(pair);
    }
    let wall = began.elapsed();
    let after = settled(load)?;
    for pair in &pairs {
        pair.answer(2).context("after the idle time")?;
    }
    for pair in pairs {
        pair.close()?;
    }
    let bytes = u64::from(connections) * (8 + 2);
    Ok(Measured {
        wall_ns: nanoseconds(wall),
        units: u64::from(connections),
        spent: Spent::default(),
        load_idle_ns: 0,
        latency_ns: None,
        resident_each: Some((after as f64 - before as f64) / f64::from(connections)),
        sent: bytes,
        received: bytes,
    })
}

/// The peer's resident memory once two looks in a row agree.
fn settled(load: &Load) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    let look = Timespec::try_from(LOOK).context("interval")?;
    let mut last = (load.books.resident)()?;
    let mut agreed = 0;
    while agreed < 2 && Instant::now() < deadline {
        // Nothing to wait for but time: the peer does not say when it has tidied up.
        poll(&mut [], Some(&look)).context("cannot wait")?;
        let now = (load.books.resident)()?;
        agreed = if now.abs_diff(last) < STEADY { agreed + 1 } else { 0 };
        last = now;
    }
    Ok(last)
}
