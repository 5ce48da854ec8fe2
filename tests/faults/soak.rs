//! Fifty thousand connections that end in every way there is, and nothing is left of them.
//!
//! Half of them run with `relay.zeroCopy: auto` and half with `off`; of each half, one in ten is aborted in the middle of
//! a bulk transfer, which goes by `splice` in the first half and by copying in the second. In the first half, pipes must
//! have been seen, and in the second none.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::kit::{Host, LIMIT, isolated_within, until};
use crate::world::{World, let_pass};

const CONNECTIONS: usize = 50_000;
/// At once, of each kind of client.
const LANES: usize = 24;
const PORTS: [u16; 4] = [8080, 8081, 8082, 8083];
/// Enough to make a bulk transfer of a download: `splice` starts after two full buffers of 64 KiB.
const BULK: usize = 256 * 1024;

/// How a connection ends. The byte is what the client sends first, so that the server plays along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Request, FIN, answer, FIN.
    Fin = b'f' as isize,
    /// The server resets while the client waits for the answer.
    ServerReset = b's' as isize,
    /// The client resets when it has the answer.
    ClientReset = b'c' as isize,
    /// The client is never heard of again.
    Vanish = b'v' as isize,
    /// The client resets in the middle of a download that does not end.
    ClientAbort = b'a' as isize,
    /// The server does.
    ServerAbort = b'b' as isize,
}

impl End {
    const ALL: [Self; 6] =
        [Self::Fin, Self::ServerReset, Self::ClientReset, Self::Vanish, Self::ClientAbort, Self::ServerAbort];

    /// What connection `number` does: in twenty, eight end by FIN, six by reset, four vanish and two are aborted.
    fn of(number: usize) -> Self {
        match number % 20 {
            0..=7 => Self::Fin,
            8..=10 => Self::ServerReset,
            11..=13 => Self::ClientReset,
            14..=17 => Self::Vanish,
            18 => Self::ClientAbort,
            _ => Self::ServerAbort,
        }
    }

    fn word(self) -> u8 {
        u8::try_from(self as isize).expect("a letter")
    }
}

#[test]
fn nothing_is_left_of_fifty_thousand_connections() {
    isolated_within(Duration::from_secs(300), || {
        let settings = |zero_copy: &str| {
            format!(
                "log: {{ access: false }}\nrelay: {{ halfCloseLinger: 2s, zeroCopy: {zero_copy} }}\n\
                 keepalive: {{ idle: 1s, interval: 1s, probes: 1, userTimeout: 2s }}\n"
            )
        };
        let world = World::new(&settings("auto"));
        let ghost = world.lab.add_host("ghost", 4);
        // What it closes, nobody hears of: it has vanished.
        ghost.nft("table inet ghost {\n chain out { type filter hook output priority 0\n tcp flags & (fin | rst) != 0 drop\n }\n }\n");
        for host in [&world.lab.client, &world.lab.adit, &ghost] {
            host.sysctl("ipv4/ip_local_port_range", "10000 65000");
            host.sysctl("ipv4/tcp_tw_reuse", "1");
        }
        world.lab.adit.sysctl("netfilter/nf_conntrack_tcp_timeout_time_wait", "1");
        let at_start = {
            run(&world, &ghost, 20, &AtomicUsize::new(0));
            settle(&world, usize::MAX)
        };
        // Standard error and the like.
        let others = pipes_of(&world);
        let pipes = AtomicUsize::new(0);
        run(&world, &ghost, CONNECTIONS / 2, &pipes);
        assert!(pipes.load(Ordering::Relaxed) > others, "no transfer went by splice");
        settle(&world, at_start + 8);
        let report = {
            crate::world::replace(
                &world.adit.folder().join("adit.yaml"),
                &format!("{}{}", crate::world::PLAIN, settings("off")),
            );
            world.cli(&["reload"])
        };
        assert!(report.status.success(), "{report:?}");
        pipes.store(0, Ordering::Relaxed);
        run(&world, &ghost, CONNECTIONS / 2, &pipes);
        assert_eq!(pipes.load(Ordering::Relaxed), others, "pipes although zeroCopy is off");
        settle(&world, at_start + 8);
        let accepted = world.metric("adit_connections_accepted_total{listener=\"inbound\"}");
        assert!(accepted >= 50_020.0, "{accepted}");
        world.adit.stop();
    });
}

/// Waits until no connection is left and no more than `most` descriptors are open; how many there are.
fn settle(world: &World, most: usize) -> usize {
    // The longest: a dead client is noticed in a tick, a second and three of keepalive; then the linger.
    let limit = Duration::from_secs(8) + LIMIT;
    until(limit, "all connections to be over", || {
        (world.metric("adit_connections_current{scope=\"total\"}") < 0.5).then_some(())
    });
    // Pipes and buffers that lie idle go within a few turns of an idle worker.
    let_pass(Duration::from_secs(3));
    world.wait_descriptors(most, LIMIT);
    world.descriptors().len()
}

fn pipes_of(world: &World) -> usize {
    world.descriptors().iter().filter(|link| link.starts_with("pipe:")).count()
}

/// Runs `count` connections to their end as clients and server see it.
fn run(world: &World, ghost: &Host, count: usize, pipes: &AtomicUsize) {
    let over = AtomicBool::new(false);
    let to = world.lab.adit.v4;
    thread::scope(|scope| {
        let over = &over;
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                pipes.fetch_max(pipes_of(world), Ordering::Relaxed);
                let_pass(Duration::from_millis(20));
            }
        });
        let listeners = listen(&world.lab.adit);
        scope.spawn(move || world.lab.adit.run(|| on_one_thread(serve(listeners, over))));
        let clients = [(&world.lab.client, false), (ghost, true)].map(|(host, vanishing)| {
            scope.spawn(move || {
                let ends = (0..count).map(End::of).filter(|end| (*end == End::Vanish) == vanishing).collect();
                host.run(|| on_one_thread(connect_all(to.into(), ends)));
            })
        });
        let ended = clients.map(thread::ScopedJoinHandle::join);
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok), "a client failed");
    });
}

fn on_one_thread(work: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).expect("a runtime");
    runtime.block_on(work);
}

async fn connect_all(to: std::net::IpAddr, ends: Vec<End>) {
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let mine: Vec<End> = ends.iter().skip(lane).step_by(LANES).copied().collect();
        lanes.spawn_local(async move {
            for (turn, end) in mine.into_iter().enumerate() {
                let port = PORTS[(turn + lane) % PORTS.len()];
                let one: Pin<Box<dyn Future<Output = io::Result<()>>>> =
                    Box::pin(client(SocketAddr::new(to, port), end));
                let outcome = timeout(Duration::from_secs(30), one).await;
                assert!(matches!(outcome, Ok(Ok(()))), "{end:?}: {outcome:?}");
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.expect("every connection does what it should");
    }
}

fn unexpected(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

fn reset(stream: TcpStream) -> io::Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

async fn client(to: SocketAddr, end: End) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    // Not more in flight than the test needs.
    socket.set_recv_buffer_size(64 * 1024)?;
    let mut stream = socket.connect(to).await?;
    stream.write_all(&[end.word()]).await?;
    match end {
        End::Fin => {
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            if answer == b"ok" { Ok(()) } else { Err(unexpected("another answer")) }
        }
        End::ServerReset => is_reset(&stream.read(&mut [0]).await),
        End::ClientReset | End::Vanish => {
            stream.read_exact(&mut [0; 2]).await?;
            reset(stream)
        }
        End::ClientAbort => {
            download(&mut stream, BULK).await?;
            reset(stream)
        }
        End::ServerAbort => is_reset(&download(&mut stream, usize::MAX).await.map(|()| 0)),
    }
}

fn is_reset(result: &io::Result<usize>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        other => Err(unexpected(&format!("{other:?} instead of a reset"))),
    }
}

async fn download(stream: &mut TcpStream, mut bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    while bytes > 0 {
        match stream.read(&mut buffer).await? {
            0 => return Err(unexpected("an end instead of more")),
            count => bytes = bytes.saturating_sub(count),
        }
    }
    Ok(())
}

fn listen(host: &Host) -> Vec<std::net::TcpListener> {
    let open = |port| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).expect("a socket");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        // Not more in flight than the test needs.
        socket.set_send_buffer_size(64 * 1024).expect("SO_SNDBUF");
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into()).expect("a free port");
        socket.listen(1024).expect("listen");
        socket.into()
    };
    host.run(|| PORTS.map(open).into())
}

async fn serve(listeners: Vec<std::net::TcpListener>, over: &AtomicBool) {
    let mut serving = JoinSet::new();
    for listener in listeners {
        serving.spawn_local(accept(TcpListener::from_std(listener).expect("a runtime")));
    }
    while !over.load(Ordering::Relaxed) {
        // The acceptors never end; this only lets them run.
        let _ = timeout(Duration::from_millis(50), serving.join_next()).await;
    }
}

async fn accept(listener: TcpListener) {
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("accept");
                answering.spawn_local(async {
                    // How it fails is the client's to judge.
                    let _ = answer(stream).await;
                });
            }
            Some(_) = answering.join_next() => {}
        }
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let word = stream.read_u8().await?;
    let end = End::ALL.into_iter().find(|end| end.word() == word).ok_or_else(|| unexpected("no such word"))?;
    match end {
        End::Fin => {
            stream.read_to_end(&mut Vec::new()).await?;
            stream.write_all(b"ok").await
        }
        End::ServerReset => reset(stream),
        End::ClientReset | End::Vanish => {
            stream.write_all(b"ok").await?;
            stream.read(&mut [0]).await.map(drop)
        }
        End::ClientAbort => upload(&mut stream, usize::MAX).await,
        End::ServerAbort => {
            upload(&mut stream, BULK).await?;
            reset(stream)
        }
    }
}

async fn upload(stream: &mut TcpStream, mut bytes: usize) -> io::Result<()> {
    let chunk = vec![7; 64 * 1024];
    while bytes > 0 {
        stream.write_all(&chunk).await?;
        bytes = bytes.saturating_sub(chunk.len());
    }
    Ok(())
}
