//! The URL by which the services connect to PostgreSQL.

use ::url::Url;

use crate::config::DatabaseSettings;

/// The URL of `settings`, with bounds for a connection to a server that has vanished, unless it has its own.
#[must_use]
pub fn connection_url(settings: &DatabaseSettings) -> String {
    let Ok(mut url) = Url::parse(settings.url.expose()) else { return settings.url.expose().to_owned() };
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
        if !url.query_pairs().any(|(given, _)| given == name) {
            url.query_pairs_mut().append_pair(name, value);
        }
    }
    url.into()
}
