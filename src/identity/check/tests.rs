//! Real files, each wrong in its own way.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::*;
use crate::identity::authority::{Authority, Issued};
use crate::identity::fixture::{DAY, id, leaf, root, serial};

struct Given {
    dir: TempDir,
    settings: Settings,
}

impl Given {
    /// Good files for the identity of `workload`.
    fn new(signer: &Authority, own: &Issued) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut settings = Settings::default();
        settings.workload.service_account = "web".into();
        settings.identity.source = IdentitySource::Files;
        settings.identity.files.cert = at("tls.crt");
        settings.identity.files.key = at("tls.key");
        settings.identity.files.roots = vec![at("ca.crt")];
        settings.identity.files.crls = vec![at("crl.pem")];
        let given = Self { dir, settings };
        given.write("tls.crt", &own.certificate_pem);
        given.write("tls.key", &own.key_pem);
        given.write("ca.crt", signer.certificate_pem());
        given.write("crl.pem", "");
        given
    }

    fn write(&self, name: &str, text: &str) {
        let file = self.dir.path().join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// File names and what is said of each.
    fn wrong(&self) -> Vec<(String, String)> {
        let problems = check(&self.settings, SystemTime::now()).unwrap_err();
        let told = problems.iter().map(|problem| {
            let Origin::File(file) = &problem.origin else { panic!("{problem}") };
            assert!(problem.hint.is_some() && problem.key_path.starts_with("identity.files."), "{problem}");
            (file.file_name().unwrap().to_string_lossy().into_owned(), problem.message.clone())
        });
        told.collect()
    }
}

#[test]
fn good_files_are_said_in_words() {
    let a = root("a");
    let own = leaf(&a, &id("web"));
    let given = Given::new(&a, &own);
    let checked = check(&given.settings, SystemTime::now()).unwrap();
    assert!(checked.about.starts_with("spiffe://cluster.local/ns/default/sa/web until 20"), "{}", checked.about);
    assert!(checked.warnings.is_empty());
    let expired = a.revoke(&[], SystemTime::now() - DAY, std::time::Duration::from_secs(1)).unwrap();
    given.write("crl.pem", &expired);
    fs::set_permissions(given.dir.path().join("tls.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let warnings = check(&given.settings, SystemTime::now()).unwrap().warnings;
    assert!(warnings[0].contains("0644") && warnings[0].contains("tls.key") && warnings[1].contains("expired"));
    assert_eq!(check(&Settings::default(), SystemTime::now()), Ok(Checked::default()));
}

#[test]
fn every_problem_is_said_with_its_file() {
    let (a, b) = (root("a"), root("b"));
    let own = leaf(&a, &id("web"));
    let list = a.revoke(&[serial(&own.certificate)], SystemTime::now(), DAY).unwrap();
    let worst = b.issue(&id("db"), SystemTime::now() - DAY * 3, DAY).unwrap();
    let cut = a.certificate_pem().get(..200).unwrap();
    for (files, want) in [
        (vec![("crl.pem", &*list)], vec![("tls.crt", "is revoked")]),
        (vec![("crl.pem", "x")], vec![("crl.pem", "no revocation list")]),
        (vec![("ca.crt", cut)], vec![("ca.crt", "the end is missing")]),
        (vec![("ca.crt", &*own.certificate_pem)], vec![("ca.crt", "not an authority's")]),
        (vec![("ca.crt", b.certificate_pem())], vec![("tls.crt", "does not verify")]),
        (vec![("tls.key", &*worst.key_pem)], vec![("tls.key", "is not the certificate's")]),
        (
            vec![("tls.crt", &*worst.certificate_pem)],
            vec![("tls.key", "is not the certificate's"), ("tls.crt", "is configured"), ("tls.crt", "and now it is")],
        ),
        (
            vec![("tls.crt", &*worst.certificate_pem), ("ca.crt", ""), ("crl.pem", "x")],
            vec![
                ("crl.pem", "no revocation list"),
                ("ca.crt", "no certificate"),
                ("tls.key", "is not the certificate's"),
                ("tls.crt", "is configured"),
                ("tls.crt", "and now it is"),
            ],
        ),
        (vec![("tls.crt", "x"), ("tls.key", "y")], vec![("tls.crt", "no certificate"), ("tls.key", "no private key")]),
    ] {
        let given = Given::new(&a, &own);
        files.iter().for_each(|(name, text)| given.write(name, text));
        let told = given.wrong();
        assert_eq!(told.len(), want.len(), "{told:?}");
        for ((file, message), (want_file, words)) in told.iter().zip(&want) {
            assert!(file == want_file && message.contains(words), "{told:?}, wanted {want:?}");
        }
    }
    let given = Given::new(&a, &own);
    for name in ["tls.crt", "tls.key", "ca.crt", "crl.pem"] {
        fs::remove_file(given.dir.path().join(name)).unwrap();
    }
    let told = given.wrong();
    assert!(told.len() == 4 && told.iter().all(|(_, message)| message.contains("cannot be read: no such")), "{told:?}");
}

#[test]
fn the_dev_folder_is_looked_at_and_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.identity.source = IdentitySource::Dev;
    settings.identity.dev.folder = dir.path().join("dev");
    let now = SystemTime::now();
    assert!(check(&settings, now).unwrap().about.ends_with("from the dev source"));
    assert!(!dir.path().join("dev").exists());
    dev::root(&settings.identity.dev.folder, now).unwrap();
    check(&settings, now).unwrap();
    fs::write(dir.path().join("dev/root.pem"), "x").unwrap();
    assert!(check(&settings, now).unwrap_err().to_string().contains("root.pem"));
}
