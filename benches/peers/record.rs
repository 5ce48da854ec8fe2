//! Everything that was measured, and its medians; also the JSON file, written and read again.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::cores::Cores;
use super::load::{Measured, Memory};
use super::options::Settled;
use super::recipe::{self, tunnel};
use super::shape::{Shape, Units};
use super::stats;

/// Who waited for the core for more than this part of the time was not alone on the machine.
pub(crate) const NOISE: f64 = 0.05;

/// Grows when a field changes its meaning.
const SCHEMA: u32 = 2;

/// The run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    schema: u32,
    pub(crate) machine: Machine,
    pub(crate) rounds: u32,
    pub(crate) seconds: f64,
    pub(crate) peers: Vec<Peer>,
    /// (peer, what to do about it)
    pub(crate) missing: Vec<(String, String)>,
    /// (peer, what happened)
    pub(crate) failures: Vec<(String, String)>,
    pub(crate) medians: Vec<Median>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) shapes: Vec<Shape>,
    /// The load, and adit unless another was named, were built without optimization.
    pub(crate) debug: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    pub(crate) cores: Cores,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// One shape in one cell.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) peer: String,
    pub(crate) shape: String,
    #[serde(flatten)]
    pub(crate) measured: Measured,
}

/// One shape of one peer over all rounds. Rate and cost are in the shape's units.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Median {
    pub(crate) peer: String,
    pub(crate) shape: String,
    pub(crate) rate: Option<f64>,
    pub(crate) rate_unit: String,
    /// CPU time per unit; of `idle` KiB each, of `burst` memory after over before, of `spread` the percentage of the worker that has most.
    pub(crate) cost: Option<f64>,
    pub(crate) cost_unit: String,
    /// How far the rounds' costs lie apart: (highest - lowest) / median.
    pub(crate) cost_spread: f64,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    /// Resident memory without connections, and with idle ones or after a burst.
    pub(crate) before_kib: Option<f64>,
    pub(crate) after_kib: Option<f64>,
    /// Part of the time in which the proxy, and the load, were at work.
    pub(crate) proxy_busy: Option<f64>,
    pub(crate) load_busy: Option<f64>,
    /// Part of the time in which the proxy, and the load, were ready to run but did not have their core.
    pub(crate) proxy_waited: f64,
    pub(crate) load_waited: f64,
}

impl Record {
    pub(crate) fn new(cores: Cores, settled: &Settled) -> Self {
        Self {
            schema: SCHEMA,
            machine: Machine { cpu: cpu(), kernel: kernel(), cores },
            rounds: settled.rounds,
            seconds: settled.timing.length.as_secs_f64(),
            peers: Vec::new(),
            missing: Vec::new(),
            failures: Vec::new(),
            medians: Vec::new(),
            samples: Vec::new(),
            shapes: settled.shapes.clone(),
            debug: cfg!(debug_assertions),
        }
    }

    /// What an earlier run wrote.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Stamp {
            schema: u32,
        }
        let stamp: Stamp = serde_json::from_str(text).context("expected what --json writes")?;
        if stamp.schema != SCHEMA {
            bail!("schema is {}, expected {SCHEMA}: another version of this bench wrote it", stamp.schema);
        }
        serde_json::from_str(text).context("expected what --json writes")
    }

    /// Writes every sample and the medians.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context("cannot write JSON")?;
        fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    /// Computes the medians of the samples.
    pub(crate) fn settle(&mut self) {
        for shape in &self.shapes {
            for peer in &self.peers {
                let name = shape.name();
                let samples: Vec<&Measured> = self
                    .samples
                    .iter()
                    .filter(|sample| sample.peer == peer.name && sample.shape == name)
                    .map(|sample| &sample.measured)
                    .collect();
                if !samples.is_empty() {
                    self.medians.push(Median::of(&peer.name, *shape, &samples));
                }
            }
        }
    }

    /// The medians of one shape of one peer, if it was measured.
    pub(crate) fn median(&self, peer: &str, shape: Shape) -> Option<&Median> {
        let name = shape.name();
        self.medians.iter().find(|median| median.peer == peer && median.shape == name)
    }
}

impl Median {
    /// Whether something else had the cores. Threads that share one wait for each other, and that is not noise.
    pub(crate) fn is_noisy(&self) -> bool {
        let single = recipe::workers(&self.peer) == 1 && !tunnel::is_one(&self.peer);
        single && self.proxy_waited > NOISE || self.load_waited > NOISE
    }

    fn of(peer: &str, shape: Shape, samples: &[&Measured]) -> Self {
        let over = |figure: &dyn Fn(&Measured) -> Option<f64>| {
            stats::median(samples.iter().filter_map(|sample| figure(sample)).collect())
        };
        let alone = |figure: &dyn Fn(&Measured) -> Option<f64>| over(figure).map(|(median, _)| median);
        let latency = |index: usize| alone(&|sample| Some(f64::from(sample.latency_ns?[index]) / 1e3));
        let kib = |bytes: fn(&Memory) -> u64| alone(&|sample| Some(bytes(sample.memory.as_ref()?) as f64 / 1024.0));
        let part = |time: fn(&Measured) -> u64| {
            alone(&|sample| Some(time(sample) as f64 / sample.wall_ns.max(1) as f64)).unwrap_or(0.0)
        };
        let units = shape.units();
        let (timed, proxy) = (units.is_some(), peer != "direct");
        let cost = over(&|sample| cost(sample, shape).filter(|_| proxy));
        Self {
            peer: peer.to_owned(),
            shape: shape.name(),
            rate: units.as_ref().and_then(|units| alone(&|sample| Some(rate(sample, units)))),
            rate_unit: units.as_ref().map_or("", |units| units.rate).to_owned(),
            cost: cost.map(|(median, _)| median),
            cost_unit: shape.cost_unit().to_owned(),
            cost_spread: cost.map_or(0.0, |(_, spread)| spread),
            p50_us: latency(0),
            p99_us: latency(1),
            p999_us: latency(2),
            before_kib: kib(|memory| memory.before),
            after_kib: kib(|memory| memory.after),
            proxy_busy: (timed && proxy).then(|| part(|sample| sample.spent.proxy_cpu_ns)),
            load_busy: timed.then(|| 1.0 - part(|sample| sample.load_idle_ns)),
            proxy_waited: part(|sample| sample.spent.proxy_wait_ns),
            load_waited: part(|sample| sample.spent.load_wait_ns),
        }
    }
}

/// Units per second, in the shape's unit.
pub(crate) fn rate(sample: &Measured, units: &Units) -> f64 {
    sample.units as f64 / (sample.wall_ns.max(1) as f64 / 1e9) * units.rate_scale
}

/// What the shape cost, in its unit: mostly the proxy's CPU time.
pub(crate) fn cost(sample: &Measured, shape: Shape) -> Option<f64> {
    let memory = sample.memory.map(|memory| (memory.before as f64, memory.after as f64));
    match shape {
        Shape::Idle { .. } => memory.map(|(before, after)| (after - before) / 1024.0 / sample.units.max(1) as f64),
        Shape::Burst { .. } => memory.map(|(before, after)| after / before.max(1.0)),
        Shape::Spread { .. } => stats::largest_share(&sample.sockets).map(|share| share * 100.0),
        Shape::Request { .. } | Shape::Beside { .. } | Shape::Short { .. } | Shape::Bulk { .. } => {
            shape.units().map(|units| sample.spent.proxy_cpu_ns as f64 / sample.units.max(1) as f64 * units.cost_scale)
        }
    }
}

fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or("unknown CPU", |(_, model)| model.trim()).to_owned()
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
