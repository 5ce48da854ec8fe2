//! Limits how many new connections a source may make: a token bucket for each.
//!
//! In: who makes a connection, and when. Out: whether it may. Shared by all workers, because a source's connections come
//! to all of them; locks are split by source, and none is taken while the limit is off.
//!
//! A bucket is one number, the time at which it will be full again (GCRA). What is remembered is bounded: full buckets
//! say nothing and go first, then the one that is nearest to full, so room is made by forgetting the least. Nothing here
//! can fail.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::config::settings::Limits;
use crate::telemetry::CloseReason;

/// Sources that are remembered.
pub const MOST_KEYS: usize = 10_000;
const SHARDS: usize = 16;

/// Who makes connections, by the best that is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// By uid.
    Workload(Arc<str>),
    /// A verified SPIFFE id.
    Identity(Arc<str>),
    Address(IpAddr),
}

/// When the bucket will be full, in nanoseconds of the caller's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Bucket(u64);

impl Bucket {
    /// Takes a token out of a bucket that holds `burst` and gets `rate` a second, if there is one. `now_ns` may stand still,
    /// but should not go back.
    fn take(&mut self, now_ns: u64, rate: NonZeroU32, burst: NonZeroU32) -> bool {
        let interval = 1_000_000_000 / u64::from(rate.get());
        let full = self.0.max(now_ns);
        // What a whole bucket takes to fill; after a token is out of it, it must not take longer.
        let after = full.saturating_add(interval);
        let may = after - now_ns <= interval.saturating_mul(u64::from(burst.get()));
        if may {
            self.0 = after;
        }
        may
    }

    const fn is_full(self, now_ns: u64) -> bool {
        self.0 <= now_ns
    }
}

/// The buckets of all sources.
#[derive(Debug)]
pub struct Rates {
    started: Instant,
    hasher: RandomState,
    shards: [Mutex<HashMap<Key, Bucket>>; SHARDS],
}

impl Default for Rates {
    fn default() -> Self {
        Self { started: Instant::now(), hasher: RandomState::new(), shards: Default::default() }
    }
}

impl Rates {
    /// Whether a connection of `source` may be made, which is only asked for where there is a limit.
    ///
    /// # Errors
    /// It has made too many lately.
    pub fn admit(&self, limits: &Limits, source: impl FnOnce() -> Key) -> Result<(), CloseReason> {
        let Some(rate) = limits.source_rate else { return Ok(()) };
        let may = self.take(source(), self.now_ns(), rate, limits.source_burst);
        if may { Ok(()) } else { Err(CloseReason::RateLimited) }
    }

    /// Sources whose buckets are not full; forgets the others.
    #[must_use]
    pub fn keys(&self) -> usize {
        let now_ns = self.now_ns();
        let count = |shard: &Mutex<HashMap<Key, Bucket>>| {
            let mut buckets = lock(shard);
            drop_full(&mut buckets, now_ns);
            buckets.len()
        };
        self.shards.iter().map(count).sum()
    }

    fn take(&self, source: Key, now_ns: u64, rate: NonZeroU32, burst: NonZeroU32) -> bool {
        let mut buckets = lock(self.shard(&source));
        if let Some(bucket) = buckets.get_mut(&source) {
            return bucket.take(now_ns, rate, burst);
        }
        if buckets.len() >= MOST_KEYS / SHARDS {
            make_room(&mut buckets, now_ns);
        }
        buckets.entry(source).or_default().take(now_ns, rate, burst)
    }

    fn shard(&self, source: &Key) -> &Mutex<HashMap<Key, Bucket>> {
        let hash = self.hasher.hash_one(source).to_ne_bytes();
        // In bounds: the remainder is.
        &self.shards[usize::from(hash[0]) % SHARDS]
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

fn lock(shard: &Mutex<HashMap<Key, Bucket>>) -> MutexGuard<'_, HashMap<Key, Bucket>> {
    // Sound after a panic: a bucket is one number.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn drop_full(buckets: &mut HashMap<Key, Bucket>, now_ns: u64) {
    buckets.retain(|_, bucket| !bucket.is_full(now_ns));
    if buckets.capacity() > 64 && buckets.len() < buckets.capacity() / 4 {
        buckets.shrink_to_fit();
    }
}

fn make_room(buckets: &mut HashMap<Key, Bucket>, now_ns: u64) {
    let before = buckets.len();
    buckets.retain(|_, bucket| !bucket.is_full(now_ns));
    if buckets.len() == before
        && let Some(fullest) = buckets.iter().min_by_key(|(_, bucket)| **bucket).map(|(source, _)| source.clone())
    {
        buckets.remove(&fullest);
    }
}

#[cfg(test)]
mod tests;
