//! The benchmark's own PostgreSQL and Redis, and the users in them.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use devstack::{Postgres, Redis, ServiceBuilder};

use crate::names::{Series, seed};
use crate::usage;

/// The size of the seeded users' infos, in bytes.
pub const INFO_BYTES: usize = 100;
/// The largest info that the services accept.
pub const BIG_INFO_BYTES: usize = 16 * 1024;

/// As in production (fsync and synchronous_commit are on), with enough memory for all users, so that the disk only
/// takes commits. Statements are counted only between [`Stores::count`] and [`Stores::do_not_count`].
const POSTGRES: [(&str, &str); 3] = [
    ("shared_buffers", "512MB"),
    ("shared_preload_libraries", "pg_stat_statements"),
    ("pg_stat_statements.track", "none"),
];
/// Enough memory that nothing is evicted.
const REDIS: [&str; 2] = ["--maxmemory", "2gb"];
/// The info of the big series' second user, in bytes.
pub const KIB: usize = 1024;
const TEMPLATE: &str = "seeded";

/// Both servers.
#[derive(Debug)]
pub struct Stores {
    postgres: Postgres,
    redis: Redis,
}

impl Stores {
    /// Starts both, and seeds `users` users and two with larger infos.
    pub fn start(users: u32) -> Stores {
        let stores = Stores { postgres: Postgres::start_with(&POSTGRES), redis: Redis::start_with(&REDIS) };
        stores.postgres.create_database(TEMPLATE, None);
        stores.migrate();
        // As user-svc would: data-svc, which is also measured alone, uses only a Redis that is granted.
        let grant = format!(
            "INSERT INTO cache_grant (epoch, redis, life_ms) VALUES (1, '{}', 3000)",
            stores.redis.process().expect("Redis has been started")
        );
        for statement in [
            &grant,
            "CREATE EXTENSION pg_stat_statements",
            &seed(Series::Seeded, 0..users, INFO_BYTES),
            &seed(Series::Big, 0..1, BIG_INFO_BYTES),
            &seed(Series::Big, 1..2, KIB),
            "VACUUM (FREEZE, ANALYZE) users",
        ] {
            stores.postgres.sql(TEMPLATE, statement);
        }
        stores
    }

    fn migrate(&self) {
        let user_svc = ServiceBuilder::new("user-svc").env("DATABASE_URL", self.postgres.url(TEMPLATE));
        let output = user_svc.env("REDIS_URL", self.redis.url(0)).run(&["migrate"]);
        assert!(output.status.success(), "user-svc migrate: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Returns the URL of a database with the seeded users, and creates it first if necessary.
    pub fn database(&self, name: &str) -> String {
        let known = format!("SELECT 1 FROM pg_database WHERE datname = '{name}'");
        if self.postgres.sql("postgres", &known).is_empty() {
            self.postgres.create_database(name, Some(TEMPLATE));
        }
        self.postgres.url(name)
    }

    /// Runs a statement in a database, and returns its rows.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        self.postgres.sql(database, statement)
    }

    /// Returns when no other session uses this database: one whose program was killed may still be at work.
    pub fn wait_for_sessions(&self, database: &str) {
        let others = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() \
                      AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
        while !self.postgres.sql(database, others).is_empty() {
            sleep(Duration::from_millis(5));
        }
    }

    /// The URL of a Redis database.
    pub fn redis_url(&self, number: u32) -> String {
        self.redis.url(number)
    }

    /// Empties Redis and lets PostgreSQL write its dirty pages now, so that it does not while a row is measured.
    pub fn settle(&self) {
        self.redis.cli(0, &["FLUSHALL"]);
        self.postgres.sql("postgres", "CHECKPOINT");
    }

    /// Counts the statements of new connections to this database from now on, from zero.
    pub fn count(&self, database: &str) {
        self.track(database, "top");
    }

    /// Stops counting the statements of new connections to this database.
    pub fn do_not_count(&self, database: &str) {
        self.track(database, "none");
    }

    fn track(&self, database: &str, statements: &str) {
        self.database(database);
        let track = format!("ALTER DATABASE {database} SET pg_stat_statements.track = '{statements}'");
        self.postgres.sql(database, &track);
        self.postgres.sql(database, "SELECT pg_stat_statements_reset()");
    }

    /// The number of counted statements on users with this verb, and of the rows that they returned or wrote.
    pub fn counted(&self, database: &str, verb: &str) -> (u64, u64) {
        let counted = format!(
            "SELECT coalesce(sum(calls), 0), coalesce(sum(rows), 0) FROM pg_stat_statements \
             JOIN pg_database ON oid = dbid AND datname = current_database() \
             WHERE query ~* '^\\s*{verb}' AND query ~* '\\musers\\M'"
        );
        let answer = self.postgres.sql(database, &counted);
        let mut numbers = answer.split('|').map(|number| number.parse().expect("a count"));
        (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
    }

    /// Processor time of PostgreSQL with all its processes, and of Redis.
    pub fn cpu(&self) -> (Duration, Duration) {
        (usage::cpu(self.postgres.pid()), usage::cpu(self.redis.pid()))
    }

    /// How long both were ready to run and had no processor.
    pub fn wait(&self) -> Duration {
        usage::wait(self.postgres.pid()) + usage::wait(self.redis.pid())
    }

    /// The port of PostgreSQL.
    pub fn postgres_port(&self) -> u16 {
        self.postgres.port()
    }

    /// The port of Redis.
    pub fn redis_port(&self) -> u16 {
        self.redis.port()
    }

    /// The folder with the programs of this PostgreSQL, such as pgbench.
    pub fn programs(&self) -> PathBuf {
        let server = format!("/proc/{}/exe", self.postgres.pid().as_raw_nonzero());
        let program = std::fs::read_link(server).expect("a process has its program");
        program.parent().map(Path::to_owned).unwrap_or_default()
    }
}
