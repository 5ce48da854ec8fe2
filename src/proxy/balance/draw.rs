//! Drawing one of a port's candidates: the less busy and quicker of two, in the nearest group that has one that works.
//!
//! In: the candidates, who asks, who was tried, the clock, a random source. Out: an endpoint, counted as in use until the
//! returned value is dropped, or why there is none. Two are drawn by weight, and the one with fewer open connections for
//! its weight and lower recent latency is taken: that needs no knowledge of the others, so the cost does not depend on how
//! many there are. Who was ejected, is full or was tried is passed over; a group in which that is so for everyone that is
//! looked at gives way to the next. When nobody works anywhere ejections do not count: a try is better than none.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::mesh::live::{InUse, Live, Standing};
use crate::mesh::plan::{Candidates, Group, Member};
use crate::mesh::{Endpoint, Workload};

/// Pairs drawn from a group before it is searched.
const DRAWS: usize = 6;
/// Members looked at in a row when draws have found nobody.
const LOOKED_AT: usize = 64;
/// Latencies below this, in microseconds, do not differ, nor do those above it by less than half.
const FLOOR_US: u64 = 1000;

/// Who asks for one.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// Decides which groups are near.
    pub source: Option<&'a Workload>,
    /// Not to be chosen (again).
    pub tried: &'a [Live],
    /// Connections that one endpoint may have.
    pub limit: Option<NonZeroU32>,
    /// How long a try may take that decides whether an ejected endpoint is back.
    pub trial: Duration,
    pub now_ms: u64,
}

/// A chosen endpoint.
#[derive(Debug)]
pub struct Drawn {
    pub endpoint: Arc<Endpoint>,
    pub in_use: InUse,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nobody {
    /// All that could be chosen were tried, or there are none.
    Left,
    /// Those that are left have as many connections as they may.
    Full,
}

/// Draws one of `candidates`.
///
/// # Errors
/// See [`Nobody`].
pub fn draw(candidates: &Candidates, asking: &Asking<'_>, random: &mut fastrand::Rng) -> Result<Drawn, Nobody> {
    let mut drawing = Drawing { candidates, asking, random, full: false, desperate: false };
    if let Some(drawn) = candidates.tiers(asking.source).find_map(|group| drawing.from(group)) {
        return Ok(drawn);
    }
    drawing.desperate = true;
    let drawn = candidates.tiers(asking.source).find_map(|group| drawing.from(group));
    drawn.ok_or(if drawing.full { Nobody::Full } else { Nobody::Left })
}

struct Drawing<'a, 'r> {
    candidates: &'a Candidates,
    asking: &'a Asking<'a>,
    random: &'r mut fastrand::Rng,
    /// Whether somebody was passed over for being full.
    full: bool,
    /// Whether ejections do not count.
    desperate: bool,
}

impl<'a> Drawing<'a, '_> {
    fn from(&mut self, group: &Group) -> Option<Drawn> {
        for _ in 0..DRAWS.min(group.len()) {
            let (one, other) = (group.draw(self.random)?, group.draw(self.random)?);
            let (first, second) = (self.stand(one), self.stand(other));
            let better = match (first, second) {
                (Some(first), Some(second)) if self.cost(second) < self.cost(first) => Some(second),
                (first, second) => first.or(second),
            };
            if let Some(drawn) = better.and_then(|member| self.take(member)) {
                return Some(drawn);
            }
        }
        let start = self.random.usize(0..group.len().max(1));
        (0..group.len().min(LOOKED_AT)).find_map(|step| {
            let member = self.stand(group.at(start + step)?)?;
            self.take(member)
        })
    }

    /// The member, if it may be chosen.
    fn stand(&mut self, member: usize) -> Option<&'a Member> {
        let member = self.candidates.members().get(member)?;
        let Asking { tried, limit, now_ms, .. } = self.asking;
        let live = &member.live;
        if tried.iter().any(|tried| tried.is(live)) {
            return None;
        }
        if !self.desperate && live.standing(*now_ms) == Standing::Ejected {
            return None;
        }
        let full = limit.is_some_and(|limit| live.open() >= limit.get());
        self.full |= full;
        (!full).then_some(member)
    }

    fn take(&mut self, member: &Member) -> Option<Drawn> {
        let Asking { limit, trial, now_ms, .. } = *self.asking;
        let live = &member.live;
        if !self.desperate && live.standing(now_ms) == Standing::OnTrial && !live.try_out(now_ms, trial) {
            return None;
        }
        let in_use = live.take(limit);
        self.full |= in_use.is_none();
        Some(Drawn { endpoint: Arc::clone(&member.endpoint), in_use: in_use? })
    }

    /// What one more connection costs there: the longer connecting takes and the more there are for its weight, the more.
    fn cost(&self, Member { live, weight, .. }: &Member) -> f64 {
        // In steps, so that who is a hair slower is not always the one that is left.
        let latency = (live.latency_us(self.asking.now_ms) / FLOOR_US + 1).next_power_of_two();
        latency as f64 * (f64::from(live.open()) + 1.0) / f64::from(*weight)
    }
}

#[cfg(test)]
mod tests;
