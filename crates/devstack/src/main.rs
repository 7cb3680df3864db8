//! `devstack`: both services and their stores on this machine, without Docker. What `make up` and its kin call.

use std::path::Path;
use std::process::ExitCode;

use devstack::native;

const USAGE: &str = "\
Runs Postgres, Redis, user-svc and data-svc in the background, with all state in .local of the current folder.

usage: devstack COMMAND

  up             start what is missing, wait until both services are ready
  down           stop everything, keep the data
  status         one line for each part
  logs [-f]      the last lines of all logs; -f goes on
  reset [--yes]  stop everything and remove the data
  database-url   the URL of the running database

USER_SVC_PORT and DATA_SVC_PORT set the ports, else 8080 and 8081 or the next free ones.";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next().unwrap_or_default();
    let here = Path::new(".");
    if command == "background" {
        let Err(error) = native::become_background(arguments);
        return complain(&error);
    }
    let option = arguments.next().unwrap_or_default();
    let done = match (command.to_str(), option.to_str()) {
        (Some("up"), Some("")) => native::up(here),
        (Some("down"), Some("")) => native::down(here),
        (Some("status"), Some("")) => native::status(here),
        (Some("logs"), Some(option @ ("" | "-f"))) => native::logs(here, option == "-f"),
        (Some("reset"), Some(option @ ("" | "--yes"))) => native::reset(here, option == "--yes"),
        (Some("database-url"), Some("")) => native::database_url(here),
        (Some("help" | "-h" | "--help"), _) => {
            println!("{USAGE}");
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    done.map_or_else(|error| complain(&error), |()| ExitCode::SUCCESS)
}

fn complain(error: &str) -> ExitCode {
    eprintln!("devstack: {error}");
    ExitCode::FAILURE
}
