//! The record of instruction counts: what is within it, and that it is read as it is written.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "../benches/stages/limits.rs"]
mod limits;

use std::collections::BTreeMap;
use std::fs;

use limits::{Limits, Standing};

fn read(text: &str) -> anyhow::Result<Limits> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("it.limits");
    fs::write(&file, text).unwrap();
    Limits::read(&file)
}

#[test]
fn a_tenth_more_is_within_and_a_fifth_less_is_said() {
    let limits = read("# of two\nparse/mesh 1000\nauthorize/none 50\nnothing 0\n").unwrap();
    let rows = [
        ("parse/mesh", 1000, Standing::Within),
        ("parse/mesh", 1100, Standing::Within),
        ("parse/mesh", 1101, Standing::Above { most: 1100 }),
        ("parse/mesh", 2000, Standing::Above { most: 1100 }),
        ("parse/mesh", 800, Standing::Within),
        ("parse/mesh", 799, Standing::FarBelow),
        ("authorize/none", 70, Standing::Within),
        ("authorize/none", 71, Standing::Above { most: 70 }),
        ("authorize/none", 39, Standing::FarBelow),
        ("nothing", 20, Standing::Within),
        ("nothing", 21, Standing::Above { most: 20 }),
        ("resolve/service", 1, Standing::NotRecorded),
    ];
    for (name, count, want) in rows {
        assert_eq!(limits.standing(name, count), want, "{name} {count}");
    }
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("it.limits");
    let mut limits = Limits::read(&file).unwrap();
    assert_eq!(limits.names().count(), 0, "a record that is not there");
    limits.replace(&BTreeMap::from([("gone", 1), ("kept", 2)]), |_| true);
    limits.replace(&BTreeMap::from([("new", u64::MAX)]), |name| name != "gone");
    limits.write(&file).unwrap();
    let read = Limits::read(&file).unwrap();
    assert_eq!(read.names().collect::<Vec<_>>(), ["kept", "new"]);
    assert_eq!((read.recorded("kept"), read.recorded("new")), (Some(2), Some(u64::MAX)));
    assert!(matches!(read.standing("new", u64::MAX), Standing::Within));
}

#[test]
fn what_is_no_record_is_named_by_its_line() {
    for (text, want) in [
        ("a 1\nb\n", "it.limits:2: expected a name and a number"),
        ("a one\n", "it.limits:1: expected a name and a number"),
        ("a -1\n", "it.limits:1: expected a name and a number"),
        ("a 1 2\n", "it.limits:1: expected a name and a number"),
        ("a 1\n\na 2\n", "it.limits:3: a is there twice"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.ends_with(want), "{text:?}: {error}");
    }
}
