//! `token`: makes a token for a client, and says what the token list knows of one.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::{Arg, ArgMatches, Command, value_parser};
use common::access::{Entry, RateLimit, Scopes, Token, TokenList, client_name};
use common::config::{AccessSettings, Mode};
use common::error::{CommandResult, Invalid};

/// The most that is read of a token: a longer line is none.
const LINE_MAX_BYTES: u64 = 1024;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest life of a token that has one: ten years.
const DAYS_MAX: i64 = 3650;

/// The sub-command.
#[must_use]
pub fn command() -> Command {
    let name = |text: &str| client_name(text).map_err(|Invalid(what)| what);
    let scopes = |text: &str| text.parse::<Scopes>().map_err(|Invalid(what)| what);
    let rate = |text: &str| text.parse::<RateLimit>().map_err(|Invalid(what)| what);
    let days = value_parser!(u32).range(1..=DAYS_MAX);
    Command::new("token")
        .about("Make and check API tokens; needs no store")
        .subcommand_required(true)
        .subcommand(
            Command::new("new")
                .about("Print a new token, and on standard error its line for API_TOKENS_FILE")
                .arg(
                    Arg::new("name").long("name").required(true).value_parser(name).help("The client's name"),
                )
                .arg(
                    Arg::new("scopes")
                        .long("scopes")
                        .required(true)
                        .value_parser(scopes)
                        .help("What it may do: read, write, admin, separated by commas"),
                )
                .arg(Arg::new("days").long("days").value_parser(days).help("For how many days it is valid"))
                .arg(
                    Arg::new("rate")
                        .long("rate")
                        .value_parser(rate)
                        .help("The client's limit, in the place of RATE_LIMIT"),
                ),
        )
        .subcommand(
            Command::new("check")
                .about("Read a token from standard input, and print what the list says of it"),
        )
}

/// Runs the sub-command.
///
/// # Errors
/// `check`: the token is none, or not valid. Standard input or output that cannot be used.
pub fn run(arguments: &ArgMatches, access: &AccessSettings) -> CommandResult {
    match arguments.subcommand() {
        Some(("new", arguments)) => make(arguments),
        _ => check(access),
    }
}

fn make(arguments: &ArgMatches) -> CommandResult {
    let name = arguments.get_one::<Arc<str>>("name").cloned().ok_or("--name is missing")?;
    let scopes = arguments.get_one::<Scopes>("scopes").copied().ok_or("--scopes is missing")?;
    let until = arguments.get_one::<u32>("days").map(|&days| SystemTime::now() + DAY * days);
    let token = Token::generate()?;
    let rate = arguments.get_one::<RateLimit>("rate").copied();
    let entry = Entry { name, scopes, until, rate };
    writeln!(io::stdout(), "{}", token.expose())?;
    writeln!(io::stderr(), "{}", entry.line(token.digest()))?;
    Ok(())
}

fn check(access: &AccessSettings) -> CommandResult {
    let Mode::Tokens { list, .. } = &access.mode else {
        return Err("there is no token list: set API_TOKENS_FILE or API_TOKENS".into());
    };
    let mut line = String::new();
    io::stdin().lock().take(LINE_MAX_BYTES).read_line(&mut line)?;
    writeln!(io::stdout(), "{}", describe(line.trim_end_matches(['\r', '\n']), list, SystemTime::now())?)?;
    Ok(())
}

/// What `list` says of the token `text`.
fn describe(text: &str, list: &TokenList, now: SystemTime) -> Result<String, String> {
    let token = Token::parse(text).ok_or("this is not a token: a token is ut_ and 43 characters")?;
    let Entry { name, scopes, until, .. } =
        list.find(&token.digest()).ok_or("the list does not know this token")?;
    let Some(until) = until else { return Ok(format!("{name}: {scopes}, does not expire")) };
    let time = humantime::format_rfc3339_seconds(*until);
    if now < *until {
        Ok(format!("{name}: {scopes}, until {time}"))
    } else {
        Err(format!("the token of {name} expired at {time}"))
    }
}
