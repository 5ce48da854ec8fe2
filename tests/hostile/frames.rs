//! Frames that break the rules of HTTP/2, one by one. The tunnel ends, or its stream does, as the RFC has it; adit and all others
//! go on.

use crate::kit::isolated;
use crate::raw::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, Next, PING, PREFACE, PRIORITY,
    PUSH_PROMISE, Peer, RST_STREAM, SETTINGS, WINDOW_UPDATE, connect_request, literal,
};
use crate::siege::{DEAF, ECHO, Siege};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// One thing that no peer may send, and the codes by which the tunnel may end.
type Case = (&'static str, fn(&mut Peer, &str) -> bool, &'static [u32]);

fn settings(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

const ENDINGS: &[Case] = &[
    ("garbage", |peer, _| peer.write(&[0xff; 4096]), &[PROTOCOL_ERROR, FRAME_SIZE_ERROR]),
    ("a second preface", |peer, _| peer.write(PREFACE), &[PROTOCOL_ERROR, FRAME_SIZE_ERROR]),
    ("SETTINGS of five bytes", |peer, _| peer.send(SETTINGS, 0, 0, &[0; 5]), &[FRAME_SIZE_ERROR]),
    ("SETTINGS of a stream", |peer, _| peer.send(SETTINGS, 0, 1, &[]), &[PROTOCOL_ERROR]),
    ("an ACK that says something", |peer, _| peer.send(SETTINGS, ACK, 0, &[0; 6]), &[FRAME_SIZE_ERROR]),
    (
        "a window beyond 2^31",
        |peer, _| peer.send(SETTINGS, 0, 0, &settings(4, 1 << 31)),
        &[FLOW_CONTROL_ERROR, PROTOCOL_ERROR],
    ),
    ("frames of one byte", |peer, _| peer.send(SETTINGS, 0, 0, &settings(5, 1)), &[PROTOCOL_ERROR]),
    ("push that is neither on nor off", |peer, _| peer.send(SETTINGS, 0, 0, &settings(2, 2)), &[PROTOCOL_ERROR]),
    ("PING of seven bytes", |peer, _| peer.send(PING, 0, 0, &[0; 7]), &[FRAME_SIZE_ERROR]),
    ("PING of a stream", |peer, _| peer.send(PING, 0, 1, &[0; 8]), &[PROTOCOL_ERROR]),
    (
        "a frame beyond what is allowed",
        |peer, authority| {
            let stream = peer.open(authority);
            peer.send(DATA, 0, stream, &vec![0; adit::hbone::window::FRAME_BYTES as usize + 1])
        },
        &[FRAME_SIZE_ERROR],
    ),
    ("a frame of 16 MiB", |peer, _| peer.write(&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]), &[FRAME_SIZE_ERROR]),
    ("DATA of no stream", |peer, _| peer.send(DATA, 0, 0, b"x"), &[PROTOCOL_ERROR]),
    ("DATA of a stream to come", |peer, _| peer.send(DATA, 0, 7, b"x"), &[PROTOCOL_ERROR]),
    (
        "padding longer than its frame",
        |peer, authority| {
            let stream = peer.open(authority);
            peer.send(DATA, 8, stream, &[200, 1, 2, 3])
        },
        &[PROTOCOL_ERROR],
    ),
    (
        "a stream of the server's",
        |peer, authority| peer.send(HEADERS, END_HEADERS, 2, &connect_request(authority.as_bytes())),
        &[PROTOCOL_ERROR],
    ),
    (
        "a stream that was skipped",
        |peer, authority| {
            for stream in [9, 3] {
                peer.send(HEADERS, END_HEADERS, stream, &connect_request(authority.as_bytes()));
            }
            true
        },
        &[PROTOCOL_ERROR, STREAM_CLOSED],
    ),
    ("CONTINUATION of nothing", |peer, _| peer.send(CONTINUATION, END_HEADERS, 1, &[]), &[PROTOCOL_ERROR]),
    (
        "a PING within a header block",
        |peer, _| {
            peer.send(HEADERS, 0, 1, &[]);
            peer.send(PING, 0, 0, &[0; 8])
        },
        &[PROTOCOL_ERROR],
    ),
    ("PUSH_PROMISE", |peer, _| peer.send(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]), &[PROTOCOL_ERROR]),
    ("RST_STREAM of no stream", |peer, _| peer.send(RST_STREAM, 0, 0, &[0; 4]), &[PROTOCOL_ERROR]),
    ("RST_STREAM of a stream to come", |peer, _| peer.send(RST_STREAM, 0, 9, &[0; 4]), &[PROTOCOL_ERROR]),
    ("RST_STREAM of three bytes", |peer, _| peer.send(RST_STREAM, 0, 1, &[0; 3]), &[FRAME_SIZE_ERROR]),
    ("no more window", |peer, _| peer.send(WINDOW_UPDATE, 0, 0, &[0; 4]), &[PROTOCOL_ERROR]),
    (
        "more window than there is",
        |peer, _| {
            for _ in 0..2 {
                peer.send(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes());
            }
            true
        },
        &[FLOW_CONTROL_ERROR],
    ),
    ("headers that do not decode", |peer, _| peer.send(HEADERS, END_HEADERS, 1, &[0xff; 64]), &[COMPRESSION_ERROR]),
    (
        "a header table of a gigabyte",
        |peer, _| peer.send(HEADERS, END_HEADERS, 1, &[0x3f, 0xff, 0xff, 0xff, 0xff, 3]),
        &[COMPRESSION_ERROR],
    ),
    (
        "CONTINUATION without end",
        |peer, _| {
            peer.send(HEADERS, 0, 1, &connect_request(b"x"));
            while peer.send(CONTINUATION, 0, 1, &[]) {}
            true
        },
        &[ENHANCE_YOUR_CALM],
    ),
    (
        "headers without end",
        |peer, _| {
            peer.send(HEADERS, 0, 1, &connect_request(b"x"));
            while peer.send(CONTINUATION, 0, 1, &literal("x", &[b'x'; 8000])) {}
            true
        },
        &[ENHANCE_YOUR_CALM, PROTOCOL_ERROR, COMPRESSION_ERROR],
    ),
    (
        "bytes after the end",
        |peer, authority| {
            let stream = peer.open(authority);
            peer.send(DATA, END_STREAM, stream, b"the end");
            peer.send(DATA, 0, stream, b"or not")
        },
        &[STREAM_CLOSED],
    ),
];

#[test]
fn what_ends_the_tunnel() {
    isolated(|| {
        let siege = Siege::new("");
        siege.applications();
        let friend = siege.friend();
        let before = siege.calm(1);
        let mut wrong = Vec::new();
        for (what, attack, codes) in ENDINGS {
            let mut peer = siege.peer();
            attack(&mut peer, &siege.authority(ECHO));
            let words = peer.last_words();
            // Whoever is in the middle of writing when it is cut off may not get to read why.
            // The library says PROTOCOL_ERROR for some of what has a code of its own.
            if !words.is_ok_and(|it| {
                it.is_none_or(|(kind, code)| kind == GOAWAY && (code == PROTOCOL_ERROR || codes.contains(&code)))
            }) {
                wrong.push((what, words));
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
        siege.settled("broken frames", &before);
        friend.well("broken frames");
        siege.finish();
    });
}

const END: u16 = 1;

/// Header blocks that are no CONNECT, and what is said to them: `0` is a reset, [`END`] the end of the tunnel: the library takes
/// fields that are none for a sign that the table of headers is out of step.
fn requests(siege: &Siege) -> Vec<(&'static str, Vec<u8>, u16)> {
    let connect = literal(":method", b"CONNECT");
    let authority = siege.authority(ECHO);
    let with = |field: Vec<u8>| [connect_request(authority.as_bytes()), field].concat();
    let get = [literal(":method", b"GET"), literal(":path", b"/"), literal(":scheme", b"http")].concat();
    vec![
        ("nothing", Vec::new(), 0),
        ("no authority", connect, 400),
        ("no method", literal(":authority", authority.as_bytes()), 0),
        ("GET", [&get[..], &literal(":authority", authority.as_bytes())].concat(), 400),
        ("two authorities", with(literal(":authority", b"10.77.0.2:8080")), 0),
        ("a method that is none", literal(":method", b"C O N"), END),
        ("an upper-case name", with(literal("X-Upper", b"x")), END),
        ("a name with a line break", with(literal("x\r\ny", b"x")), END),
        ("a value with a line break", with(literal("x", b"x\r\ny")), END),
        ("a pseudo header at the end", [with(literal("x", b"y")), literal(":method", b"CONNECT")].concat(), 0),
        ("a pseudo header that nobody knows", with(literal(":color", b"red")), END),
        ("HTTP/1.1's connection", with(literal("connection", b"keep-alive")), 0),
        ("an extended CONNECT", with([literal(":protocol", b"websocket"), get].concat()), 0),
        ("an answer", literal(":status", b"200"), 0),
        ("a header of 70 KiB", Vec::new(), 431),
    ]
}

const AUTHORITIES: &[&str] = &[
    "",
    ":",
    ":80",
    "x",
    "10.77.0.2",
    "10.77.0.2:",
    "10.77.0.2:0",
    "10.77.0.2:-1",
    "10.77.0.2:+80",
    "10.77.0.2:65536",
    "10.77.0.2:8080:8080",
    "10.77.0.2:99999999999999999999",
    "10.77.0.2:0x50",
    "10.77.2:8080",
    "010.77.0.2:8080",
    "[10.77.0.2]:8080",
    "fd77::2:8080",
    "[fd77::2:8080",
    "[fd77::2]8080",
    "[fd77::2%eth0]:8080",
    "[::]:8080",
    "[::ffff:127.0.0.1]:8080",
    "127.1:8080",
    "0:8080",
    "user@10.77.0.2:8080",
    "user:pass@10.77.0.2:8080",
    "http://10.77.0.2:8080",
    "10.77.0.2:8080/",
    "10.77.0.2:8080?x",
    "10.77.0.2:8080#x",
    " 10.77.0.2:8080",
    "10.77.0.2:8080 ",
    "10.77.0.2 :8080",
    "10.77.0.2\t:8080",
    "10.77.0.2\0:8080",
    "%31%30.77.0.2:8080",
    "..:80",
    "*:80",
    "a_very_odd_name!:80",
    "\u{7f}:80",
    "255.255.255.255:80",
    "224.0.0.1:80",
    "169.254.169.254:80",
];

/// The status of an answer, or 0 for a reset; [`END`] if the tunnel is over.
fn answered(peer: &mut Peer, stream: u32) -> u16 {
    loop {
        match peer.next(crate::kit::LIMIT) {
            Next::Frame(Frame { kind: HEADERS, stream: of, payload, .. }) if of == stream => {
                return match payload[0] {
                    0x88 => 200,
                    0x8c => 400,
                    0x8d => 404,
                    // A literal, indexed or not, of the name `:status`; its value is Huffman coded or three digits.
                    _ => status(&payload),
                };
            }
            Next::Frame(Frame { kind: RST_STREAM, stream: of, .. }) if of == stream => return 0,
            Next::Frame(Frame { kind: GOAWAY, .. }) | Next::Over => return END,
            Next::Frame(_) => {}
            Next::Nothing => panic!("no answer"),
        }
    }
}

/// `:status` as a literal. Digits in Huffman's code: 0 1 2 are 5 bits (0 to 2), 3 to 9 are 6 bits (0x19 to 0x1f).
fn status(block: &[u8]) -> u16 {
    let (length, bytes) = (usize::from(block[1] & 0x7f), &block[2..]);
    if block[1] & 0x80 == 0 {
        return std::str::from_utf8(&bytes[..length]).expect("digits").parse().expect("a status");
    }
    let bits: Vec<u8> = bytes[..length].iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let take = |at: usize, count: usize| bits[at..at + count].iter().fold(0_u16, |sum, bit| sum * 2 + u16::from(*bit));
    let (mut at, mut value) = (0, 0);
    for _ in 0..3 {
        let short = take(at, 5);
        let (digit, length) = if short <= 2 { (short, 5) } else { (take(at, 6) - 0x19 + 3, 6) };
        value = value * 10 + digit;
        at += length;
    }
    value
}

#[test]
fn what_ends_no_more_than_its_stream() {
    isolated(|| {
        let siege = Siege::new("");
        siege.applications();
        let friend = siege.friend();
        let before = siege.calm(1);
        let mut peer = siege.peer();
        let mut alive = peer.open(&siege.authority(ECHO));
        let mut wrong = Vec::new();
        for authority in AUTHORITIES {
            let stream = peer.ask(authority);
            let status = answered(&mut peer, stream);
            if !matches!(status, 0 | 400) {
                wrong.push((*authority, status));
            }
        }
        for (what, block, want) in requests(&siege) {
            let stream = peer.number();
            if want == 431 {
                peer.send(HEADERS, 0, stream, &connect_request(siege.authority(ECHO).as_bytes()));
                for _ in 0..3 {
                    peer.send(CONTINUATION, 0, stream, &literal("x", &[b'x'; 25_000]));
                }
                peer.send(CONTINUATION, END_HEADERS, stream, &[]);
            } else {
                peer.send(HEADERS, END_HEADERS, stream, &block);
            }
            let status = answered(&mut peer, stream);
            if status != want {
                wrong.push((what, status));
            }
            if status == END {
                peer = siege.peer();
                alive = peer.open(&siege.authority(ECHO));
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
        // Frames of a stream that is over; a window that overflows; bytes beyond the window.
        let closed = peer.ask("nowhere");
        assert_eq!(answered(&mut peer, closed), 400);
        peer.send(DATA, 0, closed, b"too late");
        peer.send(WINDOW_UPDATE, 0, closed, &1_u32.to_be_bytes());
        peer.send(RST_STREAM, 0, closed, &[0; 4]);
        let full = peer.open(&siege.authority(ECHO));
        for _ in 0..2 {
            peer.send(WINDOW_UPDATE, 0, full, &0x7fff_ffff_u32.to_be_bytes());
        }
        assert_eq!(peer.expect(|it| it.stream == full && it.kind == RST_STREAM).code(), FLOW_CONTROL_ERROR);
        let deaf = peer.open(&siege.authority(DEAF));
        while peer.send(DATA, 0, deaf, &[0; 16 * 1024]) {
            if let Next::Frame(Frame { kind: RST_STREAM, stream, payload, .. }) = peer.now() {
                assert_eq!((stream, payload[3]), (deaf, 3), "FLOW_CONTROL_ERROR");
                break;
            }
        }
        peer.ping_pong(alive, b"still here");
        drop(peer);
        siege.settled("bad requests", &before);
        friend.well("bad requests");
        siege.finish();
    });
}

/// What HTTP/2 has for the future, and what it had in the past.
#[test]
fn what_is_ignored() {
    isolated(|| {
        let siege = Siege::new("");
        siege.applications();
        let mut peer = siege.peer();
        let stream = peer.open(&siege.authority(ECHO));
        for kind in [10, 12, 16, 0x42, 0xff] {
            peer.send(kind, 0xff, 0, b"an extension");
            peer.send(kind, 0, stream, &[b'x'; 1000]);
            peer.send(kind, 0, 99, b"");
        }
        peer.send(PRIORITY, 0, stream, &[0, 0, 0, 0, 16]);
        peer.send(PRIORITY, 0, 77, &[0x80, 0, 0, 1, 255]);
        peer.send(SETTINGS, 0, 0, &[settings(0xffff, 7), settings(8, 1), settings(9, 1)].concat());
        peer.ping_pong(stream, b"still here");
        let second = peer.open(&siege.authority(ECHO));
        peer.ping_pong(second, b"and here");
        peer.send(DATA, END_STREAM, second, &[]);
        drop(peer);
        siege.finish();
    });
}
