//! The repository knows nothing of users: a second entity needs its key, its codec and its statements, and no more.

use common::cache::{EDITION, Representation};
use common::database::{InTransaction, LockWait, RowIsClear};
use common::error::Error;
use common::repository::{CacheAside, CacheStatus, Changed, Freshness, Loaded, Repository};
use devstack::Stack;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, Bool, Integer, Nullable, Text};

use crate::repository;

/// A country, found by its number.
#[derive(QueryableByName)]
struct Country {
    #[diesel(sql_type = Integer)]
    number: i32,
    #[diesel(sql_type = Text)]
    capital: String,
    #[diesel(sql_type = Bool)]
    clear: bool,
}

/// A country that was changed.
#[derive(QueryableByName)]
struct ChangedCountry {
    #[diesel(sql_type = Integer)]
    number: i32,
    #[diesel(sql_type = Nullable<Text>)]
    transaction: Option<String>,
}

/// Runs `statement` with the numbers and the texts of `rows`.
fn change(
    connection: &mut PgConnection,
    statement: &str,
    rows: &[(&i32, &String)],
) -> QueryResult<Changed<i32>> {
    let (numbers, capitals): (Vec<&i32>, Vec<&String>) = rows.iter().copied().unzip();
    let query = sql_query(format!("{statement} RETURNING number, {} AS transaction", InTransaction::SQL));
    let query = query.bind::<Array<Integer>, _>(numbers).bind::<Array<Text>, _>(capitals);
    let changed: Vec<ChangedCountry> = query.load(connection)?;
    Ok(changed.into_iter().map(|country| (country.number, country.transaction)).collect())
}

impl CacheAside for Country {
    type Key = i32;
    type Value = String;
    /// The capital that it must have.
    type Condition = String;

    fn cache_key(number: &i32) -> String {
        format!("{EDITION}country:{{{number}}}")
    }

    fn encode(number: &i32, capital: &String) -> Representation {
        Representation { etag: [*number as u8; 16], body: capital.clone().into() }
    }

    fn holds(required: &String, _: &i32, capital: &String) -> bool {
        capital == required
    }

    fn load(connection: &mut PgConnection, numbers: &[&i32]) -> QueryResult<Loaded<i32, String>> {
        let query = sql_query(format!(
            "SELECT number, capital, {} AS clear FROM countries WHERE number = ANY ($1)",
            RowIsClear::SQL
        ));
        let countries: Vec<Self> = query.bind::<Array<Integer>, _>(numbers).load(connection)?;
        let row = |country: Self| (country.number, country.capital, country.clear);
        Ok(countries.into_iter().map(row).collect())
    }

    fn lock(
        connection: &mut PgConnection,
        numbers: &[&i32],
        lock_wait: LockWait,
    ) -> QueryResult<Vec<(i32, String)>> {
        let skip = if lock_wait == LockWait::Short { "SKIP LOCKED" } else { "" };
        let query = sql_query(format!(
            "SELECT number, capital, true AS clear FROM countries WHERE number = ANY ($1) ORDER BY number \
             FOR UPDATE {skip}"
        ));
        let countries: Vec<Self> = query.bind::<Array<Integer>, _>(numbers).load(connection)?;
        Ok(countries.into_iter().map(|country| (country.number, country.capital)).collect())
    }

    fn insert(connection: &mut PgConnection, rows: &[(&i32, &String)]) -> QueryResult<Changed<i32>> {
        let statement = "INSERT INTO countries SELECT * FROM unnest($1, $2) ON CONFLICT DO NOTHING";
        change(connection, statement, rows)
    }

    fn replace(connection: &mut PgConnection, rows: &[(&i32, &String)]) -> QueryResult<Changed<i32>> {
        let statement = "UPDATE countries SET capital = new.capital \
            FROM (SELECT * FROM unnest($1, $2)) AS new (key, capital) WHERE number = key";
        change(connection, statement, rows)
    }

    fn delete(connection: &mut PgConnection, numbers: &[&i32]) -> QueryResult<Changed<i32>> {
        let unused = String::new();
        let rows: Vec<_> = numbers.iter().map(|number| (*number, &unused)).collect();
        change(connection, "DELETE FROM countries WHERE number = ANY ($1) AND $2 IS NOT NULL", &rows)
    }
}

#[tokio::test]
async fn another_entity_is_found_cached_and_replaced_by_the_same_flows() {
    let stack = Stack::shared();
    stack.sql("CREATE TABLE countries (number int PRIMARY KEY, capital text NOT NULL)");
    stack.sql("INSERT INTO countries VALUES (1, 'Bonn')");
    let (countries, _): (Repository<Country>, _) = repository(&stack).await;

    // Loads are not stored until the cache is connected.
    let mut found = countries.find(&1, Freshness::Any).await.expect("found");
    while found.status != (CacheStatus::Miss { stored: true }) {
        found = countries.find(&1, Freshness::Any).await.expect("found");
    }
    let hit = countries.find(&1, Freshness::Any).await.expect("found");
    assert!(matches!(hit.status, CacheStatus::Hit(_) | CacheStatus::NearHit(_)));
    assert_eq!(hit.answer.expect("there").body, "Bonn");

    countries.replace(1, "Berlin".into(), "Bonn".into()).await.expect("replaced");
    let found = countries.find(&1, Freshness::Any).await.expect("found");
    assert_eq!(found.answer.expect("there").body, "Berlin");
    let refused = countries.replace(1, "Weimar".into(), "Bonn".into()).await;
    assert_eq!(refused, Err(Error::PreconditionFailed));

    assert!(countries.find(&2, Freshness::Any).await.expect("an answer").answer.is_none());
    countries.create(2, "Paris".into()).await.expect("created");
    let found = countries.find(&2, Freshness::Any).await.expect("found");
    assert_eq!(found.answer.expect("there").body, "Paris");
    assert_eq!(countries.create(2, "Vichy".into()).await, Err(Error::AlreadyExists));

    countries.delete(1, "Berlin".into()).await.expect("deleted");
    assert!(countries.find(&1, Freshness::Any).await.expect("an answer").answer.is_none());
    assert_eq!(countries.delete(1, "Berlin".into()).await, Err(Error::NotFound));
}
