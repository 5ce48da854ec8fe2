//! CONTROL: the world as adit knows it.
//!
//! ```text
//! source: files --scan--> load: parse each changed file (file) -> compare -> builder -> Snapshot -> watch channel
//! DATA: Snapshot::workload, service, service_by_host, local_workload       (index, slot, key: borrowed look-ups)
//! DATA: Snapshot::policies_for -> PolicyView                               (policies, policy)
//! ```
//!
//! A source yields raw resources; they become a [`Snapshot`] as a whole and only if valid; a watch channel publishes it;
//! the data path reads it once per connection. What is wrong is refused with every problem named, and the last good
//! snapshot stays. Deliberately absent: choosing an endpoint, and the verdict, which is the data path's.

mod builder;
mod file;
#[cfg(test)]
mod fixture;
mod index;
mod key;
pub mod live;
mod load;
mod map;
pub mod plan;
mod policies;
pub mod policy;
pub mod service;
mod slot;
mod snapshot;
mod source;
mod spec;
mod status;
pub mod workload;

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::problem::{Problem, Problems};
use crate::files::{Bounds, Effort, FileSet, Scan};

pub use builder::{Change, SnapshotBuilder};
pub use file::Document;
pub use live::Live;
pub use plan::Plan;
pub use policy::{Policy, PolicyKey, PolicyView};
pub use service::{Endpoint, Service, ServiceKey, ServiceState, Visibility};
pub use snapshot::Snapshot;
pub use source::{FileSource, Opened};
pub use spec::{ExplicitEndpoint, ServiceSpec};
pub use status::{MeshStatus, Rejection, ReloadCounts, ReloadOutcome};
pub use workload::{GatewayAddress, Health, Protocol, Workload};

/// What `check` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub files: usize,
    pub workloads: usize,
    pub services: usize,
    pub policies: usize,
    /// References that lead nowhere: services, waypoints, gateways, workloads and policies that are named and not defined. Not
    /// errors.
    pub dangling: Vec<Problem>,
}

/// Loads the files as a start would, without watching them. Blocking. A missing file is a problem here.
pub fn check(sources: Vec<PathBuf>) -> Result<Summary, Problems> {
    let bounds = Bounds::default();
    let mut scan = FileSet::new(sources, bounds).scan(Effort::Full, |_, _| false);
    let mut loader = load::Loader::new(bounds);
    let loaded = loader.load(&mut scan)?;
    let snapshot = loaded.map(|loaded| loaded.snapshot).unwrap_or_default();
    Ok(Summary {
        files: scan.files.len(),
        workloads: snapshot.workload_count(),
        services: snapshot.service_count(),
        policies: snapshot.policy_count(),
        dangling: loader.dangling(&scan),
    })
}

/// The state that the files mean, as a start would read them, without watching them. Blocking. A missing file is a problem here.
pub fn read(sources: Vec<PathBuf>) -> Result<Arc<Snapshot>, Problems> {
    let bounds = Bounds::default();
    let mut scan = FileSet::new(sources, bounds).scan(Effort::Full, |_, _| false);
    let loaded = load::Loader::new(bounds).load(&mut scan)?;
    Ok(loaded.map(|loaded| loaded.snapshot).unwrap_or_default())
}

/// The state that one text means, such as one built into the binary; `name` is what its problems call it.
pub fn snapshot_of(name: &str, text: &str) -> Result<Arc<Snapshot>, Problems> {
    let loaded = load::Loader::default().load(&mut Scan::of_text(name, text))?;
    Ok(loaded.map(|loaded| loaded.snapshot).unwrap_or_default())
}
