//! `adit demo`: its folder, the user's application and the words on the screen. The daemon itself is the same as in `adit run`.
//!
//! The application is a small echo service: it answers an HTTP request with what it received, and echoes anything else
//! byte by byte.

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::app::doors::Doors;
use crate::config::demo::{ECHO_PORT, MESH};
use crate::lifecycle::{Lifecycle, Phase, Readiness};
use crate::net::listen::{ListenOptions, bind};
use crate::telemetry::Door;

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), ECHO_PORT);
const SERVICE: &str = "echo.demo.svc.cluster.local";
/// The echo service is for trying things out; one forgotten connection need not live for ever.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// Connections at once.
const CONNECTIONS: usize = 256;
const HEADER_BYTES: usize = 8192;
/// Between two looks at what keeps it from being ready.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Names to try for the folder.
const FOLDERS: u32 = 100;

/// Holds the demo's mesh file while the demo runs.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// # Errors
    /// The folder or the file cannot be made.
    pub(super) fn make() -> std::io::Result<Self> {
        let mut attempt = 0;
        let folder = loop {
            let name = format!("adit-demo-{}-{attempt}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => break Self(path),
                // Left behind by one that was killed: in a container every demo may have the same process id.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && attempt < FOLDERS => attempt += 1,
                Err(error) => return Err(error),
            }
        };
        std::fs::write(folder.0.join("mesh.yaml"), MESH)?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Best effort: it lies in the temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts the echo service on the control thread.
///
/// # Errors
/// Its port is taken.
pub(super) fn start(lifecycle: Lifecycle) -> Result<()> {
    let listener = bind("demo", ADDRESS, ListenOptions::PLAIN).context("the demo's echo service")?.remove(0);
    let listener = TcpListener::from_std(listener).context("the demo's echo service")?;
    tokio::task::spawn_local(async move {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                () = lifecycle.reached(Phase::Stopped) => return,
                Some(_) = tasks.join_next() => {}
                accepted = listener.accept(), if tasks.len() < CONNECTIONS => {
                    if let Ok((stream, _)) = accepted {
                        tasks.spawn_local(timeout(FORGET_AFTER, echo(stream)));
                    }
                }
            }
        }
    });
    Ok(())
}

/// Returns once nothing keeps the process from being ready; the log says what does.
pub(super) async fn ready(lifecycle: &Lifecycle, readiness: &Readiness) {
    lifecycle.reached(Phase::Ready).await;
    while !readiness.is_ready() {
        sleep(LOOK_AGAIN).await;
    }
}

/// Prints what a person can paste, and where the `mesh` is that may be edited.
pub(super) fn greet(doors: &Doors, mesh: &[PathBuf]) -> std::io::Result<()> {
    let at = |name: &str| {
        let address = doors.http_addresses.iter().find(|(known, _)| *known == name);
        address.map_or_else(|| "off".to_owned(), |(_, address)| address.clone())
    };
    let socks5 = doors.addresses.iter().find(|(door, _)| *door == Door::Socks5);
    let socks5 = socks5.map_or_else(|| "off".to_owned(), |(_, address)| address.to_string());
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "adit is ready. Try:\n\n  \
         curl --proxy socks5h://{socks5} http://{SERVICE}/hello\n  \
         curl http://{metrics}/metrics\n  \
         curl http://{admin}/connections\n",
        metrics = at("metrics"),
        admin = at("admin"),
    )?;
    writeln!(
        out,
        "The first goes through a tunnel: SOCKS5 -> mutual TLS to 127.0.0.1:15008 -> the echo service, and adit is both\n\
         ends of it. The access log has a line for each end, with the verified identities; `adit certs` shows them too.\n\
         The certificates are of a development authority made for this run, not for production.\n"
    )?;
    for file in mesh {
        writeln!(
            out,
            "Edit {}: a change applies at once.\nTry `protocol: TCP` there: the next connection goes in the clear.",
            file.display()
        )?;
    }
    writeln!(out, "Stop it with ctrl-C.\n")?;
    out.flush()
}

/// Answers HTTP requests one by one, or echoes whatever else comes.
async fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; HEADER_BYTES];
    let mut filled = 0;
    // An error is the client's going away: the end of the conversation either way.
    while let Ok(count @ 1..) = stream.read(buffer.get_mut(filled..).unwrap_or_default()).await {
        filled += count;
        let received = buffer.get(..filled).unwrap_or_default();
        if !looks_like_http(received) {
            if stream.write_all(received).await.is_err() {
                return;
            }
            filled = 0;
        } else if received.windows(4).any(|end| end == b"\r\n\r\n") {
            let answer = http_answer(received);
            if stream.write_all(&answer).await.is_err() {
                return;
            }
            filled = 0;
        } else if filled == buffer.len() {
            return;
        }
    }
}

fn looks_like_http(received: &[u8]) -> bool {
    [&b"GET "[..], b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS "]
        .iter()
        .any(|method| received.starts_with(method) || method.starts_with(received))
}

fn http_answer(request: &[u8]) -> Vec<u8> {
    let body = [b"adit carried this to you and back:\n\n", request].concat();
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\r\n", body.len());
    if request.starts_with(b"HEAD ") { head.into_bytes() } else { [head.into_bytes(), body].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_told_from_anything_else() {
        for (received, want) in [("GET / HTTP/1.1", true), ("G", true), ("GETX", false), ("hello", false)] {
            assert_eq!(looks_like_http(received.as_bytes()), want, "{received}");
        }
    }

    #[test]
    fn an_answer_carries_the_request_and_its_length() {
        let answer = String::from_utf8(http_answer(b"GET /x HTTP/1.1\r\n\r\n")).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(body.contains("GET /x"));
        assert!(head.contains(&format!("content-length: {}", body.len())));
    }
}
