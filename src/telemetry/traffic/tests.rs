//! Traffic series: labels, sums, and what becomes of unused ones.

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::*;
use crate::telemetry::grammar::{self, Samples};
use crate::telemetry::labels::{PeerLabels, ServiceLabels};

fn peer(name: &str) -> Arc<PeerLabels> {
    Arc::new(PeerLabels {
        name: format!("{name}-1").into(),
        workload: name.into(),
        namespace: "ns".into(),
        canonical_service: format!("{name}-svc").into(),
        canonical_revision: "v1".into(),
        cluster: "c1".into(),
        principal: format!("spiffe://td/ns/ns/sa/{name}").into(),
        region: "r".into(),
        ..PeerLabels::default()
    })
}

fn labels(source: &str, destination: &str) -> TrafficLabels {
    TrafficLabels {
        source: peer(source),
        destination: peer(destination),
        service: Arc::new(ServiceLabels { hostname: "s.ns.svc".into(), name: "s".into(), namespace: "ns".into() }),
        reporter: Reporter::Source,
        security: SecurityPolicy::Unknown,
    }
}

fn families(set: &TrafficLabelSet, series: usize) -> Arc<TrafficFamilies> {
    let series = NonZeroUsize::new(series).expect("not zero");
    Arc::new(TrafficFamilies::new(set, TrafficLimits { series, unused_for: Duration::from_secs(900) }))
}

fn scrape(families: &Arc<TrafficFamilies>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Arc::clone(families)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("encode");
    text
}

fn samples(families: &Arc<TrafficFamilies>) -> Samples {
    grammar::check(&scrape(families))
}

#[test]
fn all_labels_in_ztunnels_order() {
    let families = families(&TrafficLabelSet::Default, 10);
    let series = families.series(&labels("a", "b"));
    series.opened();
    series.received(3);
    series.sent(4000);
    series.closed(ResponseFlag::Connect);
    let labels = |flag| {
        format!(
            "{{reporter=\"source\",source_workload=\"a\",source_canonical_service=\"a-svc\",\
             source_canonical_revision=\"v1\",source_workload_namespace=\"ns\",source_principal=\"unknown\",\
             source_app=\"a-svc\",source_version=\"v1\",source_cluster=\"c1\",destination_service=\"s.ns.svc\",\
             destination_service_namespace=\"ns\",destination_service_name=\"s\",destination_workload=\"b\",\
             destination_canonical_service=\"b-svc\",destination_canonical_revision=\"v1\",\
             destination_workload_namespace=\"ns\",destination_principal=\"spiffe://td/ns/ns/sa/b\",\
             destination_app=\"b-svc\",destination_version=\"v1\",destination_cluster=\"c1\",\
             request_protocol=\"tcp\",response_flags=\"{flag}\",connection_security_policy=\"unknown\",\
             source_region=\"r\",source_zone=\"unknown\",destination_region=\"r\",destination_zone=\"unknown\"}}"
        )
    };
    let samples = samples(&families);
    for (name, flag, want) in [
        ("istio_tcp_connections_opened_total", "-", 1.0),
        ("istio_tcp_connections_closed_total", "-", 0.0),
        ("istio_tcp_connections_closed_total", "CONNECT", 1.0),
        ("istio_tcp_connections_failed_total", "CONNECT", 1.0),
        ("istio_tcp_received_bytes_total", "-", 3.0),
        ("istio_tcp_sent_bytes_total", "-", 4000.0),
    ] {
        let series = format!("{name}{}", labels(flag));
        assert_eq!(samples.get(&series), Some(&want), "{series} in {samples:#?}");
    }
    assert_eq!(samples.keys().filter(|name| name.starts_with("istio_tcp_connections_failed")).count(), 1);
}

#[test]
fn unknown_peers_have_no_locality() {
    let families = families(&TrafficLabelSet::Default, 10);
    let unknown = TrafficLabels {
        source: PeerLabels::unknown(),
        destination: PeerLabels::unknown(),
        service: ServiceLabels::unknown(),
        reporter: Reporter::Destination,
        security: SecurityPolicy::MutualTls,
    };
    families.series(&unknown).opened();
    let text = scrape(&families);
    grammar::check(&text);
    assert!(text.contains(r#"{reporter="destination",source_workload="unknown","#));
    assert!(text.contains(r#"connection_security_policy="mutual_tls"} 1"#));
    assert!(!text.contains("region"));
}

#[test]
fn no_samples_no_family() {
    assert!(!scrape(&families(&TrafficLabelSet::Default, 10)).contains("istio_tcp"));
}

#[test]
fn mutual_tls_proves_the_source() {
    let families = families(&TrafficLabelSet::Default, 10);
    let secured = TrafficLabels { security: SecurityPolicy::MutualTls, ..labels("a", "b") };
    families.series(&secured).opened();
    assert!(scrape(&families).contains(r#"source_principal="spiffe://td/ns/ns/sa/a""#));
}

#[test]
fn series_that_become_equal_are_merged() {
    let only = |names: &[&str]| TrafficLabelSet::Only(names.iter().map(|name| (*name).to_owned()).collect());
    let families = families(&only(&["destination_workload"]), 10);
    for source in ["a", "b", "c"] {
        let series = families.series(&labels(source, "d"));
        series.opened();
        series.received(1);
    }
    assert_eq!(families.len(), 1);
    let samples = samples(&families);
    let labels = r#"{reporter="source",destination_workload="d",response_flags="-"}"#;
    assert_eq!(samples[&format!("istio_tcp_connections_opened_total{labels}")], 3.0);
    assert_eq!(samples[&format!("istio_tcp_received_bytes_total{labels}")], 3.0);
}

#[test]
fn the_selection_can_change_while_connections_are_open() {
    let families = families(&TrafficLabelSet::Default, 10);
    let mut cache = TrafficCache::default();
    let labels = labels("a", "b");
    let open = cache.series(&families, &labels);
    open.opened();
    families.set_labels(&TrafficLabelSet::Only(vec!["source_workload".into()]));
    let later = cache.series(&families, &labels);
    assert!(!Arc::ptr_eq(&open, &later), "the cache must not answer with the old labels");
    later.opened();
    open.received(5);
    let text = scrape(&families);
    grammar::check(&text);
    assert!(text.contains(r#"opened_total{reporter="source",source_workload="a",response_flags="-"} 1"#), "{text}");
    assert!(text.contains("istio_tcp_received_bytes_total{reporter=\"source\",source_workload=\"a\",source_canonical"));
    // Saying the same again changes nothing.
    families.set_labels(&TrafficLabelSet::Only(vec!["source_workload".into()]));
    assert!(Arc::ptr_eq(&later, &cache.series(&families, &labels)));
    // The old one goes once nobody holds it.
    drop(open);
    let start = Instant::now();
    families.sweep(start + Duration::from_secs(1000));
    families.sweep(start + Duration::from_secs(2000));
    assert_eq!(families.len(), 1);
}

#[test]
fn unused_series_expire_and_used_ones_do_not() {
    let families = families(&TrafficLabelSet::Default, 10);
    let start = Instant::now();
    let at = |secs| start + Duration::from_secs(secs);
    let held = families.series(&labels("held", "b"));
    families.series(&labels("gone", "b")).opened();
    assert_eq!(families.sweep(at(600)), 0);
    // Asked for again: its time starts anew.
    families.series(&labels("gone", "b")).opened();
    assert_eq!(families.sweep(at(1200)), 0);
    assert_eq!(families.sweep(at(1600)), 1);
    assert_eq!(families.len(), 1);
    // From when it was last seen held.
    drop(held);
    assert_eq!(families.sweep(at(2400)), 0);
    assert_eq!(families.sweep(at(2600)), 1);
    assert!(families.is_empty());
}

#[test]
fn a_hundred_thousand_short_lived_peers_leave_size_flat() {
    let families = families(&TrafficLabelSet::Default, 100);
    let mut cache = TrafficCache::default();
    let start = Instant::now();
    let mut sizes = Vec::new();
    for index in 0_u64..100_000 {
        let series = cache.series(&families, &labels(&format!("peer-{index:06}"), "b"));
        series.opened();
        series.received(10);
        series.closed(ResponseFlag::None);
        if index % 1000 == 999 {
            cache.rotate();
            families.sweep(start + Duration::from_secs(index));
        }
        if index % 25_000 == 24_999 {
            assert!(families.len() <= 100 && cache.len() <= 1024, "{} {}", families.len(), cache.len());
            sizes.push(scrape(&families).len());
        }
    }
    let (least, most) = (sizes.iter().min().expect("sizes"), sizes.iter().max().expect("sizes"));
    assert!(most - least < least / 10, "{sizes:?}");
    let text = scrape(&families);
    grammar::check(&text);
    assert!(text.contains(r#"{reporter="source",source_workload="overflow","#));
    assert!(families.expired.load(Ordering::Relaxed) > 0, "peers that were gone made room");
}

#[test]
fn the_overflow_series_keeps_the_sum_right() {
    let families = families(&TrafficLabelSet::Default, 2);
    for source in ["a", "b", "c", "d", "e"] {
        families.series(&labels(source, "z")).opened();
    }
    let opened: f64 = samples(&families)
        .iter()
        .filter(|(name, _)| name.starts_with("istio_tcp_connections_opened"))
        .map(|(_, value)| value)
        .sum();
    assert_eq!(opened, 5.0);
    assert_eq!(families.len(), 2);
}

#[test]
fn the_cache_finds_by_identity_and_is_bounded() {
    let families = families(&TrafficLabelSet::Default, 10_000);
    let mut cache = TrafficCache::default();
    let labels_of = labels("a", "b");
    let first = cache.series(&families, &labels_of);
    assert!(Arc::ptr_eq(&first, &cache.series(&families, &labels_of)));
    let other = TrafficLabels { reporter: Reporter::Destination, ..labels_of.clone() };
    assert!(!Arc::ptr_eq(&first, &cache.series(&families, &other)));
    // Equal text at another address is the same series.
    assert!(Arc::ptr_eq(&first, &cache.series(&families, &labels("a", "b"))));
    for index in 0..5000 {
        let _ = cache.series(&families, &labels(&index.to_string(), "b"));
    }
    assert!(cache.len() <= 1024, "{}", cache.len());
    cache.rotate();
    cache.rotate();
    assert!(cache.is_empty());
}

#[test]
fn hostile_label_values_stay_values() {
    let families = families(&TrafficLabelSet::Default, 10);
    families.series(&labels("a\"} 1\nx{y=\"\\", "b")).opened();
    grammar::check(&scrape(&families));
}

/// Whoever has a certificate can claim something else with each stream.
#[test]
fn claims_leave_room_for_what_the_state_knows() {
    let families = families(&TrafficLabelSet::Default, 100);
    let claims = |name: &str| {
        let source = Arc::new(PeerLabels { name: "".into(), ..PeerLabels::clone(&peer(name)) });
        TrafficLabels { source, ..labels("a", "b") }
    };
    for index in 0..1000 {
        families.series(&claims(&format!("claim-{index}"))).opened();
    }
    assert_eq!(families.len(), 75);
    for index in 0..25 {
        families.series(&labels(&format!("known-{index}"), "b")).opened();
    }
    assert_eq!(families.len(), 100);
}
