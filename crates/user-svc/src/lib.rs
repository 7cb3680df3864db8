//! `user-svc` registers, replaces and deletes users in PostgreSQL, and keeps the cache coherent with them.

pub mod routes;
pub mod token;

use std::sync::Arc;

use actix_web::rt::System;
use actix_web::web::{Data, ServiceConfig};
use clap::{Arg, ArgAction, Command};
use common::cache::{Cache, Near};
use common::config::{
    AccessSettings, CACHE_GRANT, CacheSettings, DatabaseSettings, HttpSettings, RateSettings, Setting,
    SettingsReader, http_url, path_prefix, shared,
};
use common::database::{Database, Schema};
use common::error::CommandResult;
use common::http::{Guard, Service};
use common::metrics::Metrics;
use common::repository::keep_offering;
use common::users::Users;

const NAME: &str = "user-svc";

/// The command line.
#[must_use]
pub fn command() -> Command {
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Registers users in PostgreSQL. Without a sub-command it serves HTTP.")
        .subcommand(Command::new("health").about("Ask the service that runs here whether it is ready"))
        .subcommand(Command::new("migrate").about("Bring the database's schema up to date, and end"))
        .subcommand(
            Command::new("purge")
                .about("Empty the cache: after a restore or a copy of the database, or many changes by SQL")
                .arg(Arg::new("all").long("all").required(true).action(ArgAction::SetTrue).help("All users")),
        )
        .subcommand(token::command())
}

/// The settings.
#[must_use]
pub fn settings() -> Vec<Setting> {
    let mut settings = shared("8080", "9080");
    settings.push(CACHE_GRANT);
    settings
}

/// The settings, read.
#[derive(Debug)]
pub struct Config {
    /// The HTTP server's.
    pub http: HttpSettings,
    /// Who may use the service.
    pub access: AccessSettings,
    /// How much clients may ask for.
    pub rates: RateSettings,
    /// PostgreSQL's.
    pub database: DatabaseSettings,
    /// Redis'.
    pub cache: CacheSettings,
    /// Where clients reach `user-svc`.
    pub public_user_url: String,
    /// Where clients reach `data-svc`.
    pub public_data_url: String,
}

impl Config {
    /// Reads the settings through `reader`.
    pub fn read(reader: &mut SettingsReader) -> Self {
        let http = reader.http();
        Self {
            access: reader.access(http.host),
            rates: reader.rates(),
            http,
            database: reader.database(),
            cache: reader.cache(),
            public_user_url: reader.get("PUBLIC_USER_URL", http_url),
            public_data_url: reader.get("PUBLIC_DATA_URL", http_url),
        }
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A port that cannot be bound, a URL that cannot be used.
pub fn serve(config: Config) -> CommandResult {
    System::new().block_on(serve_until_stopped(config))
}

async fn serve_until_stopped(config: Config) -> CommandResult {
    let metrics = Metrics::new(NAME)?;
    let database = Database::start(&config.database, Schema::Migrate, metrics.database.clone())?;
    let cache = Cache::start(&config.cache, metrics.cache.clone())?;
    actix_web::rt::spawn(keep_offering(database.clone(), cache.clone()));
    actix_web::rt::spawn(cache.clone().keep_hearing_acks());
    let users =
        Data::new(Users::new(database.clone(), cache, Near::off(), &config.cache, metrics.cache.clone()));
    let links = routes::Links { data_url: config.public_data_url };
    let api = routes::api(&links);
    let links = Data::new(links);
    let service = Service {
        name: NAME,
        http: config.http,
        guard: Guard::start(config.access, &config.rates, &metrics.access, routes::needs)?,
        metrics,
        readiness: Arc::new(move || database.is_writable()),
        api,
        path_prefix: path_prefix(&config.public_user_url),
        fast_path: None,
    };
    let routes = move |config: &mut ServiceConfig| {
        config.app_data(users.clone()).app_data(links.clone());
        config.configure(routes::routes);
    };
    service.serve(Arc::new(routes)).await?;
    Ok(())
}
