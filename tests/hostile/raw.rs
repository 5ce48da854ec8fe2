//! A client of tunnels that writes HTTP/2 frames itself, over a TLS handshake that is in order: it can break every rule there is.
//!
//! One thread, one [`Peer`]. Nothing in it blocks for longer than [`PATIENCE`]: a write that finds no room reads what has come
//! and goes on, unless the peer [`Peer::reads_never`]. Header blocks are literals without a table, so that any of them can be made.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned};

use crate::kit::door::Dial;
use crate::kit::{Host, LIMIT};
use crate::pki::Leaf;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long one read or write may take before the caller looks at the time.
const PATIENCE: Duration = Duration::from_millis(50);
/// The window that HTTP/2 begins with.
const FIRST_WINDOW: usize = 65_535;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The code of a RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }
}

/// What came, or did not.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Frame(Frame),
    /// Nothing within the limit.
    Nothing,
    /// The connection is over.
    Over,
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header field as a literal that no table keeps.
pub(crate) fn literal(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name.as_bytes(), value] {
        integer(&mut bytes, text.len());
        bytes.extend(text);
    }
    bytes
}

/// A length with a prefix of 7 bits, not Huffman coded.
fn integer(bytes: &mut Vec<u8>, mut value: usize) {
    let byte = |value: usize| u8::try_from(value).expect("masked");
    if value < 127 {
        return bytes.push(byte(value));
    }
    bytes.push(127);
    value -= 127;
    while value >= 128 {
        bytes.push(byte(value % 128 + 128));
        value /= 128;
    }
    bytes.push(byte(value));
}

pub(crate) fn connect_request(authority: &[u8]) -> Vec<u8> {
    [literal(":method", b"CONNECT"), literal(":authority", authority)].concat()
}

pub(crate) struct Peer {
    tls: StreamOwned<ClientConnection, TcpStream>,
    unparsed: Vec<u8>,
    next_stream: u32,
    reads: bool,
    over: bool,
}

impl Peer {
    /// With preface, SETTINGS and the server's SETTINGS acknowledged.
    pub(crate) fn connect(host: &Host, to: SocketAddr, leaf: &Leaf) -> Self {
        let mut peer = Self::handshaken(host, to, leaf).expect("a handshake");
        peer.write(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
        let first = peer.expect(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0);
        assert_eq!(first.stream, 0);
        peer
    }

    /// TLS only.
    pub(crate) fn handshaken(host: &Host, to: SocketAddr, leaf: &Leaf) -> std::io::Result<Self> {
        Self::over(Dial::default().connect(host, to)?, &config(leaf))
    }

    pub(crate) fn over(mut socket: TcpStream, config: &Arc<ClientConfig>) -> std::io::Result<Self> {
        let name = ServerName::try_from("nobody.invalid").expect("a name");
        let mut client = ClientConnection::new(Arc::clone(config), name).expect("a configuration");
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.set_write_timeout(Some(LIMIT))?;
        while client.is_handshaking() {
            client.complete_io(&mut socket)?;
        }
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let tls = StreamOwned::new(client, socket);
        Ok(Self { tls, unparsed: Vec::new(), next_stream: 1, reads: true, over: false })
    }

    /// From here on nothing is read, and what finds no room is given up.
    pub(crate) fn reads_never(&mut self) {
        self.reads = false;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.tls.sock
    }

    /// The whole of it, or the connection is over, or (of those that never read) there was no room.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> bool {
        let (mut rest, start) = (bytes, Instant::now());
        while !self.over && !rest.is_empty() {
            match self.tls.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if is_full(&error) => {
                    if !self.reads || start.elapsed() > LIMIT {
                        return false;
                    }
                    self.take_in();
                }
                Err(_gone) => self.over = true,
            }
        }
        while !self.over {
            match self.tls.flush() {
                Ok(()) => break,
                Err(error) if is_full(&error) => {
                    if !self.reads || start.elapsed() > LIMIT {
                        return false;
                    }
                    self.take_in();
                }
                Err(_gone) => self.over = true,
            }
        }
        !self.over
    }

    pub(crate) fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.write(&frame(kind, flags, stream, payload))
    }

    /// The number of the next stream of ours.
    pub(crate) fn number(&mut self) -> u32 {
        self.next_stream += 2;
        self.next_stream - 2
    }

    /// CONNECT, without waiting for the answer.
    pub(crate) fn ask(&mut self, authority: &str) -> u32 {
        let stream = self.number();
        self.send(HEADERS, END_HEADERS, stream, &connect_request(authority.as_bytes()));
        stream
    }

    /// CONNECT, with its answer of 200.
    pub(crate) fn open(&mut self, authority: &str) -> u32 {
        let stream = self.ask(authority);
        let answer = self.answer(stream);
        // 8 is `:status 200` in HPACK's static table; with or without the bit that says that it is indexed.
        assert_eq!(answer.payload.first(), Some(&0x88), "not 200: {answer:?}");
        stream
    }

    pub(crate) fn answer(&mut self, stream: u32) -> Frame {
        let answer = self.expect(|frame| frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM));
        assert_eq!(answer.kind, HEADERS, "{answer:?}");
        answer
    }

    /// Bytes there and back, to an application that echoes; the windows are given back.
    pub(crate) fn ping_pong(&mut self, stream: u32, bytes: &[u8]) {
        assert!(bytes.len() < FIRST_WINDOW);
        assert!(self.send(DATA, 0, stream, bytes), "the tunnel is over");
        let mut left = bytes.len();
        while left > 0 {
            let data = self.expect(|frame| frame.stream == stream && frame.kind != WINDOW_UPDATE);
            assert_eq!(data.kind, DATA, "{data:?}");
            left -= data.payload.len();
            let count = u32::try_from(data.payload.len()).expect("a frame").to_be_bytes();
            let update = [frame(WINDOW_UPDATE, 0, 0, &count), frame(WINDOW_UPDATE, 0, stream, &count)].concat();
            assert!(data.payload.is_empty() || self.write(&update), "the tunnel is over");
        }
    }

    /// The next frame that is `wanted`; others are skipped.
    pub(crate) fn expect(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        let start = Instant::now();
        loop {
            match self.next(LIMIT.saturating_sub(start.elapsed())) {
                Next::Frame(frame) if wanted(&frame) => return frame,
                Next::Frame(_) => {}
                other => panic!("{other:?} instead of a frame, after {:?}", start.elapsed()),
            }
        }
    }

    /// The next frame of the peer's. PINGs and SETTINGS are answered.
    pub(crate) fn next(&mut self, limit: Duration) -> Next {
        let start = Instant::now();
        loop {
            if let Some(frame) = self.parsed() {
                if matches!(frame.kind, PING | SETTINGS) && frame.flags & ACK == 0 {
                    let payload = if frame.kind == PING { &frame.payload[..] } else { &[] };
                    self.send(frame.kind, ACK, 0, payload);
                }
                return Next::Frame(frame);
            }
            if self.over {
                return Next::Over;
            }
            if start.elapsed() >= limit {
                return Next::Nothing;
            }
            self.take_in();
        }
    }

    /// Reads to the end and returns the last GOAWAY's or RST_STREAM's code, if one came.
    ///
    /// # Errors
    /// There is no end.
    pub(crate) fn last_words(&mut self) -> Result<Option<(u8, u32)>, &'static str> {
        let (start, mut words) = (Instant::now(), None);
        loop {
            match self.next(LIMIT.saturating_sub(start.elapsed())) {
                Next::Frame(frame) if matches!(frame.kind, GOAWAY | RST_STREAM) => {
                    words = Some((frame.kind, frame.code()))
                }
                Next::Frame(_) => {}
                Next::Over => return Ok(words),
                Next::Nothing => return Err("the tunnel goes on"),
            }
        }
    }

    /// Whatever has come by now is read and forgotten.
    pub(crate) fn discard(&mut self) {
        while matches!(self.now(), Next::Frame(_)) {}
    }

    /// The next frame, if it has come.
    pub(crate) fn now(&mut self) -> Next {
        if self.unparsed.len() < 9 && !self.over {
            self.tls.sock.set_nonblocking(true).expect("O_NONBLOCK");
            self.take_in();
            self.tls.sock.set_nonblocking(false).expect("O_NONBLOCK");
        }
        self.next(Duration::ZERO)
    }

    /// One read, or none within [`PATIENCE`].
    fn take_in(&mut self) {
        let mut buffer = [0; 16 * 1024];
        match self.tls.read(&mut buffer) {
            Ok(0) => self.over = true,
            Ok(count) => self.unparsed.extend(&buffer[..count]),
            Err(error) if is_full(&error) => {}
            Err(_gone) => self.over = true,
        }
    }

    fn parsed(&mut self) -> Option<Frame> {
        let head = self.unparsed.get(..9)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        if self.unparsed.len() < 9 + length {
            return None;
        }
        let payload = self.unparsed[9..9 + length].to_vec();
        self.unparsed.drain(..9 + length);
        Some(Frame { kind, flags, stream, payload })
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Presents `leaf`, speaks h2, takes whoever answers.
pub(crate) fn config(leaf: &Leaf) -> Arc<ClientConfig> {
    let chain = CertificateDer::pem_file_iter(&leaf.cert).expect("a certificate").map(|it| it.expect("PEM")).collect();
    let key = PrivateKeyDer::from_pem_file(&leaf.key).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).expect("a version");
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = builder.with_client_auth_cert(chain, key).expect("a matching key");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// Who serves is not what is tested.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
