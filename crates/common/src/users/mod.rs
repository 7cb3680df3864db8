//! The entity: all that knows what a user is.
//!
//! `model.rs` says what a user may be, `queries.rs` how one is changed, `etag.rs` how its versions differ, `request.rs` how
//! one is read from a request. This file has what the repository must know.

mod etag;
mod model;
mod queries;
mod request;

use actix_web::web::Bytes;
use diesel::prelude::*;

pub use self::etag::{IfMatch, entity_tag, etag, matches_any};
pub use self::model::{Info, NewInfo, NewUser, User, UserName};
pub use self::queries::{delete, insert, replace};
pub use self::request::PathName;
use crate::cache::{EDITION, Representation};
use crate::database::RowIsClear;
use crate::database::schema::users;
use crate::repository::{CacheAside, Creations, Repository};

/// The users, cached.
pub type Users = Repository<User>;

/// The end of a body that comes from the cache, and of one that does not.
const FROM_CACHE: &str = r#","cache_hit":true}"#;
const NOT_FROM_CACHE: &str = r#","cache_hit":false}"#;

impl CacheAside for User {
    type Key = UserName;
    type Record = Self;

    fn cache_key(name: &UserName) -> String {
        [EDITION, "user:{", name.as_str(), "}"].concat()
    }

    fn load(connection: &mut PgConnection, names: &[&UserName]) -> QueryResult<Vec<(Self, bool)>> {
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        let users = users::table.filter(users::name.eq_any(names));
        users.select((Self::as_select(), RowIsClear)).load(connection)
    }

    fn key(user: &Self) -> &UserName {
        &user.name
    }

    fn encode(user: &Self) -> Representation {
        let mut body = serde_json::to_vec(user).unwrap_or_default(); // two strings can always be written
        body.pop();
        body.extend_from_slice(FROM_CACHE.as_bytes());
        Representation { etag: etag(user.name.as_str(), &user.info), body: body.into() }
    }
}

/// The body of `answer` for a client whose answer does not come from the cache.
#[must_use]
pub fn not_from_cache(answer: &Representation) -> Bytes {
    let body = &answer.body[..answer.body.len() - FROM_CACHE.len()];
    [body, NOT_FROM_CACHE.as_bytes()].concat().into()
}

/// Users that are registered together, in shared transactions.
pub type Registrations = Creations<User, Info>;
