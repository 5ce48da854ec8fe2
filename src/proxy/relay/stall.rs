//! Stall: tells a peer that is gone from one that lives and does not read.
//!
//! `TCP_USER_TIMEOUT` cannot: it counts while the peer answers every probe with a closed window. So it is lifted while
//! that is what the peer does, before it can run out, and put back when the peer takes bytes again. The sweep asks for a
//! look when bytes may have been unacknowledged for half of it, be they in our buffer or in the kernel's.

use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::net::sockopt::{TcpInfo, tcp_info, unacknowledged};
use crate::proxy::registry::{Direction, Entry};

/// Unanswered probes after which a peer whose window was closed counts as gone.
const LOST_PROBES: u8 = 4;

/// Whether the peer of `writing`, which takes what goes in `direction`, is gone; `lifted` says whether its user timeout is
/// off.
pub(super) fn is_gone(
    writing: &TcpStream,
    entry: &Entry,
    direction: Direction,
    lifted: &mut bool,
    user_timeout: Option<Duration>,
) -> bool {
    if !matches!(unacknowledged(writing), Ok(bytes) if bytes > 0) {
        entry.settled(direction);
        set(writing, lifted, false, user_timeout);
        return false;
    }
    let Ok(info) = tcp_info(writing) else { return false };
    if !is_closed(info) {
        entry.settling(direction, Instant::now());
        set(writing, lifted, false, user_timeout);
        return false;
    }
    if *lifted && info.probes >= LOST_PROBES {
        return true;
    }
    // What is in flight to a window that is nearly closed is not a probe: silence about it is silence.
    set(writing, lifted, info.snd_wnd == 0 || info.unacked == 0, user_timeout);
    false
}

fn is_closed(info: TcpInfo) -> bool {
    info.snd_wnd < info.snd_mss
}

fn set(socket: &TcpStream, lifted: &mut bool, lift: bool, user_timeout: Option<Duration>) {
    if user_timeout.is_some() && *lifted != lift {
        // A socket that refuses the option is gone, and says so when it is used.
        let _ = SockRef::from(socket).set_tcp_user_timeout(user_timeout.filter(|_| !lift));
        *lifted = lift;
    }
}

/// Before a socket is closed whose peer may still have to read: nobody will lift its user timeout any more, and the kernel
/// gives an orphan up by rules of its own. One system call, no more than asking whether anything is unacknowledged costs;
/// and a FIN alone waits at a closed window too.
pub(super) fn leave_to_kernel(socket: &TcpStream, user_timeout: Option<Duration>) {
    if user_timeout.is_some() {
        // As above.
        let _ = SockRef::from(socket).set_tcp_user_timeout(None);
    }
}
