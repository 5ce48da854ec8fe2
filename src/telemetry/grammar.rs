//! For tests: checks a scrape against the grammar of OpenMetrics text, as far as adit uses it. Independent of the library
//! that writes it: it knows nothing but the text.

use std::collections::{BTreeMap, BTreeSet};

/// Everything that a scrape says: sample with its labels -> value.
pub(crate) type Samples = BTreeMap<String, f64>;

/// Panics, naming the line, if `text` is not a valid exposition.
pub(crate) fn check(text: &str) -> Samples {
    let body = text.strip_suffix("# EOF\n").expect("a scrape ends with # EOF");
    let mut families = BTreeSet::new();
    let mut current: Option<(String, String)> = None;
    let mut helped = None;
    let mut filled = true;
    let mut samples = Samples::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect(line);
            assert!(!help.trim().is_empty(), "no help: {line}");
            assert!(families.insert(name.to_owned()), "family twice: {line}");
            helped = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect(line);
            assert_eq!(helped.take().as_deref(), Some(name), "HELP before TYPE: {line}");
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            assert!(is_name(name) && !name.ends_with("_total"), "{line}");
            assert!(filled, "the family before has no samples: {line}");
            filled = false;
            current = Some((name.to_owned(), kind.to_owned()));
        } else {
            let (family, kind) = current.as_ref().expect("a sample belongs to a family");
            let (series, value) = parse_sample(line);
            let name = series.split('{').next().expect(line);
            let want = if kind == "counter" { format!("{family}_total") } else { family.clone() };
            assert_eq!(name, want, "{line}");
            assert!(kind != "counter" || value >= 0.0, "{line}");
            filled = true;
            assert!(samples.insert(series, value).is_none(), "sample twice: {line}");
        }
    }
    samples
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn parse_sample(line: &str) -> (String, f64) {
    let (name, rest) = line.split_at(line.find(['{', ' ']).expect(line));
    assert!(is_name(name), "{line}");
    let rest = rest.strip_prefix('{').map_or(rest, |labels| check_labels(labels, line));
    let value = rest.strip_prefix(' ').expect(line);
    let series = line.strip_suffix(rest).expect(line).to_owned();
    (series, value.parse().expect(line))
}

/// Returns what follows the closing brace.
fn check_labels<'a>(mut rest: &'a str, line: &str) -> &'a str {
    let mut names = BTreeSet::new();
    loop {
        let (name, value) = rest.split_once("=\"").expect(line);
        assert!(is_name(name) && names.insert(name), "label {name}: {line}");
        let mut escaped = false;
        let end = value
            .find(|c| {
                let closing = c == '"' && !escaped;
                assert!(!escaped || ['"', '\\', 'n'].contains(&c), "bad escape: {line}");
                escaped = c == '\\' && !escaped;
                closing
            })
            .expect(line);
        assert!(end > 0, "empty label {name}: {line}");
        rest = value.get(end + 1..).expect(line);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return rest.strip_prefix('}').expect(line),
        }
    }
}
