//! Carries a stream that has come out of a tunnel: the one place where its relay is called.

use tokio::net::TcpStream;

use crate::hbone::Stream;
use crate::proxy::registry::Entry;
use crate::proxy::relay::{RelayOptions, relay_stream as relay};
use crate::telemetry::{CloseReason, Side};

/// Carries bytes both ways until the connection is over.
pub(super) async fn relay_stream(application: TcpStream, mut stream: Stream, entry: &Entry) -> CloseReason {
    let options = RelayOptions::of(&entry.settings);
    let relaying = Box::pin(relay(&application, &mut stream, Side::Downstream, entry, &options));
    relaying.await.close_reason()
}

/// Ends a stream whose application is lost before the first byte.
pub(super) fn abandon(mut stream: Stream) {
    stream.reset(h2::Reason::CONNECT_ERROR);
}
