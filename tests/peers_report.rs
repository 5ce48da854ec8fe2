//! What the bench makes of its samples: the options, the medians, the tables, the chart. Pure parts, fed with a record as `--json` writes it.

#![expect(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "../benches/peers"]
#[expect(dead_code, reason = "the bench uses the rest")]
mod peers {
    pub(super) mod account;
    pub(super) mod chart;
    pub(super) mod cores;
    pub(super) mod load;
    pub(super) mod namespace;
    pub(super) mod options;
    pub(super) mod recipe;
    pub(super) mod record;
    pub(super) mod shape;
    pub(super) mod stats;
    pub(super) mod table;
}

use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};

use peers::options::Options;
use peers::record::Record;
use peers::shape::Shape;
use peers::{chart, table};

/// A sample of a second: so many units, and nanoseconds of CPU time for all of them.
fn timed(peer: &str, shape: &str, units: u64, cpu_ns: u64) -> Value {
    json!({
        "round": 0, "peer": peer, "shape": shape, "wall_ns": 1_000_000_000, "units": units,
        "spent": { "proxy_cpu_ns": cpu_ns, "proxy_wait_ns": 200_000_000, "load_wait_ns": 0 },
        "load_idle_ns": 500_000_000, "latency_ns": [10_000, 20_000, 30_000], "sent": 1, "received": 1,
    })
}

/// A sample of memory in KiB.
fn held(peer: &str, shape: &str, connections: u64, before: u64, after: u64) -> Value {
    let mut sample = timed(peer, shape, connections, 0);
    sample["memory"] = json!({ "before": before * 1024, "after": after * 1024 });
    sample["latency_ns"] = Value::Null;
    sample
}

fn document(peers: &[&str], shapes: &Value, samples: Vec<Value>) -> Value {
    let peers: Vec<Value> = peers.iter().map(|name| json!({ "name": name, "version": "1 < 2" })).collect();
    json!({
        "schema": 2, "machine": { "cpu": "A & B", "kernel": "6.1", "cores": { "proxy": 1, "load": 0 } },
        "rounds": 1, "seconds": 1.0, "peers": peers, "missing": [], "failures": [], "medians": [],
        "samples": samples, "shapes": shapes, "debug": false,
    })
}

fn record(document: &Value) -> Record {
    let mut record = Record::parse(&document.to_string()).unwrap_or_else(|error| panic!("{error:#}"));
    record.settle();
    record
}

/// Two plain peers, adit with two workers, and a pair.
fn run() -> Record {
    let mut spread = timed("adit-2", "spread", 1000, 0);
    spread["sockets"] = json!([[1100, 900]]);
    let mut beside = timed("adit", "beside-10", 1 << 30, 1_000_000);
    beside["latency_ns"] = json!([50_000, 60_000, 70_000]);
    let samples = vec![
        timed("adit", "beside-0", 5000, 1_000_000),
        timed("nginx", "beside-0", 5000, 1_000_000),
        beside,
        timed("direct", "short", 900, 0),
        timed("nginx", "short", 500, 1_000_000),
        timed("adit", "short", 400, 1_000_000),
        timed("adit-2", "short", 440, 1_210_000),
        timed("adit-tunnel", "short", 100, 1_000_000),
        held("nginx", "idle", 100, 1000, 2000),
        held("adit", "idle", 100, 1000, 1500),
        held("adit-2", "idle", 100, 1000, 1500),
        held("nginx", "burst", 100, 1000, 2500),
        held("adit", "burst", 100, 1000, 1100),
        held("adit-tunnel", "burst", 100, 1000, 1190),
        spread,
    ];
    let shapes = json!([
        { "idle": { "connections": 100 } }, { "short": { "parallel": 16 } }, { "spread": { "connections": 1000 } },
        { "burst": { "connections": 100 } }, { "beside": { "bulk": 0 } }, { "beside": { "bulk": 10 } },
    ]);
    record(&document(&["direct", "nginx", "adit", "adit-2", "adit-tunnel"], &shapes, samples))
}

/// The cells of the one row that begins so.
fn row<'a>(text: &'a str, shape: &str, peer: &str, after: &str) -> Vec<&'a str> {
    let part = text.split_once(after).unwrap_or_else(|| panic!("no {after:?} in\n{text}")).1;
    let cells = |line: &'a str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let found =
        part.lines().map(cells).find(|cells| cells.len() > 1 && cells[0] == shape && cells[1].starts_with(peer));
    found.unwrap_or_else(|| panic!("no row {shape} {peer} in\n{part}"))
}

#[test]
fn ratios_are_against_rivals_only() {
    let text = table::draw(&run());
    let adit = row(&text, "short", "adit ", "cost/nginx");
    // rate, cost, rate/best, cost/best, cost/nginx: its own second worker is no rival.
    assert_eq!((adit[2], adit[6], adit[9], adit[11], adit[12]), ("400 conn/s", "2.50 µs/conn", "0.80", "1.25", "1.25"));
    let nginx = row(&text, "short", "nginx", "cost/nginx");
    assert_eq!((nginx[9], nginx[11], nginx[13]), ("1.14", "0.80", "0.80"));
    let idle = row(&text, "idle", "adit ", "cost/nginx");
    assert_eq!((idle[2], idle[6], idle[11]), ("", "5.00 KiB", "0.50"));
    assert!(!text.contains("cost/adit-2"), "{text}");
    assert_eq!(row(&text, "short", "adit-tunnel", "cost/adit-tunnel")[12], "");
}

#[test]
fn what_compares_a_peer_with_itself_has_its_own_tables() {
    let text = table::draw(&run());
    assert_eq!(
        row(&text, "beside-0", "adit ", "cost/nginx")[2..7],
        ["5000 req/s", "10.0", "20.0", "30.0", "0.20 µs/req"]
    );
    assert_eq!(row(&text, "beside-10", "adit ", "cost/nginx")[2], "8.59 Gbit/s");
    let header = "p99/alone";
    assert_eq!(row(&text, "beside-10", "adit", header)[2..6], ["50.0", "60.0", "5.00", "3.00"]);
    assert_eq!(row(&text, "beside-10", "nginx", header)[2], "FAILED");
    let header = "after/before";
    assert_eq!(row(&text, "burst", "nginx", header)[2..5], ["1000", "2500", "2.50"]);
    assert_eq!(row(&text, "burst", "adit-tunnel", header)[2..5], ["1000", "1190", "1.19"]);
    assert_eq!(row(&text, "burst", "adit-2", header)[2], "FAILED");
    let header = "busiest worker";
    assert_eq!(row(&text, "short", "adit-2", header)[2..6], ["1.10", "1.00", "1.10", ""]);
    assert_eq!(row(&text, "spread", "adit-2", header)[5], "55.0 %");
    let (peers, _) = text.split_once("after/before").unwrap();
    let has = |shape: &str| peers.lines().any(|line| line.starts_with(&format!("| {shape} ")));
    assert!(has("short") && !has("burst") && !has("spread"), "{text}");
}

/// Threads that share the core wait for each other, in any silence.
#[test]
fn waiting_marks_a_row_only_where_it_is_noise() {
    let text = table::draw(&run());
    assert_eq!(row(&text, "short", "adit ~", "cost/nginx")[1], "adit ~");
    for peer in ["adit-2", "adit-tunnel"] {
        let marked = text.lines().any(|line| line.contains(&format!("{peer} ~")));
        assert!(!marked, "{peer}\n{text}");
    }
}

#[test]
fn a_written_run_draws_the_same_again() {
    let run = run();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    run.write(&path).unwrap();
    let again = Record::read(&path).unwrap();
    assert_eq!(table::draw(&again), table::draw(&run));
    assert_eq!(chart::draw(&again), chart::draw(&run));
}

#[test]
fn a_file_that_is_no_run_is_refused() {
    let mut old = document(&[], &json!([]), Vec::new());
    old["schema"] = 1.into();
    for (text, expected) in [(old.to_string(), "expected 2"), ("{}".to_owned(), "--json"), (String::new(), "--json")] {
        let error = format!("{:#}", Record::parse(&text).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_chart_has_a_bar_for_each_peer_and_nothing_from_elsewhere() {
    let svg = chart::draw(&run());
    assert!(svg.contains("Something else ran"), "{svg}");
    // idle: 2 peers; short: 2 peers and the pair; a square in the legend for each peer; the background.
    assert_eq!(svg.matches("<rect").count(), 2 + 2 + 1 + 3 + 1, "{svg}");
    // nginx against adit: 10 of 5 KiB, 2.0 of 2.5 µs.
    assert!(svg.contains(">2.00</text>") && svg.contains(">0.80</text>"), "{svg}");
    assert!(svg.contains("1 = 5.00 KiB") && svg.contains("1 = 2.50 µs/conn"), "{svg}");
    assert!(
        !svg.contains("adit-2") && !svg.contains("burst") && !svg.contains("beside") && !svg.contains("direct"),
        "{svg}"
    );
    assert!(svg.contains("A &amp; B") && svg.contains("prefers-color-scheme:dark"), "{svg}");
    for foreign in ["<script", "href", "url(", "@import", "NaN", "inf"] {
        assert!(!svg.contains(foreign), "{foreign}");
    }
    assert!(svg.len() < 8 * 1024, "{}", svg.len());
}

#[test]
fn the_chart_cuts_what_is_far_off_and_says_what_failed() {
    let samples = vec![timed("adit", "short", 100, 1_000_000), timed("nginx", "short", 10, 1_000_000)];
    let shapes = json!([{ "short": { "parallel": 16 } }]);
    let svg = chart::draw(&record(&document(&["nginx", "adit", "haproxy"], &shapes, samples)));
    assert!(svg.contains(">10.00 (cut)</text>") && svg.contains(">failed</text>"), "{svg}");
    assert!(svg.contains(", adit = 1;"), "{svg}");
}

/// Without adit the cheapest is the measure; without anything to compare there is no panel.
#[test]
fn the_chart_does_without_adit() {
    let samples = vec![timed("haproxy", "short", 100, 1_000_000), timed("nginx", "short", 200, 1_000_000)];
    let shapes = json!([{ "short": { "parallel": 16 } }]);
    let svg = chart::draw(&record(&document(&["haproxy", "nginx"], &shapes, samples)));
    assert!(svg.contains(">2.00</text>") && svg.contains(">1.00</text>") && svg.contains("the best = 1"), "{svg}");
    let svg = chart::draw(&record(&document(&["direct"], &shapes, Vec::new())));
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && !svg.contains("Plain TCP"), "{svg}");
}

#[test]
fn options_have_defaults_and_quick_ones() {
    let settled = |arguments: &[&str]| {
        let options = Options::try_parse_from([&["peers"], arguments].concat()).unwrap();
        options.settled().unwrap()
    };
    let (whole, quick) = (settled(&[]), settled(&["--quick", "--burst", "50"]));
    assert_eq!((whole.rounds, whole.timing.length), (3, Duration::from_millis(1500)));
    assert_eq!((quick.rounds, quick.timing.length), (1, Duration::from_millis(300)));
    assert_eq!((whole.timing.settle, quick.timing.settle), (Duration::from_secs(60), Duration::from_secs(6)));
    assert!(whole.shapes.contains(&Shape::Burst { connections: 1000 }), "{whole:?}");
    assert!(whole.shapes.contains(&Shape::Request { size: 16 * 1024, connections: 64 }), "{whole:?}");
    assert!(quick.shapes.contains(&Shape::Spread { connections: 50 }), "{quick:?}");
    assert!(settled(&["--only", "burst"]).shapes == [Shape::Burst { connections: 1000 }]);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    for arguments in [["--from", "a", "--quick", ""], ["--from", "a", "--json", "b"], ["--burst", "9", "", ""]] {
        let arguments = arguments.into_iter().filter(|argument| !argument.is_empty());
        assert!(Options::try_parse_from(std::iter::once("peers").chain(arguments)).is_err());
    }
    let options = Options::try_parse_from(["peers", "--from", "run.json", "--svg", "chart.svg"]).unwrap();
    assert!(options.from.is_some() && options.svg.is_some() && options.programs().adit.is_absolute());
}

#[test]
fn shapes_are_for_those_of_whom_they_say_something() {
    let burst = Shape::Burst { connections: 1 };
    let spread = Shape::Spread { connections: 1 };
    let short = Shape::Short { parallel: 1 };
    let of = |shape: Shape| [0, 1, 2].map(|workers| shape.is_for(workers));
    assert_eq!((of(burst), of(spread), of(short)), ([false, true, true], [false, false, true], [true; 3]));
    assert!(burst.is_alone() && !spread.is_alone());
}
