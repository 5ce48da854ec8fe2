//! The end of the process, as a client of tunnels sees it frame by frame.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::bytes::{End, end};
use crate::kit::door::Dial;
use crate::kit::{Door, LIMIT, isolated, until};
use crate::raw::{DATA, END_STREAM, Frame, GOAWAY, HEADERS, Next, Peer, RST_STREAM};
use crate::siege::{ECHO, Siege, assert_sane};

/// What a busy machine may add.
const SLACK: Duration = Duration::from_secs(5);
const CANCEL: u32 = 8;

fn terminate(siege: &Siege) -> Instant {
    kill_process(siege.pid(), Signal::TERM).expect("a running daemon");
    Instant::now()
}

/// Waits until the doors are closed, by knocking at one that brings nothing with it.
fn wait_closed(siege: &Siege) {
    until(LIMIT, "the door to be closed", || Dial::default().connect(siege.camp(), siege.door()).err());
}

/// Waits for the end and returns its line.
fn exit_line(siege: Siege, limit: Duration) -> String {
    let mut adit = siege.adit;
    let status = adit.wait(limit);
    let log = adit.log();
    assert!(status.success(), "{status}");
    assert_sane(&log);
    log.into_iter().find(|line| line.contains("\tdrained\t")).expect("an exit line")
}

/// Until the stream is over: whether by END_STREAM, or the code of its RST_STREAM; with the bytes before it.
fn rest(peer: &mut Peer, of: u32) -> (Vec<u8>, Option<u32>) {
    let mut bytes = Vec::new();
    loop {
        match peer.next(LIMIT) {
            Next::Frame(Frame { kind: DATA, stream, payload, flags }) if stream == of => {
                bytes.extend(payload);
                if flags & END_STREAM != 0 {
                    return (bytes, None);
                }
            }
            Next::Frame(frame) if frame.kind == RST_STREAM && frame.stream == of => return (bytes, Some(frame.code())),
            Next::Frame(_) => {}
            other => panic!("{other:?} before the stream's end"),
        }
    }
}

/// GOAWAY; the stream that is open finishes, and so does one that is opened before the client has read the GOAWAY. Handshakes that
/// go nowhere hold nothing up.
#[test]
fn streams_finish() {
    isolated(|| {
        let siege = Siege::new("shutdown: { deadline: 60s }\ntunnel: { handshakeTimeout: 50s }");
        siege.applications();
        let mut peer = siege.peer();
        let first = peer.open(&siege.authority(ECHO));
        peer.ping_pong(first, b"before");
        let halves: Vec<TcpStream> = (0..20)
            .map(|_| {
                let mut socket = Dial::default().connect(siege.camp(), siege.door()).expect("the kernel accepts");
                socket.write_all(&[22, 3, 1, 2]).expect("room");
                socket
            })
            .collect();
        // They have been accepted.
        until(LIMIT, "all to be there", || (siege.held().connections > 21.5).then_some(()));
        terminate(&siege);
        wait_closed(&siege);
        // Nothing has been read since, so no PING was answered.
        let late = peer.ask(&siege.authority(ECHO));
        assert_eq!(peer.expect(|it| it.kind == GOAWAY).code(), 0);
        let answer = peer.expect(|it| it.stream == late && matches!(it.kind, HEADERS | RST_STREAM));
        assert_eq!((answer.kind, answer.payload.first()), (HEADERS, Some(&0x88)), "{answer:?}");
        peer.ping_pong(first, b"during");
        peer.ping_pong(late, b"during");
        for stream in [first, late] {
            peer.send(DATA, END_STREAM, stream, b"the last");
            let (bytes, code) = rest(&mut peer, stream);
            assert_eq!((&bytes[..], code), (&b"the last"[..], None));
        }
        let finished = Instant::now();
        assert_eq!(peer.last_words().expect("an end").unwrap_or((GOAWAY, 0)).1, 0);
        let line = exit_line(siege, LIMIT + SLACK);
        assert!(finished.elapsed() < Duration::from_secs(3) + SLACK, "{:?}", finished.elapsed());
        // The handshakes.
        assert!(line.contains("cut=20"), "{line}");
        drop(halves);
    });
}

/// What is left at the deadline is cut: RST_STREAM(CANCEL) for each stream, and a reset for its application.
#[test]
fn the_deadline_cuts() {
    isolated(|| {
        let siege = Siege::new("shutdown: { deadline: 2s }");
        let door = Door::open(&siege.lab.adit, ECHO);
        let mut peer = siege.peer();
        let streams: Vec<u32> = (0..5).map(|_| peer.open(&siege.authority(ECHO))).collect();
        let mut applications: Vec<_> = streams.iter().map(|_| door.accept().stream).collect();
        let start = terminate(&siege);
        let mut cut = Vec::new();
        while cut.len() < streams.len() {
            let frame = peer.expect(|it| it.kind == RST_STREAM);
            assert_eq!(frame.code(), CANCEL);
            cut.push(frame.stream);
        }
        assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
        cut.sort_unstable();
        assert_eq!(cut, streams);
        for application in &mut applications {
            application.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
            assert_eq!(end(application), End::Reset);
        }
        let line = exit_line(siege, LIMIT);
        assert!(line.contains("cut=5") && start.elapsed() < Duration::from_secs(3) + SLACK, "{line}");
    });
}

/// Who signals twice does not want to wait.
#[test]
fn a_second_signal_ends_it_at_once() {
    isolated(|| {
        let siege = Siege::new("shutdown: { deadline: 60s }");
        let door = Door::open(&siege.lab.adit, ECHO);
        let mut peer = siege.peer();
        let stream = peer.open(&siege.authority(ECHO));
        let mut application = door.accept().stream;
        terminate(&siege);
        peer.expect(|it| it.kind == GOAWAY);
        peer.send(DATA, 0, stream, b"alive");
        application.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
        let mut got = [0; 5];
        std::io::Read::read_exact(&mut application, &mut got).expect("what was sent");
        let start = terminate(&siege);
        assert_eq!(end(&mut application), End::Reset);
        let (log, mut adit) = (siege.adit.log(), siege.adit);
        adit.wait(LIMIT);
        assert!(start.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", start.elapsed());
        assert_sane(&log);
        // Whatever it still could say, it was no orderly end of the stream.
        while let Next::Frame(frame) = peer.next(LIMIT) {
            assert!(frame.kind != DATA && (frame.kind != RST_STREAM || frame.code() == CANCEL), "{frame:?}");
        }
    });
}
