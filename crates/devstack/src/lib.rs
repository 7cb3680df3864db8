//! Private Postgres and Redis servers, and both services on them, with free ports and data of their own.
//!
//! `make up` uses the binary where no Docker engine answers; tests and benchmarks use the library. Nothing here touches a
//! server that it did not start. As in any test code, a failure panics with the server's log. Only `native`, whose messages
//! people read, returns errors.
//!
//! | module | contents |
//! |---|---|
//! | `native` | `devstack up`, `down`, `status`, `logs`, `reset` |
//! | `http` | requests as a client sends them, and bytes that no client would send |
//! | `stack` | **start here**: a fresh database and Redis key space for one test, and the services on them |
//! | `service` | one running `user-svc` or `data-svc`: its address, log, signals and end |
//! | `postgres`, `redis` | the servers: start, freeze, kill, restart |
//! | `proxy` | a TCP proxy that cuts, delays, stalls, garbles, and holds a single message |
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

pub mod certificates;
pub mod log;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod service;
pub mod stack;
pub mod supervise;
mod tempdir;

pub use process::free_port;
pub use rustix::process::Signal;

pub use {
    certificates::Certificates,
    postgres::Postgres,
    proxy::{Direction, Proxy},
    redis::Redis,
    service::{Service, ServiceBuilder},
    stack::{Stack, Stores},
};
