//! What the person at the terminal reads, and what they are asked.

use std::io::{BufRead, Write};

/// A result whose error is a message for the person at the terminal.
pub type Result<T> = std::result::Result<T, String>;

/// Prints a line. A reader that has ended (`make up | head -1`) must not stop the work.
pub(super) fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Asks a question, and returns whether the answer is yes.
pub(super) fn confirm(question: &str) -> Result<bool> {
    print!("{question} [y/N] ");
    std::io::stdout().flush().map_err(|error| error.to_string())?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| error.to_string())?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
