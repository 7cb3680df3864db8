//! From the command line to a running command: `.env`, settings, logs, exit code.

use clap::{ArgMatches, Command};

use crate::config::{Setting, SettingsReader, one_of};
use crate::error::CommandResult;
use crate::logging::{self, Format};

const SUCCESS: i32 = 0;
const FAILURE: i32 = 1;
const WRONG_SETTINGS: i32 = 2;

/// Reads the arguments of `command` and its `settings`, and calls `run` with the sub-command, if one was given, and the
/// settings as `read` returns them.
///
/// Ends the process. Exit code 2 means that the settings are wrong, and nothing was started.
pub fn main<C>(
    command: Command,
    settings: &[Setting],
    read: impl FnOnce(&mut SettingsReader) -> C,
    run: impl FnOnce(Option<(&str, &ArgMatches)>, C) -> CommandResult,
) -> ! {
    let code = exit_code_of(command, settings, read, run);
    // Without libc's exit handlers: they free what libpq's libraries use (OpenSSL, Kerberos). A thread that connects to
    // PostgreSQL at that moment would crash, and the process with it.
    signal_hook::low_level::exit(code)
}

fn exit_code_of<C>(
    command: Command,
    settings: &[Setting],
    read: impl FnOnce(&mut SettingsReader) -> C,
    run: impl FnOnce(Option<(&str, &ArgMatches)>, C) -> CommandResult,
) -> i32 {
    if let Err(error) = dotenvy::dotenv()
        && !error.not_found()
    {
        // The error may quote the line, which may hold a password.
        eprintln!(".env cannot be read: a line of it is not NAME=value");
        return WRONG_SETTINGS;
    }
    let matches = SettingsReader::describe(command, settings).get_matches();
    let mut reader = SettingsReader::new(&matches, settings);
    let filter = reader.get("RUST_LOG", |value| Ok(value.to_owned()));
    let format = reader.get("LOG_FORMAT", one_of(&["human", "json"]));
    let config = read(&mut reader);
    if let Err(mistakes) = reader.finish() {
        eprintln!("{mistakes}");
        return WRONG_SETTINGS;
    }
    let _until_all_is_written =
        match logging::start(&filter, if format == "json" { Format::Json } else { Format::Human }) {
            Ok(logging) => logging,
            Err(error) => {
                eprintln!("the log cannot be written: {error}");
                return FAILURE;
            }
        };
    match run(matches.subcommand(), config) {
        Ok(()) => SUCCESS,
        Err(error) => {
            log::error!("{error}");
            FAILURE
        }
    }
}
