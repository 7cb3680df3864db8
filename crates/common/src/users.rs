//! Users in the database and in the cache: the queries, and what the repository must know.

use actix_web::http::header::EntityTag;
use actix_web::web::Bytes;
use diesel::prelude::*;
use sha2::{Digest, Sha256};

use crate::entry::Answer;
use crate::models::{NewUser, User, UserName};
use crate::repository::{CacheAside, Repository};
use crate::schema::users;

/// The users.
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

/// Inserts `user`. The table's key decides who comes first.
///
/// # Errors
/// A unique violation for a name that is taken, and the database's.
pub fn insert(connection: &mut PgConnection, user: &NewUser) -> QueryResult<()> {
    let row = (users::name.eq(user.name.as_str()), users::info.eq(user.info.as_str()));
    diesel::insert_into(users::table).values(row).execute(connection).map(drop)
}
