//! Network namespaces, and the hosts and the switch made of them.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{self, Command, Stdio};
use std::{fs, panic, thread};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::door::Family;
use super::isolate::finish;

/// A network namespace without a name; lives as long as this, and as long as anything runs in it.
pub struct Namespace(File);

impl Namespace {
    /// Its loopback is still down.
    fn new() -> Self {
        let thread = thread::spawn(|| {
            #[expect(unsafe_code, reason = "rustix calls unshare unsafe because of CLONE_FILES")]
            // SAFETY: only the network namespace of this short-lived thread changes; the descriptor table stays shared.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("we are root in our user namespace");
            File::open("/proc/thread-self/ns/net").expect("proc")
        });
        Self(thread.join().expect("a new namespace"))
    }

    /// Runs `body` on a thread inside: sockets opened there belong there for ever, whoever uses them.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let inside = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).expect("our own namespace");
                body()
            });
            thread.join()
        });
        inside.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// A program inside. It replaces `nsenter`, so the child's pid is the program's.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// Runs a program inside to its end and returns what it printed; panics if it fails.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        finish(self.command(program).args(arguments))
    }

    /// Runs `ip -batch -`: lines such as `address add 10.0.0.1/32 dev lo`.
    pub fn ip(&self, batch: &str) {
        self.feed("ip", &["-batch", "-"], batch);
    }

    /// Runs `nft -f -`.
    pub fn nft(&self, rules: &str) {
        self.feed("nft", &["-f", "-"], rules);
    }

    /// Sets `/proc/sys/net/{key}`.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/net/{key}");
        self.run(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    }

    fn feed(&self, program: &str, arguments: &[&str], input: &str) {
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("a reader");
        let output = child.wait_with_output().expect("our child");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {said}\n{input}");
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())
    }
}

/// What joins hosts: a bridge in a namespace of its own.
pub struct Switch(Namespace);

impl Switch {
    pub fn new() -> Self {
        let namespace = Namespace::new();
        namespace.ip("link set lo up\nlink add switch type bridge mcast_snooping 0\nlink set switch up\n");
        Self(namespace)
    }
}

/// A namespace with one interface, `eth0`, and one address of each family.
pub struct Host {
    pub name: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    namespace: Namespace,
}

/// Whatever a namespace can do, a host can do.
impl Deref for Host {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Host {
    /// 10.77.0.`number` and fd77::`number` (in hexadecimal), plugged into `switch`. Everything is taken to be on the link.
    pub fn new(name: &str, number: u8, switch: &Switch) -> Self {
        let v4 = Ipv4Addr::new(10, 77, 0, number);
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into());
        let host = Self { name: name.to_owned(), v4, v6, namespace: Namespace::new() };
        switch.0.ip(&format!(
            "link add port-{name} type veth peer name eth0 netns {}\nlink set port-{name} master switch up\n",
            host.path()
        ));
        // Whatever the machine's defaults are, the strictest setting must do.
        for interface in ["all", "default", "lo", "eth0"] {
            host.sysctl(&format!("ipv4/conf/{interface}/rp_filter"), "1");
        }
        host.ip(&format!(
            "link set lo up\naddress add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add 0.0.0.0/0 dev eth0\nroute add ::/0 dev eth0\n"
        ));
        host
    }

    /// This host's address.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Drops every packet that matches `expression` (`tcp dport 8080`), in and out, until [`Self::heal`]: the other side
    /// has vanished. Before conntrack sees it, so that nothing is kept alive.
    pub fn black_hole(&self, expression: &str) {
        self.nft(&format!(
            "table inet kit {{\n\
             chain in {{ type filter hook prerouting priority -500\n {expression} drop\n }}\n\
             chain out {{ type filter hook output priority -500\n {expression} drop\n }}\n }}\n"
        ));
    }

    /// Ends every [`Self::black_hole`] of this host.
    pub fn heal(&self) {
        self.nft("table inet kit\ndelete table inet kit\n");
    }

    /// Makes connection tracking forget every connection, as an expired or overfull table does.
    pub fn forget_connections(&self) {
        self.output("conntrack", &["-F"]);
    }
}
