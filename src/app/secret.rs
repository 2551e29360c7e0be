//! Where a passphrase comes from: a descriptor, a file, the terminal. Never from an argument or a variable.

use crate::config::Config;
use crate::error::{Error, Kind, Result, fail};
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use zeroize::Zeroizing;

/// Longest passphrase or recovery code, bytes.
pub const MAX_LEN: usize = 4096;

/// What unlocks a volume, as the user gave it. Wiped when dropped; not printable.
pub struct Secret {
    /// The bytes, without the newline that ended them.
    pub bytes: Zeroizing<Vec<u8>>,
    /// The user said that it is a recovery code. Otherwise it may be either.
    pub recovery_code: bool,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// One line for the pipe to the process that serves: `p` or `r`, then the bytes, up to the end.
    pub fn send(&self, mut to: impl Write) -> std::io::Result<()> {
        to.write_all(if self.recovery_code { b"r" } else { b"p" })?;
        to.write_all(&self.bytes)?;
        to.flush()
    }

    /// The other end of [`Secret::send`].
    pub fn receive(from: impl Read) -> Result<Secret> {
        let mut all = read_bounded(from, "the pipe to the mount process")?;
        let recovery_code = match all.first() {
            Some(b'p') => false,
            Some(b'r') => true,
            _ => return fail(Kind::Invalid, "--serve is used by `smpfs mount` itself, with the passphrase on standard input"),
        };
        all.remove(0);
        Ok(Secret { bytes: all, recovery_code })
    }
}

/// Something the user should hear about the secret's whereabouts.
pub type Warning = String;

/// Whether [`obtain`] will ask on the terminal.
pub fn will_prompt(fd: Option<u32>, config: &Config) -> bool {
    fd.is_none() && config.recovery_code_file.is_none() && config.passphrase_file.is_none()
}

/// Finds the passphrase of an existing volume: `fd`, then the recovery-code file, then the passphrase file, then a prompt.
pub fn obtain(fd: Option<u32>, config: &Config) -> Result<(Secret, Vec<Warning>)> {
    if let Some(fd) = fd {
        return Ok((Secret { bytes: from_descriptor(fd)?, recovery_code: false }, vec![]));
    }
    if let Some(path) = &config.recovery_code_file {
        let (bytes, warnings) = from_file(path)?;
        return Ok((Secret { bytes, recovery_code: true }, warnings));
    }
    if let Some(path) = &config.passphrase_file {
        let (bytes, warnings) = from_file(path)?;
        return Ok((Secret { bytes, recovery_code: false }, warnings));
    }
    let bytes = prompt("Passphrase (or recovery code): ")?;
    Ok((Secret { bytes, recovery_code: false }, vec![]))
}

/// What [`obtain`] would warn of, without asking on a terminal and without reading a descriptor, which can be read once.
pub fn warnings(fd: Option<u32>, config: &Config) -> Result<Vec<Warning>> {
    let file = config.recovery_code_file.as_ref().or(config.passphrase_file.as_ref());
    match file.filter(|_| fd.is_none()) {
        Some(path) => from_file(path).map(|(_, warnings)| warnings),
        None => Ok(Vec::new()),
    }
}

/// Finds the passphrase of a new volume; a typed one is asked for twice.
pub fn choose(fd: Option<u32>, config: &Config) -> Result<(Zeroizing<Vec<u8>>, Vec<Warning>)> {
    let (bytes, mut warnings) = match (fd, &config.passphrase_file) {
        (Some(fd), _) => (from_descriptor(fd)?, vec![]),
        (None, Some(path)) => from_file(path)?,
        (None, None) => {
            let first = prompt("New passphrase: ")?;
            if *first != *prompt("The same again: ")? {
                return fail(Kind::Invalid, "the two passphrases differ; nothing was made");
            }
            (first, vec![])
        }
    };
    if bytes.len() < 12 {
        warnings.push(
            "the passphrase is short: whoever copies the bucket can try guesses for years; five random words are better".into(),
        );
    }
    Ok((bytes, warnings))
}

fn prompt(text: &str) -> Result<Zeroizing<Vec<u8>>> {
    if !std::io::stdin().is_terminal() && std::fs::File::open("/dev/tty").is_err() {
        return fail(Kind::Invalid, "there is no terminal to ask for the passphrase; give --passphrase-file or --passphrase-fd");
    }
    let typed = rpassword::prompt_password(text).map_err(|e| Error::from(e).context("asking for the passphrase"))?;
    checked(Zeroizing::new(typed.into_bytes()), "the passphrase")
}

/// Reads from a descriptor that the caller opened: through `/proc/self/fd`, which also reopens pipes.
fn from_descriptor(fd: u32) -> Result<Zeroizing<Vec<u8>>> {
    let what = format!("--passphrase-fd {fd}");
    let bytes = if fd == 0 {
        read_bounded(unbuffered_stdin()?, &what)?
    } else {
        let file = std::fs::File::open(format!("/proc/self/fd/{fd}"))
            .map_err(|e| Error::with_source(Kind::Invalid, format!("{what}: not an open file or pipe"), e))?;
        read_bounded(file, &what)?
    };
    checked(bytes, &what)
}

/// Standard input without the standard library's buffer, which would keep a copy.
pub fn unbuffered_stdin() -> Result<std::fs::File> {
    Ok(std::fs::File::from(std::io::stdin().as_fd().try_clone_to_owned()?))
}

fn from_file(path: &Path) -> Result<(Zeroizing<Vec<u8>>, Vec<Warning>)> {
    let shown = path.display();
    let open = || -> std::io::Result<_> {
        let file = std::fs::File::open(path)?;
        let mode = file.metadata()?.mode();
        Ok((file, mode))
    };
    let (file, mode) =
        open().map_err(|e| Error::with_source(Kind::Invalid, format!("the passphrase file {shown} cannot be read"), e))?;
    let mut warnings = Vec::new();
    // Pipes and devices (process substitution) have modes that mean nothing.
    if mode & libc::S_IFMT == libc::S_IFREG && mode & 0o007 != 0 {
        warnings.push(format!("every user of this machine may read or change {shown}: run `chmod 600 {shown}`"));
    }
    Ok((checked(read_bounded(file, "the passphrase file")?, &format!("the passphrase file {shown}"))?, warnings))
}

/// Reads to the end, [`MAX_LEN`] bytes and a line end at most. The buffer never moves, so no copy stays behind.
fn read_bounded(mut from: impl Read, what: &str) -> Result<Zeroizing<Vec<u8>>> {
    let mut buffer = Zeroizing::new(vec![0u8; MAX_LEN + 3]);
    let mut len = 0;
    loop {
        match from.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::with_source(Kind::Invalid, format!("{what} cannot be read"), e)),
        }
        if len == buffer.len() {
            return fail(Kind::Invalid, format!("{what} holds more than {MAX_LEN} bytes"));
        }
    }
    buffer.truncate(len);
    Ok(buffer)
}

/// Drops one newline at the end; refuses nothing at all.
fn checked(mut bytes: Zeroizing<Vec<u8>>, what: &str) -> Result<Zeroizing<Vec<u8>>> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    if bytes.is_empty() {
        return fail(Kind::Invalid, format!("{what} is empty"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(content: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let f = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(f.path(), content).unwrap();
        std::fs::set_permissions(f.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        f
    }

    #[test]
    fn one_newline_is_dropped_and_no_more() {
        for (content, want) in
            [(&b"secret"[..], &b"secret"[..]), (b"secret\n", b"secret"), (b"s\r\n", b"s"), (b" s \n\n", b" s \n")]
        {
            let f = file(content, 0o600);
            assert_eq!(from_file(f.path()).unwrap(), (Zeroizing::new(want.to_vec()), vec![]));
        }
        for empty in [&b""[..], b"\n"] {
            assert_eq!(from_file(file(empty, 0o600).path()).unwrap_err().kind(), Kind::Invalid);
        }
        assert!(from_file(file(&[b'x'; MAX_LEN + 10], 0o600).path()).is_err());
        assert!(from_file(Path::new("/does/not/exist")).unwrap_err().to_string().contains("/does/not/exist"));
    }

    #[test]
    fn a_file_that_everybody_may_read_draws_a_warning() {
        assert!(from_file(file(b"x", 0o604).path()).unwrap().1[0].contains("chmod 600"));
        assert!(from_file(file(b"x", 0o640).path()).unwrap().1.is_empty());
    }

    #[test]
    fn the_pipe_brings_it_over() {
        for recovery_code in [false, true] {
            let sent = Secret { bytes: Zeroizing::new(b"p\nr\0".to_vec()), recovery_code };
            let mut pipe = Vec::new();
            sent.send(&mut pipe).unwrap();
            let got = Secret::receive(&pipe[..]).unwrap();
            assert_eq!((&got.bytes, got.recovery_code), (&sent.bytes, recovery_code));
        }
        assert!(Secret::receive(&b""[..]).is_err());
        assert_eq!(format!("{:?}", Secret::receive(&b"pxyz"[..]).unwrap()), "Secret(..)");
    }

    #[test]
    fn a_descriptor_is_read_through_proc() {
        use std::os::fd::AsRawFd;
        let f = file(b"from fd\n", 0o600);
        let open = std::fs::File::open(f.path()).unwrap();
        assert_eq!(*from_descriptor(open.as_raw_fd() as u32).unwrap(), b"from fd");
        assert!(from_descriptor(987).unwrap_err().to_string().contains("--passphrase-fd 987"));
    }
}
