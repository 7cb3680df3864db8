//! A look at PostgreSQL: the monitor's query, and its connection.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text};

use super::conninfo::connect_to;
use super::grant::Grant;
use super::migrations::Schema;
use super::session::{Pool, Pooled, discard};
use super::statements::{MARK, mark, new_word};
use crate::config::Kept;

/// Why a look has failed.
pub type Failure = Box<dyn std::error::Error>;

/// What a look at PostgreSQL shows.
#[derive(QueryableByName)]
pub struct Look {
    /// Whether the server is in recovery: it may lack what the primary has acknowledged.
    #[diesel(sql_type = Bool)]
    pub standby: bool,
    #[diesel(sql_type = Text)]
    encoding: String,
    /// Whether a pooler shares the session among clients, though settings and statements are kept in it.
    #[diesel(sql_type = Bool)]
    shared: bool,
    /// Whether it takes no writes.
    #[diesel(sql_type = Bool)]
    pub read_only: bool,
    #[diesel(sql_type = Text)]
    database: String,
    #[diesel(sql_type = Text)]
    server_start: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    epoch: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    redis: Option<String>,
    #[diesel(sql_type = Nullable<Integer>)]
    life_ms: Option<i32>,
}

impl Look {
    /// Why the database is not used, though it answers: for an operator.
    pub fn obstacle(&self) -> Option<&'static str> {
        if self.standby {
            Some("DATABASE_URL leads to a standby, which may lack what the primary has acknowledged.")
        } else if self.encoding != "UTF8" {
            Some("The encoding of the database is not UTF8, so it cannot hold every name.")
        } else if self.shared {
            Some(SHARED_SESSION)
        } else {
            None
        }
    }

    /// The grant, if there is one.
    pub fn into_grant(self) -> Option<Grant> {
        let life = Duration::from_millis(u64::try_from(self.life_ms?).unwrap_or(0));
        Some(Grant::new(self.epoch?, self.redis.as_deref(), life, &self.database, self.server_start))
    }
}

/// Through such a pooler a statement that is prepared may be another client's.
const SHARED_SESSION: &str = "DATABASE_URL leads through a pooler that gives each transaction another session: set DATABASE_PREPARED=false.";

/// The query of a look, but for whether the session is shared and the table.
const LOOK: &str = "\
SELECT pg_is_in_recovery() AS standby, current_setting('server_encoding') AS encoding,
  current_setting('transaction_read_only')::boolean AS read_only,
  (SELECT oid::text FROM pg_database WHERE datname = current_database()) AS database,
  extract(epoch FROM pg_postmaster_start_time())::text AS server_start, epoch, redis, life_ms, ";

/// Instead of the table, for a role that may not read it.
const NO_GRANT: &str =
    "(SELECT NULL::bigint AS epoch, NULL::text AS redis, NULL::integer AS life_ms) AS none ON true";

/// A connection, and the query by which it looks.
pub struct Watched {
    connection: Held,
    query: String,
}

enum Held {
    Own(PgConnection),
    Borrowed(Pooled),
}

impl Watched {
    /// Connects, with `timeout` for each statement if `kept` says that the session keeps that. Prepares the schema if
    /// `schema` says so.
    ///
    /// # Errors
    /// The database's, and that the schema is not there.
    pub fn connect(
        url: &str,
        kept: Kept,
        schema: Option<Schema>,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let mut connection = connect_to(url)?;
        let mut shared = "false".to_owned();
        if kept == Kept::Session {
            let word = new_word();
            connection.batch_execute(&format!("SET statement_timeout = {}", timeout.as_millis()))?;
            shared = format!("current_setting('{MARK}', true) IS DISTINCT FROM '{word}'");
            if is_shared(&mut connection, &word, url)? {
                shared = "true".to_owned();
            }
        }
        let is_usable = format!(
            "NOT pg_is_in_recovery() AND current_setting('server_encoding') = 'UTF8' AND NOT ({shared})"
        );
        let usable = ask(&mut connection, &is_usable)?;
        if let Some(schema) = schema.filter(|_| usable) {
            schema.prepare(&mut connection)?;
        }
        let table = if usable { grant_table(&mut connection)? } else { NO_GRANT };
        Ok(Self::on(Held::Own(connection), &shared, table))
    }

    /// Borrows a connection of the workers, of which one must become free within `timeout`.
    ///
    /// # Errors
    /// None has become free, and the database's.
    pub fn borrow(pool: &Pool, timeout: Duration) -> Result<Self, Failure> {
        let mut connection = pool.get_timeout(timeout)?;
        let table = grant_table(&mut connection)?;
        Ok(Self::on(Held::Borrowed(connection), "false", table))
    }

    fn on(connection: Held, shared: &str, table: &str) -> Self {
        let query = format!("{LOOK}{shared} AS shared FROM (VALUES (1)) AS one LEFT JOIN {table}");
        Self { connection, query }
    }

    /// The connection.
    pub fn connection(&mut self) -> &mut PgConnection {
        match &mut self.connection {
            Held::Own(connection) => connection,
            Held::Borrowed(connection) => connection,
        }
    }

    /// Looks.
    ///
    /// # Errors
    /// The database's.
    pub fn look(&mut self) -> QueryResult<Look> {
        let query = sql_query(self.query.clone());
        query.get_result(self.connection())
    }

    /// This, for the next look. A connection that was borrowed is closed instead: then there is room for an own one, if
    /// the role may have no more.
    pub fn keep(self) -> Option<Self> {
        match self.connection {
            Held::Own(_) => Some(self),
            Held::Borrowed(connection) => {
                discard(connection);
                None
            }
        }
    }
}

/// What a look reads the grant from.
fn grant_table(connection: &mut PgConnection) -> QueryResult<&'static str> {
    if ask(connection, "has_table_privilege('cache_grant', 'SELECT')")? {
        return Ok("cache_grant ON true");
    }
    log::error!("the role has no right to SELECT from the table cache_grant: the cache is not used");
    Ok(NO_GRANT)
}

/// Whether a pooler gives statements of two clients to one session, or of one client to two. Marks the session of
/// `connection` by `word`.
///
/// A pooler takes the session that was used last, which is then another client's, or the one that was not used for
/// longest, which then changes from statement to statement. On a busy one others may come in between, so this tries
/// again; and each later look compares the mark.
fn is_shared(connection: &mut PgConnection, word: &str, url: &str) -> QueryResult<bool> {
    let other_word = new_word();
    // Without a second connection, as when the role may have one only, the looks must do.
    let Ok(mut other) = connect_to(url) else {
        connection.batch_execute(&mark(word))?;
        return Ok(false);
    };
    let is_marked = format!("current_setting('{MARK}', true) IS NOT DISTINCT FROM '{other_word}'");
    for _ in 0..3 {
        other.batch_execute(&mark(&other_word))?;
        connection.batch_execute(&mark(word))?;
        if !ask(&mut other, &is_marked)? || !ask(&mut other, &is_marked)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The answer to a question of yes or no.
fn ask(connection: &mut PgConnection, question: &str) -> QueryResult<bool> {
    #[derive(QueryableByName)]
    struct Answer {
        #[diesel(sql_type = Bool)]
        yes: bool,
    }
    let Answer { yes } = sql_query(format!("SELECT {question} AS yes")).get_result(connection)?;
    Ok(yes)
}

/// How a server says that it takes no writes: it is down, or it is a standby.
const REFUSALS: [&str; 4] = [
    "Connection refused",
    "the database system is starting up",
    "the database system is shutting down",
    "server is in hot standby mode",
];

/// Whether a new connection was refused because PostgreSQL is down: by each host, and each address of a host, for which
/// libpq's message has a part. Silence is no refusal, and neither is "too many connections", a failed login, or the end
/// of a connection: then it may be up, and take writes.
pub fn is_refusal(reason: &str) -> bool {
    // Before version 14 each part begins by the second form.
    let reason = reason.replace("could not connect to server", "connection to server");
    let mut attempts = reason.split("connection to server").filter(|part| !part.trim().is_empty()).peekable();
    attempts.peek().is_some()
        && attempts.all(|attempt| REFUSALS.iter().any(|refusal| attempt.contains(refusal)))
}

#[cfg(test)]
mod tests {
    use super::is_refusal;

    #[test]
    fn only_a_server_that_is_down_refuses() {
        for refusal in [
            "connection to server at \"127.0.0.1\", port 5432 failed: Connection refused",
            "FATAL:  the database system is starting up",
            "FATAL:  the database system is shutting down",
            "connection to server at \"a\", port 1 failed: Connection refused\n\tIs the server running?\n\
             connection to server at \"b\", port 1 failed: server is in hot standby mode",
            "could not connect to server: Connection refused\n\tIs the server running?\n\
             could not connect to server: Connection refused",
        ] {
            assert!(is_refusal(refusal), "{refusal}");
        }
        for other in [
            "connection to server at \"a\", port 1 failed: Connection refused\n\tIs the server running?\n\
             connection to server at \"b\", port 1 failed: timeout expired",
            "connection to server at \"a\", port 1 failed: server is in hot standby mode\n\
             connection to server at \"b\", port 1 failed: server closed the connection unexpectedly",
            "could not connect to server: Connection refused\ncould not connect to server: Connection timed out",
            "",
            "timeout expired",
            "No route to host",
            "Connection reset by peer",
            "server closed the connection unexpectedly",
            "FATAL:  sorry, too many clients already",
            "FATAL:  password authentication failed for user \"users\"",
            "FATAL:  the database system is in recovery mode",
            "DATABASE_URL leads to a standby, which may lack what the primary has acknowledged.",
        ] {
            assert!(!is_refusal(other), "{other}");
        }
    }
}
