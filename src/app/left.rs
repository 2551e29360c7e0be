//! What a mount leaves when its process is killed or the machine loses its power: a dead mount point, and changes in the state
//! directory that only the next mount can send. Seen without any key, by names and lengths of files.

use super::join::volumes_dir;
use super::status::{count, size};
use crate::disk::RealDisk;
use crate::format::log::HEADER_LEN;
use crate::fs::status::{Fill, Health, Status};
use crate::fuse::{self, DeadMount};
use crate::keyring::ConfigPins;
use crate::types::VolumeId;
use std::path::Path;
use std::sync::Arc;

/// Volumes that are looked at; nobody has so many.
const MAX_VOLUMES: usize = 4096;

/// What of a volume is not in the bucket, as far as lengths of files tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Bytes of sealed contents.
    pub bytes: u64,
    /// Files that hold them.
    pub logs: u64,
    /// Changes of names may wait as well.
    pub names: bool,
}

impl Left {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.logs == 0 && !self.names
    }

    /// What waits, in words.
    pub fn words(&self) -> String {
        match (self.logs, self.names) {
            (0, _) => "changes of names that may not be in the bucket yet".to_owned(),
            (_, false) => format!("{} not in the bucket yet", size(self.bytes)),
            (_, true) => format!("{} and perhaps changes of names not in the bucket yet", size(self.bytes)),
        }
    }
}

/// Lengths of the files in a folder.
fn lengths(dir: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).collect()
}

/// What lies in the local state of a volume.
fn of_dir(dir: &Path) -> Left {
    let spool = lengths(&dir.join(crate::write::spool::FOLDER));
    // A log that is only a header holds nothing.
    let names = lengths(&dir.join("journal")).into_iter().any(|len| len > HEADER_LEN as u64);
    Left { bytes: spool.iter().sum(), logs: spool.len() as u64, names }
}

/// Whether a process works with this local state.
fn in_use(dir: &Path) -> bool {
    use std::fs::TryLockError;
    let lock = std::fs::File::open(dir.join("lock"));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn pins(state: &Path) -> Option<ConfigPins> {
    let there = state.is_dir();
    there.then(|| RealDisk::open(state).ok()).flatten().map(|disk| ConfigPins::new(Arc::new(disk)))
}

/// The volume that a store held when it was last mounted from here, and what of it is not in the bucket. `None` when that is not known.
pub fn of_store(state: &Path, store: &str) -> Option<(VolumeId, Left)> {
    let pin = pins(state)?.at(store).ok()??;
    Some((pin.volume, of_dir(&volumes_dir(state).join(pin.volume.hex()))))
}

/// A dead mount as `smpfs status` shows it.
pub fn dead(state: &Path, mount: &DeadMount) -> Status {
    let known = of_store(state, &mount.source);
    let (id, left) = known.map_or((String::new(), Left::default()), |(id, left)| (id.hex(), left));
    Status {
        volume_id: id,
        store: mount.source.clone(),
        mount_point: mount.dir.display().to_string(),
        health: Health::Dead,
        spool: Fill { used: left.bytes, limit: 0 },
        unsent: (!left.is_empty()).then(|| left.words()),
        ..Status::default()
    }
}

/// Mounts of this runtime directory whose process is gone, and volumes that nobody has mounted and that are not wholly in the bucket;
/// `alive` are left out.
pub fn all(state: &Path, runtime: &Path, alive: &[Status]) -> Vec<Status> {
    // A killed process leaves its socket.
    let ours = |m: &DeadMount| super::socket::path_of(runtime, &m.dir).exists();
    let mut found: Vec<Status> = fuse::dead_mounts().iter().filter(|m| ours(m)).map(|m| dead(state, m)).collect();
    let known = |found: &[Status], id: &str| alive.iter().chain(found).any(|s| s.volume_id == id);
    let volumes = std::fs::read_dir(volumes_dir(state)).into_iter().flatten().flatten();
    let mut names: Vec<String> = volumes.take(MAX_VOLUMES).filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    for name in names.into_iter().filter(|n| n.len() == 32) {
        let dir = volumes_dir(state).join(&name);
        let left = of_dir(&dir);
        if left.is_empty() || known(&found, &name) || in_use(&dir) {
            continue;
        }
        let id = data_encoding::HEXLOWER.decode(name.as_bytes()).ok().and_then(|id| id.try_into().ok()).map(VolumeId);
        let store = id.and_then(|id| pins(state)?.of(id).ok()?).map(|pin| pin.store);
        found.push(Status {
            volume_id: name,
            store: store.unwrap_or_default(),
            health: Health::Dead,
            spool: Fill { used: left.bytes, limit: 0 },
            unsent: Some(left.words()),
            ..Status::default()
        });
    }
    found
}

/// What is dead, for people.
pub fn render(s: &Status) -> String {
    let store = if s.store.is_empty() { "STORE" } else { &s.store };
    let name = if s.store.is_empty() { format!("volume {}", s.volume_id) } else { s.store.clone() };
    let (place, health) = match s.mount_point.as_str() {
        "" => {
            ("(not mounted)", format!("dead: an earlier mount ended before everything was sent; run `smpfs mount {store} DIR`"))
        }
        dir => {
            (dir, format!("dead: the mount process ended; run `smpfs mount {store} {dir}` to go on, or `smpfs unmount {dir}`"))
        }
    };
    let uploads = match &s.unsent {
        Some(what) => format!("{what}; mount the volume to send it"),
        None => "nothing is known to wait".to_owned(),
    };
    format!("{place}\n  {:<12}{name}\n  {:<12}{health}\n  {:<12}{uploads}\n", "volume", "health", "uploads")
}

/// What a mount takes over from an earlier one, in a line; empty for nothing.
pub fn taken_over(files: usize, names: usize) -> String {
    let files = (files > 0).then(|| count(files as u64, "file"));
    let names = (names > 0).then(|| format!("{} to names", count(names as u64, "change")));
    let all: Vec<String> = files.into_iter().chain(names).collect();
    if all.is_empty() { String::new() } else { format!("taking over {} from an earlier mount", all.join(" and ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_seen_by_lengths_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        assert!(of_dir(dir).is_empty(), "no local state at all");
        for folder in ["spool", "journal"] {
            std::fs::create_dir(dir.join(folder)).unwrap();
        }
        std::fs::write(dir.join("journal/a"), [0; HEADER_LEN]).unwrap();
        assert!(of_dir(dir).is_empty(), "an empty log");
        std::fs::write(dir.join("journal/a"), [0; HEADER_LEN + 1]).unwrap();
        assert!(of_dir(dir).words().starts_with("changes of names"));
        std::fs::write(dir.join("spool/b"), [0; 2048]).unwrap();
        assert_eq!(of_dir(dir), Left { bytes: 2048, logs: 1, names: true });
        assert_eq!(of_dir(dir).words(), "2 KiB and perhaps changes of names not in the bucket yet");
    }

    #[test]
    fn what_is_taken_over_is_one_line() {
        assert_eq!(taken_over(0, 0), "");
        assert_eq!(taken_over(1, 2), "taking over 1 file and 2 changes to names from an earlier mount");
    }
}
