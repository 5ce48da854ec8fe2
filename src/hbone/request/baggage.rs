//! `baggage`: what one side of a tunnel says of its workload, as a list of `key=value`.
//!
//! Written once per workload ([`baggage_of`]) and then only shared. Read ([`parse`]) as a claim: for logs and metrics of
//! a peer that the state does not know, never for a decision. Reading is bounded in length, items and characters; what
//! is over a bound is ignored whole, so that nobody can hide a part behind it. There are no escapes: a value that would
//! need one is left out.

use std::fmt::Write as _;
use std::sync::Arc;

use http::HeaderValue;

use crate::telemetry::PeerLabels;

/// Of all `baggage` headers of a message together.
const MAX_LENGTH: usize = 4096;
const MAX_ITEMS: usize = 64;
/// Namespaces, names and revisions have at most 253 bytes.
const MAX_VALUE: usize = 253;
/// The longest kind of a workload that is passed on.
const MAX_KIND: usize = 32;

/// The header that describes a workload; `None` when there is nothing to say. `kind` is its `workloadType`.
///
/// A value is left out when it is not printable ASCII, too long, or would be taken for another item. Without a kind, a
/// workload that is known only by its own name is a pod, any other a deployment.
#[must_use]
pub fn baggage_of(labels: &PeerLabels, kind: &str) -> Option<HeaderValue> {
    let name_key = format!("k8s.{}.name", kind_of(labels, kind));
    let items = [
        ("k8s.cluster.name", &labels.cluster),
        ("k8s.namespace.name", &labels.namespace),
        (&name_key, &labels.workload),
        ("service.name", &labels.canonical_service),
        ("service.version", &labels.canonical_revision),
        ("cloud.region", &labels.region),
        ("cloud.availability_zone", &labels.zone),
    ];
    let mut text = String::new();
    for (key, value) in items.into_iter().filter(|(_, value)| is_sound(value)) {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(text, "{comma}{key}={value}");
    }
    if text.is_empty() { None } else { HeaderValue::try_from(text).ok() }
}

fn kind_of(labels: &PeerLabels, kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    let sound = (1..=MAX_KIND).contains(&kind.len()) && kind.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match kind {
        kind if sound => kind,
        kind if kind.is_empty() && labels.workload == labels.name => "pod".to_owned(),
        _ => "deployment".to_owned(),
    }
}

/// Whether a value can be written, and read, without an escape.
fn is_sound(value: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b';' | b'=' | b'"' | b'\\');
    (1..=MAX_VALUE).contains(&value.len()) && value.bytes().all(allowed)
}

/// What the headers of a message claim; `None` when they claim nothing or are over a bound.
///
/// Keys that are not known are passed over; of a key that is there twice, the last counts.
pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a HeaderValue>) -> Option<PeerLabels> {
    let mut labels = PeerLabels::default();
    let (mut length, mut items) = (0, 0);
    for header in headers {
        length += header.len();
        if length > MAX_LENGTH {
            return None;
        }
        // Visible ASCII, spaces and tabs: anything else discards all of it.
        for item in header.to_str().ok()?.split(',') {
            items += 1;
            if items > MAX_ITEMS {
                return None;
            }
            take(&mut labels, item)?;
        }
    }
    labels.is_known().then_some(labels)
}

/// `None`: a known key has a value over a bound. Properties (after `;`) say nothing of interest.
fn take(labels: &mut PeerLabels, item: &str) -> Option<()> {
    let item = item.split(';').next().unwrap_or_default();
    // ztunnel's reading: of `key=a=b` the value is `a`.
    let mut pieces = item.split('=').map(|piece| piece.trim_matches([' ', '\t']));
    let (Some(key), Some(value)) = (pieces.next(), pieces.next()) else { return Some(()) };
    let slot = match key {
        "k8s.cluster.name" => &mut labels.cluster,
        "k8s.namespace.name" => &mut labels.namespace,
        "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.pod.name" | "k8s.job.name" => &mut labels.workload,
        "service.name" => &mut labels.canonical_service,
        "service.version" => &mut labels.canonical_revision,
        "cloud.region" => &mut labels.region,
        "cloud.availability_zone" => &mut labels.zone,
        _ => return Some(()),
    };
    if value.is_empty() {
        return Some(());
    }
    if !is_sound(value) {
        return None;
    }
    *slot = Arc::from(value);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> PeerLabels {
        PeerLabels {
            name: "cart-7d4b-x".into(),
            workload: "cart".into(),
            namespace: "shop".into(),
            canonical_service: "cart-svc".into(),
            canonical_revision: "v2".into(),
            cluster: "east".into(),
            principal: "spiffe://cluster.local/ns/shop/sa/cart".into(),
            region: "r1".into(),
            zone: "z1".into(),
        }
    }

    /// What a reader can know of what was written: a header does not carry the instance's name or its identity.
    fn carried(labels: &PeerLabels) -> PeerLabels {
        PeerLabels { name: "".into(), principal: "".into(), ..labels.clone() }
    }

    fn text(labels: &PeerLabels, kind: &str) -> String {
        baggage_of(labels, kind).map_or_else(String::new, |value| value.to_str().expect("text").to_owned())
    }

    fn read(headers: &[&[u8]]) -> Option<PeerLabels> {
        let headers: Vec<_> = headers.iter().map(|text| HeaderValue::from_bytes(text).expect("a header")).collect();
        parse(headers.iter())
    }

    #[test]
    fn the_order_of_the_keys() {
        let rest = "service.name=cart-svc,service.version=v2,cloud.region=r1,cloud.availability_zone=z1";
        for (kind, key) in [
            ("deployment", "k8s.deployment.name"),
            ("CronJob", "k8s.cronjob.name"),
            ("pod", "k8s.pod.name"),
            ("JOB", "k8s.job.name"),
            ("statefulset", "k8s.statefulset.name"),
            ("", "k8s.deployment.name"),
            ("a,b=c", "k8s.deployment.name"),
        ] {
            let want = format!("k8s.cluster.name=east,k8s.namespace.name=shop,{key}=cart,{rest}");
            assert_eq!(text(&all(), kind), want);
        }
    }

    #[test]
    fn what_is_empty_or_unfit_is_left_out() {
        let some = PeerLabels { namespace: "shop".into(), zone: "z1".into(), ..PeerLabels::default() };
        assert_eq!(text(&some, "deployment"), "k8s.namespace.name=shop,cloud.availability_zone=z1");
        let own_name = PeerLabels { name: "cart".into(), workload: "cart".into(), ..PeerLabels::default() };
        assert_eq!(text(&own_name, ""), "k8s.pod.name=cart");
        assert_eq!(baggage_of(&PeerLabels::default(), "deployment"), None);
        for unfit in
            ["a,b", "a=b", "a;b", "a b", "a\"b", "a\\b", "a\nb", "a\0b", "a\u{7f}", "caf\u{e9}", &"x".repeat(254)]
        {
            let labels = PeerLabels { canonical_service: unfit.into(), ..all() };
            let want = PeerLabels { canonical_service: "".into(), ..all() };
            assert_eq!(text(&labels, "pod"), text(&want, "pod"), "{unfit:?}");
        }
    }

    #[test]
    fn what_is_read() {
        let namespace = |name: &str| Some(PeerLabels { namespace: name.into(), ..PeerLabels::default() });
        for (headers, want) in [
            (&[][..], None),
            (&[&b""[..]][..], None),
            (&[b","], None),
            (&[b"k8s.namespace.name="], None),
            (&[b"k8s.namespace.name"], None),
            (&[b"=shop"], None),
            (&[b"unknown=shop"], None),
            (&[b"K8S.namespace.name=shop"], None),
            (&[b"k8s.namespace.name=shop"], namespace("shop")),
            (&[b" k8s.namespace.name = shop ;p=1;q"], namespace("shop")),
            (&[b"k8s.namespace.name=shop=x"], namespace("shop")),
            (&[b"k8s.namespace.name=a,k8s.namespace.name=b"], namespace("b")),
            (&[b"k8s.namespace.name=a,k8s.namespace.name="], namespace("a")),
            (&[b"k8s.namespace.name=a", b"k8s.namespace.name=b,,"], namespace("b")),
            (&[b"k8s.namespace.name=shop,other=\"x y\""], namespace("shop")),
            (&[b"k8s.namespace.name=sh op"], None),
            (&[b"k8s.namespace.name=shop,cloud.region=\"r\""], None),
            (&[b"k8s.namespace.name=caf\xc3\xa9"], None),
            (&[b"k8s.namespace.name=shop", b"x=\xff"], None),
        ] {
            assert_eq!(read(headers), want, "{headers:?}");
        }
        for key in ["deployment", "cronjob", "pod", "job"] {
            let labels = read(&[format!("k8s.{key}.name=cart").as_bytes()]).expect("labels");
            assert_eq!(&*labels.workload, "cart");
        }
    }

    #[test]
    fn what_is_over_a_bound_is_ignored_whole() {
        let start = "k8s.namespace.name=shop,";
        let long_value = |length: usize| format!("{start}cloud.region={}", "r".repeat(length));
        let total = |length: usize| format!("{start}{:x<1$}", "x=", length - start.len());
        let items = |count: usize| format!("k8s.namespace.name=shop{}", ",a=b".repeat(count - 1));
        for (fits, over) in [
            (long_value(MAX_VALUE), long_value(MAX_VALUE + 1)),
            (total(MAX_LENGTH), total(MAX_LENGTH + 1)),
            (items(MAX_ITEMS), items(MAX_ITEMS + 1)),
        ] {
            assert_eq!(&*read(&[fits.as_bytes()]).expect("labels").namespace, "shop");
            assert_eq!(read(&[over.as_bytes()]), None);
        }
        let many: Vec<&[u8]> = vec![b"k8s.namespace.name=shop"; MAX_ITEMS + 1];
        assert_eq!(read(&many), None);
        assert_eq!(read(&[b"k8s.namespace.name=shop", &[b'x'; 1 << 20]]), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(values in proptest::array::uniform7("[!-~]{0,20}"), kind in "(deployment|pod|job|cronjob)") {
            let [cluster, namespace, workload, service, revision, region, zone] = values;
            let keep = |value: String| -> Arc<str> { if is_sound(&value) { value.into() } else { "".into() } };
            let labels = PeerLabels {
                name: "n".into(),
                principal: "p".into(),
                cluster: keep(cluster),
                namespace: keep(namespace),
                workload: keep(workload),
                canonical_service: keep(service),
                canonical_revision: keep(revision),
                region: keep(region),
                zone: keep(zone),
            };
            let read = baggage_of(&labels, &kind).and_then(|header| parse([&header].into_iter()));
            prop_assert_eq!(read.unwrap_or_default(), carried(&labels));
        }

        #[test]
        fn any_labels_make_a_sound_header(name in any::<String>(), kind in any::<String>()) {
            let name: Arc<str> = name.into();
            let labels = PeerLabels { namespace: Arc::clone(&name), workload: name, ..PeerLabels::default() };
            if let Some(header) = baggage_of(&labels, &kind) {
                prop_assert!(header.to_str().expect("text").bytes().all(|byte| byte.is_ascii_graphic()));
                prop_assert_eq!(parse([&header].into_iter()).map(|read| read.namespace), Some(labels.namespace));
            }
        }

        #[test]
        fn whatever_is_read_is_printable_and_short(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = [b"k8s.namespace.name=", &bytes[..]].concat();
            if let Some(labels) = HeaderValue::from_bytes(&text).ok().and_then(|header| parse([&header].into_iter())) {
                prop_assert!(is_sound(&labels.namespace) || labels.namespace.is_empty());
            }
        }
    }
}
