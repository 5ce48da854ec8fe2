//! Keeps the published credentials fresh: asks the source, publishes generations, never gives up.
//!
//! ```text
//! due | source changed | asked -> fetch -> Credentials -> TlsGeneration -> watch channel (read per handshake)
//!                                  failure -> back off; the old generation stays, also past its expiry
//! ```
//!
//! In: a [`Source`], a clock, the accepted trust domains. Out: [`Rotation`]'s channels, and the readiness blocker
//! `identity` while there is no certificate, or it has expired or is revoked. A failure never takes anything away, nor
//! does it hold up whom to trust: roots and revocations that come without a usable certificate are published with the
//! old one.
//! Renewal does not need the certificate that is to be renewed, so an outage longer than its life heals by itself.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use crate::identity::credentials::{Credentials, CredentialsError, TrustBundle};
use crate::identity::failures::HandshakeFailures;
use crate::identity::peers::Peers;
use crate::identity::schedule::{back_off, renew_at};
use crate::identity::source::{Fault, FetchError, Fetched, Source};
use crate::identity::spiffe::TrustDomain;
use crate::identity::status::{Failure, IdentityMetrics, IdentityStatus, end_of, retired};
use crate::identity::tls::{Clock, TlsGeneration};
use crate::lifecycle::{Lifecycle, Phase, Readiness};
use crate::telemetry::text::Rfc3339;

/// The name of the readiness blocker.
pub const BLOCKER: &str = "identity";
/// Nothing is slept through longer than this: the wall clock may jump.
const TICK: Duration = Duration::from_secs(10);
/// Between warnings that stay true.
const REPEAT: Duration = Duration::from_secs(60);
/// A fetch that was asked for by hand comes no sooner after another.
const ASKED_APART: Duration = Duration::from_secs(1);
/// A source may take no longer.
const FETCH_WITHIN: Duration = Duration::from_secs(30);

/// What readers hold.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// The generation in force; nothing until there is one. Check [`TlsGeneration::is_current`] at use.
    pub tls: watch::Receiver<Option<Arc<TlsGeneration>>>,
    pub status: watch::Receiver<Arc<IdentityStatus>>,
    /// Asks for fresh credentials.
    pub refresh: Arc<Notify>,
    /// Who is connected, by root.
    pub peers: Peers,
    pub handshakes: Arc<HandshakeFailures>,
    accepted: Arc<watch::Sender<Arc<[TrustDomain]>>>,
}

impl Rotation {
    /// Accepts workloads of these trust domains from now on: a new generation, if they are others than before.
    pub fn accept(&self, domains: Arc<[TrustDomain]>) {
        self.accepted.send_if_modified(|known| {
            *known != domains && {
                *known = domains;
                true
            }
        });
    }

    /// What a scrape shows of all this.
    #[must_use]
    pub fn metrics(&self) -> IdentityMetrics {
        let (peers, handshakes) = (self.peers.clone(), Arc::clone(&self.handshakes));
        IdentityMetrics { status: self.status.clone(), peers, handshakes }
    }
}

/// What does not change while it runs.
pub struct Terms {
    /// Whose workloads may connect: the own trust domain and its aliases. See [`Rotation::accept`].
    pub accepted: Arc<[TrustDomain]>,
    /// How long what lives on a removed root may go on.
    pub root_grace: Duration,
    pub clock: Clock,
    /// From 0 to 1.
    pub jitter: fn() -> f64,
    pub readiness: Readiness,
}

pub struct Rotator {
    source: Box<dyn Source>,
    terms: Terms,
    tls: watch::Sender<Option<Arc<TlsGeneration>>>,
    status: watch::Sender<Arc<IdentityStatus>>,
    refresh: Arc<Notify>,
    /// Whose workloads may connect, and who may change that: kept, so that it is never closed.
    accepted: watch::Receiver<Arc<[TrustDomain]>>,
    _acceptor: Arc<watch::Sender<Arc<[TrustDomain]>>>,
    /// When to ask for the next leaf, by the wall clock; nothing: when the source says so.
    renew_at: Option<SystemTime>,
    /// When to try again after a failure.
    retry_at: Option<Instant>,
    last_error: Option<CredentialsError>,
    fetched_at: Option<Instant>,
    warned_at: Option<Instant>,
    was_blocked: bool,
}

impl std::fmt::Debug for Rotator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rotator").field("source", &self.source.name()).finish_non_exhaustive()
    }
}

enum Wake {
    Due,
    Changed,
    Asked,
    Accepted,
    Tick,
}

impl Rotator {
    #[must_use]
    pub fn new(source: Box<dyn Source>, terms: Terms) -> (Self, Rotation) {
        let status = IdentityStatus { source: source.name(), ..IdentityStatus::default() };
        terms.readiness.block(BLOCKER, status.blocked((terms.clock)()));
        let (tls, tls_reader) = watch::channel(None);
        let (status, status_reader) = watch::channel(Arc::new(status));
        let refresh = Arc::<Notify>::default();
        let (acceptor, accepted) = watch::channel(Arc::clone(&terms.accepted));
        let acceptor = Arc::new(acceptor);
        let rotation = Rotation {
            tls: tls_reader,
            status: status_reader,
            refresh: Arc::clone(&refresh),
            peers: Peers::default(),
            handshakes: Arc::default(),
            accepted: Arc::clone(&acceptor),
        };
        let rotator = Self {
            source,
            terms,
            tls,
            status,
            refresh,
            accepted,
            _acceptor: acceptor,
            renew_at: None,
            retry_at: Some(Instant::now()),
            last_error: None,
            fetched_at: None,
            warned_at: None,
            was_blocked: false,
        };
        (rotator, rotation)
    }

    /// Until the process stops.
    pub async fn run(mut self, lifecycle: Lifecycle) {
        tokio::select! {
            biased;
            () = lifecycle.reached(Phase::Stopped) => {}
            () = self.serve() => {}
        }
    }

    async fn serve(&mut self) {
        loop {
            let wait = self.wait();
            let asked = Arc::clone(&self.refresh);
            let wake = tokio::select! {
                biased;
                () = asked.notified() => Wake::Asked,
                Ok(()) = self.accepted.changed() => Wake::Accepted,
                () = self.source.changed() => Wake::Changed,
                () = sleep(wait) => if self.is_due() { Wake::Due } else { Wake::Tick },
            };
            match wake {
                Wake::Asked if self.fetched_at.is_some_and(|at| at.elapsed() < ASKED_APART) => {}
                Wake::Asked | Wake::Changed | Wake::Due => self.fetch().await,
                Wake::Accepted => self.accept(),
                Wake::Tick => {}
            }
            self.look_around();
        }
    }

    fn now(&self) -> SystemTime {
        (self.terms.clock)()
    }

    fn is_due(&self) -> bool {
        match self.retry_at {
            Some(at) => at <= Instant::now(),
            None => self.renew_at.is_some_and(|at| at <= self.now()),
        }
    }

    /// Until the next thing that is known to happen.
    fn wait(&self) -> Duration {
        let now = self.now();
        let until = |at: SystemTime| at.duration_since(now).unwrap_or_default();
        let mut wait = TICK;
        match (self.retry_at, self.renew_at) {
            (Some(at), _) => wait = wait.min(at.saturating_duration_since(Instant::now())),
            (None, Some(at)) => wait = wait.min(until(at)),
            (None, None) => {}
        }
        let expiry = self.status.borrow().credentials.as_ref().map(|credentials| credentials.not_after());
        if let Some(at) = expiry.filter(|at| *at >= now) {
            wait = wait.min(until(at) + Duration::from_millis(1));
        }
        wait
    }

    async fn fetch(&mut self) {
        self.fetched_at = Some(Instant::now());
        let now = self.now();
        let fetched = match tokio::time::timeout(FETCH_WITHIN, self.source.fetch(now)).await {
            Ok(fetched) => fetched,
            Err(_late) => Err(CredentialsError::Authority("no answer in time".to_owned()).into()),
        };
        match fetched {
            Ok(fetched) => self.take(fetched),
            Err(FetchError { error, bundle, faults }) => {
                if let Some(bundle) = bundle {
                    self.trust(&bundle, faults);
                }
                self.fail(&error);
            }
        }
    }

    fn take(&mut self, Fetched { credentials, faults }: Fetched) {
        let before = Arc::clone(&self.status.borrow());
        self.note(faults);
        let same = before.credentials.as_ref().is_some_and(|known| known.is_same(&credentials));
        if same {
            self.settle(&credentials);
        } else if let Err(error) = self.publish(&before, Arc::new(credentials)) {
            return self.fail(&error);
        }
        self.retry_at = None;
        self.last_error = None;
        self.tell(|status| {
            status.failures = 0;
            status.last_failure = None;
        });
    }

    /// Whom to trust has come without a certificate that could be used: it is put in force with the old one.
    fn trust(&mut self, bundle: &Arc<TrustBundle>, mut faults: Vec<Fault>) {
        let before = Arc::clone(&self.status.borrow());
        if let Some(old) = &before.credentials {
            let now = self.now();
            let made = old.with_bundle(bundle, now, end_of(self.terms.root_grace, now));
            faults.extend(made.notice().map(|until| orphaned(&made, until, now)));
            if !made.is_same(old)
                && let Err(error) = self.publish(&before, Arc::new(made))
            {
                self.fail(&error);
            }
        }
        self.note(faults);
    }

    /// New faults are told and counted once, for as long as they last.
    fn note(&self, faults: Vec<Fault>) {
        self.tell(|status| {
            for fault in faults.iter().filter(|fault| !status.faults.contains(fault)) {
                tracing::warn!(reason = fault.reason, "identity: {}", fault.message);
                *status.failed.entry(fault.reason).or_default() += 1;
            }
            status.faults = faults;
        });
    }

    /// Other trust domains are accepted from now on.
    fn accept(&mut self) {
        let before = Arc::clone(&self.status.borrow());
        let Some(credentials) = &before.credentials else { return };
        if let Err(error) = self.publish(&before, Arc::clone(credentials)) {
            self.fail(&error);
        }
    }

    fn settle(&mut self, credentials: &Credentials) {
        let validity = credentials.leaf().validity;
        self.renew_at = self.source.issues().then(|| renew_at(validity, (self.terms.jitter)()));
    }

    fn publish(&mut self, before: &IdentityStatus, credentials: Arc<Credentials>) -> Result<(), CredentialsError> {
        let now = self.now();
        let number = before.generation + 1;
        self.settle(&credentials);
        let accepted = Arc::clone(&self.accepted.borrow());
        let generation = TlsGeneration::new(number, Arc::clone(&credentials), accepted, &self.terms.clock)
            .map_err(|error| CredentialsError::Authority(error.to_string()))?;
        let leaf = credentials.leaf();
        tracing::info!(
            generation = number, identity = %credentials.id(), serial = &*leaf.serial,
            root = &*credentials.root().subject, roots = credentials.bundle().roots().len(),
            "credentials published, {}", leaf.validity.words()
        );
        let retired = retired(before, &credentials, now, self.terms.root_grace);
        let generation = generation.with_retired(retired.clone().into());
        // Before the status: whoever has heard of a generation can use it.
        self.tls.send_replace(Some(Arc::new(generation)));
        self.tell(|status| {
            status.generation = number;
            status.credentials = Some(credentials);
            status.published_at = Some(now);
            status.retired = retired;
        });
        Ok(())
    }

    fn fail(&mut self, error: &CredentialsError) {
        let now = self.now();
        let failures = self.status.borrow().failures.saturating_add(1);
        let repeated = self.last_error.replace(error.clone()).is_some_and(|last| error.repeats(&last));
        let mut wait = back_off(failures, (self.terms.jitter)());
        // The next look takes the root away that is on notice.
        let notice = self.status.borrow().credentials.as_ref().and_then(|credentials| credentials.notice());
        if let Some(left) = notice.and_then(|until| until.duration_since(now).ok()).filter(|left| !left.is_zero()) {
            wait = wait.min(left);
        }
        self.retry_at = Some(Instant::now() + wait);
        let reason = error.reason();
        let keeps = self.status.borrow().credentials.is_some();
        if repeated {
            tracing::debug!(reason, failures, "identity: {error}");
        } else {
            let kept = if keeps { "the old certificate stays" } else { "there is no certificate yet" };
            tracing::warn!(reason, failures, "identity: {error}; {kept}");
        }
        // A file that stays bad is one failure; an authority that fails again is another.
        let counts = !repeated || self.source.issues();
        self.tell(|status| {
            status.failures = failures;
            status.last_failure = Some(Failure { at: now, reason, message: error.to_string() });
            if counts {
                *status.failed.entry(reason).or_default() += 1;
            }
        });
    }

    /// Readiness, roots whose grace is over, and what has to be said again and again.
    fn look_around(&mut self) {
        let now = self.now();
        if self.status.borrow().retired.iter().any(|retired| retired.until < now) {
            self.tell(|status| status.retired.retain(|retired| retired.until >= now));
        }
        let blocked = self.status.borrow().blocked(now);
        match &blocked {
            Some(why) => self.terms.readiness.block(BLOCKER, Some(why.clone())),
            None => self.terms.readiness.clear(BLOCKER),
        }
        let was_blocked = std::mem::replace(&mut self.was_blocked, blocked.is_some());
        let is_news = blocked.is_some() && !was_blocked;
        if !is_news && self.warned_at.is_some_and(|at| at.elapsed() < REPEAT) {
            return;
        }
        self.warned_at = Some(Instant::now());
        if let Some(warning) = self.source.warning() {
            tracing::warn!("identity: {warning}");
        }
        if let Some(why) = blocked {
            tracing::error!("identity: {why}");
        }
        for list in self.expired_lists(now) {
            tracing::warn!("identity: the revocation list of {list} should have been replaced; it stays in force");
        }
    }

    fn expired_lists(&self, now: SystemTime) -> Vec<String> {
        let status = self.status.borrow();
        let lists = status.credentials.iter().flat_map(|credentials| credentials.bundle().revoked.expired(now));
        lists.map(|list| list.issuer.clone()).collect()
    }

    fn tell(&self, change: impl FnOnce(&mut IdentityStatus)) {
        self.status.send_modify(|status| change(Arc::make_mut(status)));
    }
}

/// The own certificate's root is not among the new ones.
fn orphaned(made: &Credentials, until: SystemTime, now: SystemTime) -> Fault {
    let (root, until_text) = (&made.root().subject, Rfc3339(until));
    let trusted = if now < until { "stays trusted until" } else { "has not been trusted since" };
    let message = format!("no new root has signed the certificate in force; its root {root} {trusted} {until_text}");
    Fault { reason: "roots", message }
}

#[cfg(test)]
mod late;
#[cfg(test)]
mod tests;
