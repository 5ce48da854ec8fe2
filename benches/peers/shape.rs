//! The shapes of load: what they are called, and the units their figures come in.
//!
//! A new shape is a variant here, its name and units below, and a stage in `load`.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// Which way the bytes of a bulk transfer go, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    Up,
    Down,
}

/// One shape of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Shape {
    /// Connections that exchanged a byte and then do nothing.
    Idle { connections: u32 },
    /// Each connection sends `size` bytes and waits for the same back, again and again.
    Request { size: usize, connections: u32 },
    /// Connect, one byte each way, close; `parallel` of them at any time.
    Short { parallel: u32 },
    /// As many bytes as will go, one way.
    Bulk { direction: Direction, connections: u32 },
}

/// How a shape's rate and cost are shown.
#[derive(Debug)]
pub(crate) struct Units {
    /// Counted units times this, per second, is the rate that is shown.
    pub(crate) rate_scale: f64,
    pub(crate) rate: &'static str,
    /// Nanoseconds of CPU per counted unit times this is the cost that is shown.
    pub(crate) cost_scale: f64,
    pub(crate) cost: &'static str,
}

impl Shape {
    /// The name on the command line, in the table and in JSON.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Idle { .. } => "idle".to_owned(),
            Self::Request { size, connections } => format!("request-{size}-{connections}"),
            Self::Short { .. } => "short".to_owned(),
            Self::Bulk { direction: Direction::Up, connections } => format!("bulk-up-{connections}"),
            Self::Bulk { direction: Direction::Down, connections } => format!("bulk-down-{connections}"),
        }
    }

    /// The units of its figures; none for idle connections, which have memory only.
    pub(crate) fn units(self) -> Option<Units> {
        match self {
            Self::Idle { .. } => None,
            Self::Request { .. } => Some(Units { rate_scale: 1.0, rate: "req/s", cost_scale: 1e-3, cost: "µs/req" }),
            Self::Short { .. } => Some(Units { rate_scale: 1.0, rate: "conn/s", cost_scale: 1e-3, cost: "µs/conn" }),
            Self::Bulk { .. } => Some(Units { rate_scale: 8e-9, rate: "Gbit/s", cost_scale: 1024.0, cost: "ns/KiB" }),
        }
    }
}

/// The shapes of a run, in the order in which they run: idle first, while the proxy's heap is still young.
pub(crate) fn chosen(only: &[String], idle: u32) -> Result<Vec<Shape>> {
    let all = [
        Shape::Idle { connections: idle },
        Shape::Request { size: 128, connections: 1 },
        Shape::Request { size: 128, connections: 64 },
        Shape::Short { parallel: 16 },
        Shape::Bulk { direction: Direction::Up, connections: 1 },
        Shape::Bulk { direction: Direction::Up, connections: 8 },
        Shape::Bulk { direction: Direction::Down, connections: 1 },
        Shape::Bulk { direction: Direction::Down, connections: 8 },
    ];
    for filter in only {
        if !all.iter().any(|shape| matches(&shape.name(), filter)) {
            let names: Vec<String> = all.iter().map(|shape| shape.name()).collect();
            bail!("no shape begins with {filter:?}; there are: {}", names.join(", "));
        }
    }
    let wanted = |shape: &Shape| only.is_empty() || only.iter().any(|filter| matches(&shape.name(), filter));
    Ok(all.into_iter().filter(wanted).collect())
}

/// True when `filter` is `name` or its beginning up to a hyphen, so that `request-128-6` is an error and not `request-128-64`.
fn matches(name: &str, filter: &str) -> bool {
    name.strip_prefix(filter).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}
