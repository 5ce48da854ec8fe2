//! What the relay tests check of a plain connection, of one through a tunnel; whatever is at the tunnel's ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::bytes::{End, delivered, expect, random, read_to_end, reset, send_and_finish};
use crate::kit::door::talk;
use crate::kit::{Door, Family, LIMIT, until};
use crate::world::{APP, CLOSED, World};

/// A test for every case here; `$run` gets settings for adit and the case.
macro_rules! relay_cases {
    ($run:path) => {
        $crate::relay::relay_cases! { $run;
            words: "", words;
            large_transfers_by_halves: "", halves;
            large_transfers_at_once: "", duplex;
            a_half_that_ended_leaves_the_other: "", empty_half;
            an_idle_connection_is_reset: "", idle_reset;
            a_reset_after_data: "", reset_after_data;
            a_sender_is_reset: "", sender_reset;
            a_reader_is_reset: "", reader_reset;
            an_end_and_then_a_reset: "", end_then_reset;
            nobody_listens: $crate::world::NO_RECORDS, refused;
        }
    };
    ($run:path; $($name:ident: $more:expr, $case:ident;)*) => {
        $(
            #[test]
            fn $name() {
                $crate::kit::isolated_within($crate::relay::LONG, || $run($more, $crate::relay::$case));
            }
        )*
    };
}
pub(crate) use relay_cases;

/// For cases that move much: a debug build on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(180);

const LARGE: usize = 8 << 20;
/// Less than both sides' buffers together.
const BEFORE_RESET: usize = 400_000;
const STREAMS: usize = 100;

/// A connection seen from one of its ends.
struct Seen {
    near: TcpStream,
    far: TcpStream,
    /// How a reset by the far one looks from the near one.
    reset: End,
    /// Whether the near one may end its half first.
    may_end: bool,
}

/// Runs `body` with connections of each family, with the client at either end.
fn both_ways(world: &World, door: &Door, body: impl Fn(Seen)) {
    let manner = world.manner;
    for family in Family::BOTH {
        let (near, far) = world.pair(family, door);
        body(Seen { near, far, reset: manner.server_reset, may_end: true });
        let (far, near) = world.pair(family, door);
        body(Seen { near, far, reset: manner.client_reset, may_end: manner.server_first });
    }
}

/// Sends everything and ends that half, while the other side reads it.
pub(crate) fn half(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| send_and_finish(from, bytes));
        expect(to, bytes, End::Fin);
    });
}

/// A few bytes each way.
pub(crate) fn words(world: &World) {
    let door = Door::open(world.far_host(), APP);
    both_ways(world, &door, |Seen { mut near, mut far, .. }| {
        for _ in 0..3 {
            talk(&mut near, &mut far);
        }
    });
    world.wait_idle();
}

/// Large transfers; one half outlives the other, either way round, and both at once.
pub(crate) fn halves(world: &World) {
    let door = Door::open(world.far_host(), APP);
    let (there, back) = (random(1, LARGE), random(2, LARGE));
    both_ways(world, &door, |Seen { mut near, mut far, may_end, .. }| {
        let (first, second) = if may_end { (&mut near, &mut far) } else { (&mut far, &mut near) };
        half(first, second, &there);
        half(second, first, &back);
    });
    world.wait_idle();
}

/// Large transfers in both directions at once; each side ends when it has sent everything, or when it has all as well.
pub(crate) fn duplex(world: &World) {
    let door = Door::open(world.far_host(), APP);
    let (there, back) = (random(7, LARGE), random(8, LARGE));
    for family in Family::BOTH {
        let (client, mut server) = world.pair(family, &door);
        let clone = |stream: &TcpStream| stream.try_clone().expect("a second descriptor");
        let (mut up, mut down, mut answer) = (clone(&client), clone(&client), clone(&server));
        thread::scope(|scope| {
            scope.spawn(|| send_and_finish(&mut up, &there));
            scope.spawn(|| expect(&mut down, &back, End::Fin));
            let writer = scope.spawn(|| answer.write_all(&back).expect("write"));
            let end = clone(&server);
            if world.manner.server_first {
                writer.join().expect("a writer");
                end.shutdown(Shutdown::Write).expect("shutdown");
                expect(&mut server, &there, End::Fin);
            } else {
                expect(&mut server, &there, End::Fin);
                writer.join().expect("a writer");
                end.shutdown(Shutdown::Write).expect("shutdown");
            }
        });
    }
    world.wait_idle();
}

/// A half that ended without a byte; the other half goes on for as long as it likes.
pub(crate) fn empty_half(world: &World) {
    let door = Door::open(world.far_host(), APP);
    both_ways(world, &door, |Seen { near, far, may_end, .. }| {
        let (mut near, mut far) = if may_end { (near, far) } else { (far, near) };
        send_and_finish(&mut near, b"");
        expect(&mut far, b"", End::Fin);
        for _ in 0..3 {
            far.write_all(b"still here").expect("write");
            let mut got = [0; 10];
            near.read_exact(&mut got).expect("the other half");
        }
        send_and_finish(&mut far, b"last words");
        expect(&mut near, b"last words", End::Fin);
    });
    world.wait_idle();
}

/// Nothing was on its way.
pub(crate) fn idle_reset(world: &World) {
    let door = Door::open(world.far_host(), APP);
    both_ways(world, &door, |Seen { mut near, mut far, reset: want, .. }| {
        talk(&mut near, &mut far);
        reset(far);
        expect(&mut near, &[], want);
    });
    world.wait_idle();
}

/// The reader starts only after the reset: what was acknowledged before it must come first, all of it.
pub(crate) fn reset_after_data(world: &World) {
    let door = Door::open(world.far_host(), APP);
    let data = random(3, BEFORE_RESET);
    both_ways(world, &door, |Seen { mut near, mut far, reset: want, .. }| {
        far.write_all(&data).expect("write");
        delivered(&far);
        reset(far);
        expect(&mut near, &data, want);
    });
    world.wait_idle();
}

/// The sender goes away while it sends: what has come is the beginning of what was sent, and does not end cleanly.
pub(crate) fn sender_reset(world: &World) {
    let door = Door::open(world.far_host(), APP);
    let data = random(4, LARGE);
    both_ways(world, &door, |Seen { mut near, mut far, reset: want, .. }| {
        let (got, ended) = thread::scope(|scope| {
            let reader = scope.spawn(|| read_to_end(&mut near));
            far.write_all(&data).expect("write");
            reset(far);
            reader.join().expect("a reader")
        });
        assert!(data.starts_with(&got), "the {} bytes that came are not the first of those that were sent", got.len());
        assert_eq!(ended, want, "after {} of {} bytes", got.len(), data.len());
    });
    world.wait_idle();
}

/// The reader goes away in the middle: the sender cannot go on.
pub(crate) fn reader_reset(world: &World) {
    let door = Door::open(world.far_host(), APP);
    let piece = random(5, 1 << 20);
    both_ways(world, &door, |Seen { mut near, mut far, .. }| {
        let error = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                loop {
                    if let Err(error) = near.write_all(&piece) {
                        break error;
                    }
                }
            });
            let mut got = vec![0; 300_000];
            far.read_exact(&mut got).expect("the beginning");
            assert!(piece.starts_with(&got));
            reset(far);
            writer.join().expect("a writer")
        });
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    });
    world.wait_idle();
}

/// The end was a clean one; that the other direction is then cut does not make it less complete.
pub(crate) fn end_then_reset(world: &World) {
    let door = Door::open(world.far_host(), APP);
    let data = random(6, BEFORE_RESET);
    both_ways(world, &door, |Seen { mut near, mut far, .. }| {
        send_and_finish(&mut far, &data);
        delivered(&far);
        expect(&mut near, &data, End::Fin);
        reset(far);
    });
    world.wait_idle();
}

/// Many at once, all open before the first byte; returns how many tunnels they had.
pub(crate) fn many_streams(world: &World) -> usize {
    let door = Door::open(world.far_host(), APP);
    let mut pairs: Vec<_> = (0..STREAMS).map(|index| world.pair(Family::BOTH[index % 2], &door)).collect();
    let tunnels = world.tunnels();
    for round in 0..2 {
        for (index, (client, server)) in pairs.iter_mut().enumerate() {
            let (there, back) = (random(index as u64, 5_000), random(round, 7_000));
            for (from, to, bytes) in [(&*client, &*server, there), (server, client, back)] {
                let (mut from, mut to) = (from, to);
                from.write_all(&bytes).expect("write");
                let mut got = vec![0; bytes.len()];
                to.read_exact(&mut got).expect("what was sent");
                assert!(got == bytes, "stream {index} brought something else");
            }
        }
    }
    for (index, (client, server)) in pairs.iter_mut().enumerate() {
        let (first, second) =
            if index % 2 == 0 || !world.manner.server_first { (client, server) } else { (server, client) };
        half(first, second, b"");
        half(second, first, b"");
    }
    drop(pairs);
    world.wait_idle();
    tunnels
}

/// Nobody listens.
pub(crate) fn refused(world: &World) {
    for family in Family::BOTH {
        assert_eq!(world.fate(family, CLOSED), world.manner.refused, "{family:?}");
    }
    // The tunnel is none the worse for it.
    words(world);
}

/// It has ended, in whatever way, and brought nothing.
pub(crate) fn ended(stream: &mut TcpStream) {
    let (bytes, _) = read_to_end(stream);
    assert!(bytes.is_empty(), "{} bytes came from nowhere", bytes.len());
}

/// One short stream: what is sent comes back, and then both halves end.
pub(crate) fn echoed(world: &World, family: Family) {
    let mut stream = world.dial(family, APP);
    send_and_finish(&mut stream, b"there and back");
    expect(&mut stream, b"there and back", End::Fin);
}

/// Writes until nobody takes any more for a while; the stream must not block.
pub(crate) fn fill(stream: &TcpStream, piece: &[u8]) {
    let mut writing = stream;
    loop {
        let full = until(LIMIT, "the stream to be full or to take more", || match writing.write(piece) {
            Ok(_) => Some(false),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let ready = PollFd::new(stream, PollFlags::OUT);
                let limit = Timespec::try_from(Duration::from_secs(1)).expect("a limit in range");
                Some(poll(&mut [ready], Some(&limit)).expect("poll") == 0)
            }
            Err(error) => panic!("{error}"),
        });
        if full {
            return;
        }
    }
}
