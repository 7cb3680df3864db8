//! The private Postgres and Redis servers: what the services' tests rely on.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use devstack::postgres::Timeline;
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

#[test]
fn redis_with_its_defaults_restarts_from_its_newest_snapshot() {
    let server = Redis::start_with_defaults();
    server.cli(9, &["SET", "name", "old"]);
    server.save();
    server.cli(9, &["SET", "name", "new"]);
    let run = server.info("run_id");
    server.kill();
    server.restart();
    assert_eq!(server.cli(9, &["GET", "name"]), "old");
    assert_ne!(server.info("run_id"), run);
}

#[test]
fn a_redis_replica_misses_what_is_written_while_it_is_detached() {
    let primary = Redis::start();
    primary.cli(9, &["SET", "name", "old"]);
    let replica = Redis::replica_of(&primary);
    assert_eq!(replica.cli(9, &["GET", "name"]), "old");
    replica.detach();
    primary.cli(9, &["SET", "name", "new"]);
    assert_eq!(replica.cli(9, &["GET", "name"]), "old");
    replica.attach();
    assert_eq!(replica.cli(9, &["GET", "name"]), "new");
}

#[test]
fn redis_servers_that_change_roles_keep_their_run_ids_but_not_their_replication_ids() {
    let one = Redis::start();
    let other = Redis::replica_of(&one);
    let identity = || (one.info("run_id"), one.info("master_replid"));
    let before = identity();
    other.promote();
    one.follow(&other);
    other.cli(9, &["SET", "name", "john"]);
    one.promote();
    other.follow(&one);
    assert_eq!((one.info("role"), other.info("role")), ("master".to_owned(), "slave".to_owned()));
    let after = identity();
    assert_eq!(after.0, before.0);
    assert_ne!(after.1, before.1);
}

#[test]
fn a_redis_replica_is_promoted_when_its_primary_is_dead() {
    let primary = Redis::start_with_defaults();
    let replica = Redis::replica_of(&primary);
    primary.kill();
    replica.promote();
    assert_eq!(replica.cli(9, &["SET", "name", "john"]), "OK");
}

#[test]
fn a_standby_follows_its_primary_and_takes_writes_once_it_is_promoted() {
    let primary = Postgres::start();
    primary.sql("postgres", "CREATE TABLE users AS SELECT 'john' AS name");
    let standby = Postgres::standby_of(&primary);
    primary.sql("postgres", "INSERT INTO users VALUES ('jane')");
    standby.catch_up_with(&primary);
    assert_eq!(standby.sql("postgres", "SELECT count(*), pg_is_in_recovery() FROM users"), "2|t");
    primary.kill();
    standby.promote();
    standby.sql("postgres", "INSERT INTO users VALUES ('jack')");
    standby.restart();
    assert_eq!(standby.sql("postgres", "SELECT count(*), pg_is_in_recovery() FROM users"), "3|f");
    assert_eq!(standby.sql("postgres", "SELECT timeline_id FROM pg_control_checkpoint()"), "2");
}

#[test]
fn a_commit_is_held_while_its_standby_is_detached_or_frozen() {
    let primary = Postgres::start();
    primary.sql("postgres", "CREATE TABLE users (name text)");
    let standby = Postgres::standby_of(&primary);
    primary.commit_on_standbys();
    type Action = fn(standby: &Postgres, primary: &Postgres);
    let disturbances: [(Action, Action); 3] = [
        (Postgres::detach, |standby, _| standby.attach()),
        (|standby, _| standby.freeze(), |standby, _| standby.thaw()),
        (Postgres::detach, |_, primary| primary.commit_alone()),
    ];
    for (disturb, end) in disturbances {
        disturb(&standby, &primary);
        std::thread::scope(|scope| {
            let insert = scope.spawn(|| primary.sql("postgres", "INSERT INTO users VALUES ('john')"));
            primary.wait_for_held_commits(1);
            assert_eq!(
                primary.sql("postgres", "DELETE FROM users WHERE false; SELECT count(*) FROM users"),
                "0"
            );
            end(&standby, &primary);
            insert.join().expect("it is committed");
        });
        assert_eq!(primary.held_commits(), 0);
        primary.sql("postgres", "DELETE FROM users");
    }
}

#[test]
fn postgres_goes_back_to_a_backup_on_the_same_or_on_a_new_timeline() {
    let server = Postgres::start();
    server.sql("postgres", "CREATE TABLE users AS SELECT 'john' AS name");
    let backup = server.backup();
    // Without an archive that remembers timelines, the second recovery does not know of the first.
    for (timeline, number) in [(Timeline::Same, "1"), (Timeline::New, "2"), (Timeline::New, "2")] {
        server.sql("postgres", "INSERT INTO users VALUES ('jane')");
        server.restore(&backup, timeline);
        let seen = "SELECT name, (SELECT timeline_id FROM pg_control_checkpoint()) FROM users";
        server.sql("postgres", "CHECKPOINT");
        assert_eq!(server.sql("postgres", seen), format!("john|{number}"));
        server.sql("postgres", "INSERT INTO users VALUES ('jack')");
    }
}
