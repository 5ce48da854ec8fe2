//! Draws: the better of two, nearest first, nobody who is out, full or tried.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::mesh::snapshot_of;

/// `count` endpoints w000, w001 ...; the first half is in the zone "near", for services with locality.
fn candidates(count: usize, weights: &[u32], balancer: &str) -> Arc<Candidates> {
    let mut text = format!(
        "services: [{{ name: s, namespace: n, hostname: s, vips: [], ports: {{ 80: 80 }}{balancer} }}]\nworkloads:{}\n",
        if count == 0 { " []" } else { "" }
    );
    for at in 0..count {
        let zone = if at < count / 2 { "near" } else { "far" };
        let weight = weights.get(at).unwrap_or(&1);
        text.push_str(&format!(
            "- {{ uid: w{at:03}, namespace: n, workloadIps: [10.0.{}.{}], capacity: {weight}, services: {{ n/s: {{}} }}, locality: {{ zone: {zone} }} }}\n",
            at / 256,
            at % 256
        ));
    }
    let snapshot = snapshot_of("mesh.yaml", &text).unwrap_or_else(|problems| panic!("{problems}"));
    let state = snapshot.service_by_key("n", "s").expect("the service");
    Arc::clone(state.plan().candidates(80, crate::mesh::plan::Mode::Standard).expect("the port"))
}

const FAILOVER: &str = ", loadBalancer: { mode: Failover, routingPreferences: [Zone] }";
const STRICT: &str = ", loadBalancer: { mode: Strict, routingPreferences: [Zone] }";

fn source() -> Arc<Workload> {
    let text = "workloads: [{ uid: me, namespace: n, workloadIps: [10.9.9.9], locality: { zone: near } }]";
    let snapshot = snapshot_of("mesh.yaml", text).expect("a mesh");
    Arc::clone(snapshot.workload_by_uid("me").expect("it"))
}

const fn asking<'a>(source: Option<&'a Workload>, tried: &'a [Live]) -> Asking<'a> {
    Asking { source, tried, limit: None, trial: Duration::from_secs(15), now_ms: 1000 }
}

fn live(candidates: &Candidates, at: usize) -> Live {
    candidates.members()[at].live.clone()
}

/// Draws `times` times, gives each back at once, and counts.
fn draws(candidates: &Candidates, asking: &Asking<'_>, times: usize) -> BTreeMap<String, usize> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        let drawn = draw(candidates, asking, &mut random).expect("somebody");
        *counts.entry(drawn.endpoint.workload.uid.to_string()).or_default() += 1;
    }
    counts
}

#[test]
fn connections_spread_by_weight_and_by_load() {
    let weighted = candidates(3, &[1, 2, 5], "");
    let mut random = fastrand::Rng::with_seed(1);
    let held: Vec<Drawn> = (0..800).map(|_| draw(&weighted, &asking(None, &[]), &mut random).expect("one")).collect();
    let open: Vec<u32> = (0..3).map(|at| live(&weighted, at).open()).collect();
    for (open, want) in open.iter().zip([100_u32, 200, 500]) {
        assert!(open.abs_diff(want) < want / 10, "{open} of {want}");
    }
    drop(held);
    assert!((0..3).all(|at| live(&weighted, at).open() == 0));

    // Ten have connections already; the eleventh has none and gets most of the next ones.
    let uneven = candidates(11, &[], "");
    let _busy: Vec<_> =
        (0..10).flat_map(|at| (0..50).map(move |_| at)).map(|at| live(&uneven, at).take(None)).collect();
    let counts = draws(&uneven, &asking(None, &[]), 1000);
    assert!(counts["w010"] > 150, "twice the share of one of eleven: {counts:?}");
}

#[test]
fn a_slow_one_gets_less() {
    let two = candidates(2, &[], "");
    let _ = live(&two, 0).succeeded(1000, Duration::from_millis(200));
    let _ = live(&two, 1).succeeded(1000, Duration::from_millis(1));
    let counts = draws(&two, &asking(None, &[]), 1000);
    assert!(counts["w001"] > 700 && counts["w000"] > 100, "{counts:?}");
}

#[test]
fn who_was_tried_ejected_or_is_full_is_passed_over() {
    let four = candidates(4, &[], "");
    let tried = [live(&four, 0), live(&four, 1)];
    live(&four, 2).eject(0, Duration::from_secs(60), Duration::from_secs(60), 0.0);
    assert_eq!(draws(&four, &asking(None, &tried), 100).keys().collect::<Vec<_>>(), ["w003"]);

    let limit = NonZeroU32::new(1);
    let _used = live(&four, 3).take(None);
    let full = Asking { limit, ..asking(None, &tried) };
    let counts = draws(&four, &full, 100);
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["w002"], "better one that fails than none");
    let _used = live(&four, 2).take(None);
    let mut random = fastrand::Rng::with_seed(1);
    assert_eq!(draw(&four, &full, &mut random).map(|_| ()), Err(Nobody::Full));
    let all: Vec<Live> = (0..4).map(|at| live(&four, at)).collect();
    assert_eq!(draw(&four, &asking(None, &all), &mut random).map(|_| ()), Err(Nobody::Left));
    assert_eq!(draw(&candidates(0, &[], ""), &asking(None, &[]), &mut random).map(|_| ()), Err(Nobody::Left));
}

#[test]
fn one_connection_tries_out_who_was_ejected() {
    let two = candidates(2, &[], "");
    live(&two, 0).eject(0, Duration::from_millis(500), Duration::from_secs(60), 0.0);
    let counts = draws(&two, &asking(None, &[]), 1000);
    assert_eq!((counts.get("w000"), counts.get("w001")), (Some(&1), Some(&999)), "until that one has told how it went");
    let _ = live(&two, 0).succeeded(1000, Duration::from_micros(1));
    assert!(draws(&two, &asking(None, &[]), 1000)["w000"] > 300);
}

#[test]
fn the_next_group_is_for_when_the_nearest_has_nobody() {
    let source = source();
    let near = |counts: &BTreeMap<String, usize>| counts.keys().all(|uid| **uid < *"w005");
    for (balancer, beyond) in [(FAILOVER, true), (STRICT, false)] {
        let ten = candidates(10, &[], balancer);
        let asking = asking(Some(&source), &[]);
        assert!(near(&draws(&ten, &asking, 500)));
        for at in 0..4 {
            live(&ten, at).eject(0, Duration::from_secs(60), Duration::from_secs(60), 0.0);
        }
        assert_eq!(draws(&ten, &asking, 200).keys().collect::<Vec<_>>(), ["w004"], "one of the nearest is enough");
        live(&ten, 4).eject(0, Duration::from_secs(60), Duration::from_secs(60), 0.0);
        let counts = draws(&ten, &asking, 500);
        assert_eq!(!near(&counts), beyond, "{balancer}: {counts:?}");
    }
}

#[test]
fn one_that_works_among_many_is_found() {
    let many = candidates(50, &[], "");
    for at in (0..50).filter(|at| *at != 33) {
        live(&many, at).eject(0, Duration::from_secs(60), Duration::from_secs(60), 0.0);
    }
    assert_eq!(draws(&many, &asking(None, &[]), 200).keys().collect::<Vec<_>>(), ["w033"]);
}

proptest! {
    /// Whoever is drawn is one of the candidates, was not tried, is below the limit, and is ejected only where nobody else is left.
    #[test]
    fn nobody_is_invented(
        count in 0..12_usize,
        tried in prop::collection::vec(any::<bool>(), 12),
        ejected in prop::collection::vec(any::<bool>(), 12),
        used in prop::collection::vec(0..3_usize, 12),
        limit in prop::option::of(1..3_u32),
        seed in any::<u64>(),
    ) {
        let candidates = candidates(count, &[], FAILOVER);
        let of = |flags: &[bool]| (0..count).filter(|at| flags[*at]).collect::<Vec<_>>();
        let tried: Vec<Live> = of(&tried).into_iter().map(|at| live(&candidates, at)).collect();
        for at in of(&ejected) {
            live(&candidates, at).eject(0, Duration::from_secs(60), Duration::from_secs(60), 0.0);
        }
        let _used: Vec<_> = (0..count).flat_map(|at| (0..used[at]).map(move |_| at)).map(|at| live(&candidates, at).take(None)).collect();
        let source = source();
        let limit = limit.and_then(NonZeroU32::new);
        let asking = Asking { limit, ..asking(Some(&source), &tried) };
        let below = |live: &Live| limit.is_none_or(|limit| live.open() < limit.get());
        let free: Vec<usize> = (0..count)
            .filter(|at| below(&live(&candidates, *at)) && !tried.iter().any(|tried| tried.is(&live(&candidates, *at))))
            .collect();
        match draw(&candidates, &asking, &mut fastrand::Rng::with_seed(seed)) {
            Ok(drawn) => {
                let at: usize = drawn.endpoint.workload.uid.trim_start_matches('w').parse().expect("a number");
                prop_assert!(free.contains(&at));
                prop_assert!(!ejected[at] || free.iter().all(|at| ejected[*at]));
            }
            Err(Nobody::Left) => prop_assert!(free.is_empty()),
            Err(Nobody::Full) => prop_assert!(free.is_empty() && limit.is_some()),
        }
    }
}
