//! Two hosts with a tunnel between them, each end of it adit or Envoy.
//!
//! Applications in the near host connect, applications in the far host accept. A near Envoy has an entrance for each family and
//! port; a near adit captures. Workloads `near` and `far` have the identities `…/ns/test/sa/near` and `…/ns/test/sa/far`.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use adit::net::redirect::{self, Kind, Options, Safeguards};

use crate::bytes::{End, end};
use crate::envoy::Envoy;
use crate::envoy_config::{Entrance, HBONE, Tweaks};
use crate::kit::daemon::get;
use crate::kit::door::Dial;
use crate::kit::wait::pause;
use crate::kit::{Adit, Door, Family, Host, LIMIT, Lab, until};
use crate::pki::{Leaf, Pki, Root};

/// The two workloads, which are their service accounts too.
pub(crate) const NEAR: &str = "near";
pub(crate) const FAR: &str = "far";
/// Applications listen here.
pub(crate) const APP: u16 = 8080;
/// Nobody listens here.
pub(crate) const CLOSED: u16 = 8099;
/// What a near Envoy's entrance for a port adds to it.
const ENTRANCE_V4: u16 = 10_000;
const ENTRANCE_V6: u16 = 20_000;

/// An end of the tunnel.
pub(crate) enum Side {
    Adit(Adit),
    Envoy(Envoy),
}

impl Side {
    pub(crate) fn adit(&self) -> &Adit {
        let Self::Adit(adit) = self else { panic!("this end is Envoy") };
        adit
    }

    pub(crate) fn envoy(&self) -> &Envoy {
        let Self::Envoy(envoy) = self else { panic!("this end is adit") };
        envoy
    }
}

/// How what ends at one side looks at the other: what the two ends make of it together. Where Envoy makes
/// a FIN of a reset, or takes a server's end for the end of everything, is told in `envoy.rs`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Whether a client can go on after the server has ended its half.
    pub(crate) server_first: bool,
    /// What the client sees of a server's reset.
    pub(crate) server_reset: End,
    /// What the server sees of a client's reset.
    pub(crate) client_reset: End,
    /// What the client sees where nobody listens.
    pub(crate) refused: End,
}

pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) pki: Pki,
    pub(crate) root: Root,
    pub(crate) near: Side,
    pub(crate) far: Side,
    pub(crate) manner: Manner,
    names: [&'static str; 2],
}

/// What both ends have before either starts.
pub(crate) struct Ground {
    pub(crate) lab: Lab,
    pub(crate) pki: Pki,
    pub(crate) root: Root,
    pub(crate) near: Leaf,
    pub(crate) far: Leaf,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let (lab, pki) = (Lab::new(), Pki::new());
        let root = pki.root("root-a");
        let (near, far) = (pki.leaf(&root, NEAR), pki.leaf(&root, FAR));
        Self { lab, pki, root, near, far }
    }

    /// Envoy in host `client`, whose tunnels go to `far`.
    pub(crate) fn near_envoy(&self, far: &Host, tweaks: &Tweaks) -> Envoy {
        Envoy::hbone_client(&self.lab.client, &self.near, &self.far.id, &entrances(far), tweaks)
    }

    pub(crate) fn world(self, names: [&'static str; 2], near: Side, far: Side, manner: Manner) -> World {
        World { lab: self.lab, pki: self.pki, root: self.root, near, far, manner, names }
    }
}

/// Every port that tests use, by each family.
pub(crate) fn entrances(far: &Host) -> Vec<Entrance> {
    let mut all = Vec::new();
    for family in Family::BOTH {
        for port in [APP, CLOSED] {
            let ip = far.address(family);
            let authority = SocketAddr::new(ip, port).to_string();
            all.push(Entrance { port: entrance(family, port), peer: SocketAddr::new(ip, HBONE), authority });
        }
    }
    all
}

fn entrance(family: Family, port: u16) -> u16 {
    match family {
        Family::V4 => ENTRANCE_V4 + port,
        Family::V6 => ENTRANCE_V6 + port,
    }
}

/// An adit's settings: its identity from files, its access log as JSON, and `more`.
pub(crate) fn settings(kind: Kind, name: &str, leaf: &Leaf, more: &str) -> String {
    let (cert, key, roots) = (leaf.cert.display(), leaf.key.display(), leaf.roots.display());
    let log = if more.contains("log:") { "" } else { "log: { format: json }\n" };
    format!(
        "capture: {kind}\nworkload: {{ name: {name}, namespace: test, serviceAccount: {name} }}\n\
         identity: {{ source: files, files: {{ cert: '{cert}', key: '{key}', roots: ['{roots}'] }} }}\n{log}{more}\n"
    )
}

/// A mesh of the two, both of which take tunnels.
pub(crate) fn mesh(near: &Host, far: &Host) -> String {
    let workload = |name: &str, host: &Host| {
        format!(
            "- {{ uid: {name}, name: {name}, namespace: test, serviceAccount: {name}, protocol: HBONE, \
             workloadIps: [{}, '{}'] }}\n",
            host.v4, host.v6
        )
    };
    format!("workloads:\n{}{}", workload(NEAR, near), workload(FAR, far))
}

/// Access records of refusals are warnings: for tests whose refusals are meant.
pub(crate) const NO_RECORDS: &str = "log: { access: false }";
pub(crate) const KINDS: [Kind; 2] = [Kind::Redirect, Kind::Tproxy];

/// Captures everything in `host`.
pub(crate) fn capture(host: &Host, kind: Kind) {
    let options = Options { kind, ..Options::default() };
    let unasked = Safeguards { host: false, readiness: None };
    host.run(|| redirect::apply(&options, &unasked)).expect("the rules are applied");
}

/// A captured adit in `host`, ready.
pub(crate) fn adit(host: &Host, kind: Kind, settings: &str, mesh: &str) -> Adit {
    capture(host, kind);
    let mut adit = Adit::start(host, settings, mesh);
    adit.wait_ready(host);
    adit
}

impl World {
    pub(crate) const ENVOYS: Manner =
        Manner { server_first: false, server_reset: End::Fin, client_reset: End::Fin, refused: End::Fin };

    pub(crate) const ADITS: Manner =
        Manner { server_first: true, server_reset: End::Reset, client_reset: End::Reset, refused: End::Reset };

    pub(crate) fn envoy_to_envoy(tweaks: &Tweaks) -> Self {
        let ground = Ground::new();
        let far = Envoy::hbone_server(&ground.lab.server, &ground.far, tweaks);
        let near = ground.near_envoy(&ground.lab.server, tweaks);
        ground.world(["client", "server"], Side::Envoy(near), Side::Envoy(far), Self::ENVOYS)
    }

    /// Envoy in host `client`, adit in host `adit`.
    pub(crate) fn envoy_to_adit(kind: Kind, more: &str, tweaks: &Tweaks) -> Self {
        let ground = Ground::new();
        let lab = &ground.lab;
        let mesh = mesh(&lab.client, &lab.adit);
        let far = adit(&lab.adit, kind, &settings(kind, FAR, &ground.far, more), &mesh);
        let near = ground.near_envoy(&lab.adit, tweaks);
        let manner =
            Manner { server_first: false, server_reset: End::Fin, client_reset: End::Reset, refused: End::Fin };
        ground.world(["client", "adit"], Side::Envoy(near), Side::Adit(far), manner)
    }

    /// adit in host `adit`, Envoy in host `server`.
    pub(crate) fn adit_to_envoy(kind: Kind, more: &str, tweaks: &Tweaks) -> Self {
        Self::adit_to_envoy_as(|ground| ground.far.clone(), kind, more, tweaks)
    }

    /// [`Self::adit_to_envoy`], Envoy having another certificate than it should.
    pub(crate) fn adit_to_envoy_as(leaf: fn(&Ground) -> Leaf, kind: Kind, more: &str, tweaks: &Tweaks) -> Self {
        let ground = Ground::new();
        let lab = &ground.lab;
        let far = Envoy::hbone_server(&lab.server, &leaf(&ground), tweaks);
        let mesh = mesh(&lab.adit, &lab.server);
        let near = adit(&lab.adit, kind, &settings(kind, NEAR, &ground.near, more), &mesh);
        let manner =
            Manner { server_first: false, server_reset: End::Reset, client_reset: End::Fin, refused: End::Reset };
        ground.world(["adit", "server"], Side::Adit(near), Side::Envoy(far), manner)
    }

    /// adit in host `adit`, another in host `server`.
    pub(crate) fn adit_to_adit(kind: Kind, more: &str) -> Self {
        let ground = Ground::new();
        let lab = &ground.lab;
        let mesh = mesh(&lab.adit, &lab.server);
        let far = adit(&lab.server, kind, &settings(kind, FAR, &ground.far, more), &mesh);
        let near = adit(&lab.adit, kind, &settings(kind, NEAR, &ground.near, more), &mesh);
        ground.world(["adit", "server"], Side::Adit(near), Side::Adit(far), Self::ADITS)
    }

    pub(crate) fn near_host(&self) -> &Host {
        self.lab.host(self.names[0])
    }

    pub(crate) fn far_host(&self) -> &Host {
        self.lab.host(self.names[1])
    }

    /// Where an application in the near host connects for a port of the far host.
    pub(crate) fn target(&self, family: Family, port: u16) -> SocketAddr {
        match self.near {
            Side::Adit(_) => SocketAddr::new(self.far_host().address(family), port),
            Side::Envoy(_) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), entrance(family, port)),
        }
    }

    /// An application in the near host connects.
    pub(crate) fn dial(&self, family: Family, port: u16) -> TcpStream {
        let to = self.target(family, port);
        let stream = Dial::default().connect(self.near_host(), to);
        limited(stream.unwrap_or_else(|error| panic!("to {to}: {error}")))
    }

    /// A connection through the tunnel to what `door` accepts: the client's end and the server's.
    pub(crate) fn pair(&self, family: Family, door: &Door) -> (TcpStream, TcpStream) {
        let client = self.dial(family, APP);
        (client, limited(door.accept().stream))
    }

    /// How a connection ends over which nothing can come. A reset may be so quick that connecting fails with it.
    pub(crate) fn fate(&self, family: Family, port: u16) -> End {
        match Dial::default().connect(self.near_host(), self.target(family, port)) {
            Ok(stream) => end(&mut limited(stream)),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => End::Reset,
            Err(error) => panic!("{error}"),
        }
    }

    /// How many tunnels there are: TCP connections to 15008 of the far host.
    pub(crate) fn tunnels(&self) -> usize {
        let filter = format!("sport = :{HBONE}");
        self.far_host().output("ss", &["-Htn", "state", "established", &filter]).lines().count()
    }

    /// Waits until neither end has an open connection or stream left; tunnels without one may stay.
    pub(crate) fn wait_idle(&self) {
        for (side, host) in [(&self.near, self.near_host()), (&self.far, self.far_host())] {
            match side {
                Side::Adit(_) => wait_no_stream(host),
                Side::Envoy(envoy) => {
                    envoy.wait_stat(host, "tcp.entrance.downstream_cx_active", 0);
                    envoy.wait_stat(host, "http.hbone.downstream_rq_active", 0);
                }
            }
        }
    }

    /// Nothing is open any more; an adit drains and has logged no warning but those that a test expects.
    pub(crate) fn stop(self) {
        self.wait_idle();
        for side in [self.near, self.far] {
            if let Side::Adit(adit) = side {
                adit.stop();
            }
        }
    }
}

/// The sum of all samples of `name`; of those with certain labels if they are part of the name, as in `name{role="server"}`.
pub(crate) fn metric(host: &Host, name: &str) -> f64 {
    sum(&metrics(host), name)
}

fn metrics(host: &Host) -> String {
    get(host, 15020, "/metrics").expect("metrics")
}

fn sum(text: &str, name: &str) -> f64 {
    let (name, labels) = name.split_once('{').unwrap_or((name, ""));
    let labels = labels.trim_end_matches('}');
    let samples = text.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with(['{', ' ']));
    let wanted = samples.filter(|rest| labels.split(',').all(|label| rest.contains(label)));
    wanted.map(|rest| rest.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a sample")).sum()
}

/// Waits until the adit in `host` has nothing open. The HBONE door counts a tunnel as a connection, and each stream that
/// comes out of it as another; one without streams stays for `tunnel.idleRelease`.
pub(crate) fn wait_no_stream(host: &Host) {
    until(LIMIT, "nothing but tunnels to be open", || {
        pause(std::time::Duration::from_millis(15));
        let text = metrics(host);
        let [opened, closed] =
            ["opened", "closed"].map(|what| sum(&text, &format!("adit_tunnels_{what}_total{{role=\"server\"}}")));
        ((sum(&text, "adit_connections_open") - (opened - closed)).abs() < 0.5).then_some(())
    });
}

pub(crate) fn wait_metric(host: &Host, name: &str, want: f64) {
    until(LIMIT, &format!("{name} to be {want}"), || {
        pause(std::time::Duration::from_millis(15));
        ((metric(host, name) - want).abs() < 0.5).then_some(())
    });
}

/// Nothing in a test may block for ever.
fn limited(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
    stream.set_write_timeout(Some(LIMIT)).expect("SO_SNDTIMEO");
    stream
}
