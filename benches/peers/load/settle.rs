//! Waiting until the peer's memory no longer changes.
//!
//! There is nothing to wait for but time: no peer says when it has tidied up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{Timespec, poll};

use super::Load;

/// Between two looks at the peer's memory.
const LOOK: Duration = Duration::from_millis(300);
/// Memory that changes by less than this has not changed.
const STEADY: u64 = 64 * 1024;

/// The peer's resident memory once it has been steady for `calm`; or as it is after `patience`, whatever it does.
pub(super) fn resident(load: &Load, calm: Duration, patience: Duration) -> Result<u64> {
    let look = Timespec::try_from(LOOK).context("interval")?;
    let began = Instant::now();
    let mut steady = ((load.books.resident)()?, began);
    loop {
        poll(&mut [], Some(&look)).context("cannot wait")?;
        let now = (load.books.resident)()?;
        // Against the memory at the beginning of the calm, so that a slow trickle is not taken for one.
        if now.abs_diff(steady.0) >= STEADY {
            steady = (now, Instant::now());
        }
        if steady.1.elapsed() >= calm || began.elapsed() >= patience {
            return Ok(now);
        }
    }
}
