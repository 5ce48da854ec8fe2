//! The rules as text and the routes that go with them. [`Options`] come in, a [`RuleSet`] goes out: a pure function, so
//! that `print` shows what `apply` does, to the letter.
//!
//! Invariants: the text replaces the table in one transaction and is the same for the same options; every packet that is
//! not TCP leaves each chain at its first or second rule; a connection is captured at its SYN or never, so that connections older
//! than the rules (an SSH session, say) stay as they are. Fails closed: where adit does not listen, a captured
//! connection is refused. The rules say themselves, in comments, what each is for.

use std::fmt;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::options::{CLIENT_MARK, Filter, Kind, MARK_MASK, Options, TPROXY_MARK};

/// Family and name of the one table.
pub const TABLE: &str = "inet adit";
/// The set whose one element makes the capture rules match while a rollback is pending.
pub(super) const ARMED: &str = "armed";
/// The routing table that delivers everything to this namespace.
pub const ROUTE_TABLE: u32 = 44311;
/// The conntrack zone of connections from borrowed addresses.
const BORROWED_ZONE: u16 = 273;
/// Below the ports that Linux gives to connections by itself (32768 to 60999), and more of them.
const BORROWED_PORTS: RangeInclusive<u16> = 1024..=32767;

/// Is `syn` for a connection's first packet.
const FIRST_PACKET: &str = "tcp flags & (fin|syn|rst|ack)";

/// What `apply` installs. `Display` writes it as a shell script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    /// Input of `nft -f -`.
    pub nft: String,
    /// Packet marks whose packets are routed to this namespace; each is one ip rule per family.
    pub local_marks: Vec<LocalMark>,
    /// Whether programs at the sockets do the rest: capture outbound connections, tell the application of its clients.
    pub at_sockets: bool,
}

impl RuleSet {
    /// Whether it only takes away what there may have been.
    pub(super) fn is_empty(&self) -> bool {
        self.nft == removal()
    }

    /// Whose ip rules go away, if an earlier `apply` left them.
    pub(super) fn unused_marks(&self) -> impl Iterator<Item = &'static LocalMark> {
        LocalMark::ALL.iter().filter(|mark| !self.local_marks.contains(mark))
    }
}

/// One ip rule, for IPv4 and for IPv6: packets with `mark` are looked up in [`ROUTE_TABLE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalMark {
    pub priority: u32,
    pub mark: u32,
}

impl LocalMark {
    pub const REPLIES: Self = Self { priority: 111, mark: CLIENT_MARK };
    pub const TPROXY: Self = Self { priority: 112, mark: TPROXY_MARK };
    /// All there can be.
    pub const ALL: &[Self] = &[Self::REPLIES, Self::TPROXY];
}

/// As `ip rule` takes it.
impl fmt::Display for LocalMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "priority {} fwmark {:#x}/{MARK_MASK:#x} lookup {ROUTE_TABLE}", self.priority, self.mark)
    }
}

/// Renders the rules.
#[must_use]
pub fn rules(options: &Options) -> RuleSet {
    let at_sockets = options.kind == Kind::Connect && (options.outbound.captures() || options.inbound.captures());
    if at_sockets && !options.inbound.captures() {
        return without_rules();
    }
    let mut nft = Text::default();
    // Declared first so that it exists, then deleted: replaces the table whether it was there or not, in one transaction.
    nft.line(0, &format!("table {TABLE}"));
    nft.line(0, &format!("delete table {TABLE}"));
    nft.line(0, &format!("table {TABLE} {{"));
    armed_set(&mut nft, options);
    if options.outbound.captures() && options.kind != Kind::Connect {
        outbound(&mut nft, options);
    }
    if options.inbound.captures() {
        inbound(&mut nft, options);
    }
    let mut local_marks = Vec::new();
    if options.preserve_source && options.inbound.captures() && options.kind != Kind::Connect {
        borrowed(&mut nft, options);
        local_marks.push(LocalMark::REPLIES);
    }
    if options.kind == Kind::Tproxy && options.outbound.captures() {
        local_marks.push(LocalMark::TPROXY);
    }
    nft.line(0, "}");
    RuleSet { nft: nft.0, local_marks, at_sockets }
}

/// What is left of the rules of [`Kind::Connect`] where the sockets capture inbound connections, too: nothing.
pub(super) fn without_rules() -> RuleSet {
    RuleSet { nft: removal(), local_marks: Vec::new(), at_sockets: true }
}

/// Input of `nft -f -` that deletes the table whether it is there or not.
pub(super) fn removal() -> String {
    format!("table {TABLE}\ndelete table {TABLE}\n")
}

/// Input of `nft -f -` that makes pending capture permanent.
pub(super) fn confirmation() -> String {
    format!("flush set {TABLE} {ARMED}\nadd element {TABLE} {ARMED} {{ tcp }}\n")
}

fn armed_set(nft: &mut Text, options: &Options) {
    let Some(after) = options.rollback_after else { return };
    nft.line(1, "# The kernel takes the element out when the time is over; then nothing new is captured.");
    nft.line(1, &format!("set {ARMED} {{"));
    nft.line(2, "type inet_proto");
    nft.line(2, "flags timeout");
    nft.line(2, &format!("elements = {{ tcp timeout {}s }}", after.as_secs().max(1)));
    nft.line(1, "}");
    nft.blank();
}

fn outbound(nft: &mut Text, options: &Options) {
    let port = options.outbound_port;
    nft.line(1, "chain outbound {");
    match options.kind {
        // Before -100, where kube-proxy and container engines translate addresses: adit wants to see the original one.
        Kind::Redirect | Kind::Connect => nft.line(2, "type nat hook output priority -110; policy accept;"),
        Kind::Tproxy => nft.line(2, "type route hook output priority mangle; policy accept;"),
    }
    nft.line(2, "meta l4proto != tcp return");
    for adit in adit_matches(options) {
        nft.rule(&format!("{adit} return"), "opened by adit");
    }
    nft.rule("oif lo return", "to an address of this namespace");
    if options.kind == Kind::Tproxy {
        nft.rule("ct direction reply return", "accepted here");
        nft.rule(
            &format!("{} {} return", marked("ct", TPROXY_MARK), set_mark("meta", TPROXY_MARK)),
            "captured at its first packet",
        );
    }
    first_packets_only(nft, options);
    exemptions(nft, &options.outbound, "daddr");
    match options.kind {
        Kind::Redirect | Kind::Connect => {
            nft.rule(&format!("meta l4proto tcp counter redirect to :{port}"), "captured");
        }
        Kind::Tproxy => {
            let (remember, route) = (set_mark("ct", TPROXY_MARK), set_mark("meta", TPROXY_MARK));
            nft.rule(&format!("counter {remember} {route}"), "captured: comes back on lo by its mark");
        }
    }
    nft.line(1, "}");
    nft.blank();
    if options.kind == Kind::Tproxy {
        let here = marked("meta", TPROXY_MARK);
        nft.line(1, "# tproxy does not exist in the output hook.");
        nft.line(1, "chain outbound_returned {");
        nft.line(2, "type filter hook prerouting priority mangle; policy accept;");
        nft.line(2, &format!("iif lo meta l4proto tcp {here} tproxy to :{port} accept"));
        nft.rule(&format!("iif lo meta l4proto tcp {here} reject with tcp reset"), "adit does not listen");
        nft.line(1, "}");
        nft.blank();
    }
}

fn inbound(nft: &mut Text, options: &Options) {
    let port = options.inbound_port;
    nft.line(1, "chain inbound {");
    match options.kind {
        Kind::Redirect => nft.line(2, "type nat hook prerouting priority -110; policy accept;"),
        Kind::Tproxy | Kind::Connect => nft.line(2, "type filter hook prerouting priority mangle; policy accept;"),
    }
    // First: most packets of captured outbound connections come this way.
    nft.rule("iif lo return", "from this namespace");
    nft.line(2, "meta l4proto != tcp return");
    nft.rule("fib daddr type != local return", "forwarded: not to an address of this namespace");
    let captured = marked("ct", TPROXY_MARK);
    if options.kind == Kind::Tproxy {
        nft.rule("ct direction reply return", "opened here");
        nft.rule(&format!("meta l4proto tcp {captured} tproxy to :{port} accept"), "captured at its first packet");
        nft.rule(&format!("meta l4proto tcp {captured} reject with tcp reset"), "adit does not listen");
    }
    match options.kind {
        Kind::Redirect | Kind::Tproxy => first_packets_only(nft, options),
        // Nothing is tracked: each packet is looked at.
        Kind::Connect => until_rolled_back(nft, options),
    }
    nft.rule(&format!("tcp dport {{ {} }} return", options.own_doors()), "adit's own doors");
    exemptions(nft, &options.inbound, "saddr");
    match options.kind {
        Kind::Redirect => nft.rule(&format!("meta l4proto tcp counter redirect to :{port}"), "captured"),
        Kind::Tproxy => {
            let remember = set_mark("ct", TPROXY_MARK);
            nft.rule(&format!("meta l4proto tcp counter {remember} tproxy to :{port} accept"), "captured");
            nft.rule(&format!("meta l4proto tcp {captured} reject with tcp reset"), "adit does not listen");
        }
        Kind::Connect => {
            // To the connection that it belongs to, if that is adit's; if it belongs to none, to adit, which alone knows its SYN cookies.
            nft.rule(&format!("{FIRST_PACKET} != syn tproxy to :{port} accept"), "captured at its first packet");
            nft.rule(&format!("{FIRST_PACKET} != syn return"), "not captured");
            nft.rule(&format!("meta l4proto tcp counter tproxy to :{port} accept"), "captured");
            nft.rule("meta l4proto tcp reject with tcp reset", "adit does not listen");
        }
    }
    nft.line(1, "}");
    nft.blank();
}

/// Connections that adit opens to the application from a client's address. Without these rules their packets leave, but the
/// replies go to the real client.
fn borrowed(nft: &mut Text, options: &Options) {
    let borrowed: Vec<String> =
        adit_matches(options).iter().map(|adit| format!("oif lo {adit} fib saddr type != local")).collect();
    nft.line(1, "# The client may have a connection with the same two ends, in conntrack's eyes: keep them apart.");
    nft.line(1, "chain borrowed_zone {");
    nft.line(2, "type filter hook output priority raw; policy accept;");
    for borrowed in &borrowed {
        nft.line(2, &format!("meta l4proto tcp {borrowed} ct original zone set {BORROWED_ZONE}"));
    }
    nft.line(1, "}");
    nft.blank();
    // Captured by tproxy, the client's connection has its real ends in the socket tables as well, where no zone helps.
    if options.kind != Kind::Redirect {
        let (from, to) = (BORROWED_PORTS.start(), BORROWED_PORTS.end());
        nft.line(1, "# The application sees a port that no client chooses by itself, so that the ends never meet in a socket table.");
        nft.line(1, "chain borrowed_port {");
        nft.line(2, "type nat hook postrouting priority srcnat; policy accept;");
        let borrowed = marked("ct", CLIENT_MARK);
        nft.line(2, &format!("oif lo {FIRST_PACKET} == syn {borrowed} snat to :{from}-{to}"));
        nft.line(1, "}");
        nft.blank();
    }
    nft.line(1, "chain borrowed {");
    nft.line(2, "type route hook output priority mangle; policy accept;");
    nft.line(2, "meta l4proto != tcp return");
    for borrowed in &borrowed {
        nft.rule(
            // What adit answers under tproxy, it answers from the destination's address: not borrowed.
            &format!("ct direction original {borrowed} {} return", set_mark("ct", CLIENT_MARK)),
            "opened by adit from a client's address",
        );
    }
    let reply = format!("ct direction reply {} {}", marked("ct", CLIENT_MARK), set_mark("meta", CLIENT_MARK));
    nft.rule(&reply, "replies come back on lo by their mark");
    nft.line(1, "}");
}

fn first_packets_only(nft: &mut Text, options: &Options) {
    nft.rule(&format!("{FIRST_PACKET} != syn return"), "only first packets decide");
    until_rolled_back(nft, options);
}

fn until_rolled_back(nft: &mut Text, options: &Options) {
    if options.rollback_after.is_some() {
        nft.rule(&format!("meta l4proto != @{ARMED} return"), "rolled back: not confirmed in time");
    }
}

/// Everything that is excluded by the operator, and link-local addresses, which mean nothing without their interface.
fn exemptions(nft: &mut Text, filter: &Filter, end: &str) {
    nft.rule(&format!("ip6 {end} fe80::/10 return"), "link-local");
    let nets = IpNet::aggregate(&filter.exclude_cidrs);
    for (family, is_v4) in [("ip", true), ("ip6", false)] {
        let nets: Vec<String> =
            nets.iter().filter(|net| net.addr().is_ipv4() == is_v4).map(ToString::to_string).collect();
        if !nets.is_empty() {
            nft.rule(&format!("{family} {end} {{ {} }} return", nets.join(", ")), "excluded");
        }
    }
    if !filter.exclude_ports.is_empty() {
        nft.rule(&format!("tcp dport {{ {} }} return", filter.exclude_ports), "excluded");
    }
    if let Some(ports) = &filter.include_ports {
        nft.rule(&format!("tcp dport != {{ {ports} }} return"), "not included");
    }
}

fn adit_matches(options: &Options) -> Vec<String> {
    let mark = options.mark.map(|mark| match mark.mask() {
        u32::MAX => format!("meta mark {:#x}", mark.value()),
        mask => format!("meta mark & {mask:#x} == {:#x}", mark.value()),
    });
    mark.into_iter().chain(options.uids.iter().map(|uid| format!("meta skuid {uid}"))).collect()
}

fn marked(what: &str, mark: u32) -> String {
    format!("{what} mark & {MARK_MASK:#x} == {mark:#x}")
}

fn set_mark(what: &str, mark: u32) -> String {
    format!("{what} mark set {what} mark & {:#x} | {mark:#x}", !MARK_MASK)
}

/// Indented lines.
#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, depth: usize, line: &str) {
        for _ in 0..depth {
            self.0.push('\t');
        }
        self.0.push_str(line);
        self.0.push('\n');
    }

    /// A rule of a chain, with a comment that the kernel keeps: `nft list` shows it.
    fn rule(&mut self, rule: &str, comment: &str) {
        self.line(2, &format!("{rule} comment \"{comment}\""));
    }

    fn blank(&mut self) {
        self.0.push('\n');
    }
}

/// A shell script that does what `apply` does, in the same order, but for programs at sockets; `sh` can run it.
impl fmt::Display for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at_sockets {
            writeln!(f, "# At the sockets: BPF programs, which a shell cannot attach; `adit redirect apply` does.")?;
        }
        for family in ["-4", "-6"] {
            if !self.local_marks.is_empty() {
                writeln!(f, "ip {family} route replace local default dev lo table {ROUTE_TABLE}")?;
            }
            for mark in &self.local_marks {
                writeln!(f, "ip {family} rule del {mark} 2>/dev/null; ip {family} rule add {mark}")?;
            }
        }
        write!(f, "nft -f - <<'END'\n{}END\n", self.nft)?;
        for family in ["-4", "-6"] {
            for unused in self.unused_marks() {
                writeln!(f, "ip {family} rule del {unused} 2>/dev/null")?;
            }
            if self.local_marks.is_empty() {
                writeln!(f, "ip {family} route del local default dev lo table {ROUTE_TABLE} 2>/dev/null")?;
            }
        }
        writeln!(f, "true")
    }
}
