//! Whether a value is in a list of a match, in logarithmic time: lists are sorted, and what another item already covers
//! is left out, so that at most one item can be the one.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{ServiceAccount, StringMatch};

/// Texts by how they match.
#[derive(Debug)]
pub(super) struct Texts {
    exact: Box<[Arc<str>]>,
    /// None begins with another.
    prefixes: Box<[Arc<str>]>,
    /// None ends with another; ordered from their ends.
    suffixes: Box<[Arc<str>]>,
    presence: bool,
}

impl Texts {
    pub(super) fn of(list: &[StringMatch]) -> Self {
        let (mut exact, mut prefixes, mut suffixes, mut presence) = (Vec::new(), Vec::new(), Vec::new(), false);
        for item in list {
            match item {
                StringMatch::Exact(text) => exact.push(Arc::clone(text)),
                StringMatch::Prefix(text) => prefixes.push(Arc::clone(text)),
                StringMatch::Suffix(text) => suffixes.push(Arc::clone(text)),
                StringMatch::Presence => presence = true,
            }
        }
        exact.sort_unstable();
        exact.dedup();
        prefixes.sort_unstable();
        prefixes.dedup_by(|longer, shorter| longer.starts_with(&**shorter));
        suffixes.sort_unstable_by(|a, b| from_the_end(a, b));
        suffixes.dedup_by(|longer, shorter| longer.ends_with(&**shorter));
        Self { exact: exact.into(), prefixes: prefixes.into(), suffixes: suffixes.into(), presence }
    }

    pub(super) fn has(&self, text: &str) -> bool {
        // What lies between a prefix of the text and the text begins with that prefix too, and is therefore not listed.
        let prefix = last(&self.prefixes, |prefix| **prefix <= *text);
        let suffix = last(&self.suffixes, |suffix| from_the_end(suffix, text) != Ordering::Greater);
        (self.presence && !text.is_empty())
            || self.exact.binary_search_by(|exact| (**exact).cmp(text)).is_ok()
            || prefix.is_some_and(|prefix| text.starts_with(&**prefix))
            || suffix.is_some_and(|suffix| text.ends_with(&**suffix))
    }
}

/// The last item of those that come first.
fn last<T>(sorted: &[T], comes_first: impl Fn(&T) -> bool) -> Option<&T> {
    sorted.get(sorted.partition_point(comes_first).checked_sub(1)?)
}

fn from_the_end(a: &str, b: &str) -> Ordering {
    a.bytes().rev().cmp(b.bytes().rev())
}

/// Addresses, as ranges that do not overlap.
#[derive(Debug)]
pub(super) struct Ranges {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Ranges {
    pub(super) fn of(list: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in list {
            match net {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        Self { v4: disjoint(v4), v6: disjoint(v6) }
    }

    pub(super) fn has(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => within(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => within(&self.v6, ip.to_bits()),
        }
    }
}

/// Of two ranges of addresses one contains the other, or they share nothing.
fn disjoint<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable_by(|(start, end), (other, other_end)| start.cmp(other).then(other_end.cmp(end)));
    ranges.dedup_by(|(_, inner), (_, outer)| *inner <= *outer);
    ranges.into()
}

fn within<T: Ord + Copy>(ranges: &[(T, T)], value: T) -> bool {
    last(ranges, |(start, _)| *start <= value).is_some_and(|(_, end)| value <= *end)
}

#[derive(Debug)]
pub(super) struct Accounts(Box<[ServiceAccount]>);

impl Accounts {
    pub(super) fn of(list: &[ServiceAccount]) -> Self {
        Self(sorted(list))
    }

    pub(super) fn has(&self, (namespace, name): (&str, &str)) -> bool {
        let order = |it: &ServiceAccount| (&*it.namespace, &*it.name).cmp(&(namespace, name));
        self.0.binary_search_by(order).is_ok()
    }
}

#[derive(Debug)]
pub(super) struct Ports(Box<[u16]>);

impl Ports {
    pub(super) fn of(list: &[u16]) -> Self {
        Self(sorted(list))
    }

    pub(super) fn has(&self, port: u16) -> bool {
        self.0.binary_search(&port).is_ok()
    }
}

fn sorted<T: Ord + Clone>(list: &[T]) -> Box<[T]> {
    let mut list = list.to_vec();
    list.sort_unstable();
    list.dedup();
    list.into()
}
