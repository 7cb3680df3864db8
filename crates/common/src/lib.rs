//! What `user-svc` and `data-svc` share, from the request down to the stores.
//!
//! | module | what it is about |
//! |---|---|
//! | [`http`] | a request's way in and out; knows no user and no store |
//! | [`users`] | the entity: all that knows what a user is |
//! | [`repository`] | the protocol: cache-aside, written once; knows neither users nor HTTP |
//! | [`cache`], [`database`] | Redis and the near cache; PostgreSQL |
//! | [`access`] | who may: API tokens |
//! | [`error`], [`config`], [`metrics`], [`logging`] | what all of them stand on |
//! | [`start`] | from the command line to a running service |
//!
//! Start with [`repository`]. docs/architecture.md walks a request through the files.

pub mod access;
pub mod cache;
pub mod config;
pub mod database;
pub mod error;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod repository;
pub mod start;
pub mod users;
