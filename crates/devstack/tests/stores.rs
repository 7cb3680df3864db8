//! The private Postgres and Redis servers: what the services' tests rely on.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use devstack::{Certificates, Postgres, Redis};

#[test]
fn postgres_killed_and_restarted_still_has_its_rows_and_its_port() {
    let server = Postgres::start();
    server.create_database("shop", None);
    server.sql("shop", "CREATE TABLE users (name text); INSERT INTO users VALUES ('john'), ('jane')");
    let port = server.port();

    server.kill();
    assert!(server.try_sql("shop", "SELECT 1").is_err());
    server.restart();

    assert_eq!(server.sql("shop", "SELECT name FROM users ORDER BY 1"), "jane\njohn");
    assert_eq!(server.port(), port);
}

#[test]
fn killing_postgres_ends_its_busy_backends_too() {
    let server = Postgres::start();
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| server.try_sql("postgres", "SELECT pg_sleep(1000)"));
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(1000)'";
        while server.sql("postgres", sleeping) != "1" {
            std::thread::yield_now();
        }
        server.kill();
        let error = busy.join().expect("the thread does not panic").expect_err("the query cannot end");
        assert!(error.contains("server closed the connection"), "{error}");
    });
    server.restart();
}

#[test]
fn postgres_restarted_while_it_runs_still_has_its_rows() {
    let server = Postgres::start();
    server.sql("postgres", "CREATE TABLE users AS SELECT 1 AS id");
    server.restart();
    assert_eq!(server.sql("postgres", "SELECT * FROM users"), "1");
}

#[test]
fn postgres_frozen_answers_nothing_until_it_thaws() {
    let server = Postgres::start();
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        server.freeze();
        let server = &server;
        scope.spawn(move || sender.send(server.sql("postgres", "SELECT 7")));
        assert!(receiver.recv_timeout(Duration::from_millis(200)).is_err());
        server.thaw();
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)).as_deref(), Ok("7"));
    });
}

#[test]
fn a_database_is_a_copy_of_its_template() {
    let server = Postgres::start();
    server.create_database("template_shop", None);
    server.sql("template_shop", "CREATE TABLE users AS SELECT 'john' AS name");
    server.create_database("shop", Some("template_shop"));
    assert_eq!(server.sql("shop", "SELECT * FROM users"), "john");
    assert_eq!(server.sql("shop", "SHOW server_encoding"), "UTF8");
}

#[test]
fn postgres_with_tls_refuses_a_plain_connection_and_proves_its_identity() {
    let certificates = Certificates::new();
    let server = Postgres::start_tls(&certificates);
    let plain = server.try_sql("postgres?sslmode=disable", "SELECT 1").expect_err("plain is refused");
    assert!(plain.contains("no encryption"), "{plain}");
    let verified = format!("postgres?sslmode=verify-full&sslrootcert={}", certificates.ca().display());
    assert_eq!(server.sql(&verified, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), "t");
}

#[test]
fn redis_killed_and_restarted_is_empty_on_the_same_port() {
    let server = Redis::start();
    server.cli(9, &["SET", "name", "john"]);
    assert_eq!(server.cli(9, &["GET", "name"]), "john");
    assert_eq!(server.cli(10, &["GET", "name"]), "");
    let port = server.port();

    server.kill();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    server.restart();

    assert_eq!(server.cli(9, &["GET", "name"]), "");
    assert_eq!(server.port(), port);
}

#[test]
fn redis_frozen_answers_nothing_until_it_thaws() {
    let server = Redis::start();
    let mut connection = TcpStream::connect(("127.0.0.1", server.port())).expect("it runs");
    let mut answer = [0; 7];
    server.freeze();
    connection.write_all(b"PING\r\n").expect("the kernel buffers it");
    connection.set_read_timeout(Some(Duration::from_millis(200))).expect("a valid time-out");
    assert_eq!(connection.read_exact(&mut answer).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    server.thaw();
    connection.set_read_timeout(Some(Duration::from_secs(10))).expect("a valid time-out");
    connection.read_exact(&mut answer).expect("it answers");
    assert_eq!(&answer, b"+PONG\r\n");
}

#[test]
fn redis_with_a_password_requires_it() {
    let server = Redis::start_with_password("s3cret");
    assert_eq!(server.url(3), format!("redis://:s3cret@127.0.0.1:{}/3", server.port()));
    assert_eq!(server.cli(3, &["PING"]), "PONG");
    let mut stranger = TcpStream::connect(("127.0.0.1", server.port())).expect("it runs");
    stranger.write_all(b"PING\r\n").expect("the kernel buffers it");
    let mut answer = [0; 7];
    stranger.read_exact(&mut answer).expect("it answers");
    assert_eq!(&answer, b"-NOAUTH");
}

#[test]
fn redis_with_tls_proves_its_identity() {
    let certificates = Certificates::new();
    let server = Redis::start_tls(&certificates);
    assert_eq!(server.url(0), format!("rediss://127.0.0.1:{}/0", server.port()));
    // redis-cli verifies the certificate against the given authority.
    assert_eq!(server.cli(0, &["PING"]), "PONG");
    server.restart();
    assert_eq!(server.cli(0, &["PING"]), "PONG");
}
