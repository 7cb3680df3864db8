//! What has become of transactions of which COMMIT did not say it. The monitor asks, on its own connection.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Nullable, Text};
use tokio::sync::oneshot;

use super::session::is_lost;

/// What has become of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is committed.
    Committed,
    /// It has changed nothing, and will not.
    Aborted,
    /// It has ended, and the server cannot say how.
    Ended,
}

/// A transaction whose outcome is asked for.
pub struct Question {
    /// Its id.
    pub transaction: String,
    /// A session of the monitor with the same server while the transaction was under way.
    pub session: Option<u64>,
    /// Where the outcome is sent.
    pub answer: oneshot::Sender<Outcome>,
}

impl Question {
    /// Asks in the monitor's session `session`; none: any, as a pooler has it. Returns none while the transaction is in
    /// progress.
    ///
    /// After a crash the server gives ids out again. So how a transaction ended is believed only in a session that saw
    /// it under way: no session outlives a crash.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn ask(&self, connection: &mut PgConnection, session: Option<u64>) -> QueryResult<Option<Outcome>> {
        #[derive(QueryableByName)]
        struct Status {
            #[diesel(sql_type = Nullable<Text>)]
            status: Option<String>,
        }
        let query = sql_query("SELECT pg_xact_status($1::xid8) AS status").bind::<Text, _>(&self.transaction);
        let status = match query.get_result(connection) {
            Ok(Status { status }) => status.unwrap_or_default(),
            Err(error) if is_lost(&error) => return Err(error),
            // An id that this server has not given out.
            Err(_) => return Ok(Some(Outcome::Ended)),
        };
        let is_the_same = session.is_some() && self.session == session;
        Ok(match status.as_str() {
            "in progress" => None,
            "committed" if is_the_same => Some(Outcome::Committed),
            "aborted" if is_the_same => Some(Outcome::Aborted),
            _ => Some(Outcome::Ended),
        })
    }
}
