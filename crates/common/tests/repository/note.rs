//! An entity whose loads the test holds: after a load has read the row, it waits until it may go on.

use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};

use common::cache::{EDITION, Representation};
use common::database::{InTransaction, LockWait};
use common::repository::{CacheAside, Changed, Loaded};
use devstack::Stack;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, Integer, Nullable, Text};
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A note. Each test has a number of its own.
#[derive(QueryableByName)]
pub struct Note {
    #[diesel(sql_type = Integer)]
    number: i32,
    #[diesel(sql_type = Text)]
    text: String,
}

/// What a replace returns.
#[derive(QueryableByName)]
struct ChangedNote {
    #[diesel(sql_type = Nullable<Text>)]
    transaction: Option<String>,
}

/// A load that has read the row. It goes on when this is dropped.
pub type Paused = Sender<()>;

/// Where each load of a note sends itself once it has read the row.
static READ: Mutex<Option<HashMap<i32, UnboundedSender<Paused>>>> = Mutex::new(None);

impl CacheAside for Note {
    type Key = i32;
    type Value = String;
    type Condition = ();

    fn cache_key(number: &i32) -> String {
        format!("{EDITION}note:{{{number}}}")
    }

    fn load(connection: &mut PgConnection, numbers: &[&i32]) -> QueryResult<Loaded<i32, String>> {
        let query = sql_query("SELECT number, text FROM notes WHERE number = ANY ($1)");
        let notes: Vec<Self> = query.bind::<Array<Integer>, _>(numbers).load(connection)?;
        for number in numbers {
            let (paused, resumed) = channel();
            if let Some(test) = READ.lock().as_ref().and_then(|tests| tests.get(number)) {
                // The test may have ended.
                let _ = test.send(paused);
            }
            // Always an error, since nothing is ever sent: it returns when the sender is dropped.
            let _ = resumed.recv();
        }
        Ok(notes.into_iter().map(|note| (note.number, note.text, true)).collect())
    }

    fn encode(_: &i32, text: &String) -> Representation {
        Representation { etag: [0; 16], body: text.clone().into() }
    }

    fn holds((): &(), _: &i32, _: &String) -> bool {
        true
    }

    fn lock(connection: &mut PgConnection, numbers: &[&i32], _: LockWait) -> QueryResult<Vec<(i32, String)>> {
        let query = sql_query("SELECT number, text FROM notes WHERE number = ANY ($1) FOR UPDATE");
        let notes: Vec<Self> = query.bind::<Array<Integer>, _>(numbers).load(connection)?;
        Ok(notes.into_iter().map(|note| (note.number, note.text)).collect())
    }

    fn insert(_: &mut PgConnection, _: &[(&i32, &String)]) -> QueryResult<Changed<i32>> {
        unimplemented!("no test inserts by the repository")
    }

    fn replace(connection: &mut PgConnection, rows: &[(&i32, &String)]) -> QueryResult<Changed<i32>> {
        let (number, text) = rows[0];
        let query = format!(
            "UPDATE notes SET text = $2 WHERE number = $1 RETURNING {} AS transaction",
            InTransaction::SQL
        );
        let query = sql_query(query).bind::<Integer, _>(number).bind::<Text, _>(text);
        let changed: ChangedNote = query.get_result(connection)?;
        Ok(vec![(*number, changed.transaction)])
    }

    fn delete(_: &mut PgConnection, _: &[&i32]) -> QueryResult<Changed<i32>> {
        unimplemented!("no test deletes by the repository")
    }
}

/// Makes the note `number`, and returns its loads from now on.
pub fn create(stack: &Stack, number: i32, text: &str) -> UnboundedReceiver<Paused> {
    stack.sql("CREATE TABLE notes (number int PRIMARY KEY, text text NOT NULL)");
    stack.sql(&format!("INSERT INTO notes VALUES ({number}, '{text}')"));
    let (sender, loads) = unbounded_channel();
    READ.lock().get_or_insert_default().insert(number, sender);
    loads
}
