//! Servers on threads of their own, in a host; they live as long as the test's process.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;

use socket2::{Domain, Protocol, Socket, Type};

use crate::kit::Host;

/// Hands every connection to `port` of `host`, IPv4 and IPv6, to a thread that runs `conversation`.
pub fn serve(host: &Host, port: u16, conversation: impl Fn(TcpStream) + Send + Sync + 'static) {
    let listener = host.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        socket.set_only_v6(false).expect("IPV6_V6ONLY");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()).expect("bind");
        socket.listen(1024).expect("listen");
        socket
    });
    let conversation = Arc::new(conversation);
    thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            let conversation = Arc::clone(&conversation);
            thread::spawn(move || conversation(socket.into()));
        }
    });
}

/// Sends everything back, until the other side ends.
pub fn echo(host: &Host, port: u16) {
    serve(host, port, |mut stream| {
        let mut buffer = vec![0; 16 * 1024];
        // An error is the peer's going away.
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    });
}

/// Answers one HTTP request with `body`, and closes.
pub fn http(host: &Host, port: u16, body: &'static str) {
    serve(host, port, move |mut stream| {
        let mut request = Vec::new();
        let mut buffer = [0; 1024];
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            let Ok(count @ 1..) = stream.read(&mut buffer) else { return };
            request.extend_from_slice(&buffer[..count]);
        }
        let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        // Whoever asked may have gone.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read(&mut buffer);
    });
}
