//! `docs/limits.md` against the settings' defaults and the constants of the source, both ways: what it says is so, and a constant
//! that it does not have is known to bound nothing.
//!
//! The source is read as text, since most constants are private, and its small expressions are worked out here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use adit::config::Settings;

use crate::blocks::{pages, root};

/// Sizes, times and counts that refuse nobody and cut nothing: formats, factors, rhythms, and what follows from a listed one.
const NO_LIMITS: &[(&str, &[&str])] = &[
    ("admin/body.rs", &["CHUNK"]),
    ("admin/http/connection.rs", &["LOOK_EVERY", "LOOK_FOR_A_REQUEST"]),
    ("app.rs", &["SURFACES"]),
    ("app/demo.rs", &["FORGET_AFTER", "CONNECTIONS", "HEADER_BYTES", "LOOK_AGAIN", "FOLDERS"]),
    ("app/housekeeping.rs", &["SWEEP_METRICS_EVERY"]),
    ("app/preserve.rs", &["PORT", "WHILE_ON", "WHILE_OFF"]),
    ("app/shutdown.rs", &["LOOK", "WINDOW_PART"]),
    ("app/succession.rs", &["LOOK"]),
    ("app/upgrade.rs", &["TELL_EVERY"]),
    ("config/auto.rs", &["RESERVED_FILES", "FILES_PER_CONNECTION", "BYTES_PER_CONNECTION"]),
    ("config/demo.rs", &["ECHO_PORT"]),
    ("config/yaml/cursor.rs", &["LONGEST"]),
    ("config/yaml/node.rs", &["NODE_BYTES", "BUDGET_PER_BYTE"]),
    ("config/yaml/suggest.rs", &["LONGEST"]),
    ("hbone.rs", &["PORT"]),
    ("hbone/client.rs", &["LIMIT_UNKNOWN"]),
    ("hbone/io/handshake.rs", &["READ_BYTES", "LAST_RECORDS"]),
    ("hbone/io/inbound.rs", &["TICKET", "KEY_UPDATE", "CLOSE_NOTIFY", "USER_CANCELED"]),
    ("hbone/io/outbound.rs", &["PIECES", "WARNING", "FATAL"]),
    (
        "hbone/io/records.rs",
        &[
            "MAX_PLAIN",
            "HEADER",
            "MAX_EXPANSION",
            "MAX_RECORD",
            "TYPE",
            "TAG",
            "RECORD_BYTES",
            "MAX_SEALED",
            "PACKET_BYTES",
        ],
    ),
    ("hbone/request.rs", &["LONGEST_FORWARDED"]),
    ("hbone/request/authority.rs", &["LONGEST_AUTHORITY"]),
    ("hbone/request/trace.rs", &["LENGTH"]),
    ("hbone/server.rs", &["PREFACE_AND_SETTINGS"]),
    ("hbone/stream.rs", &["SEND_BUFFER", "WORTH_A_FRAME", "FRAME_HEADER"]),
    ("hbone/stream/outbox.rs", &["COPIED", "FRAME"]),
    ("hbone/window.rs", &["SHARE"]),
    ("identity/authority.rs", &["BACKDATED"]),
    ("identity/rotation.rs", &["TICK"]),
    ("identity/status.rs", &["CENTURY"]),
    ("lifecycle/handover.rs", &["PROTOCOL"]),
    ("lifecycle/phase.rs", &["CHANNEL_CAPACITY"]),
    ("lifecycle/launcher.rs", &["BY_SIGNAL", "LAST_SIGNAL"]),
    ("mesh/builder.rs", &["MERGE_RATIO"]),
    ("mesh/file.rs", &["WHOLE"]),
    ("mesh/file/leaf.rs", &["SCHEMA_VERSION"]),
    ("mesh/live.rs", &["HALF_LIFE_MS", "WEIGHT", "LONGEST_US"]),
    ("mesh/load/parse.rs", &["FILES_PER_THREAD"]),
    ("mesh/plan.rs", &["MOST_TIERS"]),
    ("mesh/policy/index.rs", &["BROAD", "FEW"]),
    (
        "net/bpf/asm.rs",
        &[
            "INSTRUCTION_BYTES",
            "LD_IMM64",
            "LDX",
            "ST",
            "STX",
            "ALU32",
            "ALU64",
            "JMP",
            "JMP32",
            "X",
            "ADD",
            "AND",
            "RSH",
            "MOV",
            "CALL",
            "EXIT",
            "TO_BE",
            "PSEUDO_MAP_FD",
        ],
    ),
    ("net/bpf/map.rs", &["KEY_TYPE", "VALUE_TYPE"]),
    ("net/bpf/program.rs", &["LOG_BYTES", "MAX_MAPS"]),
    ("net/cgroup.rs", &["CGROUP2_MAGIC", "MAX_FOLDERS"]),
    ("net/own_sockets.rs", &["SHARDS"]),
    ("net/redirect/connect.rs", &["BETWEEN", "PAUSE"]),
    ("net/redirect/connect/inbound.rs", &["MAGIC"]),
    ("net/redirect/connect/programs/inbound.rs", &["TRIES"]),
    (
        "net/redirect/connect/programs/layout.rs",
        &[
            "DESTINATION_BYTES",
            "CLIENT_BYTES",
            "CONNECTION_BYTES",
            "AF_INET",
            "AF_INET6",
            "SOCK_STREAM",
            "IPPROTO_TCP",
            "SOL_IP",
            "SOL_IPV6",
            "SOL_SOCKET",
            "SO_BINDTODEVICE",
            "SO_ORIGINAL_DST",
            "BPF_SOCK_OPS_TCP_CONNECT_CB",
            "BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB",
            "BPF_SOCK_OPS_TCP_LISTEN_CB",
            "BPF_SK_STORAGE_GET_F_CREATE",
            "BPF_NOEXIST",
            "LOOPBACK_DEVICE",
            "MAPPED",
        ],
    ),
    ("net/redirect/connect/tables.rs", &["VERSION"]),
    ("net/redirect/readiness.rs", &["PAUSE"]),
    ("net/redirect/ruleset.rs", &["ROUTE_TABLE", "BORROWED_ZONE"]),
    ("net/sockopt.rs", &["TCP_INFO_LEN", "NOTED_DST"]),
    ("proxy/balance/draw.rs", &["DRAWS", "LOOKED_AT", "FLOOR_US"]),
    ("proxy/handshakes.rs", &["LOOK"]),
    ("proxy/handshakes/pace.rs", &["SAVED", "LOOK"]),
    ("proxy/pool.rs", &["SMALLEST_PIPE"]),
    ("proxy/proxy_header/read.rs", &["LONGEST", "LONGEST_ADDRESS", "V2_START", "FIELD_START"]),
    ("proxy/proxy_header/receive.rs", &["PIECE"]),
    ("proxy/proxy_header/write.rs", &["PROXY", "UNSPECIFIED", "TCP_OVER_IPV4", "TCP_OVER_IPV6", "IDENTITY"]),
    ("proxy/rate.rs", &["SHARDS"]),
    ("proxy/relay/finish.rs", &["FIRST_LOOK", "LAST_LOOK"]),
    ("proxy/relay/half.rs", &["LARGE_READ_BYTES", "LARGE_READS", "SMALL_FILL_BYTES", "SMALL_FILLS"]),
    ("proxy/relay/stream/inbox.rs", &["SMALL", "PACK", "PIECES"]),
    ("proxy/socks5/request.rs", &["VERSION", "NO_AUTH", "CONNECT"]),
    ("proxy/sweep.rs", &["IDLE_TICK", "KEEPALIVE_AFTER"]),
    ("proxy/worker/memory.rs", &["BURST", "LEFT", "OVER_AFTER"]),
    ("proxy/worker/run.rs", &["CUT_EVERY", "ROTATE_EVERY"]),
    ("telemetry/limit.rs", &["WINDOW"]),
    ("telemetry/queue.rs", &["GATHER", "BATCH", "KEEP_BYTES", "SUMMARY_EVERY", "RETRY"]),
    ("telemetry/text.rs", &["LAST_SECOND"]),
    ("telemetry/traffic.rs", &["FLAGS"]),
    ("telemetry/traffic/labels.rs", &["FLAGS_INDEX", "FIRST_LOCALITY"]),
    ("telemetry/workers.rs", &["REASONS", "DOORS", "SCOPES"]),
];
/// Numbers of the kernel's own.
const KERNELS: [&str; 2] = ["net/redirect/routing.rs", "net/redirect/options.rs"];
const TYPES: [&str; 11] =
    ["Duration", "usize", "u64", "u32", "u16", "u8", "i64", "i32", "NonZeroU32", "NonZeroUsize", "Bounds"];

/// Nanoseconds, or a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Time(u128),
    Number(u128),
}

/// (file below `src`, name) -> what it is set to.
type Constants = BTreeMap<(String, String), String>;

fn constants() -> Constants {
    let (mut found, mut folders) = (Constants::new(), vec![root().join("src")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("text").to_owned();
            if path.is_dir() && name != "tests" {
                folders.push(path);
            } else if name.ends_with(".rs") && !["tests.rs", "fixture.rs", "testing.rs"].contains(&&*name) {
                let below = path.strip_prefix(root().join("src")).expect("below it").display().to_string();
                read(&below, &fs::read_to_string(&path).expect("a source file"), &mut found);
            }
        }
    }
    found
}

fn read(file: &str, text: &str, found: &mut Constants) {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some((_, rest)) =
            line.split_once("const ").filter(|(before, _)| before.is_empty() || before.starts_with("pub"))
        else {
            continue;
        };
        let Some((name, rest)) = rest.split_once(": ") else { continue };
        let Some((of, first)) = rest.split_once(" =").filter(|(of, _)| TYPES.contains(of)) else { continue };
        let mut value = first.to_owned();
        while !value.trim_end().ends_with(';') {
            value.push_str(lines.next().unwrap_or(";"));
        }
        assert!(!of.is_empty());
        found.insert((file.to_owned(), name.to_owned()), value.trim().trim_end_matches(';').to_owned());
    }
}

/// Works out sums, differences, products and shifts of numbers, durations and other constants.
struct Reckoner<'a> {
    all: &'a Constants,
    file: &'a str,
    rest: &'a str,
}

impl Reckoner<'_> {
    fn of(all: &Constants, file: &str, text: &str) -> Option<Value> {
        let inner = ["NonZeroU32::new(", "NonZeroUsize::new("].iter().find_map(|call| text.split_once(call));
        let text = inner.map_or(text, |(_, rest)| rest.split_once(')').map_or(rest, |(inner, _)| inner));
        let time = [
            ("Duration::from_secs(", 1_000_000_000),
            ("Duration::from_millis(", 1_000_000),
            ("Duration::from_micros(", 1000),
        ];
        if let Some((inner, unit)) = time.iter().find_map(|(call, unit)| Some((text.strip_prefix(call)?, unit))) {
            let number = Reckoner { all, file, rest: inner.trim_end_matches(')') }.whole()?;
            return Some(Value::Time(number * unit));
        }
        Reckoner { all, file, rest: text }.whole().map(Value::Number)
    }

    /// All of it, or nothing: what cannot be read must not be left out.
    fn whole(&mut self) -> Option<u128> {
        let value = self.shift()?;
        self.rest.trim().is_empty().then_some(value)
    }

    fn shift(&mut self) -> Option<u128> {
        let mut left = self.sum()?;
        while self.take("<<") {
            left <<= self.sum()?;
        }
        Some(left)
    }

    fn sum(&mut self) -> Option<u128> {
        let mut left = self.product()?;
        loop {
            if self.take("+") {
                left += self.product()?;
            } else if self.take("-") {
                left = left.checked_sub(self.product()?)?;
            } else {
                return Some(left);
            }
        }
    }

    fn product(&mut self) -> Option<u128> {
        let mut left = self.atom()?;
        while self.take("*") {
            left *= self.atom()?;
        }
        Some(left)
    }

    fn atom(&mut self) -> Option<u128> {
        self.rest = self.rest.trim_start();
        let end =
            self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.replace('_', "").parse().ok();
        }
        let (place, name) = word.rsplit_once("::").unwrap_or(("", word));
        let own = self.all.get_key_value(&(self.file.to_owned(), name.to_owned()));
        let in_place = |(file, known): &(String, String)| {
            known == name && (place.is_empty() || Path::new(file).file_stem().is_some_and(|stem| stem == place))
        };
        let ((file, _), value) = own.or_else(|| self.all.iter().find(|(key, _)| in_place(key)))?;
        match Self::of(self.all, file, value)? {
            Value::Number(number) => Some(number),
            Value::Time(_) => None,
        }
    }

    fn take(&mut self, sign: &str) -> bool {
        let rest = self.rest.trim_start();
        rest.strip_prefix(sign).inspect(|rest| self.rest = rest).is_some()
    }
}

/// What the page says: `5s`, `64KiB`, `1024`.
fn said(text: &str) -> Option<Value> {
    if let Ok(number) = text.parse() {
        return Some(Value::Number(number));
    }
    let sized = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    if let Some((number, bits)) = sized.iter().find_map(|(unit, bits)| Some((text.strip_suffix(unit)?, bits))) {
        return Some(Value::Number(number.parse::<u128>().ok()? << bits));
    }
    humantime::parse_duration(text).ok().map(|time| Value::Time(time.as_nanos()))
}

/// What is in backticks.
fn spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_limit_is_that_of_the_code_and_none_is_missing() {
    let page = pages().into_iter().find(|page| page.name == "docs/limits.md").expect("the page").text;
    let (all, defaults) = (constants(), Settings::default().to_json());
    let mut left: Vec<(String, String)> = all.keys().filter(|(file, _)| !KERNELS.contains(&&**file)).cloned().collect();
    let (mut settings, mut constants) = (0, 0);
    for row in page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| what | ") && !line.starts_with("| --"))
    {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let &[_, limit, set_by, _, _] = &cells[..] else { panic!("five cells: {row}") };
        let limit = limit.starts_with('`').then(|| spans(limit)[0]);
        let names = spans(set_by);
        match names[..] {
            [file, name, ..] if file.ends_with(".rs") => {
                let key = (file.to_owned(), name.to_owned());
                left.retain(|other| *other != key);
                constants += 1;
                let Some(limit) = limit else {
                    let text = fs::read_to_string(root().join("src").join(file))
                        .unwrap_or_else(|error| panic!("{file}: {error}"));
                    assert!(text.contains(name), "{row}: there is no {name} in src/{file}");
                    continue;
                };
                let text = all.get(&key).unwrap_or_else(|| panic!("{row}: there is no {name} in src/{file}"));
                let value =
                    Reckoner::of(&all, file, text).unwrap_or_else(|| panic!("{name} = {text}: cannot be worked out"));
                assert_eq!(said(limit), Some(value), "{row}: src/{file} has {text}");
            }
            [key, ..] if defaults.pointer(&format!("/{}", key.replace('.', "/"))).is_some() => {
                settings += 1;
                let default = &defaults.pointer(&format!("/{}", key.replace('.', "/"))).expect("there it is");
                let default = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
                let limit = limit.unwrap_or_else(|| panic!("{row}: the default is {default}"));
                assert!(
                    limit == default || said(limit).is_some_and(|said_| Some(said_) == said(&default)),
                    "{row}: the default is {default}"
                );
            }
            _ => assert!(
                ["`RLIMIT_NOFILE`", "fixed"].contains(&set_by),
                "{row}: neither a setting nor a constant: {set_by}"
            ),
        }
    }
    for (file, names) in NO_LIMITS {
        for name in *names {
            let key = ((*file).to_owned(), (*name).to_owned());
            assert!(all.contains_key(&key), "src/{file} has no {name} any more: take it from the list");
            assert!(left.contains(&key), "src/{file}: {name} is a limit and none");
            left.retain(|other| *other != key);
        }
    }
    assert!(
        left.is_empty(),
        "docs/limits.md does not have {left:?}; what bounds nothing belongs into NO_LIMITS of this test"
    );
    let missing = ["connect", "relay", "keepalive", "limits", "shutdown", "tunnel", "balance"]
        .into_iter()
        .flat_map(|section| {
            defaults[section].as_object().expect("a section").keys().map(move |key| format!("{section}.{key}"))
        })
        .filter(|key| !["relay.zeroCopy", "connect.backoff"].contains(&&**key) && !page.contains(&format!("`{key}`")));
    assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "settings that docs/limits.md does not have");
    assert!(settings >= 40 && constants > 100, "{settings} and {constants}");
}

#[test]
fn values_are_worked_out_as_the_compiler_does() {
    let mut all = Constants::new();
    read("a/b.rs", "const A: usize = 4 * 1024;\npub const B: u32 = 1 << 20;\nconst C: usize = 2 * A + 3;\n", &mut all);
    read("c.rs", "pub(super) const D: NonZeroU32 = match NonZeroU32::new(5) {\n    Some(x) => x,\n};\n", &mut all);
    read(
        "d.rs",
        "const E: Duration = Duration::from_millis(2 * 60 * 1000);\nconst F: usize = b::C * 2;\n#[cfg(test)]\nmod tests {\nconst G: u8 = 1;\n",
        &mut all,
    );
    let of = |file: &str, name: &str| Reckoner::of(&all, file, &all[&(file.to_owned(), name.to_owned())]);
    assert_eq!(of("a/b.rs", "B"), said("1MiB"));
    assert_eq!(of("a/b.rs", "C"), said("8195"));
    assert_eq!(of("c.rs", "D"), said("5"));
    assert_eq!(of("d.rs", "E"), said("2m"));
    assert_eq!(of("d.rs", "F"), said("16390"));
    assert!(!all.contains_key(&("d.rs".to_owned(), "G".to_owned())));
}
