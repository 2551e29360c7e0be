//! What both helpers share: finding `smpfs`, a usable environment, exit codes of mount(8).
//!
//! mount(8) and systemd call helpers with next to no environment: no HOME, often no PATH.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Exit codes of mount(8).
pub mod code {
    /// Incorrect invocation or permissions.
    pub const USAGE: u8 = 1;
    /// System error: no memory, cannot start a program.
    pub const SYSTEM: u8 = 2;
    /// A mistake in the helper or in smpfs.
    pub const INTERNAL: u8 = 4;
    /// Interrupted by the user.
    pub const INTERRUPTED: u8 = 8;
    /// The mount (or unmount) failed.
    pub const FAILED: u8 = 32;
}

/// Words that mount(8) may pass, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// SPEC and DIR, or DIR alone.
    pub positional: Vec<OsString>,
    /// Letters of flags without a value, in order.
    pub flags: Vec<char>,
    /// Values of `-o`, in order.
    pub options: Vec<OsString>,
    /// Value of `-N`: a mount namespace, by process id or path.
    pub namespace: Option<OsString>,
}

/// Takes the words apart. `known` are the letters of flags without a value; `-o`, `-t` and `-N` take one. Options may stand anywhere
/// and be joined (`-sf`, `-oro`).
pub fn parse(words: impl Iterator<Item = OsString>, known: &str) -> Result<Words, String> {
    let mut out = Words::default();
    let mut words = words;
    let mut only_positional = false;
    while let Some(word) = words.next() {
        let bytes = word.as_encoded_bytes();
        if only_positional || bytes.len() < 2 || bytes[0] != b'-' {
            out.positional.push(word);
        } else if word == "--" {
            only_positional = true;
        } else {
            option_word(&word, &mut words, known, &mut out)?;
        }
    }
    Ok(out)
}

fn option_word(word: &OsStr, rest: &mut impl Iterator<Item = OsString>, known: &str, out: &mut Words) -> Result<(), String> {
    use std::os::unix::ffi::OsStrExt;
    let letters = &word.as_bytes()[1..];
    for (i, &letter) in letters.iter().enumerate() {
        if known.as_bytes().contains(&letter) {
            out.flags.push(char::from(letter));
            continue;
        }
        if !b"otN".contains(&letter) {
            return Err(format!("unknown option -{}", char::from(letter)));
        }
        let joined = OsStr::from_bytes(&letters[i + 1..]);
        let value = if joined.is_empty() { rest.next() } else { Some(joined.to_owned()) };
        let value = value.ok_or_else(|| format!("-{} needs a value", char::from(letter)))?;
        match letter {
            b'o' => out.options.push(value),
            b'N' => out.namespace = Some(value),
            // The type chose this helper already.
            _ => {}
        }
        break;
    }
    Ok(())
}

/// The `smpfs` program: `$SMPFS_BIN`, beside this helper's real file, in the usual places.
pub fn find_smpfs() -> Result<PathBuf, String> {
    if let Some(named) = std::env::var_os("SMPFS_BIN") {
        return Ok(named.into());
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.canonicalize().ok()).map(|exe| exe.with_file_name("smpfs"));
    let usual = ["/usr/local/bin/smpfs", "/usr/bin/smpfs"].map(PathBuf::from);
    let mut places: Vec<PathBuf> = beside.into_iter().chain(usual).collect();
    match places.iter().position(|p| p.is_file()) {
        Some(found) => Ok(places.swap_remove(found)),
        None => {
            let looked: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
            Err(format!("smpfs is not installed: looked for {}; SMPFS_BIN may name it", looked.join(", ")))
        }
    }
}

/// A command for `program`, inside the mount namespace when there is one, with PATH and HOME set if they are missing.
pub fn command(program: &Path, namespace: Option<&OsStr>) -> Command {
    let mut command = match namespace {
        None => Command::new(program),
        Some(namespace) => {
            let by_pid = !namespace.is_empty() && namespace.as_encoded_bytes().iter().all(u8::is_ascii_digit);
            let mut file = OsString::from("--mount=");
            if by_pid {
                file.push("/proc/");
            }
            file.push(namespace);
            if by_pid {
                file.push("/ns/mnt");
            }
            let mut command = Command::new("nsenter");
            command.arg(file).arg("--").arg(program);
            command
        }
    };
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    }
    if std::env::var_os("HOME").is_none()
        && let Some(home) = home()
    {
        command.env("HOME", home);
    }
    command
}

/// Home directory of the user who runs this, from /etc/passwd: credentials of the cloud often lie below it.
fn home() -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let uid = std::fs::metadata("/proc/self").ok()?.uid();
    home_in(&std::fs::read_to_string("/etc/passwd").ok()?, uid)
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let line = passwd.lines().find(|l| l.split(':').nth(2) == Some(&uid))?;
    line.split(':').nth(5).filter(|home| home.starts_with('/')).map(str::to_owned)
}

/// Exit code of `smpfs` -> exit code of mount(8).
pub fn translate(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(0), _) => 0,
        (Some(2), _) => code::USAGE,
        (Some(101), _) => code::INTERNAL,
        (Some(_), _) => code::FAILED,
        (None, Some(2 | 15)) => code::INTERRUPTED,
        (None, _) => code::INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Words, String> {
        parse(line.split_whitespace().map(OsString::from), "sfnv")
    }

    #[test]
    fn words_as_mount_passes_them() {
        let w = words("s3://b/p /mnt -sn -o ro,_netdev -t smpfs -v").unwrap();
        assert_eq!(w.positional, ["s3://b/p", "/mnt"]);
        assert_eq!(w.flags, ['s', 'n', 'v']);
        assert_eq!(w.options, ["ro,_netdev"]);
        let w = words("-oro -fo rw -N 42 -tfuse.smpfs -- -spec /mnt").unwrap();
        assert_eq!((w.options, w.flags, w.namespace), (vec!["ro".into(), "rw".into()], vec!['f'], Some("42".into())));
        assert_eq!(w.positional, ["-spec", "/mnt"]);
        assert!(words("a b -x").is_err());
        assert!(words("a b -o").is_err());
    }

    #[test]
    fn exit_codes_of_mount() {
        let from = |code: i32| translate(ExitStatus::from_raw(code << 8));
        assert_eq!([from(0), from(2), from(3), from(4), from(7), from(101)], [0, 1, 32, 32, 32, 4]);
        assert_eq!((translate(ExitStatus::from_raw(2)), translate(ExitStatus::from_raw(9))), (8, 4));
    }

    #[test]
    fn a_home_is_found_without_the_variable() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nodd:x:5:5:::\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!((home_in(passwd, 5), home_in(passwd, 6)), (None, None));
    }

    #[test]
    fn a_namespace_is_entered_first() {
        let shown = |c: &Command| c.get_args().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>();
        assert_eq!(shown(&command(Path::new("/x/smpfs"), Some(OsStr::new("42")))), ["--mount=/proc/42/ns/mnt", "--", "/x/smpfs"]);
        assert_eq!(shown(&command(Path::new("/x/smpfs"), Some(OsStr::new("/run/ns")))), ["--mount=/run/ns", "--", "/x/smpfs"]);
    }
}
