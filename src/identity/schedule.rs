//! When to ask a source again. Pure: times and jitter are arguments.

use std::time::{Duration, SystemTime};

use crate::identity::certificate::Validity;

/// After the first failure; doubles with each.
const FIRST: Duration = Duration::from_secs(1);
/// It never gets longer, and never gives up.
const LONGEST: Duration = Duration::from_secs(150);
/// As a part of the mean, either way.
const BACK_OFF_JITTER: f64 = 0.2;
/// As a part of the lifetime, either way.
const RENEWAL_JITTER: f64 = 0.05;

/// When to renew a certificate: at half its life, give or take. `jitter` is 0 to 1.
#[must_use]
pub fn renew_at(validity: Validity, jitter: f64) -> SystemTime {
    let life = validity.not_after.duration_since(validity.not_before).unwrap_or_default();
    let part = 0.5 + (jitter.clamp(0.0, 1.0) * 2.0 - 1.0) * RENEWAL_JITTER;
    validity.not_before + life.mul_f64(part)
}

/// How long to wait after `failures` in a row, at least one. `jitter` is 0 to 1.
#[must_use]
pub fn back_off(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let mean = (FIRST * 2_u32.pow(doublings)).min(LONGEST);
    mean.mul_f64(1.0 + (jitter.clamp(0.0, 1.0) * 2.0 - 1.0) * BACK_OFF_JITTER)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn back_off_doubles_and_stays() {
        let means: Vec<u64> = (1..=10).map(|failures| back_off(failures, 0.5).as_secs()).collect();
        assert_eq!(means, [1, 2, 4, 8, 16, 32, 64, 128, 150, 150]);
        assert_eq!(back_off(u32::MAX, 0.5), LONGEST);
    }

    proptest! {
        #[test]
        fn back_off_keeps_its_bounds(failures in 1_u32.., jitter in 0.0..=1.0_f64) {
            let wait = back_off(failures, jitter);
            prop_assert!(wait >= FIRST.mul_f64(0.79) && wait <= LONGEST.mul_f64(1.21));
        }

        #[test]
        fn renewal_is_around_half_life(life in 1_u64..1 << 32, jitter in 0.0..=1.0_f64) {
            let not_before = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30);
            let life = Duration::from_secs(life);
            let at = renew_at(Validity { not_before, not_after: not_before + life }, jitter);
            let part = at.duration_since(not_before).unwrap().as_secs_f64() / life.as_secs_f64();
            prop_assert!((0.449..=0.551).contains(&part), "{part}");
        }
    }
}
