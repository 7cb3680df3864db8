//! What `user-svc` and `data-svc` share.
//!
//! Start with [`repository`]: cache-aside, written once. Then
//!
//! - what is kept: [`models`], [`schema`], [`migrations`], [`users`];
//! - where: [`database`] (PostgreSQL), [`cache`] (Redis, and the near cache); [`flights`] are loads that are shared,
//!   [`creations`] rows that are inserted together;
//! - the service around it: [`start`], [`config`], [`logging`], [`server`], [`connections`], [`health`], [`docs`],
//!   [`metrics`];
//! - a request's way in and out: [`request`], [`extract`], [`error`].

pub mod cache;
pub mod config;
pub mod connections;
pub mod creations;
pub mod database;
pub mod docs;
pub mod error;
pub mod extract;
pub mod flights;
pub mod health;
pub mod logging;
pub mod metrics;
pub mod migrations;
pub mod models;
pub mod repository;
pub mod request;
#[expect(missing_docs, reason = "printed by the Diesel CLI")]
pub mod schema;
pub mod server;
pub mod start;
pub mod users;
