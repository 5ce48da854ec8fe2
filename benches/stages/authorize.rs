//! Authorize, with no policy, one, and 1,000 of the kinds that clusters have: by account, by name's beginning, by address, by port.

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use adit::config::settings::OnMissing;
use adit::identity::SpiffeId;
use adit::mesh::{self, PolicyView};
use adit::proxy::authorize::{Decision, Denial, Subject, Verdict, authorize};
use anyhow::{Context, Result};

use crate::Operation;

const MANY: usize = 1000;
const CLIENT: &str = "cluster.local/ns/shop/sa/cart";
const DESTINATION: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// The destination has none.
pub(crate) fn none() -> Result<Operation> {
    judging("[]", |verdict| *verdict == Verdict::Allowed { by: None })
}

pub(crate) fn one() -> Result<Operation> {
    let text = format!("\n{}", policy("it", "Allow", &format!("principals: [!Exact {CLIENT}]")));
    judging(&text, |verdict| matches!(verdict, Verdict::Allowed { by: Some(_) }))
}

/// The last of 1,001 by name allows.
pub(crate) fn late() -> Result<Operation> {
    let text = many()? + &policy("z", "Allow", &format!("principals: [!Exact {CLIENT}]"));
    judging(&text, |verdict| matches!(verdict, Verdict::Allowed { by: Some(policy) } if policy.name() == "z"))
}

/// None of 1,000 allows.
pub(crate) fn nobody() -> Result<Operation> {
    judging(&many()?, |verdict| *verdict == Verdict::Denied(Denial::NotAllowed))
}

/// One denies beside 1,000 that allow.
pub(crate) fn deny() -> Result<Operation> {
    let text = many()? + &policy("z", "Deny", "namespaces: [!Exact shop]");
    judging(&text, |verdict| matches!(verdict, Verdict::Denied(Denial::Explicit(_))))
}

fn judging(policies: &str, as_it_should: fn(&Verdict) -> bool) -> Result<Operation> {
    let view = view(policies)?;
    let identity: SpiffeId = format!("spiffe://{CLIENT}").parse().context("an identity")?;
    Ok(Box::new(move |_| {
        let source = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
        let subject = Subject { identity: Some(&identity), source, destination: DESTINATION, port: 80 };
        let Decision { verdict, .. } = black_box(authorize(&view, black_box(&subject), OnMissing::Deny));
        as_it_should(&verdict)
    }))
}

fn view(policies: &str) -> Result<PolicyView> {
    let text =
        format!("workloads:\n- {{name: db, namespace: shop, workloadIps: [{DESTINATION}]}}\npolicies: {policies}");
    let snapshot = mesh::snapshot_of("authorize", &text).map_err(|problems| anyhow::anyhow!("{problems}"))?;
    let workload = snapshot.workload("", DESTINATION).context("the workload")?;
    Ok(snapshot.policies_for(workload))
}

/// None of them matches; each is nearly one that does.
fn many() -> Result<String> {
    let mut text = "\n".to_owned();
    for number in 0..MANY {
        let condition = match number % 4 {
            0 => format!("principals: [!Exact {CLIENT}-{number}]"),
            1 => format!("principals: [!Prefix cluster.local/ns/shop/sa/c-{number}]"),
            2 => format!("sourceIps: [10.{}.{}.0/24]", 1 + number / 256, number % 256),
            _ => format!("namespaces: [!Exact shop], destinationPorts: [{}]", 1000 + number),
        };
        write!(text, "{}", policy(&format!("p-{number:04}"), "Allow", &condition))?;
    }
    Ok(text)
}

fn policy(name: &str, action: &str, condition: &str) -> String {
    format!("- {{name: {name}, namespace: shop, scope: Namespace, action: {action}, rules: [[[{{{condition}}}]]]}}\n")
}
