//! Reading YAML: everything wrong at once, with its place, whatever the text.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const LIMIT: usize = 64 * 1024 * 1024;

fn origin() -> Origin {
    Origin::File("test.yaml".into())
}

fn parse_ok(text: &str) -> Vec<Node> {
    parse(&origin(), text, LIMIT).unwrap()
}

/// A small schema that has one of everything.
fn read_all(cursor: Cursor<'_>) -> Option<()> {
    let fields = cursor.fields(&["name", "port", "hosts", "ports", "mode", "nested"])?;
    fields.required("name", text);
    fields.optional("port", integer::<u16>("a port, 0 to 65535"));
    fields.list("hosts", parsed::<std::net::IpAddr>("an IP address"));
    fields.optional("mode", choice(&[("Allow", 1), ("Deny", 2)]));
    if let Some(ports) = fields.get("ports") {
        for (key, value) in ports.entries()? {
            if let Err(mismatch) = integer::<u16>("a port number")(key) {
                value.report_as_key(mismatch);
            }
            value.read(integer::<u16>("a port number"));
        }
    }
    let nested = fields.get("nested")?;
    for item in nested.items()? {
        if let Some(fields) = item.fields(&["flag"]) {
            fields.optional("flag", boolean);
        }
    }
    Some(())
}

fn problems_of(text: &str) -> Vec<String> {
    match read_documents(&origin(), text, LIMIT, read_all) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn everything_that_is_wrong_is_reported_at_once_with_its_line() {
    let text = "\
# a comment
name: 5
port: 70000
hosts:
  - 10.0.0.1
  - banana
mode: allow
ports: { \"x\": 80, 443: no }
extra: 1
nested:
  - flag: true
  - flagg: true
  - 7
";
    assert_eq!(
        problems_of(text),
        [
            "test.yaml:2:7: name: found 5, expected text\n  hint: put it in quotes: \"5\"",
            "test.yaml:3:7: port: found 70000, expected a port, 0 to 65535",
            "test.yaml:6:5: hosts[1]: found \"banana\", expected an IP address",
            "test.yaml:7:7: mode: found \"allow\", expected Allow or Deny\n  hint: did you mean \"Allow\"?",
            "test.yaml:8:10: ports.x: key: found \"x\", expected a port number",
            "test.yaml:8:24: ports.443: found \"no\", expected a port number",
            "test.yaml:9:1: extra: unknown key\n  hint: known keys here: name, port, hosts, ports, mode, nested",
            "test.yaml:12:5: nested[1].flagg: unknown key\n  hint: did you mean \"flag\"?",
            "test.yaml:13:5: nested[2]: found 7, expected a map",
        ]
    );
}

#[test]
fn a_missing_key_and_a_wrong_root_are_reported() {
    assert_eq!(problems_of(""), ["test.yaml: name: missing key"]);
    assert_eq!(problems_of("- 1\n"), ["test.yaml:1:1: found a list, expected a map"]);
    assert_eq!(problems_of("name: x\nnested: yes\n"), ["test.yaml:2:9: nested: found \"yes\", expected a list"]);
}

#[test]
fn duplicate_keys_name_both_lines() {
    assert_eq!(
        problems_of("name: a\nport: 1\nname: b\nname: c\n"),
        [
            "test.yaml:3:1: name: duplicate key\n  hint: it is already set on line 1",
            "test.yaml:4:1: name: duplicate key\n  hint: it is already set on line 1",
        ]
    );
    let many: String = (0..40).map(|port| format!("  {port}: 1\n")).collect();
    assert_eq!(
        problems_of(&format!("name: a\nports:\n{many}  7: 1\n")),
        ["test.yaml:43:3: ports.7: duplicate key\n  hint: it is already set on line 10"]
    );
}

#[test]
fn several_documents_are_told_apart() {
    let text = "name: a\nport: 1\n---\nname: b\nport: x\n---\n# nothing\nname: c\n...\n---\nport: y\nname: d\n";
    assert_eq!(
        problems_of(text),
        [
            "test.yaml:5:7: port: found \"x\", expected a port, 0 to 65535",
            "test.yaml:11:7: port: found \"y\", expected a port, 0 to 65535",
        ]
    );
    let seen = read_documents(&origin(), "a: 1\n---\nb: 2\n", LIMIT, |cursor| cursor.document()).unwrap();
    assert_eq!(seen, [0, 1]);
}

#[test]
fn keys_that_are_more_than_a_word_are_quoted_and_found() {
    let text = "name: a\nports:\n  \"ns/host.example[1]\": 1\n";
    assert_eq!(
        problems_of(text),
        ["test.yaml:3:3: ports[\"ns/host.example[1]\"]: key: found \"ns/host.example[1]\", expected a port number"]
    );
}

#[test]
fn what_is_behind_an_alias_or_merge_key_has_the_line_of_its_use() {
    let text = "name: a\nhosts: &h [banana]\nnested: *h\n";
    assert_eq!(
        problems_of(text),
        [
            "test.yaml:2:12: hosts[0]: found \"banana\", expected an IP address",
            "test.yaml:3:1: nested[0]: found \"banana\", expected a map",
        ]
    );
    assert_eq!(
        problems_of("name: a\n<<: {port: 1}\n"),
        ["test.yaml:2:1: [\"<<\"]: unknown key\n  hint: merge keys are not supported: write the keys out"]
    );
}

#[test]
fn syntax_errors_have_a_line() {
    let problems = parse(&origin(), "a: 1\nb: [1, 2\nc: 3\n", LIMIT).unwrap_err();
    let problem = problems.iter().next().unwrap();
    assert_eq!(problem.line(), Some(3), "{problem}");
    assert!(problem.message.starts_with("not valid YAML: "), "{problem}");
    assert!(!problem.to_string().contains("line 3"), "the position is said once: {problem}");
    for text in ["a: *nowhere", "\u{1}", "a: \"\\q\"", "\t- x", "a: b: c", "!<", "%YAML 9", "a: !!int x"] {
        assert!(parse(&origin(), text, LIMIT).is_err(), "{text:?}");
    }
}

#[test]
fn tags_survive() {
    let documents = parse_ok("a: !Exact x\nb: !Presence []\nc: !!str 5\n");
    let Node::Map(entries) = &documents[0] else { panic!("not a map") };
    assert_eq!(entries[0].1, Node::Tagged(Box::new(("Exact".into(), Node::Text("x".into())))));
    assert_eq!(entries[1].1, Node::Tagged(Box::new(("Presence".into(), Node::List(Vec::new())))));
    assert_eq!(entries[2].1, Node::Text("5".into()));
}

#[test]
fn scalars_mean_what_serde_yaml_says() {
    let documents = parse_ok("[~, true, off, yes, 7, -7, 1.5, '7', 0x10, 99999999999999999999999]");
    let Node::List(items) = &documents[0] else { panic!("not a list") };
    let shown: Vec<String> = items.iter().map(ToString::to_string).collect();
    let huge = "\"99999999999999999999999\"";
    assert_eq!(shown, ["nothing", "true", "\"off\"", "\"yes\"", "7", "-7", "1.5", "\"7\"", "16", huge]);
}

#[test]
fn shown_values_are_short_and_escaped() {
    let node = Node::Text(format!("\u{1b}[31m{}", "x".repeat(1000)).into());
    let shown = node.to_string();
    assert!(shown.len() < 100 && shown.ends_with("...") && !shown.contains('\u{1b}'), "{shown}");
}

/// Each of these hangs, overflows the stack or eats all memory in a naive reader.
#[test]
fn hostile_texts_end_in_an_error_and_soon() {
    let mib = 1024 * 1024;
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        laughs += &format!("a{level}: &a{level} [{}]\n", vec![before; 9].join(", "));
    }
    let wide = format!("a: &a [{}1]\nb: [{}*a]\n", "1,".repeat(60_000), "*a,".repeat(60_000));
    let long = format!("a: &a {}\nb: [{}*a]\n", "x".repeat(500_000), "*a,".repeat(100_000));
    let deep_block: String = (0..400).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    for (name, text) in [
        ("flow depth", "[".repeat(mib)),
        ("map depth", "{a: ".repeat(mib / 4)),
        ("block depth", deep_block),
        ("dash depth", "- ".repeat(5_000)),
        ("laughs", laughs),
        ("wide aliases", wide),
        ("long aliases", long),
        ("deep and wide", format!("{}{}", "[".repeat(900), "[],".repeat(200_000))),
        ("self", "a: &a [*a]".to_owned()),
    ] {
        let start = Instant::now();
        assert!(parse(&origin(), &text, LIMIT).is_err(), "{name}");
        assert!(start.elapsed() < Duration::from_secs(20), "{name}: {:?}", start.elapsed());
    }
    let problems = parse(&origin(), &"a".repeat(101), 100).unwrap_err();
    assert_eq!(problems.to_string(), "test.yaml: too large: found 101 bytes, expected at most 100 bytes");
}

#[test]
fn aliases_within_reason_are_fine() {
    let text = format!("base: &b {{port: 1}}\nall:\n{}", "  - *b\n".repeat(2_000));
    assert_eq!(parse_ok(&text).len(), 1);
}

#[test]
fn ten_thousand_mistakes_are_counted_not_listed() {
    let text = format!("name: a\nhosts:\n{}", "  - x\n".repeat(10_000));
    let problems = problems_of(&text);
    assert_eq!(problems.len(), 501);
    assert_eq!(problems[500], "test.yaml: and 9500 more problems");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _any = problems_of(&text);
    }

    #[test]
    fn no_yaml_like_text_panics(text in "([-?:,\\[\\]{}#&*!|>'\"%@`~ \nab01.]|name: |- |nested:\n){0,60}") {
        let _any = problems_of(&text);
    }

    /// The second parser finds the line of every value that the first one reads.
    #[test]
    fn lines_are_found_for_any_nesting(depth in 1_usize..6, before in 0_usize..5) {
        let mut text = "# comment\n".repeat(before);
        let mut path = String::new();
        for level in 0..depth {
            text += &format!("{}k{level}:\n", "  ".repeat(level));
            path += &format!("{}k{level}", if level > 0 { "." } else { "" });
        }
        text += &format!("{}- here\n", "  ".repeat(depth));
        let found = locate(&text, &[Place::value(0, format!("{path}[0]"))]);
        prop_assert_eq!(found, vec![Some(Position { line: before + depth + 1, column: depth * 2 + 3 })]);
    }
}
