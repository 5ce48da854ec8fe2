//! The identity of a real daemon: shown, checked, and following its files one by one.

use std::fs;

use crate::curl::admin;
use crate::kit::{LIMIT, Lab, isolated, until};
use crate::program::{adit, need};
use crate::wire::SETTINGS;

const WHO: &str = "spiffe://cluster.local/ns/default/sa/default";

#[test]
fn a_revocation_is_in_force_while_half_a_pair_waits() {
    isolated(|| {
        need(&["curl"]);
        let lab = Lab::new();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let (ca, own, next, peer) = (at("ca"), at("own"), at("next"), at("peer"));
        let issue = |arguments: &[&str]| drop(adit(&lab.adit, &[&["certs", "issue"], arguments].concat()).ok());
        issue(&["root", "--name", "mesh", "--out", &ca]);
        for (id, out) in [(WHO, &own), (WHO, &next), ("spiffe://cluster.local/ns/default/sa/peer", &peer)] {
            issue(&["leaf", "--ca", &ca, "--id", id, "--out", out]);
        }
        issue(&["revocations", "--ca", &ca, "--out", &at("in-force.crl")]);
        issue(&["revocations", "--ca", &ca, &at("peer.crt"), "--out", &at("later.crl")]);
        let settings = format!(
            "{SETTINGS}workload: {{ name: own }}\nidentity:\n  source: files\n  files: {{ cert: {own}.crt, key: {own}.key, roots: [{ca}.crt], \
             crls: [{}] }}\n",
            at("in-force.crl")
        );
        let mut daemon = lab.adit(&settings, "");
        let said = adit(&lab.adit, &["certs"]).ok();
        for words in [WHO, "source       files", "generation   1,", "CN=mesh", "by the own certificate"] {
            assert!(said.contains(words), "{words} in {said}");
        }
        let before = admin(&lab.adit, "/certs", &[]).json();

        // The key of the next pair comes, its certificate does not, and meanwhile the peer is revoked.
        daemon.expect_log("the private key is not the certificate's");
        fs::rename(at("next.key"), at("own.key")).expect("our own folder");
        fs::rename(at("later.crl"), at("in-force.crl")).expect("our own folder");
        let now = until(LIMIT, "the revocation in force", || {
            let now = admin(&lab.adit, "/certs", &[]).json();
            (now["revocationLists"][0]["revoked"] == 1).then_some(now)
        });
        assert_eq!(now["chain"], before["chain"], "the old certificate");
        assert_eq!(
            (&now["lastFailure"]["reason"], &now["blocked"]),
            (&"key_mismatch".into(), &serde_json::Value::Null)
        );
        assert_eq!(now["roots"][0]["livePeers"], 0);
        let said = adit(&lab.adit, &["certs", "show"]).ok();
        assert!(said.contains("last failure") && said.contains("key_mismatch"), "{said}");
        let file = daemon.folder().join("adit.yaml");
        let checked = adit(&lab.adit, &["check", "--config", file.to_str().expect("text")]);
        assert!(checked.code == Some(78) && checked.err.contains("own.key: identity.files.key: "), "{}", checked.err);

        fs::rename(at("next.crt"), at("own.crt")).expect("our own folder");
        let healed = until(LIMIT, "the next pair", || {
            let now = admin(&lab.adit, "/certs", &[]).json();
            (now["chain"] != before["chain"]).then_some(now)
        });
        assert_eq!((&healed["lastFailure"], &healed["generation"]), (&serde_json::Value::Null, &3.into()));
        let json = adit(&lab.adit, &["certs", "--json"]).ok();
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["chain"], healed["chain"]);
        daemon.stop();
    });
}
