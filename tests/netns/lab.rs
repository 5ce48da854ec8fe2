//! Three hosts on one switch.

use super::daemon::Adit;
use super::host::{Host, Switch};

/// `client` 10.77.0.1, `adit` 10.77.0.2, `server` 10.77.0.3 (and `fd77::1` to `3`). Every host takes every address to be on
/// the link, so that anything can be dialled; what nobody has is unreachable.
pub struct Lab {
    pub client: Host,
    pub adit: Host,
    pub server: Host,
    switch: Switch,
}

impl Lab {
    pub fn new() -> Self {
        let switch = Switch::new();
        let host = |name, number| Host::new(name, number, &switch);
        Self { client: host("client", 1), adit: host("adit", 2), server: host("server", 3), switch }
    }

    /// One more host on the switch; numbers from 4.
    pub fn add_host(&self, name: &str, number: u8) -> Host {
        assert!(number > 3, "1 to 3 are client, adit and server");
        Host::new(name, number, &self.switch)
    }

    /// The host called `name`.
    pub fn host(&self, name: &str) -> &Host {
        [&self.client, &self.adit, &self.server]
            .into_iter()
            .find(|host| host.name == name)
            .unwrap_or_else(|| panic!("no host {name}"))
    }

    /// Starts the daemon in host `adit` with these settings and this mesh file (empty: none); returns when it is ready.
    pub fn adit(&self, config: &str, mesh: &str) -> Adit {
        let mut adit = Adit::start(&self.adit, config, mesh);
        adit.wait_ready(&self.adit);
        adit
    }
}
