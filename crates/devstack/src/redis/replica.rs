//! Replication: a server that follows another, is promoted and demoted, and may miss writes.

use super::{Redis, TIMEOUT};
use crate::process::until;
use crate::proxy::Proxy;

impl Redis {
    /// Starts a server with the primary's configuration that follows the primary. Returns when it holds the same data.
    pub fn replica_of(primary: &Redis) -> Redis {
        let arguments: Vec<&str> = primary.arguments.iter().map(String::as_str).collect();
        let mut replica = Redis::prepare(&arguments);
        replica.base = primary.base;
        let replica = replica.launch();
        replica.follow(primary);
        replica
    }

    /// Demotes the server to a replica of `primary`, in place of the one that it followed before. Returns when it holds
    /// the same data. Connections of clients stay open. Panics if `primary` has a password or accepts only TLS.
    pub fn follow(&self, primary: &Redis) {
        assert!(
            primary.password.is_none() && primary.authority.is_none(),
            "a replica sends no password, no TLS"
        );
        // Otherwise the first synchronization waits 5 s for further replicas.
        primary.cli(0, &["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
        let link = Proxy::start(("127.0.0.1", primary.port));
        self.cli(0, &["REPLICAOF", "127.0.0.1", &link.port().to_string()]);
        *self.link.lock() = Some(link);
        self.wait_for_link("up");
    }

    /// Cuts a replica from its primary: it answers clients as before, and misses all writes from now on. Returns when the
    /// replica knows.
    pub fn detach(&self) {
        self.link.lock().as_ref().expect("a replica").cut();
        self.wait_for_link("down");
    }

    /// Lets a replica reach its primary again after [`Redis::detach`]. Returns when it holds the same data.
    pub fn attach(&self) {
        self.link.lock().as_ref().expect("a replica").restore();
        self.wait_for_link("up");
    }

    /// Makes a replica a primary, which follows nobody. Connections of clients stay open.
    pub fn promote(&self) {
        assert_eq!(self.cli(0, &["REPLICAOF", "NO", "ONE"]), "OK");
        *self.link.lock() = None;
    }

    /// A field of `INFO`, such as `run_id` or `master_replid`. Panics if there is none.
    pub fn info(&self, field: &str) -> String {
        let text = self.cli(0, &["INFO"]);
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("{field} is not in\n{text}")).trim().to_owned()
    }

    fn wait_for_link(&self, status: &str) {
        let reached = until(TIMEOUT, || self.info("master_link_status") == status);
        assert!(reached, "the link to the primary is not {status}:\n{}", self.log());
    }
}
