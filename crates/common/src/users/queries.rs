//! What Diesel's query builder lacks for users. Statements take arrays, so that each is prepared once, for any number
//! of rows. (Diesel does not keep a query that is given as text prepared.)

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, Nullable, Text};

use super::model::Info;
use super::name::UserName;
use crate::database::InTransaction;

/// The names and the infos of `users`, each as one array.
pub fn columns<'a>(users: &[(&'a UserName, &'a Info)]) -> (Vec<&'a str>, Vec<&'a str>) {
    users.iter().map(|(name, info)| (name.as_str(), info.as_str())).unzip()
}

/// Replaces the infos of users: an UPDATE ... FROM.
#[derive(Debug)]
pub struct Replace<'a> {
    pub names: Vec<&'a str>,
    pub infos: Vec<&'a str>,
}

impl Query for Replace<'_> {
    type SqlType = (Text, Nullable<Text>);
}

impl QueryId for Replace<'_> {
    type QueryId = Replace<'static>;

    const HAS_STATIC_QUERY_ID: bool = true;
}

impl RunQueryDsl<PgConnection> for Replace<'_> {}

impl QueryFragment<Pg> for Replace<'_> {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        pass.push_sql("UPDATE users SET info = new.info, updated_at = now() FROM unnest(");
        pass.push_bind_param::<Array<Text>, _>(&self.names)?;
        pass.push_sql(", ");
        pass.push_bind_param::<Array<Text>, _>(&self.infos)?;
        pass.push_sql(") AS new (name, info) WHERE users.name = new.name RETURNING users.name, ");
        pass.push_sql(InTransaction::SQL);
        Ok(())
    }
}
