//! The stores of an installation, and which servers they are at the moment.

use std::sync::Arc;

use devstack::{Postgres, Redis, ServiceBuilder};
use parking_lot::Mutex;

/// The database's name.
const DATABASE: &str = "history";

/// Faster than by default on a disk that takes its time. But a COMMIT takes a while, so that faults hit it.
const SETTINGS: [(&str, &str); 3] =
    [("full_page_writes", "off"), ("commit_delay", "5000"), ("commit_siblings", "0")];

/// A PostgreSQL and a Redis, each perhaps another server than a moment ago. Redis has its own default configuration: it
/// saves snapshots.
pub struct Stores {
    postgres: Mutex<Arc<Postgres>>,
    standby: Mutex<Option<Arc<Postgres>>>,
    redis: Mutex<Arc<Redis>>,
}

impl Stores {
    /// Starts both, with a migrated database.
    pub fn start() -> Self {
        Self::of(Arc::new(Redis::start_with_defaults()))
    }

    /// Another PostgreSQL, and the same Redis.
    pub fn beside(other: &Self) -> Self {
        Self::of(other.redis())
    }

    fn of(redis: Arc<Redis>) -> Self {
        let postgres = Postgres::start_with(&SETTINGS);
        postgres.create_database(DATABASE, None);
        let stores = Self {
            postgres: Mutex::new(Arc::new(postgres)),
            standby: Mutex::default(),
            redis: Mutex::new(redis),
        };
        let migrated = stores.service("user-svc").run(&["migrate"]);
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        stores
    }

    /// A service on both, not started yet.
    pub fn service(&self, name: &str) -> ServiceBuilder {
        let builder = ServiceBuilder::new(name).env("DATABASE_URL", self.postgres().url(DATABASE));
        builder.env("REDIS_URL", self.redis().url(0))
    }

    /// The primary.
    pub fn postgres(&self) -> Arc<Postgres> {
        self.postgres.lock().clone()
    }

    /// The Redis that is used.
    pub fn redis(&self) -> Arc<Redis> {
        self.redis.lock().clone()
    }

    pub fn set_redis(&self, redis: Arc<Redis>) -> Arc<Redis> {
        std::mem::replace(&mut *self.redis.lock(), redis)
    }

    /// Runs a statement in the database. Returns psql's message if it fails, since a fault may be under way.
    pub fn try_sql(&self, statement: &str) -> Result<String, String> {
        self.postgres().try_sql(DATABASE, statement)
    }

    /// Runs a statement in the database.
    pub fn sql(&self, statement: &str) -> String {
        self.try_sql(statement).unwrap_or_else(|error| panic!("{statement}\n{error}"))
    }

    /// The synchronous standby: every COMMIT waits for it. Starts one if there is none.
    pub fn standby(&self) -> Arc<Postgres> {
        let mut standby = self.standby.lock();
        let primary = self.postgres();
        let started = standby.get_or_insert_with(|| {
            let standby = Arc::new(Postgres::standby_of(&primary));
            primary.commit_on_standbys();
            standby
        });
        started.clone()
    }

    /// Kills the primary, and makes its standby the primary. Returns the new primary.
    pub fn promote(&self) -> Arc<Postgres> {
        let promoted = self.standby.lock().take().expect("there is a standby");
        // Fenced: of two primaries one would acknowledge what the other does not have.
        self.postgres().kill();
        promoted.promote();
        *self.postgres.lock() = promoted.clone();
        promoted
    }
}
