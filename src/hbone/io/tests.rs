//! The other side is another stack (tokio-rustls) wherever it can be.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use rustls::{AlertDescription, ClientConfig, ContentType};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::hbone::stream::CHUNK_BYTES;
use crate::identity::authority::Authority;
use crate::identity::certificate::CertificateFacts;
use crate::identity::credentials::{Credentials, TrustBundle};
use crate::identity::crl::RevocationSet;
use crate::identity::spiffe::SpiffeId;
use crate::identity::tls::{Clock, system_clock};
use crate::net::buffers;
use crate::net::sockopt::tcp_info;

mod after;
mod ciphers;
mod refused;

const LIMIT: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn in_time<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(LIMIT, test).await.expect("in time") })
}

fn id(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{name}").parse().unwrap()
}

fn root() -> Authority {
    named_root("a")
}

fn named_root(name: &str) -> Authority {
    Authority::new_root(name, SystemTime::now(), DAY * 365).unwrap().0
}

/// Credentials of `id`, signed and trusted by `root`, that obey the revocation lists.
fn generation_of(root: &Authority, id: &SpiffeId, crls: &[&str], clock: &Clock) -> Arc<TlsGeneration> {
    let accepted = [id.trust_domain().clone()].into();
    Arc::new(TlsGeneration::new(1, credentials(root, id, crls), accepted, clock).unwrap())
}

fn credentials(root: &Authority, id: &SpiffeId, crls: &[&str]) -> Arc<Credentials> {
    let issued = root.issue(id, SystemTime::now(), DAY).unwrap();
    let crls = crls.iter().map(|pem| (std::path::Path::new("crl.pem"), pem.as_bytes()));
    let bundle = TrustBundle::new([root.certificate()], Arc::new(RevocationSet::read(crls).unwrap())).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    Arc::new(Credentials::new(vec![issued.certificate], &key, Arc::new(bundle), id, SystemTime::now()).unwrap())
}

fn generation(root: &Authority, name: &str) -> Arc<TlsGeneration> {
    generation_of(root, &id(name), &[], &system_clock())
}

/// "web" connects, "db" accepts.
fn web_and_db() -> (Arc<TlsGeneration>, Arc<TlsGeneration>) {
    let root = root();
    (generation(&root, "web"), generation(&root, "db"))
}

fn wants(tls: &TlsGeneration, name: &str) -> Arc<ClientConfig> {
    tls.client([id(name)].into())
}

/// Two ends of a connection, the connecting one first.
async fn sockets_with(prepare: impl Fn(SockRef<'_>)) -> (TcpStream, TcpStream) {
    let listening = TcpSocket::new_v4().unwrap();
    prepare(SockRef::from(&listening));
    listening.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let listener = listening.listen(1).unwrap();
    let connecting = TcpSocket::new_v4().unwrap();
    prepare(SockRef::from(&connecting));
    let address = listener.local_addr().unwrap();
    let (connected, accepted) = tokio::join!(connecting.connect(address), listener.accept());
    (connected.unwrap(), accepted.unwrap().0)
}

async fn sockets() -> (TcpStream, TcpStream) {
    sockets_with(|_| ()).await
}

/// Ours on both sides, the connecting one first.
async fn ours() -> (Handshaken, Handshaken) {
    let (web, db) = web_and_db();
    let (a, b) = sockets().await;
    let (client, server) = tokio::join!(connect(a, &web, wants(&web, "db")), accept(b, &db));
    (client.unwrap(), server.unwrap())
}

type Foreign = tokio_rustls::TlsStream<TcpStream>;

/// Ours and a foreign one; `connects`: ours is the one that connects.
async fn with_foreign(connects: bool, (a, b): (TcpStream, TcpStream)) -> (Handshaken, Foreign) {
    let (web, db) = web_and_db();
    if connects {
        let acceptor = TlsAcceptor::from(Arc::clone(db.server()));
        let (ours, theirs) = tokio::join!(connect(a, &web, wants(&web, "db")), acceptor.accept(b));
        (ours.unwrap(), theirs.unwrap().into())
    } else {
        let connector = TlsConnector::from(wants(&web, "db"));
        let (theirs, ours) = tokio::join!(connector.connect(no_name(), a), accept(b, &db));
        (ours.unwrap(), theirs.unwrap().into())
    }
}

/// One record.
fn sealed(keys: &mut Keys, typ: ContentType, pieces: &[&[u8]]) -> Vec<u8> {
    let mut record = vec![0; pieces.concat().len() + records::MAX_SEALED];
    let len = keys.seal(typ, pieces, &mut record).unwrap();
    record.truncate(len);
    record
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

/// Writes all of it in pieces of random sizes, some through several slices, with a flush now and then.
async fn pour(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8], seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rest = bytes;
    while !rest.is_empty() {
        let most = [7, 300, 20_000, 200_000][random.usize(..4)];
        let piece = &rest[..random.usize(1..=most).min(rest.len())];
        let (one, more) = piece.split_at(random.usize(..=piece.len()));
        let (two, three) = more.split_at(random.usize(..=more.len()));
        let slices = [IoSlice::new(one), IoSlice::new(&[]), IoSlice::new(two), IoSlice::new(three)];
        let written = poll_fn(|cx| Pin::new(&mut *stream).poll_write_vectored(cx, &slices)).await.unwrap();
        assert!((1..=piece.len()).contains(&written));
        rest = &rest[written..];
        if random.u8(..4) == 0 {
            stream.flush().await.unwrap();
        }
    }
    stream.shutdown().await.unwrap();
}

/// Reads to the end, in pieces of random sizes.
async fn drink(stream: &mut (impl AsyncRead + Unpin), seed: u64) -> io::Result<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut all = Vec::new();
    let mut piece = vec![0; 100_000];
    loop {
        let most = [1, 300, 20_000, 100_000][random.usize(..4)];
        match stream.read(&mut piece[..random.usize(1..=most)]).await? {
            0 => return Ok(all),
            read => all.extend_from_slice(&piece[..read]),
        }
    }
}

/// Both directions at once; nothing is lost, changed or put out of order.
async fn exchange<A, B>(a: A, b: B, len: usize, seed: u64)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (there, back) = (pattern(len, seed), pattern(len, seed + 1));
    let (mut a_read, mut a_write) = tokio::io::split(a);
    let (mut b_read, mut b_write) = tokio::io::split(b);
    let ((), (), at_b, at_a) = tokio::join!(
        pour(&mut a_write, &there, seed + 2),
        pour(&mut b_write, &back, seed + 3),
        drink(&mut b_read, seed + 4),
        drink(&mut a_read, seed + 5),
    );
    assert!(at_b.unwrap() == there && at_a.unwrap() == back);
}

#[test]
fn both_roles_get_on_with_a_foreign_stack() {
    in_time(async {
        for connects in [true, false] {
            let (ours, theirs) = with_foreign(connects, sockets().await).await;
            assert_eq!(ours.peer.id, id(if connects { "db" } else { "web" }));
            assert_eq!(CertificateFacts::of(&ours.chain[0]).unwrap().spiffe_id().unwrap(), ours.peer.id);
            assert!(ours.agreed_protocol);
            assert_eq!(ours.key_exchange, Some(NamedGroup::X25519MLKEM768));
            let state = theirs.get_ref().1;
            assert_eq!(state.negotiated_cipher_suite().unwrap().suite(), ours.cipher);
            assert_eq!(state.handshake_kind(), Some(rustls::HandshakeKind::Full));
            exchange(ours.stream, theirs, 3_000_000, 10).await;
            assert_eq!(buffers::lent(), 0);
        }
    });
}

#[test]
fn bytes_are_conserved_through_small_socket_buffers() {
    in_time(async {
        let small = |socket: SockRef<'_>| {
            socket.set_send_buffer_size(4096).unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
        };
        for connects in [true, false] {
            let (ours, theirs) = with_foreign(connects, sockets_with(small).await).await;
            exchange(ours.stream, theirs, 200_000, 20).await;
        }
    });
}

/// Between the two, bytes pass one at a time.
#[test]
fn one_byte_at_a_time_is_enough() {
    async fn drip(from: TcpStream, to: TcpStream) {
        let (mut from_read, mut from_write) = from.into_split();
        let (mut to_read, mut to_write) = to.into_split();
        let one_way = async |read: &mut tokio::net::tcp::OwnedReadHalf, write: &mut tokio::net::tcp::OwnedWriteHalf| {
            while let Ok(byte) = read.read_u8().await {
                write.write_u8(byte).await.unwrap();
            }
            write.shutdown().await.unwrap();
        };
        tokio::join!(one_way(&mut from_read, &mut to_write), one_way(&mut to_read, &mut from_write));
    }
    in_time(async {
        for connects in [true, false] {
            let nodelay = |socket: SockRef<'_>| socket.set_tcp_nodelay(true).unwrap();
            let (a, from) = sockets_with(nodelay).await;
            let (to, b) = sockets_with(nodelay).await;
            let dripping = spawn_local(drip(from, to));
            let (ours, theirs) = with_foreign(connects, (a, b)).await;
            exchange(ours.stream, theirs, 8_000, 30).await;
            dripping.await.unwrap();
        }
    });
}

#[test]
fn corked_streams_send_whole_queues_and_the_rest_when_told() {
    in_time(async {
        let (ours, mut theirs) = with_foreign(true, sockets().await).await;
        let mut stream = ours.stream;
        let handle = stream.handle();
        handle.cork();
        stream.write_all(b"hello").await.unwrap();
        stream.flush().await.unwrap();
        assert!(!handle.0.borrow().outbound.queued().is_empty());
        poll_fn(|cx| handle.poll_flush(cx)).await.unwrap();
        assert!(handle.0.borrow().outbound.queued().is_empty());
        let mut said = [0; 5];
        theirs.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"hello");
        let bytes = pattern(2_000_000, 1);
        let (sent, read) = tokio::join!(
            async {
                stream.write_all(&bytes).await.unwrap();
                stream.shutdown().await
            },
            drink(&mut theirs, 2)
        );
        sent.unwrap();
        assert!(read.unwrap() == bytes);
    });
}

/// A peer that does not read: what waits here is bounded.
#[test]
fn a_slow_reader_makes_the_writer_wait() {
    in_time(async {
        let (ours, mut theirs) = with_foreign(true, sockets().await).await;
        let mut stream = ours.stream;
        let handle = stream.handle();
        let piece = pattern(300_000, 1);
        let mut written = 0;
        while let Ok(more) = timeout(Duration::from_millis(200), stream.write(&piece)).await {
            written += more.unwrap();
            assert!(handle.0.borrow().outbound.queued().len() <= QUEUE_BYTES);
        }
        assert!(written > QUEUE_BYTES);
        let unsent = tcp_info(&handle.0.borrow().socket).unwrap().notsent_bytes;
        let most = usize::try_from(UNSENT_BYTES).unwrap() + QUEUE_BYTES;
        assert!(unsent > 0 && unsent as usize <= most, "{unsent} wait in the kernel");
        let ended = async {
            stream.shutdown().await.unwrap();
        };
        let ((), read) = tokio::join!(ended, drink(&mut theirs, 1));
        assert_eq!(read.unwrap().len(), written);
    });
}

/// A frame with its header fills whole records, and those one packet: all of it goes at once, and nothing is left for another.
#[test]
fn a_full_frame_is_one_packet() {
    in_time(async {
        let (ours, _theirs) = with_foreign(true, sockets().await).await;
        let mut stream = ours.stream;
        let handle = stream.handle();
        handle.cork();
        let (header, frame) = ([0; 9], pattern(CHUNK_BYTES, 1));
        let slices = [IoSlice::new(&header), IoSlice::new(&frame)];
        let written = poll_fn(|cx| Pin::new(&mut stream).poll_write_vectored(cx, &slices)).await.unwrap();
        assert_eq!((written, handle.0.borrow().outbound.queued().len()), (header.len() + CHUNK_BYTES, 0));
    });
}

#[test]
fn an_idle_stream_holds_no_buffer() {
    in_time(async {
        let mut all = Vec::new();
        for _ in 0..20 {
            let (ours, mut theirs) = with_foreign(false, sockets().await).await;
            let mut stream = ours.stream;
            theirs.write_all(&pattern(100_000, 1)).await.unwrap();
            theirs.flush().await.unwrap();
            let mut read = vec![0; 100_000];
            stream.read_exact(&mut read).await.unwrap();
            let mut more = [0; 1];
            assert!(timeout(Duration::from_millis(1), stream.read(&mut more)).await.is_err(), "nothing comes");
            assert_eq!(buffers::lent(), 0);
            all.push((stream, theirs));
        }
        let handle = all[0].0.handle();
        assert!(handle.0.borrow().inbound.parked.is_empty());
    });
}

/// The beginning of a record is kept, in no more memory than it takes.
#[test]
fn half_a_record_holds_no_buffer() {
    in_time(async {
        let (client, server) = ours().await;
        let (client, mut server) = (client.stream.handle(), server.stream);
        let record = sealed(&mut client.0.borrow_mut().keys, ContentType::ApplicationData, &[&[7; 9000]]);
        let mut read = vec![0; 9000];
        let halves = [&record[..3], &record[3..4000], &record[4000..]];
        for (half, parked) in halves.iter().zip([3, 4000, 0]) {
            assert_eq!(client.0.borrow().socket.try_write(half).unwrap(), half.len());
            if parked > 0 {
                let handle = server.handle();
                let reading = async {
                    while handle.0.borrow().inbound.parked.len() < parked {
                        let _nothing = timeout(Duration::from_millis(5), server.read(&mut read)).await;
                    }
                };
                reading.await;
                assert_eq!(buffers::lent(), 0);
            }
        }
        server.read_exact(&mut read).await.unwrap();
        assert!(read.iter().all(|byte| *byte == 7));
        assert_eq!(buffers::lent(), 0);
    });
}

#[test]
fn a_cancelled_handshake_leaves_nothing() {
    in_time(async {
        let (web, db) = web_and_db();
        for accepts in [true, false] {
            let (a, mut b) = sockets().await;
            let begun = if accepts {
                timeout(Duration::from_millis(20), accept(a, &db)).await.map(drop)
            } else {
                timeout(Duration::from_millis(20), connect(a, &web, wants(&web, "db"))).await.map(drop)
            };
            begun.unwrap_err();
            let mut rest = Vec::new();
            b.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest.is_empty(), accepts, "only who connects speaks first");
        }
        assert_eq!((buffers::lent(), Arc::strong_count(&db)), (0, 1));
    });
}
