//! The far side, over real TLS: either the library's server that answers and echoes, or frames made by hand, so that it
//! can say anything at any time.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};

use crate::hbone::io;
use crate::identity::TlsGeneration;
use crate::net::listen::tests::loopback_listener;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
pub(super) const REFUSED_STREAM: u32 = 7;

/// What a request is answered with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    Ok,
    /// 500, whose header is one byte.
    Error,
    Reset(u32),
    Nothing,
    /// Ends the connection.
    Close,
}

/// How far it goes at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manners {
    Good,
    /// Accepts, and no more.
    NoTls,
    NoSettings,
}

pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) manners: Cell<Manners>,
    /// `SETTINGS_MAX_CONCURRENT_STREAMS` for new connections.
    pub(super) limit: Cell<Option<u32>>,
    /// For the next requests; then it is OK.
    pub(super) answers: RefCell<VecDeque<Answer>>,
    pub(super) always: Cell<Answer>,
    pub(super) pongs: Cell<bool>,
    pub(super) links: RefCell<Vec<Rc<Link>>>,
    acceptor: RefCell<Option<AbortHandle>>,
}

/// One connection as the far side sees it.
pub(super) struct Link {
    pub(super) streams: RefCell<BTreeSet<u32>>,
    pub(super) most: Cell<usize>,
    pub(super) total: Cell<u32>,
    pub(super) pings: Cell<u32>,
    pub(super) goaway: Cell<bool>,
    /// Whether it ended as it should: close_notify, then FIN.
    pub(super) end: Cell<Option<bool>>,
    say: mpsc::Sender<Vec<u8>>,
}

impl Link {
    /// Sends SETTINGS with another limit.
    pub(super) fn limit(&self, streams: u32) {
        self.say.try_send(settings(Some(streams))).expect("room");
    }

    /// Says goodbye; streams above `last` are not taken any more.
    pub(super) fn say_goodbye(&self, last: u32) {
        let payload = [&last.to_be_bytes()[..], &[0; 4]].concat();
        self.say.try_send(frame(GOAWAY, 0, 0, &payload)).expect("room");
    }

    /// Breaks a rule of HTTP/2: bytes of a stream that cannot be.
    pub(super) fn say_nonsense(&self) {
        self.say.try_send(frame(DATA, 0, 0, &[0])).expect("room");
    }

    /// Resets a stream.
    pub(super) fn reset(&self, stream: u32) {
        self.say.try_send(frame(RESET, 0, stream, &8_u32.to_be_bytes())).expect("room");
    }

    /// Ends the connection.
    pub(super) fn close(&self) {
        self.say.try_send(Vec::new()).expect("room");
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn settings(limit: Option<u32>) -> Vec<u8> {
    let payload = limit.map(|limit| [&3_u16.to_be_bytes()[..], &limit.to_be_bytes()].concat()).unwrap_or_default();
    frame(SETTINGS, 0, 0, &payload)
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = loopback_listener();
    listener.set_nonblocking(true).expect("nonblocking");
    let listener = TcpListener::from_std(listener).expect("listener");
    let address = listener.local_addr().expect("address");
    (listener, address)
}

impl Peer {
    pub(super) fn start(tls: &Arc<TlsGeneration>) -> Rc<Self> {
        let (listener, address) = listen();
        let peer = Rc::new(Self {
            address,
            manners: Cell::new(Manners::Good),
            limit: Cell::new(None),
            answers: RefCell::default(),
            always: Cell::new(Answer::Ok),
            pongs: Cell::new(true),
            links: RefCell::default(),
            acceptor: RefCell::default(),
        });
        let (acceptor, tls) = (Rc::clone(&peer), Arc::clone(tls));
        let task = spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (say, said) = mpsc::channel(100);
                let link = Rc::new(Link {
                    streams: RefCell::default(),
                    most: Cell::new(0),
                    total: Cell::new(0),
                    pings: Cell::new(0),
                    goaway: Cell::new(false),
                    end: Cell::new(None),
                    say,
                });
                acceptor.links.borrow_mut().push(Rc::clone(&link));
                let (peer, tls) = (Rc::clone(&acceptor), Arc::clone(&tls));
                spawn_local(async move { Box::pin(peer.serve(socket, &tls, &link, said)).await });
            }
        });
        *peer.acceptor.borrow_mut() = Some(task.abort_handle());
        peer
    }

    /// Connections that were ever made.
    pub(super) fn connections(&self) -> usize {
        self.links.borrow().len()
    }

    pub(super) fn link(&self, index: usize) -> Rc<Link> {
        Rc::clone(&self.links.borrow()[index])
    }

    /// Connections that have not ended.
    pub(super) fn open(&self) -> usize {
        self.links.borrow().iter().filter(|link| link.end.get().is_none()).count()
    }

    pub(super) fn streams(&self) -> usize {
        self.links.borrow().iter().map(|link| link.streams.borrow().len()).sum()
    }

    /// The port is closed; connections live on.
    pub(super) async fn stop_listening(&self) {
        if let Some(acceptor) = self.acceptor.borrow_mut().take() {
            acceptor.abort();
        }
        tokio::task::yield_now().await;
    }

    async fn serve(
        &self,
        mut socket: TcpStream,
        tls: &Arc<TlsGeneration>,
        link: &Link,
        mut said: mpsc::Receiver<Vec<u8>>,
    ) {
        if self.manners.get() == Manners::NoTls {
            let mut byte = [0; 1024];
            while socket.read(&mut byte).await.is_ok_and(|read| read > 0) {}
            link.end.set(Some(false));
            return;
        }
        let Ok(shaken) = Box::pin(io::accept(socket, tls)).await else {
            link.end.set(Some(false));
            return;
        };
        let mut stream = shaken.stream;
        let mut bytes = BytesMut::new();
        if self.manners.get() == Manners::Good {
            stream.write_all(&settings(self.limit.get())).await.expect("settings");
            stream.flush().await.expect("flush");
        }
        let ended = loop {
            tokio::select! {
                biased;
                read = stream.read_buf(&mut bytes) => match read {
                    Ok(0) => break true,
                    Ok(_) => {}
                    Err(_) => break false,
                },
                Some(say) = said.recv() => {
                    if say.is_empty() || stream.write_all(&say).await.is_err() {
                        break false;
                    }
                    let _ = stream.flush().await;
                }
            }
            let Some(answer) = self.react(link, &mut bytes) else { break false };
            if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
                break false;
            }
        };
        link.streams.borrow_mut().clear();
        link.end.set(Some(ended));
        let _ = stream.shutdown().await;
        // Closed with something unread it would be a reset.
        bytes.clear();
        while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
            bytes.clear();
        }
    }

    /// Takes whole frames and answers them; nothing: the connection ends.
    fn react(&self, link: &Link, bytes: &mut BytesMut) -> Option<Vec<u8>> {
        if link.total.get() == 0 && bytes.starts_with(PREFACE) {
            bytes.advance(PREFACE.len());
        }
        let mut out = Vec::new();
        while bytes.len() >= 9 && !PREFACE.starts_with(&bytes[..9]) {
            let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
            if bytes.len() < 9 + length {
                break;
            }
            let frame = bytes.split_to(9 + length);
            let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]);
            self.react_to(link, (frame[3], frame[4], stream), &frame[9..], &mut out)?;
        }
        Some(out)
    }

    fn react_to(&self, link: &Link, head: (u8, u8, u32), payload: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let (kind, flags, stream) = head;
        let done = |out: &mut Vec<u8>| {
            out.extend(frame(DATA, END_STREAM, stream, &[]));
            link.streams.borrow_mut().remove(&stream);
        };
        match kind {
            HEADERS if self.manners.get() == Manners::NoSettings => {}
            HEADERS => {
                link.total.set(link.total.get() + 1);
                link.streams.borrow_mut().insert(stream);
                link.most.set(link.most.get().max(link.streams.borrow().len()));
                match self.answers.borrow_mut().pop_front().unwrap_or(self.always.get()) {
                    // Indices of the static table of HPACK: 200 and 500.
                    Answer::Ok => out.extend(frame(HEADERS, END_HEADERS, stream, &[0x88])),
                    Answer::Error => out.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x8e])),
                    Answer::Reset(code) => {
                        out.extend(frame(RESET, 0, stream, &code.to_be_bytes()));
                        link.streams.borrow_mut().remove(&stream);
                    }
                    Answer::Nothing => {}
                    Answer::Close => return None,
                }
            }
            DATA if flags & END_STREAM != 0 => done(out),
            RESET => drop(link.streams.borrow_mut().remove(&stream)),
            SETTINGS if flags & ACK == 0 && self.manners.get() == Manners::Good => {
                out.extend(frame(SETTINGS, ACK, 0, &[]));
            }
            PING if flags & ACK == 0 => {
                link.pings.set(link.pings.get() + 1);
                if self.pongs.get() {
                    out.extend(frame(PING, ACK, 0, payload));
                }
            }
            GOAWAY => link.goaway.set(true),
            _ => {}
        }
        Some(())
    }
}

/// The library's server: answers 200, then sends until it is told to stop.
pub(super) fn start_flood(tls: &Arc<TlsGeneration>) -> SocketAddr {
    let (listener, address) = listen();
    let tls = Arc::clone(tls);
    spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let tls = Arc::clone(&tls);
            spawn_local(async move {
                let shaken = Box::pin(io::accept(socket, &tls)).await.expect("handshake");
                let mut builder = h2::server::Builder::new();
                builder.max_pending_accept_reset_streams(10_000);
                let mut connection = Box::pin(builder.handshake::<_, Bytes>(shaken.stream)).await.expect("preface");
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let Ok(mut send) = respond.send_response(http::Response::new(()), false) else { continue };
                    spawn_local(async move {
                        loop {
                            send.reserve_capacity(16 << 10);
                            let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
                            let Some(Ok(room)) = room else { return };
                            if send.send_data(Bytes::from(vec![7; room]), false).is_err() {
                                return;
                            }
                        }
                    });
                }
            });
        }
    });
    address
}
