//! What a scrape shows of certificates.

use std::collections::BTreeMap;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::*;
use crate::identity::fixture::{DAY, bundle, credentials, id, root};
use crate::telemetry::grammar;

fn scrape(status: &IdentityStatus) -> grammar::Samples {
    let (_sender, status) = watch::channel(Arc::new(status.clone()));
    let metrics = IdentityMetrics { status, peers: Peers::default(), handshakes: Arc::default() };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(metrics));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    grammar::check(&text)
}

/// (kind, identity) -> when it ends.
fn expiries(status: &IdentityStatus) -> BTreeMap<(String, String), Duration> {
    let samples = scrape(status).into_iter();
    let rows = samples.filter_map(|(series, ends)| {
        let label = |name: &str| series.split(&format!("{name}=\"")).nth(1)?.split('"').next().map(str::to_owned);
        series.starts_with("adit_cert_expiry_timestamp_seconds{").then(|| {
            assert!(label("serial").is_some_and(|serial| !serial.is_empty()), "{series}");
            ((label("kind").unwrap(), label("identity").unwrap()), Duration::from_secs_f64(ends))
        })
    });
    rows.collect()
}

#[test]
fn every_certificate_of_the_chain_and_every_root_has_a_row() {
    let now = SystemTime::now();
    let (mesh, other, web) = (root("mesh"), root("other"), id("web"));
    let between = mesh.intermediate("between", now, DAY * 30).unwrap().0;
    let issued = between.issue(&web, now, DAY).unwrap();
    let trust = bundle(&[&mesh, &other], Arc::default());
    let credentials = credentials(&issued, &[&between], trust, &web).unwrap();
    let status = IdentityStatus { credentials: Some(Arc::new(credentials)), ..IdentityStatus::default() };
    let rows = expiries(&status);
    let ends = |life: Duration| (now + life).duration_since(UNIX_EPOCH).unwrap();
    let want = [
        ("leaf", "spiffe://cluster.local/ns/default/sa/web", DAY),
        ("intermediate", "CN=between", DAY * 30),
        ("root", "CN=mesh", DAY * 365),
        ("root", "CN=other", DAY * 365),
    ];
    assert_eq!(rows.len(), want.len(), "{rows:?}");
    for (kind, identity, life) in want {
        let shown = rows[&(kind.to_owned(), identity.to_owned())];
        // A certificate knows whole seconds only, and the roots were made a moment before.
        let off = shown.abs_diff(ends(life));
        assert!(off <= Duration::from_secs(5), "{kind} {identity}: {shown:?}, {off:?} off");
    }
}

#[test]
fn without_credentials_there_is_no_row() {
    assert_eq!(expiries(&IdentityStatus::default()), BTreeMap::new());
}
