//! Where files of smpfs live for a given user.

use std::path::PathBuf;

/// Who runs smpfs, and what the environment says of their directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Effective user id.
    pub uid: u32,
    /// Home directory: `$HOME`, else the one in the user database.
    pub home: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`, `$XDG_STATE_HOME`, `$XDG_CACHE_HOME`, `$XDG_RUNTIME_DIR`, when absolute.
    pub xdg: [Option<PathBuf>; 4],
}

/// Default places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// The configuration file.
    pub config_file: PathBuf,
    /// State.
    pub state: PathBuf,
    /// Cache.
    pub cache: PathBuf,
    /// Control sockets.
    pub runtime: PathBuf,
}

impl Identity {
    /// The one of this process. `variable` looks up the environment (systemd may give none of it).
    pub fn of_process(variable: impl Fn(&str) -> Option<String>) -> Identity {
        let uid = nix::unistd::geteuid();
        let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let home = absolute("HOME").or_else(|| nix::unistd::User::from_uid(uid).ok().flatten().map(|u| u.dir));
        let xdg = ["XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"].map(absolute);
        Identity { uid: uid.as_raw(), home, xdg }
    }

    /// Default places: the system's for root, the XDG base directories for everybody else.
    pub fn dirs(&self) -> Dirs {
        if self.uid == 0 {
            return Dirs {
                config_file: "/etc/smpfs/config.toml".into(),
                state: "/var/lib/smpfs".into(),
                cache: "/var/cache/smpfs".into(),
                runtime: "/run/smpfs".into(),
            };
        }
        // Without a home there is nothing better than a private directory that others cannot enter (it is made 0700, and its
        // owner is checked).
        let fallback = PathBuf::from(format!("/var/tmp/smpfs-{}", self.uid));
        let below = |xdg: &Option<PathBuf>, home: &str, last: &str| match (xdg, &self.home) {
            (Some(x), _) => x.join("smpfs"),
            (None, Some(h)) => h.join(home).join("smpfs"),
            (None, None) => fallback.join(last),
        };
        Dirs {
            config_file: below(&self.xdg[0], ".config", "config").join("config.toml"),
            state: below(&self.xdg[1], ".local/state", "state"),
            cache: below(&self.xdg[2], ".cache", "cache"),
            runtime: match &self.xdg[3] {
                Some(x) => x.join("smpfs"),
                None => PathBuf::from(format!("/tmp/smpfs-{}", self.uid)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_the_system_places_whatever_the_environment() {
        let root = Identity { uid: 0, home: Some("/root".into()), xdg: [const { None }; 4] };
        assert_eq!(root.dirs().state, PathBuf::from("/var/lib/smpfs"));
        assert_eq!(Identity { home: None, ..root.clone() }.dirs(), root.dirs());
    }

    #[test]
    fn users_have_the_xdg_places_and_something_without_a_home() {
        let user = Identity { uid: 7, home: Some("/home/u".into()), xdg: [const { None }; 4] };
        assert_eq!(user.dirs().config_file, PathBuf::from("/home/u/.config/smpfs/config.toml"));
        assert_eq!(user.dirs().state, PathBuf::from("/home/u/.local/state/smpfs"));
        let mut moved = user.clone();
        moved.xdg[2] = Some("/scratch".into());
        assert_eq!(moved.dirs().cache, PathBuf::from("/scratch/smpfs"));
        let homeless = Identity { home: None, ..user };
        assert_eq!(homeless.dirs().cache, PathBuf::from("/var/tmp/smpfs-7/cache"));
    }

    #[test]
    fn relative_xdg_variables_are_ignored() {
        let id = Identity::of_process(|name| (name == "XDG_CACHE_HOME").then(|| "here".to_owned()));
        assert_eq!(id.xdg[2], None);
    }
}
