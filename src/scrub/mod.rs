//! Looking a whole volume through, and mending it: what `smpfs scrub` and `smpfs recover` do. Needs no mount, and runs beside living ones.
//!
//! ```text
//!  walk      every index from the roots on, until they stand still for a moment ──> names, and which objects they name
//!  verify    every object that an entry names, whole, through the read path
//!  strays    the listing against the names: orphans (ours), foreign objects, what is too young to tell
//!  gc · repair · recover      delete what nothing names · link what tells its place · write lost indexes anew
//!  public    what can be checked without any key
//! ```
//!
//! Nothing is believed at first sight: before anything is reported, the entry that led to it is read again, since other machines
//! create, rename and delete while the volume is looked through.

mod edit;
mod gc;
mod public;
mod recover;
mod repair;
mod report;
mod strays;
mod verify;
mod walk;

pub use gc::{Gc, MIN_GRACE};
pub use public::{PublicParts, check_public};
pub use recover::{Outlook, Recovered, Waiting};
pub use repair::Repaired;
pub use report::{Counts, Find, Progress, Report, What};
pub use walk::Root;

use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::Params;
use crate::format::entry::Entry;
use crate::format::index::DirRef;
use crate::format::keys::VolumeKeys;
use crate::format::names::PROBE_PREFIX;
use crate::fs::Sink;
use crate::read::{ReadOptions, Reader, Witness};
use crate::store::{Cond, Store};
use crate::tree::io::{IndexIo, Memory};
use crate::types::{DirId, Mode, Time};
use bytes::Bytes;
use parking_lot::Mutex;
use report::Tally;
use std::sync::Arc;
use std::time::Duration;
use strays::Strays;
use verify::Collector;
use walk::Tree;

/// Who hears of finds: what a mount tells, and what only a walk over everything can see.
pub trait Listener: Sink + Witness {
    /// An object below the volume's prefix that is not of the volume.
    fn foreign(&self, key: &str);
    /// An index object is about to be replaced: its bytes must be kept first. Blocks.
    fn keep(&self, dir: DirId, key: &str, bytes: &Bytes) -> Result<()>;
}

/// What a scrub is made of.
pub struct Parts {
    /// The bucket.
    pub store: Arc<dyn Store>,
    /// The volume's keys.
    pub keys: Arc<VolumeKeys>,
    /// Its constants.
    pub params: Params,
    /// How object names are chosen.
    pub mode: Mode,
    /// Directories that no entry names: the root, first.
    pub roots: Vec<Root>,
    /// What this machine has seen.
    pub memory: Arc<dyn Memory>,
    /// Who hears of finds.
    pub listener: Arc<dyn Listener>,
    /// Clock and randomness.
    pub env: Env,
    /// Choices.
    pub options: Options,
}

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct Options {
    /// Objects verified at once.
    pub jobs: usize,
    /// Memory for their bytes.
    pub memory: u64,
    /// How long the store may take to answer a read.
    pub deadline: Duration,
    /// What nothing names counts as left over when it is older than this, by the store's clock.
    pub grace: Duration,
    /// How long what nothing names is given to get a name, between the moment it was seen and its deletion: an upload that took
    /// longer than the grace period, and that the store dates by its beginning, is named seconds after its end.
    pub pause: Duration,
    /// Do not read contents: indexes and the listing only.
    pub quick: bool,
    /// Owner and group of what is linked back.
    pub owner: (u32, u32),
}

impl Default for Options {
    fn default() -> Self {
        Options {
            jobs: 8,
            memory: 256 << 20,
            deadline: Duration::from_secs(60),
            grace: Duration::from_secs(7 * 86_400),
            pause: Duration::from_secs(10),
            quick: false,
            owner: (0, 0),
        }
    }
}

/// A volume being looked through.
pub struct Scrub {
    parts: Parts,
    io: IndexIo,
    reader: Reader,
    collector: Arc<Collector>,
    tally: Arc<Tally>,
    /// Entries whose object is newer, and the directory they are in.
    lagging: Mutex<Vec<(DirRef, Arc<Entry>)>>,
}

/// What a look through the whole volume left in memory: the base of everything that mends.
pub struct Seen {
    tree: Tree,
    strays: Strays,
    /// What is older than this and named by nothing is left over; `None` when the store does not tell times.
    cutoff: Option<Time>,
    /// Whether the indexes stood still for a moment, so that what is unnamed truly was.
    steady: bool,
}

impl Scrub {
    /// Within a tokio runtime.
    pub fn new(parts: Parts) -> Result<Scrub> {
        let collector = Arc::new(Collector::default());
        let options = ReadOptions {
            budget: parts.options.memory,
            prefetch_max: 0,
            deadline: parts.options.deadline,
            verify_full: true,
            ..ReadOptions::default()
        };
        let (store, keys) = (parts.store.clone(), parts.keys.clone());
        let reader = Reader::new(store.clone(), parts.params, keys.clone(), collector.clone(), None, options)?;
        let io = IndexIo::new(store.clone(), store.caps(), keys, parts.memory.clone(), parts.env.clone());
        Ok(Scrub { parts, io, reader, collector, tally: Arc::default(), lagging: Mutex::default() })
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.tally.progress()
    }

    /// What was found so far; whole when [`Scrub::check`] has returned.
    pub fn report(&self) -> Report {
        self.tally.report()
    }

    /// Looks everything through. An error means that the store did not answer, not that something was found.
    pub async fn check(&self) -> Result<Seen> {
        let now = self.store_time().await?;
        let cutoff = now.map(|t| before(t, self.parts.options.grace));
        let under_way = self.uploads_under_way().await?;
        let first = self.listing().await?;
        let mut tree = Tree::default();
        self.look(&mut tree).await?;
        let steady = self.settle(&mut tree, None).await?;
        self.tell_broken(&tree);
        self.tally.steady(steady);
        let mut strays = Strays::default();
        if steady {
            strays = self.strays(&tree, cutoff, &first, &under_way).await?;
            self.tell_strays(&tree, &strays);
        }
        self.tell_uploads(cutoff).await?;
        self.tally.complete();
        Ok(Seen { tree, strays, cutoff, steady })
    }

    /// The store's clock, as the time of an object that was just written; `None` from a store that gives no times or takes no
    /// writes.
    async fn store_time(&self) -> Result<Option<Time>> {
        let store = &self.parts.store;
        let key = format!("{PROBE_PREFIX}time-{}", data_encoding::HEXLOWER.encode(&self.parts.env.random::<8>()));
        match store.put(&key, vec![Bytes::from_static(b"x")], Cond::Any).await {
            Ok(_) => {}
            Err(e) if matches!(e.kind(), Kind::Denied | Kind::ReadOnly | Kind::Unsupported | Kind::NotPermitted) => {
                return Ok(None);
            }
            Err(e) => return Err(e.context("asking for the store's time")),
        }
        let page = store.list(&key, None, 1).await;
        let gone = store.delete(&key).await;
        let time = page?.items.into_iter().find(|i| i.key == key).and_then(|i| i.modified);
        gone.map_err(|e| e.context("removing a scratch object")).map(|()| time)
    }

    /// Runs work that waits for the local disk off the asynchronous threads.
    async fn keep(&self, dir: DirId, key: String, bytes: Bytes) -> Result<()> {
        let listener = self.parts.listener.clone();
        let kept = tokio::task::spawn_blocking(move || listener.keep(dir, &key, &bytes)).await;
        kept.map_err(|e| Error::with_source(Kind::Bug, "keeping evidence stopped", e))?
    }
}

/// That much before a moment.
fn before(t: Time, span: Duration) -> Time {
    let sec = t.sec.saturating_sub(i64::try_from(span.as_secs()).unwrap_or(i64::MAX));
    Time { sec, nsec: t.nsec }
}

impl Seen {
    /// Keeps one of the left-over objects and forgets the others, for whoever wants to mend that one alone.
    pub fn only(&mut self, key: &str) {
        self.strays.orphans.retain(|o| o.key == key);
    }

    /// Left-over files that nothing else names: [`Scrub::gc`] deletes them for good, and [`Scrub::recover`] can link them back.
    pub fn returnable(&self) -> u64 {
        let lost = |o: &&strays::Orphan| matches!(&o.kind, strays::Kindred::File(id) if !self.tree.files.contains(&walk::print(&[&id.0])));
        self.strays.orphans.iter().filter(lost).count() as u64
    }
}
