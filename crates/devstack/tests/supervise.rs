//! Servers end, and their data are removed, when the process that started them ends in any way.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use devstack::{Postgres, Redis};

/// Not a test: the process that the tests below end. It prints what it has started, then waits.
#[test]
#[ignore = "runs only as the process that another test ends"]
fn hold_servers_until_the_end() {
    let postgres: &'static Postgres = Box::leak(Box::new(Postgres::start()));
    let redis: &'static Redis = Box::leak(Box::new(Redis::start()));
    let folders = [postgres.sql("postgres", "SHOW data_directory"), redis.cli(0, &["CONFIG", "GET", "dir"])];
    if std::env::var_os("FROZEN").is_some() {
        postgres.freeze();
        redis.freeze();
    }
    println!("started {} {} {}", postgres.port(), redis.port(), folders.join(" ").replace('\n', " "));
    let mut nothing = String::new();
    std::io::stdin().read_line(&mut nothing).expect("stdin is a pipe");
}

struct Holder {
    process: Child,
    // If this were closed, the process would fail when it writes.
    _output: BufReader<ChildStdout>,
    connections: Vec<TcpStream>,
    folders: Vec<String>,
}

fn start_holder(variable: &str) -> Holder {
    let mut command = Command::new(std::env::current_exe().expect("we are a file"));
    command.args(["--exact", "hold_servers_until_the_end", "--ignored", "--nocapture"]).env(variable, "yes");
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("we run");
    let mut output = BufReader::new(process.stdout.take().expect("stdout is piped"));
    let printed = output
        .by_ref()
        .lines()
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("started ")?.1.to_owned()));
    let printed = printed.expect("the holder prints what it has started");
    let words: Vec<&str> = printed.split_whitespace().collect();
    let port = |word: &str| word.parse::<u16>().expect("a port");
    let connections =
        words[..2].iter().map(|word| TcpStream::connect(("127.0.0.1", port(word))).expect("it runs"));
    let folders =
        words[2..].iter().filter(|word| word.starts_with('/')).map(|&word| word.to_owned()).collect();
    Holder { process, _output: output, connections: connections.collect(), folders }
}

impl Holder {
    fn assert_that_all_is_gone(self) {
        assert_eq!(self.folders.len(), 2, "{:?}", self.folders);
        for mut connection in self.connections {
            connection.set_read_timeout(Some(Duration::from_secs(20))).expect("a valid time-out");
            let mut rest = Vec::new();
            let error = connection.read_to_end(&mut rest).err().map(|error| error.kind());
            assert_ne!(
                error,
                Some(std::io::ErrorKind::WouldBlock),
                "a server outlives the process that started it"
            );
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.folders.iter().any(|folder| Path::new(folder).exists()) {
            assert!(Instant::now() < deadline, "{:?} still exist", self.folders);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn servers_and_data_are_gone_after_the_holding_process_is_killed() {
    let mut holder = start_holder("RUNNING");
    holder.process.kill().expect("it is alive");
    holder.process.wait().expect("it is ours");
    holder.assert_that_all_is_gone();
}

#[test]
fn frozen_servers_and_data_are_gone_after_the_holding_process_is_killed() {
    let mut holder = start_holder("FROZEN");
    holder.process.kill().expect("it is alive");
    holder.process.wait().expect("it is ours");
    holder.assert_that_all_is_gone();
}

#[test]
fn servers_and_data_are_gone_after_an_exit_that_drops_nothing() {
    let mut holder = start_holder("RUNNING");
    // The holder exits at the end of its standard input.
    drop(holder.process.stdin.take());
    assert!(holder.process.wait().expect("it is ours").success());
    holder.assert_that_all_is_gone();
}
