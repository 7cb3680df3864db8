//! Private Postgres and Redis servers, and both services on them, with free ports and data of their own.
//!
//! `make up` uses the binary where no Docker engine answers. Tests and benchmarks use the library with the feature
//! `testing`, without which `make up` compiles nothing that it does not need. Nothing here touches a server that it did
//! not start. As in any test code, a failure panics with the server's log. Only `native`, whose messages people read,
//! returns errors.
//!
//! | module | contents |
//! |---|---|
//! | `native` | `devstack up`, `down`, `status`, `logs`, `reset` |
//! | `http` | requests as a client sends them, and bytes that no client would send |
//! | | **with the feature `testing`:** |
//! | `stack` | **start here**: a fresh database and Redis key space for one test, and the services on them |
//! | `service` | one running `user-svc` or `data-svc`: its address, log, signals and end |
//! | `testing` | what tests of both services do: register, read, wait for a condition |
//! | `postgres`, `redis` | the servers: start, freeze, kill, restart, replicate and fail over, bring the past back |
//! | `haproxy` | HAProxy in front of replicas, or of a Redis and its replica, as deploy/haproxy has it |
//! | `pgbouncer` | a pooler before Postgres that gives each transaction another session |
//! | `proxy` | a TCP proxy that cuts, delays, stalls, garbles, holds a single message, and moves to another server |
//! | `certificates` | a certificate authority and a certificate for 127.0.0.1 |
//! | `supervise` | how a server is sure to end when the test ends, in whatever way that ends |
//!
//! ```no_run
//! let stack = devstack::Stack::shared();
//! let users = stack.user_svc().start();
//! let json = [("content-type", "application/json")];
//! let answer = devstack::http::send("POST", &users.url_of("/register"), &json, "{}");
//! assert_eq!(answer.status, 400);
//! ```

mod commands;
pub mod http;
pub mod native;
mod process;
mod programs;

#[cfg(feature = "testing")]
pub mod certificates;
#[cfg(feature = "testing")]
pub mod haproxy;
#[cfg(feature = "testing")]
mod installed;
#[cfg(feature = "testing")]
pub mod log;
#[cfg(feature = "testing")]
pub mod pgbouncer;
#[cfg(feature = "testing")]
pub mod postgres;
#[cfg(feature = "testing")]
pub mod proxy;
#[cfg(feature = "testing")]
pub mod redis;
#[cfg(feature = "testing")]
pub mod service;
#[cfg(feature = "testing")]
pub mod stack;
#[cfg(feature = "testing")]
pub mod supervise;
#[cfg(feature = "testing")]
mod tempdir;
#[cfg(feature = "testing")]
pub mod testing;

pub use process::free_port;
pub use rustix::process::Signal;

#[cfg(feature = "testing")]
pub use {
    certificates::Certificates,
    haproxy::Haproxy,
    installed::Installed,
    pgbouncer::PgBouncer,
    postgres::Postgres,
    proxy::{Direction, Proxy},
    redis::Redis,
    service::{Service, ServiceBuilder},
    stack::{Stack, Stores},
    tempdir::TempDir,
};
