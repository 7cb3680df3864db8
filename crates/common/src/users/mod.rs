//! The entity: all that knows what a user is.
//!
//! `model.rs` says what a user may be, `name.rs` and `emoji.rs` what its name, `etag.rs` how its versions differ,
//! `request.rs` how one is read from a request, and `queries.rs` has what Diesel's query builder lacks. This file has
//! what the repository must know.

mod emoji;
mod etag;
mod model;
mod name;
mod queries;
mod request;

use actix_web::web::Bytes;
use diesel::prelude::*;
use diesel::sql_types::{Array, Text};
use serde::Serialize;

pub use self::etag::{Conditions, entity_tag, etag};
pub use self::model::{Info, NewInfo, NewUser};
pub use self::name::UserName;
use self::queries::{Replace, columns};
pub use self::request::{NoIfMatch, PathName};
use crate::cache::{EDITION, Representation};
use crate::database::schema::users;
use crate::database::{InTransaction, LockWait, RowIsClear};
use crate::repository::{CacheAside, Changed, Loaded, Repository};

/// The entity: what the repository must know of users.
#[derive(Debug)]
pub enum User {}

/// The users, cached.
pub type Users = Repository<User>;

/// The end of a body that comes from the cache, and of one that does not.
const FROM_CACHE: &str = r#","cache_hit":true}"#;
const NOT_FROM_CACHE: &str = r#","cache_hit":false}"#;

#[diesel::declare_sql_function]
extern "SQL" {
    /// The elements of `array`, a row each; several calls in one SELECT advance together.
    fn unnest(array: Array<Text>) -> Text;

    /// Any of the elements of `array`, on the right of a comparison. Diesel finds a prepared statement by its type then;
    /// with `eq_any` it writes the text of the statement anew for each execution, and looks that up.
    #[sql_name = "ANY"]
    fn any(array: Array<Text>) -> Text;
}

/// A user as it is sent, but for the end.
#[derive(Serialize)]
struct StoredUser<'a> {
    name: &'a UserName,
    info: &'a Info,
}

impl CacheAside for User {
    type Key = UserName;
    type Value = Info;
    type Condition = Conditions;

    fn cache_key(name: &UserName) -> String {
        [EDITION, "user:{", name.as_str(), "}"].concat()
    }

    fn encode(name: &UserName, info: &Info) -> Representation {
        // Two strings can always be written.
        let mut body = serde_json::to_vec(&StoredUser { name, info }).unwrap_or_default();
        body.pop();
        body.extend_from_slice(FROM_CACHE.as_bytes());
        Representation { etag: etag(name.as_str(), info.as_str()), body: body.into() }
    }

    fn holds(conditions: &Conditions, name: &UserName, info: &Info) -> bool {
        conditions.hold(&etag(name.as_str(), info.as_str()))
    }

    fn load(connection: &mut PgConnection, names: &[&UserName]) -> QueryResult<Loaded<UserName, Info>> {
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        let users = users::table.filter(users::name.eq(any(names)));
        users.select((users::name, users::info, RowIsClear)).load(connection)
    }

    fn lock(
        connection: &mut PgConnection,
        names: &[&UserName],
        lock_wait: LockWait,
    ) -> QueryResult<Vec<(UserName, Info)>> {
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        let users = users::table.filter(users::name.eq(any(names))).order(users::name);
        let users = users.select((users::name, users::info)).for_update();
        match lock_wait {
            LockWait::Skip => users.skip_locked().load(connection),
            LockWait::Short | LockWait::Long => users.load(connection),
        }
    }

    fn insert(connection: &mut PgConnection, users: &[(&UserName, &Info)]) -> QueryResult<Changed<UserName>> {
        let (names, infos) = columns(users);
        diesel::insert_into(users::table)
            .values(diesel::select((unnest(names), unnest(infos))))
            .into_columns((users::name, users::info))
            .on_conflict_do_nothing()
            .returning((users::name, InTransaction))
            .get_results(connection)
    }

    fn replace(
        connection: &mut PgConnection,
        users: &[(&UserName, &Info)],
    ) -> QueryResult<Changed<UserName>> {
        let (names, infos) = columns(users);
        Replace { names, infos }.get_results(connection)
    }

    fn delete(connection: &mut PgConnection, names: &[&UserName]) -> QueryResult<Changed<UserName>> {
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        diesel::delete(users::table.filter(users::name.eq(any(names))))
            .returning((users::name, InTransaction))
            .get_results(connection)
    }
}

/// The body of `answer` for a client whose answer does not come from the cache.
#[must_use]
pub fn not_from_cache(answer: &Representation) -> Bytes {
    let body = &answer.body[..answer.body.len() - FROM_CACHE.len()];
    [body, NOT_FROM_CACHE.as_bytes()].concat().into()
}
