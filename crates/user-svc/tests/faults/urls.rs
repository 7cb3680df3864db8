//! Every connection string that libpq and Redis' client take leads to the store, with the password in a setting of its
//! own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use devstack::stack::Stores;
use devstack::testing::register;
use devstack::{Postgres, Redis, Stack};
use tempfile::TempDir;

const PASSWORD: &str = r"p@ss '\/:?#%41 ü";

/// A folder that the store's account may use too.
fn folder() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).expect("it is ours");
    folder
}

/// A PostgreSQL with a socket in `folder`, that asks the role `app` for its password everywhere.
fn postgres(folder: &Path) -> Stack {
    let rules = folder.join("pg_hba.conf");
    let text = "local all all scram-sha-256\nhost all postgres all trust\nhost all all all scram-sha-256\n";
    fs::write(&rules, text).expect("the folder is ours");
    let (rules, folder) = (rules.display().to_string(), folder.display().to_string());
    let settings = [
        ("hba_file", rules.as_str()),
        ("unix_socket_directories", &folder),
        ("listen_addresses", "*"),
        ("fsync", "off"),
    ];
    let stack = Stack::on(Stores::of(Postgres::start_with(&settings), Redis::start()));
    stack.sql(&format!("CREATE ROLE app SUPERUSER LOGIN PASSWORD '{}'", PASSWORD.replace('\'', "''")));
    stack
}

#[test]
fn user_svc_connects_by_every_form_of_url_with_a_password_of_its_own() {
    let folder = folder();
    let stack = postgres(folder.path());
    let (database, port, socket) = (stack.database(), stack.postgres().port(), folder.path().display());
    let encoded = socket.to_string().replace('/', "%2F");
    for url in [
        format!("postgresql://app@127.0.0.1:{port}/{database}"),
        format!("postgres:///{database}?host={socket}&port={port}&user=app"),
        format!("postgres://app@:{port}/{database}?host={socket}"),
        format!("postgres://app@{encoded}:{port}/{database}"),
        format!("postgres://app@[::1]:{port}/{database}"),
        format!("postgres://app@127.0.0.1:1,[::1]:{port}/{database}"),
        format!("postgres://app@{encoded}:1,127.0.0.1:{port}/{database}?target_session_attrs=read-write"),
        format!("postgres://app@localhost,127.0.0.1/{database}?port={port}"),
        format!("host={socket} port={port} user=app dbname={database}"),
        format!("host='127.0.0.1' port = {port} user=app dbname='{database}' application_name='a b'"),
    ] {
        let builder = stack.user_svc().env("DATABASE_URL", &url);
        let output = builder.env("DATABASE_PASSWORD", PASSWORD).run(&["migrate"]);
        assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
        // The password is what opens the door.
        let output = stack.user_svc().env("DATABASE_URL", &url).run(&["migrate"]);
        assert_eq!(output.status.code(), Some(1), "{url}");
    }
}

#[test]
fn a_password_in_the_connection_string_is_read_as_libpq_reads_it_and_never_quoted() {
    let folder = folder();
    let stack = postgres(folder.path());
    let (database, port) = (stack.database(), stack.postgres().port());
    let in_url = "p%40ss%20%27%5C%2F%3A%3F%23%2541%20%C3%BC";
    let in_text = PASSWORD.replace('\\', r"\\").replace('\'', r"\'");
    for url in [
        format!("postgres://app:{in_url}@127.0.0.1:{port}/{database}"),
        format!("postgres://app@127.0.0.1:{port}/{database}?password={in_url}"),
        format!("host=127.0.0.1 port={port} user=app dbname={database} password='{in_text}'"),
    ] {
        let output = stack.user_svc().env("DATABASE_URL", &url).env("RUST_LOG", "trace").run(&["migrate"]);
        assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for url in [
        format!("postgres://app:hunter2@127.0.0.1:{port}/{database}?connection_timeout=3"),
        format!("postgres://app:hunter2@127.0.0.1:{port}/{database}?sslmode=hunter"),
        format!("postgres://app:hunter2@127.0.0.1:{port},127.0.0.1/{database}?port=1,2,3"),
        format!("host=127.0.0.1 port={port} user=app dbname={database} password=hunter2"),
    ] {
        let output = stack.user_svc().env("DATABASE_URL", &url).env("RUST_LOG", "trace").run(&["migrate"]);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(1), "{url}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn of_several_hosts_the_primary_is_used_wherever_it_stands() {
    let stack = Stack::private();
    let standby = Postgres::standby_of(stack.postgres());
    let (first, second) = (standby.port(), stack.postgres().port());
    let url = format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/{}", stack.database());
    let service = stack.user_svc().env("DATABASE_URL", url).start();
    assert_eq!(register(&service, "primary").status, 201);
    assert!(!service.log().contains("standby"), "{}", service.log());
}

#[test]
fn redis_is_reached_by_its_unix_socket_with_a_password_of_its_own() {
    let folder = folder();
    let socket = folder.path().join("redis.sock").display().to_string();
    let redis = Redis::start_with(&["--unixsocket", &socket]);
    redis.cli(0, &["CONFIG", "SET", "requirepass", PASSWORD]);
    let stack = Stack::private();
    for (url, there) in [
        (format!("unix://{socket}"), true),
        (format!("unix://{socket}?db=1"), true),
        (format!("redis+unix://{socket}?db=2&user=default"), true),
        (format!("redis://127.0.0.1:{}/3", redis.port()), true),
        (format!("unix://{socket}.gone"), false),
    ] {
        let builder = stack.user_svc().env("REDIS_URL", &url).env("REDIS_PASSWORD", PASSWORD);
        let service = builder.spawn();
        let expected = if there { "Redis is there" } else { "Redis" };
        let log = service.wait_for_log(expected);
        assert_eq!(log.contains("Redis is there"), there, "{url}: {log}");
    }
}
