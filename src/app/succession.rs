//! Succession, as the successor sees it: it waits with serving until the version before lets it, and knows which versions
//! still drain and what they have left.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::time::sleep;

use crate::admin::api::DrainingVersion;
use crate::lifecycle::handover::{Draining, Leave, Left, Ready, Version};
use crate::lifecycle::link::Link;
use crate::lifecycle::supervisor::{Supervised, Supervisor};
use crate::lifecycle::{Lifecycle, Phase, Readiness, notify};

/// How many versions may drain at a time, the one that an upgrade leaves behind included.
pub(super) const MOST_DRAINING: usize = 2;
/// How often a successor looks whether anything is in its way yet.
const LOOK: Duration = Duration::from_millis(10);

/// Versions that this one has followed and that have not ended yet, the oldest first. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Predecessors(Arc<Mutex<Vec<Entry>>>);

#[derive(Debug, Clone)]
struct Entry {
    version: Arc<Draining>,
    left: Option<Left>,
}

impl Predecessors {
    /// Follows `version` until it ends or another process serves. Must run inside the control runtime.
    fn follow(&self, version: Draining, lifecycle: &Lifecycle) {
        let version = Arc::new(version);
        self.entries().push(Entry { version: Arc::clone(&version), left: None });
        let (list, lifecycle) = (self.clone(), lifecycle.clone());
        tokio::task::spawn_local(async move {
            loop {
                let left = tokio::select! {
                    // Its words are for the next one then.
                    () = lifecycle.relieved() => return,
                    left = version.left() => left,
                };
                let gone = left.is_none();
                let mut entries = list.entries();
                if gone {
                    entries.retain(|entry| !Arc::ptr_eq(&entry.version, &version));
                    tracing::info!(pid = version.version.pid, "the version before has ended");
                    return;
                }
                if let Some(entry) = entries.iter_mut().find(|entry| Arc::ptr_eq(&entry.version, &version)) {
                    entry.left = left;
                }
            }
        });
    }

    /// Those that are left, for the next version.
    pub(super) fn links(&self) -> Vec<Arc<Draining>> {
        self.entries().iter().map(|entry| Arc::clone(&entry.version)).collect()
    }

    pub(super) fn list(&self) -> Vec<DrainingVersion> {
        let of = |entry: &Entry| DrainingVersion {
            pid: entry.version.version.pid,
            version: entry.version.version.version.clone(),
            connections: entry.left.as_ref().map(|left| left.connections),
            until: entry.left.as_ref().and_then(|left| left.until.clone()),
        };
        self.entries().iter().map(of).collect()
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this process has to do before it may serve, and whom it tells.
#[derive(Debug, Default)]
pub(super) struct Succession {
    predecessor: Option<Draining>,
    /// What the predecessor is told.
    ready: Option<Ready>,
    supervisor: Option<Arc<Supervisor>>,
    pub(super) predecessors: Predecessors,
}

impl Succession {
    /// Must run inside the control runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch the links.
    pub(super) fn new(
        predecessor: Option<(Version, Link)>,
        draining: Vec<(Version, OwnedFd)>,
        supervisor: Option<Supervised>,
        lifecycle: &Lifecycle,
    ) -> Result<Self> {
        let cannot = "cannot watch the link to the version before";
        let predecessors = Predecessors::default();
        for (version, link) in draining {
            let link = Link::from_given(link).context(cannot)?;
            predecessors.follow(Draining::new(version, link).context(cannot)?, lifecycle);
        }
        let predecessor =
            predecessor.map(|(version, link)| Draining::new(version, link)).transpose().context(cannot)?;
        let supervisor = supervisor.map(Supervised::watched).transpose().context("cannot watch the supervisor")?;
        Ok(Self { predecessor, ready: None, supervisor: supervisor.map(Arc::new), predecessors })
    }

    /// What there is to say of the sockets, once they are open.
    pub(super) fn set_ready(&mut self, moved: usize, opened: &[&str], left: &[String]) {
        let opened = opened.iter().map(|name| (*name).to_owned()).collect();
        self.ready = Some(Ready { version: Version::own(), moved, opened, left: left.to_vec() });
    }

    pub(super) fn is_successor(&self) -> bool {
        self.predecessor.is_some()
    }

    pub(super) fn supervisor(&self) -> Option<Arc<Supervisor>> {
        self.supervisor.clone()
    }

    /// Begins to serve: at once, or once nothing is in the way and the predecessor lets it.
    ///
    /// # Errors
    /// When the predecessor says that nothing comes of it.
    pub(super) async fn begin(&mut self, lifecycle: &Lifecycle, readiness: &Readiness) -> Result<()> {
        let Some(predecessor) = self.predecessor.take() else {
            serve(lifecycle, self.supervisor.as_deref());
            return Ok(());
        };
        while !readiness.is_ready() {
            sleep(LOOK).await;
        }
        let version = predecessor.version.clone();
        let ready = self.ready.take().context("the sockets are not open yet")?;
        let leave = match predecessor.ready(ready).await {
            Ok(leave) => leave,
            Err(error) => bail!("the version before does not let it serve: {error}"),
        };
        serve(lifecycle, self.supervisor.as_deref());
        match leave {
            Leave::Given => {
                predecessor.accepting();
                tracing::info!(pid = version.pid, version = version.version, "taken over; the version before drains");
                self.predecessors.follow(predecessor, lifecycle);
            }
            Leave::Orphaned => tracing::warn!(pid = version.pid, "the version before has died: taken over"),
        }
        Ok(())
    }
}

fn serve(lifecycle: &Lifecycle, supervisor: Option<&Supervisor>) {
    if !lifecycle.advance(Phase::Ready) {
        return;
    }
    notify::ready();
    if let Some(supervisor) = supervisor {
        supervisor.current();
    }
}
