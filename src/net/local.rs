//! Which addresses are this network namespace's own.
//!
//! Asked of the kernel by binding a datagram socket to the address, which also answers rightly for whole local ranges
//! (`ip route add local ..`). Where `ip_nonlocal_bind` makes every bind succeed, the route decides instead: a datagram
//! socket connected to one of our own addresses gets that very address as its source. Fails closed for dialling in: an
//! address that cannot be examined counts as not local.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// How long an answer is believed: addresses come and go, and an inbound connection asks every time.
const BELIEVED: Duration = Duration::from_secs(1);
/// How many addresses a cache remembers before it starts over.
const REMEMBERED: usize = 1024;

/// Remembers answers for a second. One per worker; not shared.
#[derive(Debug)]
pub struct LocalAddresses {
    nonlocal_bind: bool,
    known: HashMap<IpAddr, (bool, Instant)>,
}

impl Default for LocalAddresses {
    fn default() -> Self {
        let on = |path| std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0");
        Self {
            nonlocal_bind: on("/proc/sys/net/ipv4/ip_nonlocal_bind") || on("/proc/sys/net/ipv6/ip_nonlocal_bind"),
            known: HashMap::new(),
        }
    }
}

impl LocalAddresses {
    /// Whether `ip` (canonical) is an address of this network namespace. Loopback and unspecified addresses are.
    pub fn contains(&mut self, ip: IpAddr) -> bool {
        if ip.is_loopback() || ip.is_unspecified() {
            return true;
        }
        let now = Instant::now();
        if let Some((answer, at)) = self.known.get(&ip)
            && now.duration_since(*at) < BELIEVED
        {
            return *answer;
        }
        let answer = if self.nonlocal_bind { routes_to_itself(ip) } else { binds(ip) };
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(ip, (answer, now));
        answer
    }
}

fn datagram(ip: IpAddr) -> Option<Socket> {
    let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::DGRAM, None).ok()
}

fn binds(ip: IpAddr) -> bool {
    datagram(ip).is_some_and(|socket| socket.bind(&SocketAddr::new(ip, 0).into()).is_ok())
}

fn routes_to_itself(ip: IpAddr) -> bool {
    // The discard port; nothing is sent by connecting a datagram socket.
    datagram(ip)
        .filter(|socket| socket.connect(&SocketAddr::new(ip, 9).into()).is_ok())
        .and_then(|socket| socket.local_addr().ok()?.as_socket())
        .is_some_and(|local| local.ip() == ip)
}

/// The addresses of this network namespace that others can reach it by: not loopback, not link-local. As the kernel lists
/// them in `/proc`: that needs no route, and no socket of a kind that the kernel may lack.
///
/// # Errors
/// There is no such list.
pub fn addresses() -> std::io::Result<Vec<IpAddr>> {
    let mut found = listed_v4(&std::fs::read_to_string("/proc/thread-self/net/fib_trie")?);
    match std::fs::read_to_string("/proc/thread-self/net/if_inet6") {
        Ok(list) => found.extend(listed_v6(&list)),
        // A kernel without IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    found.retain(|ip| !is_loopback_or_link_local(*ip));
    Ok(found)
}

/// In the routing trie an address is a leaf, `|-- 10.0.0.1`, that is followed by `/32 host LOCAL`; every table has it.
fn listed_v4(trie: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut leaf = None;
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok().map(IpAddr::V4);
        } else if line == "/32 host LOCAL"
            && let Some(ip) = leaf
            && !found.contains(&ip)
        {
            found.push(ip);
        }
    }
    found
}

/// Each line begins with the address in 32 digits.
fn listed_v6(list: &str) -> Vec<IpAddr> {
    let address = |line: &str| u128::from_str_radix(line.split(' ').next()?, 16).ok();
    list.lines().filter_map(address).map(|bits| IpAddr::V6(Ipv6Addr::from(bits))).collect()
}

/// Whether `ip` can only mean this host or its link: loopback, link-local, unspecified.
#[must_use]
pub fn is_loopback_or_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip == Ipv4Addr::BROADCAST,
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip == Ipv6Addr::UNSPECIFIED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_local_and_documentation_ranges_are_not() {
        let mut local = LocalAddresses::default();
        for (ip, want) in [
            ("127.0.0.1", true),
            ("127.200.3.4", true),
            ("::1", true),
            ("0.0.0.0", true),
            ("::", true),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(local.contains(ip.parse().expect("address")), want, "{ip}");
        }
    }

    #[test]
    fn routes_agree_about_foreign_addresses() {
        assert!(!routes_to_itself("192.0.2.1".parse().expect("address")));
    }

    #[test]
    fn addresses_are_read_from_the_kernels_lists() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
            |-- 10.77.0.0\n        /24 link UNICAST\n     |-- 10.77.0.2\n        /32 host LOCAL\n     \
            |-- 10.77.0.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n\
            Local:\n     |-- 10.77.0.2\n        /32 host LOCAL\n";
        assert_eq!(listed_v4(trie), ["10.77.0.2".parse::<IpAddr>().expect("it"), "127.0.0.1".parse().expect("it")]);
        let list = "fd770000000000000000000000000002 02 40 00 80     eth0\n\
            00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(listed_v6(list), ["fd77::2".parse::<IpAddr>().expect("it"), "::1".parse().expect("it")]);
        let mut local = LocalAddresses::default();
        for ip in addresses().expect("this machine's") {
            assert!(local.contains(ip) && !ip.is_loopback(), "{ip}");
        }
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut local = LocalAddresses::default();
        for low in 0..2 * u32::try_from(REMEMBERED).expect("small") {
            local.contains(IpAddr::V4(Ipv4Addr::from(0xc000_0200 + (low << 8))));
        }
        assert!(local.known.len() <= REMEMBERED);
    }
}
