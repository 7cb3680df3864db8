//! Shared loads: one for all requests that arrived before it was sent, and for none that arrived later.

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use common::cache::Representation;
use common::repository::{CacheAside, CacheStatus, Effect, Freshness, Repository};
use devstack::Stack;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::Text;
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::sleep;

use crate::repository;

/// A note. After its load has read the row, it waits until the test lets it go on.
#[derive(QueryableByName)]
struct Note {
    #[diesel(sql_type = Text)]
    text: String,
}

/// A load that has read the row. It goes on when this is dropped.
type Paused = Sender<()>;

/// Where each load sends itself once it has read the row.
static READ: Mutex<Option<UnboundedSender<Paused>>> = Mutex::new(None);

impl CacheAside for Note {
    type Key = i32;
    type Record = Self;

    fn cache_key(number: &i32) -> String {
        format!("note:{{{number}}}")
    }

    fn load(connection: &mut PgConnection, _: &[&i32]) -> QueryResult<Vec<Self>> {
        let notes = sql_query("SELECT text FROM notes").load(connection)?;
        let (paused, resumed) = channel();
        if let Some(test) = &*READ.lock() {
            // The test may have ended.
            let _ = test.send(paused);
        }
        // Always an error, since nothing is ever sent: it returns when the sender is dropped.
        let _ = resumed.recv();
        Ok(notes)
    }

    fn key(_: &Self) -> &i32 {
        &1
    }

    fn encode(note: &Self) -> Representation {
        Representation { etag: [0; 16], body: note.text.clone().into() }
    }
}

fn loads() -> UnboundedReceiver<Paused> {
    let (sender, loads) = unbounded_channel();
    *READ.lock() = Some(sender);
    loads
}

async fn text(notes: Repository<Note>) -> (String, CacheStatus) {
    let found = notes.find(&1, Freshness::Any).await.expect("found");
    let body = found.answer.expect("there").body;
    (String::from_utf8_lossy(&body).into_owned(), found.status)
}

#[tokio::test]
async fn a_load_is_shared_only_with_requests_that_arrived_before_it_was_sent() {
    let stack = Stack::shared();
    stack.sql("CREATE TABLE notes (text text NOT NULL)");
    stack.sql("INSERT INTO notes VALUES ('old')");
    let notes: Repository<Note> = repository(&stack);
    let mut loads = loads();

    let first = tokio::spawn(text(notes.clone()));
    let old_load = loads.recv().await.expect("the first request's load has read");

    let change = |connection: &mut PgConnection| {
        sql_query("UPDATE notes SET text = 'new'").execute(connection)?;
        Ok(Ok(((), vec![1])))
    };
    notes.write(notes.deadline(), Effect::Replace, change).await.expect("acknowledged");

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
