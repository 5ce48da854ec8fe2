//! A SOCKS5 client that sends exactly what it is told to, and the settings that these tests share.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::kit::door::Dial;
use crate::kit::{Host, LIMIT};

/// The SOCKS5 door on loopback and no capture.
pub(crate) const SETTINGS: &str = "\
packetMark: off
preserveSource: off
listen: { outbound: off, inbound: off, hbone: off, socks5: \"127.0.0.1:15080\" }
";

/// Offers to go without authentication.
pub(crate) const GREETING: [u8; 3] = [5, 1, 0];

/// What the door answered to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: u8,
    pub(crate) bound: SocketAddr,
}

/// A connection to the door in `host`.
pub(crate) fn knock(host: &Host) -> TcpStream {
    let stream = Dial::default().connect(host, door()).expect("the SOCKS5 door");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
    stream
}

pub(crate) fn door() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 15080).into()
}

/// A CONNECT request to an address.
pub(crate) fn to_address(address: SocketAddr) -> Vec<u8> {
    let (kind, ip) = match address.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (4, ip.octets().to_vec()),
    };
    [&[5, 1, 0, kind][..], &ip, &address.port().to_be_bytes()].concat()
}

/// A CONNECT request to a name, which may be any bytes.
pub(crate) fn to_name(name: impl AsRef<[u8]>, port: u16) -> Vec<u8> {
    let name = name.as_ref();
    let len = u8::try_from(name.len()).expect("a name fits");
    [&[5, 1, 0, 3, len][..], name, &port.to_be_bytes()].concat()
}

/// Greets, asks and reads the answer.
pub(crate) fn ask(host: &Host, request: &[u8]) -> (TcpStream, Answer) {
    let mut stream = knock(host);
    stream.write_all(&GREETING).expect("write");
    assert_eq!(read::<2>(&mut stream), [5, 0], "no authentication is fine");
    stream.write_all(request).expect("write");
    let answer = read_answer(&mut stream);
    (stream, answer)
}

/// The answer's code, and that nothing but the end comes after a refusal.
pub(crate) fn refusal(host: &Host, request: &[u8]) -> u8 {
    let (mut stream, answer) = ask(host, request);
    assert_ne!(answer.code, 0, "{request:?} was not refused");
    assert_eq!(answer.bound, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    assert_eq!(rest(&mut stream), Some(Vec::new()), "a refusal ends with FIN, or its words could be lost");
    answer.code
}

pub(crate) fn read_answer(stream: &mut TcpStream) -> Answer {
    let [version, code, reserved, kind] = read::<4>(stream);
    assert_eq!((version, reserved), (5, 0));
    let ip: IpAddr = match kind {
        1 => Ipv4Addr::from(read::<4>(stream)).into(),
        4 => Ipv6Addr::from(read::<16>(stream)).into(),
        other => panic!("address type {other}"),
    };
    Answer { code, bound: SocketAddr::new(ip, u16::from_be_bytes(read::<2>(stream))) }
}

pub(crate) fn read<const N: usize>(stream: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).expect("what the door answers");
    bytes
}

/// Everything until the end; `None` when that is a reset. Panics if there is no end within the limit.
pub(crate) fn rest(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => Some(bytes),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
        Err(error) => panic!("neither bytes nor an end: {error}"),
    }
}

/// Nothing to read yet.
pub(crate) fn is_silent(stream: &TcpStream, time: Duration) -> bool {
    stream.set_read_timeout(Some(time)).expect("SO_RCVTIMEO");
    let silent = stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
    silent
}
