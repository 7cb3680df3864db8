//! The settings of each part of a service, read.

use std::net::IpAddr;
use std::time::Duration;

use super::{Conninfo, Origins, Secret};

/// How the HTTP server listens and stops.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port of the API.
    pub port: u16,
    /// Address that `/metrics` listens on.
    pub metrics_host: IpAddr,
    /// Port of `/metrics`.
    pub metrics_port: u16,
    /// Worker threads; 0 is one a core.
    pub workers: usize,
    /// Client connections open at once.
    pub max_connections: usize,
    /// The origins whose pages may call the service.
    pub origins: Origins,
    /// How long the service goes on accepting after SIGTERM.
    pub drain_delay: Duration,
    /// How long requests may take to finish after that.
    pub grace_period: Duration,
}

/// How PostgreSQL is used.
#[derive(Debug, Clone)]
pub struct DatabaseSettings {
    /// How to connect to it, password included.
    pub url: Conninfo,
    /// Connections, and database threads.
    pub connections: usize,
    /// What a connection keeps from one transaction to the next.
    pub kept: Kept,
    /// How many queries may wait for a connection.
    pub queue: usize,
    /// How long a request waits for its query, queue included.
    pub timeout: Duration,
    /// How long PostgreSQL works on one statement.
    pub statement_timeout: Duration,
    /// How long a statement waits for a lock.
    pub lock_timeout: Duration,
    /// For how long a look at a grant that this process makes is valid. [`CACHE_GRANT`](super::CACHE_GRANT)
    pub grant_life: Duration,
    /// What is done while PostgreSQL is silent. [`CACHE_WITHOUT_POSTGRES`](super::CACHE_WITHOUT_POSTGRES)
    pub without_postgres: WithoutPostgres,
}

/// What a connection to PostgreSQL keeps from one transaction to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kept {
    /// Its settings and prepared statements: it is a session of the server.
    #[default]
    Session,
    /// Nothing: a pooler may give each transaction to another session, so settings travel with the transaction.
    Nothing,
}

/// What is done with the last grant of the cache while PostgreSQL is silent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WithoutPostgres {
    /// It runs out.
    #[default]
    Stop,
    /// It stays in use.
    GoOn,
}

/// How Redis is used.
#[derive(Debug, Clone)]
pub struct CacheSettings {
    /// Its URL, password included.
    pub url: Secret,
    /// How long one call may take.
    pub timeout: Duration,
    /// How long an entry lives at most.
    pub ttl: Duration,
    /// How long a cached absence lives at most.
    pub absent_ttl: Duration,
    /// How many bytes the near cache holds at most; 0 is none. [`NEAR_CACHE_MIB`](super::NEAR_CACHE_MIB)
    pub near_bytes: u64,
}
