//! A lab whose host `adit` is captured, with the daemon in it, and what a test wants to know of the daemon afterwards.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use adit::net::redirect::{self, Kind, Options, Safeguards};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::bytes::{End, end};
use crate::kit::daemon::get;
use crate::kit::door::{Accepted, Dial};
use crate::kit::isolate::own_cgroup;
use crate::kit::{Adit, Door, Family, Host, LIMIT, Lab, until};

pub(crate) const KINDS: [Kind; 2] = [Kind::Redirect, Kind::Tproxy];

/// A mesh of the workload beside adit and two workloads in host `server`, at its own address and at [`second`].
/// Service `echo` has both as endpoints, each with a port of its own for its port 80.
pub(crate) const MESH: &str = "
workloads:
- { uid: app, name: app, namespace: test, workloadIps: [10.77.0.2, 'fd77::2'] }
- uid: server-1
  name: server-1
  namespace: test
  workloadIps: [10.77.0.3, 'fd77::3']
  services: { test/echo.test.svc: { 80: 8081 } }
- uid: server-2
  name: server-2
  namespace: test
  workloadIps: [10.77.0.33, 'fd77::33']
  services: { test/echo.test.svc: { 80: 8082 } }
services:
- { name: echo, namespace: test, hostname: echo.test.svc, vips: [10.96.0.1, 'fd96::1'], ports: { 80: 8080 } }
";

pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) adit: Adit,
}

/// A lab in which host `server` has its second address and host `adit` is captured.
pub(crate) fn captured_lab(kind: Kind) -> Lab {
    let lab = Lab::new();
    lab.server.ip("address add 10.77.0.33/24 dev eth0\naddress add fd77::33/64 dev eth0 nodad\n");
    capture(&lab, kind);
    lab
}

/// Applies the rules to host `adit`.
pub(crate) fn capture(lab: &Lab, kind: Kind) {
    let cgroup = own_cgroup().filter(|_| kind == Kind::Connect);
    let options = Options { kind, cgroup, ..Options::default() };
    let unasked = Safeguards { host: false, readiness: None };
    lab.adit.run(|| redirect::apply(&options, &unasked)).expect("the rules are applied");
}

/// Access records of refusals are warnings, and their number depends on the time they take: for tests that make many.
pub(crate) const NO_RECORDS: &str = "log: { access: false }\n";

/// The settings of every scene, and `more` of them.
pub(crate) fn settings(kind: Kind, more: &str) -> String {
    let log = if more.contains("log:") { "" } else { "log: { format: json }\n" };
    format!("capture: {kind}\nworkload: {{ name: app, namespace: test }}\n{log}{more}\n")
}

impl Scene {
    /// Captured by `kind`, with the daemon ready, with `more` settings and this mesh.
    pub(crate) fn new(kind: Kind, more: &str, mesh: &str) -> Self {
        let lab = captured_lab(kind);
        let adit = lab.adit(&settings(kind, more), mesh);
        Self { lab, adit }
    }

    /// An application in host `adit` connects.
    pub(crate) fn dial(&self, to: SocketAddr) -> TcpStream {
        let stream = Dial::default().connect(&self.lab.adit, to);
        limited(stream.unwrap_or_else(|error| panic!("to {to}: {error}\n{}", self.adit.log().join("\n"))))
    }

    /// An application in host `adit` connects to what `door` accepts.
    pub(crate) fn pair(&self, to: SocketAddr, door: &Door) -> (TcpStream, Accepted) {
        let application = self.dial(to);
        (application, accept(door))
    }

    /// A connection through adit to port 8080 of host `server`: the application's end and the server's.
    pub(crate) fn through(&self, family: Family) -> (TcpStream, TcpStream) {
        let door = Door::open(&self.lab.server, 8080);
        let (application, accepted) = self.pair(at(&self.lab.server, family, 8080), &door);
        (application, accepted.stream)
    }

    /// A connection through adit from host `client` to the application at port 8080: the client's end and the
    /// application's.
    pub(crate) fn inward(&self, family: Family) -> (TcpStream, TcpStream) {
        let door = Door::open(&self.lab.adit, 8080);
        let client = dial(&self.lab.client, at(&self.lab.adit, family, 8080));
        (client, accept(&door).stream)
    }

    /// The access record of the connection that `client` was the downstream end of.
    pub(crate) fn record(&self, client: SocketAddr) -> Value {
        until(LIMIT, &format!("the access record of {client}"), || {
            self.records().into_iter().find(|record| record["src.addr"] == client.to_string())
        })
    }

    /// All access records so far.
    pub(crate) fn records(&self) -> Vec<Value> {
        let lines = self.adit.log();
        let values = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        values.filter(|value| value["scope"] == "access").collect()
    }

    /// The sum of all samples of `name` whose labels contain each of `labels`; 0 where there is none.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = get(&self.lab.adit, 15020, "/metrics").expect("metrics");
        let samples = text.lines().filter_map(|line| line.strip_prefix(name));
        samples
            .filter(|rest| rest.starts_with(['{', ' ']))
            .filter(|rest| labels.iter().all(|label| rest.contains(label)))
            .map(|rest| {
                let value = rest.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
                value.unwrap_or_else(|| panic!("no sample: {name}{rest:?}"))
            })
            .sum()
    }

    /// Waits until [`Self::metric`] is `want`.
    pub(crate) fn wait_metric(&self, name: &str, labels: &[&str], want: f64) {
        let mut last = 0.0;
        let limit = std::time::Instant::now() + LIMIT;
        while std::time::Instant::now() < limit {
            last = self.metric(name, labels);
            if (last - want).abs() < 0.5 {
                return;
            }
            crate::kit::wait::pause(Duration::from_millis(20));
        }
        panic!("{name} {labels:?}: {last} instead of {want}");
    }

    /// What `adit connections` tells of live connections.
    pub(crate) fn connections(&self) -> Vec<Value> {
        let text = self.lab.adit.output(env!("CARGO_BIN_EXE_adit"), &["connections", "--json"]);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        value["connections"].as_array().unwrap_or_else(|| panic!("no list: {text}")).clone()
    }
}

pub(crate) fn dial(host: &Host, to: SocketAddr) -> TcpStream {
    let stream = Dial::default().connect(host, to).unwrap_or_else(|error| panic!("{} to {to}: {error}", host.name));
    limited(stream)
}

/// An application's connection that brings no byte and ends: its address and how it ended. A reset may come so soon that
/// connecting already fails with it.
pub(crate) fn fate(host: &Host, to: SocketAddr) -> (SocketAddr, End) {
    let socket = host.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        // Whatever it says, the socket says it again.
        let _ = socket.connect(&to.into());
        socket
    });
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    let client = SocketAddr::new(address.ip().to_canonical(), address.port());
    let limit = Timespec::try_from(LIMIT).expect("a limit in range");
    let ready = poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&limit)).expect("poll");
    assert_eq!(ready, 1, "{to}: neither connected nor refused");
    match socket.take_error().expect("SO_ERROR") {
        Some(error) if error.kind() == ErrorKind::ConnectionReset => return (client, End::Reset),
        Some(error) => panic!("{to}: {error}"),
        None => {}
    }
    socket.set_nonblocking(false).expect("O_NONBLOCK");
    (client, end(&mut limited(socket.into())))
}

pub(crate) fn accept(door: &Door) -> Accepted {
    let accepted = door.accept();
    Accepted { stream: limited(accepted.stream), ..accepted }
}

/// Nothing in a test may block for ever.
fn limited(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
    stream.set_write_timeout(Some(LIMIT)).expect("SO_SNDTIMEO");
    stream
}

pub(crate) fn at(host: &Host, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(host.address(family), port)
}

/// The second address of host `server`.
pub(crate) fn second(family: Family) -> IpAddr {
    by_family(family, "10.77.0.33", "fd77::33")
}

/// The virtual address of service `echo`.
pub(crate) fn vip(family: Family) -> SocketAddr {
    SocketAddr::new(by_family(family, "10.96.0.1", "fd96::1"), 80)
}

/// The one or the other.
pub(crate) fn by_family(family: Family, v4: &str, v6: &str) -> IpAddr {
    match family {
        Family::V4 => v4.parse().expect("an IPv4 address"),
        Family::V6 => v6.parse().expect("an IPv6 address"),
    }
}

/// One HTTP request from `host` to any address; `None` unless there is an answer of status 200.
pub(crate) fn probe(host: &Host, to: SocketAddr, path: &str) -> Option<String> {
    let mut stream = Dial::default().connect(host, to).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(answer)
}

/// Counts the first packets of connections that reach `host`, whatever becomes of them.
pub(crate) struct Syns<'a>(&'a Host);

impl<'a> Syns<'a> {
    pub(crate) fn watch(host: &'a Host) -> Self {
        host.nft(
            "table inet syns {\n counter seen { }\n chain in {\n type filter hook prerouting priority -600\n \
             tcp flags & (syn|ack) == syn counter name seen\n }\n }\n",
        );
        Self(host)
    }

    pub(crate) fn seen(&self) -> u64 {
        let text = self.0.output("nft", &["list", "counter", "inet", "syns", "seen"]);
        let after = text.split("packets ").nth(1).expect("a counter");
        after.split_whitespace().next().and_then(|count| count.parse().ok()).expect("a number")
    }
}
