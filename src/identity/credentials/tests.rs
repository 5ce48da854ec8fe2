//! Key, chain and roots that fit together, and each way in which they do not.

use std::time::Duration;

use rcgen::SanType;

use super::*;
use crate::identity::fixture::{DAY, bundle, credentials, id, key, leaf, lists, root, serial};

fn reason(result: Result<Credentials, CredentialsError>) -> &'static str {
    result.err().map_or("fine", |error| error.reason())
}

#[test]
fn everything_has_to_fit_together() {
    let (a, b) = (root("a"), root("b"));
    let web = id("web");
    let trust = bundle(&[&a], Arc::default());
    let issued = leaf(&a, &web);
    let made = credentials(&issued, &[], Arc::clone(&trust), &web).unwrap();
    assert_eq!((made.id(), made.root().subject.as_ref(), made.revoked()), (&web, "CN=a", false));
    assert!(!format!("{made:?}").contains("PRIVATE"));
    let other = leaf(&a, &web);
    let now = SystemTime::now();
    let swapped = Credentials::new(vec![issued.certificate.clone()], &key(&other), Arc::clone(&trust), &web, now);
    assert_eq!(reason(swapped), "key_mismatch");
    let none = Credentials::new(Vec::new(), &key(&other), Arc::clone(&trust), &web, now);
    assert_eq!(reason(none), "malformed");
    assert_eq!(reason(credentials(&issued, &[], Arc::clone(&trust), &id("db"))), "identity");
    assert_eq!(reason(credentials(&issued, &[], bundle(&[&b], Arc::default()), &web)), "chain");
    for at in [now + DAY * 2, now - DAY] {
        let chain = vec![issued.certificate.clone()];
        let error = Credentials::new(chain, &key(&issued), Arc::clone(&trust), &web, at).unwrap_err();
        assert_eq!(error.reason(), "dates");
        assert!(error.to_string().contains("and now it is"), "{error}");
    }
    let no_roots = TrustBundle::new([], Arc::default()).unwrap_err();
    assert_eq!(no_roots, CredentialsError::NoRoots);
    assert!(TrustBundle::new([&issued.certificate], Arc::default()).is_err(), "a leaf is no root");
}

#[test]
fn there_is_exactly_one_uri_name_and_it_is_a_spiffe_id() {
    let a = root("a");
    let uri = |text: &str| SanType::URI(text.to_owned().try_into().unwrap());
    let web = id("web");
    for (names, want) in [
        (vec![uri(web.as_str())], "fine"),
        (vec![SanType::DnsName("web".try_into().unwrap()), uri(web.as_str())], "fine"),
        (vec![], "identity"),
        (vec![SanType::DnsName("web".try_into().unwrap())], "identity"),
        (vec![uri(web.as_str()), uri("spiffe://cluster.local/ns/default/sa/db")], "identity"),
        (vec![uri(web.as_str()), uri("https://example.com")], "identity"),
        (vec![uri("https://example.com")], "identity"),
        (vec![uri("spiffe://cluster.local/ns//sa/web")], "identity"),
    ] {
        let issued = a.issue_with(names.clone(), SystemTime::now(), DAY).unwrap();
        let made = credentials(&issued, &[], bundle(&[&a], Arc::default()), &web);
        assert_eq!(reason(made), want, "{names:?}");
    }
}

#[test]
fn chains_through_an_intermediate_and_bundles_with_duplicates() {
    let (a, b) = (root("a"), root("b"));
    let (middle, _) = a.intermediate("middle", SystemTime::now(), DAY).unwrap();
    let web = id("web");
    let issued = leaf(&middle, &web);
    let trust = bundle(&[&b, &a, &b, &a], Arc::default());
    assert_eq!(trust.roots().len(), 2);
    let made = credentials(&issued, &[&middle], Arc::clone(&trust), &web).unwrap();
    assert_eq!((made.chain().len(), made.root().subject.as_ref()), (2, "CN=a"));
    assert_eq!(reason(credentials(&issued, &[], trust, &web)), "chain");
}

#[test]
fn an_own_revoked_certificate_is_known_for_one() {
    let a = root("a");
    let (middle, _) = a.intermediate("middle", SystemTime::now(), DAY).unwrap();
    let web = id("web");
    let issued = leaf(&middle, &web);
    let now = SystemTime::now();
    for (list, revoked) in [
        (middle.revoke(&[serial(&issued.certificate)], now, DAY).unwrap(), true),
        (a.revoke(&[serial(middle.certificate())], now, DAY).unwrap(), true),
        (middle.revoke(&[vec![1, 2, 3]], now, DAY).unwrap(), false),
        (middle.revoke(&[serial(&issued.certificate)], now - DAY, Duration::from_secs(1)).unwrap(), true),
    ] {
        let made = credentials(&issued, &[&middle], bundle(&[&a], lists(&[&list])), &web).unwrap();
        assert_eq!(made.revoked(), revoked);
    }
}

#[test]
fn a_root_is_trusted_while_its_dates_hold() {
    let now = SystemTime::now();
    let (old, _) = crate::identity::authority::Authority::new_root("old", now - DAY * 2, DAY).unwrap();
    let web = id("web");
    let error = credentials(&leaf(&old, &web), &[], bundle(&[&old], Arc::default()), &web).unwrap_err();
    assert!(matches!(error, CredentialsError::Chain { error: PeerError::Expired { .. }, .. }), "{error}");
}

#[test]
fn keys_of_every_form_are_read() {
    use std::process::Command;
    let dir = tempfile::tempdir().unwrap();
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").current_dir(dir.path()).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sec1.pem"]);
    openssl(&["genrsa", "-traditional", "-out", "pkcs1.pem", "2048"]);
    openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", "pkcs1.pem", "-out", "pkcs8.pem"]);
    for (file, begins) in [("sec1.pem", "EC PRIVATE"), ("pkcs1.pem", "RSA PRIVATE"), ("pkcs8.pem", "PRIVATE")] {
        let bytes = std::fs::read(dir.path().join(file)).unwrap();
        assert!(String::from_utf8_lossy(&bytes).contains(&format!("BEGIN {begins} KEY")), "{file}");
        let key = crate::identity::pem::private_key(std::path::Path::new(file), &bytes).unwrap();
        assert!(any_supported_type(&key).is_ok(), "{file}");
    }
}
