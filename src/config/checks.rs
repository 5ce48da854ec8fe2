//! Checks across keys: what is right by itself and wrong together. All of them run, and each is skipped while one of
//! its own keys is known to be wrong. A problem is blamed on the key that was written last.

use std::net::SocketAddr;

use super::kinds::written;
use super::layers::Merged;
use super::problem::{Problem, Problems};
use super::settings::{AdminAddr, ConnectionLimit, IdentitySource, Listen, PreserveSource, Settings};

/// One rule and the keys it looks at, the likeliest culprit first.
struct Check {
    keys: &'static [&'static str],
    /// What is wrong: found, expected, hint.
    rule: fn(&Settings) -> Option<(String, String, String)>,
}

const CHECKS: &[Check] = &[
    Check {
        keys: &["keepalive.userTimeout", "keepalive.idle", "keepalive.interval", "keepalive.probes"],
        rule: user_timeout,
    },
    Check { keys: &["connect.timeout", "connect.deadline"], rule: connect_times },
    Check { keys: &["listen.admin", "admin.allowRemote"], rule: admin_remote },
    Check { keys: &["listen.socks5", "socks5AllowRemote"], rule: socks5_remote },
    Check {
        keys: &["listen.outbound", "listen.inbound", "listen.socks5", "listen.hbone", "identity.source"],
        rule: no_door,
    },
    Check { keys: &["preserveSource", "packetMark", "listen.inbound"], rule: source_without_mark },
    Check {
        keys: &["identity.source", "identity.files.cert", "identity.files.key", "identity.files.roots"],
        rule: identity_files,
    },
    Check { keys: &["identity.source", "workload.name", "listen.hbone"], rule: nobody_to_serve },
    Check { keys: &["limits.outbound", "limits.connections"], rule: |s| within(s, s.limits.outbound) },
    Check { keys: &["limits.inbound", "limits.connections"], rule: |s| within(s, s.limits.inbound) },
    Check { keys: &["limits.socks5", "limits.connections"], rule: |s| within(s, s.limits.socks5) },
    Check { keys: &["limits.hbone", "limits.connections"], rule: |s| within(s, s.limits.hbone) },
    Check { keys: &["balance.ejectMax", "balance.ejectTime"], rule: eject_times },
    Check { keys: &["tunnel.connectionWindow", "tunnel.streamWindow"], rule: windows },
    Check { keys: &["tunnel.bufferedBytes", "tunnel.connectionWindow"], rule: buffered },
];

/// Everything that is wrong across keys.
pub(super) fn check(merged: &Merged) -> Problems {
    let mut problems = Problems::default();
    for Check { keys, rule } in CHECKS {
        if let Some((found, expected, hint)) = merged.sound(keys).then(|| rule(&merged.settings)).flatten() {
            problems.push(blame(merged, keys).found(found).expected(expected).hint(hint));
        }
    }
    same_port(merged, &mut problems);
    problems
}

fn blame(merged: &Merged, keys: &[&'static str]) -> Problem {
    let (key, origin, position) = merged.origin(keys);
    Problem::of(origin, "").at(position).key(key)
}

fn user_timeout(settings: &Settings) -> Option<(String, String, String)> {
    let keepalive = settings.keepalive;
    let user_timeout = keepalive.user_timeout?;
    let least = keepalive.idle + keepalive.interval * keepalive.probes.get();
    (user_timeout < least).then(|| {
        let least = humantime::format_duration(least).to_string().replace(' ', "");
        (
            format!("a userTimeout of {}", humantime::format_duration(user_timeout)),
            format!("at least idle + interval * probes, which is {least}"),
            format!("set keepalive.userTimeout to {least} or more, or to off"),
        )
    })
}

fn connect_times(settings: &Settings) -> Option<(String, String, String)> {
    let connect = &settings.connect;
    (connect.timeout > connect.deadline).then(|| {
        (
            format!("a timeout of {}", humantime::format_duration(connect.timeout)),
            format!("at most connect.deadline, which is {}", humantime::format_duration(connect.deadline)),
            "the deadline is over all attempts: raise connect.deadline or lower connect.timeout".to_owned(),
        )
    })
}

fn eject_times(settings: &Settings) -> Option<(String, String, String)> {
    let balance = settings.balance;
    (balance.eject_max < balance.eject_time).then(|| {
        (
            format!("an ejectMax of {}", humantime::format_duration(balance.eject_max)),
            format!("at least balance.ejectTime, which is {}", humantime::format_duration(balance.eject_time)),
            "the time doubles from ejectTime up to ejectMax: raise balance.ejectMax or lower balance.ejectTime"
                .to_owned(),
        )
    })
}

fn admin_remote(settings: &Settings) -> Option<(String, String, String)> {
    let Some(AdminAddr::Tcp(address)) = &settings.listen.admin else { return None };
    (!settings.admin.allow_remote && !is_loopback(*address)).then(|| {
        (
            format!("{address}"),
            "a loopback address".to_owned(),
            format!(
                "write \"127.0.0.1:{}\", or set admin.allowRemote: true if everyone who can reach it may drain adit",
                address.port()
            ),
        )
    })
}

fn socks5_remote(settings: &Settings) -> Option<(String, String, String)> {
    let address = settings.listen.socks5?;
    (!settings.socks5_allow_remote && !is_loopback(address)).then(|| {
        (
            format!("{address}"),
            "a loopback address".to_owned(),
            format!(
                "write \"127.0.0.1:{}\", or set socks5AllowRemote: true if everyone who can reach it may use it",
                address.port()
            ),
        )
    })
}

fn no_door(settings: &Settings) -> Option<(String, String, String)> {
    let listen = &settings.listen;
    // Without an identity nobody accepts at the HBONE door.
    let hbone = listen.hbone.filter(|_| settings.identity.source != IdentitySource::None);
    let doors = [listen.outbound, listen.inbound, listen.socks5, hbone];
    doors.iter().all(Option::is_none).then(|| {
        (
            "every door for traffic off".to_owned(),
            "listen.outbound, listen.inbound, listen.socks5, or with an identity listen.hbone open".to_owned(),
            "there would be nothing to do: open at least one".to_owned(),
        )
    })
}

fn source_without_mark(settings: &Settings) -> Option<(String, String, String)> {
    let wanted = settings.preserve_source == PreserveSource::Require && settings.listen.inbound.is_some();
    (wanted && settings.packet_mark.is_none()).then(|| {
        (
            "preserveSource: require with packetMark: off".to_owned(),
            "a packetMark".to_owned(),
            "answers to a borrowed address find their way back by the mark: set packetMark, or preserveSource: prefer"
                .to_owned(),
        )
    })
}

fn identity_files(settings: &Settings) -> Option<(String, String, String)> {
    let files = &settings.identity.files;
    let none = std::path::Path::new("");
    let missing = [("cert", files.cert == none), ("key", files.key == none), ("roots", files.roots.is_empty())];
    let missing: Vec<&str> = missing.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name).collect();
    (settings.identity.source == IdentitySource::Files && !missing.is_empty()).then(|| {
        (
            format!("source: files without {}", missing.join(", ")),
            "files.cert, files.key and files.roots".to_owned(),
            "say which PEM files to read, or set identity.source: none".to_owned(),
        )
    })
}

/// A tunnel's streams are for the local workload, which is found by its name alone.
fn nobody_to_serve(settings: &Settings) -> Option<(String, String, String)> {
    let open = settings.identity.source != IdentitySource::None && settings.listen.hbone.is_some();
    (open && settings.workload.name.is_empty()).then(|| {
        (
            "an identity, an open listen.hbone and no workload.name".to_owned(),
            "the name of the workload that tunnels are for".to_owned(),
            "set workload.name to its name in the mesh files, or listen.hbone: off if there is none".to_owned(),
        )
    })
}

fn windows(settings: &Settings) -> Option<(String, String, String)> {
    let tunnel = &settings.tunnel;
    (tunnel.connection_window < tunnel.stream_window).then(|| {
        (
            format!("a connectionWindow of {}", written(tunnel.connection_window.get().into())),
            format!("at least tunnel.streamWindow, which is {}", written(tunnel.stream_window.get().into())),
            "one stalled stream would stop all others of its tunnel: make it several times as large".to_owned(),
        )
    })
}

fn buffered(settings: &Settings) -> Option<(String, String, String)> {
    let tunnel = &settings.tunnel;
    (tunnel.buffered_bytes.get() < tunnel.connection_window.get() as usize).then(|| {
        (
            format!("bufferedBytes of {}", written(tunnel.buffered_bytes.get() as u64)),
            format!("at least tunnel.connectionWindow, which is {}", written(tunnel.connection_window.get().into())),
            "raise tunnel.bufferedBytes or lower tunnel.connectionWindow".to_owned(),
        )
    })
}

fn within(settings: &Settings, limit: Option<std::num::NonZeroUsize>) -> Option<(String, String, String)> {
    let (Some(limit), ConnectionLimit::Fixed(total)) = (limit, settings.limits.connections) else { return None };
    (limit > total).then(|| {
        (
            format!("{limit}"),
            format!("at most limits.connections, which is {total}"),
            "this limit could never be reached".to_owned(),
        )
    })
}

/// Two doors that cannot both be bound.
fn same_port(merged: &Merged, problems: &mut Problems) {
    let doors = doors(&merged.settings.listen);
    for (index, (key, address)) in doors.iter().enumerate() {
        for (earlier_key, earlier) in doors.iter().take(index) {
            if !collide(*address, *earlier) || !merged.sound(&[key, earlier_key]) {
                continue;
            }
            let problem = blame(merged, &[key, earlier_key]);
            let other = if problem.key_path == *key { earlier_key } else { key };
            problems.push(
                problem.found(format!("{address}")).expected("a port of its own").hint(format!(
                    "{other} listens on {earlier}",
                    earlier = if other == key { address } else { earlier }
                )),
            );
        }
    }
}

fn doors(listen: &Listen) -> Vec<(&'static str, SocketAddr)> {
    let admin = match &listen.admin {
        Some(AdminAddr::Tcp(address)) => Some(*address),
        Some(AdminAddr::Unix(_)) | None => None,
    };
    [
        ("listen.outbound", listen.outbound),
        ("listen.inbound", listen.inbound),
        ("listen.hbone", listen.hbone),
        ("listen.socks5", listen.socks5),
        ("listen.admin", admin),
        ("listen.metrics", listen.metrics),
        ("listen.readiness", listen.readiness),
    ]
    .into_iter()
    .filter_map(|(key, address)| Some((key, address?)))
    .collect()
}

/// Port 0 is any free port; a wildcard covers every address of its family, `[::]` those of both.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    if a.port() == 0 || a.port() != b.port() {
        return false;
    }
    let (a, b) = (a.ip().to_canonical(), b.ip().to_canonical());
    let covers = |a: std::net::IpAddr, b: std::net::IpAddr| a.is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    a == b || covers(a, b) || covers(b, a)
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::render;

    #[test]
    fn addresses_collide_when_they_cannot_both_be_bound() {
        for (a, b, want) in [
            ("[::]:1", "[::]:1", true),
            ("[::]:1", "[::]:2", false),
            ("[::]:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("0.0.0.0:1", "[::]:1", true),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("127.0.0.1:1", "[::ffff:127.0.0.1]:1", true),
            ("[::1]:1", "127.0.0.1:1", false),
            ("[::]:0", "[::]:0", false),
        ] {
            let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(collide(a, b), want, "{a} {b}");
            assert_eq!(collide(b, a), want, "{b} {a}");
        }
    }

    /// A reload takes live keys and leaves the others; that may not make a combination that no check has seen.
    #[test]
    fn no_check_looks_at_both_live_and_restart_keys() {
        let all = render::flat(&Settings::default());
        for check in CHECKS {
            let class = |key: &str| all.iter().find(|shown| shown.key == key).map(|shown| shown.reload).unwrap();
            let first = class(check.keys[0]);
            assert!(check.keys.iter().all(|key| class(key) == first), "{:?}", check.keys);
        }
    }
}
