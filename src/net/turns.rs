//! Taking turns on a worker: whoever has much to move stops after a while and comes back when the others have had theirs.

use std::pin::pin;
use std::task::Context;

/// Wakes the task, but not before the worker has looked at its sockets and timers: one that wakes itself directly comes
/// around up to 61 times before that, and whoever waits for a socket waits for all of these.
pub fn later(cx: &mut Context<'_>) {
    // Its first poll leaves the waker with the runtime; there is no second.
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write;
    use std::task::Poll;
    use std::time::Duration;

    use super::*;

    /// Of two tasks that always have more to do, neither keeps the worker from a socket for longer than a turn of each.
    #[test]
    fn a_socket_is_looked_at_before_the_next_turn() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let local = tokio::task::LocalSet::new();
        let turns = std::rc::Rc::new(std::cell::Cell::new(0));
        let took = local.block_on(&runtime, async {
            let (mut client, server) = std::os::unix::net::UnixStream::pair().expect("a pair");
            server.set_nonblocking(true).expect("non-blocking");
            let server = tokio::net::UnixStream::from_std(server).expect("a stream");
            for _ in 0..2 {
                let turns = std::rc::Rc::clone(&turns);
                tokio::task::spawn_local(poll_fn(move |cx| -> Poll<()> {
                    turns.set(turns.get() + 1);
                    later(cx);
                    Poll::Pending
                }));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            // Blocking on purpose: nobody has a turn between this and the count.
            client.write_all(b"x").expect("write");
            let before = turns.get();
            server.readable().await.expect("readable");
            turns.get() - before
        });
        assert!(turns.get() > 10 && took <= 4, "{took} turns of {} before the socket", turns.get());
    }
}
