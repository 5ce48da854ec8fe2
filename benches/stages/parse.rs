//! Parse: what peers and clients send, and the files.

use std::hint::black_box;
use std::net::SocketAddr;
use std::path::PathBuf;

use adit::config::sources::BuiltIn;
use adit::config::{self, Sources};
use adit::hbone::request;
use adit::mesh;
use adit::proxy::proxy_header::{self, Parsed};
use adit::proxy::socks5::request::parse_request;
use anyhow::{Context, Result};
use http::{Method, Request};

use crate::Operation;

/// As a workload of a cluster describes itself.
const BAGGAGE: &str = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,\
    service.name=cart,service.version=v1,cloud.region=europe-west,cloud.availability_zone=europe-west-b";
const FORWARDED: &str = "for=\"10.0.0.9:43210\";host=stock.shop.svc.cluster.local";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// One entry with everything that a controller says of a pod.
const WORKLOAD: &str = "\
workloads:
  - uid: Kubernetes//Pod/shop/cart-5f9c7d8b6-x2k4z
    name: cart-5f9c7d8b6-x2k4z
    namespace: shop
    serviceAccount: cart
    workloadIps: [10.0.0.9]
    protocol: HBONE
    status: Healthy
    node: node-7
    clusterId: Kubernetes
    workloadName: cart
    workloadType: deployment
    canonicalName: cart
    canonicalRevision: v1
    locality: { region: europe-west, zone: europe-west-b, subzone: rack-1 }
    capacity: 2
    services:
      shop/cart.shop.svc.cluster.local: { 80: 8080, 443: 8443 }
    authorizationPolicies: [shop/allow-frontend]
";

/// The request of a stream, and all that its headers claim.
pub(crate) fn connect() -> Result<Operation> {
    let built = Request::builder().method(Method::CONNECT).uri("10.0.0.1:8080");
    let headers = [("baggage", BAGGAGE), ("forwarded", FORWARDED), ("traceparent", TRACEPARENT)];
    let built = headers.into_iter().fold(built, |built, (name, value)| built.header(name, value));
    let (parts, ()) = built.body(()).context("a request")?.into_parts();
    Ok(Box::new(move |_| {
        let Ok(connect) = black_box(request::read(black_box(&parts))) else { return false };
        let claims = connect.claims;
        let said = black_box((claims.peer(), claims.forwarded_host(), claims.trace(), claims.network()));
        matches!(said, (Some(_), Some(_), Some(_), None))
    }))
}

pub(crate) fn proxy_v1() -> Result<Operation> {
    let header = |(source, target)| proxy_header::proxy_v1(source, target);
    header_of(ends()?.map(header))
}

/// With an identity, as ztunnel sends it.
pub(crate) fn proxy_v2() -> Result<Operation> {
    let header = |(source, target)| proxy_header::proxy_v2(source, target, Some(IDENTITY));
    header_of(ends()?.map(header))
}

/// IPv4 and IPv6.
fn ends() -> Result<[(SocketAddr, SocketAddr); 2]> {
    let pair = |source: &str, target: &str| anyhow::Ok((source.parse()?, target.parse()?));
    Ok([pair("10.0.0.9:43210", "10.0.0.1:8080")?, pair("[2001:db8::9]:43210", "[2001:db8::1]:8080")?])
}

fn header_of(headers: [Vec<u8>; 2]) -> Result<Operation> {
    alternately(headers, |bytes| {
        let parsed = black_box(proxy_header::parse(black_box(bytes)));
        matches!(parsed, Ok(Parsed::Header { length, source: Some(_) }) if length == bytes.len())
    })
}

/// To an address and to a name.
pub(crate) fn socks5() -> Result<Operation> {
    let name = b"stock.shop.svc.cluster.local";
    let to_name = [&[5, 1, 0, 3, u8::try_from(name.len())?], &name[..], &[0x1f, 0x90]].concat();
    alternately([vec![5, 1, 0, 1, 10, 0, 0, 1, 0x1f, 0x90], to_name], |bytes| {
        let parsed = black_box(parse_request(black_box(bytes)));
        matches!(parsed, Ok(Some((_, length))) if length == bytes.len())
    })
}

fn alternately(messages: [Vec<u8>; 2], ends_well: fn(&[u8]) -> bool) -> Result<Operation> {
    Ok(Box::new(move |round| messages.get(round % 2).is_some_and(|message| ends_well(message))))
}

/// One workload's file, and the state that it makes.
pub(crate) fn mesh() -> Result<Operation> {
    Ok(Box::new(|_| {
        let snapshot = black_box(mesh::snapshot_of("parse", black_box(WORKLOAD)));
        snapshot.is_ok_and(|snapshot| snapshot.workload_count() == 1)
    }))
}

/// The file with all settings.
pub(crate) fn config() -> Result<Operation> {
    let text = include_str!("../../config/adit.yaml");
    let built_in = Some(BuiltIn { name: "config/adit.yaml", text, base: PathBuf::from("/") });
    let sources = Sources { built_in, ..Sources::default() };
    Ok(Box::new(move |_| black_box(config::load(black_box(&sources))).is_ok()))
}
