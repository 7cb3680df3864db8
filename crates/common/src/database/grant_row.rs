//! The one row of the table `cache_grant`, and the statements that read and change it.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};

use super::conninfo::connect;
use super::grant::wait;
use super::schema::cache_grant;
use super::statements::{DURABLE, IDLE_IN_TRANSACTION};
use crate::config::DatabaseSettings;
use crate::error::CommandResult;

/// The advisory lock of writers, shared, and of a change from *suspended* to *granted*, exclusive: "grant" in ASCII.
pub const GRANT_LOCK: i64 = 0x67_72_61_6e_74;

/// A transaction that writes, and the grant that it sees.
#[derive(Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its id.
    pub id: String,
    /// The grant's epoch.
    pub epoch: i64,
    /// When the server has started that runs the transaction.
    pub server_start: String,
    /// The Redis process that may be used; none: suspended.
    pub redis: Option<String>,
}

impl Transaction {
    /// Reads the value of [`super::InTransaction`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '|').map(str::to_owned);
        let id = parts.next()?;
        let epoch = parts.next()?.parse().ok()?;
        let server_start = parts.next()?;
        let redis = parts.next().filter(|redis| !redis.is_empty());
        Some(Self { id, epoch, server_start, redis })
    }
}

/// Why a grant was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Redis did not confirm the barriers of a write.
    Unreachable,
    /// Another Redis process answers.
    OtherProcess,
}

impl Reason {
    /// The value of the metric's label `reason`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::OtherProcess => "other_process",
        }
    }
}

/// Makes a first row: grants `redis`, or suspends the cache. A row that is there stays.
///
/// # Errors
/// The database's.
pub fn create(connection: &mut PgConnection, redis: Option<&str>, life: Duration) -> QueryResult<()> {
    let row = (
        cache_grant::epoch.eq(rand::random::<i64>()),
        cache_grant::redis.eq(redis),
        cache_grant::life_ms.eq(milliseconds(life)),
    );
    durably(connection, |connection| {
        let insert = diesel::insert_into(cache_grant::table).values(row).on_conflict_do_nothing();
        insert.execute(connection).map(drop)
    })
}

/// Suspends the grant of `epoch`, or any without one. It needs no lock: writes that are under way guard the process
/// that was granted when they looked, and every reader that uses it sees their barriers. Returns whether it was that
/// epoch.
///
/// A cache that is suspended again within a minute stays so for longer each time, 30 seconds at most.
///
/// # Errors
/// The database's.
pub fn suspend(connection: &mut PgConnection, epoch: Option<i64>) -> QueryResult<bool> {
    let update = sql_query(
        "UPDATE cache_grant SET redis = NULL, epoch = $1, changed_at = now(), pause_ms = CASE
             WHEN redis IS NULL THEN pause_ms
             WHEN now() - changed_at > interval '1 minute' THEN 0
             ELSE least(30000, greatest(1000, 2 * pause_ms)) END
         WHERE epoch = coalesce($2, epoch)",
    )
    .bind::<BigInt, _>(rand::random::<i64>())
    .bind::<Nullable<BigInt>, _>(epoch);
    durably(connection, |connection| Ok(update.execute(connection)? > 0))
}

/// Grants `redis`, if `epoch` is still the one that is suspended: when no write that began under the suspension is
/// under way. Returns whether it did.
///
/// # Errors
/// The database's, and that such writes take longer than a tenth of a second: others wait behind this meanwhile.
pub fn grant(connection: &mut PgConnection, epoch: i64, redis: &str, life: Duration) -> QueryResult<bool> {
    durably(connection, |connection| {
        connection.batch_execute(&format!(
            "SET LOCAL lock_timeout = '100ms'; SELECT pg_advisory_xact_lock({GRANT_LOCK})"
        ))?;
        let rows = sql_query(
            "UPDATE cache_grant SET redis = $1, epoch = $2, changed_at = now(), life_ms = $3
             WHERE epoch = $4 AND redis IS NULL AND now() >= changed_at + pause_ms * interval '1 ms'",
        )
        .bind::<Text, _>(redis)
        .bind::<BigInt, _>(rand::random::<i64>())
        .bind::<Integer, _>(milliseconds(life))
        .bind::<BigInt, _>(epoch)
        .execute(connection)?;
        Ok(rows > 0)
    })
}

/// Does `change` in a transaction that survives a crash of the server, and that ends without this process.
fn durably<T>(
    connection: &mut PgConnection,
    change: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
) -> QueryResult<T> {
    connection.transaction(|connection| {
        connection.batch_execute(&format!(
            "{DURABLE}; SET LOCAL idle_in_transaction_session_timeout = {}",
            IDLE_IN_TRANSACTION.as_millis()
        ))?;
        change(connection)
    })
}

/// The `purge --all` sub-command: suspends the cache, and returns when no reader uses what was in it. A user-svc that
/// runs then grants Redis under a new epoch.
///
/// # Errors
/// The database's.
pub fn purge_all(settings: &DatabaseSettings) -> CommandResult {
    let mut connection = connect(settings)?;
    let life: Option<i32> =
        cache_grant::table.select(cache_grant::life_ms).first(&mut connection).optional()?;
    suspend(&mut connection, None)?;
    log::info!(target: "audit", "purge of all users");
    let life = Duration::from_millis(u64::try_from(life.unwrap_or(0)).unwrap_or(0));
    std::thread::sleep(wait(life));
    log::info!("no reader uses what was cached; user-svc grants the cache anew");
    Ok(())
}

fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}
