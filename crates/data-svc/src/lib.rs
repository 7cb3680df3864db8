//! `data-svc` serves users: from Redis, else from PostgreSQL.

pub mod routes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::rt::System;
use actix_web::rt::time::sleep;
use actix_web::web::{Data, ServiceConfig};
use clap::{Arg, ArgMatches, Command};
use common::cache::{Cache, Near};
use common::config::{
    AccessSettings, CACHE_WITHOUT_POSTGRES, CacheSettings, DatabaseSettings, HttpSettings, NEAR_CACHE_MIB,
    RateSettings, Setting, SettingsReader, http_url, path_prefix, shared,
};
use common::database::{Database, Schema};
use common::error::{CommandResult, Invalid};
use common::http::{Guard, Service};
use common::metrics::Metrics;
use common::repository::CacheAside as _;
use common::users::{User, UserName, Users};

const NAME: &str = "data-svc";
/// How long `purge` tries to reach Redis: as long as an operator waits at a terminal.
const PURGE_TIMEOUT: Duration = Duration::from_secs(5);

/// The command line.
#[must_use]
pub fn command() -> Command {
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves users from PostgreSQL through Redis. Without a sub-command it serves HTTP.")
        .subcommand(Command::new("health").about("Ask the service that runs here whether it is ready"))
        .subcommand(
            Command::new("purge")
                .about("Remove users that were changed by hand in SQL from the caches")
                .arg(Arg::new("NAME").required(true).num_args(1..).help("A user's name")),
        )
}

/// The settings.
#[must_use]
pub fn settings() -> Vec<Setting> {
    let mut settings = shared("8081", "9081");
    settings.push(NEAR_CACHE_MIB);
    settings.push(CACHE_WITHOUT_POSTGRES);
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

/// The `purge` sub-command: removes users that were changed by other means than user-svc from Redis and from the near
/// caches.
///
/// # Errors
/// A name that no user can have; Redis does not answer within five seconds.
pub fn purge(settings: &CacheSettings, arguments: &ArgMatches) -> CommandResult {
    System::new().block_on(purge_names(settings, arguments))
}

async fn purge_names(settings: &CacheSettings, arguments: &ArgMatches) -> CommandResult {
    let mut keys = Vec::new();
    for name in arguments.get_many::<String>("NAME").into_iter().flatten() {
        let name = UserName::parse(name).map_err(|Invalid(what)| format!("{name:?}: a name {what}"))?;
        keys.push(User::cache_key(&name));
    }
    let cache = Cache::start(settings, Metrics::new(NAME)?.cache)?;
    let deadline = Instant::now() + PURGE_TIMEOUT;
    while let Err(error) = cache.purge(&keys).await {
        if Instant::now() > deadline {
            return Err(format!("Redis does not purge: {error:?}").into());
        }
        sleep(settings.timeout).await;
    }
    Ok(())
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
    let database = Database::start(&config.database, Schema::Await, metrics.database.clone())?;
    let cache = Cache::start(&config.cache, metrics.cache.clone())?;
    let (near, fast_path) = match config.cache.near_bytes {
        0 => (Near::off(), None),
        bytes => (Near::start(&config.cache, &cache, bytes)?, Some(routes::NEAR_HITS)),
    };
    let users = Users::new(database.clone(), cache, near, &config.cache, metrics.cache.clone());
    let service = Service {
        name: NAME,
        http: config.http,
        guard: Guard::start(config.access, &config.rates, &metrics.access, routes::needs)?,
        metrics,
        // Once ready it stays ready. Without PostgreSQL it still serves hits, and else all replicas would become
        // unready at the same time.
        readiness: Arc::new(move || database.is_readable()),
        api: routes::api(&config.public_user_url),
        path_prefix: path_prefix(&config.public_data_url),
        fast_path,
    };
    let routes = move |config: &mut ServiceConfig| {
        // Each worker counts references on its own: a shared count would pass from core to core with each request.
        config.app_data(Data::new(users.clone())).configure(routes::routes);
    };
    service.serve(Arc::new(routes)).await?;
    Ok(())
}
