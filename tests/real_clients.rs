//! Programs that know nothing of adit, over connections that the kernel captured: redis, iperf3, curl and nginx, netcat,
//! socat, PostgreSQL; in both directions, IPv4 and IPv6.

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "netns/kit.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod kit;
#[path = "support/program.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod program;
#[path = "support/serve.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod serve;

#[path = "real_clients/hostnames.rs"]
mod hostnames;
#[path = "real_clients/proxy_protocol.rs"]
mod proxy_protocol;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kit::{Adit, Host, LIMIT, Lab, isolated, until};
use program::{absent, adit, need, run, shell, wait};
use serve::{echo, serve};

/// A server, killed when dropped.
struct Running(Child);

impl Running {
    /// Starts it in `host`, and waits until `port` takes connections there.
    fn start(host: &Host, port: u16, command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn();
        let mut running = Self(child.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}")));
        let listening = format!("ss --no-header --listening --numeric --tcp 'sport = :{port}'");
        until(LIMIT, "the server to listen", || {
            assert!(running.0.try_wait().expect("our child").is_none(), "{command:?} ended");
            (!shell(host, &listening).ok().is_empty()).then_some(())
        });
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if it has ended, which is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The daemon behind its rules: everything that enters or leaves host `adit` is captured.
fn captured(lab: &Lab) -> Adit {
    adit(&lab.adit, &["redirect", "apply", "--force"]).ok();
    lab.adit("", "")
}

/// Who talks to whom: out of host `adit`, and into it.
fn both_ways(lab: &Lab) -> [(&Host, &Host, &'static str); 2] {
    [(&lab.adit, &lab.server, "outbound"), (&lab.client, &lab.adit, "inbound")]
}

/// That a door has carried something: a test whose traffic took another way proves nothing.
fn carried(daemon: &Adit, door: &str) {
    let listener = format!("listener=\"{door}\"");
    until(LIMIT, "the access log", || {
        daemon.log().iter().find(|line| line.contains("connection complete") && line.contains(&listener)).map(drop)
    });
}

/// Random bytes in a file.
fn random_file(folder: &Path, bytes: usize) -> PathBuf {
    let path = folder.join("random");
    let mut random = fastrand::Rng::with_seed(7);
    fs::write(&path, (0..bytes).map(|_| random.u8(..)).collect::<Vec<u8>>()).expect("our own folder");
    path
}

#[test]
fn redis_request_response_and_pipelines() {
    isolated(|| {
        need(&["redis-server", "redis-cli", "redis-benchmark", "ss"]);
        let lab = Lab::new();
        let daemon = captured(&lab);
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (client, server, door) in both_ways(&lab) {
            let mut command = server.command("redis-server");
            command.args(["--port", "6379", "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", ""]);
            let redis = Running::start(server, 6379, command.arg("--dir").arg(folder.path()));
            for address in [server.v4.to_string(), server.v6.to_string()] {
                let cli = |arguments: &[&str]| run(client, "redis-cli", &[&["-h", &address], arguments].concat()).ok();
                assert_eq!(cli(&["set", "key", "value"]).trim(), "OK");
                assert_eq!(cli(&["get", "key"]).trim(), "value");
                // Ten thousand commands written without waiting for an answer.
                let line = format!(
                    "i=0; while [ $i -lt 10000 ]; do echo \"SET k$i v$i\"; i=$((i+1)); done | redis-cli -h {address} --pipe"
                );
                let said = shell(client, &line).ok();
                assert!(said.contains("errors: 0, replies: 10000"), "{said}");
                let benchmark =
                    ["-h", &address, "-c", "20", "-n", "20000", "-P", "16", "-q", "-t", "set,get,lrange_100"];
                let said = run(client, "redis-benchmark", &benchmark).ok();
                assert!(said.contains("GET:") && !said.contains("rror"), "{said}");
            }
            drop(redis);
            carried(&daemon, door);
        }
        daemon.stop();
    });
}

/// The server speaks first on the control connection, and waits for a second one.
#[test]
fn iperf3_in_both_directions() {
    isolated(|| {
        need(&["iperf3", "ss"]);
        let lab = Lab::new();
        let daemon = captured(&lab);
        for (client, server, door) in both_ways(&lab) {
            let iperf = Running::start(server, 5201, server.command("iperf3").arg("--server"));
            for address in [server.v4.to_string(), server.v6.to_string()] {
                // Not --bidir: its server takes the streams' roles from the order in which they arrive, and connections
                // that were accepted by two workers may overtake each other.
                for way in ["--bytes 64M", "--bytes 64M --reverse", "--time 1 --parallel 4"] {
                    let way: &[&str] = &way.split(' ').collect::<Vec<_>>();
                    // The server is at one test at a time, and learns by a reset that the one before is over.
                    let report = until(LIMIT, "the server to take a test", || {
                        let said = run(client, "iperf3", &[&["--client", &address, "--json"], way].concat()).ok();
                        let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
                        let busy = report["error"].as_str().is_some_and(|error| error.contains("busy"));
                        (!busy).then_some(report)
                    });
                    assert_eq!(report.get("error"), None, "{address} {way:?}: {report}");
                    let bytes = |sum: &str| report["end"][sum]["bytes"].as_f64().unwrap_or_default();
                    // What is on its way when the control connection ends the test is not counted as received.
                    let (sent, received) = (bytes("sum_sent"), bytes("sum_received"));
                    assert!(sent > 4e6 && received > 1e6, "{address} {way:?}: {report}");
                }
            }
            drop(iperf);
            carried(&daemon, door);
        }
        daemon.stop();
    });
}

#[test]
fn curl_from_nginx() {
    isolated(|| {
        need(&["curl", "nginx", "ss", "sha256sum"]);
        let lab = Lab::new();
        let daemon = captured(&lab);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = random_file(folder.path(), 8 << 20);
        let root = folder.path().display();
        let settings = format!(
            "daemon off; user root; pid {root}/pid; error_log stderr; events {{}}\n\
             http {{ access_log off; server {{ listen [::]:8080 ipv6only=off; root {root}; }} }}\n"
        );
        fs::write(folder.path().join("nginx.conf"), settings).expect("our own folder");
        for (client, server, door) in both_ways(&lab) {
            let mut command = server.command("nginx");
            let nginx = Running::start(
                server,
                8080,
                command.args(["-e", "stderr", "-c"]).arg(folder.path().join("nginx.conf")),
            );
            for address in [server.v4.to_string(), format!("[{}]", server.v6)] {
                let url = format!("http://{address}:8080/random");
                // Three times on one connection.
                let line = format!("curl --silent --show-error --fail '{url}?[1-3]'");
                let sum = shell(client, &format!("{line} | sha256sum")).ok();
                let file = file.display();
                assert_eq!(sum, shell(client, &format!("cat {file} {file} {file} | sha256sum")).ok(), "{url}");
            }
            drop(nginx);
            carried(&daemon, door);
        }
        daemon.stop();
    });
}

/// The client ends its side first and still gets all of it back; then the server does.
#[test]
fn half_close_by_netcat_and_socat() {
    isolated(|| {
        need(&["nc", "socat", "cmp"]);
        let lab = Lab::new();
        let daemon = captured(&lab);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = random_file(folder.path(), 4 << 20);
        let file = path.display();
        for (client, server, door) in both_ways(&lab) {
            echo(server, 7000);
            let bytes = fs::read(&path).expect("our own file");
            // Ends its side after the last byte, and counts what still comes.
            serve(server, 7001, move |mut stream| {
                use std::io::{Read, Write};
                stream.write_all(&bytes).expect("write");
                stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).expect("a clean end");
            });
            for (address, bracketed) in
                [(server.v4.to_string(), server.v4.to_string()), (server.v6.to_string(), format!("[{}]", server.v6))]
            {
                for line in [
                    format!("nc -N {address} 7000 < {file} | cmp - {file}"),
                    format!("socat -t 20 - TCP:{bracketed}:7000 < {file} | cmp - {file}"),
                    format!("nc -d {address} 7001 < /dev/null | cmp - {file}"),
                    format!("socat -u TCP:{bracketed}:7001 - | cmp - {file}"),
                ] {
                    let done = shell(client, &line);
                    assert_eq!(done.code, Some(0), "{line}: {}{}", done.out, done.err);
                }
            }
            carried(&daemon, door);
        }
        daemon.stop();
    });
}

/// PostgreSQL's own server and client: a protocol in which both sides speak first at times.
#[test]
fn postgresql_queries_and_copies() {
    isolated(|| {
        let Some(bin) = postgresql() else { return absent("PostgreSQL") };
        need(&["psql", "ss"]);
        let lab = Lab::new();
        let daemon = captured(&lab);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().join("data");
        // It refuses to run as root: as nobody in a user namespace of its own.
        let nobody = |host: &Host, program: &str| {
            let mut command = host.command("unshare");
            command.args(["--user", "--map-user=65534", "--map-group=65534", "--"]).arg(bin.join(program));
            command
        };
        let mut command = nobody(&lab.server, "initdb");
        command.args(["--auth=trust", "--no-sync", "--username=adit", "--pgdata"]).arg(&data);
        wait(&mut command).ok();
        fs::write(data.join("pg_hba.conf"), "host all all all trust\n").expect("our own folder");
        for (client, server, door) in both_ways(&lab) {
            let mut command = nobody(server, "postgres");
            command.args(["-h", "*", "-c", "fsync=off", "-k", "", "-D"]).arg(&data);
            let postgres = Running::start(server, 5432, &mut command);
            for address in [server.v4.to_string(), server.v6.to_string()] {
                let sql = |sql: &str| {
                    let arguments = ["-h", &address, "-U", "adit", "-d", "postgres", "-q", "-A", "-t", "-c", sql];
                    run(client, "psql", &arguments).ok()
                };
                until(LIMIT, "the database", || {
                    let ping = ["-h", &address, "-U", "adit", "-d", "postgres", "-c", "select 1"];
                    (run(client, "psql", &ping).code == Some(0)).then_some(())
                });
                assert_eq!(sql("select sum(n) from generate_series(1, 1000) n").trim(), "500500");
                let rows = sql("select repeat('x', 100) from generate_series(1, 20000)");
                assert_eq!(rows.lines().filter(|row| row.len() == 100).count(), 20_000);
                let line = format!(
                    "seq 1 50000 | psql -h {address} -U adit -d postgres -q -A -t \
                     -c 'create temp table t (n int)' -c '\\copy t from stdin' -c 'select count(*) from t'"
                );
                assert_eq!(shell(client, &line).ok().trim(), "50000");
            }
            drop(postgres);
            carried(&daemon, door);
        }
        daemon.stop();
    });
}

/// Where Debian keeps the server's programs.
fn postgresql() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).find(|bin| bin.join("initdb").is_file())
}
