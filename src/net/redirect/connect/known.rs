//! Finding again what an earlier `apply` has attached: among all programs of the kernel by name, by what their map `adit_state` says
//! of whose they are, and then at the cgroups that are visible.

use std::io;

use super::tables::{CLIENTS, DESTINATIONS, DOORS, PENDING, ROW, STATE, State, UnderWay};
use super::{ConnectError, HOOKS, LOOKUP, kernel};
use crate::net::bpf::{self, Hook, Map, MapSpec, Program};
use crate::net::cgroup::{self, Cgroup};

/// A program of ours, of one namespace, wherever it is attached.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) id: u32,
    pub(super) hook: Hook,
    pub(super) program: Program,
    maps: Vec<Map>,
}

/// A program of ours, and where it is attached.
pub(super) struct Found {
    pub(super) cgroup: Cgroup,
    pub(super) known: Known,
}

impl Known {
    pub(super) fn map(&self, spec: &MapSpec) -> Option<&Map> {
        self.maps.iter().find(|map| map.is(spec))
    }

    pub(super) fn state(&self) -> Option<(&Map, State)> {
        let map = self.map(&STATE)?;
        Some((map, State::read(&map.lookup(&ROW).ok()?)?))
    }
}

/// Ours of this namespace.
pub(super) fn known(namespace: u64) -> Result<Vec<Known>, ConnectError> {
    let mut all = Vec::new();
    for id in bpf::programs().map_err(kernel("ask which programs there are"))? {
        let Some(program) = Program::by_id(id).map_err(kernel("look at a program"))? else { continue };
        let info = program.info().map_err(kernel("look at a program"))?;
        let ours = HOOKS.into_iter().chain([LOOKUP]).find(|(_, name)| *name == info.name);
        let Some((hook, _)) = ours else { continue };
        let maps = maps(&info.maps).map_err(kernel("look at a map"))?;
        let known = Known { id, hook, program, maps };
        if known.state().is_some_and(|(_, state)| state.namespace == namespace) {
            all.push(known);
        }
    }
    Ok(all)
}

fn maps(ids: &[u32]) -> io::Result<Vec<Map>> {
    ids.iter().filter_map(|id| Map::by_id(*id).transpose()).collect()
}

/// Ours of this namespace that are at cgroups.
pub(super) fn find(namespace: u64) -> Result<Vec<Found>, ConnectError> {
    let mut known = known(namespace)?;
    known.retain(|known| known.hook != LOOKUP.0);
    let mut all = Vec::new();
    if known.is_empty() {
        return Ok(all);
    }
    for path in cgroup::all().map_err(ConnectError::Cgroup)? {
        // It may have gone since it was listed.
        let Ok(cgroup) = Cgroup::open(&path) else { continue };
        for (hook, _) in HOOKS {
            for id in bpf::attached(cgroup.fd(), hook).map_err(kernel("ask which programs are attached"))? {
                if let Some(index) = known.iter().position(|known| known.id == id) {
                    all.push(Found { cgroup: cgroup.clone(), known: known.swap_remove(index) });
                }
            }
        }
    }
    // Let go first: what somebody else has just detached lives only as long as it is held here.
    let left: Vec<u32> = known.into_iter().map(|known| known.id).collect();
    if left.into_iter().any(|id| matches!(Program::by_id(id), Ok(Some(_)))) {
        return Err(ConnectError::Hidden);
    }
    Ok(all)
}

/// The maps of whatever captures now.
pub(super) fn under_way(here: &[Found], others: &[Found]) -> Result<UnderWay, ConnectError> {
    let find = |spec: &MapSpec| {
        let map = here.iter().chain(others).find_map(|found| found.known.map(spec));
        map.map(Map::try_clone).transpose().map_err(kernel("go on with the maps that are there"))
    };
    Ok(UnderWay {
        destinations: find(&DESTINATIONS)?,
        pending: find(&PENDING)?,
        clients: find(&CLIENTS)?,
        doors: find(&DOORS)?,
    })
}
