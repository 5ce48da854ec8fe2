//! The one way to stderr: a bounded queue, drained by a thread of its own.
//!
//! Producers (workers and the control thread) never wait: a full queue drops the item and counts it. The log thread
//! sleeps a moment after the first item, then takes what has gathered and writes it with one call, so that a producer
//! rarely has to wake it. A sink that blocks stalls this thread only. When lines were dropped, one line says how many
//! as soon as writing works again, at most once a second. A sink that fails loses its lines; they are counted too.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::Level;

use crate::config::settings::LogFormat;
use crate::telemetry::access::AccessRecord;
use crate::telemetry::line::Line;

/// Items, not lines written: 8192 access records are about 3 MiB.
const CAPACITY: usize = 8192;
/// How long the log thread lets items gather.
const GATHER: Duration = Duration::from_millis(5);
/// One write takes at most so many items.
const BATCH: usize = 512;
/// Buffers that a burst made larger than this are given back.
const KEEP_BYTES: usize = 256 * 1024;
const SUMMARY_EVERY: Duration = Duration::from_secs(1);
/// How long to wait before asking a sink again that would block.
const RETRY: Duration = Duration::from_millis(10);

/// What the queue carries; boxed, so that an idle queue is small.
#[derive(Debug)]
pub(crate) enum Item {
    Event(Box<Event>),
    Access(Box<AccessRecord>),
    /// Answered once everything before it has been written.
    Flush(SyncSender<()>),
}

/// A log event whose values have been collected; the log thread makes the line.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) at: SystemTime,
    pub(crate) level: Level,
    pub(crate) target: &'static str,
    pub(crate) message: String,
    pub(crate) fields: Vec<(&'static str, Value)>,
}

#[derive(Debug)]
pub(crate) enum Value {
    Text(String),
    /// `Display` or `Debug` output.
    Bare(String),
    Number(String),
}

/// The producers' end; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    sender: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
    thread: Thread,
}

impl Queue {
    /// Starts the log thread; it ends when the last clone is dropped.
    pub(crate) fn start(format: LogFormat, sink: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(CAPACITY);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer::new(format, sink, Arc::clone(&dropped));
        let thread = std::thread::Builder::new().name("adit-log".into()).spawn(move || writer.run(&receiver))?;
        Ok(Self { sender, dropped, thread: thread.thread().clone() })
    }

    /// Never waits.
    pub(crate) fn push(&self, item: Item) {
        if self.sender.try_send(item).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything pushed before has been written; false when `deadline` passes first.
    pub(crate) fn flush(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        let (done, written) = sync_channel(1);
        let mut marker = Item::Flush(done);
        loop {
            match self.sender.try_send(marker) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(_)) if Instant::now() >= until => return false,
                Err(TrySendError::Full(back)) => {
                    marker = back;
                    std::thread::park_timeout(RETRY);
                }
            }
        }
        // Cuts the gathering short.
        self.thread.unpark();
        written.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok()
    }
}

/// The log thread.
struct Writer<W> {
    format: LogFormat,
    sink: W,
    dropped: Arc<AtomicU64>,
    /// How many of `dropped` a line has told about.
    told: u64,
    told_at: Option<Instant>,
    buffer: Vec<u8>,
    /// Lines in `buffer`.
    lines: u64,
    waiting: Vec<SyncSender<()>>,
}

impl<W: Write> Writer<W> {
    fn new(format: LogFormat, sink: W, dropped: Arc<AtomicU64>) -> Self {
        Self { format, sink, dropped, told: 0, told_at: None, buffer: Vec::new(), lines: 0, waiting: Vec::new() }
    }

    fn run(mut self, receiver: &Receiver<Item>) {
        loop {
            match self.next(receiver) {
                Ok(item) => self.take(item),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.waiting.is_empty() {
                std::thread::park_timeout(GATHER);
            }
            for _ in 0..BATCH {
                match receiver.try_recv() {
                    Ok(item) => self.take(item),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            self.tell_dropped(false);
            self.write_out();
        }
        self.tell_dropped(true);
        self.write_out();
    }

    /// Waits for ever while nothing has to be told later: an idle log thread does not wake.
    fn next(&self, receiver: &Receiver<Item>) -> Result<Item, RecvTimeoutError> {
        if self.dropped.load(Ordering::Relaxed) > self.told {
            receiver.recv_timeout(SUMMARY_EVERY)
        } else {
            receiver.recv().map_err(RecvTimeoutError::from)
        }
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::Event(event) => event.write(self.format, &mut self.buffer),
            Item::Access(record) => record.write(self.format, &mut self.buffer),
            Item::Flush(done) => {
                self.waiting.push(done);
                return;
            }
        }
        self.lines += 1;
    }

    fn tell_dropped(&mut self, last: bool) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        let soon = self.told_at.is_some_and(|told_at| told_at.elapsed() < SUMMARY_EVERY);
        if dropped == self.told || (soon && !last) {
            return;
        }
        let now = SystemTime::now();
        let message = "log lines were dropped: the log could not be written fast enough";
        let mut line = Line::begin(&mut self.buffer, self.format, now, Level::WARN, "adit::telemetry", message);
        line.number("lines", dropped - self.told);
        line.number("lines_since_start", dropped);
        line.end();
        self.told = dropped;
        self.told_at = Some(Instant::now());
    }

    fn write_out(&mut self) {
        if write_all(&mut self.sink, &self.buffer).is_err() {
            // Not told in a line: it would go the same way.
            self.dropped.fetch_add(self.lines, Ordering::Relaxed);
            self.told += self.lines;
        }
        self.lines = 0;
        self.buffer.clear();
        self.buffer.shrink_to(KEEP_BYTES);
        for done in self.waiting.drain(..) {
            // Whoever waited may have given up.
            let _ = done.try_send(());
        }
    }
}

impl Event {
    fn write(&self, format: LogFormat, out: &mut Vec<u8>) {
        let mut line = Line::begin(out, format, self.at, self.level, self.target, &self.message);
        for (key, value) in &self.fields {
            match value {
                Value::Text(value) => line.text(key, value),
                Value::Bare(value) => line.bare(key, value),
                Value::Number(value) => line.number(key, value),
            }
        }
        line.end();
    }
}

/// Like `Write::write_all`, but waits where the sink would block: someone may have made stderr non-blocking.
fn write_all(sink: &mut impl Write, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::park_timeout(RETRY),
            Err(error) => return Err(error),
        }
    }
    sink.flush()
}
