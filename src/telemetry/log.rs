//! Logging: `tracing` events and access records become lines on one sink, stderr in production.
//!
//! In: events of the whole process (through [`Logger::install`]) and access records (through a [`LogHandle`]).
//! Out: text or JSON lines, in order, written by the log thread ([`queue`](crate::telemetry)); nothing else writes to
//! stderr. Invariants: no producer ever waits for the sink; what a full queue drops is counted and told. The filter can
//! be replaced while running. Spans are accepted and ignored: none is opened on the data path, and a library's spans
//! would cost without telling anything.

use std::fmt;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Level, Metadata, Subscriber};

use crate::config::settings::LogFormat;
use crate::telemetry::access::{ACCESS_TARGET, AccessRecord, access_level};
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::filter::{Filter, FilterError};
use crate::telemetry::queue::{Event, Item, Queue, Value};

#[derive(Debug, Error)]
pub enum LogError {
    #[error("log filter: {0}")]
    Filter(#[source] FilterError),
    #[error("cannot start the log thread: {0}")]
    Thread(#[source] std::io::Error),
    #[error("cannot duplicate stderr: {0}")]
    Stderr(#[source] std::io::Error),
    #[error("another logger is already installed in this process")]
    AlreadyInstalled,
}

/// The running log. Dropping it loses nothing that was flushed.
#[derive(Debug, Clone)]
pub struct Logger {
    handle: LogHandle,
}

/// What everyone else needs of the log; cheap to clone.
#[derive(Debug, Clone)]
pub struct LogHandle {
    queue: Queue,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    filter: RwLock<Filter>,
    /// `log.access`.
    access: AtomicBool,
    /// The level that access records need, as [`level_number`]; 0 is off.
    access_level: AtomicU8,
}

impl Logger {
    /// Starts the log thread. `access`: whether connections are logged at all.
    pub fn start(
        format: LogFormat,
        filter: &str,
        access: bool,
        sink: impl Write + Send + 'static,
    ) -> Result<Self, LogError> {
        let filter: Filter = filter.parse().map_err(LogError::Filter)?;
        let queue = Queue::start(format, sink).map_err(LogError::Thread)?;
        let shared =
            Shared { filter: RwLock::new(filter), access: AtomicBool::new(access), access_level: AtomicU8::new(0) };
        let handle = LogHandle { queue, shared: Arc::new(shared) };
        handle.update_access_level();
        Ok(Self { handle })
    }

    /// A sink on a descriptor of its own: not behind the lock of `std::io::stderr`, which a blocked write would hold.
    pub fn stderr() -> Result<impl Write + Send + 'static, LogError> {
        let fd = std::io::stderr().as_fd().try_clone_to_owned().map_err(LogError::Stderr)?;
        Ok(std::fs::File::from(fd))
    }

    /// Makes this the log of every thread of the process.
    pub fn install(&self) -> Result<(), LogError> {
        tracing::dispatcher::set_global_default(self.dispatch()).map_err(|_taken| LogError::AlreadyInstalled)
    }

    /// For tests: the log of one thread, with `tracing::dispatcher::set_default`.
    #[must_use]
    pub fn dispatch(&self) -> Dispatch {
        Dispatch::new(Collecting { handle: self.handle.clone() })
    }

    #[must_use]
    pub fn handle(&self) -> LogHandle {
        self.handle.clone()
    }

    /// Before exit: false when not everything was written by `deadline`, because the sink is stuck.
    #[must_use]
    pub fn flush(&self, deadline: Duration) -> bool {
        self.handle.queue.flush(deadline)
    }
}

impl LogHandle {
    /// Replaces the filter; on error the old one stays.
    pub fn set_filter(&self, text: &str) -> Result<(), FilterError> {
        let filter: Filter = text.parse()?;
        *self.shared.filter.write().unwrap_or_else(PoisonError::into_inner) = filter;
        self.update_access_level();
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }

    /// The text of the filter in force.
    #[must_use]
    pub fn filter(&self) -> String {
        self.shared.filter.read().unwrap_or_else(PoisonError::into_inner).as_str().to_owned()
    }

    /// `log.access` after a reload.
    pub fn set_access(&self, enabled: bool) {
        self.shared.access.store(enabled, Ordering::Relaxed);
        self.update_access_level();
    }

    /// Whether a connection that ended so is logged; one relaxed load. Ask before building a record.
    #[must_use]
    pub fn access_enabled(&self, close: CloseReason) -> bool {
        level_number(access_level(close)) <= self.shared.access_level.load(Ordering::Relaxed)
    }

    /// Queues the record; never waits. Records that the filter does not keep are dropped here.
    pub fn access(&self, record: Box<AccessRecord>) {
        if self.access_enabled(record.close) {
            self.queue.push(Item::Access(record));
        }
    }

    /// How many lines were lost since start.
    #[must_use]
    pub fn lines_dropped(&self) -> u64 {
        self.queue.dropped()
    }

    fn update_access_level(&self) {
        let level = if self.shared.access.load(Ordering::Relaxed) {
            let filter = self.shared.filter.read().unwrap_or_else(PoisonError::into_inner);
            filter.level(ACCESS_TARGET).into_level().map_or(0, level_number)
        } else {
            0
        };
        self.shared.access_level.store(level, Ordering::Relaxed);
    }

    fn keeps(&self, metadata: &Metadata<'_>) -> bool {
        self.shared.filter.read().unwrap_or_else(PoisonError::into_inner).keeps(metadata.target(), *metadata.level())
    }
}

/// Higher is more detailed.
const fn level_number(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// The `tracing` side: decides once per call site, collects values on the caller's thread.
struct Collecting {
    handle: LogHandle,
}

impl Subscriber for Collecting {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_event() && self.handle.keeps(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && self.handle.keeps(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.handle.shared.filter.read().unwrap_or_else(PoisonError::into_inner).max_level())
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let metadata = event.metadata();
        let mut collected = Event {
            at: SystemTime::now(),
            level: *metadata.level(),
            target: metadata.target(),
            message: String::new(),
            fields: Vec::new(),
        };
        event.record(&mut Collector { event: &mut collected });
        self.handle.queue.push(Item::Event(Box::new(collected)));
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

struct Collector<'a> {
    event: &'a mut Event,
}

impl Collector<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            let (Value::Text(text) | Value::Bare(text) | Value::Number(text)) = value;
            self.event.message = text;
        } else {
            self.event.fields.push((field.name(), value));
        }
    }
}

impl Visit for Collector<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::Bare(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::Text(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, Value::Text(chain(value)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Number(value.to_string()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Number(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Number(value.to_string()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // Infinity and NaN are no JSON numbers.
        let text = value.to_string();
        self.put(field, if value.is_finite() { Value::Number(text) } else { Value::Text(text) });
    }
}

/// An error and what it came from, on one line; a level that repeats the one above is left out.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let level = error.to_string();
        if !text.ends_with(&level) {
            text.push_str(": ");
            text.push_str(&level);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
