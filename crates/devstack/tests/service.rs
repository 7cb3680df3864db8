//! Starting, observing and ending a service, shown on shell scripts that log as our services do.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use devstack::testing::wait_until;
use devstack::{Postgres, ServiceBuilder, Signal, Stores};
use tempfile::TempDir;

const LISTEN: &str = "echo 'listening on http://127.0.0.1:1234, metrics on http://127.0.0.1:1235' >&2";

/// A service made of these shell commands.
fn script(commands: &str) -> (TempDir, ServiceBuilder) {
    let folder = TempDir::new().expect("a folder");
    let draft = folder.path().join("draft");
    let path = folder.path().join("stand-in");
    fs::write(&draft, format!("#!/bin/sh\n{commands}\n")).expect("it can be written");
    // A process of its own writes the file. If this process had it open for writing, a process that another test starts
    // at that moment would inherit the handle, and the file could not be run meanwhile (ETXTBSY).
    let installed = Command::new("install").args(["-m", "755"]).arg(draft).arg(&path).status();
    assert!(installed.expect("install runs").success());
    (folder, ServiceBuilder::of(path))
}

#[test]
fn the_addresses_of_a_service_are_known_as_soon_as_it_listens() {
    let (_folder, builder) = script(&format!("{LISTEN}; exec sleep 1000"));
    let service = builder.spawn();
    assert_eq!(service.url_of("/user/a%2Fb"), "http://127.0.0.1:1234/user/a%2Fb");
    assert_eq!(service.metrics_url(), "http://127.0.0.1:1235");
}

#[test]
fn a_service_sees_its_own_settings_and_no_variable_of_ours() {
    let (_folder, builder) = script(&format!("env; {LISTEN}; pwd; ls -A; echo done; exec sleep 1000"));
    let service =
        builder.env("LOG_FORMAT", "json").env("HOST", "localhost").env_remove("METRICS_PORT").spawn();
    service.wait_for_log("done");
    let log = service.log();
    assert!(
        log.contains("LOG_FORMAT=json\n") && log.contains("HOST=localhost\n") && log.contains("PORT=0\n")
    );
    assert!(!log.contains("CARGO_") && !log.contains("METRICS_PORT"), "{log}");
}

#[test]
fn a_terminated_service_is_waited_for_and_its_status_is_known() {
    let commands = format!("trap 'echo bye; exit 7' TERM; {LISTEN}; while :; do sleep 0.01; done");
    let (_folder, builder) = script(&commands);
    let service = builder.spawn();
    service.terminate();
    assert_eq!(service.wait().code(), Some(7));
    assert!(service.log().ends_with("bye\n"));
    // The service has ended, and its process ID may be another's: this signal must reach no process.
    service.signal(Signal::KILL);
}

#[test]
fn a_killed_service_ends_by_that_signal() {
    let (_folder, builder) = script(&format!("trap '' TERM; {LISTEN}; exec sleep 1000"));
    let service = builder.spawn();
    service.kill();
    assert_eq!(service.wait().signal(), Some(9));
    assert!(service.has_ended());
}

#[test]
fn a_frozen_service_stands_still_until_it_is_thawed() {
    let (_folder, builder) = script(&format!("{LISTEN}; while :; do echo again >&2; sleep 0.01; done"));
    let service = builder.spawn();
    service.freeze();
    // The `sleep` that it waits for writes nothing.
    let before = service.log();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(service.log(), before);
    service.thaw();
    wait_until("it goes on", || service.log().len() > before.len());
}

#[test]
fn a_text_in_the_log_is_awaited_whether_it_came_before_or_comes_later() {
    let (_folder, builder) = script(&format!("{LISTEN}; echo early; read -r _ </dev/zero; echo late"));
    let service = builder.spawn();
    assert_eq!(service.wait_for_log("early"), "early");
    service.signal(Signal::TERM);
    assert_eq!(service.wait().signal(), Some(15));
}

#[test]
#[should_panic(expected = "no such database")]
fn a_service_that_ends_instead_of_listening_fails_the_test_with_its_log() {
    let (_folder, builder) = script("echo 'no such database' >&2; exit 1");
    builder.spawn();
}

#[test]
fn a_sub_command_runs_to_its_end() {
    let (_folder, builder) = script("echo \"$1 on $DATABASE_URL\"; exit 3");
    let output = builder.env("DATABASE_URL", "postgres://there").run(&["migrate"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, b"migrate on postgres://there\n");
}

#[test]
fn a_service_can_be_pointed_at_a_proxy() {
    let (_folder, builder) = script("echo $DATABASE_URL $REDIS_URL");
    let proxy = devstack::Proxy::start("127.0.0.1:1");
    let builder =
        builder.env("DATABASE_URL", "postgres://postgres@127.0.0.1:5432/shop").postgres_through(&proxy);
    let output = builder.env("REDIS_URL", "redis://127.0.0.1:6379/3").redis_through(&proxy).run(&[]);
    let port = proxy.port();
    let expected = format!("postgres://postgres@127.0.0.1:{port}/shop redis://127.0.0.1:{port}/3\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn all_tests_of_a_binary_share_one_pair_of_servers() {
    let first = Stores::shared();
    let second = Stores::shared();
    assert_eq!(first.postgres().port(), second.postgres().port());
    assert_ne!(Postgres::start().port(), first.postgres().port());
}
