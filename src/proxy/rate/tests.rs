//! Token buckets by tables and properties, and that what is remembered is bounded.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn number(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).expect("not zero")
}

fn address(n: u32) -> Key {
    Key::Address(std::net::Ipv4Addr::from(n).into())
}

/// Rate, burst, and for moments in milliseconds whether somebody may then.
type Row = (u32, u32, &'static [(u64, bool)]);

#[test]
fn a_bucket_gives_its_burst_and_then_its_rate() {
    let rows: [Row; 6] = [
        (10, 1, &[(0, true), (0, false), (99, false), (100, true), (150, false), (200, true)]),
        (10, 3, &[(0, true), (0, true), (0, true), (0, false), (100, true), (100, false), (350, true), (350, true)]),
        // It holds no more than its burst, however long nobody comes.
        (1, 2, &[(0, true), (3_600_000, true), (3_600_000, true), (3_600_000, false)]),
        // Being refused costs nothing.
        (1, 1, &[(0, true), (999, false), (999, false), (1000, true)]),
        (1_000_000, 1, &[(0, true), (0, false), (1, true)]),
        // A clock that goes back gives nothing.
        (10, 1, &[(1000, true), (0, false), (1099, false), (1100, true)]),
    ];
    assert_eq!(rows.len(), 6);
    for (rate, burst, moments) in rows {
        let mut bucket = Bucket::default();
        for (at_ms, want) in moments {
            let may = bucket.take(at_ms * 1_000_000, number(rate), number(burst));
            assert_eq!(may, *want, "{rate}/s, burst {burst}, at {at_ms} ms");
        }
    }
}

proptest! {
    /// Never more than the burst and what has come since, and never less when it is asked for no faster.
    #[test]
    fn no_more_than_the_rate(rate in 1_u32..5_000, burst in 1_u32..500, pauses in prop::collection::vec(0..SECOND, 1..300)) {
        let (mut bucket, mut now, mut taken) = (Bucket::default(), 5 * SECOND, 0_u64);
        let begin = now;
        for pause in pauses {
            now += pause;
            taken += u64::from(bucket.take(now, number(rate), number(burst)));
            // The interval is rounded down to whole nanoseconds: one token in a thousand at most.
            let since = (now - begin) / (SECOND / u64::from(rate));
            prop_assert!(taken <= u64::from(burst) + since);
            let mut slow = Bucket::default();
            prop_assert!(slow.take(now, number(rate), number(burst)));
            prop_assert!(slow.take(now + SECOND / u64::from(rate), number(rate), number(burst)));
        }
    }

    /// Whatever the numbers, it does not overflow.
    #[test]
    fn any_numbers(bucket: u64, now: u64, rate in 1_u32.., burst in 1_u32..) {
        let mut bucket = Bucket(bucket);
        let before = bucket;
        let may = bucket.take(now, number(rate), number(burst));
        prop_assert!(may || bucket == before);
    }
}

#[test]
fn sources_do_not_share_a_bucket() {
    let rates = Rates::default();
    let keys = [
        Key::Workload("a".into()),
        Key::Workload("b".into()),
        Key::Identity("a".into()),
        Key::Address([10, 0, 0, 1].into()),
        Key::Address([10, 0, 0, 2].into()),
    ];
    for key in &keys {
        assert!(rates.take(key.clone(), SECOND, number(1), number(1)), "{key:?}");
    }
    for key in &keys {
        assert!(!rates.take(key.clone(), SECOND, number(1), number(1)), "{key:?}");
        assert!(rates.take(key.clone(), 2 * SECOND, number(1), number(1)), "{key:?}");
    }
}

#[test]
fn what_is_remembered_is_bounded_and_the_fullest_goes_first() {
    let rates = Rates::default();
    let stored = |rates: &Rates| rates.shards.iter().map(|shard| lock(shard).len()).sum::<usize>();
    // One that has used up much, and ten times as many as there is room for that have used little.
    let busy = address(0);
    for _ in 0..100 {
        assert!(rates.take(busy.clone(), SECOND, number(1), number(100)));
    }
    for n in 1..=10 * u32::try_from(MOST_KEYS).expect("small") {
        assert!(rates.take(address(n), SECOND, number(1), number(100)));
    }
    assert!(stored(&rates) <= MOST_KEYS);
    assert!(stored(&rates) > MOST_KEYS * 9 / 10, "hashed evenly");
    assert!(!rates.take(busy.clone(), SECOND, number(1), number(100)), "what it has used is not forgotten");
    // A second later all but one are full, and make room at once.
    for n in 0..2 * u32::try_from(MOST_KEYS).expect("small") {
        assert!(rates.take(Key::Workload(n.to_string().into()), 3 * SECOND, number(1), number(100)));
    }
    assert!(stored(&rates) <= MOST_KEYS);
    assert!(!rates.take(busy, 3 * SECOND, number(1), number(3)), "and still not");
}

#[test]
fn off_is_off_and_on_refuses_with_its_reason() {
    let rates = Rates::default();
    let mut limits = Limits { source_rate: None, source_burst: number(2), ..Limits::default() };
    for _ in 0..1_000 {
        assert_eq!(rates.admit(&limits, || panic!("nobody asks who it is")), Ok(()));
    }
    assert_eq!(rates.keys(), 0);
    limits.source_rate = Some(number(1));
    let admit = || rates.admit(&limits, || address(1));
    assert_eq!([admit(), admit(), admit()], [Ok(()), Ok(()), Err(CloseReason::RateLimited)]);
    assert_eq!(rates.keys(), 1);
}

#[test]
fn the_gauge_forgets_those_whose_buckets_are_full() {
    let rates = Rates::default();
    let limits = Limits { source_rate: Some(number(1_000_000)), source_burst: number(1), ..Limits::default() };
    assert_eq!(rates.admit(&limits, || address(1)), Ok(()));
    let deadline = Instant::now() + Duration::from_secs(5);
    while rates.keys() > 0 {
        assert!(Instant::now() < deadline, "still remembered");
    }
}
