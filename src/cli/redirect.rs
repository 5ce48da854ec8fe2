//! `adit redirect`: flags to [`Options`], then print, apply, confirm or remove, in the network namespace of the process.
//! Works without a running daemon, but `apply` asks one whether it is ready.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use super::{Exit, Output};
use crate::net::redirect::{
    self, Confirmation, Filter, InvalidMark, Kind, Mark, Options, Ports, RedirectError, Safeguards,
};

const EXAMPLES: &str = "\
Examples:
  adit redirect print                                    what apply would do, as a shell script
  nsenter --net=/run/netns/app adit redirect apply       capture the namespace of an application
  adit run & adit redirect apply --wait 10s              both at once, as in a container
  adit redirect apply --kind tproxy --exclude-outbound-ports 25 --exclude-cidrs 10.0.0.0/8
  adit redirect apply --host --include-inbound-ports 8080 --rollback-after 60s
  adit redirect confirm                                  within these 60 s, from a new connection
  adit redirect remove";

/// The longest time that a rollback may wait: who confirms later than that does not watch.
const MAX_ROLLBACK: Duration = Duration::from_secs(24 * 60 * 60);

const MAX_WAIT: Duration = Duration::from_secs(10 * 60);

/// Lead the TCP connections of this network namespace to adit, and undo it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RedirectArgs {
    #[command(subcommand)]
    command: Box<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the rules as a shell script that does what `apply` does
    #[command(after_help = EXAMPLES)]
    Print(RuleArgs),
    /// Install the rules, in place of any that were there
    #[command(after_help = EXAMPLES)]
    Apply(ApplyArgs),
    /// Keep rules that were applied with `--rollback-after`
    #[command(after_help = "Example:\n  adit redirect apply --rollback-after 60s && adit redirect confirm")]
    Confirm,
    /// Take away everything that `apply` installed
    #[command(after_help = "Example:\n  adit redirect remove")]
    Remove,
}

#[derive(Debug, Args)]
struct RuleArgs {
    /// Whose connections: `sidecar` is all of this network namespace
    #[arg(long, value_enum, default_value_t = Mode::Sidecar)]
    mode: Mode,
    /// How: the same as `capture` in adit's settings
    #[arg(long, value_enum, default_value_t = KindArg::Redirect)]
    kind: KindArg,
    /// Of `--kind connect`: capture what the processes of this cgroup open [default: of all that are visible]
    #[arg(long, value_name = "FOLDER")]
    cgroup: Option<PathBuf>,
    #[arg(long, value_name = "PORT", default_value = "15001", help = "Where adit takes outbound connections")]
    outbound_port: NonZeroU16,
    #[arg(long, value_name = "PORT", default_value = "15006", help = "Where adit takes inbound connections")]
    inbound_port: NonZeroU16,
    #[arg(long, value_name = "PORT", default_value = "15008", help = "adit's HBONE door, not captured")]
    hbone_port: NonZeroU16,
    /// adit's other doors, not captured inbound
    #[arg(long, value_name = "PORTS", default_value = "15000,15020,15021,15053,15080")]
    own_ports: Ports,
    /// What adit's own sockets are marked with (`packetMark`), or `off` [default: 1337, or off with --exclude-uid]
    #[arg(long, value_name = "MARK|off", value_parser = mark)]
    mark: Option<MarkArg>,
    /// Do not capture what this user opens: adit's own, where it may not mark its sockets. Repeatable
    #[arg(long, value_name = "UID")]
    exclude_uid: Vec<u32>,
    /// Let the application see the client's address (`preserveSource`)
    #[arg(long, value_enum, default_value_t = Switch::On)]
    preserve_source: Switch,
    #[command(flatten)]
    filters: FilterArgs,
    /// Capture nothing more after this time (60s, 5m) unless `adit redirect confirm` comes first
    #[arg(long, value_name = "DURATION", value_parser = rollback)]
    rollback_after: Option<Duration>,
}

/// Lists are separated by commas; ports may be ranges (8000-8100) or `none`.
#[derive(Debug, Args)]
#[command(next_help_heading = "What to capture (exclusion wins; without a direction in the name: both)")]
struct FilterArgs {
    #[arg(long, value_name = "PORTS", help = "Capture only these destination ports")]
    include_ports: Option<Ports>,
    #[arg(long, value_name = "PORTS", help = "... outbound")]
    include_outbound_ports: Option<Ports>,
    #[arg(long, value_name = "PORTS", help = "... inbound; `none`: capture nothing inbound")]
    include_inbound_ports: Option<Ports>,
    #[arg(long, value_name = "PORTS", help = "Do not capture these destination ports")]
    exclude_ports: Option<Ports>,
    #[arg(long, value_name = "PORTS", help = "... outbound")]
    exclude_outbound_ports: Option<Ports>,
    #[arg(long, value_name = "PORTS", help = "... inbound")]
    exclude_inbound_ports: Option<Ports>,
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = cidr)]
    #[arg(help = "Do not capture what goes to, or comes from, these addresses")]
    exclude_cidrs: Vec<IpNet>,
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = cidr, help = "... what goes to them")]
    exclude_outbound_cidrs: Vec<IpNet>,
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = cidr, help = "... what comes from them")]
    exclude_inbound_cidrs: Vec<IpNet>,
}

#[derive(Debug, Args)]
struct ApplyArgs {
    #[command(flatten)]
    rules: RuleArgs,
    /// Apply even in the network namespace of the whole machine; wants --include-inbound-ports
    #[arg(long)]
    host: bool,
    /// Where adit says whether it is ready
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15021")]
    readiness: SocketAddr,
    /// How long to wait for it to become ready
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = wait)]
    wait: Duration,
    /// Do not ask whether adit is ready. Until it is, captured connections are refused.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    Sidecar,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    Redirect,
    Tproxy,
    Connect,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy)]
enum MarkArg {
    Off,
    On(Mark),
}

impl RedirectArgs {
    pub(super) fn run(self, output: &mut Output<'_>) -> Exit {
        let done = match *self.command {
            Command::Print(rules) => Ok(redirect::rules(&rules.into()).to_string().trim_end().to_owned()),
            Command::Apply(apply) => applied(apply),
            Command::Confirm => redirect::confirm().map(|confirmation| match confirmation {
                Confirmation::Confirmed => "confirmed: the rules stay".to_owned(),
                Confirmation::NothingPending => "the rules stay: no rollback was pending".to_owned(),
            }),
            Command::Remove => redirect::remove()
                .map(|()| "nothing new is captured here; captured connections live until they end".to_owned()),
        };
        match done {
            Ok(text) => output.data(text),
            Err(error) => refuse(&error, output),
        }
    }
}

/// One line with the causes, and the hint.
fn refuse(error: &RedirectError, output: &mut Output<'_>) -> Exit {
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(deeper) = cause {
        line.push_str(&format!(": {deeper}"));
        cause = deeper.source();
    }
    output.error(line, error.hint());
    match error {
        RedirectError::InboundPortsNotListed | RedirectError::NothingExempt | RedirectError::CgroupWithoutConnect => {
            Exit::Usage
        }
        _ => Exit::Failed,
    }
}

fn applied(args: ApplyArgs) -> Result<String, RedirectError> {
    let options = Options::from(args.rules);
    let readiness = (!args.force).then_some(args.readiness);
    if let Some(address) = readiness {
        redirect::wait_until_ready(address, args.wait);
    }
    let by_rule = redirect::apply(&options, &Safeguards { host: args.host, readiness })?;
    let undo = match options.rollback_after {
        Some(after) => {
            let after = humantime::format_duration(after);
            format!("for {after} only, unless you run `adit redirect confirm` before that")
        }
        None => "undo it with `adit redirect remove`".to_owned(),
    };
    let by_rule = by_rule.map(|why| format!("\ninbound ones by a rule, which costs each packet a little: {why}"));
    let kind = options.kind;
    Ok(format!(
        "new TCP connections of this network namespace are captured ({kind}){}\n{undo}",
        by_rule.unwrap_or_default()
    ))
}

impl From<RuleArgs> for Options {
    fn from(args: RuleArgs) -> Self {
        let RuleArgs { mode: Mode::Sidecar, filters, .. } = args;
        let mark = match args.mark {
            Some(MarkArg::On(mark)) => Some(mark),
            None if args.exclude_uid.is_empty() => Some(Mark::DEFAULT),
            Some(MarkArg::Off) | None => None,
        };
        let all = |both: &Option<Ports>, one: Option<Ports>| match (both, one) {
            (Some(both), Some(one)) => Some(both.union(&one)),
            (Some(ports), None) => Some(ports.clone()),
            (None, ports) => ports,
        };
        let filter = |include, exclude, cidrs: Vec<IpNet>| Filter {
            include_ports: all(&filters.include_ports, include),
            exclude_ports: all(&filters.exclude_ports, exclude).unwrap_or_default(),
            exclude_cidrs: filters.exclude_cidrs.iter().copied().chain(cidrs).collect(),
        };
        Self {
            kind: match args.kind {
                KindArg::Redirect => Kind::Redirect,
                KindArg::Tproxy => Kind::Tproxy,
                KindArg::Connect => Kind::Connect,
            },
            outbound_port: args.outbound_port,
            inbound_port: args.inbound_port,
            hbone_port: args.hbone_port,
            own_ports: args.own_ports,
            mark,
            uids: args.exclude_uid,
            outbound: filter(
                filters.include_outbound_ports,
                filters.exclude_outbound_ports,
                filters.exclude_outbound_cidrs,
            ),
            inbound: filter(
                filters.include_inbound_ports,
                filters.exclude_inbound_ports,
                filters.exclude_inbound_cidrs,
            ),
            preserve_source: matches!(args.preserve_source, Switch::On),
            rollback_after: args.rollback_after,
            cgroup: args.cgroup,
        }
    }
}

fn mark(text: &str) -> Result<MarkArg, InvalidMark> {
    if text == "off" { Ok(MarkArg::Off) } else { text.parse().map(MarkArg::On) }
}

/// A network, or a single address.
fn cidr(text: &str) -> Result<IpNet, String> {
    let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map_err(|_ignored| format!("`{text}` is neither an address nor a network such as 10.0.0.0/8 or fd00::/8"))
}

fn rollback(text: &str) -> Result<Duration, String> {
    let after = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(1)..=MAX_ROLLBACK).contains(&after) {
        Ok(after)
    } else {
        Err("must be from 1s to 24h".to_owned())
    }
}

fn wait(text: &str) -> Result<Duration, String> {
    let wait = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if wait <= MAX_WAIT { Ok(wait) } else { Err("must be at most 10m".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        redirect: RedirectArgs,
    }

    fn parse(line: &str) -> Result<RedirectArgs, clap::Error> {
        Line::try_parse_from(["redirect"].into_iter().chain(line.split_whitespace())).map(|line| line.redirect)
    }

    fn options(flags: &str) -> Options {
        match *parse(&format!("print {flags}")).expect(flags).command {
            Command::Print(rules) => rules.into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_flags_it_is_the_default() {
        assert_eq!(options(""), Options::default());
    }

    #[test]
    fn flags_without_a_direction_mean_both() {
        let got = options(
            "--exclude-ports 25 --exclude-outbound-ports 26-30 --include-ports 1-100 --include-inbound-ports 443 \
             --exclude-cidrs 10.0.0.0/8,fd00::/8 --exclude-inbound-cidrs 192.0.2.7",
        );
        let ports = |text: &str| text.parse::<Ports>().expect("ports");
        assert_eq!((got.outbound.exclude_ports, got.inbound.exclude_ports), (ports("25-30"), ports("25")));
        assert_eq!(got.outbound.include_ports, Some(ports("1-100")));
        assert_eq!(got.inbound.include_ports, Some(ports("1-100,443")));
        assert_eq!((got.outbound.exclude_cidrs.len(), got.inbound.exclude_cidrs.len()), (2, 3));
        assert_eq!(got.inbound.exclude_cidrs[2].to_string(), "192.0.2.7/32");
    }

    #[test]
    fn a_user_replaces_the_mark_unless_both_are_asked_for() {
        let value = |flags: &str| options(flags).mark.map(Mark::value);
        assert_eq!(value(""), Some(1337));
        assert_eq!(value("--exclude-uid 1000"), None);
        assert_eq!(value("--exclude-uid 1000 --mark 0x53a"), Some(0x53a));
        assert_eq!(value("--mark off"), None);
        assert_eq!(options("--exclude-uid 1 --exclude-uid 2").uids, [1, 2]);
    }

    #[test]
    fn nonsense_is_refused() {
        for flags in [
            "--mark 0x111",
            "--mark on",
            "--outbound-port 0",
            "--exclude-ports 70000",
            "--exclude-cidrs 10.0.0.0/33",
            "--kind both",
            "--mode node",
            "--rollback-after 0s",
            "--rollback-after 2days",
            "--rollback-after 60",
            "--host",
            "--wait 5s",
        ] {
            assert!(parse(&format!("print {flags}")).is_err(), "{flags}");
        }
        assert!(parse("apply --wait 5s").is_ok());
        for flags in ["--wait 5", "--wait 11m", "--wait -1s"] {
            assert!(parse(&format!("apply {flags}")).is_err(), "{flags}");
        }
        assert!(parse("").is_err());
    }

    /// Exit, data, messages.
    fn run(line: &str) -> (Exit, String, String) {
        let (mut data, mut messages) = (Vec::new(), Vec::new());
        let exit = parse(line).expect(line).run(&mut Output { data: &mut data, messages: &mut messages });
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (exit, text(data), text(messages))
    }

    #[test]
    fn print_writes_the_script() {
        let want = Options { kind: Kind::Tproxy, rollback_after: Some(Duration::from_secs(90)), ..Options::default() };
        let got = run("print --kind tproxy --rollback-after 90s");
        assert_eq!(got, (Exit::Ok, redirect::rules(&want).to_string(), String::new()));
    }

    #[test]
    fn asking_wrongly_is_told_with_a_hint() {
        // Before anything else is looked at: nothing is touched.
        let (exit, data, messages) = run("apply --mark off");
        assert_eq!((exit, data.as_str()), (Exit::Usage, ""));
        assert!(messages.starts_with("error: ") && messages.contains("\n  hint: give --mark"), "{messages}");
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let (mut data, mut messages) = (Vec::new(), Vec::new());
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let address = SocketAddr::from(([127, 0, 0, 1], 15021));
        let error = RedirectError::NotReady(redirect::NotReady::Unreachable { address, source: refused });
        let exit = refuse(&error, &mut Output { data: &mut data, messages: &mut messages });
        let told = String::from_utf8(messages).expect("text");
        assert_eq!(exit, Exit::Failed);
        assert!(told.contains("127.0.0.1:15021: connection refused\n  hint: start adit first"), "{told}");
    }
}
