//! Connect: from a target to an established upstream socket, with a deadline, trying another endpoint when one fails.
//!
//! Each attempt has `connect.timeout`, all together have `connect.deadline`. An endpoint that failed is not tried again
//! while another is untried. A single address that refuses is final at once. Nothing has been sent upstream before this
//! stage ends, so every retry is safe. A client that resets ends the attempt; its FIN alone does not.

mod candidates;
mod learn;
mod tunnel;

pub use tunnel::Tunnelled;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout_at};

use crate::config::settings::{Connect, Tunnel as TunnelSettings};
use crate::mesh::Workload;
use crate::mesh::live::InUse;
use crate::net::address::{OriginalDst, PeerAddr, UpstreamAddr};
use crate::net::dial::{DialError, DialOptions, Dialled, Source, begin};
use crate::net::own_sockets::Way;
use crate::proxy::authorize::Permit;
use crate::proxy::balance::Picked;
use crate::proxy::balance::draw::{self, draw};
use crate::proxy::connect::candidates::Tried;
use crate::proxy::connect::learn::{blames_endpoint, learn};
use crate::proxy::relay::reset;
use crate::proxy::resolve::endpoint::Place;
use crate::proxy::resolve::route::{Asking, Candidate, Route, RouteError};
use crate::proxy::resolve::{ResolveError, Target};
use crate::proxy::worker::Worker;
use crate::telemetry::CloseReason;
use crate::telemetry::access::Attempt;

/// An upstream connection and how it came about.
#[derive(Debug)]
pub struct Connected {
    pub via: Via,
    /// What was dialled.
    pub hop: UpstreamAddr,
    /// The workload that was reached, if the state knows it.
    pub workload: Option<Arc<Workload>>,
    /// What it is counted by.
    pub using: Counted,
}

/// What a connection counts at while it lives.
#[derive(Debug, Default)]
pub struct Counted {
    /// The endpoint and, if there is one on the way, the gateway.
    pub endpoints: Vec<Picked>,
    pub service: Option<InUse>,
}

/// What carries it.
#[derive(Debug)]
pub enum Via {
    Socket(Dialled),
    Tunnel(Box<Tunnelled>),
}

/// Why there is no upstream connection.
#[derive(Debug)]
pub struct ConnectError {
    pub reason: CloseReason,
    /// The system's words, or the peer's.
    pub detail: Option<io::Error>,
    /// It is about us or about what was asked, whatever the reason says: nobody else would do better, and whoever was asked
    /// is not to blame.
    pub blameless: bool,
}

impl ConnectError {
    #[must_use]
    pub const fn new(reason: CloseReason, detail: Option<io::Error>) -> Self {
        Self { reason, detail, blameless: false }
    }
}

impl From<ResolveError> for ConnectError {
    fn from(error: ResolveError) -> Self {
        Self::new(error.close_reason(), error.detail().map(io::Error::other))
    }
}

impl From<RouteError> for ConnectError {
    fn from(error: RouteError) -> Self {
        let reason = error.close_reason();
        // The reason alone says as much.
        let detail = (error != RouteError::NoEndpoint).then(|| io::Error::other(error));
        Self::new(reason, detail)
    }
}

impl From<CloseReason> for ConnectError {
    fn from(reason: CloseReason) -> Self {
        Self::new(reason, None)
    }
}

/// What the attempts of one connection share.
#[derive(Debug)]
pub struct Request<'a> {
    pub target: &'a Target,
    pub permit: Permit,
    pub dst: OriginalDst,
    pub client: PeerAddr,
    /// The client's socket; nothing where the client is a stream, which is watched by whoever asks.
    pub downstream: Option<&'a TcpStream>,
    pub network: &'a str,
    pub limits: &'a Connect,
    pub tunnel: &'a TunnelSettings,
    /// In whose name to connect to the application.
    pub source: Option<Source>,
    pub way: Way,
}

impl Connected {
    /// Ends it with a reset: the destination must not take what never began for a client that had nothing to say.
    pub fn abandon(self) {
        match self.via {
            Via::Socket(dialled) => reset(dialled.stream),
            Via::Tunnel(mut tunnelled) => tunnelled.stream.reset(h2::Reason::CANCEL),
        }
    }

    /// Our address, where there is a socket of its own.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        match &self.via {
            Via::Socket(dialled) => Some(dialled.own.local()),
            Via::Tunnel(_) => None,
        }
    }
}

/// Connects to the target. Every attempt is written to `attempts`, also when the whole fails.
///
/// # Errors
/// The last attempt's reason, or the reason that ended the trying.
pub async fn connect(
    worker: &Worker,
    request: &Request<'_>,
    attempts: &mut Vec<Attempt>,
) -> Result<Connected, ConnectError> {
    let deadline = tokio::time::Instant::now() + request.limits.deadline;
    let service = count_at_service(worker, request)?;
    let mut tried = Tried::default();
    let mut last: Option<ConnectError> = None;
    for attempt in 0..request.limits.attempts.get() {
        if attempt > 0 {
            let pause = backoff(request.limits.backoff, attempt, fastrand::f64());
            let resume = tokio::time::Instant::now() + pause;
            if resume >= deadline {
                break;
            }
            unless_gone(request.downstream, pin!(sleep_until(resume))).await?;
        }
        let candidate = match next(worker, request, &mut tried) {
            Ok(candidate) => candidate,
            Err(error) => return Err(last.unwrap_or(error)),
        };
        let result = try_one(worker, request, &candidate.route, attempts, deadline).await;
        learn(worker, &tried.picked, result.as_ref().err(), attempts);
        match result {
            Ok((via, hop)) => {
                let using = Counted { endpoints: tried.picked, service };
                return Ok(Connected { via, hop, workload: candidate.workload, using });
            }
            Err(error) if !retryable(&error, request.target) => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| CloseReason::ConnectTimeout.into()))
}

/// The next candidate, in the state as it is now.
fn next(worker: &Worker, request: &Request<'_>, tried: &mut Tried) -> Result<Candidate, ConnectError> {
    let (settings, snapshot) = (worker.settings(), worker.snapshot());
    let client_namespace = &settings.workload.namespace;
    let asking = Asking { snapshot: &snapshot, dst: request.dst, network: request.network, client_namespace };
    let served = worker.served();
    let next = tried.next(&asking, request.target, |state, candidates, tried| {
        let drawing = draw::Asking {
            source: served.workload.as_deref(),
            tried,
            limit: state.service.max_connections.per_endpoint.or(settings.limits.per_endpoint),
            trial: request.limits.deadline,
            now_ms: worker.now_ms(),
        };
        worker.with_random(|random| draw(candidates, &drawing, random))
    });
    let candidate = next.map_err(|error| match error {
        RouteError::NoEndpoint | RouteError::NoWaypoint(_) if tried.full => CloseReason::EndpointLimit.into(),
        error => ConnectError::from(error),
    })?;
    if let (Target::Single { .. }, Way::Out, Some(workload)) = (request.target, request.way, &candidate.workload) {
        count_at(workload, settings.limits.per_endpoint, tried)?;
    }
    Ok(candidate)
}

/// Counts the connection at the service that it is for.
fn count_at_service(worker: &Worker, request: &Request<'_>) -> Result<Option<InUse>, ConnectError> {
    let Target::Service { state, .. } = request.target else { return Ok(None) };
    let limit = state.service.max_connections.per_service.or(worker.settings().limits.per_service);
    state.live.take(limit).map(Some).ok_or_else(|| CloseReason::ServiceLimit.into())
}

/// Counts the connection at a workload for which there was no choice.
fn count_at(workload: &Workload, limit: Option<NonZeroU32>, tried: &mut Tried) -> Result<(), ConnectError> {
    let live = workload.live.clone();
    let in_use = live.take(limit).ok_or(CloseReason::EndpointLimit)?;
    tried.picked = vec![Picked { live, among: None, in_use }];
    Ok(())
}

/// Finds out where the route leads, and connects to it.
async fn try_one(
    worker: &Worker,
    request: &Request<'_>,
    route: &Route,
    attempts: &mut Vec<Attempt>,
    deadline: tokio::time::Instant,
) -> Result<(Via, UpstreamAddr), ConnectError> {
    let hop = match route.known_hop() {
        Some(hop) => hop,
        None => {
            // Boxed: connections to addresses should not carry the room for it.
            let mut looking = Box::pin(look_up(worker, request, route, deadline));
            unless_gone(request.downstream, looking.as_mut()).await??
        }
    };
    if worker.is_own(route.leads_to(hop)) {
        return Err(CloseReason::LoopRefused.into());
    }
    let started = Instant::now();
    let result = attempt_one(worker, request, route, hop, deadline).await;
    let took = started.elapsed();
    let outcome = result.as_ref().map(|_| ()).map_err(|error| error.reason);
    attempts.push(Attempt { address: hop.socket_addr(), outcome, took });
    result.map(|via| (via, hop))
}

/// The address behind the route's host name.
async fn look_up(
    worker: &Worker,
    request: &Request<'_>,
    route: &Route,
    deadline: tokio::time::Instant,
) -> Result<UpstreamAddr, ConnectError> {
    let (place, port, wanted) = route.to_look_up(request.dst.ip());
    let Place::Hostname(name) = place else { return Err(CloseReason::GatewayUnavailable.into()) };
    let source = worker.served().workload.as_ref().map(|workload| Arc::clone(&workload.labels));
    match worker.hostnames.look_up(&name, wanted, source, deadline).await {
        Ok(ip) => Ok(UpstreamAddr::new((ip, port).into())),
        Err(error) => {
            let detail = io::Error::other(format!("{name}: {error}"));
            Err(ConnectError::new(CloseReason::HostnameUnresolved, Some(detail)))
        }
    }
}

async fn attempt_one(
    worker: &Worker,
    request: &Request<'_>,
    route: &Route,
    hop: UpstreamAddr,
    deadline: tokio::time::Instant,
) -> Result<Via, ConnectError> {
    let tunnel = match route {
        Route::Address(_) | Route::Plain { .. } => None,
        Route::Tunnel(leg) | Route::Waypoint(leg) => Some((leg, None)),
        Route::Gateway { outer, inner } => Some((outer, Some(inner))),
    };
    if let Some((leg, inner)) = tunnel {
        // Boxed: plain connections should not carry the room for it.
        let mut opening = Box::pin(tunnel::open(worker, request, leg, hop, inner, deadline));
        return Ok(Via::Tunnel(Box::new(unless_gone(request.downstream, opening.as_mut()).await??)));
    }
    let until = deadline.min(tokio::time::Instant::now() + request.limits.timeout);
    let options = DialOptions { mark: worker.shared.mark, source: request.source, way: request.way };
    let dialling = begin(hop, options, &worker.shared.own_sockets).map_err(classify)?;
    match unless_gone(request.downstream, pin!(timeout_at(until, dialling))).await? {
        Ok(dialled) => dialled.map(Via::Socket).map_err(classify),
        Err(_elapsed) => Err(CloseReason::ConnectTimeout.into()),
    }
}

/// Runs `work` unless the client resets or its socket fails.
async fn unless_gone<T>(
    downstream: Option<&TcpStream>,
    work: Pin<&mut impl Future<Output = T>>,
) -> Result<T, ConnectError> {
    let Some(downstream) = downstream else { return Ok(work.await) };
    tokio::select! {
        biased;
        result = work => Ok(result),
        _ = downstream.ready(Interest::ERROR) => {
            Err(ConnectError::new(CloseReason::DownstreamGone, downstream.take_error().ok().flatten()))
        }
    }
}

fn classify(error: DialError) -> ConnectError {
    let reason = error.close_reason();
    let (DialError::Source { error: detail, .. }
    | DialError::Socket(detail)
    | DialError::Connect { error: detail, .. }) = error;
    ConnectError::new(reason, Some(detail))
}

/// Whether another attempt makes sense: on another endpoint after any failure of one, on a single address only while
/// it has not answered.
fn retryable(error: &ConnectError, target: &Target) -> bool {
    match error.reason {
        _ if error.blameless => false,
        CloseReason::ConnectTimeout | CloseReason::ConnectUnreachable | CloseReason::TunnelConnectTimeout => true,
        CloseReason::HostnameUnresolved | CloseReason::PeerRevoked | CloseReason::PeerUntrusted => !target.is_single(),
        _ => blames_endpoint(error) && !target.is_single(),
    }
}

/// The pause before the given attempt (from 1): doubles each time, at most a second, jittered by half around its mean.
fn backoff(mean: Duration, attempt: u32, random: f64) -> Duration {
    let doubled = mean.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(Duration::from_secs(1));
    doubled.mul_f64(0.5 + random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::resolve::Carriage;
    use proptest::prelude::*;
    use rustix::io::Errno;

    proptest! {
        #[test]
        fn backoff_stays_in_bounds(mean_ms in 0_u64..60_000, attempt in 1_u32..1000, random in 0.0..1.0_f64) {
            let mean = Duration::from_millis(mean_ms);
            let pause = backoff(mean, attempt, random);
            prop_assert!(pause <= Duration::from_millis(1500));
            prop_assert!(pause >= mean.min(Duration::from_secs(1)) / 2);
        }
    }

    #[test]
    fn errors_have_their_own_reason() {
        let address = UpstreamAddr::new("10.0.0.1:80".parse().expect("address"));
        for (errno, want) in [
            (Errno::CONNREFUSED, CloseReason::ConnectRefused),
            (Errno::TIMEDOUT, CloseReason::ConnectTimeout),
            (Errno::HOSTUNREACH, CloseReason::ConnectUnreachable),
            (Errno::CONNRESET, CloseReason::ConnectReset),
            (Errno::ADDRNOTAVAIL, CloseReason::ConnectError),
        ] {
            assert_eq!(classify(DialError::Connect { address, error: errno.into() }).reason, want);
        }
        assert_eq!(classify(DialError::Socket(Errno::MFILE.into())).reason, CloseReason::ConnectError);
    }

    #[test]
    fn a_single_address_that_refuses_is_final() {
        let address = UpstreamAddr::new("10.0.0.1:80".parse().expect("address"));
        let single = Target::Single { address, workload: None, service: None, carriage: Carriage::Plain };
        for (reason, want) in [
            (CloseReason::ConnectRefused, false),
            (CloseReason::ConnectTimeout, true),
            (CloseReason::TunnelRefused, false),
            (CloseReason::PeerRevoked, false),
            (CloseReason::ConnectError, false),
        ] {
            assert_eq!(retryable(&reason.into(), &single), want, "{reason:?}");
        }
    }

    #[test]
    fn what_another_endpoint_may_do_better() {
        const STATE: &str = "services: [{ name: s, namespace: n, hostname: s, vips: [], ports: { 80: 80 } }]\n";
        let snapshot = crate::mesh::snapshot_of("mesh.yaml", STATE).expect("a mesh");
        let state = Arc::clone(snapshot.service_by_key("n", "s").expect("the service"));
        let service = Target::Service { state, port: 80 };
        for (reason, again, blamed) in [
            (CloseReason::ConnectRefused, true, true),
            (CloseReason::TunnelRefused, true, true),
            (CloseReason::TunnelLost, true, true),
            (CloseReason::HostnameUnresolved, true, false),
            (CloseReason::PeerRevoked, true, false),
            (CloseReason::PeerUntrusted, true, false),
            (CloseReason::TunnelDenied, false, false),
            (CloseReason::ConnectError, false, false),
            (CloseReason::DownstreamGone, false, false),
        ] {
            let error = ConnectError::from(reason);
            assert_eq!((retryable(&error, &service), blames_endpoint(&error)), (again, blamed), "{reason:?}");
            let error = ConnectError { blameless: true, ..error };
            assert_eq!((retryable(&error, &service), blames_endpoint(&error)), (false, false), "{reason:?}");
        }
    }
}
