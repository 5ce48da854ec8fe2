//! The test kit: hosts in network namespaces of their own, joined by a switch, and a real adit in one of them.
//!
//! ```text
//! #[test]
//! fn something_holds() {
//!     kit::isolated(|| {
//!         let lab = kit::Lab::new();                        // hosts `client`, `adit` and `server`
//!         let adit = lab.adit("capture: redirect", "");     // the daemon, in host `adit`
//!         lab.client.run(|| ...);                           // a closure inside a host
//!         lab.server.command("curl");                       // a program inside a host
//!         adit.stop();                                      // drains, checks exit code and log
//!     });
//! }
//! ```
//!
//! [`isolated`] runs the body in a process of its own, in fresh user, network and mount namespaces, with a time limit;
//! whatever it leaves behind is killed. Where the kernel refuses such namespaces the test fails, loudly, unless
//! `ADIT_NETNS_TESTS=skip` is set. Needs `unshare` and `nsenter` (util-linux), `ip` (iproute2), and what a test calls.

pub mod daemon;
pub mod door;
pub mod host;
pub mod isolate;
pub mod lab;
pub mod wait;

pub use daemon::Adit;
pub use door::{Door, Family};
pub use host::Host;
pub use isolate::{isolated, isolated_as_root, isolated_in_cgroup, isolated_within};
pub use lab::Lab;
pub use wait::{LIMIT, until};
