//! `devstack` runs both services and their stores on this machine, without Docker. `make up`, `down`, `status`, `logs` and
//! `reset` call it.

use std::path::Path;
use std::process::ExitCode;

use devstack::native::{self, Consent, Lines};

const USAGE: &str = "\
Runs Postgres, Redis, user-svc and data-svc in the background, with all state in .local of the current folder.

usage: devstack COMMAND

  up             start what is missing, and wait until both services are ready
  down           stop everything, keep the data
  status         one line for each part
  logs [-f]      the last lines of all logs; -f follows them
  reset [--yes]  stop everything and remove the data
  database-url   the URL of the running database

USER_SVC_PORT and DATA_SVC_PORT set the ports; otherwise they are 8080 and 8081, or the next free ones.
REPLICAS=N starts N of each service, and HAProxy in front of them on these ports.";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next().unwrap_or_default();
    let here = Path::new(".");
    if command == "background" {
        let Err(error) = native::become_background(arguments);
        return fail(&error);
    }
    let option = arguments.next().unwrap_or_default();
    let done = match (command.to_str(), option.to_str()) {
        (Some("up"), Some("")) => native::up(here),
        (Some("down"), Some("")) => native::down(here),
        (Some("status"), Some("")) => native::status(here),
        (Some("logs"), Some("")) => native::logs(here, Lines::Last),
        (Some("logs"), Some("-f")) => native::logs(here, Lines::Follow),
        (Some("reset"), Some("")) => native::reset(here, Consent::Ask),
        (Some("reset"), Some("--yes")) => native::reset(here, Consent::Given),
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
    done.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn fail(error: &str) -> ExitCode {
    eprintln!("devstack: {error}");
    ExitCode::FAILURE
}
