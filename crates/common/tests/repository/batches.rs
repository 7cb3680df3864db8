//! Batches, begun and ended by the test.

use std::time::Duration;

use common::config::DatabaseSettings;
use common::database::{Batch, Batcher, Database, Repeats, Schema, UnderWay, Waiter};
use common::error::Error;
use common::metrics::Metrics;
use devstack::Stack;
use tokio::sync::mpsc::{self, UnboundedSender};

use crate::database_settings;

type Begun = (Batch<&'static str, (), ()>, UnderWay);

/// A queue whose requests have a deadline `timeout` after they came. Two batches may be under way.
fn batcher(timeout: Duration) -> Batcher<&'static str, (), ()> {
    let settings = DatabaseSettings { timeout, ..database_settings(&Stack::shared()) };
    let metrics = Metrics::new("test").expect("valid names").database;
    let database = Database::start(&settings, Schema::Await, metrics).expect("threads");
    Batcher::new(database, Repeats::Rivals(|(), ()| false))
}

/// Waits for a result, and sends the batches that begin to `begun` if nobody serves the queue.
async fn join(
    writes: Batcher<&'static str, (), ()>,
    key: &'static str,
    begun: UnboundedSender<Begun>,
) -> Result<(), Error> {
    let serve = || {
        let writes = writes.clone();
        let begin = move |batch, under_way| begun.send((batch, under_way)).expect("the test waits");
        tokio::spawn(async move { writes.serve(begin).await });
    };
    writes.join(key, (), serve).await
}

/// Sends all requests of a batch their results, and returns their keys.
fn end((batch, _under_way): Begun) -> Vec<&'static str> {
    let ended = |waiter: &Waiter<&'static str, (), ()>| {
        waiter.resolve(Ok(()));
        waiter.key
    };
    batch.waiters().iter().map(ended).collect()
}

#[tokio::test]
async fn a_request_whose_key_is_released_while_the_next_batch_begins_is_not_refused() {
    let writes = batcher(Duration::from_secs(9));
    let (begun, mut batches) = mpsc::unbounded_channel();
    let request = |key| tokio::spawn(join(writes.clone(), key, begun.clone()));

    let first = request("hot");
    let slow = batches.recv().await.expect("a batch");
    assert_eq!(slow.0.waiters().len(), 1, "it has the key");
    // In this order, since the runtime has one thread.
    let mut rival = request("hot");
    let other = request("other");
    let next = batches.recv().await.expect("a batch beside the slow one, for the other key");
    assert_eq!(end(slow), ["hot"]);
    // The rival came before the batch's first request. It waits for the batch after this one.
    assert_eq!(end(next), ["other"]);
    tokio::select! {
        last = batches.recv() => assert_eq!(end(last.expect("a batch")), ["hot"]),
        result = &mut rival => panic!("the rival was not in a batch, and got {result:?}"),
    }
    for request in [first, rival, other] {
        assert_eq!(request.await.expect("no panic"), Ok(()));
    }
}

#[tokio::test]
async fn a_request_that_no_batch_can_take_is_refused_at_its_deadline() {
    let writes = batcher(Duration::from_millis(200));
    let (begun, mut batches) = mpsc::unbounded_channel();
    let request = |key| tokio::spawn(join(writes.clone(), key, begun.clone()));
    let is_refused = |result| matches!(result, Ok(Err(Error::Unavailable(_))));

    let first = request("first");
    let holding_first = batches.recv().await.expect("a batch");
    holding_first.0.waiters();
    assert!(is_refused(request("first").await), "its key is held");

    let second = request("second");
    let holding_second = batches.recv().await.expect("a batch beside the first");
    holding_second.0.waiters();
    assert!(is_refused(request("third").await), "as many batches are under way as may be");

    assert_eq!(end(holding_first), ["first"]);
    assert_eq!(end(holding_second), ["second"]);
    for request in [first, second] {
        assert_eq!(request.await.expect("no panic"), Ok(()));
    }
    // The queue is served as before.
    let last = request("third");
    assert_eq!(end(batches.recv().await.expect("a batch")), ["third"]);
    assert_eq!(last.await.expect("no panic"), Ok(()));
}

#[tokio::test]
async fn no_batch_takes_a_request_whose_client_has_hung_up() {
    let writes = batcher(Duration::from_secs(9));
    let (begun, mut batches) = mpsc::unbounded_channel();
    let request = |key| tokio::spawn(join(writes.clone(), key, begun.clone()));

    let stays = request("stays");
    let batch = batches.recv().await.expect("a batch");
    let gone = request("gone");
    let last = request("last");
    tokio::task::yield_now().await;
    gone.abort();
    assert!(gone.await.is_err_and(|error| error.is_cancelled()));
    assert_eq!(end(batch), ["stays", "last"]);
    for request in [stays, last] {
        assert_eq!(request.await.expect("no panic"), Ok(()));
    }
}
