//! The queries that change users.

use diesel::prelude::*;
use diesel::sql_types::{Array, Text};

use super::etag::{IfMatch, etag};
use super::model::{Info, User, UserName};
use crate::database::schema::users;
use crate::error::Error;
use crate::repository::Changes;

/// What a write returns to the repository: the names that it has changed, or why it refuses.
pub type Changed = QueryResult<Result<Changes<User>, Error>>;

/// Inserts the users whose names are free, and returns those names. Waits for other transactions that write one.
///
/// # Errors
/// The database's.
pub fn insert(connection: &mut PgConnection, users: &[(&UserName, &Info)]) -> QueryResult<Changes<User>> {
    // Sorted: two transactions that insert the same names in different orders would wait for each other.
    let mut users = users.to_vec();
    users.sort_unstable_by_key(|(name, _)| *name);
    let (names, infos): (Vec<&str>, Vec<&str>) =
        users.into_iter().map(|(name, info)| (name.as_str(), info.as_str())).unzip();
    // Arrays make it one prepared statement for any number of rows. Diesel does not keep a query given as text prepared.
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
    /// The elements of `array`, a row each; several calls in one SELECT advance together.
    fn unnest(array: Array<Text>) -> Text;
}

/// Replaces the info of the user `name`, if the user meets `condition`.
///
/// # Errors
/// That there is no such user, or that `condition` fails; and the database's.
pub fn replace(connection: &mut PgConnection, name: &UserName, info: &Info, condition: &IfMatch) -> Changed {
    if let Err(error) = check(connection, name, condition)? {
        return Ok(Err(error));
    }
    let change = (users::info.eq(info.as_str()), users::updated_at.eq(diesel::dsl::now));
    diesel::update(users::table.find(name.as_str())).set(change).execute(connection)?;
    Ok(Ok(vec![name.clone()]))
}

/// Deletes the user `name`, if the user meets `condition`.
///
/// # Errors
/// As [`replace`].
pub fn delete(connection: &mut PgConnection, name: &UserName, condition: &IfMatch) -> Changed {
    if let Err(error) = check(connection, name, condition)? {
        return Ok(Err(error));
    }
    diesel::delete(users::table.find(name.as_str())).execute(connection)?;
    Ok(Ok(vec![name.clone()]))
}

/// Locks the user's row, and checks `condition` against it.
fn check(
    connection: &mut PgConnection,
    name: &UserName,
    condition: &IfMatch,
) -> QueryResult<Result<(), Error>> {
    let row = users::table.find(name.as_str()).select(User::as_select()).for_update();
    let user = row.first(connection)?;
    let holds = condition.holds(&etag(user.name.as_str(), &user.info));
    Ok(if holds { Ok(()) } else { Err(Error::PreconditionFailed) })
}
