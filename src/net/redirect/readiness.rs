//! Asks a running adit whether it is ready, before traffic is led to it. An address comes in; `Ok` goes out if the
//! answer to `GET /healthz/ready` is 200 within the deadline, else what was wrong, with the blockers that adit names.
//!
//! Who starts both at once waits first.
//!
//! One blocker does not count: `preserveSource: require` waits for the very rules that are about to be applied. Anything
//! that cannot be understood is not ready.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

const DEADLINE: Duration = Duration::from_secs(2);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// Enough for the blockers that the answer lists.
const MAX_ANSWER: u64 = 8 * 1024;
/// The blocker that only the rules can clear.
const WAITS_FOR_RULES: &str = "preserveSource";

#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("adit does not answer on its readiness port {address}")]
    Unreachable { address: SocketAddr, source: io::Error },
    #[error("adit is not ready: {why}")]
    Blocked { why: String },
}

/// As the readiness endpoint writes it.
#[derive(Deserialize)]
struct Blocker {
    name: String,
    error: Option<String>,
}

/// Asks until adit is ready, for no longer than `limit`.
pub(super) fn wait(address: SocketAddr, limit: Duration) {
    let start = Instant::now();
    while start.elapsed() < limit && ask(address).is_err() {
        thread::park_timeout(PAUSE);
    }
}

pub(super) fn ask(address: SocketAddr) -> Result<(), NotReady> {
    let answer = get(address).map_err(|source| NotReady::Unreachable { address, source })?;
    match judge(&answer) {
        None => Ok(()),
        Some(why) => Err(NotReady::Blocked { why: why.escape_debug().to_string() }),
    }
}

/// Why the answer does not mean ready.
fn judge(answer: &str) -> Option<String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return None;
    }
    let blockers: Vec<Blocker> = match serde_json::from_str(body) {
        Ok(blockers) => blockers,
        Err(_not_a_list) => return Some(format!("its answer is {status:?}")),
    };
    let others = blockers.iter().filter(|blocker| blocker.name != WAITS_FOR_RULES);
    let why: Vec<String> = others
        .map(|blocker| match &blocker.error {
            Some(error) => format!("{}: {error}", blocker.name),
            None => blocker.name.clone(),
        })
        .collect();
    match (blockers.is_empty(), why.is_empty()) {
        (true, _) => Some(format!("its answer is {status:?}")),
        (false, true) => None,
        (false, false) => Some(why.join("; ")),
    }
}

fn get(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let request = format!("GET /healthz/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a peer, not a door")]
    fn it_waits_as_long_as_it_may() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = thread::spawn(move || {
            for status in ["503 Service Unavailable", "503 Service Unavailable", "200 OK", "200 OK"] {
                let (mut stream, _) = listener.accept().expect("a question");
                let mut question = [0; 256];
                let _ = stream.read(&mut question).expect("a question");
                stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n[]").as_bytes()).expect("a reader");
            }
        });
        // Not asked at all.
        wait(address, Duration::ZERO);
        // The first good answer ends it.
        wait(address, Duration::from_secs(600));
        ask(address).expect("ready");
        server.join().expect("all asked");
        // Nobody listens any more: the limit ends it.
        wait(address, PAUSE);
        assert!(matches!(ask(address), Err(NotReady::Unreachable { .. })));
    }

    #[test]
    fn only_200_is_ready_or_what_the_rules_will_clear() {
        let rules = r#"{"name":"preserveSource","since":"now","error":"no answer"}"#;
        let mesh = r#"{"name":"mesh","since":"now","error":"no such file"}"#;
        let start = r#"{"name":"start","since":"now"}"#;
        for (status, body, why) in [
            ("200 OK", "ready\n".to_owned(), None),
            ("503 Service Unavailable", format!("[{rules}]"), None),
            ("503 Service Unavailable", format!("[{mesh},{rules}]"), Some("mesh: no such file")),
            ("503 Service Unavailable", format!("[{mesh},{start}]"), Some("mesh: no such file; start")),
            ("503 Service Unavailable", "[]".to_owned(), Some("its answer is \"HTTP/1.1 503 Service Unavailable\"")),
            ("404 Not Found", "nothing".to_owned(), Some("its answer is \"HTTP/1.1 404 Not Found\"")),
        ] {
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            assert_eq!(judge(&answer).as_deref(), why, "{answer}");
        }
        assert!(judge("").is_some());
        assert!(judge("SSH-2.0-OpenSSH\r\n").is_some());
    }
}
