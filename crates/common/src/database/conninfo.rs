//! How the services connect to PostgreSQL.

use diesel::connection::CacheSize;
use diesel::{Connection, ConnectionResult, PgConnection};

use crate::config::{Conninfo, DatabaseSettings};

/// Connects as `settings` say, for few statements: none is kept prepared, so that they may go through any pooler.
///
/// # Errors
/// The database's.
pub fn connect(settings: &DatabaseSettings) -> ConnectionResult<PgConnection> {
    connect_to(&connection_string(settings))
}

/// Connects by a [`connection_string`], likewise.
///
/// # Errors
/// The database's.
pub fn connect_to(url: &str) -> ConnectionResult<PgConnection> {
    let mut connection = PgConnection::establish(url)?;
    connection.set_prepared_statement_cache_size(CacheSize::Disabled);
    Ok(connection)
}

/// The connection string of `settings`, with bounds for a connection to a server that has vanished, unless it has its
/// own. Of several hosts the primary is used.
#[must_use]
pub fn connection_string(settings: &DatabaseSettings) -> String {
    let mut conninfo = settings.url.clone();
    let bounds = [
        ("connect_timeout", "2"), // seconds, the least that libpq takes
        // Seconds: an idle connection to a dead host is found after 5 + 3 * 2.
        ("keepalives_idle", "5"),
        ("keepalives_interval", "2"),
        ("keepalives_count", "3"),
        ("tcp_user_timeout", "10000"), // milliseconds, as long for one that has sent
        ("fallback_application_name", "users"),
    ];
    for (name, value) in bounds {
        conninfo.set_default(name, value);
    }
    if hosts(&conninfo) > 1 {
        conninfo.set_default("target_session_attrs", "primary");
    }
    conninfo.to_string()
}

/// How many servers it names.
#[must_use]
pub fn hosts(conninfo: &Conninfo) -> usize {
    let lists = ["host", "hostaddr"].into_iter().filter_map(|name| conninfo.get(name));
    lists.map(|list| list.split(',').count()).max().unwrap_or(1)
}
