//! The repository without a service, over real stores: with entities of the tests' own, and step by step.

mod batches;
mod grants;
mod note;
mod second_entity;
mod shared_loads;

use std::time::Duration;

use common::cache::{Cache, Near};
use common::config::{CacheSettings, Conninfo, DatabaseSettings, Kept, WithoutPostgres};
use common::database::{Database, Schema, Status};
use common::metrics::Metrics;
use common::repository::{CacheAside, Repository};
use devstack::Stack;

/// A repository as data-svc makes it, and its database, once both stores can be used.
async fn repository<T: CacheAside>(stack: &Stack) -> (Repository<T>, Database) {
    stack.grant();
    let database_settings = database_settings(stack);
    let cache_settings = cache_settings(stack);
    let metrics = Metrics::new("test").expect("valid names");
    let database =
        Database::start(&database_settings, Schema::Await, metrics.database.clone()).expect("threads");
    while database.status() != Status::Ready {
        std::thread::yield_now();
    }
    let cache = Cache::start(&cache_settings, metrics.cache.clone()).expect("a valid URL");
    while cache.process().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let near = Near::start(&cache_settings, &cache, cache_settings.near_bytes).expect("a valid URL");
    (Repository::new(database.clone(), cache, near, &cache_settings, metrics.cache), database)
}

fn database_settings(stack: &Stack) -> DatabaseSettings {
    DatabaseSettings {
        url: Conninfo::parse(&stack.database_url()).expect("a URL"),
        connections: 8,
        kept: Kept::Session,
        queue: 100,
        timeout: Duration::from_secs(9),
        statement_timeout: Duration::from_secs(1),
        lock_timeout: Duration::from_millis(500),
        grant_life: Duration::from_secs(3),
        without_postgres: WithoutPostgres::Stop,
    }
}

fn cache_settings(stack: &Stack) -> CacheSettings {
    CacheSettings {
        url: stack.redis_url().into(),
        // Long, so that only the test decides what is slow.
        timeout: Duration::from_secs(1),
        ttl: Duration::from_secs(60),
        absent_ttl: Duration::from_secs(10),
        near_bytes: 1 << 20,
    }
}
