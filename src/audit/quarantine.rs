//! Objects and chunks that failed verification: what was found, where, and the ciphertext that was found, kept for people.
//!
//! [`Quarantine::report`] is for threads that serve reads: it changes the set in memory and hands the disk work to a thread.
//! Nothing here touches the bucket. Evidence is ciphertext as the store gave it, in files of its own, up to a bound; the first
//! finds are kept, since a flood of later ones may be meant to push them out.

use super::chain::rfc3339;
use super::event::{Names, shown_key};
use crate::crypto::secmem::SecretKey;
use crate::disk::{Access, Disk, join};
use crate::env::Env;
use crate::error::{Error, Kind, Result, fail};
use crate::sealedlog::{LogKind, LogOwner, LogSet};
use crate::types::{Time, VolumeId};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Reports that wait for the disk at most; each may carry 2 MiB of evidence.
const QUEUE: usize = 16;
const FOUND: u8 = 1;
const RELEASED: u8 = 2;

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct QuarantineLimits {
    /// Finds remembered; further ones are only counted.
    pub records: usize,
    /// Bytes of evidence kept on the disk.
    pub evidence_bytes: u64,
}

impl Default for QuarantineLimits {
    fn default() -> Self {
        QuarantineLimits { records: 10_000, evidence_bytes: 256 << 20 }
    }
}

/// What failed, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Key of the object.
    pub object: String,
    /// Version tag that the store gave, or "".
    pub version: String,
    /// File id in hex, or "".
    pub file: String,
    /// Generation that was expected.
    pub generation: u64,
    /// Number of the chunk in the file; `None` for the object as a whole.
    pub chunk: Option<u64>,
    /// The check that failed.
    pub stage: String,
    /// What should have been there.
    pub expected: String,
    /// What was there.
    pub got: String,
}

/// A find in the quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// When it was found first, seconds since 1970.
    pub time: i64,
    /// What was found.
    pub finding: Finding,
    /// File name of the evidence, when some was kept.
    pub evidence: Option<String>,
    /// How often it was found since the mount began.
    #[serde(skip)]
    pub count: u64,
}

/// A line of the listing.
#[derive(Serialize)]
struct Line {
    time: String,
    finding: Finding,
    evidence: Option<String>,
}

/// Totals, for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Finds held.
    pub records: u64,
    /// Different objects among them.
    pub objects: u64,
    /// Bytes of evidence on the disk.
    pub evidence_bytes: u64,
    /// Finds that are not remembered because the bound was reached.
    pub beyond: u64,
    /// Finds that are in memory only: the disk failed or did not keep up.
    pub unwritten: u64,
}

/// Object, version, chunk.
type Place = (String, String, Option<u64>);

fn place(f: &Finding) -> Place {
    (f.object.clone(), f.version.clone(), f.chunk)
}

/// The quarantine of one volume on this machine. Serves many threads.
pub struct Quarantine {
    shared: Arc<Shared>,
    queue: Mutex<Option<SyncSender<Order>>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    limits: QuarantineLimits,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: BTreeMap<Place, Held>,
    evidence_bytes: u64,
    beyond: u64,
    unwritten: u64,
}

enum Order {
    Keep(Place, Bytes),
    Release(String, Vec<Held>),
    Flush(SyncSender<()>),
}

impl Quarantine {
    /// Opens the quarantine in `dir` of `disk`; `wrap` is K("local-log"). Starts a thread.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &str,
        volume: VolumeId,
        wrap: &SecretKey,
        env: &Env,
        limits: QuarantineLimits,
    ) -> Result<Quarantine> {
        let owner = LogOwner { kind: LogKind::Quarantine, volume, wrap: wrap.clone() };
        let log = LogSet::open(disk.clone(), dir, "found", owner, env.clone())?;
        let evidence_dir = join(dir, "evidence");
        disk.make_dir(&evidence_dir)?;
        let (held, whole) = load(&log)?;
        let mut state = State { held, ..State::default() };
        state.evidence_bytes = sort_evidence(&*disk, &evidence_dir, &state.held, whole)?;
        let shared = Arc::new(Shared { state: Mutex::new(state) });
        let mut keeper = Keeper { disk, log, evidence_dir, shared: shared.clone(), env: env.clone(), limits };
        let (queue, orders) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("smpfs-quarantine".to_owned()).spawn(move || keeper.run(&orders));
        let thread = thread.map_err(|e| Error::from(e).context("starting the quarantine keeper"))?;
        Ok(Quarantine { shared, queue: Mutex::new(Some(queue)), keeper: Mutex::new(Some(thread)), limits })
    }

    /// Takes a find in, with the ciphertext that was found. True when it is new. Neither blocks nor fails.
    pub fn report(&self, at: Time, finding: Finding, evidence: Bytes) -> bool {
        let place = place(&finding);
        let state = &mut *self.shared.state.lock();
        if let Some(held) = state.held.get_mut(&place) {
            held.count += 1;
            return false;
        }
        if state.held.len() >= self.limits.records {
            state.beyond += 1;
            return false;
        }
        state.held.insert(place.clone(), Held { time: at.sec, finding, evidence: None, count: 1 });
        if !self.send(Order::Keep(place, evidence)) {
            state.unwritten += 1;
        }
        true
    }

    fn send(&self, order: Order) -> bool {
        self.queue.lock().as_ref().is_some_and(|q| q.try_send(order).is_ok())
    }

    /// Whether this chunk, or the whole object, of this version is held.
    pub fn holds(&self, object: &str, version: &str, chunk: u64) -> bool {
        let state = self.shared.state.lock();
        let at = |chunk| state.held.contains_key(&(object.to_owned(), version.to_owned(), chunk));
        at(None) || at(Some(chunk))
    }

    /// Everything held, ordered by object and chunk.
    pub fn list(&self) -> Vec<Held> {
        self.shared.state.lock().held.values().cloned().collect()
    }

    /// The text of `.smpfs/quarantine`: a line of JSON for each find, with times as the audit log has them.
    pub fn listing(&self, names: Names) -> String {
        let mut text = String::new();
        for held in self.list() {
            let object = shown_key(&held.finding.object, names);
            let finding = Finding { object, ..held.finding };
            let time = rfc3339(Time { sec: held.time, nsec: 0 });
            if let Ok(line) = serde_json::to_string(&Line { time, finding, evidence: held.evidence }) {
                text.push_str(&line);
                text.push('\n');
            }
        }
        text
    }

    /// Totals.
    pub fn counts(&self) -> Counts {
        let state = self.shared.state.lock();
        let objects: HashSet<&str> = state.held.keys().map(|(object, ..)| object.as_str()).collect();
        Counts {
            records: state.held.len() as u64,
            objects: objects.len() as u64,
            evidence_bytes: state.evidence_bytes,
            beyond: state.beyond,
            unwritten: state.unwritten,
        }
    }

    /// Lets an object go, with its evidence, and returns how many finds there were of it. Blocks.
    pub fn release(&self, object: &str) -> Result<usize> {
        let gone: Vec<Held> = {
            let state = &mut *self.shared.state.lock();
            let places: Vec<Place> = state.held.keys().filter(|(o, ..)| o == object).cloned().collect();
            places.iter().filter_map(|p| state.held.remove(p)).collect()
        };
        let count = gone.len();
        if count > 0 {
            self.send_and_wait(Order::Release(object.to_owned(), gone))?;
            self.flush()?;
        }
        Ok(count)
    }

    /// Returns when everything reported before was tried to be written. Blocks.
    pub fn flush(&self) -> Result<()> {
        let (reply, answer) = sync_channel(1);
        self.send_and_wait(Order::Flush(reply))?;
        answer.recv().map_err(|_| Error::new(Kind::Bug, "the quarantine keeper has stopped"))
    }

    fn send_and_wait(&self, order: Order) -> Result<()> {
        let Some(queue) = self.queue.lock().clone() else { return fail(Kind::Stale, "the quarantine is closed") };
        queue.send(order).map_err(|_| Error::new(Kind::Bug, "the quarantine keeper has stopped"))
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        drop(self.queue.lock().take());
        if let Some(thread) = self.keeper.lock().take() {
            let _ = thread.join(); // a panic there was reported when it happened
        }
    }
}

/// Bytes of evidence. When the log is whole, evidence that no find names (a crash came between the two) is removed.
fn sort_evidence(disk: &dyn Disk, dir: &str, held: &BTreeMap<Place, Held>, whole: bool) -> Result<u64> {
    let named: HashSet<&str> = held.values().filter_map(|h| h.evidence.as_deref()).collect();
    let mut bytes = 0;
    for entry in disk.list(dir)? {
        if whole && entry.name.ends_with(".bin") && !named.contains(entry.name.as_str()) {
            disk.remove(&join(dir, &entry.name))?;
        } else {
            bytes += entry.len;
        }
    }
    Ok(bytes)
}

/// What earlier mounts held, and whether nothing of it is lost. A log with releases in it, or in many files, is written anew.
fn load(log: &LogSet) -> Result<(BTreeMap<Place, Held>, bool)> {
    let (mut held, mut stale) = (BTreeMap::new(), 0);
    let tails = log.replay(|_, record| {
        match record.kind {
            FOUND => {
                if let Ok(found) = serde_json::from_slice::<Held>(&record.payload) {
                    stale += usize::from(held.insert(place(&found.finding), found).is_some());
                }
            }
            RELEASED => {
                stale += 1;
                held.retain(|(object, ..), _| object.as_bytes() != record.payload.as_slice());
            }
            _ => {}
        }
        Ok(())
    })?;
    for (file, tail) in &tails {
        if let Err(e) = tail.check() {
            tracing::warn!("quarantine file {file}: {e}");
        }
    }
    let whole = tails.iter().all(|(_, t)| t.check().is_ok());
    if whole && (stale > 0 || tails.len() > 1) {
        log.rewrite(&mut held.values().filter_map(|h| Some((FOUND, serde_json::to_vec(h).ok()?))))?;
    }
    Ok((held, whole))
}

/// The thread that owns the files.
struct Keeper {
    disk: Arc<dyn Disk>,
    log: LogSet,
    evidence_dir: String,
    shared: Arc<Shared>,
    env: Env,
    limits: QuarantineLimits,
}

impl Keeper {
    fn run(&mut self, orders: &Receiver<Order>) {
        for order in orders {
            let done = match order {
                Order::Keep(place, evidence) => self.keep(&place, &evidence),
                Order::Release(object, gone) => self.release(&object, &gone),
                Order::Flush(reply) => {
                    let _ = reply.try_send(()); // nobody listens any more: fine
                    Ok(())
                }
            };
            if let Err(e) = done {
                self.shared.state.lock().unwritten += 1;
                tracing::warn!("the quarantine could not be written: {e}");
            }
        }
    }

    fn keep(&mut self, place: &Place, evidence: &[u8]) -> Result<()> {
        let name = self.keep_evidence(evidence).unwrap_or_else(|e| {
            tracing::warn!("evidence could not be kept: {e}");
            None
        });
        let held = {
            let state = &mut *self.shared.state.lock();
            let Some(held) = state.held.get_mut(place) else { return Ok(()) }; // released meanwhile
            held.evidence = name;
            held.clone()
        };
        let Ok(line) = serde_json::to_vec(&held) else { return fail(Kind::Bug, "a find cannot be written as JSON") };
        self.log.append(FOUND, &line)?;
        self.sync()
    }

    /// Copies the evidence into a file of its own; `None` when there is none or no room.
    fn keep_evidence(&self, evidence: &[u8]) -> Result<Option<String>> {
        let fits = self.shared.state.lock().evidence_bytes + evidence.len() as u64 <= self.limits.evidence_bytes;
        if evidence.is_empty() || !fits {
            return Ok(None);
        }
        let name = format!("{}.bin", data_encoding::HEXLOWER.encode(&self.env.random::<8>()));
        let path = join(&self.evidence_dir, &name);
        let file = self.disk.open(&path, Access::CreateNew)?;
        if let Err(e) = file.pwrite(0, evidence).and_then(|()| file.sync_data()) {
            let _ = self.disk.remove(&path);
            return Err(e);
        }
        self.disk.sync_dir(&self.evidence_dir)?;
        self.shared.state.lock().evidence_bytes += evidence.len() as u64;
        Ok(Some(name))
    }

    fn release(&mut self, object: &str, gone: &[Held]) -> Result<()> {
        self.log.append(RELEASED, object.as_bytes())?;
        self.sync()?;
        for name in gone.iter().filter_map(|held| held.evidence.as_deref()) {
            let path = join(&self.evidence_dir, name);
            let len = self.disk.len(&path)?;
            self.disk.remove(&path)?;
            let state = &mut *self.shared.state.lock();
            state.evidence_bytes = state.evidence_bytes.saturating_sub(len);
        }
        self.disk.sync_dir(&self.evidence_dir)
    }

    /// Makes the log durable; after a failure it is written anew from memory.
    fn sync(&self) -> Result<()> {
        self.log.sync().or_else(|_| {
            let held: Vec<Held> = self.shared.state.lock().held.values().cloned().collect();
            self.log.rewrite(&mut held.iter().filter_map(|h| Some((FOUND, serde_json::to_vec(h).ok()?))))
        })
    }
}
