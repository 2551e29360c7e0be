//! The other end of the control socket, for `smpfs status` and `smpfs unmount`. Plain blocking code.

use super::failure::{Failure, Outcome};
use super::socket::{Reply, Request};
use crate::cli::Exit;
use crate::fs::status::{Pending, Status};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A daemon that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest reply, bytes.
const MAX_LINE: u64 = 64 << 10;

/// What is said when the process ended, or was killed, in the middle of a conversation.
pub const GONE: &str = "the mount process ended without an answer; see its log";

/// Connects to a socket. `None` when nobody serves there any more.
pub fn connect(socket: &Path) -> Outcome<Option<UnixStream>> {
    let stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) => return Err(Failure::new(Exit::Denied, format!("the control socket {}: {e}", socket.display()))),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Some(stream))
}

/// Asks for the status.
pub fn status(mut stream: UnixStream) -> Outcome<Status> {
    ask(&mut stream, &Request::Status)?;
    match next(&mut BufReader::new(stream))? {
        Reply::Status(status) => Ok(*status),
        Reply::Failed(failure) => Err(failure),
        other => Err(Failure::new(Exit::Other, format!("the mount process answered something else: {other:?}"))),
    }
}

/// Unmounts; `progress` hears what is left. Returns when all is in the bucket and wiped, or with the reason why not.
pub fn unmount(
    mut stream: UnixStream,
    lazy: bool,
    stop: bool,
    timeout: Option<Duration>,
    progress: &mut dyn FnMut(Pending),
) -> Outcome<()> {
    ask(&mut stream, &Request::Unmount { lazy, stop, timeout_s: timeout.map(|t| t.as_secs_f64()) })?;
    let mut from = BufReader::new(stream);
    loop {
        match next(&mut from)? {
            Reply::Progress(pending) => progress(pending),
            Reply::Done => return Ok(()),
            Reply::Failed(failure) => return Err(failure),
            Reply::Status(_) => {}
        }
    }
}

fn ask(stream: &mut UnixStream, request: &Request) -> Outcome<()> {
    let mut line = serde_json::to_vec(request).map_err(|e| Failure::new(Exit::Other, e.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(silent)
}

fn next(from: &mut impl BufRead) -> Outcome<Reply> {
    let mut line = String::new();
    let n = from.take(MAX_LINE).read_line(&mut line).map_err(silent)?;
    if n == 0 {
        return Err(Failure::new(Exit::Other, GONE));
    }
    serde_json::from_str(&line).map_err(|e| Failure::new(Exit::Other, format!("the mount process answered nonsense: {e}")))
}

fn silent(e: std::io::Error) -> Failure {
    if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) {
        return Failure::new(Exit::Other, GONE);
    }
    Failure::new(Exit::Other, format!("the mount process does not answer on its control socket: {e}"))
}
