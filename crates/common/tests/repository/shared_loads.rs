//! Shared loads: one for all requests that arrived before it was sent, and for none that arrived later.

use std::time::Duration;

use common::repository::{CacheStatus, Freshness, Repository};
use devstack::Stack;
use tokio::time::sleep;

use crate::note::{self, Note};
use crate::repository;

async fn text(notes: Repository<Note>) -> (String, CacheStatus) {
    let found = notes.find(&1, Freshness::Any).await.expect("found");
    let body = found.answer.expect("there").body;
    (String::from_utf8_lossy(&body).into_owned(), found.status)
}

#[tokio::test]
async fn a_load_is_shared_only_with_requests_that_arrived_before_it_was_sent() {
    let stack = Stack::shared();
    let mut loads = note::create(&stack, 1, "old");
    let (notes, _): (Repository<Note>, _) = repository(&stack).await;

    let first = tokio::spawn(text(notes.clone()));
    let old_load = loads.recv().await.expect("the first request's load has read");

    notes.replace(1, "new".into(), ()).await.expect("acknowledged");

    // The second request finds no copy, and the old load still under way.
    let mut second = tokio::spawn(text(notes.clone()));
    sleep(Duration::from_millis(50)).await;
    drop(old_load);
    assert_eq!(first.await.expect("no panic").0, "old", "it began before the write was acknowledged");

    // It does not share that one. Its own load may be shared with requests that arrive before that has read.
    let new_load = tokio::select! {
        load = loads.recv() => load.expect("the second request's load has read"),
        shared = &mut second => panic!("the second request got {shared:?}"),
    };
    drop(new_load);
    assert_eq!(second.await.expect("no panic").0, "new");
}

#[tokio::test]
async fn fresh_reads_share_a_load_by_the_same_rule() {
    let stack = Stack::shared();
    let mut loads = note::create(&stack, 3, "old");
    let (notes, _): (Repository<Note>, _) = repository(&stack).await;
    let read = || {
        let notes = notes.clone();
        tokio::spawn(async move { notes.find(&3, Freshness::Fresh).await.expect("found") })
    };

    let first = read();
    let first_load = loads.recv().await.expect("the first request's load has read");
    let others: Vec<_> = (0..20).map(|_| read()).collect();
    // Time in which all of them join.
    sleep(Duration::from_millis(50)).await;
    drop(first_load);
    first.await.expect("no panic");
    // None of them shares that load. They share the next one, which is sent after they have arrived.
    drop(loads.recv().await.expect("the second load has read"));
    for other in others {
        other.await.expect("no panic");
    }
    assert!(loads.try_recv().is_err(), "no third load");
}
