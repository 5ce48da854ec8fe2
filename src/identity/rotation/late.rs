//! Whom to trust comes into force whatever is wrong with the rest: real files that are swapped, one at a time.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::tests::{clock, terms};
use super::*;
use crate::files::{Pace, WatchMode};
use crate::identity::authority::{Authority, Issued};
use crate::identity::certificate::CertificateFacts;
use crate::identity::fixture::{DAY, domains, id, leaf, root, serial};
use crate::identity::tls::Verdict;
use crate::identity::verify::{PeerIdentity, Usage};

const PACE: Pace = Pace {
    period: Duration::from_millis(20),
    full: Duration::from_secs(60),
    settle: Duration::from_millis(1),
    settle_max: Duration::from_millis(10),
};

struct Given {
    dir: TempDir,
    rotator: Rotator,
    rotation: Rotation,
    readiness: Readiness,
}

impl Given {
    /// Has read a good pair for `web`, signed by `signer`; nothing is revoked.
    async fn new(signer: &Authority, roots: &[&Authority], own: &Issued) -> Self {
        Self::at(clock(), signer, roots, own).await
    }

    async fn at(clock: Clock, signer: &Authority, roots: &[&Authority], own: &Issued) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let places = crate::identity::files::Places {
            cert: at("tls.crt"),
            key: at("tls.key"),
            roots: vec![at("ca.crt")],
            crls: vec![at("crl.pem")],
        };
        let source = crate::identity::files::FilesSource::new(places, id("web"), PACE, WatchMode::Polling);
        let readiness = Readiness::default();
        let (rotator, rotation) = Rotator::new(Box::new(source), terms(&clock, &readiness));
        let mut given = Self { dir, rotator, rotation, readiness };
        given.write_roots(roots);
        given.revoke(signer, &[]);
        given.write("tls.crt", &own.certificate_pem);
        given.write("tls.key", &own.key_pem);
        given.fetch().await;
        assert_eq!(given.status().generation, 1);
        given
    }

    fn write(&self, name: &str, text: &str) {
        let file = self.dir.path().join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn write_roots(&self, roots: &[&Authority]) {
        self.write("ca.crt", &roots.iter().map(|root| root.certificate_pem()).collect::<String>());
    }

    fn revoke(&self, signer: &Authority, certificates: &[&Issued]) {
        let serials: Vec<Vec<u8>> = certificates.iter().map(|it| serial(&it.certificate)).collect();
        self.write("crl.pem", &signer.revoke(&serials, SystemTime::now(), DAY).unwrap());
    }

    async fn fetch(&mut self) {
        self.rotator.fetch().await;
        self.rotator.look_around();
    }

    fn status(&self) -> Arc<IdentityStatus> {
        Arc::clone(&self.rotation.status.borrow())
    }

    fn tls(&self) -> Arc<TlsGeneration> {
        self.rotation.tls.borrow().clone().unwrap()
    }

    fn judge(&self, peer: &Issued) -> Verdict {
        self.tls().judge(std::slice::from_ref(&peer.certificate), Usage::Client, self.rotator.now())
    }

    fn own_serial(&self) -> Arc<str> {
        Arc::clone(&self.tls().credentials.leaf().serial)
    }

    fn roots(&self) -> Vec<String> {
        self.tls().credentials.bundle().roots().iter().map(|root| root.subject.to_string()).collect()
    }

    fn blocked(&self) -> Option<String> {
        self.readiness.blockers().into_iter().find(|blocker| blocker.name == BLOCKER).and_then(|blocker| blocker.error)
    }
}

fn shown_serial(issued: &Issued) -> Arc<str> {
    CertificateFacts::of(&issued.certificate).unwrap().serial
}

/// However the pair is bad, a revocation is in force at the next look, with the old certificate; and the pair's fault is
/// counted once and shown until it is mended.
#[tokio::test]
async fn no_revocation_waits_for_a_good_pair() {
    let (a, b) = (root("a"), root("b"));
    let (old, new, peer) = (leaf(&a, &id("web")), leaf(&a, &id("web")), leaf(&a, &id("db")));
    let (other, strange) = (leaf(&a, &id("other")), leaf(&b, &id("web")));
    let past = a.issue(&id("web"), SystemTime::now() - DAY * 3, DAY).unwrap();
    let cut = new.certificate_pem.get(..new.certificate_pem.len() / 2).unwrap().to_owned();
    for (files, reason) in [
        (vec![("tls.key", &*new.key_pem)], "key_mismatch"),
        (vec![("tls.crt", &*new.certificate_pem)], "key_mismatch"),
        (vec![("tls.crt", &*cut)], "malformed"),
        (vec![("tls.key", "")], "malformed"),
        (vec![("tls.crt", &*other.certificate_pem), ("tls.key", &*other.key_pem)], "identity"),
        (vec![("tls.crt", &*strange.certificate_pem), ("tls.key", &*strange.key_pem)], "chain"),
        (vec![("tls.crt", &*past.certificate_pem), ("tls.key", &*past.key_pem)], "dates"),
    ] {
        let mut given = Given::new(&a, &[&a], &old).await;
        assert!(matches!(given.judge(&peer), Verdict::Good { .. }));
        files.iter().for_each(|(name, text)| given.write(name, text));
        given.fetch().await;
        assert_eq!(given.status().generation, 1, "{reason}: nothing new yet");
        given.revoke(&a, &[&peer]);
        for _ in 0..3 {
            given.fetch().await;
            assert_eq!(given.judge(&peer), Verdict::Revoked, "{reason}");
            let status = given.status();
            assert_eq!((status.generation, given.own_serial()), (2, shown_serial(&old)), "{reason}: published once");
            assert_eq!(status.last_failure.as_ref().map(|failure| failure.reason), Some(reason));
            assert_eq!(status.failed.get(reason), Some(&1), "{:?}", status.failed);
            assert_eq!((given.blocked(), status.faults.len()), (None, 0), "the old certificate is good");
        }
        given.write("tls.crt", &new.certificate_pem);
        given.write("tls.key", &new.key_pem);
        given.fetch().await;
        let status = given.status();
        assert_eq!((status.generation, given.own_serial(), status.failures), (3, shown_serial(&new), 0));
        assert_eq!(given.judge(&peer), Verdict::Revoked);
    }
}

#[tokio::test]
async fn no_root_waits_for_a_good_pair() {
    let (a, b) = (root("a"), root("b"));
    let (own, half, peer) = (leaf(&a, &id("web")), leaf(&a, &id("web")), leaf(&b, &id("db")));
    let mut given = Given::new(&a, &[&a], &own).await;
    given.write("tls.key", &half.key_pem);
    given.write_roots(&[&a, &b]);
    given.fetch().await;
    assert_eq!(given.roots(), ["CN=a", "CN=b"]);
    assert!(matches!(given.judge(&peer), Verdict::Good { .. }));
    given.write_roots(&[&a]);
    given.fetch().await;
    assert_eq!(given.roots(), ["CN=a"]);
    let until = given.status().retired[0].until;
    assert_eq!(given.judge(&peer), Verdict::RootRemoved { until });
    assert_eq!((given.own_serial(), given.status().failed["key_mismatch"]), (shown_serial(&own), 1));
}

/// The root of the certificate in force stays until one has come that the new roots verify; all others go, and what is
/// revoked is in force.
#[tokio::test]
async fn the_own_root_stays_until_the_own_leaf_has_moved() {
    let (a, b, c) = (root("a"), root("b"), root("c"));
    let (old, new) = (leaf(&a, &id("web")), leaf(&b, &id("web")));
    let (from_a, from_b, from_c) = (leaf(&a, &id("x")), leaf(&b, &id("x")), leaf(&c, &id("x")));
    let mut given = Given::new(&a, &[&a, &c], &old).await;
    given.write_roots(&[&b]);
    given.revoke(&a, &[&from_a]);
    given.write("tls.key", &new.key_pem);
    for _ in 0..2 {
        given.fetch().await;
        assert_eq!((given.roots(), given.status().generation), (vec!["CN=b".to_owned(), "CN=a".into()], 2));
        assert_eq!(given.judge(&from_a), Verdict::Revoked);
        assert!(matches!(given.judge(&from_b), Verdict::Good { .. }));
        assert!(matches!(given.judge(&from_c), Verdict::RootRemoved { .. }));
        let status = given.status();
        assert!(status.faults[0].message.contains("CN=a stays trusted"), "{:?}", status.faults);
        assert_eq!((status.failed["roots"], status.failed["key_mismatch"]), (1, 1));
    }
    given.write("tls.crt", &new.certificate_pem);
    given.fetch().await;
    assert_eq!((given.roots(), given.own_serial()), (vec!["CN=b".to_owned()], shown_serial(&new)));
    assert!(given.status().faults.is_empty());
    let retired: Vec<String> = given.status().retired.iter().map(|retired| retired.root.subject.to_string()).collect();
    assert_eq!(retired, ["CN=c", "CN=a"]);
    assert!(given.tls().grace_until(&given.status().retired[1].root).is_some());
}

/// For peers such a root has the grace of any other that was removed; our own chain is still checked with it.
#[tokio::test]
async fn the_own_root_is_trusted_for_peers_for_its_grace_only() {
    let (a, b) = (root("a"), root("b"));
    let (own, from_a, new) = (leaf(&a, &id("web")), leaf(&a, &id("x")), leaf(&b, &id("web")));
    let (ahead, ahead_reader) = watch::channel(Duration::ZERO);
    let clock: Clock = Arc::new(move || SystemTime::now() + *ahead_reader.borrow());
    // In this order the roots in force are the same before and after.
    let mut given = Given::at(clock, &a, &[&b, &a], &own).await;
    given.write_roots(&[&b]);
    given.fetch().await;
    let until = given.tls().credentials.notice().unwrap();
    let handshake = |given: &Given| given.tls().peer(Some(std::slice::from_ref(&from_a.certificate)), Usage::Client);
    for minutes in [0, 1, 2, 3, 4, 5, 30, 40, 50, 59] {
        ahead.send_replace(Duration::from_secs(minutes * 60));
        given.fetch().await;
        assert_eq!((given.roots().len(), given.tls().credentials.notice()), (2, Some(until)), "{minutes} min");
        assert!(handshake(&given).is_some() && matches!(given.judge(&from_a), Verdict::Good { .. }));
    }
    let again = given.rotator.retry_at.unwrap().saturating_duration_since(Instant::now());
    assert!(again <= Duration::from_secs(60), "the end of its time is not slept through: {again:?}");
    ahead.send_replace(Duration::from_secs(3601));
    for _ in 0..2 {
        given.fetch().await;
        assert_eq!((given.roots(), given.own_serial()), (vec!["CN=b".to_owned()], shown_serial(&own)));
        assert!(handshake(&given).is_none());
        assert!(matches!(given.judge(&from_a), Verdict::RootRemoved { until } if until <= given.rotator.now()));
        assert_eq!(given.blocked(), None, "it can still be shown to those who have the old roots");
        let message = given.status().faults[0].message.clone();
        assert!(message.contains("CN=a has not been trusted since"), "{message}");
    }
    given.write("tls.crt", &new.certificate_pem);
    given.write("tls.key", &new.key_pem);
    given.fetch().await;
    assert_eq!((given.own_serial(), given.tls().credentials.notice()), (shown_serial(&new), None));
    assert!(given.status().faults.is_empty());
}

#[tokio::test]
async fn bad_roots_keep_the_old_ones_and_hold_up_no_revocation() {
    let a = root("a");
    let (own, new, peer) = (leaf(&a, &id("web")), leaf(&a, &id("web")), leaf(&a, &id("db")));
    for bad in ["", "nonsense", &new.certificate_pem, a.certificate_pem().get(..200).unwrap()] {
        let mut given = Given::new(&a, &[&a], &own).await;
        given.write("ca.crt", bad);
        given.write("tls.crt", &new.certificate_pem);
        given.write("tls.key", &new.key_pem);
        given.revoke(&a, &[&peer]);
        given.fetch().await;
        assert_eq!((given.roots(), given.judge(&peer)), (vec!["CN=a".to_owned()], Verdict::Revoked), "{bad}");
        assert_eq!(given.own_serial(), shown_serial(&own), "a pair is taken only with roots that are good");
        assert!(given.status().last_failure.is_some());
        fs::remove_file(given.dir.path().join("ca.crt")).unwrap();
        given.fetch().await;
        assert_eq!((given.roots(), given.status().generation), (vec!["CN=a".to_owned()], 2));
        given.write_roots(&[&a]);
        given.fetch().await;
        assert_eq!((given.own_serial(), given.judge(&peer)), (shown_serial(&new), Verdict::Revoked));
    }
}

/// Live tunnels are still cut when the own certificate has expired, and it says so when the own one is revoked.
#[tokio::test]
async fn neither_an_expired_nor_a_revoked_own_certificate_holds_up_a_revocation() {
    let a = root("a");
    let (own, peer) = (leaf(&a, &id("web")), leaf(&a, &id("db")));
    let (ahead, ahead_reader) = watch::channel(Duration::ZERO);
    let clock: Clock = Arc::new(move || SystemTime::now() + *ahead_reader.borrow());
    let mut given = Given::at(clock, &a, &[&a], &own).await;
    ahead.send_replace(DAY * 2);
    given.rotator.look_around();
    assert!(given.blocked().unwrap().contains("expired"));
    given.revoke(&a, &[&peer]);
    given.fetch().await;
    assert_eq!((given.judge(&peer), given.status().generation), (Verdict::Revoked, 2));
    assert!(given.blocked().unwrap().contains("expired") && !given.status().credentials.as_ref().unwrap().revoked());
    ahead.send_replace(Duration::ZERO);
    given.write("tls.key", "");
    given.revoke(&a, &[&peer, &own]);
    given.fetch().await;
    assert!(given.blocked().unwrap().contains("is revoked"), "{:?}", given.blocked());
}

#[tokio::test]
async fn a_trust_domain_that_is_no_longer_accepted_is_a_generation() {
    let a = root("a");
    let own = leaf(&a, &id("web"));
    let peer = leaf(&a, &"spiffe://old.local/ns/default/sa/web".parse().unwrap());
    let given = Given::new(&a, &[&a], &own).await;
    let Given { rotator, rotation, dir: _dir, .. } = given;
    let mut tls = rotation.tls.clone();
    let lifecycle = Lifecycle::default();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(rotator.run(lifecycle.clone()));
    let mut last = tls.borrow_and_update().clone().unwrap();
    let gone = |tls: &TlsGeneration| {
        tls.judge(std::slice::from_ref(&peer.certificate), Usage::Client, SystemTime::now())
            == Verdict::TrustDomainRemoved
    };
    for (names, removed) in [(&["cluster.local", "old.local"][..], false), (&["cluster.local"], true)] {
        rotation.accept(domains(names));
        let changed = tls.wait_for(|tls| tls.as_ref().is_some_and(|tls| tls.number > last.number));
        let now = tokio::time::timeout(Duration::from_secs(30), changed).await.unwrap().unwrap().clone().unwrap();
        assert!(gone(&now) == removed && !now.same_trust(&last), "{names:?}");
        last = now;
    }
    rotation.accept(domains(&["cluster.local"]));
    assert_eq!(rotation.tls.borrow().as_ref().unwrap().number, 3, "the same is no change");
    lifecycle.advance(Phase::Stopped);
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn every_root_says_who_hangs_on_it() {
    let (a, b) = (root("a"), root("b"));
    let mut given = Given::new(&a, &[&a, &b], &leaf(&a, &id("web"))).await;
    let peers = given.rotation.peers.clone();
    let peer = |root: &Authority| {
        let root = Arc::new(CertificateFacts::of(root.certificate()).unwrap());
        PeerIdentity { id: id("db"), serial: "1".into(), not_after: SystemTime::now(), root }
    };
    let _guards = [(&a, Usage::Client), (&b, Usage::Server), (&b, Usage::Client), (&root("c"), Usage::Client)]
        .map(|(root, usage)| peers.join(&peer(root), usage));
    given.write_roots(&[&a]);
    given.fetch().await;
    let document = given.status().to_json(SystemTime::now(), &peers);
    let of = |list: &str| (document[list][0]["subject"].clone(), document[list][0]["livePeers"].clone());
    assert_eq!(of("roots"), ("CN=a".into(), 1.into()));
    assert_eq!(of("retiredRoots"), ("CN=b".into(), 2.into()));
    assert_eq!(of("otherRoots"), ("CN=c".into(), 1.into()));
    assert_eq!(document["roots"].as_array().unwrap().len(), 1);
    given.rotation.handshakes.count(crate::identity::Role::Server, "revoked");
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register_collector(Box::new(given.rotation.metrics()));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        &*format!("adit_identity_live_peers{{root=\"{}\"}} 2", peer(&b).root.fingerprint),
        &*format!("adit_identity_live_peers{{root=\"{}\"}} 1", peer(&a).root.fingerprint),
        "adit_tls_handshake_failures_total{role=\"server\",reason=\"revoked\"} 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test]
async fn a_key_that_others_can_read_is_named_once_and_used() {
    let a = root("a");
    let own = leaf(&a, &id("web"));
    let mut given = Given::new(&a, &[&a], &own).await;
    let key = given.dir.path().join("tls.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    for _ in 0..2 {
        given.fetch().await;
        let status = given.status();
        assert_eq!((status.failures, given.blocked(), status.faults.len()), (0, None, 1));
        let message = &status.faults[0].message;
        assert!(message.contains(&*key.display().to_string()) && message.contains("0640"), "{message}");
        assert_eq!(status.failed["key_permissions"], 1);
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    given.fetch().await;
    assert!(given.status().faults.is_empty());
}
