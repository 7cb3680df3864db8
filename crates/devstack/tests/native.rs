//! `devstack up`, `down`, `status` and `reset`, on checkouts of their own, with stand-ins for the services.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use devstack::{Installed, free_port, http};
use tempfile::TempDir;

const PARTS: [&str; 4] = ["postgres", "redis", "user-svc", "data-svc"];

/// A checkout, and beside it a folder with the binaries.
struct Checkout {
    parent: TempDir,
    ports: [u16; 2],
    /// What `REPLICAS` says.
    replicas: &'static str,
}

impl Checkout {
    fn new() -> Checkout {
        let parent = TempDir::new().expect("a folder");
        let devstack = Path::new(env!("CARGO_BIN_EXE_devstack"));
        let stand_in = Path::new(env!("CARGO_BIN_EXE_stand-in"));
        fs::create_dir_all(parent.path().join("bin")).expect("our own folder");
        fs::create_dir_all(parent.path().join("main")).expect("our own folder");
        // The user that Postgres runs as must be able to enter.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(parent.path(), open).expect("our own folder");
        for (from, to) in [(devstack, "devstack"), (stand_in, "user-svc"), (stand_in, "data-svc")] {
            // A process of its own copies the file. If this process had it open for writing, a process that another test
            // starts at that moment would inherit the handle, and the file could not be run meanwhile (ETXTBSY).
            let copied = Command::new("cp").arg(from).arg(parent.path().join("bin").join(to)).status();
            assert!(copied.expect("cp runs").success());
        }
        Checkout { parent, ports: free_ports(), replicas: "" }
    }

    fn binary(&self, name: &str) -> PathBuf {
        self.parent.path().join("bin").join(name)
    }

    fn run_in(&self, folder: &str, ports: [u16; 2], arguments: &[&str]) -> Output {
        let mut command = Command::new(self.binary("devstack"));
        command.args(arguments).current_dir(self.parent.path().join(folder)).stdin(Stdio::null());
        command.env("USER_SVC_PORT", ports[0].to_string()).env("DATA_SVC_PORT", ports[1].to_string());
        command.env("REPLICAS", self.replicas);
        command.output().expect("devstack runs")
    }

    /// Runs a command that must succeed, and returns what it printed.
    fn run(&self, arguments: &[&str]) -> String {
        text(&self.run_in("main", self.ports, arguments))
    }

    fn pid(&self, part: &str) -> String {
        let status = self.run(&["status"]);
        let line = status.lines().find(|line| line.starts_with(part)).expect("a line for each part");
        let pid = line.split_whitespace().skip_while(|word| *word != "pid").nth(1);
        pid.unwrap_or_else(|| panic!("not running: {line}")).to_owned()
    }

    fn pids(&self) -> [String; 4] {
        PARTS.map(|part| self.pid(part))
    }

    /// The parts that run.
    fn running(&self) -> Vec<String> {
        let status = self.run(&["status"]);
        let running = status.lines().filter(|line| line.contains(" running ") && !line.contains("NOT READY"));
        running.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    }

    /// The statuses of both services' `/readyz`, at the ports for clients.
    fn readiness(&self) -> [u16; 2] {
        self.ports.map(|port| http::get(&format!("http://127.0.0.1:{port}/readyz")).status)
    }

    /// Runs a statement as the owner of the tables.
    fn sql(&self, statement: &str) -> String {
        text(&self.sql_as("user_svc", statement))
    }

    fn sql_as(&self, role: &str, statement: &str) -> Output {
        let url = self.run(&["database-url"]).replacen("user_svc@", &format!("{role}@"), 1);
        Command::new("psql").args(["-XAtq", "-d", url.trim(), "-c", statement]).output().expect("psql runs")
    }

    /// What data_svc may do with a table, of all that may be granted.
    fn rights_of_data_svc(&self, table: &str) -> String {
        self.sql(&format!(
            "SELECT string_agg(kind, ',') FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', \
             'REFERENCES', 'TRIGGER']) AS kind WHERE has_table_privilege('data_svc', '{table}', kind)"
        ))
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        for folder in ["main", "copy"] {
            if self.parent.path().join(folder).exists() {
                // A failed reset must not hide the test's own failure.
                let _ = self.run_in(folder, self.ports, &["reset", "--yes"]);
            }
        }
    }
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn free_ports() -> [u16; 2] {
    [free_port(), free_port()]
}

fn kill(pid: &str) {
    assert!(Command::new("sh").args(["-c", &format!("kill -9 {pid}")]).status().expect("sh runs").success());
}

#[test]
fn up_prints_urls_and_a_second_up_keeps_processes_with_unchanged_binaries() {
    let checkout = Checkout::new();
    let printed = checkout.run(&["up"]);
    let [user, data] = checkout.ports.map(|port| format!("http://127.0.0.1:{port}"));
    assert!(printed.contains(&format!("curl -i {user}/register")), "{printed}");
    assert!(printed.contains(&format!("curl -i {data}/user/john_doe")), "{printed}");
    assert_eq!(http::get(&format!("{user}/readyz")).status, 200);
    assert_eq!(http::get(&format!("{data}/readyz")).status, 200);

    let before = checkout.pids();
    assert_eq!(checkout.run(&["up"]).matches("kept").count(), 4);
    assert_eq!(checkout.pids(), before);

    let binary = fs::File::open(checkout.binary("data-svc")).expect("it is there");
    binary.set_modified(std::time::SystemTime::now()).expect("it is ours");
    checkout.run(&["up"]);
    let after = checkout.pids();
    assert_eq!(after[..3], before[..3]);
    assert_ne!(after[3], before[3]);
}

#[test]
fn up_recovers_after_sigkill_of_any_part_and_of_all_with_the_data() {
    let checkout = Checkout::new();
    checkout.run(&["up"]);
    checkout.sql("CREATE TABLE kept AS SELECT 'john' AS name");
    for part in PARTS {
        let old = checkout.pid(part);
        kill(&old);
        checkout.run(&["up"]);
        assert_ne!(checkout.pid(part), old);
    }
    for pid in checkout.pids() {
        kill(&pid);
    }
    checkout.run(&["up"]);
    checkout.pids();
    assert_eq!(checkout.sql("SELECT name FROM kept"), "john\n");
}

#[test]
fn up_makes_one_role_that_owns_the_tables_and_one_that_may_only_select() {
    let checkout = Checkout::new();
    checkout.run(&["up"]);
    // The rights hold for tables of later migrations too: this one did not exist when the roles were made.
    checkout.sql("CREATE TABLE users (name text)");
    let roles = "SELECT rolname FROM pg_roles WHERE rolname IN ('user_svc', 'data_svc') AND rolcanlogin AND NOT \
         (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls) ORDER BY 1";
    assert_eq!(checkout.sql(roles), "data_svc\nuser_svc\n");
    let on_schema = "SELECT has_schema_privilege('user_svc', 'public', 'CREATE'), \
         has_schema_privilege('data_svc', 'public', 'CREATE'), \
         has_database_privilege('data_svc', current_database(), 'TEMPORARY')";
    assert_eq!(checkout.sql(on_schema), "t|f|f\n");
    assert_eq!(checkout.rights_of_data_svc("users"), "SELECT\n");

    let all = "SELECT relname, relowner::regrole, relacl FROM pg_class \
         WHERE relnamespace = 'public'::regnamespace UNION ALL SELECT nspname, nspowner::regrole, nspacl FROM pg_namespace \
         UNION ALL SELECT 'default', defaclrole::regrole, defaclacl FROM pg_default_acl ORDER BY 1";
    let before = checkout.sql(all);
    checkout.run(&["up"]);
    assert_eq!(checkout.sql(all), before, "a second up changes nothing");
}

#[test]
fn up_gives_the_tables_of_a_former_release_to_their_new_owner() {
    let checkout = Checkout::new();
    checkout.run(&["up"]);
    // As it was then: the superuser had made all tables, and there were no roles.
    let former = "DROP OWNED BY user_svc; DROP OWNED BY data_svc; DROP ROLE user_svc, data_svc; \
         CREATE TABLE users (name text); INSERT INTO users VALUES ('john')";
    text(&checkout.sql_as("postgres", former));
    assert!(checkout.run(&["status"]).contains("NOT READY"));

    checkout.run(&["up"]);
    assert_eq!(checkout.sql("SELECT relowner::regrole FROM pg_class WHERE relname = 'users'"), "user_svc\n");
    assert_eq!(checkout.rights_of_data_svc("users"), "SELECT\n");
    assert_eq!(text(&checkout.sql_as("data_svc", "SELECT name FROM users")), "john\n");
    let refused = checkout.sql_as("data_svc", "INSERT INTO users VALUES ('jane')");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("permission denied"));
}

#[test]
fn down_keeps_the_data_and_only_a_reset_with_a_yes_removes_them() {
    let checkout = Checkout::new();
    checkout.run(&["up"]);
    checkout.sql("CREATE TABLE kept AS SELECT 'john' AS name");
    checkout.run(&["down"]);
    assert_eq!(checkout.run(&["status"]).matches("not running").count(), 4);
    checkout.run(&["up"]);

    let before = checkout.pids();
    assert!(checkout.run(&["reset"]).contains("Nothing was removed"));
    assert_eq!(checkout.pids(), before);
    assert_eq!(checkout.sql("SELECT name FROM kept"), "john\n");

    checkout.run(&["reset", "--yes"]);
    assert_eq!(checkout.run(&["status"]).matches("not running").count(), 4);
    assert!(!checkout.parent.path().join("main/.local/postgres").exists());
}

#[test]
fn a_copied_checkout_gets_its_own_servers_and_leaves_the_original_alone() {
    let checkout = Checkout::new();
    checkout.run(&["up"]);
    let before = checkout.pids();
    let copied = Command::new("cp").args(["-r", "main", "copy"]).current_dir(checkout.parent.path()).status();
    assert!(copied.expect("cp runs").success());

    text(&checkout.run_in("copy", free_ports(), &["up"]));
    assert_eq!(checkout.pids(), before);
    text(&checkout.run_in("copy", free_ports(), &["down"]));
    assert_eq!(checkout.pids(), before);
}

#[test]
fn what_up_starts_takes_nothing_from_the_shell_that_it_did_not_ask_for() {
    let checkout = Checkout::new();
    let strange = [
        ("HOST", "x86_64-conda-linux-gnu"),
        ("PORT", "1"),
        ("METRICS_PORT", "tcp://10.0.0.1:80"),
        ("DATABASE_URL", "postgres://elsewhere/users"),
        ("DATABASE_PASSWORD", "elsewhere"),
        ("REDIS_URL", "redis://elsewhere"),
        ("CACHE_TTL", "forever"),
        ("PGDATA", "/elsewhere"),
        ("PGPORT", "1"),
        ("LC_ALL", "xx_XX"),
    ];
    let mut up = Command::new(checkout.binary("devstack"));
    up.arg("up").current_dir(checkout.parent.path().join("main")).stdin(Stdio::null()).envs(strange);
    let ports = checkout.ports.map(|port| port.to_string());
    text(
        &up.env("USER_SVC_PORT", &ports[0]).env("DATA_SVC_PORT", &ports[1]).output().expect("devstack runs"),
    );
    for pid in checkout.pids() {
        // Only Linux shows a process' variables.
        let Ok(variables) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        let variables = String::from_utf8_lossy(&variables);
        for (name, value) in strange {
            assert!(
                !variables.split('\0').any(|it| it == format!("{name}={value}")),
                "{name} in {variables:?}"
            );
        }
    }
}

#[test]
fn a_port_that_another_program_has_is_refused_by_name() {
    let mut checkout = Checkout::new();
    let other = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    checkout.ports[0] = other.local_addr().expect("it is bound").port();
    let output = checkout.run_in("main", checkout.ports, &["up"]);
    drop(other);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("USER_SVC_PORT"));
}

#[test]
fn up_makes_the_token_list_that_is_missing_shows_its_token_once_and_prints_curl_lines_with_it() {
    let checkout = Checkout::new();
    let main = checkout.parent.path().join("main");
    assert!(!checkout.run(&["up"]).contains("USERS_TOKEN"), "without tokens nothing changes");
    fs::write(main.join(".env"), "API_TOKENS_FILE=tokens\n").expect("our own folder");
    let first = checkout.run(&["up"]);
    assert!(first.contains("export USERS_TOKEN=a-token"), "{first}");
    assert_eq!(first.matches(r#"-H "Authorization: Bearer $USERS_TOKEN""#).count(), 2, "{first}");
    assert_eq!(fs::read_to_string(main.join("tokens")).expect("the list is there"), "a line of the list\n");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(main.join("tokens")).expect("it is there").permissions(),
    );
    assert_eq!(mode & 0o077, 0, "for its owner alone");
    let second = checkout.run(&["up"]);
    assert!(!second.contains("a-token") && second.contains("$USERS_TOKEN"), "{second}");
}

#[test]
fn replicas_run_behind_haproxy_and_a_second_up_starts_and_stops_only_what_differs() {
    if Installed::find("haproxy").is_none() {
        return;
    }
    let mut checkout = Checkout::new();
    checkout.run(&["up"]);
    let one_of_each = ["postgres", "redis", "user-svc", "data-svc"];
    let two_of_each =
        ["postgres", "redis", "user-svc-1", "user-svc-2", "data-svc-1", "data-svc-2", "haproxy"];
    assert_eq!(checkout.running(), one_of_each);

    checkout.replicas = "2";
    let printed = checkout.run(&["up"]);
    assert!(
        printed.contains(&format!("curl -i http://127.0.0.1:{}/register", checkout.ports[0])),
        "{printed}"
    );
    assert_eq!(checkout.running(), two_of_each);
    assert_eq!(checkout.readiness(), [200, 200], "at the ports that the single services had");
    let before = two_of_each.map(|part| checkout.pid(part));
    assert_eq!(checkout.run(&["up"]).matches("kept").count(), 7);
    assert_eq!(two_of_each.map(|part| checkout.pid(part)), before);

    checkout.replicas = "3";
    checkout.run(&["up"]);
    assert_eq!(two_of_each.map(|part| checkout.pid(part))[..6], before[..6], "the others are kept");
    assert_eq!(checkout.running().len(), 9);
    checkout.replicas = "2";
    checkout.run(&["up"]);
    assert_eq!(checkout.running(), two_of_each);

    for part in ["haproxy", "data-svc-2"] {
        kill(&checkout.pid(part));
    }
    checkout.run(&["up"]);
    assert_eq!(checkout.running(), two_of_each);
    assert_eq!(checkout.readiness(), [200, 200]);

    checkout.run(&["down"]);
    assert_eq!(checkout.run(&["status"]).matches("not running").count(), 7);
    assert!(checkout.run_in("main", checkout.ports, &["logs"]).status.success());
    checkout.replicas = "";
    checkout.run(&["up"]);
    assert_eq!(checkout.running(), one_of_each, "without REPLICAS it is one of each");
    assert_eq!(checkout.readiness(), [200, 200]);
}

#[test]
fn more_replicas_than_postgresql_has_connections_for_are_refused_with_a_number_that_fits() {
    if Installed::find("haproxy").is_none() {
        return;
    }
    let mut checkout = Checkout::new();
    checkout.replicas = "9";
    let output = checkout.run_in("main", checkout.ports, &["up"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        message.contains("REPLICAS=9 needs 198 connections") && message.contains("REPLICAS=8 fits"),
        "{message}"
    );
    assert_eq!(checkout.running(), [] as [&str; 0], "nothing was started");
}
