//! What a policy is asked about: one connection, as policies see it.

use std::net::IpAddr;

use crate::identity::SpiffeId;

/// A connection to be judged.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Of the peer, verified; nothing in the clear.
    pub identity: Option<&'a SpiffeId>,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The port that the client addressed, a service's already mapped; never an application tunnel's own.
    pub port: u16,
}

/// A [`Subject`], taken apart once for all the rules that are asked.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The identity without `spiffe://`.
    pub(super) principal: Option<&'a str>,
    /// "" without an identity, or with one that is not of Istio's form.
    pub(super) namespace: &'a str,
    /// (namespace, service account) of an identity of Istio's form.
    pub(super) account: Option<(&'a str, &'a str)>,
    /// `ns/NAMESPACE/sa/ACCOUNT` of such an identity.
    pub(super) account_path: Option<&'a str>,
    /// Canonical, as are all addresses of the state.
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
}

impl<'a> Facts<'a> {
    #[must_use]
    pub fn of(subject: &Subject<'a>) -> Self {
        let istio = subject.identity.and_then(SpiffeId::istio);
        Self {
            principal: subject.identity.map(SpiffeId::principal),
            namespace: istio.map_or("", |name| name.namespace),
            account: istio.map(|name| (name.namespace, name.service_account)),
            account_path: subject.identity.filter(|_| istio.is_some()).map(SpiffeId::path),
            source: subject.source.to_canonical(),
            destination: subject.destination.to_canonical(),
            port: subject.port,
        }
    }
}
