//! The certs commands on real files.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Only {
    #[command(flatten)]
    certs: CertsArgs,
}

/// Runs in `dir`: words that begin with `@` are files there.
fn certs(dir: &Path, line: &str) -> (Exit, String) {
    let word = |word: &str| match word.strip_prefix('@') {
        Some(file) => dir.join(file).display().to_string(),
        None => word.to_owned(),
    };
    let args = std::iter::once("certs".to_owned()).chain(line.split(' ').map(word));
    let (mut data, mut messages) = (Vec::new(), Vec::new());
    let exit = Only::parse_from(args).certs.run(&mut Output { data: &mut data, messages: &mut messages });
    (exit, String::from_utf8([data, messages].concat()).unwrap())
}

#[test]
fn a_root_rotation_step_by_step() {
    let dir = tempfile::tempdir().unwrap();
    let ok = |line: &str| {
        let (exit, text) = certs(dir.path(), line);
        assert_eq!(exit, Exit::Ok, "{line}: {text}");
        text
    };
    let refused = |line: &str, why: &str| {
        let (exit, text) = certs(dir.path(), line);
        assert!(exit == Exit::Failed && text.contains(why) && text.contains("hint: "), "{line}: {text}");
    };
    let leaf = "--id spiffe://cluster.local/ns/default/sa/web";
    ok("issue root --name a --out @a");
    ok("issue root --name b --out @b");
    ok(&format!("issue leaf --ca @a {leaf} --out @web-a"));
    ok(&format!("issue leaf --ca @b {leaf} --out @web-b"));
    ok("issue bundle @a.crt @b.crt @a.crt --out @both.crt");
    for (cert, roots, fine) in [
        ("web-a", "a", true),
        ("web-a", "both", true),
        ("web-b", "both", true),
        ("web-b", "b", true),
        ("web-a", "b", false),
        ("web-b", "a", false),
    ] {
        let line = format!("verify --cert @{cert}.crt --key @{cert}.key --roots @{roots}.crt {leaf}");
        if fine { drop(ok(&line)) } else { refused(&line, "does not verify") }
    }
    refused("verify --cert @web-a.crt --key @web-b.key --roots @a.crt", "not the certificate's");
    refused("verify --cert @web-a.crt --key @web-a.key --roots @a.crt --id spiffe://td/x", "is configured");
    refused("verify --cert @web-a.crt --key @web-a.key --roots @none.crt", "no such file");
    refused("issue root --out @a", "nothing is overwritten");
    ok("issue revocations --ca @a @web-a.crt --out @a.crl");
    refused("verify --cert @web-a.crt --key @web-a.key --roots @both.crt --crls @a.crl", "is revoked");
    ok("verify --cert @web-b.crt --key @web-b.key --roots @both.crt --crls @a.crl");
    assert_eq!(fs::metadata(dir.path().join("a.key")).unwrap().mode() & 0o777, 0o600);
    let text = ok("inspect @web-a.crt --roots @both.crt");
    assert!(text.contains("spiffe://cluster.local/ns/default/sa/web") && text.contains("CN=a"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&ok("inspect --json @both.crt @web-b.crt --roots @b.crt")).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 3);
    assert_eq!(json[2]["root"], "CN=b");
}
