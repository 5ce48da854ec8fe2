//! Passive health: what tries have shown of an endpoint, and when it is left alone for a while.
//!
//! So many failures in a row eject it, for a time that grows until it works again; one that is on trial goes at its first
//! failure. Connections that were under way when it went, however many, do not make that time grow. Never more than half of
//! a port's candidates are out at the same time, since then the fault is more likely ours, or the network's, than theirs.
//! Nothing here can fail.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::config::settings::Balance;
use crate::mesh::Live;
use crate::mesh::live::Standing;
use crate::mesh::plan::Candidates;

/// More than this many ejected endpoints are not listed.
const MOST_LISTED: usize = 10_000;

/// The endpoints that are out, for whoever looks; taken only when one goes out and when somebody looks.
#[derive(Debug, Default)]
pub struct Ejections(Mutex<Vec<(Live, SocketAddr)>>);

impl Ejections {
    pub fn add(&self, live: &Live, address: SocketAddr, now_ms: u64) {
        let mut listed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listed.retain(|(other, _)| !other.is(live) && other.standing(now_ms) != Standing::Fine);
        if listed.len() < MOST_LISTED {
            listed.push((live.clone(), address));
        }
    }

    /// Who is out now, or on trial.
    #[must_use]
    pub fn now(&self, now_ms: u64) -> Vec<SocketAddr> {
        let mut listed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listed.retain(|(live, _)| live.standing(now_ms) != Standing::Fine);
        listed.iter().map(|(_, address)| *address).collect()
    }
}

/// Notes that connecting failed, or that a tunnel was lost. Returns for how long the endpoint is ejected, if it is now.
/// `jitter`: 0 to 1.
pub fn failed(candidates: &Candidates, live: &Live, settings: Balance, now_ms: u64, jitter: f64) -> Option<Duration> {
    let after = settings.eject_after?;
    let failures = live.failed();
    let enough = match live.standing(now_ms) {
        Standing::Fine => failures >= after.get(),
        Standing::Ejected | Standing::OnTrial => live.ends_trial(),
    };
    if !enough || !may_eject(candidates, live, now_ms) {
        return None;
    }
    Some(live.eject(now_ms, settings.eject_time, settings.eject_max, jitter))
}

/// Whether half of the candidates stay if this one goes. Looks at all of them, which happens once per ejection.
fn may_eject(candidates: &Candidates, live: &Live, now_ms: u64) -> bool {
    let members = candidates.members();
    let is_out = |other: &Live| !other.is(live) && other.standing(now_ms) != Standing::Fine;
    let others_out = members.iter().filter(|member| is_out(&member.live)).count();
    others_out < members.len() / 2
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;

    use super::*;
    use crate::mesh::snapshot_of;

    fn candidates(count: usize) -> Arc<Candidates> {
        let mut text = String::from(
            "services: [{ name: s, namespace: n, hostname: s, vips: [], ports: { 80: 80 } }]\nworkloads:\n",
        );
        for at in 0..count {
            text.push_str(&format!(
                "- {{ uid: w{at:03}, namespace: n, workloadIps: [10.0.0.{at}], services: {{ n/s: {{}} }} }}\n"
            ));
        }
        let snapshot = snapshot_of("mesh.yaml", &text).expect("a mesh");
        let state = snapshot.service_by_key("n", "s").expect("the service");
        Arc::clone(state.plan().candidates(80, crate::mesh::plan::Mode::Standard).expect("the port"))
    }

    fn live(candidates: &Candidates, at: usize) -> &Live {
        &candidates.members()[at].live
    }

    fn out(candidates: &Candidates) -> usize {
        candidates.members().iter().filter(|member| member.live.standing(0) == Standing::Ejected).count()
    }

    #[test]
    fn so_many_failures_in_a_row_eject() {
        let candidates = candidates(4);
        let settings = Balance { eject_after: NonZeroU32::new(3), ..Balance::default() };
        let live = live(&candidates, 0);
        assert_eq!(
            (failed(&candidates, live, settings, 0, 0.0), failed(&candidates, live, settings, 0, 0.0)),
            (None, None)
        );
        let _ = live.succeeded(0, Duration::ZERO);
        let times: Vec<_> = (0..3).map(|_| failed(&candidates, live, settings, 0, 0.0)).collect();
        assert_eq!(times, [None, None, Some(Duration::from_secs(10))], "a success between them begins anew");
        let later = 10_000;
        assert!(live.try_out(later, Duration::from_secs(5)));
        assert_eq!(
            failed(&candidates, live, settings, later, 0.0),
            Some(Duration::from_secs(20)),
            "on trial one is enough"
        );
    }

    #[test]
    fn who_was_under_way_does_not_make_the_time_grow() {
        let candidates = candidates(4);
        let (live, settings) = (live(&candidates, 0), Balance::default());
        let fail = |now| failed(&candidates, live, settings, now, 0.0);
        let times: Vec<_> = (0..100).filter_map(|_| fail(0)).collect();
        assert_eq!(times, [Duration::from_secs(10)], "once, of a hundred that fail together");
        assert_eq!(fail(10_000), None, "nobody has tried it out");
        assert!(live.try_out(10_000, Duration::from_secs(5)));
        let times: Vec<_> = (0..100).filter_map(|_| fail(11_000)).collect();
        assert_eq!(times, [Duration::from_secs(20)], "the try, and nobody else");
    }

    #[test]
    fn half_of_them_stay() {
        for (count, want) in [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4), (10, 5)] {
            let candidates = candidates(count);
            for _ in 0..5 {
                for at in 0..count {
                    let _time = failed(&candidates, live(&candidates, at), Balance::default(), 0, 0.0);
                }
            }
            assert_eq!(out(&candidates), want, "of {count}");
        }
    }

    #[test]
    fn off_is_off() {
        let candidates = candidates(2);
        let settings = Balance { eject_after: None, ..Balance::default() };
        assert!((0..100).all(|_| failed(&candidates, live(&candidates, 0), settings, 0, 0.0).is_none()));
    }
}
