//! Logs through `env_logger`: for people by default, one JSON object a line with `LOG_FORMAT=json`.

use std::fmt::Write as _;
use std::io::Write;
use std::time::SystemTime;

use log::Record;
use log::kv::{Key, Value, VisitSource};

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `2026-01-31T12:00:00.000Z INFO access: GET /user/{name} 200 ms=0.4`
    Human,
    /// `{"timestamp":"...","level":"INFO","target":"access","message":"...","ms":0.4}`
    Json,
}

/// Installs the logger; `filter` is what `RUST_LOG` says. A second call does nothing.
pub fn start(filter: &str, format: Format) {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(filter);
    match format {
        Format::Human => builder.format(|out, record| writeln!(out, "{}", human(record))),
        Format::Json => builder.format(|out, record| writeln!(out, "{}", json(record))),
    };
    // Only a test that starts twice in one process gets an error here, and its first logger serves.
    drop(builder.try_init());
}

fn now() -> impl std::fmt::Display {
    humantime::format_rfc3339_millis(SystemTime::now())
}

fn human(record: &Record) -> String {
    let mut line = format!("{} {:<5} {}: {}", now(), record.level(), record.target(), record.args());
    // A line break inside a message must not look like a second line.
    line = line.replace(['\n', '\r'], " ");
    each_field(record, |key, value| {
        let value = value.to_string();
        let _infallible = match value.contains([' ', '"', '\n', '\r']) {
            true => write!(line, " {key}={value:?}"),
            false => write!(line, " {key}={value}"),
        };
    });
    line
}

fn json(record: &Record) -> String {
    let mut object = serde_json::Map::new();
    object.insert("timestamp".into(), now().to_string().into());
    object.insert("level".into(), record.level().as_str().into());
    object.insert("target".into(), record.target().into());
    object.insert("message".into(), record.args().to_string().into());
    each_field(record, |key, value| {
        let value = value.to_f64().map_or_else(|| value.to_string().into(), serde_json::Value::from);
        object.insert(key.into(), value);
    });
    serde_json::Value::Object(object).to_string()
}

fn each_field(record: &Record, visit: impl FnMut(&str, Value)) {
    struct Visitor<F>(F);
    impl<'kvs, F: FnMut(&str, Value)> VisitSource<'kvs> for Visitor<F> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
            (self.0)(key.as_str(), value);
            Ok(())
        }
    }
    // The visitor never fails.
    drop(record.key_values().visit(&mut Visitor(visit)));
}
