//! Settings. Each is named once, with its environment variable, flag, default and unit.
//!
//! A value comes from the flag, else the environment, else `.env`, else the default. A secret may also come from the
//! file that `NAME_FILE` names. Every mistake is reported, not only the first.

mod access;
mod conninfo;
mod origins;
mod parts;
mod rate;
mod value;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use self::access::{ALLOWED_HOSTS, API_TOKENS, AUTH, lets_in};
pub use self::access::{AccessSettings, Mode, TokenSource};
pub use self::conninfo::Conninfo;
pub use self::origins::Origins;
pub use self::parts::{CacheSettings, DatabaseSettings, HttpSettings, Kept, WithoutPostgres};
pub use self::rate::RateSettings;
use self::rate::{AUTH_FAILURES, RATE_LIMIT, TRUSTED_PROXIES};
pub use self::value::{duration, http_url, number, one_of, path_prefix, positive_duration};
use self::value::{grant_life, redis_url};

/// One setting, as `--help` shows it.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The environment variable; the flag is the same in lower case with dashes.
    pub env: &'static str,
    /// The value if none is given.
    pub default: Option<&'static str>,
    /// What the value is, and its unit.
    pub help: &'static str,
    /// Whether `<env>_FILE` may name a file that holds the value.
    pub secret: bool,
}

/// A setting with a default.
#[must_use]
pub const fn setting(env: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { env, default: Some(default), help, secret: false }
}

const fn secret(env: &'static str, default: Option<&'static str>, help: &'static str) -> Setting {
    Setting { env, default, help, secret: true }
}

/// The settings of both services; the defaults `port` and `metrics_port` differ.
#[must_use]
pub fn shared(port: &'static str, metrics_port: &'static str) -> Vec<Setting> {
    vec![
        setting("HOST", "127.0.0.1", "Address to listen on; another than loopback needs API_TOKENS or AUTH"),
        setting("PORT", port, "Port of the API; 0 takes any free one"),
        setting("METRICS_HOST", "127.0.0.1", "Address that /metrics listens on, whatever HOST is"),
        setting("METRICS_PORT", metrics_port, "Port of /metrics, not to be published; 0 takes any free one"),
        setting("WORKERS", "0", "HTTP worker threads; 0 is one a core"),
        setting("MAX_CONNECTIONS", "10000", "Client connections open at once"),
        setting(
            "CORS_ORIGINS",
            "auto",
            "Whose pages may call: auto (loopback origins while HOST is loopback, else none), origins, or *",
        ),
        AUTH,
        API_TOKENS,
        ALLOWED_HOSTS,
        RATE_LIMIT,
        AUTH_FAILURES,
        TRUSTED_PROXIES,
        setting("DRAIN_DELAY", "0s", "How long to go on accepting after SIGTERM, with /readyz already 503"),
        setting("GRACE_PERIOD", "10s", "How long requests may take to finish after that"),
        setting("LOG_FORMAT", "human", "human, or json: one object a line"),
        setting(
            "RUST_LOG",
            "info,actix_server=warn",
            "Log levels, as env_logger reads them, e.g. info,access=debug",
        ),
        secret(
            "DATABASE_URL",
            Some("postgres://postgres@127.0.0.1:5432/users"),
            "PostgreSQL (the primary): any connection string that libpq takes",
        ),
        secret("DATABASE_PASSWORD", None, "Its password"),
        setting("DATABASE_CONNECTIONS", "10", "Connections to PostgreSQL, beside one that watches it"),
        setting(
            "DATABASE_PREPARED",
            "auto",
            "auto: statements stay prepared. false: behind a pooler such as PgBouncer in transaction mode",
        ),
        setting(
            "DATABASE_QUEUE",
            "4096",
            "Queries that may wait for a connection, and reads (128 at least) for Redis; beyond it 503 at once",
        ),
        setting("DATABASE_DEADLINE", "2s", "How long a request may wait for its query, queue included"),
        setting("DATABASE_STATEMENT_TIMEOUT", "1s", "How long PostgreSQL may work on one statement"),
        setting("DATABASE_LOCK_TIMEOUT", "500ms", "How long a statement may wait for a lock"),
        secret(
            "REDIS_URL",
            Some("redis://127.0.0.1:6379/0"),
            "Redis 7.0 or newer; rediss:// for TLS, its CA in SSL_CERT_FILE; unix:// for a socket",
        ),
        secret("REDIS_PASSWORD", None, "Its password"),
        setting("CACHE_TIMEOUT", "50ms", "How long one step with Redis may take"),
        setting("CACHE_TTL", "300s", "How long a user stays cached at most"),
        setting("CACHE_ABSENT_TTL", "10s", "How long it stays cached that a user does not exist"),
        setting(
            "PUBLIC_USER_URL",
            "http://127.0.0.1:8080",
            "Where clients reach user-svc, with the path prefix of a proxy if there is one",
        ),
        setting(
            "PUBLIC_DATA_URL",
            "http://127.0.0.1:8081",
            "Where clients reach data-svc, likewise: the start of Location",
        ),
    ]
}

/// The setting of user-svc: for how long a look at the grant is valid.
pub const CACHE_GRANT: Setting = setting(
    "CACHE_GRANT",
    "3s",
    "How long hits go on while PostgreSQL is silent, and writes wait when Redis is lost",
);

/// The setting of data-svc: what it does without PostgreSQL.
pub const CACHE_WITHOUT_POSTGRES: Setting = setting(
    "CACHE_WITHOUT_POSTGRES",
    "false",
    "true: hits go on however long PostgreSQL is silent. If it is only cut off from here, they may be as old as CACHE_TTL",
);

/// Settings of former versions, and what has become of them.
const REMOVED: [(&str, &str); 1] = [(
    "CACHE_STRICT",
    "is no longer a setting: every write waits until no reader can return what was before it. See CACHE_GRANT",
)];

/// What a mistake also says about a value such as `tcp://10.0.0.1:80`.
const FROM_KUBERNETES: &str = "; Kubernetes has set it, for a service of that name: set enableServiceLinks: false in the \
     pod's spec, or the variable itself";

/// The setting of data-svc: how much memory the near cache takes.
pub const NEAR_CACHE_MIB: Setting =
    setting("NEAR_CACHE_MIB", "64", "Memory for the near cache, in MiB; 0 is none");

/// A text that is never logged.
#[derive(Clone, Default)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Every mistake in the settings, one a line.
#[derive(Debug, PartialEq, Eq)]
pub struct SettingsError(Vec<String>);

impl Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings are wrong:")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

/// Reads settings one by one, and collects every mistake in them.
#[derive(Debug)]
pub struct SettingsReader {
    values: BTreeMap<&'static str, String>,
    /// The file of [`API_TOKENS`], which is watched and not only read here.
    token_file: Option<PathBuf>,
    /// Whether the command lets clients in.
    lets_in: bool,
    mistakes: Vec<String>,
}

impl SettingsReader {
    /// Adds `settings` to `command`, as flags and environment variables.
    #[must_use]
    pub fn describe(command: Command, settings: &[Setting]) -> Command {
        let command = command.after_help(secrets_help(settings));
        command.args(settings.iter().map(|s| {
            let arg = Arg::new(s.env).long(flag(s.env)).env(s.env).help(s.help).global(true);
            let arg = arg.hide_env_values(true).hide(s.secret);
            s.default.map_or(arg.clone(), |default| arg.default_value(default))
        }))
    }

    /// Takes the values of `settings` from `matches`, and from the files that `*_FILE` variables name.
    #[must_use]
    pub fn new(matches: &ArgMatches, settings: &[Setting]) -> Self {
        let mut reader = Self {
            values: BTreeMap::new(),
            token_file: None,
            lets_in: lets_in(matches),
            mistakes: Vec::new(),
        };
        for (env, what) in REMOVED {
            if std::env::var_os(env).is_some_and(|value| !value.is_empty()) {
                reader.wrong(env, what);
            }
        }
        for s in settings {
            // Empty is unset: a compose file passes a variable that is not set as empty.
            let value = matches.get_one::<String>(s.env).filter(|value| !value.is_empty());
            let source = matches.value_source(s.env);
            let given = value.is_some() && source != Some(ValueSource::DefaultValue);
            // The unit tests cannot set variables, which all threads share.
            if s.secret && source == Some(ValueSource::CommandLine) && !cfg!(test) {
                reader.wrong(
                    s.env,
                    "may not be a flag, which `ps` shows to everyone: use the variable, or its _FILE",
                );
            }
            let value = value.cloned().or_else(|| s.default.map(str::to_owned));
            let file = s
                .secret
                .then(|| std::env::var(format!("{}_FILE", s.env)).ok())
                .flatten()
                .filter(|f| !f.is_empty());
            let value = match file {
                Some(_) if given => {
                    reader.wrong(s.env, "is set, and so is its _FILE: keep one");
                    None
                }
                Some(path) if s.env == API_TOKENS.env => {
                    reader.token_file = Some(path.into());
                    None
                }
                Some(path) => reader.file(s.env, &path),
                None => value,
            };
            if let Some(value) = value {
                reader.values.insert(s.env, value);
            }
        }
        reader
    }

    fn file(&mut self, env: &str, path: &str) -> Option<String> {
        match std::fs::read_to_string(path) {
            Ok(text) => Some(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) => {
                self.mistakes.push(format!("{env}_FILE: cannot read {path}: {error}"));
                None
            }
        }
    }

    fn wrong(&mut self, env: &str, what: impl Display) {
        self.mistakes.push(format!("{env} {what}"));
    }

    /// The value of `env`, read by `parse`. A mistake is collected, and the type's default returned.
    pub fn get<T: Default>(&mut self, env: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let Some(value) = self.values.get(env) else { return T::default() };
        let hint = if value.starts_with("tcp://") { FROM_KUBERNETES } else { "" };
        parse(value).unwrap_or_else(|expected| {
            self.wrong(env, format!("{expected}{hint}"));
            T::default()
        })
    }

    /// The part of [`shared`] for the HTTP server.
    pub fn http(&mut self) -> HttpSettings {
        let host = self.address("HOST");
        HttpSettings {
            host,
            port: self.get("PORT", number(0..=65535)),
            metrics_host: self.address("METRICS_HOST"),
            metrics_port: self.get("METRICS_PORT", number(0..=65535)),
            workers: self.get("WORKERS", number(0..=512)),
            max_connections: self.get("MAX_CONNECTIONS", number(1..=1_000_000)),
            origins: self.get("CORS_ORIGINS", |value| Origins::parse(value, host)),
            drain_delay: self.get("DRAIN_DELAY", duration),
            grace_period: self.get("GRACE_PERIOD", positive_duration),
        }
    }

    /// The part of [`shared`] for PostgreSQL.
    pub fn database(&mut self) -> DatabaseSettings {
        DatabaseSettings {
            url: self.database_url(),
            connections: self.get("DATABASE_CONNECTIONS", number(1..=1_000)),
            kept: match self.get("DATABASE_PREPARED", one_of(&["auto", "false"])) {
                "false" => Kept::Nothing,
                _ => Kept::Session,
            },
            queue: self.get("DATABASE_QUEUE", number(1..=1_000_000)),
            timeout: self.get("DATABASE_DEADLINE", positive_duration),
            statement_timeout: self.get("DATABASE_STATEMENT_TIMEOUT", positive_duration),
            lock_timeout: self.get("DATABASE_LOCK_TIMEOUT", positive_duration),
            grant_life: self.get(CACHE_GRANT.env, grant_life),
            without_postgres: match self.get(CACHE_WITHOUT_POSTGRES.env, one_of(&["true", "false"])) {
                "true" => WithoutPostgres::GoOn,
                _ => WithoutPostgres::Stop,
            },
        }
    }

    /// The part of [`shared`] for Redis, with the cache's own settings.
    pub fn cache(&mut self) -> CacheSettings {
        CacheSettings {
            url: self.redis_url(),
            timeout: self.get("CACHE_TIMEOUT", positive_duration),
            ttl: self.get("CACHE_TTL", positive_duration),
            absent_ttl: self.get("CACHE_ABSENT_TTL", positive_duration),
            near_bytes: self.get(NEAR_CACHE_MIB.env, number(0..=1 << 20)) << 20,
        }
    }

    fn address(&mut self, env: &'static str) -> IpAddr {
        let address = self.get(env, |v| v.parse().map(Some).map_err(|_| "must be an IP address".to_owned()));
        address.unwrap_or(Ipv4Addr::LOCALHOST.into())
    }

    fn database_url(&mut self) -> Conninfo {
        let password = self.values.get("DATABASE_PASSWORD").cloned();
        self.get("DATABASE_URL", |value| {
            let mut conninfo = Conninfo::parse(value)?;
            if let Some(password) = &password {
                conninfo.set("password", password);
            }
            Ok(conninfo)
        })
    }

    fn redis_url(&mut self) -> Secret {
        let password = self.values.get("REDIS_PASSWORD").cloned();
        let url = self.get("REDIS_URL", |value| {
            let mut url = redis_url(value)?;
            if let Some(password) = &password {
                if url.scheme().ends_with("unix") {
                    url.query_pairs_mut().append_pair("pass", password);
                } else {
                    // `set_password` does not escape a %.
                    let escaped = utf8_percent_encode(password, NON_ALPHANUMERIC).to_string();
                    url.set_password(Some(&escaped)).map_err(|()| "cannot take a password".to_owned())?;
                }
            }
            Ok(url.to_string())
        });
        Secret(url)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`SettingsError`], all of them, if there was one.
    pub fn finish(self) -> Result<(), SettingsError> {
        if self.mistakes.is_empty() { Ok(()) } else { Err(SettingsError(self.mistakes)) }
    }
}

/// What `--help` says of the secrets, which are no flags.
fn secrets_help(settings: &[Setting]) -> String {
    let mut help = "Secrets, by variable, in .env, or in a file that NAME_FILE names:".to_owned();
    for Setting { env, default, help: what, .. } in settings.iter().filter(|setting| setting.secret) {
        help.extend(["\n  ", what, " [env: ", env, "]"]);
        help.extend(default.map(|default| format!(" [default: {default}]")));
    }
    help
}

fn flag(env: &str) -> String {
    env.to_lowercase().replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<(HttpSettings, DatabaseSettings, CacheSettings), SettingsError> {
        let settings = shared("8080", "9080");
        let command = SettingsReader::describe(Command::new("test"), &settings);
        let matches = command.get_matches_from([&["test"], arguments].concat());
        let mut reader = SettingsReader::new(&matches, &settings);
        let read = (reader.http(), reader.database(), reader.cache());
        reader.finish().map(|()| read)
    }

    #[test]
    fn every_mistake_is_reported_at_once_and_names_its_variable() {
        let wrong = ["--port=70000", "--cache-ttl=300", "--redis-url=http://x", "--database-connections=0"];
        let Err(mistakes) = read(&wrong) else { panic!("accepted") };
        let text = mistakes.to_string();
        for name in ["PORT", "CACHE_TTL", "REDIS_URL", "DATABASE_CONNECTIONS"] {
            assert!(text.contains(name), "{text}");
        }
    }

    #[test]
    fn a_password_of_its_own_is_put_into_the_url() {
        let (_, database, cache) =
            read(&["--database-password=a/b@c%41", "--redis-password=x y"]).expect("valid");
        assert_eq!(database.url.get("password"), Some("a/b@c%41"));
        assert_eq!(cache.url.expose(), "redis://:x%20y@127.0.0.1:6379/0");
        assert!(!format!("{database:?}").contains("a%2Fb"));
    }
}
