//! Private Postgres and Redis servers, and both services beside them, on free ports and with data of their own.
//!
//! Tests and benchmarks use it as a library; `make up` uses the binary where no Docker engine answers.
//! Nothing here touches a server that it did not start. As in any test code, what goes wrong panics with the
//! server's log; only [`native`], which talks to people, returns errors.
//!
//! | module | what it has |
//! |---|---|
//! | [`stack`] | **start here**: a fresh database and Redis key space for one test, and the services on them |
//! | [`service`] | one running `user-svc` or `data-svc`: its address, log, signals and end |
//! | [`http`] | requests as a client sends them, and bytes as no client would |
//! | [`postgres`], [`redis`] | the servers: start, freeze, kill, restart |
//! | [`proxy`] | a TCP proxy that cuts, delays, stalls, garbles, and holds a single message |
//! | [`certificates`] | a certificate authority and a certificate for 127.0.0.1 |
//! | [`guard`] | how a server is sure to end when the test does, however the test ends |
//! | [`native`] | `devstack up`, `down`, `status`, `logs`, `reset` |
//!
//! ```no_run
//! let stack = devstack::Stack::shared();
//! let users = stack.user_svc().start();
//! let json = [("content-type", "application/json")];
//! let answer = devstack::http::send("POST", &users.url_of("/register"), &json, "{}");
//! assert_eq!(answer.status, 400);
//! ```

pub mod certificates;
pub mod guard;
pub mod http;
pub mod log;
pub mod native;
pub mod postgres;
mod process;
mod programs;
pub mod proxy;
pub mod redis;
mod scratch;
pub mod service;
pub mod stack;

pub use certificates::Certificates;
pub use postgres::Postgres;
pub use process::free_port;
pub use proxy::{Direction, Proxy};
pub use redis::Redis;
pub use rustix::process::Signal;
pub use service::{Service, ServiceBuilder};
pub use stack::{Stack, Stores};
