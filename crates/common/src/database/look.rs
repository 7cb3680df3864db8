//! A look at PostgreSQL: the monitor's query, and its connection.

use std::sync::mpsc;
use std::thread;
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
const SHARED_SESSION: &str = "DATABASE_URL leads through a pooler that gives each transaction another session: \
     set DATABASE_PREPARED=false.";

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
            if is_shared(&mut connection, &word, url, timeout)? {
                shared = "true".to_owned();
            } else {
                shared = format!("current_setting('{MARK}', true) IS DISTINCT FROM '{word}'");
                connection.batch_execute(&format!("SET statement_timeout = {}", timeout.as_millis()))?;
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
///
/// # Errors
/// The database's; also that it cannot be tried, for another reason than that the role may have no more connections.
fn is_shared(
    connection: &mut PgConnection,
    word: &str,
    url: &str,
    timeout: Duration,
) -> Result<bool, Failure> {
    connection.batch_execute(&mark(word))?;
    let other_word = new_word();
    let Some(mut other) = second_connection(url, timeout)? else { return Ok(false) };
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

/// Another connection. None if the role may have no more, or if there is none within `timeout`: a pooler that gives each
/// client a session of its own lets it wait when all are taken.
fn second_connection(url: &str, timeout: Duration) -> Result<Option<PgConnection>, Failure> {
    let (sender, receiver) = mpsc::channel();
    let url = url.to_owned();
    // The receiver may have given up.
    thread::Builder::new()
        .name("database-probe".into())
        .spawn(move || drop(sender.send(connect_to(&url))))?;
    match receiver.recv_timeout(timeout) {
        Ok(Ok(connection)) => Ok(Some(connection)),
        Ok(Err(error)) if is_shortage(&error.to_string()) => Ok(None),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// Whether PostgreSQL has refused a connection since there are too many.
fn is_shortage(reason: &str) -> bool {
    reason.contains("too many") || reason.contains("remaining connection slots")
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

/// How a server says that it takes no connections.
const REFUSALS: [&str; 3] =
    ["Connection refused", "the database system is starting up", "the database system is shutting down"];
/// How libpq says that a server is not the primary. Of several: one alone is not the one that the operator meant.
const STANDBY: &str = "server is in hot standby mode";

/// Whether a new connection was refused because PostgreSQL is down: libpq's message, `reason`, has a line for each of the
/// `hosts` that were tried, and each says so. Silence is no refusal, and neither is "too many connections", a failed
/// login, a name without an address, or the end of a connection: then it may be up, and take writes.
pub fn is_refusal(reason: &str, hosts: usize) -> bool {
    let is_down = |line: &str| {
        REFUSALS.iter().any(|refusal| line.contains(refusal)) || (hosts > 1 && line.contains(STANDBY))
    };
    // Lines that begin with a tab are hints about the line before.
    let mut lines = reason.lines().filter(|line| !line.is_empty() && !line.starts_with('\t'));
    lines.clone().count() >= hosts && lines.all(is_down)
}

#[cfg(test)]
mod tests {
    use super::is_refusal;

    #[test]
    fn only_a_server_that_is_down_refuses() {
        for refusal in [
            "connection to server at \"127.0.0.1\", port 5432 failed: Connection refused\n\tIs the server running?\n",
            "FATAL:  the database system is starting up",
            "FATAL:  the database system is shutting down",
            "could not connect to server: Connection refused\n\tIs the server running?",
        ] {
            assert!(is_refusal(refusal, 1), "{refusal}");
        }
        for other in [
            "",
            "timeout expired",
            "No route to host",
            "Connection reset by peer",
            "server closed the connection unexpectedly",
            "connection to server at \"a\", port 1 failed: server is in hot standby mode",
            "FATAL:  sorry, too many clients already",
            "FATAL:  password authentication failed for user \"users\"",
            "FATAL:  the database system is in recovery mode",
            "DATABASE_URL leads to a standby, which may lack what the primary has acknowledged.",
        ] {
            assert!(!is_refusal(other, 1), "{other}");
        }
    }

    #[test]
    fn of_several_hosts_each_must_refuse_or_be_a_standby() {
        const A: &str =
            "connection to server at \"a\", port 1 failed: Connection refused\n\tIs the server running?\n";
        for b in
            ["failed: Connection refused\n\tIs the server running?", "failed: server is in hot standby mode"]
        {
            assert!(is_refusal(&format!("{A}connection to server at \"b\", port 1 {b}"), 2), "{b}");
        }
        for b in [
            "",
            "connection to server at \"b\", port 1 failed: timeout expired",
            "connection to server at \"b\", port 1 failed: server closed the connection unexpectedly",
            "could not translate host name \"b\" to address: Temporary failure in name resolution",
        ] {
            assert!(!is_refusal(&format!("{A}{b}"), 2), "{b}");
        }
    }
}
