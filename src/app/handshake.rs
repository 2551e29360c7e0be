//! How a mount goes into the background: the process that serves is this program, started anew, and tells its parent when it serves.
//!
//! ```text
//!  parent                                     child (same arguments and --serve)
//!    spawn ──── stdin: the passphrase ─────────> setsid, harden, open store, unlock keys, mount
//!    wait  <─── stdout: {"ready":..} or {"failed":..} ── one line
//!    exit with its code                         standard streams to /dev/null, directory /, serve
//! ```
//! No fork without exec: threads and locks of the parent cannot leak into the child. The passphrase is in no argument, variable or
//! file. A child whose parent has gone before it was ready unmounts again.

use super::failure::{Failure, Outcome};
use super::secret::{Secret, unbuffered_stdin};
use crate::cli::Exit;
use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

/// Longest line a child may report, bytes.
const MAX_LINE: u64 = 64 << 10;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Report {
    Ready,
    Failed(Failure),
}

/// Starts `command` (its streams are set here), hands it the secret, and waits until it serves. Returns its process id.
pub fn launch(mut command: Command, secret: &Secret) -> Outcome<u32> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|e| Error::from(e).context("the mount process cannot be started"))?;
    if let Some(stdin) = child.stdin.take() {
        // A child that failed already has closed it; what it reports is the better sentence.
        let _ = secret.send(stdin);
    }
    let line = match child.stdout.take() {
        Some(stdout) => read_line(stdout),
        None => String::new(),
    };
    match serde_json::from_str(&line) {
        Ok(Report::Ready) => Ok(child.id()),
        Ok(Report::Failed(failure)) => {
            let _ = child.wait();
            Err(failure)
        }
        Err(_) => Err(died(&mut child)),
    }
}

fn read_line(from: impl Read) -> String {
    let mut line = String::new();
    // An error is an end like any other: the child's exit says more.
    let _ = BufReader::new(from.take(MAX_LINE)).read_line(&mut line);
    line
}

fn died(child: &mut Child) -> Failure {
    let how = match child.wait() {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no exit code".to_owned(),
        },
        Err(e) => e.to_string(),
    };
    Failure::new(Exit::Other, format!("the mount process ended before it served ({how}); its messages are above or in the log"))
}

/// The child's end.
pub struct Reporter {
    reported: bool,
}

impl Reporter {
    /// In the child, first thing: a session of its own, and the secret from the pipe.
    pub fn begin() -> Result<(Reporter, Secret)> {
        // Fails only for a process group leader, which a child just started is not, and a shell's job may be.
        let _ = nix::unistd::setsid();
        let secret = Secret::receive(unbuffered_stdin()?)?;
        Ok((Reporter { reported: false }, secret))
    }

    /// The mount serves. Then lets go of the directory and the terminal it was started from.
    ///
    /// # Errors
    /// `Interrupted` when the parent has gone: nobody wants this mount any more.
    pub fn ready(mut self) -> Result<()> {
        self.say(&Report::Ready)
            .map_err(|e| Error::with_source(Kind::Interrupted, "the command that started the mount has gone", e))?;
        let quiet =
            |e: nix::errno::Errno| Error::with_source(Kind::Unavailable, "the mount process cannot leave its terminal", e);
        nix::unistd::chdir("/").map_err(quiet)?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null).map_err(quiet)?;
        nix::unistd::dup2_stdout(&null).map_err(quiet)?;
        nix::unistd::dup2_stderr(&null).map_err(quiet)
    }

    /// The mount failed.
    pub fn failed(mut self, failure: &Failure) {
        // Without a parent nobody is left to hear it; the log has it.
        let _ = self.say(&Report::Failed(failure.clone()));
    }

    fn say(&mut self, report: &Report) -> std::io::Result<()> {
        self.reported = true;
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        let mut out = std::io::stdout().lock();
        out.write_all(&line)?;
        out.flush()
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if !self.reported {
            let _ = self.say(&Report::Failed(Failure::new(Exit::Other, "the mount process gave up while starting")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    fn shell(script: &str) -> Outcome<u32> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        launch(command, &Secret { bytes: Zeroizing::new(b"open sesame".to_vec()), recovery_code: false })
    }

    #[test]
    fn ready_brings_the_process_id() {
        let pid = shell("read -r x; echo '\"ready\"'").unwrap();
        assert!(pid > 1);
    }

    #[test]
    fn the_secret_arrives_on_standard_input_and_nowhere_else() {
        let tmp = tempfile::tempdir().unwrap();
        let (seen, around) = (tmp.path().join("stdin"), tmp.path().join("around"));
        let script =
            format!("cat > {}; (cat /proc/$$/cmdline /proc/$$/environ) > {}; echo '\"ready\"'", seen.display(), around.display());
        shell(&script).unwrap();
        assert_eq!(std::fs::read(&seen).unwrap(), b"popen sesame");
        let around = std::fs::read(&around).unwrap();
        assert!(!around.windows(11).any(|w| w == b"open sesame"));
    }

    #[test]
    fn a_failure_keeps_code_and_sentence() {
        let f = shell(r#"cat >/dev/null; echo '{"failed":{"exit":3,"message":"wrong passphrase","advice":"try again"}}'"#)
            .unwrap_err();
        assert_eq!((f.exit(), f.message.as_str(), f.advice.as_str()), (Exit::Passphrase, "wrong passphrase", "try again"));
    }

    #[test]
    fn a_child_that_dies_without_a_word_is_told_apart() {
        assert!(shell("exit 7").unwrap_err().message.contains("exit code 7"));
        assert!(shell("kill -9 $$").unwrap_err().message.contains("signal 9"));
        assert!(shell("echo rubbish; exit 0").unwrap_err().message.contains("exit code 0"));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let secret = Secret { bytes: Zeroizing::new(vec![b'x']), recovery_code: false };
        let f = launch(Command::new("/no/such/program"), &secret).unwrap_err();
        assert!(f.message.contains("cannot be started"), "{f}");
    }
}
