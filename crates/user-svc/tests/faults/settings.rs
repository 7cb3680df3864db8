//! Wrong settings, settings from files, and texts that must never be printed: secrets, names and info.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use devstack::http::{self, Connection};
use devstack::testing::register;
use devstack::{Redis, ServiceBuilder, Stack};

use crate::JSON;

/// A folder of the test's own, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("user-svc-faults-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a new folder can be made");
        Folder(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).expect("it can be written");
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that is left over does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A service without stores, for settings that it refuses before it connects.
fn bare() -> ServiceBuilder {
    ServiceBuilder::new("user-svc")
}

fn run_in(folder: &Path, builder: &ServiceBuilder) -> Output {
    let mut command: Command = builder.command(&[] as &[&str]);
    command.current_dir(folder).output().expect("it runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Asserts that the settings are refused, and that the message names exactly the settings `names`.
fn refused(output: &Output, names: &[&str]) {
    let text = text(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("  ")).collect();
    let all_named = names.iter().all(|name| lines.iter().any(|line| line.trim_start().starts_with(name)));
    assert!(all_named && lines.len() == names.len(), "{names:?} expected:\n{text}");
}

#[test]
fn every_mistake_is_reported_at_once_and_nothing_is_started() {
    let wrong = [
        ("HOST", "everywhere"),
        ("PORT", "70000"),
        ("METRICS_HOST", "localhost"),
        ("METRICS_PORT", "-1"),
        ("WORKERS", "two"),
        ("MAX_CONNECTIONS", "0"),
        ("DRAIN_DELAY", "5"),
        ("GRACE_PERIOD", "0s"),
        ("LOG_FORMAT", "xml"),
        ("DATABASE_URL", "mysql://127.0.0.1/users"),
        ("DATABASE_CONNECTIONS", "0"),
        ("DATABASE_QUEUE", "1.5"),
        ("DATABASE_DEADLINE", "soon"),
        ("DATABASE_STATEMENT_TIMEOUT", "0"),
        ("DATABASE_LOCK_TIMEOUT", "1"),
        ("REDIS_URL", "127.0.0.1:6379"),
        ("CACHE_TIMEOUT", "0ms"),
        ("CACHE_TTL", "-1s"),
        ("CACHE_ABSENT_TTL", "1 fortnight"),
        ("PUBLIC_DATA_URL", "ftp://data"),
    ];
    let builder = wrong.iter().fold(bare(), |builder, (name, value)| builder.env(name, *value));
    refused(&builder.run(&[]), &wrong.map(|(name, _)| name));
    // The sub-commands read the same settings.
    refused(&builder.run(&["migrate"]), &wrong.map(|(name, _)| name));
}

#[test]
fn a_setting_that_no_longer_exists_is_an_error_that_says_so() {
    for service in ["user-svc", "data-svc"] {
        let output = ServiceBuilder::new(service).env("CACHE_STRICT", "false").run(&[]);
        refused(&output, &["CACHE_STRICT"]);
        assert!(text(&output).contains("no longer a setting"), "{}", text(&output));
    }
}

#[test]
fn a_value_that_kubernetes_has_injected_is_named_and_so_is_its_source() {
    for name in ["METRICS_PORT", "PORT", "WORKERS", "HOST"] {
        let output = bare().env(name, "tcp://10.0.0.1:80").run(&[]);
        refused(&output, &[name]);
        assert!(text(&output).contains("Kubernetes has set it"), "{}", text(&output));
    }
    let output = bare().env("METRICS_PORT", "80000").run(&[]);
    assert!(!text(&output).contains("Kubernetes"), "{}", text(&output));
}

#[test]
fn numbers_beyond_any_type_are_mistakes_and_no_panics() {
    let huge = "99999999999999999999999999";
    let builder = bare().env("DATABASE_CONNECTIONS", huge).env("CACHE_TTL", format!("{huge}y"));
    refused(&builder.env("PORT", huge).run(&[]), &["DATABASE_CONNECTIONS", "CACHE_TTL", "PORT"]);
}

#[test]
fn the_longest_durations_that_are_accepted_work_and_longer_ones_are_refused() {
    let stack = Stack::shared();
    // Values that an operator may choose to have no time-outs at all.
    let names = [
        "DATABASE_DEADLINE",
        "DATABASE_STATEMENT_TIMEOUT",
        "DATABASE_LOCK_TIMEOUT",
        "CACHE_TIMEOUT",
        "CACHE_TTL",
    ];
    for name in names {
        let output = stack.user_svc().env(name, "1000years").run(&[]);
        refused(&output, &[name]);
        let service = stack.user_svc().env(name, "24days").start();
        assert_eq!(register(&service, name).status, 201, "{name}");
    }
}

#[test]
fn an_unknown_flag_is_exit_code_2() {
    let output = bare().run(&["--databse-url=postgres://u:hunter2@h/d"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!text(&output).contains("hunter2"), "{}", text(&output));
}

#[test]
fn secrets_are_read_from_the_files_that_are_named() {
    let stack = Stack::shared();
    let redis = Redis::start_with_password("from a file");
    // The only role that needs a password on this server.
    stack.sql("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'pass/word@:#'");
    let rules = "host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust";
    let file = stack.sql("SHOW hba_file");
    stack.sql(&format!("COPY (SELECT regexp_split_to_table('{rules}', E'\\n')) TO '{file}'"));
    stack.sql("SELECT pg_reload_conf()");

    let folder = Folder::new();
    let url = stack.database_url().replacen("postgres@", "app@", 1);
    let redis = format!("redis://127.0.0.1:{}/0", redis.port());
    let builder = stack.user_svc().env_remove("DATABASE_URL").env_remove("REDIS_URL");
    let builder = builder
        .env("DATABASE_URL_FILE", folder.file("database-url", &url))
        .env("DATABASE_PASSWORD_FILE", folder.file("database-password", "pass/word@:#\n"))
        .env("REDIS_URL_FILE", folder.file("redis-url", &format!("{redis}\r\n")))
        .env("REDIS_PASSWORD_FILE", folder.file("redis-password", "from a file\n"));
    let service = builder.start();
    service.wait_for_log("Redis is there");
    assert_eq!(register(&service, "john").status, 201);

    let wrong = builder.env("DATABASE_PASSWORD_FILE", folder.file("wrong", "hunter2")).spawn();
    let line = wrong.wait_for_log("PostgreSQL cannot be used");
    assert!(line.contains("password authentication failed") && !wrong.log().contains("hunter2"), "{line}");
}

#[test]
fn a_secret_given_twice_or_in_a_file_that_is_not_there_is_a_mistake() {
    let folder = Folder::new();
    let builder = bare()
        .env("DATABASE_URL", "postgres://127.0.0.1/users")
        .env("DATABASE_URL_FILE", folder.file("url", "postgres://127.0.0.1/users"))
        .env("REDIS_PASSWORD_FILE", folder.0.join("nowhere").display().to_string());
    refused(&builder.run(&[]), &["DATABASE_URL", "REDIS_PASSWORD_FILE"]);
}

#[test]
fn dotenv_in_the_working_directory_is_read_and_the_environment_wins() {
    let folder = Folder::new();
    folder.file(".env", "CACHE_TTL=from-dotenv\nWORKERS=from-dotenv\n");
    refused(&run_in(&folder.0, &bare()), &["CACHE_TTL", "WORKERS"]);
    let with_environment = bare().env("CACHE_TTL", "5s").env("DATABASE_QUEUE", "wrong");
    refused(&run_in(&folder.0, &with_environment), &["WORKERS", "DATABASE_QUEUE"]);
}

#[test]
fn a_dotenv_that_cannot_be_read_is_exit_code_2_and_its_lines_are_not_shown() {
    let folder = Folder::new();
    folder.file(".env", "DATABASE_PASSWORD='hunter2\n");
    let output = run_in(&folder.0, &bare());
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains(".env") && !text(&output).contains("hunter2"), "{}", text(&output));
}

#[test]
fn help_does_not_show_the_values_that_are_set() {
    let builder = bare()
        .env("DATABASE_URL", "postgres://u:hunter2@h/d")
        .env("DATABASE_PASSWORD", "hunter2")
        .env("REDIS_URL", "redis://:hunter2@h/0");
    for argument in ["--help", "-h", "--version"] {
        let output = builder.run(&[argument]);
        assert!(output.status.success());
        assert!(!text(&output).contains("hunter2"));
    }
}

#[test]
fn a_mistake_in_a_secret_does_not_show_it() {
    let urls = [
        "http://u:hunter2@h/d",
        "postgres://u:hunter2@[bad/d",
        "postgres://u:hunter2@h:port/d",
        "hunter2",
        "//hunter2",
    ];
    for url in urls {
        for name in ["DATABASE_URL", "REDIS_URL"] {
            let output = bare().env(name, url).run(&[]);
            refused(&output, &[name]);
            assert!(!text(&output).contains("hunter2"), "{}", text(&output));
        }
    }
}

#[test]
fn a_secret_that_libpq_cannot_read_is_not_shown_in_the_error() {
    // libpq's error quotes the text that it cannot read: the whole password, for a % that should have been %25.
    let stack = Stack::shared();
    for password in ["hunter2%zz", "hunter2%", "hunter2%00"] {
        let url = stack.database_url().replacen("postgres@", &format!("postgres:{password}@"), 1);
        let builder = stack.user_svc().env("DATABASE_URL", url).env("RUST_LOG", "trace");
        for arguments in [&[][..], &["migrate"]] {
            let output = builder.run(arguments);
            refused(&output, &["DATABASE_URL"]);
            assert!(!text(&output).contains("hunter2"), "{}", text(&output));
        }
    }
}

#[test]
fn neither_secrets_nor_names_nor_info_are_in_the_log_at_its_highest_level() {
    let stack = Stack::shared();
    let redis = Redis::start_with_password("hunter2-redis");
    let url = stack.database_url().replacen("postgres@", "postgres:hunter2-url@", 1);
    for format in ["human", "json"] {
        let set = |builder: ServiceBuilder| {
            let builder = builder.env("RUST_LOG", "trace").env("LOG_FORMAT", format);
            builder.env("DATABASE_URL", &url).env("REDIS_URL", redis.url(0)).start()
        };
        let users = set(stack.user_svc());
        let data = set(stack.data_svc());
        for service in [&users, &data] {
            service.wait_for_log("Redis is there");
        }
        let name = format!("Wilhelmina-{format}");
        let body = format!(r#"{{"name":"{name}","info":"allergic to penicillin"}}"#);
        let post = |body: &str| http::send("POST", &users.url_of("/register"), &[JSON], body).status;
        assert_eq!(post(&body), 201);
        assert_eq!(post(&body), 409);
        assert_eq!(post(&body.replacen("\"name\"", "\"nome\"", 1)), 400);
        assert_eq!(post(&body[..body.len() - 1]), 400);
        let get = |headers: &[(&str, &str)]| {
            http::send("GET", &data.url_of(&format!("/user/{name}")), headers, "").status
        };
        assert_eq!((get(&[]), get(&[]), get(&[("Cache-Control", "no-cache")])), (200, 200, 200));
        // Errors are the most likely place for a quoted name.
        stack.sql("ALTER TABLE users RENAME TO elsewhere");
        assert_eq!((post(&body), get(&[("Cache-Control", "no-cache")])), (503, 503));
        stack.sql("ALTER TABLE elsewhere RENAME TO users");
        stack.sql("ALTER TABLE users ADD CONSTRAINT users_never CHECK (info = 'x') NOT VALID");
        assert_eq!(post(&body.replacen("Wilhelmina", "Wilhelmina2", 1)), 500);
        stack.sql("ALTER TABLE users DROP CONSTRAINT users_never");

        for service in [&users, &data] {
            service.terminate();
            service.wait();
            let log = service.log();
            for forbidden in ["hunter2", "Wilhelmina", "penicillin"] {
                let line = log.lines().find(|line| line.contains(forbidden));
                assert_eq!(line, None);
            }
            for line in log.lines().filter(|_| format == "json") {
                let value: serde_json::Value =
                    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                let has_all =
                    ["timestamp", "level", "target", "message"].iter().all(|key| value[key].is_string());
                assert!(has_all, "{line}");
            }
        }
    }
}

#[test]
fn health_is_0_only_for_a_service_that_is_ready() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    let builder = stack.user_svc().postgres_through(&proxy);
    let service = builder.start();
    let (_, port) = service.address().rsplit_once(':').expect("a port");
    let health =
        |host: &str| builder.clone().env("PORT", port).env("HOST", host).run(&["health"]).status.code();
    assert_eq!(health("127.0.0.1"), Some(0));
    // A container listens on 0.0.0.0, which is no address to connect to.
    assert_eq!(health("0.0.0.0"), Some(0));
    proxy.cut();
    service.wait_for_readiness(503);
    assert_eq!(health("127.0.0.1"), Some(1));
    service.kill();
    assert_eq!(health("127.0.0.1"), Some(1));
}

#[test]
fn metrics_stay_on_loopback_when_the_api_is_opened_and_are_opened_by_themselves() {
    let stack = Stack::shared();
    let service = stack.user_svc().env("HOST", "0.0.0.0").env("AUTH", "none").start();
    assert!(service.url().starts_with("http://0.0.0.0:"), "{}", service.url());
    assert!(service.metrics_url().starts_with("http://127.0.0.1:"), "{}", service.metrics_url());
    let service = stack.user_svc().env("METRICS_HOST", "0.0.0.0").start();
    assert!(service.url().starts_with("http://127.0.0.1:"), "{}", service.url());
    assert!(service.metrics_url().starts_with("http://0.0.0.0:"), "{}", service.metrics_url());
}

#[test]
fn a_metric_page_shows_neither_names_nor_secrets() {
    let stack = Stack::shared();
    let url = stack.database_url().replacen("postgres@", "postgres:hunter2@", 1);
    let service = stack.user_svc().env("DATABASE_URL", url).start();
    register(&service, "Wilhelmina");
    http::get(&service.url_of("/user/Wilhelmina"));
    let page = http::get(&format!("{}/metrics", service.metrics_url())).text();
    assert!(page.contains("http_request_duration_seconds"));
    assert!(!page.contains("Wilhelmina") && !page.contains("hunter2"), "{page}");
}

#[test]
fn a_secret_as_a_flag_is_refused_without_quoting_it() {
    let stack = Stack::shared();
    for flag in ["database-url", "database-password", "redis-url", "redis-password", "api-tokens"] {
        let output = stack.user_svc().run(&[&format!("--{flag}=hunter2")]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{flag}: {text}");
        let name = flag.to_uppercase().replace('-', "_");
        assert!(text.contains(&format!("{name} may not be a flag")) && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn malformed_requests_of_strangers_are_no_lines_of_the_http_library() {
    let service = Stack::shared().user_svc().env("RUST_LOG", "debug").start();
    for malformed in [
        "nonsense\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}",
    ] {
        let mut connection = Connection::open(service.address());
        connection.send(format!("{malformed}{}", "x".repeat(200_000)));
        assert!(connection.receive().is_ok_and(|answer| answer.status == 400) || connection.is_closed());
    }
    assert!(!service.log().contains("ERROR") && !service.log().contains("actix_http"), "{}", service.log());
}
