//! `openssl s_client` as a peer that knows TLS and nothing of adit.
//!
//! In TLS 1.3 a client is done before the server has looked at its certificate, so that the handshake ended says nothing. This
//! one speaks on: accepted means that the server has acknowledged our HTTP/2 SETTINGS, which it reads only after it has
//! taken the certificate. Refused means that OpenSSL ended by itself before that.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::kit::{Host, LIMIT, until};
use crate::pki::Leaf;

/// The preface, and SETTINGS without a setting.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// SETTINGS with the ACK flag.
const ACK: &[u8] = b"\x00\x00\x00\x04\x01\x00\x00\x00\x00";

/// What to say to a server.
#[derive(Debug, Clone, Default)]
pub(crate) struct SClient {
    arguments: Vec<String>,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) accepted: bool,
    /// OpenSSL's exit code where it ended by itself.
    pub(crate) code: Option<i32>,
    /// All that it said, and what the server said, as far as it is text.
    pub(crate) said: String,
}

impl SClient {
    /// TLS 1.3, ALPN h2, no certificate, any server.
    pub(crate) fn new() -> Self {
        Self::default().with(&["-tls1_3"]).with(&["-alpn", "h2"])
    }

    /// With nothing but what [`Self::with`] adds.
    pub(crate) fn bare() -> Self {
        Self::default()
    }

    /// More options of `s_client`.
    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// With this certificate; the server must have one that its root signed.
    pub(crate) fn leaf(self, leaf: &Leaf) -> Self {
        let path = |path: &std::path::Path| path.display().to_string();
        let (cert, key, roots) = (path(&leaf.cert), path(&leaf.key), path(&leaf.roots));
        self.with(&["-cert", &cert, "-key", &key, "-CAfile", &roots, "-verify_return_error"])
    }

    /// Connects from `host`, and waits until the server has accepted or OpenSSL has given up.
    pub(crate) fn run(&self, host: &Host, to: SocketAddr) -> Handshake {
        let mut command = host.command("openssl");
        // Without -ign_eof some first letters of a line would be commands.
        command.args(["s_client", "-ign_eof", "-connect", &to.to_string()]).args(&self.arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let said = Arc::new(Mutex::new(Vec::new()));
        let readers =
            [collect(&said, child.stdout.take().expect("piped")), collect(&said, child.stderr.take().expect("piped"))];
        let mut stdin = child.stdin.take().expect("piped");
        // It may have ended already; then that is what we are going to see.
        let _ = stdin.write_all(HELLO);
        let heard = || said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let code = until(LIMIT, "openssl s_client to be accepted or refused", || {
            let ended = child.try_wait().expect("our child");
            let accepted = heard().windows(ACK.len()).any(|window| window == ACK);
            if accepted { Some(None) } else { ended.map(|status| Some(status.code())) }
        });
        // Fails if it has ended, which is fine.
        let _ = child.kill();
        let _ = child.wait();
        for reader in readers {
            reader.join().expect("a reader does not panic");
        }
        // It may have ended between the two questions.
        let bytes = heard();
        let accepted = bytes.windows(ACK.len()).any(|window| window == ACK);
        Handshake { accepted, code: code.flatten(), said: String::from_utf8_lossy(&bytes).into_owned() }
    }
}

impl Handshake {
    /// Panics unless the server took us; returns what was negotiated.
    pub(crate) fn accepted(self) -> Self {
        assert!(self.accepted, "refused, code {:?}:\n{}", self.code, self.said);
        self
    }

    /// Panics unless the server refused us by a TLS alert; returns the alert's number (RFC 8446, 6.2).
    pub(crate) fn alert(&self) -> u8 {
        assert!(!self.accepted, "accepted:\n{}", self.said);
        let number = self.said.split("SSL alert number ").nth(1);
        let digits = number.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
        let alert = digits.and_then(|digits| digits.parse().ok());
        alert.unwrap_or_else(|| panic!("no alert, code {:?}:\n{}", self.code, self.said))
    }

    /// Whether it says this, such as `Cipher is TLS_AES_128_GCM_SHA256`, `ALPN protocol: h2`, `Server Temp Key: X25519`.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.said.contains(text)
    }
}

fn collect(said: &Arc<Mutex<Vec<u8>>>, mut from: impl Read + Send + 'static) -> thread::JoinHandle<()> {
    let sink = Arc::clone(said);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
        }
    })
}
