//! Trust that ends while tunnels live, in both roles, and no identity at all.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::bytes::{End, end};
use crate::kit::door::{Dial, talk};
use crate::kit::wait::pause;
use crate::kit::{Adit, Door, Host, LIMIT, isolated, until};
use crate::raw::{DATA, GOAWAY, Peer};
use crate::siege::{ECHO, Siege, assert_sane};
use crate::world::{APP, FAR, Ground, KINDS, NEAR, adit, mesh, metric, settings, wait_metric};

/// From the moment that adit has seen a change until what it is about is cut.
const CUT_WITHIN: Duration = Duration::from_secs(1);
/// From the writing of a file until then: the watcher waits until events have settled, and until two looks at the files
/// agree, half a second each at most.
const SEEN_WITHIN: Duration = Duration::from_secs(1);
/// What a machine may add to both together that stands still.
const SLACK: Duration = Duration::from_secs(1);

/// When the line was logged that contains all of `words`.
fn logged(adit: &Adit, words: &[&str]) -> SystemTime {
    until(LIMIT, &format!("a line with {words:?}"), || {
        let line = adit.log().into_iter().find(|line| words.iter().all(|word| line.contains(word)))?;
        humantime::parse_rfc3339(line.split('\t').next()?).ok()
    })
}

/// The file as a whole at once; when that was.
fn put(from: &Path, to: &Path) -> SystemTime {
    let beside = to.with_extension("new");
    fs::copy(from, &beside).expect("our own folder");
    let written = SystemTime::now();
    fs::rename(&beside, to).expect("the same folder");
    written
}

fn assert_cut_in_time(adit: &Adit, cause: &str, written: SystemTime) {
    let seen = logged(adit, &["credentials published", "generation=2"]);
    let cut = logged(adit, &["tunnel closed", &format!("cause=\"{cause}\"")]);
    let took = cut.duration_since(seen).unwrap_or_default();
    assert!(took <= CUT_WITHIN, "{took:?} after it was seen");
    let took = cut.duration_since(written).unwrap_or_default();
    assert!(took <= SEEN_WITHIN + CUT_WITHIN + SLACK, "{took:?} after it was written");
}

/// A list that names the peer: its tunnel is cut, in the middle of a stream, and no other.
#[test]
fn a_revoked_client_is_cut() {
    isolated(|| {
        let ground = Ground::new();
        let (pki, root) = (&ground.pki, &ground.root);
        let revoked = pki.leaf_for(root, "revoked", "spiffe://cluster.local/ns/test/sa/revoked");
        let lists = [pki.revocations("none", root, &[]), pki.revocations("one", root, &[&revoked])];
        let crls = format!("crls: ['{}'], roots:", lists[0].display());
        let siege = Siege::edited(ground, "", |settings| settings.replace("roots:", &crls));
        siege.applications();
        let friend = siege.friend();
        let mut peer = Peer::connect(siege.camp(), siege.door(), &revoked);
        let stream = peer.open(&siege.authority(ECHO));
        peer.ping_pong(stream, b"trusted");
        let written = put(&lists[1], &lists[0]);
        peer.last_words().expect("an end");
        assert_cut_in_time(&siege.adit, "revoked", written);
        assert!(Peer::handshaken(siege.camp(), siege.door(), &revoked).map_or(true, |mut it| it.last_words().is_ok()));
        friend.well("a revocation");
        siege.finish();
    });
}

/// An alias that is taken away: the tunnels of its workloads are cut, and no others.
#[test]
fn a_trust_domain_that_is_no_longer_accepted_is_cut() {
    isolated(|| {
        let ground = Ground::new();
        let (pki, root) = (&ground.pki, &ground.root);
        let friendly = pki.leaf_for(root, "friendly", "spiffe://friend.example/ns/test/sa/friendly");
        let aliases = ("source: files,", "source: files, trustDomainAliases: [friend.example],");
        let siege = Siege::edited(ground, "", |settings| settings.replace(aliases.0, aliases.1));
        siege.applications();
        let friend = siege.friend();
        let mut peer = Peer::connect(siege.camp(), siege.door(), &friendly);
        let stream = peer.open(&siege.authority(ECHO));
        peer.ping_pong(stream, b"accepted");
        let file = siege.adit.folder().join("adit.yaml");
        let (text, beside) = (fs::read_to_string(&file).expect("our own file"), file.with_extension("new"));
        fs::write(&beside, text.replace(aliases.1, aliases.0)).expect("our own folder");
        let written = SystemTime::now();
        fs::rename(&beside, &file).expect("the same folder");
        peer.last_words().expect("an end");
        assert_cut_in_time(&siege.adit, "untrusted", written);
        assert!(Peer::handshaken(siege.camp(), siege.door(), &friendly).map_or(true, |mut it| it.last_words().is_ok()));
        friend.well("a trust domain that went");
        siege.finish();
    });
}

/// A near adit in host `adit`, which captures, and a far one in host `server`.
struct Two {
    ground: Ground,
    near: Adit,
    far: Adit,
}

impl Two {
    fn new(ground: Ground, edit: impl FnOnce(String) -> String) -> Self {
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let mesh = mesh(&lab.adit, &lab.server);
        let text = "log: { format: text }\nworkers: 1";
        let far = adit(&lab.server, kind, &settings(kind, FAR, &ground.far, text), &mesh);
        let near = adit(&lab.adit, kind, &edit(settings(kind, NEAR, &ground.near, text)), &mesh);
        Self { ground, near, far }
    }

    fn dial(&self) -> std::io::Result<TcpStream> {
        dial(&self.ground.lab.adit, &self.ground.lab.server)
    }
}

fn dial(from: &Host, to: &Host) -> std::io::Result<TcpStream> {
    let stream = Dial::default().connect(from, (to.v4, APP).into())?;
    stream.set_read_timeout(Some(LIMIT * 2))?;
    Ok(stream)
}

/// The same for the server that we are the client of: and afterwards it is not reached any more.
#[test]
fn a_revoked_server_is_cut() {
    isolated(|| {
        let ground = Ground::new();
        let (pki, root) = (&ground.pki, &ground.root);
        let lists = [pki.revocations("none", root, &[]), pki.revocations("one", root, &[&ground.far])];
        let crls = format!("crls: ['{}'], roots:", lists[0].display());
        let two = Two::new(ground, |settings| settings.replace("roots:", &crls));
        let door = Door::open(&two.ground.lab.server, APP);
        let mut client = two.dial().expect("captured");
        let mut server = door.accept().stream;
        talk(&mut client, &mut server);
        let written = put(&lists[1], &lists[0]);
        assert_eq!(end(&mut client), End::Reset);
        assert_cut_in_time(&two.near, "revoked", written);
        let near = &two.ground.lab.adit;
        wait_metric(near, "adit_tunnels_closed_total{role=\"client\",reason=\"revoked\"}", 1.0);
        wait_metric(near, "adit_connections_closed_total{reason=\"peer_revoked\"}", 1.0);
        wait_metric(near, "istio_tcp_connections_closed_total{response_flags=\"CERT_REVOKED\"}", 1.0);
        assert!(two.dial().map_or(End::Reset, |mut stream| end(&mut stream)) == End::Reset);
        assert!(metric(near, "adit_tls_handshake_failures_total{role=\"client\",reason=\"revoked\"}") >= 1.0);
        assert_eq!(metric(near, "adit_tls_handshake_failures_total{role=\"server\"}"), 0.0);
        assert!(door.is_quiet(), "never in the clear");
        for adit in [&two.near, &two.far] {
            assert_sane(&adit.log());
        }
    });
}

/// A root that goes: GOAWAY at once, no new tunnel, and what lives is cut when the grace is over, not before.
#[test]
fn a_removed_root_has_its_grace() {
    isolated(|| {
        const GRACE: Duration = Duration::from_secs(4);
        let mut ground = Ground::new();
        let other = ground.pki.root("root-b");
        let mut leaf = ground.pki.leaf(&other, NEAR);
        leaf.roots = ground.root.cert();
        let (both, own) = (ground.pki.bundle("both", &[&ground.root, &other]), ground.root.cert());
        ground.far.roots = both.clone();
        let siege =
            Siege::edited(ground, "", |settings| settings.replace("source: files,", "source: files, rootGrace: 4s,"));
        siege.applications();
        let friend = siege.friend();
        let mut peer = Peer::connect(siege.camp(), siege.door(), &leaf);
        let stream = peer.open(&siege.authority(ECHO));
        peer.ping_pong(stream, b"trusted");
        put(&own, &both);
        assert_eq!(peer.expect(|it| it.kind == GOAWAY).code(), 0);
        peer.ping_pong(stream, b"for a while");
        assert!(Peer::handshaken(siege.camp(), siege.door(), &leaf).map_or(true, |mut it| it.last_words().is_ok()));
        while !peer.is_over() {
            if peer.send(DATA, 0, stream, b"?") {
                peer.discard();
            }
            pause(Duration::from_millis(20));
        }
        let seen = logged(&siege.adit, &["credentials published", "generation=2"]);
        let cut = logged(&siege.adit, &["tunnel closed", "cause=\"untrusted\""]);
        let took = cut.duration_since(seen).expect("later");
        assert!(took >= GRACE - Duration::from_millis(500) && took <= GRACE + CUT_WITHIN + SLACK, "{took:?}");
        friend.well("a root that goes");
        siege.finish();
    });
}

/// Without an identity 15008 is closed, and what needs a tunnel is refused, never dialled in the clear.
#[test]
fn no_identity_is_no_tunnel() {
    isolated(|| {
        let ground = Ground::new();
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let mesh = mesh(&lab.adit, &lab.server);
        let none = settings(kind, NEAR, &ground.near, "log: { format: text }").replace("source: files", "source: none");
        let mut near = adit(&lab.adit, kind, &none, &mesh);
        let door = Door::open(&lab.server, APP);
        let refused = Dial::default().connect(&lab.client, (lab.adit.v4, 15008).into());
        assert_eq!(refused.expect_err("closed").kind(), std::io::ErrorKind::ConnectionRefused);
        for _ in 0..5 {
            assert!(dial(&lab.adit, &lab.server).map_or(End::Reset, |mut stream| end(&mut stream)) == End::Reset);
        }
        assert!(door.is_quiet(), "never in the clear");
        assert_sane(&near.log());
        near.expect_log("access");
        near.stop();
    });
}
