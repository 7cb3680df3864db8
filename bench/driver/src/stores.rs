//! Postgres and Redis of the benchmark's own, the users in them, and what these servers can do at best.

use std::path::{Path, PathBuf};
use std::time::Duration;

use devstack::{Postgres, Redis, ServiceBuilder};

use crate::names::{Series, seed};
use crate::usage;

/// Infos of the seeded users, in bytes.
pub const INFO_BYTES: usize = 100;
/// The largest info there may be.
pub const BIG_INFO_BYTES: usize = 16 * 1024;

/// As in production (fsync and synchronous_commit are on), but with memory enough for the users, so that the disk
/// only has to take commits. Statements are counted only where [`Stores::count`] says so.
const POSTGRES: [(&str, &str); 3] = [
    ("shared_buffers", "512MB"),
    ("shared_preload_libraries", "pg_stat_statements"),
    ("pg_stat_statements.track", "none"),
];
/// Memory enough, so that nothing is evicted.
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
    /// Starts both, and seeds so many users, and one with a big info.
    pub fn start(users: u32) -> Stores {
        let stores = Stores { postgres: Postgres::start_with(&POSTGRES), redis: Redis::start_with(&REDIS) };
        stores.postgres.create_database(TEMPLATE, None);
        stores.migrate();
        for statement in [
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

    /// Makes a database with the seeded users, if it is not there yet, and gives its URL.
    pub fn database(&self, name: &str) -> String {
        let known = format!("SELECT 1 FROM pg_database WHERE datname = '{name}'");
        if self.postgres.sql("postgres", &known).is_empty() {
            self.postgres.create_database(name, Some(TEMPLATE));
        }
        self.postgres.url(name)
    }

    /// The URL of a Redis database.
    pub fn redis_url(&self, number: u32) -> String {
        self.redis.url(number)
    }

    /// Empties the cache, and lets Postgres write out what is old, so that it need not while something is measured.
    pub fn settle(&self) {
        self.redis.cli(0, &["FLUSHALL"]);
        self.postgres.sql("postgres", "CHECKPOINT");
    }

    /// From now on, new connections to this database count their statements, from zero.
    pub fn count(&self, database: &str) {
        self.track(database, "top");
    }

    /// New connections to this database do not count any more.
    pub fn do_not_count(&self, database: &str) {
        self.track(database, "none");
    }

    fn track(&self, database: &str, what: &str) {
        self.database(database);
        self.postgres
            .sql(database, &format!("ALTER DATABASE {database} SET pg_stat_statements.track = '{what}'"));
        self.postgres.sql(database, "SELECT pg_stat_statements_reset()");
    }

    /// How many statements on users with this verb were counted, and how many rows they had.
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

    /// Processor time of Postgres, all its processes, and of Redis.
    pub fn cpu(&self) -> (Duration, Duration) {
        (usage::cpu(self.postgres.pid()), usage::cpu(self.redis.pid()))
    }

    /// The port of Postgres.
    pub fn postgres_port(&self) -> u16 {
        self.postgres.port()
    }

    /// The port of Redis.
    pub fn redis_port(&self) -> u16 {
        self.redis.port()
    }

    /// The folder with the programs of this Postgres, such as pgbench.
    pub fn programs(&self) -> PathBuf {
        let server = format!("/proc/{}/exe", self.postgres.pid().as_raw_nonzero());
        let program = std::fs::read_link(server).expect("a process has its program");
        program.parent().map(Path::to_owned).unwrap_or_default()
    }
}
