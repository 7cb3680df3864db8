//! The stores of an installation, and which servers they are at the moment.

use std::sync::Arc;

use devstack::{Installed, PgBouncer, Postgres, Proxy, Redis, ServiceBuilder};
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
    pooler: Option<Pooler>,
}

/// A pooler through which all services reach PostgreSQL, and its way there.
struct Pooler {
    server: PgBouncer,
    link: Proxy,
}

impl Stores {
    /// Starts both, with a migrated database.
    pub fn start() -> Self {
        Self::of(Arc::new(Redis::start_with_defaults()), Postgres::start_with(&SETTINGS), None)
    }

    /// Starts both, and a pooler before PostgreSQL.
    pub fn pooled(pooler: &Installed) -> Self {
        let postgres = Postgres::start_with(&SETTINGS);
        let link = Proxy::start(("127.0.0.1", postgres.port()));
        let pooler = Pooler { server: PgBouncer::start(pooler, link.port()), link };
        Self::of(Arc::new(Redis::start_with_defaults()), postgres, Some(pooler))
    }

    /// Another PostgreSQL, and the same Redis.
    pub fn beside(other: &Self) -> Self {
        Self::of(other.redis(), Postgres::start_with(&SETTINGS), None)
    }

    fn of(redis: Arc<Redis>, postgres: Postgres, pooler: Option<Pooler>) -> Self {
        postgres.create_database(DATABASE, None);
        let stores = Self {
            postgres: Mutex::new(Arc::new(postgres)),
            standby: Mutex::default(),
            redis: Mutex::new(redis),
            pooler,
        };
        let migrated = stores.service("user-svc").run(&["migrate"]);
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        stores
    }

    /// A service on both, not started yet.
    pub fn service(&self, name: &str) -> ServiceBuilder {
        let builder = ServiceBuilder::new(name).env("REDIS_URL", self.redis().url(0));
        match &self.pooler {
            None => builder.env("DATABASE_URL", self.postgres().url(DATABASE)),
            Some(pooler) => {
                builder.env("DATABASE_URL", pooler.server.url(DATABASE)).env("DATABASE_PREPARED", "false")
            }
        }
    }

    /// Where services reach PostgreSQL.
    pub fn database_port(&self) -> u16 {
        self.pooler.as_ref().map_or_else(|| self.postgres().port(), |pooler| pooler.server.port())
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

    /// Kills the primary, and makes its standby the primary, to which the pooler leads then, if there is one.
    pub fn promote(&self) {
        let promoted = self.standby.lock().take().expect("there is a standby");
        // Fenced: of two primaries one would acknowledge what the other does not have.
        self.postgres().kill();
        promoted.promote();
        if let Some(pooler) = &self.pooler {
            pooler.link.retarget(("127.0.0.1", promoted.port()));
            pooler.link.reset();
        }
        *self.postgres.lock() = promoted;
    }
}
