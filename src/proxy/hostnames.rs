//! Addresses of workloads that the state knows by a host name only: looked up when a connection needs one.
//!
//! In: a name, and an address whose family is preferred. Out: one of its addresses, or why there is none. What was found is
//! believed for `FOUND_FOR` (the system's resolver tells no time to live), that nothing was found for `NOTHING_FOR`.
//! Who asks for a name that is being looked up waits for that answer; the worker's resolver threads do the waiting,
//! never the worker. Bounded: `MOST_NAMES` per worker, the caller's deadline, and `WITHIN` for the system.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout, timeout_at};

use crate::telemetry::{HostnameCounters, LookupResult, PeerLabels, WorkerCounters};

/// For one look-up by the system's resolver.
pub const WITHIN: Duration = Duration::from_secs(5);
const FOUND_FOR: Duration = Duration::from_secs(30);
const NOTHING_FOR: Duration = Duration::from_secs(5);
const MOST_NAMES: usize = 4096;

/// Turns names into addresses.
pub trait Resolve {
    fn resolve(&self, name: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>>>>;
}

/// The system's resolver, on the worker's own threads for it.
#[derive(Debug, Clone, Copy)]
pub struct System;

impl Resolve for System {
    fn resolve(&self, name: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>>>> {
        let name = name.to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip().to_canonical()).collect())
        })
    }
}

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("no address in time")]
    TooLate,
    #[error("no address")]
    NoAddress,
    #[error("{0}")]
    Failed(Arc<str>),
}

type Answer = Result<Arc<[IpAddr]>, LookupError>;

/// One name: empty while somebody looks it up. Whoever gives up leaves that to the next who waits.
type Entry = Rc<OnceCell<(Answer, Instant)>>;

/// One worker's names.
pub struct Hostnames {
    resolver: Rc<dyn Resolve>,
    counters: Arc<WorkerCounters>,
    known: RefCell<HashMap<Arc<str>, Entry>>,
}

impl fmt::Debug for Hostnames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hostnames").field("known", &self.known.borrow().len()).finish_non_exhaustive()
    }
}

impl Hostnames {
    #[must_use]
    pub fn new(resolver: Rc<dyn Resolve>, counters: Arc<WorkerCounters>) -> Self {
        Self { resolver, counters, known: RefCell::default() }
    }

    /// One of the name's addresses, drawn from those of the family of `wanted`, else from the others. `source`: who the
    /// look-up is counted for.
    ///
    /// # Errors
    /// There is none, or not by `deadline`.
    pub async fn look_up(
        &self,
        name: &Arc<str>,
        wanted: IpAddr,
        source: Option<Arc<PeerLabels>>,
        deadline: Instant,
    ) -> Result<IpAddr, LookupError> {
        let counters = &self.counters.hostnames;
        counters.demanded(&source.unwrap_or_else(PeerLabels::unknown), name);
        let entry = self.entry(name);
        let answer = match entry.get() {
            Some((answer, _)) => {
                counters.count(LookupResult::Cached);
                answer.clone()
            }
            None => {
                let answering = entry.get_or_init(|| ask(&*self.resolver, name, counters));
                let (answer, _) = timeout_at(deadline, answering).await.map_err(|_elapsed| LookupError::TooLate)?;
                answer.clone()
            }
        };
        pick(&answer?, wanted).ok_or(LookupError::NoAddress)
    }

    /// What is known of the name and still believed, or room for it.
    fn entry(&self, name: &Arc<str>) -> Entry {
        let mut known = self.known.borrow_mut();
        let now = Instant::now();
        let is_stale = |entry: &Entry| entry.get().is_some_and(|(_, until)| *until <= now);
        if let Some(entry) = known.get(name).filter(|entry| !is_stale(entry)) {
            return Rc::clone(entry);
        }
        if known.len() >= MOST_NAMES {
            known.retain(|_, entry| !is_stale(entry));
        }
        let entry = Entry::default();
        // With so many names in use one is asked for once more; what is in the table stays.
        if known.len() < MOST_NAMES || known.contains_key(name) {
            known.insert(Arc::clone(name), Rc::clone(&entry));
        }
        entry
    }
}

async fn ask(resolver: &dyn Resolve, name: &str, counters: &HostnameCounters) -> (Answer, Instant) {
    let answer = match timeout(WITHIN, resolver.resolve(name)).await {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(LookupError::NoAddress),
        Ok(Ok(addresses)) => Ok(addresses.into()),
        Ok(Err(error)) => Err(LookupError::Failed(error.to_string().into())),
        Err(_elapsed) => Err(LookupError::TooLate),
    };
    let (result, believed) = match &answer {
        Ok(_) => (LookupResult::Found, FOUND_FOR),
        Err(LookupError::TooLate) => (LookupResult::Timeout, NOTHING_FOR),
        Err(LookupError::NoAddress | LookupError::Failed(_)) => (LookupResult::Failed, NOTHING_FOR),
    };
    counters.count(result);
    (answer, Instant::now() + believed)
}

fn pick(addresses: &[IpAddr], wanted: IpAddr) -> Option<IpAddr> {
    let alike = addresses.iter().filter(|ip| ip.is_ipv4() == wanted.is_ipv4()).count();
    let (of_family, count) = if alike > 0 { (true, alike) } else { (false, addresses.len()) };
    let nth = (count > 0).then(|| fastrand::usize(0..count))?;
    addresses.iter().filter(|ip| !of_family || ip.is_ipv4() == wanted.is_ipv4()).nth(nth).copied()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Answers from a table, or never.
    #[derive(Default)]
    struct Table {
        answers: RefCell<HashMap<String, io::Result<Vec<IpAddr>>>>,
        asked: Cell<usize>,
        silent: Cell<bool>,
    }

    impl Resolve for Rc<Table> {
        fn resolve(&self, name: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>>>> {
            self.asked.set(self.asked.get() + 1);
            let answer = match self.answers.borrow().get(name) {
                Some(Ok(addresses)) => Ok(addresses.clone()),
                Some(Err(error)) => Err(error.kind().into()),
                None => Err(io::ErrorKind::NotFound.into()),
            };
            let silent = self.silent.get();
            Box::pin(async move {
                tokio::task::yield_now().await;
                if silent {
                    std::future::pending::<()>().await;
                }
                answer
            })
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    fn names(entries: &[(&str, &[&str])]) -> (Rc<Table>, Hostnames, Arc<WorkerCounters>) {
        let table = Rc::new(Table::default());
        for (name, addresses) in entries {
            table.answers.borrow_mut().insert((*name).to_owned(), Ok(addresses.iter().map(|it| ip(it)).collect()));
        }
        let counters = Arc::<WorkerCounters>::default();
        (Rc::clone(&table), Hostnames::new(Rc::new(table), Arc::clone(&counters)), counters)
    }

    async fn ask(hostnames: &Hostnames, name: &str, wanted: &str) -> Result<IpAddr, LookupError> {
        let deadline = Instant::now() + Duration::from_secs(60);
        hostnames.look_up(&name.into(), ip(wanted), None, deadline).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_believed_for_a_while_and_a_failure_for_less() {
        let (table, hostnames, counters) = names(&[("a.test", &["10.0.0.1"])]);
        for (after, name, found, asked) in [
            (0, "a.test", true, 1),
            (29, "a.test", true, 1),
            (2, "a.test", true, 2),
            (0, "b.test", false, 3),
            (4, "b.test", false, 3),
            (2, "b.test", false, 4),
        ] {
            tokio::time::advance(Duration::from_secs(after)).await;
            assert_eq!(ask(&hostnames, name, "10.0.0.9").await.is_ok(), found, "{name}");
            assert_eq!(table.asked.get(), asked, "{name} after {after} s");
        }
        let counts = LookupResult::ALL.map(|result| counters.hostnames.results(result));
        assert_eq!(counts, [2, 2, 2, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_family_that_is_wanted_comes_first() {
        let (_, hostnames, _) =
            names(&[("both.test", &["10.0.0.1", "fd00::1"]), ("six.test", &["fd00::2"]), ("none.test", &[])]);
        for (name, wanted, want) in [
            ("both.test", "10.0.0.9", Some("10.0.0.1")),
            ("both.test", "fd00::9", Some("fd00::1")),
            ("six.test", "10.0.0.9", Some("fd00::2")),
            ("none.test", "10.0.0.9", None),
        ] {
            assert_eq!(ask(&hostnames, name, wanted).await.ok(), want.map(ip), "{name} {wanted}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_the_same_waits_for_one_answer() {
        let (table, hostnames, _) = names(&[("a.test", &["10.0.0.1"])]);
        let (one, other) = tokio::join!(ask(&hostnames, "a.test", "10.0.0.9"), ask(&hostnames, "a.test", "10.0.0.9"));
        assert_eq!((one.ok(), other.ok(), table.asked.get()), (Some(ip("10.0.0.1")), Some(ip("10.0.0.1")), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_resolver_costs_its_time_and_the_deadline_counts_before_that() {
        let (table, hostnames, counters) = names(&[]);
        table.silent.set(true);
        let began = Instant::now();
        let soon = began + Duration::from_secs(1);
        let result = hostnames.look_up(&"a.test".into(), ip("10.0.0.9"), None, soon).await;
        assert_eq!((result, began.elapsed()), (Err(LookupError::TooLate), Duration::from_secs(1)));
        assert_eq!(counters.hostnames.results(LookupResult::Timeout), 0, "it was given up, and nothing is known");
        let began = Instant::now();
        assert_eq!(ask(&hostnames, "a.test", "10.0.0.9").await, Err(LookupError::TooLate));
        assert_eq!((began.elapsed(), counters.hostnames.results(LookupResult::Timeout)), (WITHIN, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_what_is_beyond_is_asked_for_again() {
        let (table, hostnames, _) = names(&[]);
        for number in 0..MOST_NAMES + 10 {
            let _ = ask(&hostnames, &format!("{number}.test"), "10.0.0.9").await;
        }
        assert_eq!((hostnames.known.borrow().len(), table.asked.get()), (MOST_NAMES, MOST_NAMES + 10));
        tokio::time::advance(NOTHING_FOR).await;
        let _ = ask(&hostnames, "fresh.test", "10.0.0.9").await;
        assert_eq!(hostnames.known.borrow().len(), 1, "what is not believed any more makes room");
    }
}
