//! The tables that compare a peer with itself.

use super::super::recipe::workers;
use super::super::record::{Median, Record};
use super::super::shape::Shape;
use super::{absent, figure, ratio};

/// How long small messages take beside bulk, and against what they take alone.
pub(super) fn beside_bulk(record: &Record) -> Vec<Vec<String>> {
    let mut rows = vec![heading(["shape", "peer", "p50 µs", "p99 µs", "p50/alone", "p99/alone"])];
    let beside = |shape: &&Shape| matches!(shape, Shape::Beside { bulk: 1.. });
    for shape in record.shapes.iter().filter(beside) {
        for peer in &record.peers {
            let alone = record.median(&peer.name, Shape::Beside { bulk: 0 });
            let row = |median: &Median| {
                let against = |figure: fn(&Median) -> Option<f64>| ratio(figure(median), alone.and_then(figure));
                vec![
                    median.shape.clone(),
                    median.peer.clone(),
                    figure(median.p50_us, ""),
                    figure(median.p99_us, ""),
                    against(|median| median.p50_us),
                    against(|median| median.p99_us),
                ]
            };
            rows.push(record.median(&peer.name, *shape).map_or_else(|| absent(*shape, &peer.name), row));
        }
    }
    rows
}

/// Each peer's memory before and after the burst.
pub(super) fn after_a_burst(record: &Record) -> Vec<Vec<String>> {
    let mut rows = vec![heading(["shape", "peer", "before KiB", "after KiB", "after/before", "spread"])];
    for shape in record.shapes.iter().filter(|shape| matches!(shape, Shape::Burst { .. })) {
        for peer in record.peers.iter().filter(|peer| shape.is_for(workers(&peer.name))) {
            let row = |median: &Median| {
                vec![
                    median.shape.clone(),
                    median.peer.clone(),
                    whole(median.before_kib),
                    whole(median.after_kib),
                    figure(median.cost, ""),
                    format!("{:.0} %", median.cost_spread * 100.0),
                ]
            };
            rows.push(record.median(&peer.name, *shape).map_or_else(|| absent(*shape, &peer.name), row));
        }
    }
    rows
}

/// What several workers need against the one of the same peer, shape by shape.
pub(super) fn more_workers(record: &Record) -> Vec<Vec<String>> {
    let mut rows = vec![heading(["shape", "peer", "rate/one", "p99/one", "cost/one", "busiest worker"])];
    for shape in record.shapes.iter().filter(|shape| !matches!(shape, Shape::Burst { .. })) {
        for peer in record.peers.iter().filter(|peer| workers(&peer.name) > 1) {
            let name = peer.name.as_str();
            let Some(median) = record.median(name, *shape) else {
                rows.push(absent(*shape, name));
                continue;
            };
            let one = record.median(&alone(name), *shape);
            let against = |figure: fn(&Median) -> Option<f64>| ratio(figure(median), one.and_then(figure));
            let share = median.cost.filter(|_| matches!(shape, Shape::Spread { .. }));
            rows.push(vec![
                median.shape.clone(),
                median.peer.clone(),
                against(|median| median.rate),
                against(|median| median.p99_us),
                against(|median| median.cost),
                figure(share, "%"),
            ]);
        }
    }
    rows
}

/// The same peer with one worker: its name without the number.
fn alone(peer: &str) -> String {
    peer.split('-').filter(|part| part.parse::<u32>().is_err()).collect::<Vec<_>>().join("-")
}

fn heading<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

fn whole(kib: Option<f64>) -> String {
    kib.map_or_else(String::new, |kib| format!("{kib:.0}"))
}
