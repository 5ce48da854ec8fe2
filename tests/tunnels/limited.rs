//! A server of tunnels that lowers its limit of streams to 1 when it is told to: HTTP/2 frames by hand, since no library does that.
//!
//! Each stream is answered 200, and what it brings is sent back. A frame of DATA that says [`LOWER`] makes the server announce the new
//! limit, in this tunnel and as the first thing in each new one. Streams beyond it are counted, from the client's
//! acknowledgement on. Threads, as in `support/serve.rs`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::envoy_config::HBONE;
use crate::kit::Host;
use crate::pki::Leaf;
use crate::serve::serve;

pub(crate) const LOWER: &[u8] = b"lower";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` in HPACK's static table.
const OK: &[u8] = &[0x88];

/// What the server has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    lowered: AtomicBool,
    /// Tunnels that have acknowledged the limit.
    pub(crate) acknowledged: AtomicUsize,
    pub(crate) tunnels: AtomicUsize,
    /// Streams that were opened although the limit forbade it.
    pub(crate) beyond: AtomicUsize,
}

/// Serves on 15008 of `host`, with this certificate; it asks for none.
pub(crate) fn limited(host: &Host, leaf: &Leaf) -> Arc<Seen> {
    let config = Arc::new(tls(leaf));
    let seen = Arc::new(Seen::default());
    let shared = Arc::clone(&seen);
    serve(host, HBONE, move |stream| {
        let session = ServerConnection::new(Arc::clone(&config)).expect("a session");
        shared.tunnels.fetch_add(1, Ordering::SeqCst);
        // It ends when the client goes away.
        let _ = tunnel(StreamOwned::new(session, stream), &shared);
    });
    seen
}

fn tls(leaf: &Leaf) -> ServerConfig {
    let chain = CertificateDer::pem_file_iter(&leaf.cert).expect("a certificate").map(|cert| cert.expect("PEM"));
    let key = PrivateKeyDer::from_pem_file(&leaf.key).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let mut config = builder.with_no_client_auth().with_single_cert(chain.collect(), key).expect("a matching key");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

type Wire = StreamOwned<ServerConnection, TcpStream>;

/// One tunnel: what it has open, and since when it is limited.
fn tunnel(mut wire: Wire, seen: &Seen) -> std::io::Result<()> {
    let mut preface = [0; 24];
    wire.read_exact(&mut preface)?;
    let mut open = Vec::new();
    let mut announced = seen.lowered.load(Ordering::SeqCst);
    let (mut acknowledgements, mut limited) = (0, false);
    settings(&mut wire, if announced { 1 } else { 100 })?;
    loop {
        let (kind, flags, stream, payload) = frame(&mut wire)?;
        match kind {
            SETTINGS if flags & ACK != 0 => {
                acknowledgements += 1;
                if announced && !limited && (acknowledgements == 2 || open.is_empty()) {
                    limited = true;
                    seen.acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            }
            SETTINGS => say(&mut wire, SETTINGS, ACK, 0, &[])?,
            PING if flags & ACK == 0 => say(&mut wire, PING, ACK, 0, &payload)?,
            HEADERS => {
                if limited && !open.is_empty() {
                    seen.beyond.fetch_add(1, Ordering::SeqCst);
                }
                open.push(stream);
                say(&mut wire, HEADERS, END_HEADERS, stream, OK)?;
            }
            DATA if flags & END_STREAM != 0 => {
                say(&mut wire, DATA, END_STREAM, stream, &payload)?;
                open.retain(|known| *known != stream);
            }
            DATA => {
                if payload == LOWER {
                    seen.lowered.store(true, Ordering::SeqCst);
                    announced = true;
                    settings(&mut wire, 1)?;
                }
                say(&mut wire, DATA, 0, stream, &payload)?;
            }
            RST_STREAM => open.retain(|known| *known != stream),
            GOAWAY => return Ok(()),
            _ => {}
        }
    }
}

/// MAX_CONCURRENT_STREAMS.
fn settings(wire: &mut Wire, streams: u8) -> std::io::Result<()> {
    say(wire, SETTINGS, 0, 0, &[0, 3, 0, 0, 0, streams])
}

fn say(wire: &mut Wire, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    wire.write_all(&frame)
}

fn frame(wire: &mut Wire) -> std::io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    wire.read_exact(&mut head)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let mut payload = vec![0; length as usize];
    wire.read_exact(&mut payload)?;
    Ok((head[3], head[4], stream, payload))
}
