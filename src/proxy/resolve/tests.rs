//! Tables: what each destination of one mesh leads to.

use super::*;
use crate::mesh::snapshot_of;

const WORLD: &str = "
workloads:
- { uid: safe, name: safe, namespace: shop, workloadIps: [10.0.0.5], protocol: HBONE }
- { uid: plain, name: plain, namespace: shop, workloadIps: [10.0.0.6] }
services:
- name: range
  namespace: shop
  hostname: range.shop
  vips: []
  cidrVips: [{ network: '', cidr: 10.0.0.0/8 }]
  ports: {}
  loadBalancer: { mode: Passthrough, routingPreferences: [] }
";

/// A range is often that of the whole network, and the workloads in it are still who they are.
#[test]
fn what_passes_through_a_range_to_a_workload_goes_as_the_workload_wants() {
    let snapshot = snapshot_of("mesh.yaml", WORLD).expect("a mesh");
    for (dst, uid, want) in [
        ("10.0.0.5:80", Some("safe"), Carriage::Tunnel),
        ("10.0.0.6:80", Some("plain"), Carriage::Plain),
        ("10.0.0.7:80", None, Carriage::Plain),
    ] {
        let dst = OriginalDst::new(dst.parse().expect("address"));
        let question =
            Question { dst, network: "", client_namespace: "shop", source: None, egress: Egress::RegistryOnly };
        let target = resolve(&snapshot, &question, &mut fastrand::Rng::with_seed(1)).expect("a target");
        let Target::Single { workload, service, carriage, .. } = target else { panic!("{target:?}") };
        assert_eq!((workload.as_ref().map(|it| &*it.uid), carriage), (uid, want), "{dst}");
        assert_eq!(service.map(|labels| labels.hostname.to_string()).as_deref(), Some("range.shop"));
    }
}
