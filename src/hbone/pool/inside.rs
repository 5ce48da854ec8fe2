//! A tunnel inside a stream of another one: to a peer in another network, behind its gateway. The gateway sees TLS.
//!
//! In: a stream that the gateway has accepted, and who may be behind it. Out: the one stream of the new tunnel, as ordinary
//! as any. It is not kept for others, so that the gateway chooses anew for each connection: it ends when that stream
//! ends, and then ends the one it was in. What the outer one loses is lost inside. Every step has its deadline.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::settings::Tunnel as Limits;
use crate::hbone::carried::Carried;
use crate::hbone::client::{Driving, Failed, OpenError, Opened, Speaking, Spoken, ask, speak};
use crate::hbone::io::{Cause, HandshakeError, Phase};
use crate::hbone::pool::Pool;
use crate::hbone::tunnel::{About, Pulse, Wire, drive};
use crate::identity::tls::no_name;
use crate::identity::verify::Usage;
use crate::identity::{SpiffeId, TlsGeneration};
use crate::telemetry::{Role, TunnelEnd};

/// How long the end of the outer stream may take to come back.
const GOODBYE: Duration = Duration::from_millis(250);

impl Pool {
    /// Opens a stream to one of `identities`, through `outer`. Dropped before, it takes back what it began.
    ///
    /// # Errors
    /// Why there is none; see [`OpenError`].
    pub async fn open_inside(
        self: &Rc<Self>,
        outer: Opened,
        identities: Arc<[SpiffeId]>,
        request: Request<()>,
        limits: &Limits,
        until: Instant,
    ) -> Result<Opened, OpenError> {
        let tls = self.current().ok_or(OpenError::NoIdentity)?;
        let by = until.min(Instant::now() + limits.handshake_timeout);
        let spoken = Box::pin(self.inner(outer, &tls, identities, limits, by)).await;
        let spoken = spoken.inspect_err(|error| self.parts.books.failed(error))?;
        let client = Rc::clone(&spoken.client);
        self.judge_newcomer(&client);
        // This one place, and no other.
        let slot = client.reserve();
        self.live(spoken, limits);
        client.retire(TunnelEnd::Used);
        let slot = slot.ok_or(OpenError::Lost { end: None })?;
        let by = until.min(Instant::now() + limits.response_timeout);
        Box::pin(ask(slot, request, by)).await.map_err(|Failed { error, .. }| error)
    }

    /// TLS, then HTTP/2.
    async fn inner(
        &self,
        outer: Opened,
        tls: &Arc<TlsGeneration>,
        identities: Arc<[SpiffeId]>,
        limits: &Limits,
        by: Instant,
    ) -> Result<Spoken<TlsStream<Carried>>, OpenError> {
        let Opened { stream, tunnel, .. } = outer;
        let (peer, local) = (tunnel.about.peer, tunnel.about.local);
        let (carried, inner) = Carried::new(stream);
        let connecting = TlsConnector::from(tls.client(identities)).connect(no_name(), carried);
        let stream = timeout_at(by, Box::pin(connecting))
            .await
            .map_err(|_elapsed| OpenError::HandshakeTimeout)?
            .map_err(|error| OpenError::Handshake(Arc::new(HandshakeError::of(&error))))?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let unidentified = || HandshakeError { phase: Phase::Finish, cause: Cause::Unidentified };
        let identity = tls.peer(Some(&chain), Usage::Server);
        let identity = identity.ok_or_else(|| OpenError::Handshake(Arc::new(unidentified())))?;
        let about = About { role: Role::Client, peer, local, identity, chain, generation: tls.number };
        let (windows, next_serial) = (&self.parts.books.windows, &*self.next_serial);
        let spoken = speak(stream, Speaking { about, limits, windows, next_serial, by }).await?;
        // Empty until now.
        let _ = inner.set(Rc::downgrade(&spoken.client.tunnel));
        Ok(spoken)
    }

    /// Drives it to its end.
    fn live(&self, spoken: Spoken<TlsStream<Carried>>, limits: &Limits) {
        let Spoken { client, connection, mut io, grant } = spoken;
        let listed = self.parts.tunnels.list(&client.tunnel);
        let counted = self.parts.books.peers.join(&client.tunnel.about.identity, Usage::Server);
        let pulse = Pulse { interval: limits.ping_interval, timeout: limits.ping_timeout };
        self.tasks.borrow_mut().spawn_local(async move {
            let (driving, pings) = Driving::new(connection, io.clone(), Rc::clone(&client), || {});
            Box::pin(drive(&client.tunnel, driving, Wire { handle: None, pings, pulse })).await;
            drop((grant, listed, counted));
            // Dropped before it has ended both ways, the outer stream would be reset.
            let _ = timeout(GOODBYE, rest(&mut io)).await;
        });
    }
}

/// Reads to the end.
async fn rest(io: &mut (impl AsyncRead + Unpin)) {
    let mut waste = [0; 1024];
    loop {
        let mut room = ReadBuf::new(&mut waste);
        let read = poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut room)).await;
        if read.is_err() || room.filled().is_empty() {
            return;
        }
    }
}
