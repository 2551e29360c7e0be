//! A live mount: the filesystem, its kernel session, and everybody who is told what happens in it.

use super::mounted::Mounted;
use super::status;
use crate::audit::{Audit, Event, Finding, Quarantine};
use crate::config::Config;
use crate::control::{ControlSource, Node};
use crate::disk::LockGuard;
use crate::env::Env;
use crate::env::failpoint::reach;
use crate::error::{Error, Kind, Result};
use crate::format::Failure;
use crate::fs::conflict::Conflict;
use crate::fs::status::{Fill, Health as HealthWord, Status};
use crate::fs::{Fs, Sink};
use crate::fuse::Session;
use crate::keyring::{Known, VolumeInfo};
use crate::lease::Keeper;
use crate::ops::{Invalidate, Invalidations};
use crate::read::diskcache::DiskCache;
use crate::read::{CorruptReport, Reader, Witness};
use crate::store::Stack;
use crate::types::{DirId, FileId};
use crate::wipe::{self, Pattern, Run};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lines of the audit log that `.smpfs/audit` shows.
const AUDIT_LINES: usize = 10_000;
/// One round of a drain: after it the caller hears how far it is.
const DRAIN_ROUND: Duration = Duration::from_secs(30);
/// How long operations that were answered early may take to end.
const LAST_OPERATIONS: Duration = Duration::from_secs(10);

/// Audit log, quarantine and counters: what happened, for everybody who asks.
pub struct Reporter {
    /// The audit log.
    pub audit: Audit,
    /// The quarantine.
    pub quarantine: Quarantine,
    /// What the kernel shall forget.
    pub invalidations: Arc<Invalidations>,
    env: Env,
    logs: bool,
    corrupt: AtomicU64,
    last: Mutex<Option<(i64, String)>>,
}

impl Reporter {
    /// A reporter with nothing to report yet.
    pub fn new(audit: Audit, quarantine: Quarantine, env: Env) -> Reporter {
        let invalidations = Arc::default();
        Reporter { audit, quarantine, invalidations, env, logs: true, corrupt: AtomicU64::new(0), last: Mutex::default() }
    }

    /// The same without a log line for each find: for who tells them to people.
    pub fn without_lines(self) -> Reporter {
        Reporter { logs: false, ..self }
    }

    /// Writes an event of now.
    pub fn event(&self, event: Event) {
        self.audit.event(self.env.clock.now(), event);
    }

    fn note(&self, what: String) {
        *self.last.lock() = Some((self.env.clock.now().sec, what));
    }

    fn corrupt(&self, finding: Finding, evidence: bytes::Bytes) {
        self.corrupt.fetch_add(1, Ordering::Relaxed);
        if self.logs {
            tracing::error!(stage = finding.stage, chunk = finding.chunk, "stored bytes failed verification");
        }
        self.note(format!("stored bytes failed verification ({})", finding.stage));
        let f = finding.clone();
        self.event(Event::Corrupt {
            object: f.object,
            version: f.version,
            file: f.file,
            generation: f.generation,
            chunk: f.chunk,
            stage: f.stage,
            expected: f.expected,
            got: f.got,
        });
        self.quarantine.report(self.env.clock.now(), finding, evidence);
    }
}

impl Witness for Reporter {
    fn corrupt(&self, r: CorruptReport) {
        let finding = Finding {
            object: r.key,
            version: r.etag.unwrap_or_default(),
            file: r.file_id.hex(),
            generation: r.generation,
            chunk: r.chunk,
            stage: r.stage.name().to_owned(),
            expected: format!("generation {}, trailer {}", r.generation, r.trailer_hash.hex()),
            got: r.what,
        };
        Reporter::corrupt(self, finding, r.evidence);
    }
}

impl Sink for Reporter {
    fn index_corrupt(&self, dir: DirId, error: &Error) {
        let stage = Failure::of(error).map_or("index", |f| f.name()).to_owned();
        let finding = Finding {
            object: format!(".smpfs/d (directory {})", dir.hex()),
            version: String::new(),
            file: String::new(),
            generation: 0,
            chunk: None,
            stage,
            expected: "the directory index this machine knows, or a later one".to_owned(),
            got: error.message().to_owned(),
        };
        Reporter::corrupt(self, finding, bytes::Bytes::new());
    }

    fn object_missing(&self, key: &str, file: FileId, generation: u64) {
        let finding = Finding {
            object: key.to_owned(),
            version: String::new(),
            file: file.hex(),
            generation,
            chunk: None,
            stage: Failure::Omission.name().to_owned(),
            expected: "the object that the index names".to_owned(),
            got: "nothing".to_owned(),
        };
        Reporter::corrupt(self, finding, bytes::Bytes::new());
    }

    fn trouble(&self, error: &Error) {
        self.note(error.to_string());
    }

    fn conflict(&self, what: Conflict) {
        let hex = |id: Option<FileId>| id.map(|f| f.hex()).unwrap_or_default();
        self.event(Event::Conflict { kind: what.kind.word().to_owned(), file: hex(what.file), copy: hex(what.copy) });
    }

    fn saved(&self, file: FileId, generation: u64) {
        self.event(Event::Committed { file: file.hex(), generation });
    }

    fn invalidate(&self, what: Invalidate) {
        self.invalidations.send(what);
    }

    fn invalidations(&self) -> Option<Arc<Invalidations>> {
        Some(self.invalidations.clone())
    }
}

/// What must be put away when the mount ends.
pub struct Local {
    /// Keeps other mounts of this volume on this machine away from it.
    pub lock: Box<dyn LockGuard>,
    /// Generations of index objects.
    pub known: Arc<Known>,
    /// The sealed cache and the directory it lies in.
    pub cache: Option<(Arc<DiskCache>, Run)>,
}

/// Facts for status that do not change.
pub struct Facts {
    /// The volume.
    pub info: VolumeInfo,
    /// The store's URL.
    pub store: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// Settings.
    pub config: Config,
}

/// What answers status, for the daemon and for `.smpfs/status`.
pub struct Teller {
    /// The filesystem.
    pub fs: Arc<Fs>,
    /// Reads.
    pub reader: Reader,
    /// The store and its counters.
    pub stack: Stack,
    /// What happened.
    pub reporter: Arc<Reporter>,
    /// Facts.
    pub facts: Facts,
    /// What the store does not do.
    pub notes: Vec<String>,
    /// The sealed cache.
    pub cache: Option<Arc<DiskCache>>,
    /// When it began to serve.
    pub since: Instant,
}

impl Teller {
    /// How the mount is doing.
    pub fn status(&self) -> Status {
        let f = &self.facts;
        let mut s = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            volume_id: f.info.params.volume_id.hex(),
            volume_name: f.info.name.clone(),
            mode: match f.info.mode {
                crate::types::Mode::Standard => "standard",
                crate::types::Mode::ZeroKnowledge => "zero-knowledge",
            }
            .to_owned(),
            store: f.store.clone(),
            mount_point: f.mount_point.clone(),
            uptime_s: self.since.elapsed().as_secs(),
            ..Status::default()
        };
        let net = self.stack.meter.snapshot();
        let cache = self.reader.stats();
        (s.traffic.requests, s.traffic.retries) = (net.requests, net.retries);
        (s.traffic.bytes_down, s.traffic.bytes_up) = (net.bytes_down, net.bytes_up);
        (s.traffic.cache_hits, s.traffic.cache_misses) = (cache.hits, cache.misses);
        s.memory = Fill { used: cache.used, limit: f.config.memory_budget.0 };
        if let Some(c) = &self.cache {
            let c = c.stats();
            s.disk_cache = Fill { used: c.bytes, limit: if c.off { 0 } else { c.capacity } };
        }
        s.trouble.store_errors = net.errors;
        s.trouble.corrupt = self.reporter.corrupt.load(Ordering::Relaxed);
        s.trouble.quarantined = self.reporter.quarantine.counts().records;
        let ours = self.reporter.last.lock().clone();
        let theirs = net.last_error_at.zip(net.last_error);
        if let Some((at, what)) = ours.into_iter().chain(theirs).max_by_key(|(at, _)| *at) {
            (s.trouble.last_error_time, s.trouble.last_error) = (Some(at), Some(what));
        }
        s.store_away = self.stack.health.is_down();
        s.notes = self.notes.clone();
        s.health = match (s.store_away, s.trouble.corrupt > 0) {
            (true, _) => HealthWord::Offline,
            (_, true) => HealthWord::Degraded,
            _ => HealthWord::Ok,
        };
        self.fs.fill_status(&mut s);
        s
    }
}

impl ControlSource for Teller {
    fn render(&self, node: Node) -> Result<Vec<u8>> {
        Ok(match node {
            Node::Status => status::render(&self.status()).into_bytes(),
            Node::StatusJson => {
                let text = serde_json::to_string_pretty(&self.status());
                (text.map_err(|e| Error::with_source(Kind::Bug, "rendering the status", e))? + "\n").into_bytes()
            }
            Node::Audit => {
                self.reporter.audit.flush()?;
                let lines = self.reporter.audit.tail(AUDIT_LINES);
                lines.iter().map(|l| l.trim_end().to_owned() + "\n").collect::<String>().into_bytes()
            }
            Node::Quarantine => self.reporter.quarantine.listing(crate::audit::Names::Hidden).into_bytes(),
            Node::Readme | Node::Version => Vec::new(),
        })
    }
}

/// A volume that this process serves.
pub struct Live {
    /// The kernel's side.
    pub session: Arc<Session>,
    /// Status.
    pub teller: Arc<Teller>,
    /// The lease, where the store takes one writer at a time.
    pub keeper: Option<Arc<Keeper>>,
    /// Put away at the end.
    pub local: Mutex<Option<Local>>,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::with_source(Kind::Bug, "a task of the mount stopped", e))
}

#[async_trait]
impl Mounted for Live {
    fn status(&self) -> Status {
        self.teller.status()
    }

    fn drop_caches(&self) {
        self.teller.fs.drop_caches();
        if let Some(c) = &self.teller.cache {
            c.clear();
        }
        self.teller.reporter.invalidations.send(Invalidate::All);
    }

    async fn detach(&self, lazy: bool) -> Result<()> {
        let session = self.session.clone();
        blocking(move || {
            session.invalidate_all();
            if lazy { session.detach() } else { session.unmount() }
        })
        .await?
    }

    async fn detached(&self) {
        self.session.ended().await;
    }

    async fn drain(&self) -> Result<()> {
        let fs = &self.teller.fs;
        let session = self.session.clone();
        blocking(move || session.drained(LAST_OPERATIONS)).await?;
        fs.close_handles();
        fs.stop_changes();
        fs.drain(Some(DRAIN_ROUND), &|_| {}).await
    }

    async fn wipe(&self, keep_journal: bool) -> Result<()> {
        let t = &self.teller;
        let session = self.session.clone();
        if let Err(e) = blocking(move || session.abort()).await? {
            tracing::debug!("ending the kernel session: {e}");
        }
        t.fs.stop_changes();
        t.reader.close();
        let pending = t.fs.progress();
        let clean = pending.is_empty() && !keep_journal;
        reach("drained");
        super::lease::release(self.keeper.as_ref()).await;
        t.fs.close()?;
        reach("journal-closed");
        let Some(local) = self.local.lock().take() else { return Ok(()) };
        let reporter = t.reporter.clone();
        blocking(move || {
            reporter.event(Event::Unmount { clean, pending: pending.files });
            let wiped = local.cache.map(|(cache, run)| cache.destroy().map(|()| run.finish(&Pattern::Zeros)));
            let wiped = match wiped {
                Some(Ok(report)) => report,
                Some(Err(e)) => return Err(e.context("wiping the cache")),
                None => wipe::Report::default(),
            };
            reporter.event(Event::Wipe { files: wiped.files, bytes: wiped.bytes, failed: wiped.failed });
            local.known.flush()?;
            reporter.quarantine.flush()?;
            reporter.audit.close()?;
            drop(local.lock);
            match wiped.first_failure {
                Some(e) => Err(e.context("wiping the cache")),
                None => Ok(()),
            }
        })
        .await?
    }
}
