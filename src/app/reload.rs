//! Reload: settings files that changed, SIGHUP or `POST /reload` become new settings, if they are valid as a whole.
//!
//! What may change live is published on the watch channel and applies to the next connection; what needs a restart is
//! refused by key name and reported until then. Bad files change nothing. No open connection is touched by any of it.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use crate::admin::api::{Rejection, ReloadReport, ReloadResult, Reloading, SourceStatus, rfc3339};
use crate::app::daemon::apply_limits;
use crate::config::auto::Machine;
use crate::config::reload::diff;
use crate::config::{Problems, Settings, Sources};
use crate::files::{self, Bounds, ContentHash, Effort, FileSet, Pace, WatchMode};
use crate::identity::{self, Rotation};
use crate::lifecycle::{Phase, notify};
use crate::mesh::ReloadOutcome;
use crate::proxy::worker::Shared;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::reloads::Reloaded;

/// A request to reload everything; the answer is optional (a signal wants none).
pub(super) type Request = Option<oneshot::Sender<ReloadReport>>;

/// Why the settings are read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// A file has changed.
    Routine,
    /// By a signal or through the admin API.
    Explicitly,
}

/// What is in force and what was refused last.
#[derive(Debug, Clone, Default)]
pub(super) struct ReloadStatus {
    pub(super) source: SourceStatus,
    /// Keys whose new value waits for a restart.
    pub(super) refused_keys: Vec<String>,
}

/// Owns the settings in force.
#[derive(Debug)]
pub(super) struct Reloader {
    pub(super) sources: Sources,
    pub(super) settings: watch::Sender<Arc<Settings>>,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) machine: Machine,
    pub(super) mesh: mpsc::Sender<oneshot::Sender<ReloadOutcome>>,
    /// Is asked for fresh credentials, and told whom to accept.
    pub(super) identity: Option<Rotation>,
    pub(super) status: watch::Sender<ReloadStatus>,
}

impl Reloader {
    /// Until the process stops: reloads when a settings file has changed, and all when asked.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let hash = hash_of(&self.settings.borrow());
        self.note_applied(&hash);
        let pace = Pace::default();
        let (files, mut wakeups) = files::watch(self.sources.files.clone(), Bounds::default(), pace, WatchMode::Events);
        // The first look is at once, and what changed since the start read the files is a change, too.
        let Some((mut files, mut known)) = settled(files, Effort::Full, pace).await else { return };
        self.reload_settings(Asked::Routine).await;
        let lifecycle = self.shared.lifecycle.clone();
        loop {
            tokio::select! {
                () = lifecycle.reached(Phase::Stopped) => return,
                effort = wakeups.next() => {
                    let Some((back, digest)) = settled(files, effort, pace).await else { return };
                    files = back;
                    if std::mem::replace(&mut known, digest) != digest {
                        self.reload_settings(Asked::Routine).await;
                    }
                }
                Some(answer) = requests.recv() => {
                    // Before and after it serves this is nothing to tell.
                    let serves = lifecycle.phase() == Phase::Ready;
                    if serves {
                        notify::reloading();
                    }
                    let report = self.reload_all().await;
                    if serves {
                        notify::reloaded();
                    }
                    if let Some(answer) = answer {
                        // Whoever asked has given up.
                        let _ = answer.send(report);
                    }
                }
            }
        }
    }

    async fn reload_all(&mut self) -> ReloadReport {
        if let Some(identity) = &self.identity {
            identity.refresh.notify_one();
        }
        let config = self.reload_settings(Asked::Explicitly).await;
        let mesh = self.reload_mesh().await;
        ReloadReport { config, mesh, refused_keys: self.status.borrow().refused_keys.clone() }
    }

    async fn reload_mesh(&self) -> Reloading {
        let (answer, outcome) = oneshot::channel();
        let outcome = match self.mesh.send(answer).await {
            Ok(()) => outcome.await.ok(),
            Err(_stopped) => None,
        };
        let hash = self.shared.snapshot.borrow().source_hash().to_owned();
        let (result, errors) = match outcome {
            Some(ReloadOutcome::Applied { .. }) => (ReloadResult::Applied, Vec::new()),
            Some(ReloadOutcome::Unchanged { .. }) => (ReloadResult::Unchanged, Vec::new()),
            Some(ReloadOutcome::Rejected(problems) | ReloadOutcome::Waiting(problems)) => {
                (ReloadResult::Rejected, words(&problems))
            }
            None => (ReloadResult::Rejected, vec!["adit is stopping".to_owned()]),
        };
        Reloading { result, hash, errors }
    }

    async fn reload_settings(&mut self, asked: Asked) -> Reloading {
        let sources = self.sources.clone();
        let loaded = tokio::task::spawn_blocking(move || crate::config::load(&sources)).await;
        match loaded {
            Ok(Ok(wanted)) => self.apply(&wanted, asked),
            Ok(Err(problems)) => self.reject(words(&problems)),
            Err(error) => self.reject(vec![error.to_string()]),
        }
    }

    fn apply(&mut self, wanted: &Settings, asked: Asked) -> Reloading {
        let running = Arc::clone(&self.settings.borrow());
        let plan = diff(&running, wanted);
        let accepted = match identity::plan::plan(&plan.applied) {
            Ok(plan) => plan.map(|plan| plan.accepted),
            Err(problems) => return self.reject(words(&problems)),
        };
        let hash = hash_of(&plan.applied);
        for refused in &plan.refused {
            tracing::warn!(
                key = refused.key, running = %refused.running, wanted = %refused.wanted,
                "this setting needs a restart; the old value stays"
            );
        }
        let refused_keys: Vec<String> = plan.refused.iter().map(|refused| refused.key.to_owned()).collect();
        let refused_changed = self.status.borrow().refused_keys != refused_keys;
        let result =
            if plan.changed.is_empty() && !refused_changed { ReloadResult::Unchanged } else { ReloadResult::Applied };
        if !plan.changed.is_empty() {
            tracing::info!(changed = plan.changed.join(" "), "new settings");
        }
        self.follow(&running, &plan.applied, asked);
        if let (Some(identity), Some(accepted)) = (&self.identity, accepted) {
            identity.accept(accepted);
        }
        self.settings.send_replace(Arc::new(plan.applied));
        self.status.send_modify(|status| status.refused_keys = refused_keys);
        if result == ReloadResult::Applied {
            self.note_applied(&hash);
        }
        Reloading { result, hash, errors: Vec::new() }
    }

    /// What does not read the settings channel itself.
    fn follow(&self, running: &Settings, applied: &Settings, asked: Asked) {
        // A filter that was set through the admin API lasts until somebody asks for a reload or writes another.
        if (asked == Asked::Explicitly || running.log.filter != applied.log.filter)
            && let Err(error) = self.shared.log.set_filter(&applied.log.filter)
        {
            tracing::warn!(%error, "the log filter stays as it was");
        }
        self.shared.log.set_access(applied.log.access);
        if running.metrics != applied.metrics {
            self.metrics.traffic.set_labels(&applied.metrics.labels);
        }
        if running.limits != applied.limits {
            apply_limits(&self.shared, &self.metrics, applied, &self.machine);
        }
    }

    fn note_applied(&self, hash: &str) {
        let now = SystemTime::now();
        self.metrics.reloads.applied(Reloaded::Config, hash, now);
        self.status.send_modify(|status| {
            status.source.source = self.sources.files.iter().map(|path| path.display().to_string()).collect();
            hash.clone_into(&mut status.source.hash);
            status.source.applied_at = Some(rfc3339(now));
        });
    }

    fn reject(&self, errors: Vec<String>) -> Reloading {
        let now = SystemTime::now();
        for error in &errors {
            tracing::warn!(error = error.as_str(), "the settings are not valid; the old ones stay");
        }
        self.metrics.reloads.rejected(Reloaded::Config, now);
        let rejection = Rejection { at: rfc3339(now), errors: errors.clone() };
        self.status.send_modify(|status| status.source.rejected = Some(rejection));
        let hash = hash_of(&self.settings.borrow());
        Reloading { result: ReloadResult::Rejected, hash, errors }
    }
}

/// Looks until two looks agree, so that a half-written file is seldom read, but not for ever.
async fn settled(mut files: FileSet, effort: Effort, pace: Pace) -> Option<(FileSet, ContentHash)> {
    let give_up = Instant::now() + pace.settle_max;
    let mut before = None;
    loop {
        let scan = tokio::task::spawn_blocking(move || {
            let digest = files.scan(effort, |_, _| true).digest;
            (files, digest)
        });
        let (back, digest) = scan.await.ok()?;
        if before == Some(digest) || Instant::now() >= give_up {
            return Some((back, digest));
        }
        before = Some(digest);
        files = back;
        sleep(pace.settle).await;
    }
}

fn words(problems: &Problems) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

/// SHA-256 of the settings in force, whatever layers they came from.
fn hash_of(settings: &Settings) -> String {
    Sha256::digest(settings.to_json().to_string()).iter().map(|byte| format!("{byte:02x}")).collect()
}
