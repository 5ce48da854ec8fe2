//! A burst: many connections at once, bulk and requests, all closed after a while; what the peer has in memory before and after it.
//!
//! All connections send messages and compare what comes back, as `request` does; every tenth sends large ones, which is bulk both ways. Because each waits
//! for its answer, no more than its message is in the kernel's buffers for it, whatever the peer.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Load, Measured, Memory, Timing, Window, request, settle};

const SMALL: usize = 16 * 1024;
/// Large enough for peers that take a while to treat a connection as bulk.
const LARGE: usize = 4 * 1024 * 1024;
/// The burst's length in those of other shapes.
const LENGTH: u32 = 3;
/// Memory before the burst is steady after so long; nothing happened yet that would be given back late.
const CALM: Duration = Duration::from_millis(600);

pub(super) fn run(load: &mut Load, connections: u32, timing: Timing) -> Result<Measured> {
    let before = settle::resident(load, CALM, timing.settle)?;
    let sizes: Vec<usize> = (0..connections).map(|number| if number % 10 == 9 { LARGE } else { SMALL }).collect();
    let mut window = Window::new(Timing { length: timing.length * LENGTH, ..timing }, load.books.usage);
    let measured = request::run(load, &sizes, &mut window).context("the burst")?;
    // Calm for a sixth of the time that there is: with a minute, as long as allocators commonly keep free pages.
    let after = settle::resident(load, timing.settle / 6, timing.settle)?;
    // Times of messages so different say nothing.
    Ok(Measured { memory: Some(Memory { before, after }), latency_ns: None, ..measured })
}
