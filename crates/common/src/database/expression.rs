//! SQL expressions that Diesel has no name for, as parts of prepared statements. (Diesel does not keep a query that is
//! given as text prepared.)

use diesel::QueryResult;
use diesel::expression::{AppearsOnTable, Expression, SelectableExpression, ValidGrouping, is_aggregate};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Bool, Nullable, Text};

macro_rules! expressions {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $sql:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, QueryId)]
        pub struct $name;

        impl $name {
            /// The expression, for a query that is given as text.
            pub const SQL: &str = $sql;
        }

        impl Expression for $name {
            type SqlType = $type;
        }

        impl<T> AppearsOnTable<T> for $name {}

        impl<T> SelectableExpression<T> for $name {}

        impl<T> ValidGrouping<T> for $name {
            type IsAggregate = is_aggregate::Never;
        }

        impl QueryFragment<Pg> for $name {
            fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
                pass.push_sql(Self::SQL);
                Ok(())
            }
        }
    )*};
}

expressions! {
    /// Whether the row is *clear*: no transaction that had not ended when the statement began has locked or changed it.
    /// Writers lock a row with `FOR UPDATE` and outside of any savepoint: then its xmax is the transaction's own id.
    ///
    /// xmax has 32 bits, and is widened to the 64 bits that are nearest to the snapshot's. The snapshot's xmin would
    /// not do: after `FOR UPDATE` and `UPDATE` in one transaction the new row keeps the transaction's own id as xmax,
    /// and one old transaction anywhere would make all such rows look locked.
    RowIsClear: Bool = "(CASE WHEN xmax = 0 THEN true ELSE (SELECT pg_visible_in_snapshot((next + ((xmax::text::bigint - next \
        + 2147483648) & 4294967295) - 2147483648)::text::xid8, snapshot) FROM (SELECT snapshot, \
        pg_snapshot_xmax(snapshot)::text::bigint AS next FROM pg_current_snapshot() AS snapshot) AS now) END)";

    /// Which transaction this is, and which grant it sees; NULL if there is none. Within a statement that has changed
    /// or locked a row, so that the transaction has an id, and later than the one that has taken the lock of
    /// `grant_row.rs`.
    InTransaction: Nullable<Text> = "(SELECT concat_ws('|', pg_current_xact_id(), epoch, \
        extract(epoch FROM pg_postmaster_start_time()), coalesce(redis, '')) FROM cache_grant WHERE one_row)";
}
