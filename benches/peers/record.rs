//! Everything that was measured, and its medians; also the JSON file.

use std::fs;

use serde::Serialize;

use super::cores::Cores;
use super::load::Measured;
use super::options::Settled;
use super::shape::{Shape, Units};
use super::stats;

/// The run.
#[derive(Debug, Serialize)]
pub(crate) struct Record {
    /// Grows when a field changes its meaning.
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
    #[serde(skip)]
    pub(crate) shapes: Vec<Shape>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    pub(crate) cores: Cores,
}

#[derive(Debug, Serialize)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// One shape in one cell.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) peer: String,
    pub(crate) shape: String,
    #[serde(flatten)]
    pub(crate) measured: Measured,
}

/// One shape of one peer over all rounds. Rate and cost are in the shape's units.
#[derive(Debug, Serialize)]
pub(crate) struct Median {
    pub(crate) peer: String,
    pub(crate) shape: String,
    pub(crate) rate: Option<f64>,
    pub(crate) rate_unit: &'static str,
    pub(crate) cost: Option<f64>,
    pub(crate) cost_unit: &'static str,
    /// How far the rounds' costs lie apart: (highest - lowest) / median.
    pub(crate) cost_spread: f64,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    pub(crate) idle_kib: Option<f64>,
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
            schema: 1,
            machine: Machine { cpu: cpu(), kernel: kernel(), cores },
            rounds: settled.rounds,
            seconds: settled.length.as_secs_f64(),
            peers: Vec::new(),
            missing: Vec::new(),
            failures: Vec::new(),
            medians: Vec::new(),
            samples: Vec::new(),
            shapes: settled.shapes.clone(),
        }
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
    fn of(peer: &str, shape: Shape, samples: &[&Measured]) -> Self {
        let over = |figure: &dyn Fn(&Measured) -> Option<f64>| {
            stats::median(samples.iter().filter_map(|sample| figure(sample)).collect())
        };
        let latency = |index: usize| {
            over(&|sample| sample.latency_ns.map(|latency| f64::from(latency[index]) / 1e3)).map(|(median, _)| median)
        };
        let units = shape.units();
        let per_proxy = (peer != "direct").then_some(());
        let rate = over(&|sample| units.as_ref().map(|units| rate(sample, units)));
        let cost = over(&|sample| per_proxy.and(units.as_ref()).map(|units| cost(sample, units)));
        let idle = over(&|sample| per_proxy.and(sample.resident_each).map(|bytes| bytes / 1024.0));
        let part = |time: fn(&Measured) -> u64| {
            over(&|sample| Some(time(sample) as f64 / sample.wall_ns.max(1) as f64)).map_or(0.0, |(median, _)| median)
        };
        let timed = units.is_some();
        Self {
            peer: peer.to_owned(),
            shape: shape.name(),
            rate: rate.map(|(median, _)| median),
            rate_unit: units.as_ref().map_or("", |units| units.rate),
            cost: cost.map(|(median, _)| median),
            cost_unit: units.as_ref().map_or("", |units| units.cost),
            cost_spread: cost.or(idle).map_or(0.0, |(_, spread)| spread),
            p50_us: latency(0),
            p99_us: latency(1),
            p999_us: latency(2),
            idle_kib: idle.map(|(median, _)| median),
            proxy_busy: (timed && per_proxy.is_some()).then(|| part(|sample| sample.spent.proxy_cpu_ns)),
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

/// The proxy's CPU time per unit, in the shape's unit.
pub(crate) fn cost(sample: &Measured, units: &Units) -> f64 {
    sample.spent.proxy_cpu_ns as f64 / sample.units.max(1) as f64 * units.cost_scale
}

fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or("unknown CPU", |(_, model)| model.trim()).to_owned()
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
