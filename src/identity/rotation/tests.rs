//! The rotation against a source and a clock that are made up.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::time::Instant;

use super::*;
use crate::config::settings::LogFormat;
use crate::identity::authority::Authority;
use crate::identity::fixture::{DAY, bundle, credentials, domains, id, leaf, root};
use crate::identity::source::Pending;
use crate::lifecycle::Phase;
use crate::telemetry::Logger;

/// An authority that can be told to fail.
struct Fake {
    authority: Arc<Authority>,
    down: watch::Receiver<bool>,
    life: Duration,
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl Source for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn issues(&self) -> bool {
        true
    }

    fn changed(&mut self) -> Pending<'_, ()> {
        Box::pin(std::future::pending())
    }

    fn fetch(&mut self, now: SystemTime) -> Pending<'_, Result<Fetched, FetchError>> {
        self.asked.lock().unwrap().push(Instant::now());
        let down = *self.down.borrow();
        let made = || {
            let id = id("web");
            let issued = self.authority.issue(&id, now, self.life).unwrap();
            let trust = bundle(&[&self.authority], Arc::default());
            let key = crate::identity::fixture::key(&issued);
            Credentials::new(vec![issued.certificate], &key, trust, &id, now)
        };
        let result = if down { Err(CredentialsError::Authority("down".into())) } else { made() };
        Box::pin(async move { Ok(Fetched { credentials: result?, faults: Vec::new() }) })
    }
}

struct Running {
    rotation: Rotation,
    readiness: Readiness,
    down: watch::Sender<bool>,
    asked: Arc<Mutex<Vec<Instant>>>,
    clock: Clock,
    lifecycle: Lifecycle,
    tasks: tokio::task::JoinSet<()>,
}

/// The wall clock goes with tokio's, which a test moves.
pub(super) fn clock() -> Clock {
    let (wall, start) = (SystemTime::now(), Instant::now());
    Arc::new(move || wall + start.elapsed())
}

pub(super) fn terms(clock: &Clock, readiness: &Readiness) -> Terms {
    Terms {
        accepted: domains(&["cluster.local"]),
        root_grace: Duration::from_secs(3600),
        clock: Arc::clone(clock),
        jitter: || 0.5,
        readiness: readiness.clone(),
    }
}

fn start(life: Duration, is_down: bool) -> Running {
    let (clock, readiness, lifecycle) = (clock(), Readiness::default(), Lifecycle::default());
    let (down, down_reader) = watch::channel(is_down);
    let asked = Arc::<Mutex<Vec<Instant>>>::default();
    let fake = Fake { authority: Arc::new(root("a")), down: down_reader, life, asked: Arc::clone(&asked) };
    let (rotator, rotation) = Rotator::new(Box::new(fake), terms(&clock, &readiness));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(rotator.run(lifecycle.clone()));
    Running { rotation, readiness, down, asked, clock, lifecycle, tasks }
}

impl Running {
    async fn pass(&self, time: Duration) {
        sleep(time).await;
    }

    fn generation(&self) -> u64 {
        self.rotation.status.borrow().generation
    }

    fn blocked(&self) -> Option<String> {
        self.readiness.blockers().into_iter().find(|blocker| blocker.name == BLOCKER).and_then(|blocker| blocker.error)
    }
}

#[tokio::test(start_paused = true)]
async fn a_leaf_is_renewed_at_half_life_for_days() {
    let mut running = start(DAY, false);
    assert!(running.blocked().is_some(), "not ready before there is a certificate");
    running.pass(Duration::from_secs(1)).await;
    assert_eq!((running.generation(), running.blocked()), (1, None));
    for day in 1..=5 {
        running.pass(DAY).await;
        assert_eq!(running.generation(), 1 + day * 2);
        let tls = running.rotation.tls.borrow().clone().unwrap();
        assert!(tls.is_current((running.clock)()));
    }
    running.lifecycle.advance(Phase::Stopped);
    running.tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_a_day_keeps_the_certificate_and_heals_after_its_expiry() {
    let running = start(Duration::from_secs(6 * 3600), false);
    running.pass(Duration::from_secs(1)).await;
    running.down.send_replace(true);
    running.pass(Duration::from_secs(5 * 3600)).await;
    assert_eq!((running.generation(), running.blocked()), (1, None), "still valid, so still ready");
    assert!(running.rotation.status.borrow().failures > 10);
    running.pass(Duration::from_secs(3600 + 60)).await;
    let blocked = running.blocked().unwrap();
    assert!(blocked.contains("expired at") && blocked.contains("down"), "{blocked}");
    assert!(!running.rotation.tls.borrow().clone().unwrap().is_current((running.clock)()));
    running.pass(DAY).await;
    let asked = running.asked.lock().unwrap().clone();
    let pauses: Vec<Duration> = asked.windows(2).map(|pair| pair[1] - pair[0]).skip(1).collect();
    assert!(pauses.iter().all(|pause| *pause < Duration::from_secs(181)), "it never gives up: {pauses:?}");
    assert!(asked.len() < 900, "nor does it hammer: {}", asked.len());
    running.down.send_replace(false);
    running.pass(Duration::from_secs(181)).await;
    assert_eq!((running.generation(), running.blocked()), (2, None));
    assert_eq!(running.rotation.status.borrow().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_down_at_the_start_is_waited_for() {
    let running = start(DAY, true);
    running.pass(Duration::from_secs(3600)).await;
    assert!(running.rotation.tls.borrow().is_none());
    assert!(running.blocked().unwrap().contains("there is no certificate yet: the authority failed: down"));
    assert!(running.rotation.status.borrow().failed["authority"] > 20);
    running.down.send_replace(false);
    running.rotation.refresh.notify_one();
    running.pass(Duration::from_millis(1)).await;
    assert_eq!((running.generation(), running.blocked()), (1, None), "asked for by hand, so at once");
}

/// What has been logged.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What stays true is said again and again, but no oftener than once in a minute, whatever wakes the rotation meanwhile.
#[tokio::test(start_paused = true)]
async fn an_expired_certificate_is_told_of_once_a_minute() {
    let sink = Sink::default();
    let logger = Logger::start(LogFormat::Text, "info", true, sink.clone()).unwrap();
    let _default = tracing::dispatcher::set_default(&logger.dispatch());
    let lines = || {
        assert!(logger.flush(Duration::from_secs(20)));
        String::from_utf8_lossy(&sink.0.lock().unwrap()).matches(" expired at ").count()
    };
    let running = start(Duration::from_secs(3600), false);
    running.pass(Duration::from_secs(1)).await;
    running.down.send_replace(true);
    // Its life began a while before it was issued.
    running.pass(Duration::from_secs(3590)).await;
    assert_eq!(lines(), 0);
    let mut told = Vec::new();
    for second in 0..600_u64 {
        running.rotation.refresh.notify_one();
        running.pass(Duration::from_secs(1)).await;
        let now = lines();
        assert!(now <= told.len() + 1, "twice in second {second}");
        told.extend((now > told.len()).then_some(second));
    }
    assert!(told.len() >= 9, "{told:?}");
    let pauses: Vec<u64> = told.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Looked for to the second.
    assert!(pauses.iter().all(|pause| (59..=71).contains(pause)), "{pauses:?}");
}

/// Gives what is queued.
struct Steps(VecDeque<Credentials>);

impl Source for Steps {
    fn name(&self) -> &'static str {
        "steps"
    }

    fn issues(&self) -> bool {
        false
    }

    fn changed(&mut self) -> Pending<'_, ()> {
        Box::pin(std::future::pending())
    }

    fn fetch(&mut self, _: SystemTime) -> Pending<'_, Result<Fetched, FetchError>> {
        let credentials = self.0.pop_front().ok_or(CredentialsError::NoRoots);
        Box::pin(async { Ok(Fetched { credentials: credentials?, faults: Vec::new() }) })
    }
}

#[tokio::test(start_paused = true)]
async fn removed_roots_are_remembered_for_their_grace() {
    let (a, b, web) = (root("a"), root("b"), id("web"));
    let (from_a, from_b) = (leaf(&a, &web), leaf(&b, &web));
    let step = |leaf, roots: &[&Authority]| credentials(leaf, &[], bundle(roots, Arc::default()), &web).unwrap();
    let steps = [step(&from_a, &[&a]), step(&from_a, &[&a, &b]), step(&from_b, &[&a, &b]), step(&from_b, &[&b])];
    let (clock, readiness) = (clock(), Readiness::default());
    let (mut rotator, rotation) = Rotator::new(Box::new(Steps(steps.into())), terms(&clock, &readiness));
    for generation in 1..=4 {
        rotator.fetch().await;
        let status = Arc::clone(&rotation.status.borrow());
        assert_eq!(status.generation, generation);
        let retired: Vec<&str> = status.retired.iter().map(|retired| &*retired.root.subject).collect();
        assert_eq!(retired, if generation == 4 { vec!["CN=a"] } else { vec![] });
    }
    sleep(Duration::from_secs(3601)).await;
    rotator.look_around();
    assert!(rotation.status.borrow().retired.is_empty());
    rotator.fetch().await;
    assert_eq!(rotation.status.borrow().generation, 4, "a failure takes nothing away");
    assert!(rotation.tls.borrow().is_some());
}
