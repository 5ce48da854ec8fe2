//! The only wiring: binds everything, makes the channels, starts the four paths, and ends them in order.
//!
//! In: the settings and where they came from. Out: an exit code. The control thread (this one) serves admin, metrics,
//! readiness, files and signals; data workers are threads of their own.
//!
//! ```text
//! signals -> identity's settings -> listeners -> workers, admin, metrics, readiness -> first state -> ready: accepting
//! ```
//!
//! The first state may take seconds to read: probes are answered and signals obeyed meanwhile. A start either succeeds whole
//! or fails with one error, which may be that the state is not valid: there is no degraded run.

mod asking;
mod control;
mod daemon;
mod demo;
mod doors;
mod gauges;
mod housekeeping;
mod preserve;
mod reload;
mod shutdown;
mod signals;
mod succession;
mod surfaces;
mod upgrade;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::runtime::{Builder, LocalOptions};

use crate::admin::http;
use crate::config::auto::{self, Machine};
use crate::config::settings::{AdminAddr, PreserveSource};
use crate::config::{Problems, Settings, Sources};
use crate::files::{Pace, WatchMode};
use crate::identity;
use crate::lifecycle::{Lifecycle, Origin, Program, handover, launcher, origin, supervisor};
use crate::mesh::FileSource;
use crate::net::{capability, descriptors};
use crate::telemetry::Logger;

use daemon::{Basis, Daemon, End};
use doors::Doors;
use succession::Succession;

/// How long the log may take to be written out at the end.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);
/// The same when time is up: with what cutting may take, less than the second that an end may be late.
const FLUSH_LATE_WITHIN: Duration = Duration::from_millis(400);
/// The control thread's helpers. However many clients of the surfaces leave their answers unread, each holding the thread
/// that writes it, four are left for parsing state and looking at files. Threads exist only while there is work for them.
const BLOCKING_THREADS: usize = SURFACES * http::CONNECTIONS + 4;
/// Admin, metrics, readiness.
const SURFACES: usize = 3;

/// What to run.
#[derive(Debug)]
struct Launch {
    sources: Sources,
    /// As loaded from `sources`.
    settings: Settings,
    /// Start the demo's echo service too and print what to try.
    demo: bool,
    origin: Origin,
    /// What an upgrade starts.
    program: Option<Program>,
}

/// Problems in settings or mesh files, as an error: they are printed one by one.
#[derive(Debug, thiserror::Error)]
#[error("the configuration is not valid")]
pub struct Invalid(pub Problems);

/// `adit run`: the daemon, until it is told to stop or a later version has followed it.
///
/// # Errors
/// What kept it from starting; [`Invalid`] when that was the files. The version before, if there is one, is told so.
pub fn run(sources: Sources) -> Result<()> {
    // Before anything else is opened: descriptors come by number.
    let origin = Origin::of_process()?;
    // Without one it runs all the same; an upgrade says that it cannot.
    let program = Program::of_process().ok();
    let teller = origin.predecessor.as_ref().map(|(_, link)| link.try_clone()).transpose().context("cannot start")?;
    let result = crate::config::load(&sources)
        .map_err(|problems| Invalid(problems).into())
        .and_then(|settings| run_to_end(Launch { sources, settings, demo: false, origin, program }));
    if let (Some(link), Err(error)) = (teller, &result) {
        handover::fail(&link, &reason(error));
    }
    result
}

/// `adit run` as pid 1: runs the daemon, and every later version of it, in processes of their own. Returns the exit status
/// of the last.
///
/// # Errors
/// When the first cannot be started.
pub fn supervise() -> Result<u8> {
    let Origin { sockets, .. } = Origin::of_process()?;
    let program = Program::of_process().context("the path of this program is not known")?;
    supervisor::supervise(&program, sockets.into_rest()).context("cannot run the daemon")
}

/// Starts a later version for the daemon that has started this. Returns how that has ended, if it was not let go before.
///
/// # Errors
/// When the daemon does not say what to do.
pub fn launch() -> Result<u8> {
    let link = origin::launcher_link()?;
    let program = Program::of_process().context("the path of this program is not known")?;
    launcher::run(link, &program).context("cannot start the new version")
}

/// In one text what is printed on several lines.
fn reason(error: &anyhow::Error) -> String {
    match error.downcast_ref() {
        Some(Invalid(problems)) => {
            let lines = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            lines.replace("\n  hint: ", "; hint: ")
        }
        None => format!("{error:#}"),
    }
}

/// `adit demo`: the daemon with its embedded files and an application.
///
/// # Errors
/// As [`run`].
pub fn demo(mut sources: Sources) -> Result<()> {
    // A folder of its own: the mesh file can be edited while the demo runs.
    let folder = demo::Folder::make().context("cannot make a folder for the demo's mesh file")?;
    sources.built_in = Some(crate::config::demo::settings(folder.path().to_owned()));
    let settings = crate::config::load(&sources).map_err(Invalid)?;
    run_to_end(Launch { sources, settings, demo: true, origin: Origin::default(), program: None })
}

fn run_to_end(launch: Launch) -> Result<()> {
    let settings = &launch.settings;
    let sink = Logger::stderr().context("cannot log")?;
    let logger =
        Logger::start(settings.log.format, &settings.log.filter, settings.log.access, sink).context("cannot log")?;
    logger.install().context("cannot log")?;
    // A panic ends one task, not the process; it must not end unheard.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a task panicked: this is a bug in adit")));
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("adit-blocking")
        .build_local(LocalOptions::default())
        .context("cannot start the control runtime")?;
    let result = runtime.block_on(start(launch, logger.clone()));
    // What still blocks there (a look-up, a large file) must not hold the exit up.
    runtime.shutdown_background();
    let late = matches!(result, Ok(End::Forced));
    let _complete = logger.flush(if late { FLUSH_LATE_WITHIN } else { FLUSH_WITHIN });
    result.map(drop)
}

async fn start(launch: Launch, logger: Logger) -> Result<End> {
    let started = Instant::now();
    // Before anything else: a signal during the start must not kill half a daemon.
    let signals = signals::Signals::listen().context("cannot listen for signals")?;
    let Launch { sources, settings, demo, origin, program } = launch;
    let Origin { predecessor, draining, supervisor, sockets } = origin;
    let lifecycle = Lifecycle::default();
    let mut succession = Succession::new(predecessor, draining, supervisor, &lifecycle)?;
    if let Some(supervisor) = succession.supervisor() {
        supervisor.listening();
    }
    let machine = raise_limits();
    let workers = auto::workers(settings.workers, &machine).get();
    check_mark(&settings)?;
    name_missing_capabilities(&settings);
    let plan = identity::plan::plan(&settings).map_err(Invalid)?;
    let doors = Doors::bind(&settings, workers, sockets)?;
    succession.set_ready(doors.taken, &doors.opened, &doors.left);
    let mesh = FileSource::open(settings.mesh.files.clone(), Pace::default(), WatchMode::Events);
    let daemon = Daemon::new(Basis {
        settings: &settings,
        machine,
        doors: &doors,
        mesh: &mesh,
        logger: &logger,
        started,
        workers,
        plan,
        lifecycle,
        succession,
        program,
    });
    Box::pin(daemon.serve(sources, settings, doors, mesh, demo, signals)).await
}

fn raise_limits() -> Machine {
    let (before, now) = descriptors::raise_limit();
    tracing::info!(before, now, "open files limit");
    Machine::read()
}

/// With capture on, a connection of ours that cannot be told from captured ones becomes thirty in a millisecond.
fn check_mark(settings: &Settings) -> Result<()> {
    let captures = settings.listen.outbound.is_some() || settings.listen.inbound.is_some();
    let Some(mark) = settings.packet_mark.filter(|_| captures) else { return Ok(()) };
    let socket =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).context("cannot open a socket")?;
    if let Err(error) = socket.set_mark(mark.get()) {
        bail!(
            "packetMark: the kernel refuses SO_MARK {mark}: {error}\n\
             hint: grant CAP_NET_ADMIN, or write `packetMark: off` and let capture exclude adit by uid"
        );
    }
    Ok(())
}

fn name_missing_capabilities(settings: &Settings) {
    let listen = &settings.listen;
    let captures = listen.outbound.is_some() || listen.inbound.is_some();
    let admin = match listen.admin {
        Some(AdminAddr::Tcp(address)) => Some(address),
        Some(AdminAddr::Unix(_)) | None => None,
    };
    let addresses = [listen.outbound, listen.inbound, listen.socks5, listen.metrics, listen.readiness, admin];
    let needs = capability::Needs {
        mark: captures && settings.packet_mark.is_some(),
        tproxy: (listen.outbound.is_some() && settings.capture.is_transparent_outbound())
            || (listen.inbound.is_some() && settings.capture.is_transparent_inbound()),
        preserve_source: listen.inbound.is_some() && settings.preserve_source != PreserveSource::Off,
        ports: addresses.into_iter().flatten().map(|address| address.port()).collect(),
        first_unprivileged_port: capability::first_unprivileged_port(),
    };
    for missing in capability::missing(&needs, capability::effective()) {
        tracing::warn!("{missing}");
    }
}
