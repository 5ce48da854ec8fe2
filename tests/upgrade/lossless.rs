//! Demand E1: under load no connection is refused or reset, however often the program is replaced.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::kit::isolate::measured;
use crate::kit::wait::pause;
use crate::kit::{Host, LIMIT, isolated, until};
use crate::line::{Line, PORT, pid_of, send, wait_gone};
use crate::serve::echo;
use crate::world::captured;

const UPGRADES: usize = 20;
/// New connections a second that are wanted; what a build without optimization manages on a busy machine is less.
const RATE: u32 = 2000;
const CLIENTS: u32 = 16;

/// What became of the load.
struct Load {
    carried: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

/// Connects, sends a byte, gets it back and closes, from many threads, until `over`.
fn load(host: &Host, address: SocketAddr, over: &AtomicBool, load: &Load) {
    host.run(|| {
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    // Threads of a scope are in the namespace of the thread that starts them.
                    let interval = Duration::from_secs(1) * CLIENTS / RATE;
                    let mut next = Instant::now();
                    while !over.load(Ordering::Relaxed) {
                        match exchange(address) {
                            Ok(()) => {
                                load.carried.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => load.failed.lock().expect("no panics").push(error),
                        }
                        next += interval;
                        pause(next.saturating_duration_since(Instant::now()));
                    }
                });
            }
        });
    });
}

fn exchange(address: SocketAddr) -> Result<(), String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).map_err(|error| format!("connect: {error}"))?;
    stream.set_read_timeout(Some(LIMIT)).map_err(|error| error.to_string())?;
    stream.write_all(b"x").map_err(|error| format!("write: {error}"))?;
    let mut byte = [0];
    stream.read_exact(&mut byte).map_err(|error| format!("read: {error}"))?;
    if byte == *b"x" { Ok(()) } else { Err(format!("another byte: {byte:?}")) }
}

#[test]
fn twenty_upgrades_under_load_lose_no_connection() {
    isolated(|| {
        let lab = captured();
        let settings = "workers: 2\nlog: { access: false }\nshutdown: { deadline: 20s }\n";
        let line = Line::start(&lab.adit, settings, "");
        echo(&lab.server, PORT);
        let address = SocketAddr::from((lab.server.v4, PORT));
        let (over, all) = (AtomicBool::new(false), Load { carried: AtomicUsize::new(0), failed: Mutex::default() });
        let start = Instant::now();
        let (answered, wrong) = thread::scope(|scope| {
            scope.spawn(|| load(&lab.adit, address, &over, &all));
            let asking = scope.spawn(|| line.ask(&over));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let mut before = line.pid();
                for round in 0..UPGRADES {
                    line.replace_program();
                    if round % 4 == 3 {
                        send(before, Signal::USR2);
                    } else {
                        let report = line.upgraded();
                        assert_eq!(pid_of(&report["from"]["pid"]), before);
                        // Admin, metrics, readiness, and two workers with two doors each.
                        assert_eq!(report["moved"], 7, "{report}");
                        assert_eq!(
                            (&report["opened"], &report["left"]),
                            (&serde_json::json!([]), &serde_json::json!([]))
                        );
                    }
                    let after = until(LIMIT, "another process to serve", || {
                        let pid = line.pid();
                        (pid != before).then_some(pid)
                    });
                    wait_gone(before, LIMIT);
                    before = after;
                }
            }));
            over.store(true, Ordering::Relaxed);
            if let Err(panic) = result {
                std::panic::resume_unwind(panic);
            }
            asking.join().expect("no panics")
        });
        assert!(wrong.is_empty(), "{} of {answered}: {wrong:#?}", wrong.len());
        assert!(answered > UPGRADES * 3, "{answered} are no questions");
        let (carried, took) = (all.carried.into_inner(), start.elapsed());
        let failed = all.failed.into_inner().expect("no panics");
        let rate = carried as f64 / took.as_secs_f64();
        measured(&format!(
            "{UPGRADES} upgrades in {took:.1?}, {carried} connections ({rate:.0}/s), {} failed",
            failed.len()
        ));
        assert!(failed.is_empty(), "{} of {carried}: {:?}", failed.len(), &failed[..failed.len().min(5)]);
        assert!(carried > UPGRADES * 50, "{carried} are no load");
        line.stop(&[]);
    });
}

/// Whoever has connected and said nothing yet when the versions change is served by one of them.
#[test]
fn who_connects_meanwhile_is_served_by_one_or_the_other() {
    isolated(|| {
        let lab = crate::kit::Lab::new();
        let settings = "workers: 1\nlisten: { socks5: '127.0.0.1:15080' }\nlog: { access: false }\n";
        let line = Line::start(&lab.adit, settings, "");
        echo(&lab.adit, PORT);
        let mut streams: Vec<TcpStream> = Vec::new();
        let dial = || lab.adit.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 15080)).expect("in the queue"));
        let old = line.pid();
        let answered = thread::scope(|scope| {
            let upgrading = scope.spawn(|| line.upgraded());
            until(LIMIT, "connections enough", || {
                streams.push(dial());
                (streams.len() > 300).then_some(())
            });
            let _report = upgrading.join().expect("upgraded");
            streams.iter_mut().map(greeted).filter(|answered| *answered).count()
        });
        assert_eq!(answered, streams.len());
        drop(streams);
        wait_gone(old, LIMIT);
        line.stop(&[]);
    });
}

/// A SOCKS5 greeting and its answer.
fn greeted(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 2];
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
    stream.write_all(&[5, 1, 0]).is_ok() && stream.read_exact(&mut answer).is_ok() && answer == [5, 0]
}
