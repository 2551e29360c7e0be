//! What a scrub has of this machine: the volume's local state, unless a mount holds it; and who hears of finds.

use super::join::{Unlocked, volume_dir};
use super::live::Reporter;
use crate::audit::{self, Audit, Event, Finding, Quarantine};
use crate::config::Config;
use crate::disk::{Disk, LockGuard, RealDisk};
use crate::env::Env;
use crate::error::{Error, Kind, Result, fail};
use crate::format::Failure as Class;
use crate::fs::{KnownMemory, Sink};
use crate::keyring::Known;
use crate::ops::{Invalidate, Invalidations};
use crate::read::{CorruptReport, Witness};
use crate::scrub::Listener;
use crate::types::{DirId, FileId};
use bytes::Bytes;
use std::sync::Arc;

/// Local state of the volume for the time of a scrub.
pub struct State {
    /// What this machine has seen.
    pub memory: Arc<KnownMemory>,
    /// Who hears of finds.
    pub told: Arc<Told>,
    /// The local state is ours: no mount of this volume runs for this user on this machine.
    pub ours: bool,
    known: Arc<Known>,
    disk: Arc<dyn Disk>,
    _lock: Option<Box<dyn LockGuard>>,
}

/// Passes finds on to audit log and quarantine, when they are ours to write.
pub struct Told {
    reporter: Option<Reporter>,
    env: Env,
}

impl State {
    /// Takes the volume's local state, or goes without when a mount has it.
    pub fn open(config: &Config, unlocked: &Unlocked, env: &Env) -> Result<State> {
        let id = unlocked.volume.info.params.volume_id;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&volume_dir(config, id))?);
        let lock = match disk.lock("lock") {
            Ok(lock) => lock,
            Err(e) if e.kind() == Kind::Busy => {
                let known = Arc::new(Known::in_memory());
                let (memory, told) = (Arc::new(KnownMemory(known.clone())), Told { reporter: None, env: env.clone() });
                return Ok(State { memory, told: Arc::new(told), ours: false, known, disk, _lock: None });
            }
            Err(e) => return Err(e),
        };
        let wrap = unlocked.volume.keys.local_log().clone();
        let audit = Audit::open(disk.clone(), "audit", id, &wrap, env, audit::Limits::default())?;
        let quarantine = Quarantine::open(disk.clone(), "quarantine", id, &wrap, env, audit::QuarantineLimits::default())?;
        let known = Arc::new(unlocked.volume.known(disk.clone(), "known", env)?);
        let told = Told { reporter: Some(Reporter::new(audit, quarantine, env.clone()).without_lines()), env: env.clone() };
        let memory = Arc::new(KnownMemory(known.clone()));
        Ok(State { memory, told: Arc::new(told), ours: true, known, disk, _lock: Some(lock) })
    }

    /// Whether an earlier mount left changes that are not in the bucket: only the next mount can send them.
    pub fn has_unsent(&self) -> Result<bool> {
        match self.disk.list("spool") {
            Ok(files) => Ok(self.ours && !files.is_empty()),
            Err(e) if e.kind() == Kind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The local state's place on the disk.
    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Writes what was done into the audit log: counts, never names.
    pub fn note(&self, action: String) {
        if let Some(r) = &self.told.reporter {
            r.event(Event::Control { action, uid: nix::unistd::getuid().as_raw(), ok: true });
        }
    }

    /// Makes everything durable. Blocks.
    pub fn close(&self) -> Result<()> {
        let Some(r) = &self.told.reporter else { return Ok(()) };
        self.known.flush()?;
        r.quarantine.flush()?;
        r.audit.close()
    }
}

impl Sink for Told {
    fn index_corrupt(&self, dir: DirId, error: &Error) {
        if let Some(r) = &self.reporter {
            r.index_corrupt(dir, error);
        }
    }

    fn object_missing(&self, key: &str, file: FileId, generation: u64) {
        if let Some(r) = &self.reporter {
            r.object_missing(key, file, generation);
        }
    }

    fn trouble(&self, error: &Error) {
        tracing::warn!("{error}");
    }

    fn saved(&self, _: FileId, _: u64) {}

    fn invalidate(&self, _: Invalidate) {}

    fn invalidations(&self) -> Option<Arc<Invalidations>> {
        None
    }
}

impl Witness for Told {
    fn corrupt(&self, report: CorruptReport) {
        if let Some(r) = &self.reporter {
            Witness::corrupt(r, report);
        }
    }
}

impl Listener for Told {
    fn foreign(&self, key: &str) {
        if let Some(r) = &self.reporter {
            r.event(Event::Foreign { object: key.to_owned() });
        }
    }

    fn keep(&self, dir: DirId, key: &str, bytes: &Bytes) -> Result<()> {
        let Some(r) = &self.reporter else {
            return fail(Kind::Busy, "the quarantine belongs to the mount of this volume on this machine: unmount it first");
        };
        let version = data_encoding::HEXLOWER.encode(&crate::crypto::hash::sha256(&[bytes])[..16]);
        let finding = Finding {
            object: key.to_owned(),
            version: version.clone(),
            file: String::new(),
            generation: 0,
            chunk: None,
            stage: Class::Index.name().to_owned(),
            expected: format!("an index object of directory {}", dir.hex()),
            got: format!("{} bytes, kept before they were replaced", bytes.len()),
        };
        r.quarantine.report(self.env.clock.now(), finding, bytes.clone());
        r.quarantine.flush()?;
        let kept = |h: &audit::Held| h.finding.object == key && h.finding.version == version && h.evidence.is_some();
        match r.quarantine.list().iter().any(kept) {
            true => Ok(()),
            false => fail(Kind::NoSpace, "the quarantine has no room for the damaged index, which is therefore left as it is"),
        }
    }
}
