//! Shared loads: one for all who came before it was sent, and never for who came after.

use std::sync::{Mutex, MutexGuard, PoisonError};

use common::cache::Representation;
use common::repository::{CacheAside, CacheStatus, Effect, Freshness, Repository};
use devstack::Stack;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::Text;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::repository;

/// A note whose load, once it has read the row, waits for the test's leave.
#[derive(QueryableByName)]
struct Note {
    #[diesel(sql_type = Text)]
    text: String,
}

/// Where a load tells that it has read, with the way to let it go on.
static READ: Mutex<Option<UnboundedSender<std::sync::mpsc::Sender<()>>>> = Mutex::new(None);

fn listener() -> MutexGuard<'static, Option<UnboundedSender<std::sync::mpsc::Sender<()>>>> {
    READ.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CacheAside for Note {
    type Key = i32;
    type Record = Self;

    fn cache_key(number: &i32) -> String {
        format!("note:{{{number}}}")
    }

    fn load(connection: &mut PgConnection, _: &[&i32]) -> QueryResult<Vec<Self>> {
        let notes = sql_query("SELECT text FROM notes").load(connection)?;
        let (go_on, gone_on) = std::sync::mpsc::channel();
        if let Some(listener) = &*listener() {
            drop(listener.send(go_on));
        }
        // A sender that is dropped is leave as well.
        let _ended = gone_on.recv();
        Ok(notes)
    }

    fn key(_: &Self) -> &i32 {
        &1
    }

    fn encode(note: &Self) -> Representation {
        Representation { etag: [0; 16], body: note.text.clone().into() }
    }
}

fn loads() -> UnboundedReceiver<std::sync::mpsc::Sender<()>> {
    let (listen, loads) = unbounded_channel();
    *listener() = Some(listen);
    loads
}

async fn text(notes: Repository<Note>) -> (String, CacheStatus) {
    let found = notes.find(&1, Freshness::Any).await.expect("found");
    let body = found.answer.expect("there").body;
    (String::from_utf8_lossy(&body).into_owned(), found.status)
}

#[tokio::test]
async fn a_load_is_shared_by_who_came_before_it_was_sent_and_not_by_who_came_after_a_write() {
    let stack = Stack::shared();
    stack.sql("CREATE TABLE notes (text text NOT NULL)");
    stack.sql("INSERT INTO notes VALUES ('old')");
    let notes: Repository<Note> = repository(&stack);
    let mut loads = loads();

    let first = tokio::spawn(text(notes.clone()));
    let old_load = loads.recv().await.expect("the first has read");

    let change = |connection: &mut PgConnection| {
        sql_query("UPDATE notes SET text = 'new'").execute(connection)?;
        Ok(Ok(((), vec![1])))
    };
    notes.write(notes.deadline(), Effect::Replace, change).await.expect("acknowledged");

    // It finds no copy, and the old load still under way.
    let mut second = tokio::spawn(text(notes.clone()));
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    drop(old_load);
    assert_eq!(first.await.expect("no panic").0, "old", "it began before the write was acknowledged");

    // Those who come now, before the second's own load has read, share it.
    let new_load = tokio::select! {
        load = loads.recv() => load.expect("the second has read for itself"),
        handed = &mut second => panic!("it was handed {handed:?}"),
    };
    drop(new_load);
    assert_eq!(second.await.expect("no panic").0, "new");
}
