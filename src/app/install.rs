//! `smpfs install-helpers`: links where mount(8) looks for the helpers of a file system type.

use super::failure::{Failure, Outcome};
use crate::cli::{Exit, InstallArgs};
use crate::error::Error;
use std::path::{Path, PathBuf};

/// Names that mount(8) and umount(8) look for (the type in /proc/mounts is fuse.smpfs), and the programs behind them.
const HELPERS: [(&str, &str); 4] = [
    ("mount.smpfs", "mount-smpfs"),
    ("umount.smpfs", "umount-smpfs"),
    ("mount.fuse.smpfs", "mount-smpfs"),
    ("umount.fuse.smpfs", "umount-smpfs"),
];

/// Runs it.
pub fn run(args: &InstallArgs) -> Outcome<()> {
    if args.remove {
        return remove(&args.dir);
    }
    let exe = std::env::current_exe()?.canonicalize()?;
    let here = exe.parent().unwrap_or(Path::new("/"));
    for (name, program) in HELPERS {
        let helper = here.join(program);
        if !helper.is_file() {
            return Err(Failure::new(
                Exit::NotFound,
                format!(
                    "{} is not there: build it with `cargo build --release --workspace`, or install the package that has it",
                    helper.display()
                ),
            ));
        }
        link(&helper, &args.dir.join(name))?;
    }
    Ok(())
}

fn link(helper: &Path, at: &Path) -> Outcome<()> {
    let failed = |e: std::io::Error| Failure::from(Error::from(e).context(format!("linking {}", at.display())));
    match std::fs::symlink_metadata(at) {
        Ok(meta) if !meta.is_symlink() => {
            return Err(Failure::new(Exit::Other, format!("{} is there already and is no link: left as it is", at.display())));
        }
        Ok(_) if std::fs::read_link(at).ok().as_deref() == Some(helper) => {
            super::print(&format!("{} is in place\n", at.display()));
            return Ok(());
        }
        Ok(_) => std::fs::remove_file(at).map_err(failed)?,
        Err(_) => {}
    }
    std::os::unix::fs::symlink(helper, at).map_err(failed)?;
    super::print(&format!("{} -> {}\n", at.display(), helper.display()));
    Ok(())
}

fn remove(dir: &Path) -> Outcome<()> {
    for (name, program) in HELPERS {
        let at: PathBuf = dir.join(name);
        let ours = std::fs::read_link(&at).is_ok_and(|target| target.file_name().is_some_and(|n| n == program));
        if ours {
            std::fs::remove_file(&at).map_err(|e| Error::from(e).context(format!("removing {}", at.display())))?;
            super::print(&format!("removed {}\n", at.display()));
        }
    }
    Ok(())
}
