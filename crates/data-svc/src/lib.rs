//! `data-svc` serves users: from Redis, else from PostgreSQL.

pub mod routes;

use std::sync::Arc;

use actix_web::web::Data;
use clap::Command;
use common::cache::Cache;
use common::config::{CacheSettings, DatabaseSettings, HttpSettings, Reader, Setting, shared};
use common::database::{Database, Status};
use common::metrics::Metrics;
use common::migrations::Schema;
use common::server::Service;
use common::start::Outcome;
use common::users::Users;
use utoipa::OpenApi as _;

const NAME: &str = "data-svc";

/// The command line.
#[must_use]
pub fn command() -> Command {
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves users from PostgreSQL through Redis. Without a sub-command it serves HTTP.")
        .subcommand(Command::new("health").about("Ask the service that runs here whether it is ready"))
}

/// The settings.
#[must_use]
pub fn settings() -> Vec<Setting> {
    shared("8081", "9081")
}

/// The settings, read.
#[derive(Debug)]
pub struct Config {
    /// The HTTP server's.
    pub http: HttpSettings,
    /// PostgreSQL's.
    pub database: DatabaseSettings,
    /// Redis'.
    pub cache: CacheSettings,
}

impl Config {
    /// Takes the settings out of `reader`.
    pub fn read(reader: &mut Reader) -> Self {
        Self { http: reader.http(), database: reader.database(), cache: reader.cache() }
    }
}

/// Serves until the process is told to stop.
///
/// # Errors
/// A port that cannot be bound, a URL that cannot be used.
pub async fn serve(config: Config) -> Outcome {
    let metrics = Metrics::new(NAME)?;
    let database = Database::start(&config.database, Schema::Await, metrics.database.clone())?;
    let cache = Cache::start(&config.cache)?;
    let users = Users::new(database.clone(), cache, &config.cache, metrics.cache.clone());
    let users = Data::new(users);
    let service = Service {
        name: NAME,
        http: config.http,
        metrics,
        // Ready stays ready: without PostgreSQL it still serves hits, and all replicas would go at once.
        readiness: Arc::new(move || match database.status() {
            Status::Ready | Status::Away => Ok(()),
            Status::Starting => Err("The service waits for PostgreSQL and its schema."),
        }),
        api: routes::Api::openapi(),
    };
    service
        .serve(move |config| {
            config.app_data(users.clone()).configure(routes::routes);
        })
        .await?;
    Ok(())
}
