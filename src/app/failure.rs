//! How a subcommand fails: an exit code and a sentence, also across processes.

use crate::cli::Exit;
use crate::error::{Error, Kind};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An error on its way to the user's terminal. It crosses the pipe of a mount's start and the control socket as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Exit code, one of [`Exit`].
    pub exit: u8,
    /// What happened.
    pub message: String,
    /// What can be done about it; may be empty.
    #[serde(default)]
    pub advice: String,
}

/// What subcommands return.
pub type Outcome<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with that exit code.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit: exit.code(), message: message.into(), advice: String::new() }
    }

    /// Its exit code.
    pub fn exit(&self) -> Exit {
        Exit::from_code(self.exit)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        let message = e.to_string();
        // What is said already need not be said twice.
        let advice = match e.kind() {
            Kind::Invalid | Kind::Unsupported | Kind::Busy | Kind::NotFound | Kind::Exists => "",
            kind => kind.advice(),
        };
        Failure { exit: Exit::from(e.kind()).code(), message, advice: advice.to_owned() }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Error::from(e).into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.advice.is_empty() {
            write!(f, "\n  {}", self.advice)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_code_and_sentence_across_a_pipe() {
        let f = Failure::from(Error::new(Kind::Locked, "the passphrase does not open this volume"));
        let text = serde_json::to_string(&f).unwrap();
        let back: Failure = serde_json::from_str(&text).unwrap();
        assert_eq!(back, f);
        assert_eq!(back.exit(), Exit::Passphrase);
        assert!(back.to_string().contains("recovery code"), "{back}");
    }
}
