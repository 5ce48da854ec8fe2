//! How a relay ends when it does not end by FIN on both sides.
//!
//! Before a reset is passed on, what was received before it is written to the other side and acknowledged there: a
//! reset discards what the kernel has not sent yet. All of it has one deadline, `relay.resetFlush`.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::net::sockopt::{tcp_info, unacknowledged};
use crate::proxy::pool::Pool;
use crate::proxy::registry::Entry;

use super::half::Half;

/// First pause between two looks at the unacknowledged bytes; doubles.
const FIRST_LOOK: Duration = Duration::from_micros(500);
const LAST_LOOK: Duration = Duration::from_millis(20);

/// Writes what the failed socket had still received, passes a FIN on if there was one, and waits until the other side
/// has acknowledged all of it. Gives up at `within`.
pub(super) async fn deliver(half: &mut Half<'_>, entry: &Entry, pool: &Rc<Pool>, within: Duration) {
    // Giving up is not an error of its own: the connection already ends with the reason of the reset.
    let _ = timeout(within, async {
        if !half.ended() && poll_fn(|cx| half.poll(cx, entry, pool)).await.is_ok() {
            // Fails only when the other side is gone too.
            let _ = half.send_fin(entry);
        }
        acknowledged(half.to).await;
    })
    .await;
}

/// Waits until the peer has acknowledged everything, or the socket has failed.
pub(super) async fn acknowledged(socket: &TcpStream) {
    acknowledged_unless_stuck(socket, None).await;
}

/// As [`acknowledged`], but gives up, and says no, when nothing more was acknowledged for `patience`.
pub(super) async fn acknowledged_unless_stuck(socket: &TcpStream, patience: Option<Duration>) -> bool {
    let mut pause = FIRST_LOOK;
    let (mut least, mut since) = (usize::MAX, Instant::now());
    while let Ok(bytes @ 1..) = unacknowledged(socket) {
        // Its bytes count as before, for ever.
        if tcp_info(socket).is_ok_and(|info| info.is_closed()) {
            return true;
        }
        if bytes < least {
            (least, since) = (bytes, Instant::now());
        } else if patience.is_some_and(|patience| since.elapsed() >= patience) {
            return false;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_LOOK);
    }
    true
}

/// Ends a conversation that adit itself answered: sends a FIN and discards input until the peer ends too, at most
/// `within`, so that the answer is not destroyed by the reset that closing on unread input would cause.
pub(crate) async fn say_goodbye(mut socket: TcpStream, within: Duration) {
    // Best effort: a peer that is gone needs no goodbye.
    let _ = timeout(within, async {
        tokio::io::AsyncWriteExt::shutdown(&mut socket).await?;
        let mut discarded = [0; 512];
        while tokio::io::AsyncReadExt::read(&mut socket, &mut discarded).await? > 0 {}
        std::io::Result::Ok(())
    })
    .await;
}

/// Closes with a reset, so that the peer cannot take the end for a complete answer.
pub(crate) fn reset(socket: TcpStream) {
    reset_on_close(&socket);
    drop(socket);
}

/// Makes closing the socket a reset.
pub(super) fn reset_on_close(socket: &TcpStream) {
    // A socket that refuses the option is already gone.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::listen::tests::loopback_listener;

    /// A peer that lives and reads nothing is waited for as long as it takes; or, where nothing else bounds it, not.
    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_any_more_is_given_up() {
        let listener = loopback_listener();
        let sender = std::net::TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        sender.set_nonblocking(true).expect("nonblocking");
        let sender = TcpStream::from_std(sender).expect("a stream");
        let reader = listener.accept().expect("accept").0;
        let filled = |sender: &TcpStream| {
            let socket = SockRef::from(sender);
            while socket.send(&[7; 65536]).is_ok() {}
        };
        filled(&sender);
        let patience = Duration::from_secs(60);
        let begun = Instant::now();
        assert!(!acknowledged_unless_stuck(&sender, Some(patience)).await);
        // More than once that, if some of it was still on its way.
        assert!(begun.elapsed() >= patience, "{:?}", begun.elapsed());
        drop(reader);
        assert!(acknowledged_unless_stuck(&sender, Some(patience)).await, "a socket that has failed is not waited for");
    }
}
