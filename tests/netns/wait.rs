//! Waiting for a condition, with a limit; never for the clock.

use std::time::{Duration, Instant};

/// How long a condition may take to hold that holds at once on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Asks until there is an answer; panics, saying for what it waited, when there is none within `limit`.
pub fn until<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        pause(Duration::from_millis(5));
    }
}

/// Between two questions: all of `time`, although a thread that was waited for may have left its wake-up behind.
pub fn pause(time: Duration) {
    let start = Instant::now();
    while let Some(left) = time.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}
