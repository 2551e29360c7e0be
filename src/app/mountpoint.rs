//! Mount points as users name them: one spelling for each, without ever asking the mount itself (it may hang or be dead).

use crate::config::Config;
use crate::error::{Error, Kind, Result, fail};
use std::path::{Component, Path, PathBuf};

/// The one absolute spelling of a mount point. Only its parents are resolved; the directory itself, which may be a dead or hanging
/// mount, is at most asked whether it is a symbolic link.
pub fn canonical(dir: &Path) -> Result<PathBuf> {
    let named = |e: std::io::Error| {
        let kind = Error::from(std::io::Error::from(e.kind())).kind();
        Error::with_source(kind, format!("the mount point {}", dir.display()), e)
    };
    let mut path = std::path::absolute(dir).map_err(named)?;
    // As many links as the kernel follows.
    for _ in 0..40 {
        let (Some(parent), Some(Component::Normal(name))) = (path.parent(), path.components().next_back()) else {
            return path.canonicalize().map_err(named);
        };
        let here = parent.canonicalize().map_err(named)?.join(name);
        match std::fs::read_link(&here) {
            Ok(target) => path = here.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => return Ok(here),
        }
    }
    fail(Kind::Invalid, format!("the mount point {}: too many symbolic links", dir.display()))
}

/// Refuses what must not be: files of the daemon inside its own mount, and mounting over a directory with something in it.
/// Existence and the type of the mount point are checked where it is mounted.
pub fn check(dir: &Path, config: &Config) -> Result<()> {
    let ours = [Some(&config.cache_dir), Some(&config.state_dir), Some(&config.runtime_dir), config.log_file.as_ref()];
    if let Some(inside) = ours.into_iter().flatten().find(|p| p.starts_with(dir)) {
        return fail(
            Kind::Invalid,
            format!("{} lies inside the mount point {}: smpfs would wait for itself", inside.display(), dir.display()),
        );
    }
    let occupied = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if occupied && !config.nonempty {
        return fail(
            Kind::Invalid,
            format!(
                "the mount point {} is not empty: what is in it would be hidden; use another directory or -o nonempty",
                dir.display()
            ),
        );
    }
    Ok(())
}

/// Makes a directory that only this user may enter, or checks that an existing one cannot be changed by others.
pub fn private_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let shown = path.display();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Error::from(e).context(format!("the directory {shown} cannot be made")))?;
    let meta = std::fs::metadata(path).map_err(|e| Error::from(e).context(format!("the directory {shown}")))?;
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return fail(Kind::Denied, format!("the directory {shown} belongs to user {}: choose another one", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return fail(Kind::Denied, format!("others may write into {shown}: run `chmod go-w {shown}`, or choose another one"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn one_spelling_for_each_mount_point() {
        let tmp = tempfile::tempdir().unwrap();
        let base = tmp.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("m")).unwrap();
        std::os::unix::fs::symlink("m", base.join("link")).unwrap();
        std::os::unix::fs::symlink(base.join("link"), base.join("link2")).unwrap();
        for spelling in ["m", "m/", "./m/../m", "link", "link2/", "m/."] {
            assert_eq!(canonical(&base.join(spelling)).unwrap(), base.join("m"), "{spelling}");
        }
        assert_eq!(canonical(Path::new("/")).unwrap(), Path::new("/"));
        std::os::unix::fs::symlink("loop", base.join("loop")).unwrap();
        assert!(canonical(&base.join("loop")).is_err());
        assert_eq!(canonical(&base.join("no/such")).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn private_means_private() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("a/b");
        private_dir(&dir).unwrap();
        assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(private_dir(&dir).unwrap_err().kind(), Kind::Denied);
    }
}
