//! umount.smpfs: what umount(8) calls for a mount of ours, so that `umount DIR` waits for the uploads.
//!
//! `umount.smpfs DIR [-nlfrv] [-N namespace] [-t type]` becomes `smpfs unmount DIR`. The serving process unmounts by system call, so
//! umount(8), which called us, is not called again; where that process cannot be reached, `umount -i` (no helper) is.

mod common;

use common::{Words, code, command, find_smpfs, parse, translate};
use std::ffi::OsString;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};

const USAGE: &str = "usage: umount.smpfs DIR [-nlfrv] [-N namespace] [-t type]";
/// `smpfs unmount`: not everything is in the bucket yet.
const PENDING: i32 = 6;
/// `smpfs unmount`: no process of ours serves that directory.
const NOT_FOUND: i32 = 9;

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err((code, message)) => {
            eprintln!("umount.smpfs: {message}");
            ExitCode::from(code)
        }
    }
}

fn run() -> Result<u8, (u8, String)> {
    let usage = |what: String| (code::USAGE, format!("{what}\n{USAGE}"));
    let words = parse(std::env::args_os().skip(1), "nlfrv").map_err(usage)?;
    let args = smpfs_args(&words).map_err(usage)?;
    let smpfs = find_smpfs().map_err(|e| (code::SYSTEM, e))?;
    let status = start(&smpfs, &words, &args)?;
    match status.code() {
        // With -f nobody waits for uploads: unmounted is enough, and the process goes on by itself.
        Some(PENDING) if words.flags.contains(&'f') => Ok(0),
        Some(NOT_FOUND) => {
            eprintln!("umount.smpfs: no process to wait for; unmounting without it");
            start(Path::new("umount"), &words, &plain_args(&words))
                .map(|s| s.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(code::FAILED))
        }
        _ => Ok(translate(status)),
    }
}

fn start(program: &Path, words: &Words, args: &[OsString]) -> Result<ExitStatus, (u8, String)> {
    let status = command(program, words.namespace.as_deref()).args(args).status();
    status.map_err(|e| (code::SYSTEM, format!("{} cannot be started: {e}", program.display())))
}

/// The command line of `smpfs`.
fn smpfs_args(words: &Words) -> Result<Vec<OsString>, String> {
    let [dir] = words.positional.as_slice() else {
        return Err(format!("expected DIR, got {} words", words.positional.len()));
    };
    let mut args = vec![OsString::from("unmount")];
    let has = |flag| words.flags.contains(&flag);
    if has('l') || has('f') {
        args.push("--lazy".into());
    }
    if has('f') {
        args.push("--timeout=0s".into());
    }
    args.extend(["--".into(), dir.clone()]);
    Ok(args)
}

/// The command line of umount(8), told not to call helpers.
fn plain_args(words: &Words) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["-i".into()];
    for flag in words.flags.iter().filter(|f| matches!(f, 'n' | 'l' | 'f')) {
        args.push(format!("-{flag}").into());
    }
    args.push("--".into());
    args.extend(words.positional.iter().cloned());
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Words {
        parse(line.split(' ').map(OsString::from), "nlfrv").unwrap()
    }

    #[test]
    fn one_line_becomes_the_other() {
        assert_eq!(smpfs_args(&words("/mnt/p -n -v -t fuse.smpfs")).unwrap(), ["unmount", "--", "/mnt/p"]);
        assert_eq!(smpfs_args(&words("-l /mnt/p")).unwrap(), ["unmount", "--lazy", "--", "/mnt/p"]);
        assert_eq!(smpfs_args(&words("/m -f")).unwrap(), ["unmount", "--lazy", "--timeout=0s", "--", "/m"]);
        assert!(smpfs_args(&words("/a /b")).is_err());
    }

    #[test]
    fn the_way_around_never_calls_a_helper() {
        assert_eq!(plain_args(&words("/m -nlv")), ["-i", "-n", "-l", "--", "/m"]);
    }
}
