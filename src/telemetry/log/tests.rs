//! The log queue: bounded, counted, and never in the way.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use super::*;
use crate::telemetry::door::Door;

const LIMIT: Duration = Duration::from_secs(10);

/// A sink that a test can read.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("buffer").clone()).expect("utf-8")
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("buffer").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A sink whose writes wait until the gate is opened (the sender dropped).
struct Gated {
    gate: Receiver<()>,
    entered: SyncSender<()>,
    buffer: Buffer,
}

impl Write for Gated {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.entered.try_send(());
        let _ = self.gate.recv();
        self.buffer.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn access(id: u64, close: CloseReason) -> Box<AccessRecord> {
    Box::new(AccessRecord::new(id, Door::Outbound, close))
}

#[test]
fn events_become_lines_in_order() {
    let buffer = Buffer::default();
    let logger = Logger::start(LogFormat::Text, "info", true, buffer.clone()).expect("start");
    let _default = tracing::dispatcher::set_default(&logger.dispatch());
    tracing::info!(count = 3, name = "a b", addr = %"1.2.3.4:5", ok = true, "first\nline");
    tracing::debug!("not kept");
    logger.handle().access(access(9, CloseReason::Finished));
    let error: Box<dyn std::error::Error> = Box::new(std::io::Error::other("broken"));
    tracing::warn!(target: "hyper::x", error = &*error, "second");
    assert!(logger.flush(LIMIT));
    let text = buffer.text();
    let lines: Vec<&str> = text.lines().map(|line| line.split_once('\t').expect("a time").1).collect();
    assert_eq!(
        lines,
        [
            "info\ttelemetry::log::tests\tfirst\\nline\tcount=3 name=\"a b\" addr=1.2.3.4:5 ok=true",
            "info\taccess\tconnection complete\tdirection=\"outbound\" bytes_sent=0 bytes_recv=0 duration=\"0ms\" \
             close_reason=\"finished\" close_side=\"-\" close_phase=\"relay\" listener=\"outbound\" id=9",
            "warn\thyper::x\tsecond\terror=\"broken\"",
        ]
    );
}

#[test]
fn json_lines_parse() {
    let buffer = Buffer::default();
    let logger = Logger::start(LogFormat::Json, "info", true, buffer.clone()).expect("start");
    let _default = tracing::dispatcher::set_default(&logger.dispatch());
    tracing::error!(ratio = f64::NAN, half = 0.5, neg = -1, "x");
    assert!(logger.flush(LIMIT));
    let value: serde_json::Value = serde_json::from_str(&buffer.text()).expect("json");
    assert_eq!(
        (&value["level"], &value["message"], &value["ratio"], &value["half"], &value["neg"]),
        (&"error".into(), &"x".into(), &"NaN".into(), &0.5.into(), &(-1).into())
    );
}

#[test]
fn the_filter_changes_while_running() {
    let buffer = Buffer::default();
    let logger = Logger::start(LogFormat::Text, "info", true, buffer.clone()).expect("start");
    let handle = logger.handle();
    let _default = tracing::dispatcher::set_default(&logger.dispatch());
    let say = || tracing::debug!("detail");
    say();
    handle.set_filter("telemetry=debug").expect("filter");
    say();
    assert!(handle.set_filter("telemetry=loud").is_err());
    assert_eq!(handle.filter(), "telemetry=debug");
    say();
    handle.set_filter("off").expect("filter");
    say();
    tracing::error!("not even this");
    assert!(logger.flush(LIMIT));
    assert_eq!(buffer.text().lines().count(), 2, "{}", buffer.text());
}

#[test]
fn access_records_obey_switch_and_filter() {
    let buffer = Buffer::default();
    let logger = Logger::start(LogFormat::Text, "warn", true, buffer.clone()).expect("start");
    let handle = logger.handle();
    let enabled = |close| handle.access_enabled(close);
    assert!(!enabled(CloseReason::Finished) && enabled(CloseReason::LoopRefused));
    handle.set_filter("warn,access=info").expect("filter");
    assert!(enabled(CloseReason::Finished));
    handle.set_filter("debug,access=error").expect("filter");
    assert!(!enabled(CloseReason::LoopRefused) && enabled(CloseReason::ConnectRefused));
    handle.set_access(false);
    assert!(!enabled(CloseReason::ConnectRefused));
    handle.access(access(1, CloseReason::ConnectRefused));
    handle.set_access(true);
    handle.access(access(2, CloseReason::ConnectRefused));
    assert!(logger.flush(LIMIT));
    assert!(buffer.text().ends_with(" id=2\n"), "{}", buffer.text());
    assert_eq!(buffer.text().lines().count(), 1);
}

#[test]
fn a_blocked_sink_stalls_nobody_and_what_is_lost_is_told() {
    const LINES: u64 = 50_000;
    let buffer = Buffer::default();
    let (open, gate) = sync_channel(0);
    let (entered, blocked) = sync_channel(1);
    let sink = Gated { gate, entered, buffer: buffer.clone() };
    let logger = Logger::start(LogFormat::Text, "info", true, sink).expect("start");
    let handle = logger.handle();
    handle.access(access(0, CloseReason::Finished));
    blocked.recv_timeout(LIMIT).expect("the log thread writes");

    // Every producer finishes although nothing can be written.
    let producers: Vec<_> = (0..4)
        .map(|_| {
            let handle = handle.clone();
            std::thread::spawn(move || {
                for id in 0..LINES / 4 {
                    handle.access(access(id, CloseReason::Finished));
                }
            })
        })
        .collect();
    for producer in producers {
        producer.join().expect("producer");
    }
    let dropped = handle.lines_dropped();
    assert!(dropped > 0 && dropped < LINES, "{dropped}");
    let started = Instant::now();
    assert!(!logger.flush(Duration::from_millis(50)), "the sink is stuck");
    assert!(started.elapsed() < LIMIT);

    drop(open);
    assert!(logger.flush(LIMIT));
    let text = buffer.text();
    let told = format!("fast enough\tlines={dropped} lines_since_start={dropped}\n");
    assert_eq!(text.matches(&told).count(), 1, "{}", text.lines().last().unwrap_or_default());
    let written = u64::try_from(text.matches("connection complete").count()).expect("count");
    assert_eq!(written + dropped, LINES + 1, "every line is either written or counted");
}

#[test]
fn a_sink_that_fails_is_survived_and_counted() {
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let logger = Logger::start(LogFormat::Text, "info", true, Broken).expect("start");
    for id in 0..3 {
        logger.handle().access(access(id, CloseReason::Finished));
    }
    assert!(logger.flush(LIMIT));
    assert_eq!(logger.handle().lines_dropped(), 3);
    logger.handle().access(access(3, CloseReason::Finished));
    assert!(logger.flush(LIMIT), "the thread goes on");
}

#[test]
fn a_sink_that_would_block_is_asked_again() {
    /// Every other write would block, and each takes three bytes.
    struct Reluctant(Buffer, bool);
    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            self.0.write(bytes.get(..200).unwrap_or(bytes))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let buffer = Buffer::default();
    let logger = Logger::start(LogFormat::Text, "info", true, Reluctant(buffer.clone(), false)).expect("start");
    logger.handle().access(access(5, CloseReason::Finished));
    assert!(logger.flush(LIMIT));
    assert!(buffer.text().ends_with(" id=5\n"), "{}", buffer.text());
}

#[test]
fn a_bad_filter_is_an_error() {
    let error = Logger::start(LogFormat::Text, "infoo", true, Buffer::default()).expect_err("filter").to_string();
    assert!(error.starts_with("log filter: `infoo` is neither"), "{error}");
}

#[test]
fn error_chains_are_one_line_without_repetition() {
    #[derive(Debug, Error)]
    #[error("outer")]
    struct Outer(#[source] LogError);
    let error = Outer(LogError::Thread(std::io::Error::other("inner")));
    assert_eq!(chain(&error), "outer: cannot start the log thread: inner");
}
