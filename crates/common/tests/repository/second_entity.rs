//! The repository knows nothing of users: a second entity needs its key, its load and its codec, and no more.

use common::cache::{EDITION, Representation};
use common::database::RowIsClear;
use common::repository::{CacheAside, CacheStatus, Effect, Freshness, Repository};
use devstack::Stack;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, Bool, Integer, Text};

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

impl CacheAside for Country {
    type Key = i32;
    type Record = Self;

    fn cache_key(number: &i32) -> String {
        format!("{EDITION}country:{{{number}}}")
    }

    fn load(connection: &mut PgConnection, numbers: &[&i32]) -> QueryResult<Vec<(Self, bool)>> {
        let query = sql_query(format!(
            "SELECT number, capital, {} AS clear FROM countries WHERE number = ANY ($1)",
            RowIsClear::SQL
        ));
        let countries: Vec<Self> = query.bind::<Array<Integer>, _>(numbers).load(connection)?;
        Ok(countries
            .into_iter()
            .map(|country| {
                let clear = country.clear;
                (country, clear)
            })
            .collect())
    }

    fn key(country: &Self) -> &i32 {
        &country.number
    }

    fn encode(country: &Self) -> Representation {
        Representation { etag: [country.number as u8; 16], body: country.capital.clone().into() }
    }
}

#[tokio::test]
async fn another_entity_is_found_cached_and_replaced_by_the_same_flows() {
    let stack = Stack::shared();
    stack.sql("CREATE TABLE countries (number int PRIMARY KEY, capital text NOT NULL)");
    stack.sql("INSERT INTO countries VALUES (1, 'Bonn')");
    let (countries, _): (Repository<Country>, _) = repository(&stack);

    // Loads are not stored until the cache is connected.
    let mut found = countries.find(&1, Freshness::Any).await.expect("found");
    while found.status != (CacheStatus::Miss { stored: true }) {
        found = countries.find(&1, Freshness::Any).await.expect("found");
    }
    let hit = countries.find(&1, Freshness::Any).await.expect("found");
    assert!(matches!(hit.status, CacheStatus::Hit(_) | CacheStatus::NearHit(_)));
    assert_eq!(hit.answer.expect("there").body, "Bonn");

    let move_government = |connection: &mut PgConnection| {
        sql_query("UPDATE countries SET capital = 'Berlin' WHERE number = 1").execute(connection)?;
        Ok(Ok(vec![1]))
    };
    countries.write(countries.deadline(), Effect::Replace, move_government).await.expect("written");
    let found = countries.find(&1, Freshness::Any).await.expect("found");
    assert_eq!(found.answer.expect("there").body, "Berlin");
    assert!(countries.find(&2, Freshness::Any).await.expect("an answer").answer.is_none());
}
