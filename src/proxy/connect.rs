//! Connect: from a target to an established upstream socket, with a deadline, trying another endpoint when one fails.
//!
//! Each attempt has `connect.timeout`, all together have `connect.deadline`. An endpoint that failed is not tried again
//! while another is untried. A single address that refuses is final at once. Nothing has been sent upstream before this
//! stage ends, so every retry is safe. A client that resets ends the attempt; its FIN alone does not.

mod tunnel;

pub use tunnel::Tunnelled;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout_at};

use crate::config::settings::{Connect, Tunnel as TunnelSettings};
use crate::mesh::Workload;
use crate::net::address::{OriginalDst, PeerAddr, UpstreamAddr};
use crate::net::dial::{DialError, DialOptions, Dialled, dial};
use crate::net::own_sockets::Way;
use crate::proxy::balance::choose;
use crate::proxy::resolve::{Carriage, Target};
use crate::proxy::worker::Worker;
use crate::telemetry::CloseReason;
use crate::telemetry::access::Attempt;

/// An upstream connection and how it came about.
#[derive(Debug)]
pub struct Connected {
    pub via: Via,
    /// Of the destination; inside a tunnel nobody dials it but the far side.
    pub address: UpstreamAddr,
    /// The workload that was reached, if the state knows it.
    pub workload: Option<Arc<Workload>>,
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
}

impl From<CloseReason> for ConnectError {
    fn from(reason: CloseReason) -> Self {
        Self { reason, detail: None }
    }
}

/// What the attempts of one connection share.
#[derive(Debug)]
pub struct Request<'a> {
    pub target: &'a Target,
    pub dst: OriginalDst,
    pub client: PeerAddr,
    /// The client's socket; nothing where the client is a stream, which is watched by whoever asks.
    pub downstream: Option<&'a TcpStream>,
    pub network: &'a str,
    pub limits: &'a Connect,
    pub tunnel: &'a TunnelSettings,
    /// The client's address, to connect from it.
    pub source: Option<IpAddr>,
    pub way: Way,
}

/// One candidate of a target.
struct Candidate {
    address: UpstreamAddr,
    workload: Option<Arc<Workload>>,
    carriage: Carriage,
}

impl Connected {
    /// Where the connection really goes.
    #[must_use]
    pub fn next_hop(&self) -> UpstreamAddr {
        match &self.via {
            Via::Socket(_) => self.address,
            Via::Tunnel(_) => tunnel::next_hop(self.address),
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

impl Candidate {
    /// What is dialled to reach it.
    fn next_hop(&self) -> UpstreamAddr {
        match self.carriage {
            Carriage::Plain => self.address,
            Carriage::Tunnel => tunnel::next_hop(self.address),
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
    let mut tried: Vec<UpstreamAddr> = Vec::new();
    let mut last: Option<ConnectError> = None;
    for attempt in 0..request.limits.attempts.get() {
        if attempt > 0 {
            let pause = backoff(request.limits.backoff, attempt, fastrand::f64());
            let resume = tokio::time::Instant::now() + pause;
            if resume >= deadline {
                break;
            }
            let pause = pin!(async {
                sleep_until(resume).await;
                Ok(())
            });
            unless_gone(request.downstream, pause).await?;
        }
        let Some(candidate) = next(worker, request, &mut tried)? else {
            return Err(last.unwrap_or_else(|| CloseReason::NoHealthyUpstream.into()));
        };
        let started = Instant::now();
        let result = attempt_one(worker, request, &candidate, deadline).await;
        let took = started.elapsed();
        let outcome = result.as_ref().map(|_| ()).map_err(|error| error.reason);
        attempts.push(Attempt { address: candidate.next_hop().socket_addr(), outcome, took });
        tried.push(candidate.address);
        match result {
            Ok(via) => return Ok(Connected { via, address: candidate.address, workload: candidate.workload }),
            Err(error) if !retryable(error.reason, request.target) => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| CloseReason::ConnectTimeout.into()))
}

/// The next candidate; one that was tried only when none is untried.
fn next(
    worker: &Worker,
    request: &Request<'_>,
    tried: &mut Vec<UpstreamAddr>,
) -> Result<Option<Candidate>, ConnectError> {
    let candidate = match request.target {
        Target::Single { address, workload, carriage, .. } => {
            Candidate { address: *address, workload: workload.clone(), carriage: *carriage }
        }
        Target::Service { state, port } => {
            let pick = |tried: &[UpstreamAddr]| {
                worker.with_random(|random| choose(state, *port, request.dst.ip(), request.network, tried, random))
            };
            let mut choice = pick(tried);
            if choice.is_none() && !tried.is_empty() {
                tried.clear();
                choice = pick(tried);
            }
            let Some(choice) = choice else { return Ok(None) };
            let Some(carriage) = choice.carriage else { return Err(CloseReason::TunnelUnsupported.into()) };
            Candidate { address: choice.address, workload: Some(choice.workload), carriage }
        }
    };
    if worker.is_own(candidate.address) {
        return Err(CloseReason::LoopRefused.into());
    }
    Ok(Some(candidate))
}

async fn attempt_one(
    worker: &Worker,
    request: &Request<'_>,
    candidate: &Candidate,
    deadline: tokio::time::Instant,
) -> Result<Via, ConnectError> {
    match (candidate.carriage, &candidate.workload) {
        (Carriage::Plain, _) => {}
        (Carriage::Tunnel, Some(workload)) => {
            // Boxed: plain connections should not carry the room for it.
            let mut opening = Box::pin(tunnel::open(worker, request, candidate.address, workload, deadline));
            return Ok(Via::Tunnel(Box::new(unless_gone(request.downstream, opening.as_mut()).await?)));
        }
        // Nobody makes one; if somebody did, it would not be known who may answer.
        (Carriage::Tunnel, None) => return Err(CloseReason::TunnelUnsupported.into()),
    }
    let until = deadline.min(tokio::time::Instant::now() + request.limits.timeout);
    let options = DialOptions { mark: worker.shared.mark, source: request.source, way: request.way };
    let dialling = pin!(async {
        match timeout_at(until, dial(candidate.address, options, &worker.shared.own_sockets)).await {
            Ok(result) => result.map_err(classify),
            Err(_elapsed) => Err(CloseReason::ConnectTimeout.into()),
        }
    });
    unless_gone(request.downstream, dialling).await.map(Via::Socket)
}

/// Runs `work` unless the client resets or its socket fails.
async fn unless_gone<T>(
    downstream: Option<&TcpStream>,
    work: Pin<&mut impl Future<Output = Result<T, ConnectError>>>,
) -> Result<T, ConnectError> {
    let Some(downstream) = downstream else { return work.await };
    tokio::select! {
        biased;
        result = work => result,
        _ = downstream.ready(Interest::ERROR) => {
            Err(ConnectError { reason: CloseReason::DownstreamGone, detail: downstream.take_error().ok().flatten() })
        }
    }
}

fn classify(error: DialError) -> ConnectError {
    let reason = error.close_reason();
    let (DialError::Source { error: detail, .. }
    | DialError::Socket(detail)
    | DialError::Connect { error: detail, .. }) = error;
    ConnectError { reason, detail: Some(detail) }
}

/// Whether another attempt makes sense: on another endpoint after any failure of one, on a single address only while
/// it has not answered.
fn retryable(reason: CloseReason, target: &Target) -> bool {
    let single = matches!(target, Target::Single { .. });
    match reason {
        CloseReason::ConnectTimeout | CloseReason::ConnectUnreachable | CloseReason::TunnelConnectTimeout => true,
        CloseReason::ConnectRefused
        | CloseReason::ConnectReset
        | CloseReason::TunnelHandshakeTimeout
        | CloseReason::TlsFailed
        | CloseReason::PeerRefused
        | CloseReason::Http2Failed
        | CloseReason::TunnelRefused
        | CloseReason::TunnelResponseTimeout
        | CloseReason::TunnelLost => !single,
        _ => false,
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
        assert!(!retryable(CloseReason::ConnectRefused, &single));
        assert!(retryable(CloseReason::ConnectTimeout, &single));
        assert!(!retryable(CloseReason::ConnectError, &single));
    }
}
