//! What one test works on: a fresh database, a fresh Redis key space, and services that use them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::postgres::Postgres;
use crate::proxy::Proxy;
use crate::redis::Redis;
use crate::service::ServiceBuilder;

/// The database that is migrated once. Each test gets a copy of it.
const TEMPLATE: &str = "template_users";

/// A Postgres and a Redis server.
#[derive(Debug)]
pub struct Stores {
    postgres: Postgres,
    redis: Redis,
    migrated: OnceLock<()>,
    stacks: AtomicU32,
}

impl Stores {
    /// The servers that all tests of this test binary share. The first call starts them. For tests that neither stop a
    /// server nor flush it.
    pub fn shared() -> Arc<Stores> {
        static SHARED: OnceLock<Arc<Stores>> = OnceLock::new();
        Arc::clone(SHARED.get_or_init(Stores::private))
    }

    /// Servers for one test alone, which it may kill, freeze or flush.
    pub fn private() -> Arc<Stores> {
        std::thread::scope(|scope| {
            let redis = scope.spawn(Redis::start);
            let postgres = Postgres::start();
            let redis = redis.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Stores::of(postgres, redis)
        })
    }

    /// Servers that the test has started itself, with TLS or special settings.
    pub fn of(postgres: Postgres, redis: Redis) -> Arc<Stores> {
        Arc::new(Stores { postgres, redis, migrated: OnceLock::new(), stacks: AtomicU32::new(0) })
    }

    /// The Postgres server.
    pub fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// The Redis server.
    pub fn redis(&self) -> &Redis {
        &self.redis
    }

    /// Makes the template once, by `user-svc migrate`, as a deployment does.
    fn migrate(&self) {
        self.migrated.get_or_init(|| {
            self.postgres.create_database(TEMPLATE, None);
            let migrate = ServiceBuilder::new("user-svc")
                .env("DATABASE_URL", self.postgres.url(TEMPLATE))
                .env("REDIS_URL", self.redis.url(0))
                .run(&["migrate"]);
            assert!(
                migrate.status.success(),
                "user-svc migrate: {}",
                String::from_utf8_lossy(&migrate.stderr)
            );
        });
    }
}

/// A database and a Redis key space that no other test uses. The test starts the services.
#[derive(Debug)]
pub struct Stack {
    stores: Arc<Stores>,
    database: String,
    redis_database: u32,
}

impl Stack {
    /// A stack on the servers that this test binary shares.
    pub fn shared() -> Stack {
        Stack::on(Stores::shared())
    }

    /// A stack on servers of its own.
    pub fn private() -> Stack {
        Stack::on(Stores::private())
    }

    /// A stack on these servers, with a migrated database.
    pub fn on(stores: Arc<Stores>) -> Stack {
        stores.migrate();
        Stack::with_database(stores, Some(TEMPLATE))
    }

    /// A stack on these servers, with a database that has no tables yet.
    pub fn unmigrated(stores: Arc<Stores>) -> Stack {
        Stack::with_database(stores, None)
    }

    fn with_database(stores: Arc<Stores>, template: Option<&str>) -> Stack {
        let number = stores.stacks.fetch_add(1, Ordering::Relaxed);
        let database = format!("test_{number}");
        stores.postgres.create_database(&database, template);
        Stack { stores, database, redis_database: number }
    }

    /// The stack's servers.
    pub fn stores(&self) -> &Arc<Stores> {
        &self.stores
    }

    /// The Postgres server. Kill or freeze it only if the stack is private.
    pub fn postgres(&self) -> &Postgres {
        &self.stores.postgres
    }

    /// The Redis server. Kill, freeze or flush it only if the stack is private.
    pub fn redis(&self) -> &Redis {
        &self.stores.redis
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The number of the Redis database. No other test on these servers has it, so it can also be a part of channel names.
    pub fn redis_database(&self) -> u32 {
        self.redis_database
    }

    /// The URL of the Postgres database, as superuser.
    pub fn database_url(&self) -> String {
        self.stores.postgres.url(&self.database)
    }

    /// Makes the services' roles `user_svc` and `data_svc`, as `make up` and Compose do at each start. Call it only if the
    /// stack is private: roles belong to the whole server.
    pub fn make_roles(&self) {
        self.stores.postgres.make_roles(&self.database);
    }

    /// The URL of the Postgres database for a role, which needs no password.
    pub fn database_url_of(&self, role: &str) -> String {
        self.database_url().replacen("postgres@", &format!("{role}@"), 1)
    }

    /// The URL of the Redis database.
    pub fn redis_url(&self) -> String {
        self.stores.redis.url(self.redis_database)
    }

    /// Runs a statement in the database and returns its rows, with `|` between columns.
    pub fn sql(&self, statement: &str) -> String {
        self.stores.postgres.sql(&self.database, statement)
    }

    /// Runs a Redis command in the key space and returns what `redis-cli` prints.
    pub fn redis_cli(&self, arguments: &[&str]) -> String {
        self.stores.redis.cli(self.redis_database, arguments)
    }

    /// A proxy in front of Postgres, for [`ServiceBuilder::postgres_through`].
    pub fn postgres_proxy(&self) -> Proxy {
        Proxy::start(("127.0.0.1", self.stores.postgres.port()))
    }

    /// A proxy in front of Redis, for [`ServiceBuilder::redis_through`].
    pub fn redis_proxy(&self) -> Proxy {
        Proxy::start(("127.0.0.1", self.stores.redis.port()))
    }

    /// A user-svc on this database and key space, not started yet. Several may run.
    pub fn user_svc(&self) -> ServiceBuilder {
        self.service("user-svc").env("PUBLIC_DATA_URL", "http://data.test")
    }

    /// A data-svc on this database and key space, not started yet. Several may run. If no user-svc has granted a Redis
    /// yet, the stack's is granted, as if one had run.
    pub fn data_svc(&self) -> ServiceBuilder {
        self.grant();
        self.service("data-svc").env("PUBLIC_USER_URL", "http://users.test")
    }

    /// Grants the stack's Redis, unless there is a grant already or one of the stores is not there.
    pub fn grant(&self) {
        let Ok(process) = self.stores.redis.process() else { return };
        let statement = format!(
            "INSERT INTO cache_grant (epoch, redis, life_ms) VALUES (1, '{process}', 3000) ON CONFLICT DO NOTHING"
        );
        // Fails where the database is not migrated, or not there.
        let _ = self.stores.postgres.try_sql(&self.database, &statement);
    }

    /// Grants this Redis process, `run_id` and `master_replid`, under a new epoch, whatever is granted now. Looks at the
    /// grant are valid for 3 s. For data-svc alone: a user-svc that runs would grant its own.
    pub fn grant_process(&self, process: &str) {
        self.sql(&format!(
            "INSERT INTO cache_grant (epoch, redis, life_ms) VALUES (1, '{process}', 3000) \
             ON CONFLICT (one_row) DO UPDATE SET epoch = cache_grant.epoch + 1, redis = excluded.redis"
        ));
    }

    fn service(&self, name: &str) -> ServiceBuilder {
        ServiceBuilder::new(name).env("DATABASE_URL", self.database_url()).env("REDIS_URL", self.redis_url())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // The databases of a long suite, at 7 MB each, would fill the disk. A stack with servers of its own needs no
        // cleaning: their data are removed as a whole.
        if Arc::strong_count(&self.stores) > 1 {
            let statement = format!(r#"DROP DATABASE "{}" WITH (FORCE)"#, self.database);
            // Fails if the test has left the server unable to. Then later tests fail with a better message.
            let _ = self.stores.postgres.try_sql("postgres", &statement);
        }
    }
}
