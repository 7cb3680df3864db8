//! Users in the database and in the cache: the queries, and what the repository must know.

use actix_web::http::header::{EntityTag, HeaderValue};
use actix_web::web::Bytes;
use diesel::prelude::*;
use diesel::sql_types::{Array, Text};
use sha2::{Digest, Sha256};

use crate::cache::entry::Answer;
use crate::creations::Creations;
use crate::error::Error;
use crate::models::{Info, User, UserName};
use crate::repository::{self, CacheAside, Repository};
use crate::request::hex;
use crate::schema::users;

/// The users, cached.
pub type Users = Repository<User>;

/// Ends a body that comes from the cache, and one that does not.
const FROM_CACHE: &str = r#","cache_hit":true}"#;
const NOT_FROM_CACHE: &str = r#","cache_hit":false}"#;

impl CacheAside for User {
    type Key = UserName;
    type Record = Self;

    fn cache_key(name: &UserName) -> String {
        ["user:{", name.as_str(), "}"].concat()
    }

    fn load(connection: &mut PgConnection, names: &[&UserName]) -> QueryResult<Vec<Self>> {
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        users::table.filter(users::name.eq_any(names)).select(Self::as_select()).load(connection)
    }

    fn key(user: &Self) -> &UserName {
        &user.name
    }

    fn encode(user: &Self) -> Answer {
        let mut body = serde_json::to_vec(user).unwrap_or_default(); // two strings can always be written
        body.pop();
        body.extend_from_slice(FROM_CACHE.as_bytes());
        Answer { etag: etag(user.name.as_str(), &user.info), body: body.into() }
    }
}

/// The body of `answer` for a client to whom it does not come from the cache.
#[must_use]
pub fn not_from_cache(answer: &Answer) -> Bytes {
    let body = &answer.body[..answer.body.len() - FROM_CACHE.len()];
    [body, NOT_FROM_CACHE.as_bytes()].concat().into()
}

/// The opaque part of a user's entity tag: 128 bits of SHA-256 over name and info.
#[must_use]
pub fn etag(name: &str, info: &str) -> [u8; 16] {
    // Neither can hold NUL, so that no other pair gives the same bytes.
    let digest = Sha256::new().chain_update(name).chain_update([0]).chain_update(info).finalize();
    let mut etag = [0; 16];
    etag.copy_from_slice(&digest[..16]);
    etag
}

/// The entity tag as a header holds it: weak, since the body also tells `cache_hit`, which no tag covers.
#[must_use]
pub fn entity_tag(etag: &[u8; 16]) -> HeaderValue {
    let mut text = *br#"W/"00000000000000000000000000000000""#;
    text[3..35].copy_from_slice(&hex(etag));
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("*"))
}

/// Whether one of `tags` is `etag`, by weak comparison (RFC 9110, section 8.8.3.2).
#[must_use]
pub fn is_among(tags: &[EntityTag], etag: &[u8; 16]) -> bool {
    let current = hex(etag);
    tags.iter().any(|tag| tag.tag().as_bytes() == current)
}

/// What a write returns to the repository: the keys that it has changed; or why it refuses.
pub type Changed = QueryResult<Result<repository::Changed<User, ()>, Error>>;

/// Users to be registered, which share their transactions.
pub type Registrations = Creations<User, Info>;

/// Inserts the users whose names are free, and returns those names. Waits for other transactions that write one.
///
/// # Errors
/// The database's.
pub fn insert(connection: &mut PgConnection, users: &[(&UserName, &Info)]) -> QueryResult<Vec<UserName>> {
    // Two transactions that insert the same names in different orders would wait for each other.
    let mut users = users.to_vec();
    users.sort_unstable_by_key(|(name, _)| *name);
    let (names, infos): (Vec<&str>, Vec<&str>) =
        users.into_iter().map(|(name, info)| (name.as_str(), info.as_str())).unzip();
    // Arrays make it one prepared statement, however many there are; a query given as text would not be kept prepared.
    let rows = diesel::select((unnest(names), unnest(infos)));
    diesel::insert_into(users::table)
        .values(rows)
        .into_columns((users::name, users::info))
        .on_conflict_do_nothing()
        .returning(users::name)
        .get_results(connection)
}

#[diesel::declare_sql_function]
extern "SQL" {
    /// The elements of `array`, a row each; several beside one another go in step.
    fn unnest(array: Array<Text>) -> Text;
}

/// Replaces the info of the user `name`, if it is as `condition` wants it.
///
/// # Errors
/// That there is no such user, and the database's.
pub fn replace(connection: &mut PgConnection, name: &UserName, info: &Info, condition: &IfMatch) -> Changed {
    if let Err(error) = check(connection, name, condition)? {
        return Ok(Err(error));
    }
    let change = (users::info.eq(info.as_str()), users::updated_at.eq(diesel::dsl::now));
    diesel::update(users::table.find(name.as_str())).set(change).execute(connection)?;
    Ok(Ok(((), vec![name.clone()])))
}

/// Deletes the user `name`, if it is as `condition` wants it.
///
/// # Errors
/// As [`replace`].
pub fn delete(connection: &mut PgConnection, name: &UserName, condition: &IfMatch) -> Changed {
    if let Err(error) = check(connection, name, condition)? {
        return Ok(Err(error));
    }
    diesel::delete(users::table.find(name.as_str())).execute(connection)?;
    Ok(Ok(((), vec![name.clone()])))
}

/// Locks the user's row, and compares.
fn check(
    connection: &mut PgConnection,
    name: &UserName,
    condition: &IfMatch,
) -> QueryResult<Result<(), Error>> {
    let row = users::table.find(name.as_str()).select(User::as_select()).for_update();
    let user = row.first(connection)?;
    Ok(if condition.holds(&etag(user.name.as_str(), &user.info)) {
        Ok(())
    } else {
        Err(Error::PreconditionFailed)
    })
}

/// What `If-Match` asks for.
///
/// RFC 9110 (section 13.1.1) wants strong comparison, and ours are weak tags: they are compared by their opaque part.
/// That is sound here, since a tag covers name and info, which is all that a PUT replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfMatch {
    /// Nothing, or that there is a user at all.
    Any,
    /// One of these.
    Tags(Vec<EntityTag>),
}

impl IfMatch {
    fn holds(&self, current: &[u8; 16]) -> bool {
        match self {
            Self::Any => true,
            Self::Tags(tags) => is_among(tags, current),
        }
    }
}
