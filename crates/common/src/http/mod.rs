//! A request's way in and out. Nothing here knows a user or a store.
//!
//! [`Service`] listens; `middleware.rs` gives each request an id, a log line and its place in the metrics; [`Body`]
//! reads what was sent; [`Problem`] is what a client sees of an [`Error`](crate::error::Error).

mod access_log;
mod body;
mod connection;
mod cors;
mod description;
mod docs;
mod drain;
mod failure;
mod guard;
pub mod health;
mod idle;
mod middleware;
mod problem;
mod route;
mod server;

pub use self::body::{Body, FromBody, member};
pub use self::description::{ResponseMap, text_header};
pub use self::guard::{Guard, NeedsOf};
pub use self::health::Readiness;
pub use self::middleware::{FastPath, PlainHeaders};
pub use self::problem::{Group, KINDS, Kind, Problem};
pub use self::route::{readable, resource};
pub use self::server::Service;
