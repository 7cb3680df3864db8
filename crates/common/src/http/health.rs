//! `/livez`, `/readyz`, `/version`, and the `health` sub-command that asks the second.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use actix_web::web::{Data, Json, ServiceConfig};
use serde::Serialize;
use utoipa::ToSchema;

use super::drain::Draining;
use super::problem::Problem;
use super::route::readable;
use crate::config::HttpSettings;
use crate::error::{CommandResult, Error};
use crate::metrics::REVISION;

/// Tells whether the service can do its work now, else why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), &'static str> + Send + Sync>;

/// What the health routes answer from.
pub struct Health {
    name: &'static str,
    readiness: Readiness,
    draining: Draining,
}

impl Health {
    /// The health of the service `name`.
    #[must_use]
    pub fn new(name: &'static str, readiness: Readiness, draining: Draining) -> Self {
        Self { name, readiness, draining }
    }
}

/// Adds the health routes.
pub fn routes(config: &mut ServiceConfig) {
    config.service(readable("/livez", livez));
    config.service(readable("/readyz", readyz));
    config.service(readable("/version", version));
}

/// That the process runs, or can work.
#[derive(Serialize, ToSchema)]
pub struct Status {
    /// Always `ok`: anything else is a problem.
    #[schema(example = "ok")]
    status: &'static str,
}

const OK: Status = Status { status: "ok" };

/// The process runs.
#[utoipa::path(get, path = "/livez", tag = "operations", responses((status = 200, body = Status, description = "The process runs")))]
pub async fn livez() -> Json<Status> {
    Json(OK)
}

/// The service can do its work now.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, body = Status, description = "Send requests"),
    (status = 503, body = Problem, content_type = "application/problem+json", description = "Starting, stopping, or without what it needs"),
))]
pub async fn readyz(health: Data<Health>) -> Result<Json<Status>, Error> {
    if health.draining.has_begun() {
        return Err(Error::NotReady("The service is stopping."));
    }
    (health.readiness)().map_err(Error::NotReady)?;
    Ok(Json(OK))
}

/// What runs here.
#[derive(Serialize, ToSchema)]
pub struct Version {
    /// The service's name.
    service: &'static str,
    /// Its version.
    version: &'static str,
    /// The commit that it was built from, if known.
    revision: &'static str,
}

/// What runs here.
#[utoipa::path(get, path = "/version", tag = "operations", responses((status = 200, body = Version, description = "Name, version, commit")))]
pub async fn version(health: Data<Health>) -> Json<Version> {
    Json(Version { service: health.name, version: env!("CARGO_PKG_VERSION"), revision: REVISION })
}

/// Asks the service that runs with these settings on this machine whether it is ready: for a container's HEALTHCHECK.
///
/// # Errors
/// It is not, or does not answer within two seconds.
pub fn check(http: &HttpSettings) -> CommandResult {
    let host = match http.host {
        IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    let url = format!("http://{}/readyz", std::net::SocketAddr::new(host, http.port));
    let agent =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(2))).proxy(None).build();
    ureq::Agent::from(agent).get(url).call()?;
    Ok(())
}
