//! The file source: keeps the published snapshot equal to what the mesh files say.
//!
//! ```text
//! Wakeups | reload request -> scan -> settled? -> load -> Snapshot, MeshStatus -> watch channels
//! ```
//!
//! Scanning, parsing, building, publishing and dropping all happen on blocking threads; the task here only waits. A
//! change is taken when two scans in a row agree (a half-written file rarely stands still), or when the files will not
//! settle; whether it is good decides only the load, as a whole. A content that was refused is reported once.
//!
//! Failure: before the first state, bad content is the caller's to die of, and a missing file is waited for. After it,
//! the last good state stays, whatever happens to the files.
//!
//! Replaced snapshots are held here until nobody else does, so that none is ever torn down on a data worker.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::config::problem::{Origin, Problem, Problems};
use crate::files::{self, Bounds, ContentHash, Effort, FileSet, Pace, Scan, Wakeups, WatchMode};
use crate::lifecycle::{Lifecycle, Phase};
use crate::mesh::Snapshot;
use crate::mesh::load::{Loaded, Loader};
use crate::mesh::status::{MeshStatus, Rejection, ReloadOutcome};

/// A source and what it publishes: load it for the first time, run it, and read from its channels.
#[derive(Debug)]
pub struct Opened {
    pub source: FileSource,
    /// The empty snapshot, generation 0, until there is a state.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub status: watch::Receiver<Arc<MeshStatus>>,
}

#[derive(Debug)]
pub struct FileSource {
    wakeups: Wakeups,
    pace: Pace,
    /// Never contended: one blocking task at a time. Sound after a panic, since it changes last.
    worker: Arc<Mutex<Worker>>,
}

/// The blocking half.
#[derive(Debug)]
struct Worker {
    files: FileSet,
    loader: Loader,
    snapshots: watch::Sender<Arc<Snapshot>>,
    status: watch::Sender<Arc<MeshStatus>>,
    /// The scan that was last decided on.
    decided: Option<ContentHash>,
    /// The scan before, if it was not decided on.
    candidate: Option<ContentHash>,
    /// Replaced snapshots that somebody still reads.
    retired: Vec<Arc<Snapshot>>,
}

/// What a look at the files is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// To see whether something changed.
    Routine,
    /// Somebody wants an answer.
    Explicitly,
}

impl FileSource {
    /// Reads nothing yet, so that others can be shown the channels first.
    #[must_use]
    pub fn open(sources: Vec<PathBuf>, pace: Pace, mode: WatchMode) -> Opened {
        let (files, wakeups) = files::watch(sources, Bounds::default(), pace, mode);
        let status = MeshStatus { sources: files.sources().to_vec(), ..MeshStatus::default() };
        let (snapshots, snapshot_reader) = watch::channel(Arc::default());
        let (status, status_reader) = watch::channel(Arc::new(status));
        let loader = Loader::new(Bounds::default());
        let worker = Worker { files, loader, snapshots, status, decided: None, candidate: None, retired: Vec::new() };
        let source = Self { wakeups, pace, worker: Arc::new(Mutex::new(worker)) };
        Opened { source, snapshots: snapshot_reader, status: status_reader }
    }

    /// Reads the files for the first time. `Err`: what they say is wrong. Files that are not there are waited for, see
    /// [`MeshStatus::waiting_for`]. No files at all is an empty state. Whoever drops this does not wait for the thread that
    /// reads; what it still publishes is not half of anything.
    pub async fn load_first(&self) -> Result<(), Problems> {
        match self.look(Effort::Full, Asked::Explicitly).await {
            ReloadOutcome::Rejected(problems) => Err(Arc::unwrap_or_clone(problems)),
            ReloadOutcome::Applied { .. } | ReloadOutcome::Unchanged { .. } | ReloadOutcome::Waiting(_) => Ok(()),
        }
    }

    /// Until the process stops. A request re-reads everything and is answered when the outcome is published.
    pub async fn run(self, requests: mpsc::Receiver<oneshot::Sender<ReloadOutcome>>, lifecycle: Lifecycle) {
        tokio::select! {
            biased;
            () = lifecycle.reached(Phase::Stopped) => {}
            () = self.serve(requests) => {}
        }
    }

    async fn serve(mut self, mut requests: mpsc::Receiver<oneshot::Sender<ReloadOutcome>>) {
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                request = requests.recv(), if open => match request {
                    Some(answer) => {
                        let outcome = self.look(Effort::Full, Asked::Explicitly).await;
                        // Whoever asked may have gone.
                        let _gone = answer.send(outcome);
                    }
                    None => open = false,
                },
                effort = self.wakeups.next() => drop(self.look(effort, Asked::Routine).await),
            }
        }
    }

    /// Looks until the files settle, for at most `settle_max`, and decides.
    async fn look(&self, effort: Effort, asked: Asked) -> ReloadOutcome {
        let give_up = Instant::now() + self.pace.settle_max;
        loop {
            let began = Instant::now();
            let patient = began < give_up;
            let worker = Arc::clone(&self.worker);
            let look = tokio::task::spawn_blocking(move || {
                worker.lock().unwrap_or_else(PoisonError::into_inner).look(effort, asked, patient)
            });
            match look.await {
                Ok(Some(outcome)) => return outcome,
                // Each file is read twice, so far apart; what was parsed meanwhile is not waited for.
                Ok(None) => sleep_until(began + self.pace.settle).await,
                Err(error) => {
                    tracing::error!(%error, "loading the mesh files failed; the last good state stays");
                    let problem = Problem::of(Origin::File("mesh.files".into()), format!("loading failed: {error}"));
                    return ReloadOutcome::Rejected(Arc::new(problem.into()));
                }
            }
        }
    }
}

impl Worker {
    /// `None`: not settled, look again soon.
    fn look(&mut self, effort: Effort, asked: Asked, patient: bool) -> Option<ReloadOutcome> {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        let mut scan = self.files.scan(effort, |path, hash| self.loader.knows(path, hash));
        let digest = Some(scan.digest);
        if digest == self.decided && asked == Asked::Routine {
            self.candidate = None;
            return Some(ReloadOutcome::Unchanged { generation: self.snapshots.borrow().generation() });
        }
        let nothing_to_wait_for = self.files.sources().is_empty();
        if digest != self.decided && digest != self.candidate && patient && !nothing_to_wait_for {
            self.candidate = digest;
            self.loader.prepare(&mut scan);
            return None;
        }
        self.candidate = None;
        self.decided = digest;
        Some(self.decide(&mut scan))
    }

    fn decide(&mut self, scan: &mut Scan) -> ReloadOutcome {
        let has_state = self.status.borrow().has_state();
        if !has_state && !scan.errors.is_empty() && scan.errors.iter().all(files::FileError::is_absence) {
            return self.wait_for(scan);
        }
        match self.loader.load(scan) {
            Ok(Some(loaded)) => self.publish(loaded),
            Ok(None) => {
                let generation = self.snapshots.borrow().generation();
                self.tell(|status| {
                    status.reloads.unchanged += 1;
                    status.in_sync = true;
                });
                ReloadOutcome::Unchanged { generation }
            }
            Err(problems) => self.reject(problems),
        }
    }

    fn publish(&mut self, loaded: Loaded) -> ReloadOutcome {
        let Loaded { snapshot, files, changes } = loaded;
        let generation = snapshot.generation();
        let (workloads, services) = (snapshot.workload_count(), snapshot.service_count());
        let policies = snapshot.policy_count();
        tracing::info!(
            generation,
            changes,
            files,
            workloads,
            services,
            policies,
            hash = snapshot.source_hash(),
            "mesh state applied"
        );
        let hash: Arc<str> = snapshot.source_hash().into();
        // Before the status, so that whoever has heard of a generation can read it.
        self.retired.push(self.snapshots.send_replace(snapshot));
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        self.tell(|status| {
            status.waiting_for.clear();
            status.generation = generation;
            status.hash = hash;
            status.applied_at = Some(SystemTime::now());
            (status.files, status.workloads, status.services) = (files, workloads, services);
            status.policies = policies;
            status.in_sync = true;
            status.reloads.applied += 1;
        });
        ReloadOutcome::Applied { generation, changes }
    }

    fn reject(&self, problems: Problems) -> ReloadOutcome {
        tracing::warn!(count = problems.len(), "mesh files refused, the last good state stays:\n{problems}");
        let problems = Arc::new(problems);
        let rejection = Rejection { at: SystemTime::now(), problems: Arc::clone(&problems) };
        self.tell(|status| {
            status.waiting_for.clear();
            status.in_sync = false;
            status.last_rejected = Some(rejection);
            status.reloads.rejected += 1;
        });
        ReloadOutcome::Rejected(problems)
    }

    fn wait_for(&self, scan: &Scan) -> ReloadOutcome {
        let missing: Vec<String> = scan.errors.iter().map(ToString::to_string).collect();
        tracing::warn!(missing = missing.join("; "), "waiting for the mesh files");
        self.tell(|status| status.waiting_for = missing);
        ReloadOutcome::Waiting(Arc::new(super::load::unreadable_files(scan)))
    }

    fn tell(&self, change: impl FnOnce(&mut MeshStatus)) {
        self.status.send_modify(|status| change(Arc::make_mut(status)));
    }
}

#[cfg(test)]
mod tests;
