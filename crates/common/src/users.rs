//! Users in the database and in the cache: the queries, and what the repository must know.

use actix_web::http::header::EntityTag;
use actix_web::web::Bytes;
use diesel::prelude::*;
use sha2::{Digest, Sha256};

use crate::cache::entry::Answer;
use crate::error::Error;
use crate::models::{Info, NewUser, User, UserName};
use crate::repository::{CacheAside, Repository};
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
        format!("user:{{{}}}", name.as_str())
    }

    fn load(connection: &mut PgConnection, names: &[UserName]) -> QueryResult<Vec<Self>> {
        let names: Vec<&str> = names.iter().map(UserName::as_str).collect();
        users::table.filter(users::name.eq_any(names)).select(Self::as_select()).load(connection)
    }

    fn encode(user: &Self) -> Answer {
        let mut body = serde_json::to_vec(user).unwrap_or_default(); // two strings can always be written
        body.pop();
        body.extend_from_slice(FROM_CACHE.as_bytes());
        Answer { etag: etag(&user.name, &user.info), body: body.into() }
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
pub fn entity_tag(etag: &[u8; 16]) -> EntityTag {
    EntityTag::new_weak(format!("{:032x}", u128::from_be_bytes(*etag)))
}

/// What a write returns to the repository: the keys that it has changed; or why it refuses.
pub type Changed = QueryResult<Result<((), Vec<UserName>), Error>>;

/// Inserts `user`. The table's key decides who comes first.
///
/// # Errors
/// A unique violation for a name that is taken, and the database's.
pub fn insert(connection: &mut PgConnection, user: &NewUser) -> Changed {
    let row = (users::name.eq(user.name.as_str()), users::info.eq(user.info.as_str()));
    diesel::insert_into(users::table).values(row).execute(connection)?;
    Ok(Ok(((), vec![user.name.clone()])))
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
    Ok(if condition.holds(&etag(&user.name, &user.info)) { Ok(()) } else { Err(Error::PreconditionFailed) })
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
            Self::Tags(tags) => tags.iter().any(|tag| tag.weak_eq(&entity_tag(current))),
        }
    }
}
