//! Connections that are held open: what each idle one costs the peer in resident memory, and how they spread over the peer's workers.
//!
//! Connections are opened one after another and exchange bytes once, then nothing moves until the peer has been looked at. Afterwards each must still carry a
//! byte: a peer that dropped them would look frugal.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::super::account::Spent;
use super::{Load, Measured, Memory, nanoseconds, settle};

/// Memory that is steady for so long has settled. Young heaps do not give back much later.
const CALM: Duration = Duration::from_millis(600);
/// No more looks after this. Sweepers and allocators that give back later than this are not waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Memory without and with so many idle connections.
pub(super) fn run(load: &mut Load, connections: u32) -> Result<Measured> {
    let before = settle::resident(load, CALM, PATIENCE)?;
    hold(load, connections, |load, measured| {
        let after = settle::resident(load, CALM, PATIENCE)?;
        measured.memory = Some(Memory { before, after });
        Ok(())
    })
}

/// Which workers hold so many connections.
pub(super) fn spread(load: &mut Load, connections: u32) -> Result<Measured> {
    hold(load, connections, |load, measured| {
        measured.sockets = (load.books.sockets)()?;
        Ok(())
    })
}

/// Opens connections, looks, sees that all of them live, and closes them.
fn hold(
    load: &mut Load,
    connections: u32,
    look: impl FnOnce(&mut Load, &mut Measured) -> Result<()>,
) -> Result<Measured> {
    let began = Instant::now();
    let mut pairs = Vec::new();
    for number in 0..connections {
        let pair = load.open().with_context(|| format!("connection {} of {connections}", number + 1))?;
        pair.answer(1)?;
        pairs.push(pair);
    }
    let bytes = u64::from(connections) * (8 + 2);
    let mut measured = Measured {
        wall_ns: nanoseconds(began.elapsed()),
        units: u64::from(connections),
        spent: Spent::default(),
        load_idle_ns: 0,
        latency_ns: None,
        memory: None,
        sockets: Vec::new(),
        sent: bytes,
        received: bytes,
    };
    look(load, &mut measured)?;
    for pair in &pairs {
        pair.answer(2).context("after the idle time")?;
    }
    for pair in pairs {
        pair.close()?;
    }
    Ok(measured)
}
