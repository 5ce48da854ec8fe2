//! When a relay has much to move: whose turn it is.

use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::super::half::{BYTES_PER_POLL, Half};
use super::*;

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Nothing wakes the task while it is being polled: a turn that ends with more to do is followed by a look at the sockets.
#[test]
fn a_turn_does_not_end_by_waking_itself() {
    both_ways(|zero_copy| async move {
        let (client, downstream) = socket_pair().await;
        let (upstream, server) = socket_pair().await;
        let (mut source, mut sink) = (client.into_std().expect("source"), server.into_std().expect("sink"));
        for end in [&source, &sink] {
            end.set_nonblocking(false).expect("blocking");
        }
        // Both end with an error or EOF when the relay's sockets are dropped.
        let source = std::thread::spawn(move || while source.write_all(&[7; 64 * 1024]).is_ok() {});
        let sink = std::thread::spawn(move || while sink.read(&mut [0; 64 * 1024]).is_ok_and(|count| count > 0) {});
        let registry = Rc::new(Registry::new(0));
        let peer = PeerAddr::new(downstream.local_addr().expect("address"));
        let entry = registry.register(Door::Outbound, peer, Rc::default());
        let pool = Pool::new(Budget::new(10_000, 0));
        let mut half = Half::new(Direction::Up, &downstream, &upstream, zero_copy);
        let (woken, mut turns) = (Arc::new(Woken::default()), 0);
        while turns < 3 {
            let (waker, before) = (Waker::from(Arc::clone(&woken)), entry.bytes(Direction::Up));
            let pending =
                poll_fn(|_| Poll::Ready(half.poll(&mut Context::from_waker(&waker), &entry, &pool).is_pending()));
            assert!(pending.await && !woken.0.swap(false, Ordering::Relaxed), "after {before} bytes");
            turns += u32::from(entry.bytes(Direction::Up) - before >= BYTES_PER_POLL as u64);
            tokio::task::yield_now().await;
            woken.0.store(false, Ordering::Relaxed);
        }
        drop(half);
        drop((downstream, upstream));
        assert!(source.join().is_ok() && sink.join().is_ok());
    });
}
