//! How much a tunnel may hold: the process-wide budget of receive windows, and HTTP/2's limits in both roles.
//!
//! A receive window is a promise to hold that many bytes. A tunnel is granted its connection window out of
//! `tunnel.bufferedBytes` and gives it back when it ends. At most an eighth of what is left goes to one tunnel, so the
//! first tunnels get all they want and late ones little; every tunnel gets [`SMALLEST`], which HTTP/2 grants anyway. So
//! the process holds at most `bufferedBytes`, and [`SMALLEST`] for each tunnel beyond it.
//!
//! A stream gets `tunnel.streamWindow`, but never more than a quarter of its tunnel's window: one reader that stalls
//! leaves room for the others.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::settings::Tunnel;
use crate::hbone::stream::SEND_BUFFER;
use crate::hbone::tunnel::TURN;

/// What a tunnel gets at least.
pub const SMALLEST: u32 = 64 * 1024;
const SMALLEST_STREAM: u32 = 16 * 1024;
/// One tunnel gets one part in so many of what is left.
const SHARE: usize = 8;

/// The largest DATA frame that is accepted. A frame is received whole before any of it goes on, outside of all windows,
/// and other streams wait behind it: little more than the largest of our own, which only a stream that is alone in its
/// tunnel sends. (The least that HTTP/2 allows is 16 KiB.)
pub const FRAME_BYTES: u32 = 256 * 1024;

/// The largest header list, as ztunnel limits it.
const REQUEST_HEADERS: u32 = 64 * 1024;
const RESPONSE_HEADERS: u32 = 16 * 1024;

/// Received DATA frames below 256 bytes cost more to keep than they carry. The library adds the difference up over all
/// frames that it keeps, and ends the tunnel above this. A relay takes frames out in every turn of the tunnel's task and
/// packs them, whether or not its socket is full, so an honest sender of single bytes never gets here: what one turn
/// brings costs less than half.
const FRAMING_BYTES: usize = 8 << 20;
const _: () = assert!(TURN / 10 * 255 < FRAMING_BYTES / 2, "a turn of frames with one byte each");

/// For how long, and how many at a time, streams that we have reset are remembered: what their peers had on the way is
/// ignored. What comes for a forgotten one is answered, and counts as an error below.
const FORGET_AFTER: Duration = Duration::from_secs(5);
const REMEMBERED: usize = 1024;
/// Errors of single streams that a tunnel survives, over its life. Each costs a peer as much as us, and honest peers
/// make a few when aborts race with data; the library's 1,024 would end a busy tunnel after weeks.
const STREAM_ERRORS: usize = 16 * 1024;

/// What all tunnels of the process have been granted.
#[derive(Debug, Default)]
pub struct Windows {
    granted: AtomicUsize,
}

impl Windows {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Bytes that peers may have sent us without anyone having taken them.
    #[must_use]
    pub fn granted(&self) -> usize {
        self.granted.load(Ordering::Relaxed)
    }

    /// A connection window for one tunnel: at most `connection_window`, less when of `buffered_bytes` little is left.
    #[must_use]
    pub fn grant(self: &Arc<Self>, connection_window: u32, buffered_bytes: NonZeroUsize) -> Grant {
        let size = |granted: usize| {
            let share = buffered_bytes.get().saturating_sub(granted) / SHARE;
            let share = u32::try_from(share).unwrap_or(u32::MAX).max(SMALLEST);
            // HTTP/2 starts every connection with this much, whatever is wanted.
            connection_window.max(SMALLEST).min(share)
        };
        let mut granted = self.granted();
        loop {
            let bytes = size(granted);
            let after = granted.saturating_add(bytes as usize);
            match self.granted.compare_exchange_weak(granted, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Grant { windows: Arc::clone(self), bytes },
                Err(now) => granted = now,
            }
        }
    }
}

/// One tunnel's connection window; given back when dropped.
#[derive(Debug)]
pub struct Grant {
    windows: Arc<Windows>,
    bytes: u32,
}

impl Grant {
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// The window of each stream in this tunnel.
    #[must_use]
    pub fn stream_window(&self, tunnel: &Tunnel) -> u32 {
        tunnel.stream_window.get().min((self.bytes / 4).max(SMALLEST_STREAM))
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.windows.granted.fetch_sub(self.bytes as usize, Ordering::Relaxed);
    }
}

/// Limits of a tunnel that we open.
pub fn configure_client(builder: &mut h2::client::Builder, tunnel: &Tunnel, grant: &Grant) {
    builder
        .initial_window_size(grant.stream_window(tunnel))
        .initial_connection_window_size(grant.bytes())
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(RESPONSE_HEADERS)
        .enable_push(false)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(FRAMING_BYTES)
        .reset_stream_duration(FORGET_AFTER)
        .max_concurrent_reset_streams(REMEMBERED)
        // A peer that answers streams which we have given up is slow, not hostile: we chose it.
        .max_local_error_reset_streams(None);
}

/// Limits of a tunnel that a peer opens.
pub fn configure_server(builder: &mut h2::server::Builder, tunnel: &Tunnel, grant: &Grant) {
    let streams = tunnel.max_streams.get();
    builder
        .initial_window_size(grant.stream_window(tunnel))
        .initial_connection_window_size(grant.bytes())
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(REQUEST_HEADERS)
        .max_concurrent_streams(streams)
        // Streams that were opened and reset before we saw them: an honest client that gives up on all its streams at
        // once makes so many in one go.
        .max_pending_accept_reset_streams(usize::try_from(streams).unwrap_or(usize::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(FRAMING_BYTES)
        .reset_stream_duration(FORGET_AFTER)
        .max_concurrent_reset_streams(REMEMBERED)
        .max_local_error_reset_streams(Some(STREAM_ERRORS));
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: NonZeroUsize = NonZeroUsize::new(256 << 20).expect("not zero");

    #[test]
    fn the_first_get_all_they_want_and_everybody_gets_something() {
        let windows = Windows::new();
        let grants: Vec<_> = (0..2_000).map(|_| windows.grant(16 << 20, ALL)).collect();
        assert!(grants.iter().take(8).all(|grant| grant.bytes() == 16 << 20));
        assert!(grants.is_sorted_by(|earlier, later| earlier.bytes() >= later.bytes()));
        assert!(grants.iter().all(|grant| grant.bytes() >= SMALLEST));
        let beyond = grants.iter().filter(|grant| grant.bytes() == SMALLEST).count();
        assert!(windows.granted() <= ALL.get() + beyond * SMALLEST as usize, "{}", windows.granted());
        drop(grants);
        assert_eq!(windows.granted(), 0);
        assert_eq!(windows.grant(16 << 20, ALL).bytes(), 16 << 20, "what was given back is granted again");
    }

    #[test]
    fn workers_ask_at_the_same_time() {
        let windows = Windows::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| drop(windows.grant(1 << 20, ALL))));
            }
        });
        assert_eq!(windows.granted(), 0);
    }

    #[test]
    fn a_stream_never_takes_the_whole_tunnel() {
        let tunnel = Tunnel::default();
        for (connection, stream) in [(32 << 20, 4 << 20), (2 << 20, 512 << 10), (1, 16 << 10)] {
            assert_eq!(Windows::new().grant(connection, ALL).stream_window(&tunnel), stream, "{connection}");
        }
    }
}
