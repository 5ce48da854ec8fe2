//! Certificates from real files that are swapped, half written, wrong or missing.

use std::os::unix::fs::symlink;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::identity::authority::{Authority, Issued};
use crate::identity::fixture::{DAY, id, leaf, root};

/// Looks at once: the settling is tested with the watcher.
const PACE: Pace = Pace {
    period: Duration::from_millis(20),
    full: Duration::from_secs(60),
    settle: Duration::from_millis(1),
    settle_max: Duration::from_millis(10),
};

struct Given {
    dir: TempDir,
    source: FilesSource,
}

impl Given {
    fn new(crls: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let crls = if crls { vec![at("crl.pem")] } else { Vec::new() };
        let places = Places { cert: at("tls.crt"), key: at("tls.key"), roots: vec![at("ca.crt")], crls };
        let source = FilesSource::new(places, id("web"), PACE, WatchMode::Polling);
        Self { dir, source }
    }

    /// All at once: an empty or half-written file would be a content of its own.
    fn write(&self, name: &str, text: &str) {
        // Private, as NamedTempFile makes it.
        let beside = tempfile::NamedTempFile::new().unwrap();
        fs::write(beside.path(), text).unwrap();
        beside.persist(self.dir.path().join(name)).unwrap();
    }

    fn write_all(&self, root: &Authority, issued: &Issued) {
        self.write("ca.crt", root.certificate_pem());
        self.write("tls.crt", &issued.certificate_pem);
        self.write("tls.key", &issued.key_pem);
    }

    async fn fetch(&mut self) -> Result<Fetched, CredentialsError> {
        self.source.fetch(SystemTime::now()).await.map_err(|failed| *failed.error)
    }

    async fn serial(&mut self) -> Result<Arc<str>, &'static str> {
        let fetched = self.fetch().await;
        fetched.map(|fetched| Arc::clone(&fetched.credentials.leaf().serial)).map_err(|error| error.reason())
    }
}

fn serial(issued: &Issued) -> Arc<str> {
    CertificateFacts::of(&issued.certificate).unwrap().serial
}

#[tokio::test]
async fn halves_wait_for_each_other_in_either_order() {
    let a = root("a");
    let (old, new) = (leaf(&a, &id("web")), leaf(&a, &id("web")));
    for key_first in [true, false] {
        let mut given = Given::new(false);
        given.write_all(&a, &old);
        assert_eq!(given.serial().await, Ok(serial(&old)));
        let halves = [("tls.key", &new.key_pem), ("tls.crt", &new.certificate_pem)];
        let (first, second) = if key_first { (halves[0], halves[1]) } else { (halves[1], halves[0]) };
        given.write(first.0, first.1);
        given.source.changed().await;
        assert_eq!(given.serial().await, Err("key_mismatch"));
        given.write(second.0, second.1);
        given.source.changed().await;
        assert_eq!(given.serial().await, Ok(serial(&new)));
    }
}

/// Whatever is cut off wherever: either an error, or exactly what the whole file says.
#[tokio::test]
async fn files_cut_off_at_every_byte_are_refused() {
    let a = root("a");
    let issued = leaf(&a, &id("web"));
    let mut given = Given::new(false);
    given.write_all(&a, &issued);
    let whole = [
        ("tls.crt", issued.certificate_pem.clone()),
        ("tls.key", issued.key_pem.clone()),
        ("ca.crt", a.certificate_pem().to_owned()),
    ];
    for (name, text) in &whole {
        for length in 0..text.len() {
            given.write(name, text.get(..length).unwrap());
            let scan = given.source.reader.lock().unwrap().look(Effort::Full);
            let decided = given.source.reader.lock().unwrap().decide(&scan, SystemTime::now());
            match decided {
                Ok(fetched) => {
                    assert!(length + 2 >= text.len(), "{name} cut at {length}");
                    assert_eq!(fetched.credentials.leaf().serial, serial(&issued));
                }
                Err(FetchError { error, .. }) => {
                    assert!(error.to_string().contains(name), "{name} cut at {length}: {error}")
                }
            }
        }
        given.write(name, text);
    }
    assert_eq!(given.serial().await, Ok(serial(&issued)));
}

#[tokio::test]
async fn what_is_missing_at_the_start_is_never_nothing() {
    let a = root("a");
    let issued = leaf(&a, &id("web"));
    let mut given = Given::new(true);
    given.write_all(&a, &issued);
    assert_eq!(given.serial().await, Err("unreadable"), "no revocation list");
    given.write("crl.pem", "hello");
    assert_eq!(given.serial().await, Err("malformed"));
    given.write("crl.pem", &a.revoke(&[], SystemTime::now(), DAY).unwrap());
    given.write("ca.crt", "");
    assert_eq!(given.serial().await, Err("malformed"), "no root");
    fs::remove_file(given.dir.path().join("ca.crt")).unwrap();
    let error = given.fetch().await.unwrap_err().to_string();
    assert!(error.contains("ca.crt: no such file"), "{error}");
    given.write("ca.crt", a.certificate_pem());
    assert_eq!(given.serial().await, Ok(serial(&issued)));
}

#[tokio::test]
async fn bad_revocation_lists_keep_the_old_in_force_and_are_loud() {
    let a = root("a");
    let now = SystemTime::now();
    let (old, new) = (leaf(&a, &id("web")), leaf(&a, &id("web")));
    let mut given = Given::new(true);
    given.write_all(&a, &old);
    let revoking = |certificate: &Issued, at, life| {
        a.revoke(&[crate::identity::fixture::serial(&certificate.certificate)], at, life).unwrap()
    };
    given.write("crl.pem", &revoking(&old, now, DAY));
    let fetched = given.fetch().await.unwrap();
    assert!(fetched.credentials.revoked() && fetched.faults.is_empty());
    let expired = a.revoke(&[], now - DAY, Duration::from_secs(1)).unwrap();
    for (text, why) in [("nonsense", "there is no revocation list"), (&*expired, "has expired"), ("\u{30}\u{80}", "")] {
        given.write("crl.pem", text);
        let fetched = given.fetch().await.unwrap();
        assert!(fetched.credentials.revoked(), "{text}: what was revoked stays revoked");
        assert!(fetched.faults[0].message.contains(why), "{:?}", fetched.faults);
    }
    let late = a.revoke(&[], now + Duration::from_secs(60), Duration::from_secs(1)).unwrap();
    given.write("crl.pem", &late);
    let later = given.source.fetch(now + DAY).await.map_err(|failed| *failed.error);
    assert_eq!(later.unwrap_err().reason(), "dates", "only the certificate is refused");
    assert_eq!(given.source.reader.lock().unwrap().revoked.as_ref().unwrap().facts[0].revoked, 0, "expired, but newer");
    given.write("crl.pem", &revoking(&old, now + Duration::from_secs(120), DAY));
    assert!(given.fetch().await.unwrap().credentials.revoked());
    fs::remove_file(given.dir.path().join("crl.pem")).unwrap();
    given.write_all(&a, &new);
    let fetched = given.fetch().await.unwrap();
    assert_eq!(fetched.credentials.leaf().serial, serial(&new), "a new leaf is taken all the same");
    assert_eq!((fetched.faults.len(), fetched.credentials.bundle().revoked.facts[0].revoked), (1, 1));
}

/// One broken file holds up no revocation that another one brings, and takes back none of its own.
#[tokio::test]
async fn each_file_of_revocation_lists_stands_for_itself() {
    let (a, b) = (root("a"), root("b"));
    let (own, first, second) = (leaf(&a, &id("web")), leaf(&a, &id("db")), leaf(&b, &id("db")));
    let list = |root: &Authority, revoked: &[&Issued]| {
        let serials: Vec<_> = revoked.iter().map(|it| crate::identity::fixture::serial(&it.certificate)).collect();
        root.revoke(&serials, SystemTime::now(), DAY).unwrap()
    };
    for broken in [Some("nonsense"), None] {
        let mut given = Given::new(true);
        given.source.reader.lock().unwrap().places.crls.push(given.dir.path().join("second.pem"));
        let at = |name: &str| given.dir.path().join(name);
        let places = [at("tls.crt"), at("tls.key"), at("ca.crt"), at("crl.pem"), at("second.pem")].to_vec();
        given.source.reader.lock().unwrap().files = files::watch(places, BOUNDS, PACE, WatchMode::Polling).0;
        given.write_all(&a, &own);
        given.write("ca.crt", &[a.certificate_pem(), b.certificate_pem()].concat());
        given.write("crl.pem", &list(&a, &[&first]));
        assert_eq!(given.serial().await, Err("unreadable"), "one that is missing at the start is never nothing");
        given.write("second.pem", "nonsense");
        assert_eq!(given.serial().await, Err("malformed"));
        given.write("second.pem", &list(&b, &[]));
        assert!(given.fetch().await.unwrap().faults.is_empty());
        match broken {
            Some(text) => given.write("crl.pem", text),
            None => fs::remove_file(given.dir.path().join("crl.pem")).unwrap(),
        }
        given.write("second.pem", &list(&b, &[&second]));
        let fetched = given.fetch().await.unwrap();
        let bundle = Arc::clone(fetched.credentials.bundle());
        let mut revoked: Vec<_> = bundle.revoked.facts.iter().map(|it| (it.issuer.as_str(), it.revoked)).collect();
        revoked.sort_unstable();
        assert_eq!(revoked, [("CN=a", 1), ("CN=b", 1)], "{broken:?}");
        assert_eq!(fetched.faults.len(), 1, "{:?}", fetched.faults);
        assert!(fetched.faults[0].message.contains("crl.pem"), "{:?}", fetched.faults);
        given.write("crl.pem", &list(&a, &[]));
        let fetched = given.fetch().await.unwrap();
        assert!(fetched.faults.is_empty(), "{:?}", fetched.faults);
        assert_eq!(fetched.credentials.bundle().revoked.facts.iter().map(|it| it.revoked).sum::<usize>(), 1);
    }
}

#[tokio::test]
async fn swapped_volumes_are_seen_every_time() {
    let a = root("a");
    let mut given = Given::new(false);
    let dir = given.dir.path().to_owned();
    for generation in 0..20 {
        let issued = leaf(&a, &id("web"));
        let name = format!("..{generation}");
        fs::create_dir(dir.join(&name)).unwrap();
        let files =
            [("ca.crt", a.certificate_pem()), ("tls.crt", &issued.certificate_pem), ("tls.key", &issued.key_pem)];
        for (file, text) in files {
            fs::write(dir.join(&name).join(file), text).unwrap();
        }
        symlink(&name, dir.join("..tmp")).unwrap();
        fs::rename(dir.join("..tmp"), dir.join("..data")).unwrap();
        if generation == 0 {
            for (file, _) in files {
                symlink(format!("..data/{file}"), dir.join(file)).unwrap();
            }
        } else {
            fs::remove_dir_all(dir.join(format!("..{}", generation - 1))).unwrap();
        }
        tokio::time::timeout(Duration::from_secs(30), given.source.changed()).await.unwrap();
        assert_eq!(given.serial().await, Ok(serial(&issued)), "{generation}");
    }
}

#[tokio::test]
async fn a_root_sent_with_the_chain_is_left_out() {
    let a = root("a");
    let (middle, _) = a.intermediate("middle", SystemTime::now(), DAY).unwrap();
    let issued = leaf(&middle, &id("web"));
    let mut given = Given::new(false);
    given.write_all(&a, &issued);
    let chain = [&issued.certificate_pem, middle.certificate_pem(), a.certificate_pem()].concat();
    given.write("tls.crt", &chain.replace('\n', "\r\n").replace("\r\r", "\r"));
    assert_eq!(given.fetch().await.unwrap().credentials.chain().len(), 2);
}

#[test]
fn a_key_is_open_to_others_but_not_to_the_group_it_is_read_by() {
    for (mode, alone, by_group) in
        [(0o600, false, false), (0o400, false, false), (0o440, true, false), (0o640, true, false), (0o444, true, true)]
    {
        assert_eq!((is_open(mode, false), is_open(mode, true)), (alone, by_group), "{mode:o}");
    }
}
