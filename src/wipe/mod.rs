//! Overwriting and removing local files: the cache at unmount, and what a killed mount left behind.
//!
//! What makes wiped data unreadable is that it was ciphertext and that its key is gone: the cache key never leaves the memory of
//! its process, and a log's key is overwritten with its header. Overwriting file contents comes on top. On magnetic disks with a
//! filesystem that writes in place it reaches the old bytes; on flash (wear levelling), on copy-on-write filesystems and behind
//! snapshots it may not, and nothing that a program can do there would.
//!
//! A mount works in a directory of its own ([`Run`]), with a lock that ends with the process. A directory whose lock is free is a
//! leftover: [`leftovers`] wipes it.

use crate::disk::{self, Access, Disk, EntryKind, LockGuard, join};
use crate::env::Env;
use crate::error::{Error, Kind, Result, fail};
use std::fmt;
use std::sync::Arc;

/// Names that are tried for a new run before giving up: a second try is needed only when somebody cleans up at the same moment.
const CLAIM_TRIES: usize = 8;
const LOCK_SUFFIX: &str = ".lock";

/// What to overwrite with.
#[derive(Clone)]
pub enum Pattern {
    /// Zeros: fast, and all that is needed over ciphertext.
    Zeros,
    /// Random bytes: for filesystems that store zeros as nothing.
    Random(Env),
}

impl Pattern {
    fn fill(&self, buf: &mut [u8]) {
        match self {
            Pattern::Zeros => buf.fill(0),
            Pattern::Random(env) => env.rng.fill(buf),
        }
    }
}

/// What was wiped, and what could not be.
#[derive(Debug, Default)]
pub struct Report {
    /// Files removed.
    pub files: u64,
    /// Directories removed.
    pub dirs: u64,
    /// Bytes overwritten.
    pub bytes: u64,
    /// Files and directories that could not be overwritten, listed or removed.
    pub failed: u64,
    /// The first of those failures.
    pub first_failure: Option<Error>,
}

impl Report {
    /// Whether everything was overwritten and removed.
    pub fn is_clean(&self) -> bool {
        self.failed == 0
    }

    fn note(&mut self, result: Result<()>) -> bool {
        let Err(e) = result else { return true };
        self.failed += 1;
        self.first_failure.get_or_insert(e);
        false
    }

    fn add(&mut self, other: Report) {
        self.files += other.files;
        self.dirs += other.dirs;
        self.bytes += other.bytes;
        self.failed += other.failed;
        self.first_failure = self.first_failure.take().or(other.first_failure);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wiped {} files ({} bytes) and {} directories", self.files, self.bytes, self.dirs)?;
        match &self.first_failure {
            Some(e) => write!(f, "; {} could not be wiped, the first because of: {e}", self.failed),
            None => Ok(()),
        }
    }
}

/// Overwrites and removes a file. A file that cannot be overwritten (a full copy-on-write disk, lost permissions) is removed all
/// the same, and counted as failed. A missing one is fine.
pub fn wipe_file(disk: &dyn Disk, path: &str, pattern: &Pattern) -> Report {
    let mut report = Report::default();
    let overwritten = disk.open(path, Access::Write).and_then(|f| disk::overwrite(&*f, &mut |buf| pattern.fill(buf)));
    match overwritten {
        Ok(bytes) => report.bytes = bytes,
        Err(e) if e.kind() == Kind::NotFound => return report,
        Err(e) => drop(report.note(Err(e))),
    }
    if report.note(disk.remove(path)) {
        report.files = 1;
    }
    report
}

/// Overwrites and removes everything below `dir`, and `dir` itself. Goes on after failures. Links are removed, never followed; a
/// missing directory is fine.
pub fn wipe_tree(disk: &dyn Disk, dir: &str, pattern: &Pattern) -> Report {
    let mut report = Report::default();
    // Directories to empty, then the same in reverse to remove. Paths are bounded, so the depth is.
    let (mut todo, mut emptied) = (vec![dir.to_owned()], Vec::new());
    while let Some(dir) = todo.pop() {
        let entries = match disk.list(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == Kind::NotFound => continue,
            Err(e) => {
                report.note(Err(e));
                continue;
            }
        };
        for entry in entries {
            let path = join(&dir, &entry.name);
            match entry.kind {
                EntryKind::Dir => todo.push(path),
                EntryKind::File => report.add(wipe_file(disk, &path, pattern)),
                EntryKind::Other => {
                    if report.note(disk.remove(&path)) {
                        report.files += 1;
                    }
                }
            }
        }
        emptied.push(dir);
    }
    for dir in emptied.iter().rev().filter(|d| !d.is_empty()) {
        if report.note(disk.remove_dir(dir)) {
            report.dirs += 1;
        }
    }
    let parent = if dir.is_empty() { "" } else { disk::split(dir).0 };
    report.note(disk.sync_dir(parent));
    report
}

/// A directory of one mount's own, wiped when the mount ends, or by a later one when this process is killed.
pub struct Run {
    disk: Arc<dyn Disk>,
    dir: String,
    lock: Box<dyn LockGuard>,
}

impl Run {
    /// Makes a directory with a random name in `parent`, and locks it for as long as this process lives.
    pub fn claim(disk: Arc<dyn Disk>, parent: &str, env: &Env) -> Result<Run> {
        disk.make_dir(parent)?;
        for _ in 0..CLAIM_TRIES {
            let dir = join(parent, &data_encoding::HEXLOWER.encode(&env.random::<8>()));
            let path = format!("{dir}{LOCK_SUFFIX}");
            let Ok(lock) = disk.lock(&path) else { continue };
            // Somebody who cleans up may have removed the lock file between its making and its locking. Then the name is free to
            // lock once more, and this lock guards nothing.
            match disk.lock(&path) {
                Err(e) if e.kind() == Kind::Busy => {
                    disk.make_dir(&dir)?;
                    return Ok(Run { disk, dir, lock });
                }
                Err(e) => return Err(e),
                Ok(_) => disk.remove(&path)?,
            }
        }
        fail(Kind::Busy, "no directory for local files could be locked")
    }

    /// The directory.
    pub fn dir(&self) -> &str {
        &self.dir
    }

    /// Wipes the directory and gives the lock back.
    pub fn finish(self, pattern: &Pattern) -> Report {
        let mut report = wipe_tree(&*self.disk, &self.dir, pattern);
        // The lock file goes while the lock is held, so that nobody can take it for a live one.
        report.note(self.disk.remove(&format!("{}{LOCK_SUFFIX}", self.dir)));
        drop(self.lock);
        report
    }
}

/// Wipes what mounts that were killed left in `parent`, and returns how many there were. Directories of live mounts stay.
pub fn leftovers(disk: &dyn Disk, parent: &str, pattern: &Pattern) -> (u64, Report) {
    let (mut found, mut report) = (0, Report::default());
    let entries = match disk.list(parent) {
        Ok(entries) => entries,
        Err(e) if e.kind() == Kind::NotFound => return (0, report),
        Err(e) => {
            report.note(Err(e));
            return (0, report);
        }
    };
    let name = |e: &disk::Entry| match e.kind {
        EntryKind::Dir => Some(e.name.clone()),
        EntryKind::File => e.name.strip_suffix(LOCK_SUFFIX).map(str::to_owned),
        EntryKind::Other => None,
    };
    let mut runs: Vec<String> = entries.iter().filter_map(name).filter(|n| is_run(n)).collect();
    runs.sort();
    runs.dedup();
    for run in runs {
        let dir = join(parent, &run);
        let path = format!("{dir}{LOCK_SUFFIX}");
        let lock = match disk.lock(&path) {
            Ok(lock) => lock,
            Err(e) if e.kind() == Kind::Busy => continue,
            Err(e) => {
                report.note(Err(e));
                continue;
            }
        };
        found += u64::from(disk.list(&dir).is_ok());
        let wiped = wipe_tree(disk, &dir, pattern);
        let clean = wiped.is_clean();
        report.add(wiped);
        // With something left, the lock file stays as well, so that the next start tries again.
        if clean {
            report.note(disk.remove(&path));
        }
        drop(lock);
    }
    (found, report)
}

/// Whether a name is one that [`Run::claim`] gives: nothing else in the directory is ours to wipe.
fn is_run(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::{Crash, Faults};
    use crate::disk::{RealDisk, SimDisk, read_all};

    const CANARY: &[u8] = b"CANARY-SEALED-BYTES";

    fn fill(disk: &dyn Disk, dir: &str) {
        disk.make_dir(&join(dir, "a/b/c")).unwrap();
        for (i, path) in ["one", "a/two", "a/b/three", "a/b/c/four"].into_iter().enumerate() {
            let file = disk.open(&join(dir, path), Access::Create).unwrap();
            file.pwrite(0, &CANARY.repeat(1 + i * 40_000)).unwrap();
            file.sync_data().unwrap();
        }
        disk.open(&join(dir, "empty"), Access::Create).unwrap();
    }

    #[test]
    fn a_tree_is_overwritten_before_it_is_gone() {
        for pattern in [Pattern::Zeros, Pattern::Random(Env::real())] {
            let disk = SimDisk::new(1);
            fill(&disk, "run");
            disk.open("other", Access::Create).unwrap();
            let handle = disk.open("run/a/b/three", Access::Read).unwrap();
            let report = wipe_tree(&disk, "run", &pattern);
            assert!(report.is_clean(), "{report}");
            let bytes = (CANARY.len() * (4 + 6 * 40_000)) as u64;
            assert_eq!((report.files, report.dirs, report.bytes), (5, 4, bytes));
            assert!(!disk.holds(CANARY), "neither in files that an open handle still reads, nor on the drive");
            assert_eq!(handle.len().unwrap(), CANARY.len() as u64 * 80_001);
            assert_eq!(disk.files().into_keys().collect::<Vec<_>>(), ["other"]);
            assert_eq!(report.to_string(), format!("wiped 5 files ({bytes} bytes) and 4 directories"));
        }
        let nothing = wipe_tree(&SimDisk::new(2), "nothing", &Pattern::Zeros);
        assert!(nothing.is_clean() && nothing.files == 0);
    }

    #[test]
    fn failures_are_counted_and_do_not_stop_it() {
        for faults in [
            Faults { fail_write: Some(1), ..Faults::default() },
            Faults { fail_sync: Some(2), ..Faults::default() },
            Faults { fail_write: Some(0), fail_sync: Some(0), ..Faults::default() },
        ] {
            let disk = SimDisk::new(3);
            fill(&disk, "run");
            disk.set_faults(faults);
            let report = wipe_tree(&disk, "run", &Pattern::Zeros);
            assert!(!report.is_clean() && report.files == 5 && disk.files().is_empty());
            assert!(report.first_failure.is_some() && report.to_string().contains("could not be wiped"));
        }
    }

    #[test]
    fn leftovers_of_the_dead_are_wiped_and_the_living_left_alone() {
        let disk = SimDisk::new(4);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        shared.make_dir("cache/not-ours").unwrap();
        let dead = Run::claim(shared.clone(), "cache", &Env::real()).unwrap();
        fill(&disk, dead.dir());
        disk.crash(Crash::Kill);
        let living = Run::claim(shared.clone(), "cache", &Env::real()).unwrap();
        fill(&disk, living.dir());
        let (found, report) = leftovers(&disk, "cache", &Pattern::Zeros);
        assert_eq!((found, report.files, report.is_clean()), (1, 5, true));
        assert!(disk.list(dead.dir()).is_err() && read_all(&disk, &join(living.dir(), "one"), 99).unwrap() == CANARY);
        assert_eq!(leftovers(&disk, "cache", &Pattern::Zeros).0, 0);
        let report = living.finish(&Pattern::Zeros);
        assert!(report.is_clean() && report.files == 5);
        assert_eq!(disk.list("cache").unwrap().len(), 1, "only what was not ours");
        assert!(!disk.holds(CANARY));
        assert_eq!(leftovers(&disk, "nowhere", &Pattern::Zeros).0, 0);
    }

    #[test]
    fn an_interrupted_wipe_is_taken_up_again() {
        let disk = SimDisk::new(5);
        let run = Run::claim(Arc::new(disk.clone()), "cache", &Env::real()).unwrap();
        fill(&disk, run.dir());
        disk.crash(Crash::Kill);
        wipe_file(&disk, &join(run.dir(), "one"), &Pattern::Zeros);
        disk.remove(&format!("{}.lock", run.dir())).unwrap();
        let (found, report) = leftovers(&disk, "cache", &Pattern::Zeros);
        assert_eq!((found, report.files), (1, 4));
        assert!(disk.list("cache").unwrap().is_empty() && !disk.holds(CANARY));
    }

    #[test]
    fn on_a_real_directory_links_are_not_followed() {
        let tmp = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&tmp.path().join("cache")).unwrap());
        std::fs::write(tmp.path().join("precious"), b"precious").unwrap();
        let run = Run::claim(disk.clone(), "", &Env::real()).unwrap();
        fill(&*disk, run.dir());
        let inside = tmp.path().join("cache").join(run.dir());
        std::os::unix::fs::symlink(tmp.path(), inside.join("up")).unwrap();
        std::os::unix::fs::symlink("../../precious", inside.join("a/link")).unwrap();
        assert_eq!(leftovers(&*disk, "", &Pattern::Zeros).0, 0, "this process lives");
        let report = run.finish(&Pattern::Zeros);
        assert_eq!((report.files, report.dirs, report.is_clean()), (7, 4, true), "{report}");
        assert_eq!(std::fs::read(tmp.path().join("precious")).unwrap(), b"precious");
        assert!(disk.list("").unwrap().is_empty());
    }

    #[test]
    fn many_claims_and_cleaners_at_once() {
        let tmp = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&tmp.path().join("cache")).unwrap());
        std::thread::scope(|s| {
            for t in 0..4 {
                let disk = disk.clone();
                s.spawn(move || {
                    for _ in 0..50 {
                        if t < 2 {
                            let run = Run::claim(disk.clone(), "runs", &Env::real()).unwrap();
                            let path = join(run.dir(), "mine");
                            disk.open(&path, Access::CreateNew).unwrap().pwrite(0, CANARY).unwrap();
                            assert_eq!(read_all(&*disk, &path, 99).unwrap(), CANARY, "nobody wipes a live run");
                            let report = run.finish(&Pattern::Zeros);
                            assert!(report.is_clean() && report.files == 1, "{report}");
                        } else {
                            leftovers(&*disk, "runs", &Pattern::Zeros);
                        }
                    }
                });
            }
        });
        leftovers(&*disk, "runs", &Pattern::Zeros);
        assert!(disk.list("runs").unwrap().is_empty());
    }
}
