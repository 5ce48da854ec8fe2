//! A real Envoy in a host, as either end of a tunnel.
//!
//! What Envoy 1.40 does there, as seen in its frame log and by decoding what it sends; [`crate::proof`] holds on to most of it:
//!
//! * TLS 1.3, ALPN `h2`, no SNI. It takes AES-128-GCM, AES-256-GCM and ChaCha20 in the client's order; as a server it accepts a
//!   client without ALPN, or with another protocol than `h2`, and speaks HTTP/2 all the same. It sends session tickets.
//! * SETTINGS, client: ENABLE_PUSH 0, HEADER_TABLE_SIZE 4096, ENABLE_CONNECT_PROTOCOL 0, MAX_CONCURRENT_STREAMS 1024,
//!   INITIAL_WINDOW_SIZE 16 MiB. Server: the same without ENABLE_PUSH, and ENABLE_CONNECT_PROTOCOL 1. Both raise the
//!   connection's window to 24 MiB. MAX_FRAME_SIZE and MAX_HEADER_LIST_SIZE are not sent. Neither sends PING by itself.
//! * CONNECT has `:method` and `:authority` and nothing else: no `:scheme`, no `:path`, no other header. The client sends
//!   SETTINGS, WINDOW_UPDATE and CONNECT without waiting for the server's SETTINGS, and no DATA before the 200.
//! * A hundred streams share one tunnel. One tunnel more is opened per MAX_CONCURRENT_STREAMS of the server.
//! * A client's FIN is END_STREAM, and the other half goes on. A server's FIN ends everything: Envoy as server sends END_STREAM
//!   and RST_STREAM(NO_ERROR) at once, and Envoy as client drops what its application says after the END_STREAM.
//!   Runtime feature `allow_multiplexed_upstream_half_close` is of no use: with it a server sends END_STREAM and
//!   RST_STREAM(CONNECT_ERROR), and then gives the connection that has ended to the next stream for the same address.
//! * A reset application is RST_STREAM(CONNECT_ERROR) from the server, RST_STREAM(INTERNAL_ERROR) from the client.
//! * An RST_STREAM that the client receives is a FIN for its application if its code is CONNECT_ERROR or PROTOCOL_ERROR, and a
//!   reset with every other code, NO_ERROR and CANCEL too, unless END_STREAM came before it: then it is a FIN.
//!   An RST_STREAM that the server receives, and the loss of a tunnel, is always a FIN for its application.
//!   The runtime features `propagate_downstream_rst_to_upstream`, `map_http_stream_reset_to_tcp_rst` and
//!   `propagate_upstream_rst_through_tunneled_tcp_proxy` change none of this.
//! * Where nobody listens the server answers 503 with a body of text (not the end of the stream) and then
//!   RST_STREAM(CONNECT_ERROR). The client ends its application's connection by a FIN, and sends RST_STREAM(INTERNAL_ERROR).
//! * A drained server says nothing until the next stream: then comes one GOAWAY(NO_ERROR) before that stream's answer, and this
//!   stream is still served.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::envoy_config::{ADMIN, Entrance, Tweaks, client, server};
use crate::kit::daemon::get;
use crate::kit::wait::pause;
use crate::kit::{Host, LIMIT, until};
use crate::pki::Leaf;

/// Where `.ci/install-envoy` puts it.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/envoy");
/// It needs about half a second when nothing else runs.
const START: Duration = Duration::from_secs(30);

/// A running Envoy; killed when dropped, its log shown when a test has failed.
pub(crate) struct Envoy {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    /// Holds its settings.
    _folder: TempDir,
}

impl Envoy {
    /// The end that takes tunnels on 15008 and connects each stream to the address in its authority.
    pub(crate) fn hbone_server(host: &Host, leaf: &Leaf, tweaks: &Tweaks) -> Self {
        Self::start(host, &server(leaf, tweaks), tweaks)
    }

    /// The end that opens tunnels to peers of identity `peer`, one CONNECT for each connection to an entrance.
    pub(crate) fn hbone_client(host: &Host, leaf: &Leaf, peer: &str, entrances: &[Entrance], tweaks: &Tweaks) -> Self {
        Self::start(host, &client(leaf, peer, entrances, tweaks), tweaks)
    }

    /// With any settings; returns when it serves.
    pub(crate) fn start(host: &Host, settings: &Value, tweaks: &Tweaks) -> Self {
        assert!(Path::new(PROGRAM).exists(), "there is no Envoy at {PROGRAM}: run .ci/install-envoy");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("envoy.json");
        fs::write(&file, settings.to_string()).expect("our own folder");
        let mut command = host.command(PROGRAM);
        command.arg("--config-path").arg(&file);
        // Hot restart would share memory with every other Envoy of the machine. The access log waits for 10 s by default.
        command.args([
            "--disable-hot-restart",
            "--drain-strategy",
            "immediate",
            "--concurrency",
            "1",
            "--file-flush-interval-msec",
            "50",
        ]);
        command.args(["--log-format", "[%l][%n] %v", "--log-level", "info"]);
        if tweaks.frames {
            command.args(["--component-log-level", "http2:trace,http:debug,router:debug,connection:debug"]);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let log = Arc::default();
        collect(&log, child.stdout.take().expect("piped"));
        collect(&log, child.stderr.take().expect("piped"));
        let mut envoy = Self { child, log, _folder: folder };
        until(START, "Envoy to serve", || {
            let ended = envoy.child.try_wait().expect("our child");
            assert!(ended.is_none(), "Envoy ended: {ended:?}");
            get(host, ADMIN, "/ready").filter(|answer| answer.starts_with("HTTP/1.1 200")).map(drop)
        });
        envoy
    }

    /// Everything it has said so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a line contains `text`, and returns it.
    pub(crate) fn wait_log(&self, text: &str) -> String {
        until(LIMIT, &format!("{text:?} in Envoy's log"), || self.log().into_iter().find(|line| line.contains(text)))
    }

    /// Access records so far: one per stream or connection that has ended.
    pub(crate) fn records(&self) -> Vec<Value> {
        let lines = self.log();
        let values = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        values.filter(|value| value["scope"] == "access").collect()
    }

    /// Waits for so many access records, and returns them.
    pub(crate) fn wait_records(&self, count: usize) -> Vec<Value> {
        until(LIMIT, "Envoy's access records", || Some(self.records()).filter(|records| records.len() >= count))
    }

    /// What a client's CONNECT for `authority` was answered: the value of `:status`, once its connection has ended.
    pub(crate) fn wait_status(&self, authority: &str) -> String {
        let answered = |record: &Value| {
            let headers = record["answer"]["headers"].as_array()?;
            let status = headers.iter().find(|header| header["key"] == ":status")?;
            status["value"].as_str().map(str::to_owned)
        };
        until(LIMIT, &format!("an answer to CONNECT {authority}"), || {
            self.records().iter().rev().filter(|record| record["authority"] == authority).find_map(answered)
        })
    }

    /// The sum of all counters and gauges whose name ends with `name`.
    pub(crate) fn stat(&self, host: &Host, name: &str) -> u64 {
        let text = get(host, ADMIN, "/stats").expect("Envoy's statistics");
        let values = text.lines().filter_map(|line| line.split_once(": ")).filter(|(key, _)| key.ends_with(name));
        values.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
    }

    /// Waits until [`Self::stat`] is `want`.
    pub(crate) fn wait_stat(&self, host: &Host, name: &str, want: u64) {
        let mut last = None;
        let limit = Instant::now() + LIMIT;
        while last != Some(want) {
            last = Some(self.stat(host, name));
            assert!(Instant::now() < limit, "Envoy's {name} is {last:?} instead of {want}");
            pause(Duration::from_millis(20));
        }
    }

    /// Ends its tunnels politely: GOAWAY, and streams may finish.
    pub(crate) fn drain(&self, host: &Host) {
        assert!(post(host, "/drain_listeners?graceful&skip_exit").starts_with("HTTP/1.1 200"));
    }

    /// Ends it as abruptly as a crash does; the kernel ends its connections.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a running Envoy");
        self.child.wait().expect("our child");
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // Fails if it has ended, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            show(&self.log());
        }
    }
}

fn collect(log: &Arc<Mutex<Vec<String>>>, from: impl Read + Send + 'static) {
    let sink = Arc::clone(log);
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            sink.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    });
}

#[expect(clippy::print_stderr, reason = "what the peer said is half of every failure")]
fn show(log: &[String]) {
    eprintln!("Envoy said:\n{}", log.join("\n"));
}

fn post(host: &Host, path: &str) -> String {
    host.run(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN)), LIMIT)
            .expect("Envoy's admin port");
        stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
        let request =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    })
}
