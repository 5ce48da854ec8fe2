//! DATA: what happens to one connection, in this order:
//!
//! ```text
//! accept -> original destination -> resolve -> authorize -> connect -> relay -> account
//! ```
//!
//! The doors differ only in how they learn where a connection is going: [`outbound`] and [`inbound`] ask the kernel,
//! [`socks5`] asks the client, [`tunnelled`] reads the request of each stream in a tunnel. A connection registers before
//! it reads the snapshot, so that no change of state can fall between. The set-up is boxed and gone before the relay starts: what lives as long as the connection is small.

pub mod accept;
pub mod account;
pub mod authorize;
pub mod baggage;
pub mod balance;
pub mod connect;
pub mod explain;
pub mod gate;
pub mod handshakes;
pub mod hostnames;
pub mod inbound;
pub mod limits;
pub mod loops;
pub mod next_hop;
pub mod original_dst;
pub mod outbound;
pub mod pool;
pub mod proxy_header;
pub mod rate;
pub mod registry;
pub mod relay;
pub mod resolve;
pub mod review;
pub mod socks5;
pub mod sweep;
pub mod tunnelled;
pub mod worker;

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::config::Settings;
use crate::net::descriptors::Lent;
use crate::net::dial::Dialled;
use crate::net::own_sockets::OwnSocket;
use crate::proxy::account::Ending;
use crate::proxy::connect::{ConnectError, Connected, Tunnelled, Via};
use crate::proxy::limits::Admitted;
use crate::proxy::registry::{Entry, Registered, State};
use crate::proxy::relay::{RelayOptions, Sockets, relay, relay_stream, reset, say_goodbye};
use crate::proxy::worker::{Accepted, Worker};
use crate::telemetry::access::Attempt;
use crate::telemetry::{CloseReason, Door, PeerText, Side};

/// How long a client that got an answer in words may take to close.
const GOODBYE: Duration = Duration::from_secs(2);

/// What an idle connection may hold beside its sockets and its registry entry, in bytes.
const LARGEST_TASK: usize = 1024;

/// Starts the task of a connection, or of what brings many.
pub fn carry(worker: &Rc<Worker>, accepted: Accepted<TcpStream>) {
    if accepted.door == Door::Hbone {
        return tunnelled::arrive(worker, accepted);
    }
    let Accepted { door, stream, peer, admitted, lent } = accepted;
    let registered = worker.registry.register(door, peer, worker.settings());
    worker.counters.opened(door);
    worker.publish_load();
    let task = serve(Rc::clone(worker), registered, stream, (admitted, lent));
    debug_assert!(size_of_val(&task) <= LARGEST_TASK, "a connection's task has grown to {} bytes", size_of_val(&task));
    tokio::task::spawn_local(task);
}

/// The task of a connection: what this holds across the relay, each idle connection holds.
async fn serve(worker: Rc<Worker>, entry: Registered, downstream: TcpStream, counted: (Admitted, Lent)) {
    let mut ending = Ending::new(CloseReason::Finished);
    match Box::pin(set_up(&worker, &entry, downstream, &mut ending)).await {
        Ok(Ready { downstream, upstream: Upstream::Socket { stream: upstream, own }, options }) => {
            let sockets = Sockets { downstream, upstream };
            ending.reason = relay(&sockets, &entry, &worker.pool, &options).await.close_reason();
            drop(own);
        }
        Ok(Ready { downstream, upstream: Upstream::Tunnel(mut tunnelled), options }) => {
            let stream = &mut tunnelled.stream;
            let relaying = Box::pin(relay_stream(&downstream, stream, Side::Upstream, &entry, &options));
            ending.reason = relaying.await.close_reason();
            if ending.reason == CloseReason::TunnelLost {
                blame(&worker, &entry, &tunnelled);
            }
        }
        Err(Refusal { reason, detail, .. }) => {
            ending.reason = reason;
            ending.detail = detail.map(|error| error.to_string().into());
        }
    }
    account::close(&worker, &entry, ending);
    drop((entry, counted));
    worker.publish_load();
}

/// A lost tunnel tells something of the endpoint, once, however many connections were in it.
fn blame(worker: &Worker, entry: &Entry, Tunnelled { tunnel, .. }: &Tunnelled) {
    if tunnel.blame_once()
        && let Some(picked) = entry.using().and_then(|using| using.counted.endpoints.last())
    {
        worker.endpoint_failed(picked, tunnel.about.peer, CloseReason::TunnelLost);
    }
}

/// A connection that is ready to be relayed.
struct Ready {
    downstream: TcpStream,
    upstream: Upstream,
    options: RelayOptions,
}

/// What carries it on.
enum Upstream {
    /// `own` keeps the socket known as ours.
    Socket {
        stream: TcpStream,
        own: OwnSocket,
    },
    Tunnel(Box<Tunnelled>),
}

/// Why it is not. The downstream socket is closed by whoever makes this.
type Refusal = ConnectError;

/// A connection on its way through the stages before the relay.
#[derive(Debug)]
pub struct Opening<'a> {
    pub worker: &'a Worker,
    pub entry: &'a Entry,
    pub settings: Rc<Settings>,
    pub downstream: TcpStream,
    pub attempts: Vec<Attempt>,
    pub requested: Option<PeerText>,
}

/// Everything up to the established upstream socket.
async fn set_up(
    worker: &Worker,
    entry: &Registered,
    downstream: TcpStream,
    ending: &mut Ending,
) -> Result<Ready, Refusal> {
    let settings = Rc::clone(&entry.settings);
    let mut opening = Opening { worker, entry, settings, downstream, attempts: Vec::new(), requested: None };
    let result = {
        let stages = pin!(async {
            match entry.door {
                Door::Outbound => outbound::open(&mut opening).await,
                Door::Inbound => inbound::open(&mut opening).await,
                // Never: its sockets are tunnels, whose streams have a set-up of their own.
                Door::Hbone => Err(CloseReason::NoOriginalDst.into()),
                // Boxed again: it is twice the size of the others, which should not pay for it.
                Door::Socks5 => Box::pin(socks5::open(&mut opening)).await,
            }
        });
        entry.unless_killed(stages).await.unwrap_or_else(|reason| Err(reason.into()))
    };
    let Opening { settings, downstream, attempts, requested, .. } = opening;
    ending.attempts = attempts;
    ending.requested = requested;
    if entry.state() == State::Connecting || entry.denial().is_some() {
        account::open(worker, entry);
    }
    match result {
        Ok(Connected { via, .. }) => {
            let upstream = match via {
                Via::Socket(Dialled { stream, own }) => Upstream::Socket { stream, own },
                Via::Tunnel(tunnelled) => Upstream::Tunnel(tunnelled),
            };
            Ok(Ready { downstream, upstream, options: RelayOptions::of(&settings) })
        }
        Err(refusal) => {
            // A SOCKS5 client has been told why, in words that a reset would destroy, unless its request never came.
            let untold = matches!(refusal.reason, CloseReason::DownstreamGone | CloseReason::SocksTimeout);
            if entry.door == Door::Socks5 && entry.killed().is_none() && !untold {
                say_goodbye(downstream, GOODBYE).await;
            } else {
                reset(downstream);
            }
            Err(refusal)
        }
    }
}
