//! The HBONE door: tunnels that peers open to us, and the connections that come out of them.
//!
//! ```text
//! accept -> queue -> handshake -> tunnel -> each stream: request -> next hop -> connect -> answer -> relay -> account
//! ```
//!
//! A tunnel's socket is admitted like any connection of the door, and so is each stream in it. Handshakes are bounded
//! ([`crate::proxy::handshakes`]); their deadline covers the wait for a slot, the wait for credentials, TLS and the
//! beginning of HTTP/2. A handshake that fails is one line and one count, whatever was sent. When the door closes, live
//! tunnels are retired by the worker, and a handshake has `AFTER_CLOSING` to complete: whoever is half way through one
//! has nothing to lose.

mod pump;
mod refusal;
mod stream;
mod trust;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until, timeout_at};

use crate::config::Settings;
use crate::hbone::Tunnel;
use crate::hbone::server::{Arrival, ArrivalError, Proven, Reached, arrive as shake_hands};
use crate::hbone::tunnel::{About, Pulse, Wire, drive};
use crate::identity::verify::Usage;
use crate::identity::{TlsGeneration, failures};
use crate::lifecycle::Phase;
use crate::net::address::{PeerAddr, canonical};
use crate::net::descriptors::Lent;
use crate::proxy::baggage::Baggage;
use crate::proxy::handshakes::{Paced, Slot};
use crate::proxy::limits::Admitted;
use crate::proxy::relay::reset;
use crate::proxy::worker::{Accepted, Worker};
use crate::telemetry::access::AccessRecord;
use crate::telemetry::{CloseReason, Door, PeerLabels, Role, TunnelEnd};

pub use trust::{judge_tunnels, look_after};

/// What a handshake may still take once the door is closed.
const AFTER_CLOSING: Duration = Duration::from_millis(500);

/// A socket that waits for its handshake.
#[derive(Debug)]
pub struct Arrived {
    stream: TcpStream,
    from: From,
}

/// Whose it is, and what it is counted by.
#[derive(Debug)]
struct From {
    peer: PeerAddr,
    at: Instant,
    settings: Rc<Settings>,
    _counted: (Admitted, Lent),
}

/// Who is at both ends of a tunnel; its streams share it.
#[derive(Debug)]
struct Ends {
    tunnel: Rc<Tunnel>,
    /// Verified identities.
    peer: Arc<str>,
    own: Arc<str>,
    /// What the answers of this tunnel say of the local workload.
    baggage: Baggage,
    /// Of the client, as its last stream had them.
    source: RefCell<Option<Arc<PeerLabels>>>,
}

impl Ends {
    /// The same for streams that say the same: series are remembered by what is shared, and a set for each stream would drive
    /// those of others out.
    fn share(&self, labels: PeerLabels) -> Arc<PeerLabels> {
        let mut source = self.source.borrow_mut();
        match &*source {
            Some(known) if **known == labels => Arc::clone(known),
            _ => Arc::clone(source.insert(Arc::new(labels))),
        }
    }
}

/// How far a handshake has come; for what is said when its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Credentials,
    Shaking,
}

/// Where a handshake is.
struct Progress {
    step: Cell<Step>,
    reached: Cell<Reached>,
}

impl Progress {
    fn new() -> Self {
        Self { step: Cell::new(Step::Credentials), reached: Cell::new(Reached::START) }
    }

    /// The phase that a failure which names none has come in.
    fn name(&self, failure: Failure) -> Failure {
        let detail = match self.step.get() {
            Step::Credentials => None,
            Step::Shaking => Some(format!("phase: {}", self.reached.get().name()).into()),
        };
        Failure { detail: failure.detail.or(detail), ..failure }
    }
}

/// Takes a socket of the door.
pub fn arrive(worker: &Rc<Worker>, accepted: Accepted<TcpStream>) {
    let Accepted { door, stream, peer, admitted, lent } = accepted;
    worker.counters.opened(door);
    let settings = worker.settings();
    let time = settings.tunnel.handshake_timeout;
    let from = From { peer, at: Instant::now(), settings, _counted: (admitted, lent) };
    if let Some(oldest) = worker.handshakes.push(Arrived { stream, from }, tokio::time::Instant::now(), time) {
        shed(worker, oldest, CloseReason::HandshakeShed);
    }
    worker.publish_load();
}

/// Begins handshakes as there are slots for them, for as long as the worker lives.
pub async fn begin_handshakes(worker: Rc<Worker>) {
    let mut turn = None;
    let mut closed = pin!(long_closed(&worker));
    loop {
        while let Some(late) = worker.handshakes.shed(tokio::time::Instant::now()) {
            shed(&worker, late, CloseReason::HandshakeShed);
        }
        let Some(too_late) = worker.handshakes.next_too_late() else {
            turn = None;
            worker.handshakes.arrival().await;
            continue;
        };
        let taking = turn.get_or_insert_with(|| Box::pin(next_turn(&worker)));
        tokio::select! {
            biased;
            () = &mut closed => break,
            slot = taking.as_mut() => {
                turn = None;
                if let Some(slot) = slot && let Some((arrived, deadline)) = worker.handshakes.begin() {
                    tokio::task::spawn_local(Box::pin(serve(Rc::clone(&worker), arrived, deadline, slot)));
                }
            }
            () = sleep_until(too_late) => {}
        }
    }
    loop {
        while let Some(waiting) = worker.handshakes.drop_one() {
            shed(&worker, waiting, CloseReason::Drain);
        }
        worker.handshakes.arrival().await;
    }
}

async fn next_turn(worker: &Worker) -> Option<Slot> {
    worker.handshakes.pace.ready().await;
    worker.shared.handshakes.clone().take().await
}

/// Returns a moment after the door was closed, or at once when the end is forced.
async fn long_closed(worker: &Worker) {
    worker.closing(Door::Hbone).await;
    tokio::select! {
        () = sleep(AFTER_CLOSING) => {}
        () = worker.shared.lifecycle.reached(Phase::Forced) => {}
    }
}

/// The task of a tunnel: handshake, and then its whole life.
async fn serve(worker: Rc<Worker>, arrived: Arrived, deadline: tokio::time::Instant, slot: Slot) {
    let Arrived { stream, from } = arrived;
    let local = stream.local_addr().map_or(from.peer.socket_addr(), canonical);
    let progress = Progress::new();
    // The handshake owns the socket; who has to make room, or is too late, is reset by this one. Without a descriptor to
    // spare it goes without.
    let spare = worker.shared.budget.take(1).and_then(|lent| Some((SockRef::from(&stream).try_clone().ok()?, lent)));
    let result = {
        // Boxed, and gone before the tunnel lives.
        let mut work = Box::pin(handshake(&worker, stream, &from.settings, &progress));
        let paced = Paced { work: work.as_mut(), pace: &worker.handshakes.pace };
        tokio::select! {
            biased;
            result = timeout_at(deadline, paced.run()) => result.unwrap_or_else(|_elapsed| Err(late(progress.step.get()))),
            () = long_closed(&worker) => Err(Failure::from(CloseReason::Drain)),
            () = worker.shared.handshakes.make_room(from.settings.tunnel.handshake_timeout) => {
                Err(Failure::from(CloseReason::HandshakeShed))
            }
        }
    };
    drop(slot);
    let given_up = [CloseReason::HandshakeShed, CloseReason::HandshakeTimeout];
    if matches!(&result, Err(failure) if given_up.contains(&failure.reason))
        && let Some((spare, _lent)) = &spare
    {
        // Where it fails the end is a FIN, which nobody takes for a handshake either.
        let _ = spare.set_linger(Some(Duration::ZERO));
    }
    drop(spare);
    match result {
        Ok((generation, proven, arrival)) => {
            let settings = Rc::clone(&from.settings);
            Box::pin(live(&worker, &settings, (from.peer, local), &generation, proven, arrival)).await;
        }
        Err(failure) => {
            failed(&worker, &from, progress.name(failure));
            worker.handshakes.done();
        }
    }
    drop(from);
    worker.publish_load();
}

/// Why there is no tunnel.
struct Failure {
    reason: CloseReason,
    /// For the counts of failed handshakes.
    word: &'static str,
    detail: Option<Box<str>>,
}

impl std::convert::From<CloseReason> for Failure {
    fn from(reason: CloseReason) -> Self {
        let word = match reason {
            CloseReason::HandshakeGone => "closed",
            CloseReason::HandshakeTimeout => "timeout",
            CloseReason::HandshakeShed => "limit",
            CloseReason::HandshakeUnready => "no_credentials",
            CloseReason::PrefaceFailed => "protocol",
            _ => "other",
        };
        Self { reason, word, detail: None }
    }
}

fn late(step: Step) -> Failure {
    match step {
        Step::Credentials => CloseReason::HandshakeUnready.into(),
        Step::Shaking => CloseReason::HandshakeTimeout.into(),
    }
}

async fn handshake(
    worker: &Worker,
    stream: TcpStream,
    settings: &Settings,
    progress: &Progress,
) -> Result<(Arc<TlsGeneration>, Proven, Arrival<impl AsyncRead + AsyncWrite + Unpin + use<>>), Failure> {
    let Some(generation) = credentials(worker).await else { return Err(CloseReason::HandshakeUnready.into()) };
    progress.step.set(Step::Shaking);
    let windows = &worker.shared.windows;
    let arrived = shake_hands(stream, &generation, &settings.tunnel, windows, &progress.reached).await;
    let (proven, arrival) = arrived.map_err(|error| why(&error))?;
    Ok((generation, proven, arrival))
}

/// Waits until there are credentials that can be used; nothing if there never will be.
async fn credentials(worker: &Worker) -> Option<Arc<TlsGeneration>> {
    let mut tls = worker.shared.tls.clone()?;
    loop {
        let current = tls.borrow_and_update().clone();
        if let Some(generation) = current.filter(|generation| generation.is_current(SystemTime::now())) {
            return Some(generation);
        }
        tls.changed().await.ok()?;
    }
}

/// In our own words; a peer that merely goes away is no failure.
fn why(error: &ArrivalError) -> Failure {
    match error {
        ArrivalError::Gone => CloseReason::HandshakeGone.into(),
        ArrivalError::Http2 => CloseReason::PrefaceFailed.into(),
        ArrivalError::Tls(error) if matches!(error.reason(), "closed" | "socket") => CloseReason::HandshakeGone.into(),
        ArrivalError::Tls(error) => {
            let detail = format!("{}: {error}", error.reason());
            Failure { reason: CloseReason::HandshakeFailed, word: error.reason(), detail: Some(detail.into()) }
        }
    }
}

/// From the complete handshake to the end of the tunnel.
async fn live(
    worker: &Rc<Worker>,
    settings: &Settings,
    (peer, local): (PeerAddr, SocketAddr),
    generation: &TlsGeneration,
    Proven { peer: identity, chain, handle }: Proven,
    arrival: Arrival<impl AsyncRead + AsyncWrite + Unpin>,
) {
    let source = identity.id.as_str().into();
    let _counted = worker.shared.peers.join(&identity, Usage::Client);
    let about =
        About { role: Role::Server, peer: peer.socket_addr(), local, identity, chain, generation: generation.number };
    let tunnel = Tunnel::new(about, Rc::clone(&arrival.meter));
    let listed = worker.tunnels.list(&tunnel);
    // Only now: until it is listed, a drain waits for the handshake.
    worker.handshakes.done();
    if worker.is_closed(Door::Hbone) {
        tunnel.retire(TunnelEnd::Drain);
    }
    // Trust may have changed meanwhile, and the change has not seen this one.
    trust::judge_newcomer(worker, &tunnel);
    worker.publish_load();
    let ends = Rc::new(Ends {
        tunnel: Rc::clone(&tunnel),
        peer: source,
        own: generation.credentials.id().as_str().into(),
        baggage: Baggage::default(),
        source: RefCell::default(),
    });
    let pulse = Pulse { interval: settings.tunnel.ping_interval, timeout: settings.tunnel.ping_timeout };
    let (served, pings) = arrival.serve(|asked| stream::carry(worker, &ends, asked));
    drive(&tunnel, served, Wire { handle: Some(handle), pings, pulse }).await;
    drop(listed);
    worker.counters.closed(Door::Hbone, tunnel.end().map_or(CloseReason::Drain, close_reason));
}

/// The end of a tunnel, in the words for connections.
fn close_reason(end: TunnelEnd) -> CloseReason {
    match end {
        TunnelEnd::Revoked => CloseReason::PeerRevoked,
        TunnelEnd::Untrusted => CloseReason::PeerUntrusted,
        end if end.is_orderly() => CloseReason::Finished,
        _ => CloseReason::TunnelGone,
    }
}

fn shed(worker: &Worker, arrived: Arrived, reason: CloseReason) {
    let Arrived { stream, from } = arrived;
    reset(stream);
    failed(worker, &from, reason.into());
}

/// One count and, within the limit of the process, one line.
fn failed(worker: &Worker, from: &From, Failure { reason, word, detail }: Failure) {
    worker.shared.handshake_failures.count(failures::Role::Server, word);
    worker.counters.closed(Door::Hbone, reason);
    if !worker.shared.log.access_enabled(reason) {
        return;
    }
    if !worker.shared.handshakes.admit_line(Instant::now()) {
        worker.counters.lines_suppressed(1);
        return;
    }
    worker.shared.log.access(Box::new(AccessRecord {
        downstream: Some(from.peer.socket_addr()),
        duration: from.at.elapsed(),
        detail,
        ..AccessRecord::new(worker.registry.new_id(), Door::Hbone, reason)
    }));
}

#[cfg(test)]
mod tests;
