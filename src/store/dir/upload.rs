//! Multipart uploads of a directory store: parts are written in place into one file, which becomes the object.
//!
//! ```text
//! .%tmp/up-<id>/key        the object's key
//!              /data       the object to be
//!              /part-<n>   offset, length and tag of part n; written after the part itself is on disk
//! ```
//! An upload outlives the process: the records say which parts are there. Within a process, a caller that gave up on a part
//! may leave a thread behind that still writes it; each attempt takes a number, and an older one never writes after a newer.

use super::super::*;
use super::own;
use super::place::{New, Place, Wanted, err, modified};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const PREFIX: &str = "up-";

/// Uploads that this process writes to.
#[derive(Default)]
pub(super) struct Uploads {
    attempts: AtomicU64,
    live: Mutex<HashMap<String, Arc<Live>>>,
}

/// An upload under way. Writers of parts hold `gate` shared, who ends the upload holds it alone.
#[derive(Default)]
struct Live {
    gate: RwLock<bool>,
    parts: Mutex<HashMap<u32, Arc<Mutex<u64>>>>,
}

/// Where the bytes of a part come from.
pub(super) enum Source {
    /// Given.
    Bytes(Vec<Bytes>),
    /// A range of an object of that tag.
    Object(String, ETag, Range<u64>),
}

/// A source that is ready to be read.
enum Open<'a> {
    Bytes(&'a [Bytes]),
    File(File, u64),
}

impl Uploads {
    /// The number of a new attempt; take it before the work is queued.
    pub(super) fn attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn live(&self, id: &UploadId) -> Arc<Live> {
        self.live.lock().entry(id.0.clone()).or_default().clone()
    }

    /// Ends an upload: waits for its writers, runs `end`, and forgets it when that says so.
    fn end<T>(&self, id: &UploadId, end: impl FnOnce() -> Result<T>) -> Result<T> {
        let live = self.live(id);
        let mut closed = live.gate.write();
        let done = end();
        if done.is_ok() || matches!(&done, Err(e) if e.kind() == Kind::NotFound) {
            *closed = true;
            self.live.lock().remove(&id.0);
        }
        done
    }
}

/// The folder of an upload, if the id can be one and the upload is of this key.
fn folder(place: &Place, key: &Key, id: &UploadId) -> Result<PathBuf> {
    let unknown = || fail(Kind::NotFound, "no such upload");
    if id.0.len() != 32 || !id.0.bytes().all(|b| b.is_ascii_hexdigit()) {
        return unknown();
    }
    let folder = place.area.join(format!("{PREFIX}{}", id.0));
    match own::read(&folder.join("key"), "opening an upload") {
        Ok(k) if k == key.as_bytes() => Ok(folder),
        Ok(_) => unknown(),
        Err(e) if e.kind() == Kind::NotFound => unknown(),
        Err(e) => Err(e),
    }
}

fn record(part: &Part) -> String {
    format!("{} {} {}", part.at.offset, part.len, part.tag)
}

/// Writes a small file whole.
fn write_file(path: &Path, text: &str, durable: bool) -> Result<()> {
    let what = "writing an upload's record";
    let temp = path.with_extension("new");
    let mut file = own::open(&temp, OpenOptions::new().write(true).create(true).truncate(true), what)?;
    file.write_all(text.as_bytes()).map_err(|e| err(what, e))?;
    if durable {
        file.sync_data().map_err(|e| err(what, e))?;
    }
    fs::rename(&temp, path).map_err(|e| err(what, e))
}

/// Writes a part where it belongs in the object. Gives its length.
fn write_part(file: &mut File, at: PartAt, source: &mut Open<'_>) -> Result<u64> {
    file.seek(SeekFrom::Start(at.offset)).map_err(|e| err("writing a part", e))?;
    match source {
        Open::Bytes(body) => {
            body.iter().try_for_each(|b| file.write_all(b)).map_err(|e| err("writing a part", e))?;
            Ok(body_len(body))
        }
        // std uses copy_file_range, which shares blocks where the filesystem can.
        Open::File(source, len) => match io::copy(&mut source.take(*len), file).map_err(|e| err("copying a part", e))? {
            copied if copied == *len => Ok(copied),
            _ => fail(Kind::Corrupt, "an object is shorter than its own length says"),
        },
    }
}

impl Place {
    pub(super) fn upload_start(&self, key: &Key) -> Result<UploadId> {
        self.writable()?;
        let id = self.random();
        let folder = self.area.join(format!("{PREFIX}{id}"));
        let what = "starting an upload";
        fs::create_dir(&folder).map_err(|e| err(what, e))?;
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join("data")).map_err(|e| err(what, e))?;
        write_file(&folder.join("key"), key, true)?;
        self.sync_dir(&folder)?;
        self.sync_dir(&self.area)?;
        Ok(UploadId(id))
    }

    pub(super) fn upload_part(
        &self,
        uploads: &Uploads,
        attempt: u64,
        key: &Key,
        id: &UploadId,
        at: PartAt,
        from: &Source,
    ) -> Result<Part> {
        self.writable()?;
        let folder = folder(self, key, id)?;
        let live = uploads.live(id);
        let closed = live.gate.read();
        if *closed {
            return fail(Kind::NotFound, "no such upload");
        }
        let slot = live.parts.lock().entry(at.number).or_default().clone();
        let mut newest = slot.lock();
        if *newest > attempt {
            return fail(Kind::Busy, "a later attempt has written this part");
        }
        *newest = attempt;
        let mut source = self.open_source(from)?;
        // The old record goes first: it must not vouch for bytes that are being replaced.
        let path = folder.join(format!("part-{}", at.number));
        match fs::remove_file(&path) {
            Ok(()) => self.sync_dir(&folder)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(err("replacing a part", e)),
        }
        let mut file = own::open(&folder.join("data"), OpenOptions::new().write(true), "opening an upload")?;
        let len = write_part(&mut file, at, &mut source)?;
        if self.durable() {
            file.sync_data().map_err(|e| err("writing a part to disk", e))?;
        }
        let part = Part { at, len, tag: self.random() };
        write_file(&path, &record(&part), self.durable())?;
        Ok(part)
    }

    /// Opens what a part is made of, and refuses what cannot be one: a part that is there already must survive that.
    fn open_source<'a>(&self, from: &'a Source) -> Result<Open<'a>> {
        let (from, only, range) = match from {
            Source::Bytes(body) => return Ok(Open::Bytes(body)),
            Source::Object(from, only, range) => (from, only, range),
        };
        let (mut source, meta) = self.open_object(from, Some(only))?;
        check_source(range, meta.len)?;
        source.seek(SeekFrom::Start(range.start)).map_err(|e| err("copying a part", e))?;
        Ok(Open::File(source, range.end - range.start))
    }

    pub(super) fn upload_complete(
        &self,
        up: &Uploads,
        key: &Key,
        id: &UploadId,
        parts: &[Part],
        cond: &Cond,
        wanted: &Wanted,
    ) -> Result<Meta> {
        self.writable()?;
        let len = check_parts(parts)?;
        up.end(id, || {
            let folder = folder(self, key, id)?;
            for part in parts {
                let there = own::read(&folder.join(format!("part-{}", part.at.number)), "reading an upload's record");
                if !there.is_ok_and(|t| t == record(part).as_bytes()) {
                    return fail(Kind::Invalid, format!("part {} is not the one the store holds", part.at.number));
                }
            }
            let data = folder.join("data");
            let what = "completing an upload";
            let file = own::open(&data, OpenOptions::new().write(true), what)?;
            file.set_len(len).map_err(|e| err(what, e))?;
            let meta = self.commit(key, New { file: &file, temp: &data, keep: true }, cond, wanted)?;
            let _ = fs::remove_dir_all(&folder);
            Ok(meta)
        })
    }

    pub(super) fn upload_abort(&self, up: &Uploads, key: &Key, id: &UploadId) -> Result<()> {
        self.writable()?;
        let gone = up.end(id, || match fs::remove_dir_all(folder(self, key, id)?) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(err("aborting an upload", e)),
            _ => Ok(()),
        });
        match gone {
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Uploads below a prefix; with `idle`, those to which nothing was written since.
    pub(super) fn uploads(&self, prefix: &str, idle: Option<Time>) -> Result<Vec<(String, UploadId)>> {
        let mut out = Vec::new();
        let listing = match fs::read_dir(&self.area) {
            Ok(l) => l,
            // A bucket that was never written through this store, or cannot be.
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.root.is_dir() => return Ok(out),
            Err(e) => return Err(err("listing uploads", e)),
        };
        for entry in listing.flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else { continue };
            // An upload that died before its key was written has nothing to resume; `sweep` is not for it, abort is.
            let key = own::read(&entry.path().join("key"), "listing uploads").unwrap_or_default();
            let key = String::from_utf8(key).unwrap_or_default();
            if !key.is_empty() && key.starts_with(prefix) && idle.is_none_or(|before| touched(&entry.path()) < before) {
                out.push((key, UploadId(id.to_owned())));
            }
        }
        out.sort_by(|a, b| (&a.0, &a.1.0).cmp(&(&b.0, &b.1.0)));
        Ok(out)
    }
}

/// When the folder of an upload, or a file in it, was written last. What cannot be looked at counts as written just now.
fn touched(folder: &Path) -> Time {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let times = files.chain([folder.to_owned()]).map(|path| fs::symlink_metadata(path).map(|stat| modified(&stat)));
    let never = Time { sec: i64::MAX, nsec: 0 };
    times.map(|t| t.unwrap_or(never)).max().unwrap_or(never)
}
