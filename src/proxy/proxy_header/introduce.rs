//! Sends a PROXY protocol header to what was connected to, before the relay begins: the first bytes of a socket, or of
//! a stream in a tunnel, where the application behind it finds them.
//!
//! In: an established connection. Out: the same one, whose peer has been sent the header; on failure it is given up and
//! nothing has reached the client. The bytes are not the client's and count nowhere.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::write;
use crate::mesh::service::ProxyProtocol;
use crate::proxy::connect::{ConnectError, Via};
use crate::telemetry::CloseReason;

/// A header fits into any new socket, and into the first window of any stream.
pub const HEADER_WITHIN: Duration = Duration::from_secs(5);

/// # Errors
/// The header was not taken: the connection cannot be used.
pub async fn introduce(
    via: &mut Via,
    version: ProxyProtocol,
    client: SocketAddr,
    dst: SocketAddr,
) -> Result<(), ConnectError> {
    let header = write::header(version, client, dst);
    let sending = async {
        match via {
            Via::Socket(dialled) => dialled.stream.write_all(&header).await,
            Via::Tunnel(tunnelled) => tunnelled.stream.send_first(&header).await.map_err(io::Error::other),
        }
    };
    let sent = timeout(HEADER_WITHIN, sending).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
    sent.map_err(|error| ConnectError::new(CloseReason::UpstreamError, Some(error)))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::net::address::UpstreamAddr;
    use crate::net::dial::{DialOptions, dial};
    use crate::net::listen::tests::loopback_listener;
    use crate::net::own_sockets::{OwnSockets, Way};

    /// The header is there before anything else is, and nothing else is.
    #[tokio::test]
    async fn the_first_bytes_of_a_socket() {
        let (client, dst) = ("192.0.2.7:4711".parse().expect("address"), "10.96.0.9:25".parse().expect("address"));
        for (version, want) in
            [(ProxyProtocol::V1, write::proxy_v1(client, dst)), (ProxyProtocol::V2, write::proxy_v2(client, dst, None))]
        {
            let listener = loopback_listener();
            let address = UpstreamAddr::new(listener.local_addr().expect("address"));
            let options = DialOptions { mark: None, source: None, way: Way::Out };
            let mut via = Via::Socket(dial(address, options, &OwnSockets::default()).await.expect("connected"));
            introduce(&mut via, version, client, dst).await.expect("sent");
            drop(via);
            let mut got = Vec::new();
            listener.accept().expect("accept").0.read_to_end(&mut got).expect("read");
            assert_eq!(got, want, "{version:?}");
        }
    }
}
