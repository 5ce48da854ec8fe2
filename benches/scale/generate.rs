//! Large meshes on disk: workloads, services and policies in the local file format, in files of at most 1 MiB.
//!
//! In: a folder, sizes, a seed. Out: files whose bytes depend on these alone, so that two runs measure the same mesh.
//! The shape is that of a cluster: a namespace per 25 services, 100 pods on a node, nodes in four localities, most pods
//! speak HBONE, a service has `workloads / services` endpoints and a few pods belong to a second one. Of 1,000 policies one is
//! global and 50 are for a namespace; the others are named by the pods of one service.
//!
//! Whatever the file system refuses is the caller's error; a folder may then hold part of a mesh.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// No file is longer.
pub(crate) const FILE_BYTES: usize = 1024 * 1024;

const SERVICES_PER_NAMESPACE: usize = 25;
const PODS_PER_NODE: usize = 100;
const TRADES: [&str; 16] = [
    "cart", "catalog", "checkout", "currency", "email", "fraud", "gateway", "invoice", "ledger", "login", "orders",
    "payment", "pricing", "search", "shipping", "stock",
];
const LOCALITIES: [(&str, &str, &str); 4] = [
    ("europe-west", "europe-west-a", "rack-1"),
    ("europe-west", "europe-west-a", "rack-2"),
    ("europe-west", "europe-west-b", "rack-1"),
    ("europe-north", "europe-north-a", "rack-1"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) workloads: usize,
    pub(crate) services: usize,
    pub(crate) policies: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Generated {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// Bytes of the longest file.
    pub(crate) largest: u64,
}

/// What [`change_one`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) file: PathBuf,
    pub(crate) uid: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Global,
    Namespace,
    Workloads,
}

/// Writes a mesh into the folder, which must exist and should be empty.
pub(crate) fn generate(folder: &Path, size: Size, seed: u64) -> io::Result<Generated> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut generated = Generated::default();
    let mut section = Section::new(folder, "workloads");
    for index in 0..size.workloads {
        section.push(&workload(index, size, &mut random))?;
    }
    generated.add(section.finish()?);
    let mut section = Section::new(folder, "services");
    for index in 0..size.services {
        section.push(&service(index))?;
    }
    generated.add(section.finish()?);
    let mut section = Section::new(folder, "policies");
    for index in 0..size.policies {
        section.push(&policy(index, size, &mut random))?;
    }
    generated.add(section.finish()?);
    Ok(generated)
}

/// Gives the workload of that index, in the order of the files, another weight: its file is replaced by renaming over it.
pub(crate) fn change_one(folder: &Path, workload: usize, capacity: u32) -> io::Result<Changed> {
    const ENTRY: &str = "  - uid: ";
    let mut before = 0;
    for number in 0.. {
        let file = folder.join(file_name("workloads", number));
        let text = fs::read_to_string(&file)?;
        let entries = text.matches(ENTRY).count();
        if before + entries <= workload {
            before += entries;
            continue;
        }
        let mut out = String::with_capacity(text.len() + 16);
        let mut uid = String::new();
        let mut seen = before;
        for line in text.lines() {
            if let Some(found) = line.strip_prefix(ENTRY) {
                seen += 1;
                if seen == workload + 1 {
                    found.clone_into(&mut uid);
                }
            }
            if seen == workload + 1 && line.starts_with("    capacity: ") {
                push(&mut out, format_args!("    capacity: {capacity}"));
            } else {
                push(&mut out, format_args!("{line}"));
            }
        }
        let whole = file.with_extension("new");
        fs::write(&whole, out)?;
        fs::rename(&whole, &file)?;
        return Ok(Changed { file, uid });
    }
    Err(io::ErrorKind::NotFound.into())
}

/// `(network-less) address` of a workload, such as one to resolve.
pub(crate) fn workload_address(index: usize) -> Ipv4Addr {
    address(Ipv4Addr::new(10, 0, 0, 0), index)
}

/// The virtual address of a service.
pub(crate) fn service_address(index: usize) -> Ipv4Addr {
    address(Ipv4Addr::new(172, 16, 0, 0), index)
}

fn address(base: Ipv4Addr, index: usize) -> Ipv4Addr {
    let offset = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
    Ipv4Addr::from(u32::from(base).saturating_add(offset))
}

fn namespace(service: usize) -> String {
    format!("team-{}", service / SERVICES_PER_NAMESPACE)
}

fn service_name(service: usize) -> String {
    let trade = TRADES.get(service % TRADES.len()).copied().unwrap_or_default();
    format!("{trade}-{service}")
}

fn hostname(service: usize) -> String {
    format!("{}.{}.svc.cluster.local", service_name(service), namespace(service))
}

fn principal(service: usize) -> String {
    format!("cluster.local/ns/{}/sa/{}", namespace(service), service_name(service))
}

/// As a controller names them: five letters and digits that mean nothing.
fn suffix(random: &mut fastrand::Rng) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5).filter_map(|_| random.choice(LETTERS).map(|letter| char::from(*letter))).collect()
}

fn workload(index: usize, size: Size, random: &mut fastrand::Rng) -> String {
    let services = size.services.max(1);
    let own = index % services;
    let (name, namespace) = (service_name(own), namespace(own));
    // The index keeps names apart; the rest is as controllers make it.
    let pod = format!("{name}-{:09x}-{}", 0x1_0000_0000_u64 + index as u64, suffix(random));
    let node = index / PODS_PER_NODE;
    let (region, zone, subzone) = LOCALITIES.get(node % LOCALITIES.len()).copied().unwrap_or_default();
    let protocol = if random.u8(..100) < 90 { "HBONE" } else { "TCP" };
    let status = if random.u8(..100) < 2 { "Unhealthy" } else { "Healthy" };
    let mut entry = String::with_capacity(800);
    let lines = [
        format!("  - uid: Kubernetes//Pod/{namespace}/{pod}"),
        format!("    name: {pod}"),
        format!("    namespace: {namespace}"),
        format!("    serviceAccount: {name}"),
        format!("    workloadIps: [{}]", workload_address(index)),
        format!("    protocol: {protocol}"),
        format!("    status: {status}"),
        format!("    node: node-{node}"),
        "    clusterId: Kubernetes".to_owned(),
        format!("    workloadName: {name}"),
        "    workloadType: deployment".to_owned(),
        format!("    canonicalName: {name}"),
        "    canonicalRevision: v1".to_owned(),
        format!("    locality: {{ region: {region}, zone: {zone}, subzone: {subzone} }}"),
        format!("    capacity: {}", random.u32(1..=4)),
        "    services:".to_owned(),
        format!("      {namespace}/{}: {{ 80: 8080, 443: 8443 }}", hostname(own)),
    ];
    for line in lines {
        push(&mut entry, format_args!("{line}"));
    }
    if size.services > 1 && random.u8(..100) < 2 {
        let other = (own + 1) % services;
        let (namespace, host) = (self::namespace(other), hostname(other));
        push(&mut entry, format_args!("      {namespace}/{host}: {{ 80: 9090 }}"));
    }
    let selected: Vec<String> = (own..size.policies)
        .step_by(services)
        .filter(|policy| scope(*policy) == Scope::Workloads)
        .map(|policy| format!("{namespace}/{}", policy_name(policy)))
        .collect();
    if !selected.is_empty() {
        push(&mut entry, format_args!("    authorizationPolicies: [{}]", selected.join(", ")));
    }
    entry
}

fn service(index: usize) -> String {
    let mut entry = String::with_capacity(400);
    let lines = [
        format!("  - name: {}", service_name(index)),
        format!("    namespace: {}", namespace(index)),
        format!("    hostname: {}", hostname(index)),
        format!("    vips: [/{}]", service_address(index)),
        "    ports: { 80: 8080, 443: 8443 }".to_owned(),
        format!("    subjectAltNames: [spiffe://{}]", principal(index)),
    ];
    for line in lines {
        push(&mut entry, format_args!("{line}"));
    }
    if index.is_multiple_of(4) {
        let scopes = "[Region, Zone, Subzone]";
        push(
            &mut entry,
            format_args!(
                "    loadBalancer: {{ routingPreferences: {scopes}, mode: Failover, healthPolicy: OnlyHealthy }}"
            ),
        );
    }
    entry
}

fn scope(policy: usize) -> Scope {
    match policy % 1000 {
        0 => Scope::Global,
        other if other % 20 == 1 => Scope::Namespace,
        _ => Scope::Workloads,
    }
}

fn policy_name(policy: usize) -> String {
    format!("rule-{policy}")
}

/// A policy for the service that its index falls on; what it says is drawn.
fn policy(index: usize, size: Size, random: &mut fastrand::Rng) -> String {
    let services = size.services.max(1);
    let own = index % services;
    let (scope, namespace) = match scope(index) {
        Scope::Global => ("Global", "istio-system".to_owned()),
        Scope::Namespace => ("Namespace", namespace(own)),
        Scope::Workloads => ("WorkloadSelector", namespace(own)),
    };
    let denies = scope == "Global" || random.u8(..100) < 20;
    let mut entry = String::with_capacity(600);
    let lines = [
        format!("  - name: {}", policy_name(index)),
        format!("    namespace: {namespace}"),
        format!("    scope: {scope}"),
        format!("    action: {}", if denies { "Deny" } else { "Allow" }),
        format!("    dryRun: {}", random.u8(..100) < 5),
        "    rules:".to_owned(),
    ];
    for line in lines {
        push(&mut entry, format_args!("{line}"));
    }
    if denies {
        // What nobody asks for here: so that a mesh of this kind still carries something.
        push(&mut entry, format_args!("      - - - sourceIps: [192.0.2.{}/32, 2001:db8::/32]", index % 256));
        push(&mut entry, format_args!("        - - destinationPorts: [{}, 22]", 9000 + index % 100));
    } else {
        allow(&mut entry, services, random);
    }
    entry
}

fn allow(entry: &mut String, services: usize, random: &mut fastrand::Rng) {
    let friends: Vec<usize> = (0..random.usize(1..=8)).map(|_| random.usize(..services)).collect();
    let exact: Vec<String> = friends.iter().map(|friend| format!("!Exact {}", principal(*friend))).collect();
    push(entry, format_args!("      - - - principals: [{}]", exact.join(", ")));
    push(entry, format_args!("          - namespaces: [!Exact {}, !Prefix ops-]", namespace(random.usize(..services))));
    push(entry, format_args!("        - - destinationPorts: [8080, 8443]"));
    if random.bool() {
        let range = random.u8(..);
        push(entry, format_args!("      - - - sourceIps: [10.{range}.0.0/16]"));
        push(entry, format_args!("            notSourceIps: [10.{range}.7.0/24]"));
        push(entry, format_args!("            notNamespaces: [!Suffix -untrusted]"));
    }
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

fn file_name(section: &str, number: usize) -> String {
    format!("{section}-{number:04}.yaml")
}

/// One list of the format, cut into files between two entries.
struct Section<'a> {
    folder: &'a Path,
    name: &'static str,
    text: String,
    written: Generated,
}

impl<'a> Section<'a> {
    fn new(folder: &'a Path, name: &'static str) -> Self {
        Self { folder, name, text: String::new(), written: Generated::default() }
    }

    fn push(&mut self, entry: &str) -> io::Result<()> {
        if self.text.len() + entry.len() > FILE_BYTES {
            self.flush()?;
        }
        if self.text.is_empty() {
            self.text = format!("{}:\n", self.name);
        }
        self.text.push_str(entry);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = self.text.len() as u64;
        fs::write(self.folder.join(file_name(self.name, self.written.files)), std::mem::take(&mut self.text))?;
        self.written.add(Generated { files: 1, bytes, largest: bytes });
        Ok(())
    }

    fn finish(mut self) -> io::Result<Generated> {
        if !self.text.is_empty() {
            self.flush()?;
        }
        Ok(self.written)
    }
}

impl Generated {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.largest = self.largest.max(other.largest);
    }
}
