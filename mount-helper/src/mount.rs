//! mount.smpfs: what mount(8), fstab and systemd call for a file system of type `smpfs`.
//!
//! `mount.smpfs SPEC DIR [-sfnv] [-N namespace] [-o options] [-t type]` becomes `smpfs mount -o options -- SPEC DIR`, which returns when
//! the mount serves. Everything about options is decided there.

mod common;

use common::{Words, code, command, find_smpfs, parse, translate};
use std::ffi::OsString;
use std::process::ExitCode;

const USAGE: &str = "usage: mount.smpfs SPEC DIR [-sfnv] [-N namespace] [-o options] [-t type]";

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err((code, message)) => {
            eprintln!("mount.smpfs: {message}");
            ExitCode::from(code)
        }
    }
}

fn run() -> Result<u8, (u8, String)> {
    let usage = |what: String| (code::USAGE, format!("{what}\n{USAGE}"));
    let words = parse(std::env::args_os().skip(1), "sfnvw").map_err(usage)?;
    let args = smpfs_args(&words).map_err(usage)?;
    let system = |e: String| (code::SYSTEM, e);
    let smpfs = find_smpfs().map_err(system)?;
    if words.flags.contains(&'v') {
        eprintln!("mount.smpfs: running {}", smpfs.display());
    }
    let status = command(&smpfs, words.namespace.as_deref()).args(args).status();
    status.map(translate).map_err(|e| system(format!("{} cannot be started: {e}", smpfs.display())))
}

/// The command line of `smpfs`.
fn smpfs_args(words: &Words) -> Result<Vec<OsString>, String> {
    let [spec, dir] = words.positional.as_slice() else {
        return Err(format!("expected SPEC and DIR, got {} words", words.positional.len()));
    };
    let mut args = vec![OsString::from("mount")];
    for options in &words.options {
        no_secret(options)?;
        args.extend([OsString::from("-o"), options.clone()]);
    }
    for flag in &words.flags {
        match flag {
            's' => args.push("--sloppy".into()),
            'f' => args.push("--dry-run".into()),
            // -n: there is no mtab to write. -w: rw is the default. -v: handled here.
            _ => {}
        }
    }
    args.extend(["--".into(), spec.clone(), dir.clone()]);
    Ok(args)
}

/// A passphrase among the options would be seen by every user in the list of processes: it stops here.
fn no_secret(options: &OsString) -> Result<(), String> {
    let text = options.to_string_lossy();
    let names = text.split(',').map(|o| o.split('=').next().unwrap_or_default().trim_matches('"').replace('_', "-"));
    for name in names {
        if matches!(name.as_str(), "passphrase" | "password" | "pass" | "recovery-code" | "key") {
            return Err(format!("-o {name}= would show a secret in the list of processes: use passphrase-file=FILE"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Result<Vec<String>, String> {
        let words = parse(line.split(' ').map(OsString::from), "sfnvw")?;
        smpfs_args(&words).map(|args| args.into_iter().map(|a| a.into_string().unwrap()).collect())
    }

    #[test]
    fn one_line_becomes_the_other() {
        let got = args("work-s3:/ /mnt/w -n -s -o rw,_netdev,x-systemd.automount,allow_other").unwrap();
        assert_eq!(got, ["mount", "-o", "rw,_netdev,x-systemd.automount,allow_other", "--sloppy", "--", "work-s3:/", "/mnt/w"]);
        assert_eq!(args("a b -f").unwrap(), ["mount", "--dry-run", "--", "a", "b"]);
        assert!(args("only-one").is_err());
        assert!(args("a b c").is_err());
    }

    #[test]
    fn secrets_are_refused_without_being_repeated() {
        for line in ["a b -o ro,passphrase=geheim", "a b -o pass_phrase=x,password=geheim", "a b -o \"recovery_code=geheim\""] {
            let said = args(line).unwrap_err();
            assert!(said.contains("passphrase-file") && !said.contains("geheim"), "{said}");
        }
        assert!(args("a b -o passphrase-file=/etc/smpfs/pass").is_ok());
    }
}
