//! The table, in Markdown that also reads well on a terminal, and the line of progress per sample.
//!
//! What compares a peer with itself, beside bulk, after a burst or with more workers, is in tables of its own (`own`).
//!
//! "Best" is always the best of the *other* proxies (not the row itself, not the same program with other settings, not direct), so a ratio of adit's row is what its targets are written in. Pairs with a
//! tunnel between them have a table of their own: they are compared with each other only.

mod own;

use std::fmt::Write;

use super::load::Measured;
use super::recipe::{family, tunnel, workers};
use super::record::{Median, NOISE, Record, cost, rate};
use super::shape::Shape;

/// One sample in a few words.
pub(crate) fn brief(shape: Shape, sample: &Measured) -> String {
    let mut text = shape.name();
    if let Some(units) = shape.units() {
        text = format!("{text} {:.1} {}", rate(sample, &units), units.rate);
    }
    let free = shape.units().is_some() && sample.spent.proxy_cpu_ns == 0;
    if let Some(cost) = cost(sample, shape).filter(|_| !free) {
        text = format!("{text}, {cost:.2} {}", shape.cost_unit());
    }
    if let Some([p50, p99, p999]) = sample.latency_ns.map(|latency| latency.map(|ns| f64::from(ns) / 1e3)) {
        text = format!("{text}, p50 {p50:.0} p99 {p99:.0} p99.9 {p999:.0} µs");
    }
    if let Some(memory) = sample.memory {
        text = format!("{text} ({} KiB before, {} after)", memory.before / 1024, memory.after / 1024);
    }
    text
}

/// The whole of it, with what must be known to read it.
pub(crate) fn draw(record: &Record) -> String {
    let mut text = String::new();
    for tunnels in [false, true] {
        let names = record.peers.iter().map(|peer| peer.name.as_str());
        let proxies: Vec<&str> = names.filter(|name| *name != "direct" && tunnel::is_one(name) == tunnels).collect();
        // Direct alone is a table too.
        let wanted = !proxies.is_empty() || record.peers.iter().all(|peer| peer.name == "direct" && !tunnels);
        let rows = if wanted { rows(record, &proxies) } else { Vec::new() };
        if rows.len() > 1 {
            text.push_str(if text.is_empty() { "" } else { "\n" });
            text.push_str(&lay_out(&rows));
        }
    }
    let tables = [own::beside_bulk(record), own::after_a_burst(record), own::more_workers(record)];
    for table in tables.into_iter().filter(|table| table.len() > 1) {
        text.push_str(if text.is_empty() { "" } else { "\n" });
        text.push_str(&lay_out(&table));
    }
    text + &legend(record)
}

/// Direct and these proxies, shape by shape.
fn rows(record: &Record, proxies: &[&str]) -> Vec<Vec<String>> {
    let mut rows = vec![heading(proxies)];
    let is_in = |name: &str| name == "direct" || proxies.contains(&name);
    for shape in record.shapes.iter().filter(|shape| shape.is_among_peers()) {
        let peers = record.peers.iter().filter(|peer| is_in(&peer.name));
        for peer in peers.filter(|peer| shape.is_for(workers(&peer.name))) {
            let median = record.median(&peer.name, *shape);
            rows.push(median.map_or_else(|| absent(*shape, &peer.name), |median| row(record, *shape, median, proxies)));
        }
    }
    rows
}

/// What must be known to read the table.
fn legend(record: &Record) -> String {
    let mut text = String::new();
    let machine = &record.machine;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "\nMedians of {} rounds of {} s. {}, Linux {}; proxy on core {}, load and server on core {}.",
        record.rounds, record.seconds, machine.cpu, machine.kernel, machine.cores.proxy, machine.cores.load
    );
    text.push_str("Ratios: rate over the best other proxy's (more is better); p99 and cost over the best other's, and cost over each peer's (less is better); after/before: resident memory; /one: against the same peer with one worker.\n");
    text.push_str("Cost is the proxy's CPU time per unit; for idle connections its resident memory each. Spread is (highest - lowest) / median of the cost.\n");
    let _ = writeln!(
        text,
        "~ marks rows whose proxy or load waited for its core more than {:.0} % of the time: not alone on the machine. (The load only, for pairs and several workers.)",
        NOISE * 100.0
    );
    if record.debug {
        text.push_str(
            "DEBUG BUILD of the load, and of adit unless --adit named another: these figures are no one's.\n",
        );
    }
    for peer in record.peers.iter().filter(|peer| peer.name != "direct") {
        let _ = writeln!(text, "{}: {}", peer.name, peer.version);
    }
    for (peer, reason) in &record.missing {
        let _ = writeln!(text, "MISSING {peer}: {reason}");
    }
    for (peer, error) in &record.failures {
        let _ = writeln!(text, "FAILED {peer}, {error}");
    }
    text
}

fn heading(proxies: &[&str]) -> Vec<String> {
    let fixed = [
        "shape",
        "peer",
        "rate",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "cost",
        "spread",
        "busy %",
        "rate/best",
        "p99/best",
        "cost/best",
    ];
    let ratios = proxies.iter().filter(|name| workers(name) == 1).map(|name| format!("cost/{name}"));
    fixed.iter().map(|name| (*name).to_owned()).chain(ratios).collect()
}

/// The row of a peer that was to be measured and was not.
fn absent(shape: Shape, peer: &str) -> Vec<String> {
    vec![shape.name(), peer.to_owned(), "FAILED".to_owned()]
}

fn row(record: &Record, shape: Shape, median: &Median, proxies: &[&str]) -> Vec<String> {
    let others = proxies.iter().filter(|name| family(name) != family(&median.peer));
    let others: Vec<&Median> = others.filter_map(|name| record.median(name, shape)).collect();
    let proxy = median.peer != "direct";
    let best = |figure: fn(&Median) -> Option<f64>, better: fn(f64, f64) -> f64| {
        let best = others.iter().filter_map(|other| figure(other)).reduce(better);
        ratio(figure(median).filter(|_| proxy), best)
    };
    let mut cells = vec![
        median.shape.clone(),
        format!("{}{}", median.peer, if median.is_noisy() { " ~" } else { "" }),
        figure(median.rate, &median.rate_unit),
        figure(median.p50_us, ""),
        figure(median.p99_us, ""),
        figure(median.p999_us, ""),
        figure(median.cost, &median.cost_unit),
        if proxy { format!("{:.0} %", median.cost_spread * 100.0) } else { String::new() },
        busy(median),
        best(|median| median.rate, f64::max),
        best(|median| median.p99_us, f64::min),
        best(|median| median.cost, f64::min),
    ];
    for name in proxies.iter().filter(|name| workers(name) == 1) {
        let other = record.median(name, shape).filter(|other| other.peer != median.peer);
        cells.push(ratio(median.cost, other.and_then(|other| other.cost)));
    }
    cells
}

/// How busy proxy and load were, in percent.
fn busy(median: &Median) -> String {
    let percent = |part: Option<f64>| part.map_or_else(|| "-".to_owned(), |part| format!("{:.0}", part * 100.0));
    if median.load_busy.is_none() {
        String::new()
    } else {
        format!("{}/{}", percent(median.proxy_busy), percent(median.load_busy))
    }
}

fn ratio(own: Option<f64>, other: Option<f64>) -> String {
    match (own, other) {
        (Some(own), Some(other)) if other > 0.0 => format!("{:.2}", own / other),
        _ => String::new(),
    }
}

/// Three significant digits or so, with the unit.
fn figure(value: Option<f64>, unit: &str) -> String {
    let Some(value) = value else { return String::new() };
    let digits = if value.abs() < 10.0 {
        2
    } else if value.abs() < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

/// Pads the cells so that the columns line up; text to the left, figures to the right.
fn lay_out(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
    let width = |column: usize| rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, width) in widths.iter().enumerate() {
            let cell = cell(row, column);
            // Writing to a String cannot fail.
            let _ = if column < 2 { write!(text, "| {cell:<width$} ") } else { write!(text, "| {cell:>width$} ") };
        }
        text.push_str("|\n");
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(*width);
                text.push_str(&if column < 2 {
                    format!("| {dashes} ")
                } else {
                    format!("| {}: ", dashes.get(1..).unwrap_or_default())
                });
            }
            text.push_str("|\n");
        }
    }
    text
}
