//! Certificates for tests: made by `adit certs issue`, as a user makes them, and odd ones that it refuses to make.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType, date_time_ymd};
use tempfile::TempDir;

use crate::kit::isolate::finish;

/// Some roots and what they signed, in a folder of their own.
pub(crate) struct Pki(TempDir);

/// A root: `PREFIX.crt` and `PREFIX.key`.
pub(crate) struct Root(PathBuf);

impl Root {
    pub(crate) fn cert(&self) -> PathBuf {
        self.0.with_extension("crt")
    }
}

/// What one end of a tunnel needs: PEM files, and the identity in the certificate.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) id: String,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// Whom it trusts: at first the root that signed it.
    pub(crate) roots: PathBuf,
}

/// `spiffe://cluster.local/ns/test/sa/{account}`.
pub(crate) fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/test/sa/{account}")
}

impl Pki {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub(crate) fn root(&self, name: &str) -> Root {
        let prefix = self.path(name);
        issue(&["root", "--name", name, "--out", text(&prefix)]);
        Root(prefix)
    }

    /// A leaf for service account `account` of namespace `test`; one per root and account.
    pub(crate) fn leaf(&self, root: &Root, account: &str) -> Leaf {
        self.leaf_for(root, account, &spiffe(account))
    }

    /// A leaf for any identity; `name` is that of its files.
    pub(crate) fn leaf_for(&self, root: &Root, name: &str, id: &str) -> Leaf {
        let prefix = self.signed(root, name);
        issue(&["leaf", "--ca", text(&root.0), "--id", id, "--out", text(&prefix)]);
        Self::at(&prefix, root, id)
    }

    /// [`Self::leaf`] that is good for `life`.
    pub(crate) fn short_lived(&self, root: &Root, account: &str, life: &str) -> Leaf {
        let prefix = self.signed(root, &format!("{account}-short"));
        let id = spiffe(account);
        issue(&["leaf", "--ca", text(&root.0), "--id", &id, "--life", life, "--out", text(&prefix)]);
        Self::at(&prefix, root, &id)
    }

    /// What [`Self::leaf`] has made.
    pub(crate) fn leaf_at(&self, root: &Root, account: &str) -> Leaf {
        Self::at(&self.signed(root, account), root, &spiffe(account))
    }

    /// Several roots in one file.
    pub(crate) fn bundle(&self, name: &str, roots: &[&Root]) -> PathBuf {
        let out = self.path(name).with_extension("crt");
        let certs: Vec<_> = roots.iter().map(|root| root.cert()).collect();
        let mut arguments = vec!["bundle", "--out", text(&out)];
        arguments.extend(certs.iter().map(|cert| text(cert)));
        issue(&arguments);
        out
    }

    /// A list by which `root` revokes these leaves.
    pub(crate) fn revocations(&self, name: &str, root: &Root, leaves: &[&Leaf]) -> PathBuf {
        let out = self.path(name).with_extension("crl");
        let mut arguments = vec!["revocations", "--ca", text(&root.0), "--out", text(&out)];
        arguments.extend(leaves.iter().map(|leaf| text(&leaf.cert)));
        issue(&arguments);
        out
    }

    /// Several lists in one file.
    pub(crate) fn concatenated(&self, name: &str, lists: &[PathBuf]) -> PathBuf {
        let out = self.path(name).with_extension("crl");
        let text: String = lists.iter().map(|list| fs::read_to_string(list).expect("our own file")).collect();
        fs::write(&out, text).expect("our own folder");
        out
    }

    /// A leaf that has been invalid for years.
    pub(crate) fn expired(&self, root: &Root, account: &str) -> Leaf {
        self.odd(root, account, &[&spiffe(account)], 2021)
    }

    /// A leaf with these URI names, as many or as few and as strange as they are.
    pub(crate) fn named(&self, root: &Root, name: &str, uris: &[&str]) -> Leaf {
        self.odd(root, name, uris, 2121)
    }

    fn odd(&self, root: &Root, name: &str, uris: &[&str], valid_until: i32) -> Leaf {
        let read = |end: &str| fs::read_to_string(root.0.with_extension(end)).expect("our own file");
        let signer = KeyPair::from_pem(&read("key")).expect("a key");
        let issuer = Issuer::from_ca_cert_pem(&read("crt"), signer).expect("a root");
        let mut parameters = CertificateParams::default();
        let uri = |uri: &&str| SanType::URI(Ia5String::try_from(*uri).expect("ASCII"));
        parameters.subject_alt_names = uris.iter().map(uri).collect();
        parameters.not_before = date_time_ymd(2020, 1, 1);
        parameters.not_after = date_time_ymd(valid_until, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &issuer).expect("a signature");
        let prefix = self.signed(root, name);
        fs::write(prefix.with_extension("crt"), certificate.pem()).expect("our own folder");
        fs::write(prefix.with_extension("key"), key.serialize_pem()).expect("our own folder");
        Self::at(&prefix, root, uris.first().unwrap_or(&""))
    }

    fn at(prefix: &Path, root: &Root, id: &str) -> Leaf {
        let file = |end| prefix.with_extension(end);
        Leaf { id: id.to_owned(), cert: file("crt"), key: file("key"), roots: root.cert() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn signed(&self, root: &Root, name: &str) -> PathBuf {
        let root = root.0.file_name().expect("a name").to_string_lossy();
        self.path(&format!("{root}-{name}"))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours is UTF-8")
}

fn issue(arguments: &[&str]) {
    finish(Command::new(env!("CARGO_BIN_EXE_adit")).args(["certs", "issue"]).args(arguments));
}
