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
    Request { size: usize, connections: usize },
    /// Connect, one byte each way, close; `parallel` of them at any time.
    Short { parallel: u32 },
    /// As many bytes as will go, one way.
    Bulk { direction: Direction, connections: u32 },
    /// Many connections with small messages at a steady pace, beside `bulk` uploads.
    Beside { bulk: u32 },
    /// Many connections with bulk and requests, all closed: what memory the peer keeps.
    Burst { connections: u32 },
    /// Connections that are open at the same time: which of the peer's workers has them.
    Spread { connections: u32 },
}

/// How many connections the shapes have whose number can be chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crowds {
    pub(crate) idle: u32,
    /// Of `burst` and `spread`.
    pub(crate) burst: u32,
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
            Self::Burst { .. } => "burst".to_owned(),
            Self::Spread { .. } => "spread".to_owned(),
            Self::Request { size, connections } => format!("request-{size}-{connections}"),
            Self::Beside { bulk } => format!("beside-{bulk}"),
            Self::Short { .. } => "short".to_owned(),
            Self::Bulk { direction: Direction::Up, connections } => format!("bulk-up-{connections}"),
            Self::Bulk { direction: Direction::Down, connections } => format!("bulk-down-{connections}"),
        }
    }

    /// The units of its rate and CPU time; none where these are not what the shape is about.
    pub(crate) fn units(self) -> Option<Units> {
        match self {
            Self::Idle { .. } | Self::Burst { .. } | Self::Spread { .. } => None,
            Self::Request { .. } | Self::Beside { bulk: 0 } => {
                Some(Units { rate_scale: 1.0, rate: "req/s", cost_scale: 1e-3, cost: "µs/req" })
            }
            Self::Short { .. } => Some(Units { rate_scale: 1.0, rate: "conn/s", cost_scale: 1e-3, cost: "µs/conn" }),
            Self::Bulk { .. } | Self::Beside { .. } => {
                Some(Units { rate_scale: 8e-9, rate: "Gbit/s", cost_scale: 1024.0, cost: "ns/KiB" })
            }
        }
    }

    /// The unit of its cost, whatever that is.
    pub(crate) fn cost_unit(self) -> &'static str {
        match self {
            Self::Idle { .. } => "KiB",
            Self::Burst { .. } => "x",
            Self::Spread { .. } => "%",
            Self::Request { .. } | Self::Beside { .. } | Self::Short { .. } | Self::Bulk { .. } => {
                self.units().map_or("", |units| units.cost)
            }
        }
    }

    /// Whether it says anything of a peer with so many workers; direct has none.
    pub(crate) fn is_for(self, workers: u32) -> bool {
        match self {
            Self::Idle { .. } | Self::Burst { .. } => workers > 0,
            Self::Spread { .. } => workers > 1,
            Self::Request { .. } | Self::Beside { .. } | Self::Short { .. } | Self::Bulk { .. } => true,
        }
    }

    /// Whether its cost is one that peers are compared by.
    pub(crate) fn is_among_peers(self) -> bool {
        !matches!(self, Self::Burst { .. } | Self::Spread { .. })
    }

    /// Whether its cost is what it is about, so that the chart has it.
    pub(crate) fn is_drawn(self) -> bool {
        !matches!(self, Self::Beside { .. })
    }

    /// Whether it needs a peer that nothing else was asked of before, in a cell of its own.
    pub(crate) fn is_alone(self) -> bool {
        matches!(self, Self::Burst { .. })
    }
}

/// The shapes of a run, in the order in which they run: idle first, while the proxy's heap is still young.
pub(crate) fn chosen(only: &[String], crowds: Crowds) -> Result<Vec<Shape>> {
    let all = [
        Shape::Idle { connections: crowds.idle },
        Shape::Request { size: 128, connections: 1 },
        Shape::Request { size: 128, connections: 64 },
        Shape::Request { size: 16 * 1024, connections: 1 },
        Shape::Request { size: 16 * 1024, connections: 64 },
        Shape::Short { parallel: 16 },
        Shape::Bulk { direction: Direction::Up, connections: 1 },
        Shape::Bulk { direction: Direction::Up, connections: 8 },
        Shape::Bulk { direction: Direction::Down, connections: 1 },
        Shape::Bulk { direction: Direction::Down, connections: 8 },
        Shape::Beside { bulk: 0 },
        Shape::Beside { bulk: 10 },
        Shape::Spread { connections: crowds.burst },
        Shape::Burst { connections: crowds.burst },
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
