//! Each wrong value says what was found, what it should be, and where there is one, the way out.

use crate::config::{Sources, load};

/// Key, value, what the only problem says after the key.
type Row = (&'static str, &'static str, &'static str);

fn refused(rows: &[Row]) {
    for (key, value, want) in rows {
        let sources = Sources { flags: vec![((*key).into(), (*value).into())], ..Sources::default() };
        let problems: Vec<String> = match load(&sources) {
            Ok(_) => panic!("{key}: {value} is accepted"),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(problems, [format!("flag --set {key}: {key}: {want}")]);
    }
}

#[test]
fn wrong_words() {
    refused(&[
        ("mode", "node", "found \"node\", expected sidecar\n  hint: node mode is not supported yet: only sidecar"),
        ("workload.namespace", "\"\"", "found \"\", expected a name, not empty"),
        ("workload.trustDomain", "a/b", "found \"a/b\", expected a name without spaces and slashes"),
        ("workload.name", "7", "found 7, expected text\n  hint: put it in quotes: \"7\""),
        ("capture", "tprox", "found \"tprox\", expected redirect, tproxy or connect\n  hint: did you mean \"tproxy\"?"),
        ("egress", "[]", "found a list, expected allowAny or registryOnly"),
        ("relay.zeroCopy", "on", "found \"on\", expected auto or off"),
        (
            "metrics.labels",
            "[source_worklod]",
            "found \"source_worklod\", expected names of traffic labels\n  hint: did you mean \"source_workload\"?",
        ),
        (
            "onEndpointRemoved",
            "drain",
            "found \"drain\", expected keep, drain with a duration (drain 30s), or close\n  hint: say for how long: drain 30s",
        ),
        (
            "onEndpointRemoved",
            "drain 5",
            "found \"drain 5\", expected keep, drain with a duration (drain 30s), or close\n  hint: a duration needs a unit: write 5s",
        ),
        ("inbound.proxyProtocolFrom", "[10.0.0.0/33]", "found \"10.0.0.0/33\", expected a range such as 10.0.0.0/8"),
        ("metrics.labels", "all", "found \"all\", expected default or a list of traffic labels"),
        (
            "log.filter",
            "inof",
            "found \"inof\", expected a log filter such as info or info,mesh=debug\n  hint: did you mean \"info\"?",
        ),
        ("log.filter", "\"\"", "found \"\", expected a log filter such as info or info,mesh=debug"),
        (
            "log.filter",
            "a=b=c",
            "found \"a=b=c\", expected a log filter such as info or info,mesh=debug\n  hint: `a=b=c` is neither a level nor target=level; levels are off, error, warn, info, debug, trace",
        ),
        ("log.access", "maybe", "found \"maybe\", expected true or false"),
        ("admin.allowRemote", "1", "found 1, expected true or false"),
        ("mesh.files", "[7]", "found 7, expected paths of files or folders"),
        ("connect", "5s", "found \"5s\", expected a map"),
    ]);
}

#[test]
fn wrong_addresses() {
    refused(&[
        ("listen.outbound", "15001", "found 15001, expected ADDRESS:PORT or off\n  hint: write \"[::]:15001\""),
        (
            "listen.socks5",
            "localhost:1080",
            "found \"localhost:1080\", expected ADDRESS:PORT or off\n  hint: write \"127.0.0.1:1080\"",
        ),
        (
            "listen.metrics",
            "\":15020\"",
            "found \":15020\", expected ADDRESS:PORT or off\n  hint: write \"[::]:15020\"",
        ),
        (
            "listen.metrics",
            "\"::1:15020\"",
            "found \"::1:15020\", expected ADDRESS:PORT or off\n  hint: write \"[::1]:15020\"",
        ),
        (
            "listen.metrics",
            "host:1",
            "found \"host:1\", expected ADDRESS:PORT or off\n  hint: names are not resolved here: write an IP address",
        ),
        ("listen.metrics", "127.0.0.1", "found \"127.0.0.1\", expected ADDRESS:PORT or off"),
        (
            "listen.admin",
            "\"unix:admin.sock\"",
            "found \"unix:admin.sock\", expected unix: and an absolute path of at most 107 bytes\n  hint: write unix:/run/adit/admin.sock",
        ),
        ("listen.admin", "true", "found true, expected ADDRESS:PORT, unix:/PATH or off"),
    ]);
}

#[test]
fn wrong_durations() {
    refused(&[
        (
            "connect.timeout",
            "5",
            "found 5, expected a duration such as 250ms or 5s, more than zero\n  hint: a duration needs a unit: write 5s",
        ),
        (
            "connect.timeout",
            "\"5\"",
            "found \"5\", expected a duration such as 250ms or 5s, more than zero\n  hint: a duration needs a unit: write 5s",
        ),
        (
            "connect.timeout",
            "1.5",
            "found 1.5, expected a duration such as 250ms or 5s, more than zero\n  hint: a duration needs a unit: write 1.5s",
        ),
        ("connect.timeout", "0s", "found \"0s\", expected a duration such as 250ms or 5s, more than zero"),
        ("connect.timeout", "off", "found \"off\", expected a duration such as 250ms or 5s, more than zero"),
        (
            "connect.timeout",
            "5sx",
            "found \"5sx\", expected a duration such as 250ms or 5s, more than zero\n  hint: units are ms, s, m, h and d",
        ),
        (
            "connect.timeout",
            "5M",
            "found \"5M\", expected a duration such as 250ms or 5s, more than zero\n  hint: minutes are m, milliseconds are ms",
        ),
        ("connect.timeout", "-5s", "found \"-5s\", expected a duration such as 250ms or 5s, more than zero"),
        ("connect.timeout", "", "found nothing, expected a duration such as 250ms or 5s, more than zero"),
        (
            "connect.backoff",
            "99999999999d",
            "found \"99999999999d\", expected a duration such as 250ms or 5s\n  hint: the longest is 3650d",
        ),
        (
            "relay.idleTimeout",
            "0s",
            "found \"0s\", expected a duration such as 250ms or 5s, more than zero, or off\n  hint: write off",
        ),
        ("relay.resetFlush", "0s", "found \"0s\", expected a duration such as 250ms or 5s, more than zero"),
        ("keepalive.idle", "1500ms", "found \"1500ms\", expected a duration of whole seconds, 1s to 32767s"),
        ("keepalive.idle", "32768s", "found \"32768s\", expected a duration of whole seconds, 1s to 32767s"),
        (
            "keepalive.userTimeout",
            "30d",
            "found \"30d\", expected a duration of whole milliseconds, 1ms to 24d, or off",
        ),
    ]);
}

#[test]
fn wrong_numbers() {
    refused(&[
        ("workers", "0", "found 0, expected auto or a number of threads, 1 to 1024"),
        (
            "workers",
            "\"2\"",
            "found \"2\", expected auto or a number of threads, 1 to 1024\n  hint: write the number without quotes",
        ),
        ("packetMark", "0", "found 0, expected off or a mark, 1 to 4294967295"),
        (
            "packetMark",
            "0x111",
            "found 273, expected off or a mark, 1 to 4294967295\n  hint: 0x111 (273) and 0x112 (274) are used by the redirect rules themselves: take another",
        ),
        (
            "packetMark",
            "0x112",
            "found 274, expected off or a mark, 1 to 4294967295\n  hint: 0x111 (273) and 0x112 (274) are used by the redirect rules themselves: take another",
        ),
        ("packetMark", "4294967296", "found 4294967296, expected off or a mark, 1 to 4294967295"),
        ("connect.attempts", "0", "found 0, expected a number of attempts, 1 to 1000"),
        ("keepalive.probes", "128", "found 128, expected a number of probes, 1 to 127"),
        ("limits.connections", "0", "found 0, expected auto, off or a number of connections, at least 1"),
        ("limits.inbound", "auto", "found \"auto\", expected off or a number of connections, at least 1"),
    ]);
}
