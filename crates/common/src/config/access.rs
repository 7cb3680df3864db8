//! The settings of access: `AUTH`, where the token list comes from, and the names of an open service.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::ArgMatches;

use super::{Secret, Setting, SettingsReader, one_of, setting};
use crate::access::{ListError, TokenList, read_file};

pub(super) const AUTH: Setting = setting(
    "AUTH",
    "auto",
    "auto: a token is needed if API_TOKENS is set, and HOST must be loopback else; none: nobody needs one",
);

pub(super) const API_TOKENS: Setting = Setting {
    env: "API_TOKENS",
    default: None,
    help: "The token list, its lines separated by ; too. API_TOKENS_FILE is watched: see user-svc token",
    secret: true,
};

pub(super) const ALLOWED_HOSTS: Setting = Setting {
    env: "ALLOWED_HOSTS",
    default: None,
    help: "Names that a service without tokens answers to, beside localhost and IP addresses; separated by commas",
    secret: false,
};

/// Who may use the service.
#[derive(Debug, Clone)]
pub struct AccessSettings {
    /// Who is asked who they are.
    pub mode: Mode,
    /// The names, beside its own, that an open service answers to.
    pub allowed_hosts: Vec<String>,
}

/// Who is asked who they are.
#[derive(Debug, Clone)]
pub enum Mode {
    /// Everyone who reaches it.
    Open {
        /// Whether these may be others than the users of this machine.
        public: bool,
    },
    /// Those who have a token.
    Tokens {
        /// Where the list comes from.
        source: TokenSource,
        /// The list as it was at the start.
        list: TokenList,
    },
}

/// Where a token list comes from.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// A file, which may change.
    File(PathBuf),
    /// The setting itself.
    Text(Secret),
}

impl TokenSource {
    fn setting(&self) -> &'static str {
        match self {
            Self::File(_) => "API_TOKENS_FILE",
            Self::Text(_) => "API_TOKENS",
        }
    }

    fn list(&self) -> Result<TokenList, ListError> {
        match self {
            Self::File(path) => TokenList::parse(&read_file(path).map_err(|error| ListError(vec![error]))?),
            // An environment variable, or a line of `.env`, does not hold a line's end easily.
            Self::Text(text) => TokenList::parse(&text.expose().replace(';', "\n")),
        }
    }
}

impl SettingsReader {
    /// The part of [`shared`](super::shared) for access, by clients that reach the service at `host`.
    ///
    /// A command that lets nobody in does not look at the list, and returns what is open: `health` asks a service that
    /// goes on with its last good list, and `token new` makes the first token.
    pub fn access(&mut self, host: IpAddr) -> AccessSettings {
        AccessSettings { mode: self.mode(host), allowed_hosts: self.get(ALLOWED_HOSTS.env, host_names) }
    }

    fn mode(&mut self, host: IpAddr) -> Mode {
        let mode = self.get(AUTH.env, one_of(&["auto", "none"]));
        if !self.lets_in {
            return Mode::Open { public: false };
        }
        let public = !host.to_canonical().is_loopback();
        match (mode, self.token_source()) {
            ("none", Some(source)) => {
                self.wrong(AUTH.env, format!("is none, and yet {} is set: keep one", source.setting()));
            }
            ("auto", Some(source)) => return self.tokens(source),
            ("auto", None) if public => self.wrong(
                "HOST",
                format!(
                    "{host} is not loopback and nobody would be asked who they are: set API_TOKENS_FILE \
                     (user-svc token new), or AUTH=none"
                ),
            ),
            _ => {}
        }
        Mode::Open { public }
    }

    fn token_source(&self) -> Option<TokenSource> {
        let file = self.token_file.clone().map(TokenSource::File);
        file.or_else(|| self.values.get(API_TOKENS.env).map(|text| TokenSource::Text(text.clone().into())))
    }

    fn tokens(&mut self, source: TokenSource) -> Mode {
        match source.list() {
            Ok(list) => Mode::Tokens { source, list },
            Err(ListError(mistakes)) => {
                for mistake in mistakes {
                    self.wrong(source.setting(), mistake);
                }
                Mode::Open { public: false }
            }
        }
    }
}

/// Reads host names, separated by commas.
fn host_names(value: &str) -> Result<Vec<String>, String> {
    let names: Vec<_> = value.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let is_name = |name: &&str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
    };
    if names.iter().all(is_name) {
        Ok(names.into_iter().map(str::to_owned).collect())
    } else {
        Err("must be host names without ports, separated by commas".to_owned())
    }
}

/// Returns whether a command lets clients in, or says who would be: it serves, or checks a token.
pub(super) fn lets_in(command: &ArgMatches) -> bool {
    match command.subcommand() {
        None => true,
        Some(("token", what)) => what.subcommand_name() == Some("check"),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::super::{SettingsError, shared};
    use super::*;

    const LINE: &str = "billing sha256:1111111111111111111111111111111111111111111111111111111111111111 read";

    fn read(arguments: &[&str]) -> Result<Mode, SettingsError> {
        let settings = shared("8080", "9080");
        let command = SettingsReader::describe(Command::new("test"), &settings)
            .subcommand(Command::new("health"))
            .subcommand(
                Command::new("token").subcommand(Command::new("new")).subcommand(Command::new("check")),
            );
        let matches = command.get_matches_from([&["test"], arguments].concat());
        let mut reader = SettingsReader::new(&matches, &settings);
        let host = reader.http().host;
        let access = reader.access(host);
        reader.finish().map(|()| access.mode)
    }

    fn mistakes(arguments: &[&str]) -> String {
        read(arguments).expect_err("a mistake").to_string()
    }

    #[test]
    fn on_loopback_nobody_is_asked_unless_there_is_a_list() {
        for host in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            let access = read(&["--host", host]);
            assert!(matches!(access, Ok(Mode::Open { public: false })), "{host}");
        }
        let Ok(Mode::Tokens { list, .. }) = read(&["--api-tokens", LINE]) else { panic!("open") };
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn an_address_that_is_not_loopback_needs_a_list_or_auth_none() {
        for host in ["0.0.0.0", "::", "10.0.0.1"] {
            let expected = format!(
                "HOST {host} is not loopback and nobody would be asked who they are: \
                 set API_TOKENS_FILE (user-svc token new), or AUTH=none"
            );
            assert!(mistakes(&["--host", host]).contains(&expected), "{host}");
            let open = read(&["--host", host, "--auth=none"]);
            assert!(matches!(open, Ok(Mode::Open { public: true })), "{host}");
            let tokens = read(&["--host", host, "--api-tokens", LINE]);
            assert!(matches!(tokens, Ok(Mode::Tokens { .. })), "{host}");
        }
    }

    #[test]
    fn a_list_together_with_auth_none_is_a_mistake() {
        let text = mistakes(&["--auth=none", "--api-tokens", LINE]);
        assert!(text.contains("AUTH is none, and yet API_TOKENS is set"), "{text}");
    }

    #[test]
    fn lines_of_the_variable_end_with_a_semicolon_or_a_line_end() {
        let other = LINE.replace('1', "2");
        for separator in [";", " ; ", "\n", ";\n# another\n"] {
            let text = format!("{LINE}{separator}{other}");
            let Ok(Mode::Tokens { list, .. }) = read(&["--api-tokens", &text]) else {
                panic!("{separator:?}")
            };
            assert_eq!(list.len(), 2, "{separator:?}");
        }
    }

    #[test]
    fn every_mistake_in_the_list_is_one_of_the_settings_and_quotes_nothing() {
        let text = mistakes(&["--port=x", "--api-tokens", &format!("hunter2;{LINE};{LINE}")]);
        for expected in ["PORT", "API_TOKENS line 1: ", "API_TOKENS line 3: the same token as in line 2"] {
            assert!(text.contains(expected), "{text}");
        }
        assert!(!text.contains("hunter2") && !text.contains("1111"), "{text}");
    }

    #[test]
    fn commands_that_let_nobody_in_do_not_look_at_the_list() {
        let wrong = ["--host=0.0.0.0", "--api-tokens=wrong"];
        for command in [&["health"][..], &["token", "new"]] {
            assert!(read(&[&wrong, command].concat()).is_ok(), "{command:?}");
        }
        for command in [&[][..], &["token", "check"]] {
            assert!(mistakes(&[&wrong, command].concat()).contains("API_TOKENS line 1"), "{command:?}");
        }
    }
}
