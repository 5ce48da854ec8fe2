//! One stream of a tunnel that came in: from its request to the application, in this order:
//!
//! ```text
//! admit -> request -> local workload -> next hop -> authorize -> connect -> answer -> relay -> account
//! ```
//!
//! The client gets 200 only when the application's connection exists; a refusal is a status and a word. What ends while
//! the application is being connected (the client's reset, the tunnel, a kill) ends the connecting. What the client
//! claims in headers is for logs and metrics only. Fails closed.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderValue, StatusCode, request};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::config::Settings;
use crate::hbone::request::{Claims, LONGEST_AUTHORITY, accepted, read, refused};
use crate::hbone::server::Asked;
use crate::hbone::{Chunk, Lease, Stream};
use crate::mesh::{Snapshot, Workload};
use crate::net::address::{OriginalDst, PeerAddr, UpstreamAddr};
use crate::net::descriptors::Lent;
use crate::net::dial::{Dialled, Source};
use crate::net::own_sockets::Way;
use crate::proxy::account::{self, Ending};
use crate::proxy::connect::{Connected, Request, Via, connect};
use crate::proxy::gate::{pass, served};
use crate::proxy::inbound::source_to_show;
use crate::proxy::limits::Admitted;
use crate::proxy::next_hop::{NextHop, Question, Refusal as NoHop, next_hop};
use crate::proxy::proxy_header::{HEADER_WITHIN, proxy_v2};
use crate::proxy::rate::Key;
use crate::proxy::registry::{Entry, Registered, State, Who};
use crate::proxy::relay::reset;
use crate::proxy::resolve::{Carriage, Target};
use crate::proxy::tunnelled::refusal::{Answer, Refusal};
use crate::proxy::tunnelled::{Ends, close_reason, pump};
use crate::proxy::worker::Worker;
use crate::telemetry::access::Attempt;
use crate::telemetry::{CloseReason, Door, PeerLabels, SecurityPolicy};

/// Lets the stream in and starts its task, or refuses it.
pub(super) fn carry(worker: &Rc<Worker>, ends: &Rc<Ends>, asked: Asked) {
    let counted = match admit(worker) {
        Ok(counted) => counted,
        Err(scope) => {
            let Asked { mut respond, .. } = asked;
            let reason = CloseReason::ConnectionLimit;
            // Whether it is still there or not makes no difference.
            let _ = respond.send_response(refused(StatusCode::SERVICE_UNAVAILABLE, reason.as_str()), true);
            if worker.admit_line(Door::Hbone) {
                let peer = ends.tunnel.about.peer;
                tracing::warn!(listener = Door::Hbone.as_str(), scope, %peer, "stream refused: limit reached");
            }
            return;
        }
    };
    let peer = PeerAddr::new(ends.tunnel.about.peer);
    let entry = worker.registry.register(Door::Hbone, peer, worker.settings());
    worker.counters.opened(Door::Hbone);
    worker.publish_load();
    tokio::task::spawn_local(serve(Rc::clone(worker), entry, Rc::clone(ends), ends.tunnel.lease(), asked, counted));
}

/// One more connection of the door, and a descriptor for the application's socket.
fn admit(worker: &Worker) -> Result<(Admitted, Lent), &'static str> {
    let admitted = worker.shared.limits.admit(Door::Hbone).map_err(|scope| {
        worker.counters.refused(scope);
        scope.as_str()
    })?;
    match worker.shared.budget.take(1) {
        Some(lent) => Ok((admitted, lent)),
        None => {
            worker.counters.refused(crate::telemetry::Scope::Total);
            Err("descriptors")
        }
    }
}

/// The task of a stream.
async fn serve(
    worker: Rc<Worker>,
    entry: Registered,
    ends: Rc<Ends>,
    lease: Lease,
    asked: Asked,
    counted: (Admitted, Lent),
) {
    let mut ending = Ending::new(CloseReason::Finished);
    match Box::pin(set_up(&worker, &entry, &ends, lease, asked, &mut ending)).await {
        Ok((Dialled { stream: application, own }, stream)) => {
            ending.reason = pump::relay_stream(application, stream, &entry).await;
            drop(own);
        }
        Err(Refusal { reason, detail, .. }) => {
            ending.reason = reason;
            ending.detail = detail;
        }
    }
    account::close(&worker, &entry, ending);
    drop((entry, counted));
    worker.publish_load();
}

/// Everything up to the answer; a refused client has been told when this returns.
async fn set_up(
    worker: &Worker,
    entry: &Entry,
    ends: &Ends,
    lease: Lease,
    Asked { request, mut respond }: Asked,
    ending: &mut Ending,
) -> Result<(Dialled, Stream), Refusal> {
    let (parts, receive) = request.into_parts();
    let mut attempts = Vec::new();
    let result = {
        let opening = pin!(open(worker, entry, ends, &parts, &mut attempts));
        let work = pin!(unless_gone(&mut respond, ends, opening));
        entry.unless_killed(work).await.unwrap_or_else(|reason| Err(Refusal::killed(reason)))
    };
    ending.attempts = attempts;
    if entry.state() == State::Connecting || entry.denial().is_some() {
        account::open(worker, entry);
    }
    match result {
        Ok(opened) => Box::pin(welcome(ends, lease, opened, respond, receive)).await,
        Err(refusal) => {
            answer(&mut respond, &refusal.answer);
            Err(refusal)
        }
    }
}

fn answer(respond: &mut SendResponse<Chunk>, answer: &Answer) {
    match answer {
        Answer::Status(status, word) => {
            // Whether it is still there or not makes no difference.
            let _ = respond.send_response(refused(*status, word), true);
        }
        Answer::Reset(reason) => respond.send_reset(*reason),
        Answer::None => {}
    }
}

/// Runs `work` unless the client resets the stream, or the tunnel is lost.
async fn unless_gone<T>(
    respond: &mut SendResponse<Chunk>,
    ends: &Ends,
    work: std::pin::Pin<&mut impl Future<Output = Result<T, Refusal>>>,
) -> Result<T, Refusal> {
    tokio::select! {
        biased;
        gone = poll_fn(|cx| respond.poll_reset(cx)) => Err(Refusal::gone(match gone {
            // The code may also be that of our own GOAWAY.
            Ok(_) if ends.tunnel.cutting().is_none() => CloseReason::DownstreamGone,
            _ => lost(ends),
        })),
        result = work => result,
    }
}

/// Why the tunnel is not there any more.
fn lost(ends: &Ends) -> CloseReason {
    match ends.tunnel.end().or_else(|| ends.tunnel.cutting()).map(close_reason) {
        Some(CloseReason::Finished) | None => CloseReason::TunnelGone,
        Some(reason) => reason,
    }
}

/// An application that has accepted, and what it and the client are still to be told.
struct Opened {
    dialled: Dialled,
    baggage: Option<HeaderValue>,
    /// Before all other bytes.
    header: Option<Vec<u8>>,
}

/// From a request to an established connection to the application.
async fn open(
    worker: &Worker,
    entry: &Entry,
    ends: &Ends,
    parts: &request::Parts,
    attempts: &mut Vec<Attempt>,
) -> Result<Opened, Refusal> {
    let settings = &entry.settings;
    note_tunnel(entry, ends, parts);
    let asked = read(parts)?;
    let arrival = ends.tunnel.about.local;
    // Without a name there is none to wait for, and who has the address of the tunnel is not asked.
    if worker.serves_nobody() || served(worker).await.is_err() {
        return Err(NoHop::UnknownLocalWorkload.into());
    }
    let (local, hop) = {
        let snapshot = worker.snapshot();
        let local = worker.served().workload.clone().ok_or(NoHop::UnknownLocalWorkload)?;
        let question = Question {
            arrival,
            authority: &asked.authority,
            local: Some(&*local),
            network: &settings.network,
            forwarded_host: asked.claims.forwarded_host(),
        };
        let hop = next_hop(&snapshot, &question, |address| worker.is_own(address));
        note_ends(entry, ends, &snapshot, &local, asked.claims, hop.as_ref().ok());
        let admitted = worker.shared.rates.admit(&settings.limits, || rate_key(&snapshot, entry, ends));
        admitted.map_err(|_limited| Refusal::too_many())?;
        (local, hop?)
    };
    // By the port that was asked for, the peer's address and its verified identity, never by claims.
    let permit = pass(
        worker,
        entry,
        Who {
            identity: Some(ends.tunnel.about.identity.id.clone()),
            source: entry.peer.ip(),
            destination: UpstreamAddr::new(arrival).ip(),
            port: hop.policy_port,
        },
    )?;
    let source = match hop.proxy_target {
        // On loopback; the header says who it is.
        Some(_) => None,
        // The port is the tunnel's, and says nothing of the client's.
        None => source_to_show(worker, settings, SocketAddr::new(entry.peer.ip(), 0), hop.address.ip())?,
    };
    entry.set_state(State::Connecting);
    let (address, workload) = (hop.address, Some(Arc::clone(&local)));
    let target = Target::Single { address, workload, service: None, carriage: Carriage::Plain };
    let request = Request {
        target: &target,
        permit,
        dst: OriginalDst::new(hop.address.socket_addr()),
        client: entry.peer,
        downstream: None,
        network: &settings.network,
        limits: &settings.connect,
        tunnel: &settings.tunnel,
        source,
        way: source.map_or(Way::In, Source::way),
    };
    // Never a tunnel: the target says so.
    let Connected { via: Via::Socket(dialled), .. } = connect(worker, &request, attempts).await? else {
        return Err(Refusal::unavailable(CloseReason::ConnectError));
    };
    entry.touch();
    let client = entry.peer.socket_addr();
    let header = hop.proxy_target.map(|target| proxy_v2(client, target, Some(&ends.peer)));
    Ok(Opened { dialled, baggage: ends.baggage.of(&local), header })
}

/// The workload that has the address and the identity of the peer; behind a gateway, and of whoever is not in the state, only the
/// identity is known.
fn rate_key(snapshot: &Snapshot, entry: &Entry, ends: &Ends) -> Key {
    let known = snapshot.workload(&entry.settings.network, entry.peer.ip());
    match known.filter(|workload| workload.labels.principal == ends.peer) {
        Some(workload) => Key::Workload(Arc::clone(&workload.uid)),
        None => Key::Identity(Arc::clone(&ends.peer)),
    }
}

/// What is known before the request is understood.
fn note_tunnel(entry: &Entry, ends: &Ends, parts: &request::Parts) {
    let mut facts = entry.facts.borrow_mut();
    facts.original_dst = Some(OriginalDst::new(ends.tunnel.about.local));
    facts.security = SecurityPolicy::MutualTls;
    facts.source_identity = Some(Arc::clone(&ends.peer));
    facts.destination_identity = Some(Arc::clone(&ends.own));
    // As long as a sound one can be; the rest of another says nothing more.
    let short = |text: &str| text.get(..text.len().min(LONGEST_AUTHORITY)).unwrap_or_default().into();
    facts.hbone_addr = parts.uri.authority().map(|authority| short(authority.as_str()));
}

/// What the state knows of both ends, and what the client claims where it knows nothing.
fn note_ends(
    entry: &Entry,
    ends: &Ends,
    snapshot: &Snapshot,
    local: &Workload,
    claims: Claims<'_>,
    hop: Option<&NextHop>,
) {
    let mut facts = entry.facts.borrow_mut();
    facts.source = Some(source_labels(snapshot, &entry.settings, entry.peer, claims, ends));
    facts.destination = Some(Arc::clone(&local.labels));
    facts.upstream = hop.map(|hop| hop.address);
    facts.service = hop.and_then(|hop| hop.service.clone());
}

/// The workload that has the peer's address, unless the peer says that it is in another network; else what the peer says
/// of itself. Its principal is always the verified one.
fn source_labels(
    snapshot: &Snapshot,
    settings: &Settings,
    peer: PeerAddr,
    claims: Claims<'_>,
    ends: &Ends,
) -> Arc<PeerLabels> {
    let identity = &ends.peer;
    let foreign = claims.network().is_some_and(|network| !network.eq_ignore_ascii_case(&settings.network));
    let known = if foreign { None } else { snapshot.workload(&settings.network, peer.ip()) };
    match known {
        Some(workload) if workload.labels.principal == *identity => Arc::clone(&workload.labels),
        Some(workload) => {
            ends.share(PeerLabels { principal: Arc::clone(identity), ..PeerLabels::clone(&workload.labels) })
        }
        None => ends.share(PeerLabels { principal: Arc::clone(identity), ..claims.peer().unwrap_or_default() }),
    }
}

/// Tells the client that the application is there, and the application who the client is, if it wants to know.
async fn welcome(
    ends: &Ends,
    lease: Lease,
    Opened { mut dialled, baggage, header }: Opened,
    mut respond: SendResponse<Chunk>,
    receive: RecvStream,
) -> Result<(Dialled, Stream), Refusal> {
    let Ok(send) = respond.send_response(accepted(baggage.as_ref()), false) else {
        reset(dialled.stream);
        return Err(Refusal::gone(if ends.tunnel.end().is_some() { lost(ends) } else { CloseReason::DownstreamGone }));
    };
    let stream = Stream::new(send, receive, lease);
    if let Some(header) = header {
        let written = timeout(HEADER_WITHIN, dialled.stream.write_all(&header)).await;
        if let Err(error) = written.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
            pump::abandon(stream);
            return Err(Refusal {
                detail: Some(error.to_string().into()),
                ..Refusal::gone(CloseReason::UpstreamError)
            });
        }
    }
    Ok((dialled, stream))
}
