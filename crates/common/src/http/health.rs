//! `/livez`, `/readyz`, `/version`, and the `health` sub-command, which requests `/readyz`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use actix_web::web::{Data, Json, ServiceConfig};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use super::description::ResponseMap;
use super::drain::Draining;
use super::problem::Group;
use super::route::readable;
use crate::config::HttpSettings;
use crate::error::{CommandResult, Error};
use crate::metrics::REVISION;

/// Returns an error that says why, if the service cannot do its work now.
pub type Readiness = Arc<dyn Fn() -> Result<(), &'static str> + Send + Sync>;

/// What the health routes need to know.
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

/// The service is as it should be.
#[derive(Serialize, ToSchema)]
pub struct Status {
    /// Always `ok`: anything else is a problem.
    #[schema(example = "ok")]
    status: &'static str,
}

const OK: Status = Status { status: "ok" };

/// Check that the process runs.
#[utoipa::path(get, path = "/livez", tag = "operations", responses(
    (status = 200, body = Status, description = "The process runs"),
))]
pub async fn livez() -> Json<Status> {
    Json(OK)
}

/// Check that the service can do its work now.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, body = Status, description = "The service takes requests"),
    ReadyProblems,
))]
pub async fn readyz(health: Data<Health>) -> Result<Json<Status>, Error> {
    if health.draining.has_begun() {
        return Err(Error::NotReady("The service is stopping."));
    }
    (health.readiness)().map_err(Error::NotReady)?;
    Ok(Json(OK))
}

/// The problems of [`readyz`].
struct ReadyProblems;

impl IntoResponses for ReadyProblems {
    fn responses() -> ResponseMap {
        Group::Ready.problems("/readyz")
    }
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

/// Show what runs here.
#[utoipa::path(get, path = "/version", tag = "operations", responses(
    (status = 200, body = Version, description = "Name, version, commit"),
))]
pub async fn version(health: Data<Health>) -> Json<Version> {
    Json(Version { service: health.name, version: env!("CARGO_PKG_VERSION"), revision: REVISION })
}

/// Checks that the service with these settings on this machine is ready: for a container's HEALTHCHECK.
///
/// # Errors
/// The service is not ready, or does not answer within two seconds.
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
