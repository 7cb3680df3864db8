//! The grant over real stores, step by step: when it is given, and what a load that outlives it leaves behind.

use std::time::{Duration, Instant};

use common::cache::Cache;
use common::config::DatabaseSettings;
use common::database::{Database, Schema};
use common::metrics::Metrics;
use common::repository::{CacheStatus, Freshness, Repository, keep_offering};
use devstack::Stack;
use tokio::time::sleep;

use crate::note::{self, Note};
use crate::{cache_settings, database_settings, repository};

/// The lock that writers share, as `grant_row.rs` has it.
const GRANT_LOCK: i64 = 0x67_72_61_6e_74;

/// What user-svc runs for the grant.
fn user_svc(stack: &Stack) -> (Database, Cache) {
    let metrics = Metrics::new("test").expect("valid names");
    let settings: DatabaseSettings = database_settings(stack);
    let database = Database::start(&settings, Schema::Migrate, metrics.database.clone()).expect("threads");
    let cache = Cache::start(&cache_settings(stack), metrics.cache).expect("a valid URL");
    tokio::spawn(keep_offering(database.clone(), cache.clone()));
    (database, cache)
}

fn is_granted(stack: &Stack) -> bool {
    stack.sql("SELECT count(redis) FROM cache_grant") == "1"
}

/// Waits for a condition while the runtime goes on.
async fn until(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "it never happens");
        sleep(Duration::from_millis(20)).await;
    }
}

fn granted_epoch(stack: &Stack) -> String {
    stack.sql("SELECT epoch FROM cache_grant WHERE redis IS NOT NULL")
}

/// A suspension that every reader knows after `life_ms`.
fn suspend(stack: &Stack, life_ms: u32) {
    let change = format!("UPDATE cache_grant SET redis = NULL, epoch = epoch + 1, life_ms = {life_ms}");
    stack.sql(&format!("{change}, changed_at = now()"));
}

#[tokio::test]
async fn a_new_database_is_granted_at_once() {
    let stack = Stack::shared();
    let (database, _) = user_svc(&stack);
    until(|| is_granted(&stack)).await;
    until(|| database.grants().tag().is_some()).await;
    assert_eq!(database.is_writable(), Ok(()));
}

#[tokio::test]
async fn a_suspended_cache_is_granted_under_a_new_epoch_once_no_reader_uses_the_old_one() {
    let stack = Stack::shared();
    let _user_svc = user_svc(&stack);
    until(|| is_granted(&stack)).await;
    let epoch = granted_epoch(&stack);
    suspend(&stack, 500);
    until(|| is_granted(&stack)).await;
    assert_ne!(granted_epoch(&stack), epoch);
    // For as long as a reader's look may be valid, here an hour, nothing is granted.
    suspend(&stack, 3_600_000);
    sleep(Duration::from_secs(3)).await;
    assert!(!is_granted(&stack));
}

#[tokio::test]
async fn nothing_is_granted_while_a_write_from_before_is_under_way() {
    let stack = Stack::shared();
    let _user_svc = user_svc(&stack);
    until(|| is_granted(&stack)).await;
    suspend(&stack, 500);
    let writer = format!("SELECT pg_advisory_lock_shared({GRANT_LOCK}), pg_sleep(3)");
    let (stores, database) = (stack.stores().clone(), stack.database().to_owned());
    let under_way = std::thread::spawn(move || stores.postgres().sql(&database, &writer));
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted";
    until(|| stack.sql(held) == "1").await;
    // The runtime goes on, and with it the offers of Redis.
    while !under_way.is_finished() {
        assert!(!is_granted(&stack) || stack.sql(held) == "0", "granted under a write");
        sleep(Duration::from_millis(100)).await;
    }
    until(|| is_granted(&stack)).await;
}

#[tokio::test]
async fn a_load_that_outlives_its_epoch_leaves_nothing_that_a_later_one_uses() {
    let stack = Stack::shared();
    let mut loads = note::create(&stack, 2, "old");
    let (notes, database): (Repository<Note>, _) = repository(&stack).await;

    let reader = notes.clone();
    let first = tokio::spawn(async move { reader.find(&2, Freshness::Any).await });
    let old_load = loads.recv().await.expect("the load has read");
    // What a suspension and a new grant leave: the row has changed without a barrier, and the epoch is another.
    stack.sql("UPDATE notes SET text = 'new'");
    let tag = database.grants().tag();
    stack.sql("UPDATE cache_grant SET epoch = epoch + 1");
    until(|| database.grants().tag().is_some_and(|new| Some(new) != tag)).await;
    drop(old_load);
    let first = first.await.expect("no panic").expect("found");
    assert_eq!(first.status, CacheStatus::Miss { stored: true }, "it is stored, for its own epoch");

    let mut second = tokio::spawn(async move { notes.find(&2, Freshness::Any).await });
    tokio::select! {
        new_load = loads.recv() => drop(new_load.expect("the row is read")),
        found = &mut second => panic!("the old copy is used: {:?}", found.expect("no panic").map(|it| it.answer)),
    }
    let found = second.await.expect("no panic").expect("found");
    assert_eq!(found.answer.expect("there").body, "new");
    assert_eq!(found.status, CacheStatus::Miss { stored: true });
}
