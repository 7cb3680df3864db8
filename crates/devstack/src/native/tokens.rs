//! The token list that `.env` names, for `up`: made at the first one, with a token for everything.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::background::USER_SVC;
use super::paths::Paths;
use super::services::setting;
use super::terminal::{Result, say};
use crate::programs::{clean, sibling};

/// What a curl line needs to be let in; empty if the services ask for no token. Makes the list unless it exists.
pub(super) fn curl_option(paths: &Paths) -> Result<&'static str> {
    match setting(paths, "API_TOKENS_FILE") {
        Some(file) => make(&paths.checkout.join(file))?,
        None if setting(paths, "API_TOKENS").is_none() => return Ok(""),
        None => {}
    }
    Ok(r#" -H "Authorization: Bearer $USERS_TOKEN""#)
}

fn make(list: &Path) -> Result<()> {
    if list.exists() {
        return Ok(());
    }
    let mut command = clean(sibling(USER_SVC)?);
    command.args(["token", "new", "--name", "make-up", "--scopes", "admin"]).current_dir("/");
    let made = command.output().map_err(|error| error.to_string())?;
    let [token, line] =
        [made.stdout, made.stderr].map(|text| String::from_utf8_lossy(&text).trim().to_owned());
    if !made.status.success() {
        return Err(format!("user-svc token new: {line}"));
    }
    let mut file = OpenOptions::new();
    let file = file.write(true).create_new(true).mode(0o600).open(list);
    file.and_then(|mut file| writeln!(file, "{line}"))
        .map_err(|error| format!("{}: {error}", list.display()))?;
    say(format!("A new token for everything, shown this once; its line is in {}:", list.display()));
    say(format!("  export USERS_TOKEN={token}"));
    Ok(())
}
