//! Reading, writing and ending connections, exactly.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use adit::net::sockopt::unacknowledged;
use socket2::SockRef;

use crate::kit::{LIMIT, until};

/// `len` bytes that depend on `seed`.
pub(crate) fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// How a connection ended for its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
}

/// Reads to the end; panics when that is neither FIN nor reset, or does not come within the limit.
pub(crate) fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, End) {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 65536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (bytes, End::Fin),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (bytes, End::Reset),
            // A read with a time limit is not taken up again after the process has been stopped.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("after {} bytes: {error}", bytes.len()),
        }
    }
}

/// The end, when nothing may come before it.
pub(crate) fn end(stream: &mut TcpStream) -> End {
    let (bytes, end) = read_to_end(stream);
    assert!(bytes.is_empty(), "{} bytes came from nowhere", bytes.len());
    end
}

/// The stream must bring exactly `want` and then end so.
pub(crate) fn expect(stream: &mut TcpStream, want: &[u8], want_end: End) {
    let (bytes, end) = read_to_end(stream);
    assert_eq!((bytes.len(), end), (want.len(), want_end));
    assert!(bytes == want, "the bytes are not those that were sent");
}

/// Writes everything and then a FIN.
pub(crate) fn send_and_finish(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("write");
    stream.shutdown(Shutdown::Write).expect("shutdown");
}

/// Waits until the other end's kernel has everything that was written.
pub(crate) fn delivered(stream: &TcpStream) {
    until(LIMIT, "everything to be acknowledged", || (unacknowledged(stream).expect("SIOCOUTQ") == 0).then_some(()));
}

/// Ends a connection by a reset.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    drop(stream);
}
