//! The spool: sealed logs on the local disk that hold what programs wrote until the bucket has it.
//!
//! One log per layer of a file, in a folder of its own. The spool counts its bytes against a limit and tells `NoSpace` before
//! anything is acknowledged that it cannot keep.

use super::layer::{Layer, record};
use crate::crypto::secmem::SecretKey;
use crate::disk::Disk;
use crate::env::Env;
use crate::env::failpoint::reach;
use crate::error::{Error, Kind, Result, fail};
use crate::format::failure::Failure;
use crate::format::wire::{Reader, Writer};
use crate::sealedlog::{ClosedLog, LogOwner, Opened, RecordPos, SealedLog};
use crate::store::UploadId;
use crate::types::{DirId, FileId, Hash};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use zeroize::Zeroizing;

/// Folder of the spool on its disk.
pub const FOLDER: &str = "spool";

/// The version that a layer lies on, as its log remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadVersion {
    /// Generation.
    pub generation: u64,
    /// Trailer hash.
    pub trailer_hash: Hash,
    /// Size of the plaintext.
    pub size: u64,
    /// Length of the object.
    pub object_len: u64,
    /// Key of the object.
    pub key: String,
}

/// First record of a log: whose data it holds. Enough to finish the upload with nothing but the volume's keys.
#[derive(Clone)]
pub struct Head {
    /// The file.
    pub file_id: FileId,
    /// Its key.
    pub file_key: SecretKey,
    /// Where it was when the log was made.
    pub dir_id: DirId,
    /// Key of that directory.
    pub dir_key: SecretKey,
    /// Its name there; empty for a file that had none.
    pub name: Vec<u8>,
    /// Order among the layers of the file; [`Spool::create`] sets it.
    pub layer: u64,
    /// Size of the file when the layer was begun.
    pub size: u64,
    /// The version in the bucket below all layers, if there was one.
    pub version: Option<HeadVersion>,
}

/// A log of the spool: of this process, or found.
pub struct SpoolLog {
    inner: Inner,
    bytes: AtomicU64,
    used: Arc<Usage>,
    gone: AtomicBool,
}

enum Inner {
    Live(SealedLog),
    Found(ClosedLog),
}

/// What must be durable before a log goes.
type Barrier = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// Bytes in the spool, with a bell for those who wait for room.
#[derive(Default)]
pub struct Usage {
    bytes: AtomicU64,
    barrier: OnceLock<Barrier>,
    /// Rings when bytes were freed.
    pub freed: tokio::sync::Notify,
}

impl SpoolLog {
    /// Opens a record into `buffer`.
    pub fn read(&self, pos: RecordPos, buffer: &mut Opened) -> Result<()> {
        match &self.inner {
            Inner::Live(l) => l.read_into(pos, buffer),
            Inner::Found(l) => l.read_into(pos, buffer),
        }
        .map_err(|e| e.context("reading the spool"))
    }

    /// Returns when all of it is durable. A found log is.
    pub fn sync(&self) -> Result<()> {
        match &self.inner {
            Inner::Live(l) => l.sync().map_err(|e| e.context("writing the spool")),
            Inner::Found(_) => Ok(()),
        }
    }

    /// Before a log below this one goes: makes durable what this one says, where that is what fsync(2) stands for.
    pub fn sync_above(&self) -> Result<()> {
        if self.used.barrier.get().is_some() { self.sync() } else { Ok(()) }
    }

    /// Erases and removes it: the bucket has its data, or nobody wants it any more.
    pub fn destroy(&self) -> Result<()> {
        if self.gone.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(Err(e)) = self.used.barrier.get().map(|b| b()) {
            return Err(e.context("a spool log stays: what makes it superfluous is not durable"));
        }
        if self.gone.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let done = match &self.inner {
            Inner::Live(l) => l.destroy(),
            Inner::Found(l) => l.destroy(),
        };
        self.used.bytes.fetch_sub(self.bytes.load(Ordering::Acquire), Ordering::AcqRel);
        self.used.freed.notify_waiters();
        done
    }
}

/// Destroys logs when dropped: hung on the index entry that makes them superfluous.
pub struct DestroyLogs(pub Vec<Arc<SpoolLog>>);

impl Drop for DestroyLogs {
    fn drop(&mut self) {
        for log in &self.0 {
            if let Err(e) = log.destroy() {
                tracing::warn!("a spool log could not be removed: {e}");
            }
        }
    }
}

/// What a found log belongs to.
pub struct Found {
    /// Its head.
    pub head: Head,
    /// The layer, rebuilt.
    pub layer: Layer,
    /// Size of the file after the last record.
    pub size: u64,
    /// Trailer hashes of the versions that were about to be written from it, one for each attempt.
    pub intents: Vec<Hash>,
    /// Multipart uploads that were begun from it.
    pub uploads: Vec<(String, UploadId)>,
    /// The file was unlinked by the mount that left it.
    pub gone: bool,
    /// Data behind this point of time was lost, and not by a crash alone.
    pub damage: Option<Error>,
}

impl HeadVersion {
    fn put(&self, w: &mut Writer) {
        w.u64(self.generation).bytes(&self.trailer_hash.0).u64(self.size).u64(self.object_len);
        w.u16(self.key.len() as u16).bytes(self.key.as_bytes());
    }

    fn read(r: &mut Reader<'_>) -> Result<HeadVersion> {
        let (generation, trailer_hash) = (r.u64()?, Hash(r.array()?));
        let (size, object_len) = (r.u64()?, r.u64()?);
        let n = usize::from(r.u16()?);
        let key = String::from_utf8(r.bytes(n)?.to_vec());
        let key = key.map_err(|_| Failure::Log.error("the spool names an object that cannot be"))?;
        Ok(HeadVersion { generation, trailer_hash, size, object_len, key })
    }

    /// The record that says: the layer lies on this version from now on.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut w = Writer::with_capacity(256);
        self.put(&mut w);
        w.secret()
    }

    fn decode(payload: &[u8]) -> Result<HeadVersion> {
        let mut r = Reader::new(payload, Failure::Log);
        let version = HeadVersion::read(&mut r)?;
        r.finish()?;
        Ok(version)
    }
}

impl Head {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut w = Writer::with_capacity(512);
        w.bytes(&self.file_id.0).bytes(&self.file_key.expose()[..]).bytes(&self.dir_id.0).bytes(&self.dir_key.expose()[..]);
        w.u16(self.name.len() as u16).bytes(&self.name).u64(self.layer).u64(self.size);
        w.u8(u8::from(self.version.is_some()));
        if let Some(v) = &self.version {
            v.put(&mut w);
        }
        w.secret()
    }

    fn decode(payload: &[u8]) -> Result<Head> {
        let mut r = Reader::new(payload, Failure::Log);
        let (file_id, file_key) = (FileId(r.array()?), SecretKey::new(r.slice()?));
        let (dir_id, dir_key) = (DirId(r.array()?), SecretKey::new(r.slice()?));
        let n = usize::from(r.u16()?);
        let name = r.bytes(n)?.to_vec();
        let (layer, size) = (r.u64()?, r.u64()?);
        let version = if r.u8()? == 0 { None } else { Some(HeadVersion::read(&mut r)?) };
        r.finish()?;
        Ok(Head { file_id, file_key, dir_id, dir_key, name, layer, size, version })
    }
}

/// Key and id of a multipart upload.
fn read_upload(payload: &[u8]) -> Option<(String, UploadId)> {
    let len = usize::from(u16::from_be_bytes(payload.get(..2)?.try_into().ok()?));
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    Some((text(payload.get(2..2 + len)?)?, UploadId(text(payload.get(2 + len..)?)?)))
}

/// The trailer hash behind the generation of an intent.
fn read_intent(payload: &[u8]) -> Option<Hash> {
    Some(Hash(payload.get(8..40)?.try_into().ok()?))
}

/// See the head of this file.
pub struct Spool {
    disk: Arc<dyn Disk>,
    owner: LogOwner,
    env: Env,
    max: u64,
    used: Arc<Usage>,
    /// Number of the next log: layers of a file lie in this order, whoever had the file open.
    next: AtomicU64,
}

impl Spool {
    /// A spool in `disk`, of at most `max` bytes.
    pub fn new(disk: Arc<dyn Disk>, owner: LogOwner, env: Env, max: u64) -> Result<Spool> {
        disk.make_dir(FOLDER)?;
        // A durable file in a folder whose own name is not durable is lost with it.
        disk.sync_dir("")?;
        Ok(Spool { disk, owner, env, max, used: Arc::default(), next: AtomicU64::new(0) })
    }

    /// Bytes in use, and the limit.
    pub fn usage(&self) -> (u64, u64) {
        (self.used.bytes.load(Ordering::Relaxed), self.max)
    }

    /// From here on no log goes before `barrier` has returned: where the spool is what makes an fsync(2) true, a change of names that
    /// makes data superfluous must not be lost to a power failure that the data's end survives. The first call counts.
    pub fn guard(&self, barrier: impl Fn() -> Result<()> + Send + Sync + 'static) {
        let _ = self.used.barrier.set(Box::new(barrier));
    }

    /// For waiting until something is freed.
    pub fn bell(&self) -> &tokio::sync::Notify {
        &self.used.freed
    }

    /// Makes a log whose first record is `head`.
    pub fn create(&self, head: &Head) -> Result<Arc<SpoolLog>> {
        let name = format!("{FOLDER}/{}", data_encoding::HEXLOWER.encode(&self.env.random::<16>()));
        let live = SealedLog::create(self.disk.clone(), &name, &self.owner, &self.env).map_err(|e| e.context("the spool"))?;
        let log = SpoolLog {
            inner: Inner::Live(live),
            bytes: AtomicU64::new(0),
            used: self.used.clone(),
            gone: AtomicBool::new(false),
        };
        reach("spool-log-made");
        let head = Head { layer: self.next.fetch_add(1, Ordering::AcqRel), ..head.clone() };
        if let Err(e) = self.append(&log, record::HEAD, &[&head.encode()]) {
            let _ = log.destroy();
            return Err(e);
        }
        Ok(Arc::new(log))
    }

    /// Whether the log takes records: one of an earlier mount does not.
    pub fn takes(&self, log: &SpoolLog) -> bool {
        matches!(log.inner, Inner::Live(_))
    }

    /// Appends a record made of `parts`. `NoSpace` when the spool or its disk is full; the log is as before then.
    pub fn append(&self, log: &SpoolLog, kind: u8, parts: &[&[u8]]) -> Result<RecordPos> {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let Inner::Live(live) = &log.inner else {
            return fail(Kind::Bug, "a log of an earlier mount takes no records");
        };
        let cost = len as u64 + 32;
        // Truncations and intents are always let through: they free space.
        if kind == record::DATA && self.used.bytes.load(Ordering::Acquire) + cost > self.max {
            return fail(Kind::NoSpace, "the spool is full: uploads have to catch up first");
        }
        let pos = live.append_parts(kind, parts).map_err(|e| e.context("writing the spool"))?;
        log.bytes.fetch_add(cost, Ordering::AcqRel);
        self.used.bytes.fetch_add(cost, Ordering::AcqRel);
        if kind == record::DATA {
            reach("spool-record-appended");
        }
        Ok(pos)
    }

    /// The logs that an earlier mount left, in order of file and layer. Empty ones are removed; unreadable ones are reported.
    pub fn recover(&self) -> Result<(Vec<Found>, Vec<Error>)> {
        let (mut found, mut bad) = (Vec::new(), Vec::new());
        for entry in self.disk.list(FOLDER)? {
            let path = format!("{FOLDER}/{}", entry.name);
            match self.read_log(&path, entry.len) {
                Ok(Some(f)) => found.push(f),
                Ok(None) => self.disk.remove(&path)?,
                Err(e) => bad.push(e),
            }
        }
        found.sort_by_key(|f| (f.head.file_id, f.head.layer));
        let after = found.iter().map(|f| f.head.layer + 1).max().unwrap_or(0);
        self.next.fetch_max(after, Ordering::AcqRel);
        Ok((found, bad))
    }

    fn read_log(&self, path: &str, len: u64) -> Result<Option<Found>> {
        let Some(closed) = ClosedLog::open(self.disk.clone(), path, &self.owner)? else { return Ok(None) };
        let mut head = None;
        let mut layer = Layer::default();
        let (mut size, mut intents, mut base, mut uploads, mut gone) = (0, Vec::new(), None, Vec::new(), false);
        let tail = closed.replay(|r| {
            match r.kind {
                record::HEAD => {
                    let h = Head::decode(&r.payload)?;
                    size = h.size;
                    head = Some(h);
                }
                record::INTENT => intents.extend(read_intent(&r.payload)),
                record::UPLOAD => uploads.extend(read_upload(&r.payload)),
                record::GONE => gone = true,
                record::BASE => base = Some(HeadVersion::decode(&r.payload)?),
                kind => size = layer.replay(kind, &r.payload, r.pos).apply(size),
            }
            Ok(())
        })?;
        // What lies before the damage counts: everything that was synced is among it.
        let damage = tail.check().err().map(|e| e.context("the spool of an earlier mount"));
        let Some(mut head) = head else { return damage.map_or(Ok(None), Err) };
        head.version = base.or(head.version);
        let log = Arc::new(SpoolLog {
            inner: Inner::Found(closed),
            bytes: AtomicU64::new(len),
            used: self.used.clone(),
            gone: AtomicBool::new(false),
        });
        self.used.bytes.fetch_add(len, Ordering::AcqRel);
        layer.adopt(log);
        Ok(Some(Found { head, layer, size, intents, uploads, gone, damage }))
    }
}
