//! A bucket in memory, for tests: the exact semantics of the trait in the fewest lines.

use super::*;
use crate::env::{Clock, Env, Rng};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

/// What a memory store can do: everything, with S3's limits made small enough for tests.
pub const CAPS: Capability = Capability {
    write: true,
    put_if_absent: true,
    put_if_match: true,
    complete_if: true,
    part_copy: true,
    copy: true,
    multipart: true,
    min_part: 1,
    max_part: 5 << 30,
    max_parts: 10_000,
    max_put: 5 << 30,
};

/// A bucket in memory.
pub struct MemoryStore {
    name: String,
    caps: Capability,
    rng: Arc<dyn Rng>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
}

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    version: u64,
    modified: Time,
}

struct Upload {
    key: String,
    touched: Time,
    parts: HashMap<u32, (PartAt, Bytes, String)>,
}

impl Object {
    fn meta(&self) -> Meta {
        Meta { len: self.bytes.len() as u64, etag: ETag(format!("m{}", self.version)) }
    }
}

impl State {
    fn find(&self, key: &Key, only: Option<&ETag>) -> Result<&Object> {
        let Some(object) = self.objects.get(key) else { return fail(Kind::NotFound, "no such object") };
        match only {
            Some(tag) if *tag != object.meta().etag => fail(Kind::Stale, "the object was changed"),
            _ => Ok(object),
        }
    }

    fn insert(&mut self, key: &Key, bytes: Bytes, cond: &Cond, modified: Time) -> Result<Meta> {
        let there = self.objects.get(key).map(Object::meta);
        let holds = match cond {
            Cond::Any => true,
            Cond::Absent => there.is_none(),
            Cond::Match(tag) => there.is_some_and(|m| m.etag == *tag),
        };
        if !holds {
            return fail(Kind::Stale, "the condition of the write does not hold: the object was changed");
        }
        self.version += 1;
        let object = Object { bytes, version: self.version, modified };
        let meta = object.meta();
        self.objects.insert(key.to_owned(), object);
        Ok(meta)
    }

    fn part(&mut self, key: &Key, id: &UploadId, at: PartAt, bytes: Bytes, now: Time) -> Result<Part> {
        self.version += 1;
        let tag = format!("p{}", self.version);
        let len = bytes.len() as u64;
        let upload = self.upload(key, id)?;
        upload.touched = now;
        upload.parts.insert(at.number, (at, bytes, tag.clone()));
        Ok(Part { at, len, tag })
    }

    fn upload(&mut self, key: &Key, id: &UploadId) -> Result<&mut Upload> {
        match self.uploads.get_mut(&id.0) {
            Some(u) if u.key == *key => Ok(u),
            _ => fail(Kind::NotFound, "no such upload"),
        }
    }
}

/// Joins the pieces of a body; one piece is not copied.
pub(super) fn join(mut body: Vec<Bytes>) -> Bytes {
    match body.len() {
        0 => Bytes::new(),
        1 => body.swap_remove(0),
        _ => Bytes::from(body.concat()),
    }
}

impl MemoryStore {
    /// A new, empty bucket.
    pub fn new() -> MemoryStore {
        MemoryStore::with_caps(CAPS)
    }

    /// A new bucket that claims `caps` (the limits on parts are enforced, the rest is only claimed).
    pub fn with_caps(caps: Capability) -> MemoryStore {
        let Env { clock, rng } = Env::real();
        MemoryStore { name: String::new(), caps, rng, clock, state: Mutex::default() }
    }

    /// A new bucket whose objects bear the times of `clock`.
    pub fn with_clock(clock: Arc<dyn Clock>) -> MemoryStore {
        MemoryStore { clock, ..MemoryStore::new() }
    }

    /// The bucket of that name in this process; an empty name is always a new one.
    pub fn named(name: &str) -> Arc<MemoryStore> {
        static ALL: OnceLock<Mutex<HashMap<String, Arc<MemoryStore>>>> = OnceLock::new();
        if name.is_empty() {
            return Arc::new(MemoryStore::new());
        }
        let mut all = ALL.get_or_init(Mutex::default).lock();
        let make = || Arc::new(MemoryStore { name: name.to_owned(), ..MemoryStore::new() });
        all.entry(name.to_owned()).or_insert_with(make).clone()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore::new()
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self) -> String {
        format!("memory:{}", self.name)
    }

    fn caps(&self) -> Capability {
        self.caps
    }

    async fn get(&self, key: &Key, span: Span, only: Option<&ETag>) -> Result<Got> {
        let state = self.state.lock();
        let object = state.find(key, only)?;
        let meta = object.meta();
        let r = resolve(&span, meta.len)?;
        Ok(Got { bytes: object.bytes.slice(r.start as usize..r.end as usize), start: r.start, meta })
    }

    async fn head(&self, key: &Key) -> Result<Meta> {
        self.state.lock().find(key, None).map(Object::meta)
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>, cond: Cond) -> Result<Meta> {
        check_key(key)?;
        self.state.lock().insert(key, join(body), &cond, self.clock.now())
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.state.lock().objects.remove(key);
        Ok(())
    }

    async fn delete_if(&self, key: &Key, only: &ETag) -> Result<()> {
        let mut state = self.state.lock();
        match state.find(key, Some(only)) {
            Ok(_) => state.objects.remove(key),
            Err(e) if e.kind() == Kind::NotFound => None,
            Err(e) => return Err(e),
        };
        Ok(())
    }

    async fn copy(&self, from: &Key, only: &ETag, to: &Key, cond: Cond) -> Result<Meta> {
        check_key(to)?;
        let mut state = self.state.lock();
        let bytes = state.find(from, Some(only))?.bytes.clone();
        state.insert(to, bytes, &cond, self.clock.now())
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page> {
        use std::ops::Bound;
        let state = self.state.lock();
        let from = match after {
            Some(a) if a >= prefix => Bound::Excluded(a),
            _ => Bound::Included(prefix),
        };
        let mut rest = state.objects.range::<str, _>((from, Bound::Unbounded)).take_while(|(k, _)| k.starts_with(prefix));
        let listed = |(k, o): (&String, &Object)| Listed { key: k.clone(), meta: o.meta(), modified: Some(o.modified) };
        let items: Vec<Listed> = rest.by_ref().take(limit.max(1)).map(listed).collect();
        let more = rest.next().is_some();
        let next = items.last().filter(|_| more).map(|l| l.key.clone());
        Ok(Page { items, next })
    }

    async fn upload_start(&self, key: &Key) -> Result<UploadId> {
        check_key(key)?;
        let mut id = [0; 16];
        self.rng.fill(&mut id);
        let id = data_encoding::HEXLOWER.encode(&id);
        let upload = Upload { key: key.to_owned(), touched: self.clock.now(), parts: HashMap::new() };
        self.state.lock().uploads.insert(id.clone(), upload);
        Ok(UploadId(id))
    }

    async fn upload_part(&self, key: &Key, id: &UploadId, at: PartAt, body: Vec<Bytes>) -> Result<Part> {
        check_part_number(at.number, self.caps.max_parts)?;
        self.state.lock().part(key, id, at, join(body), self.clock.now())
    }

    async fn upload_part_copy(
        &self,
        key: &Key,
        id: &UploadId,
        at: PartAt,
        from: &Key,
        only: &ETag,
        range: Range<u64>,
    ) -> Result<Part> {
        check_part_number(at.number, self.caps.max_parts)?;
        let mut state = self.state.lock();
        let source = &state.find(from, Some(only))?.bytes;
        check_source(&range, source.len() as u64)?;
        let bytes = source.slice(range.start as usize..range.end as usize);
        state.part(key, id, at, bytes, self.clock.now())
    }

    async fn upload_complete(&self, key: &Key, id: &UploadId, parts: &[Part], cond: Cond) -> Result<Meta> {
        check_parts(parts)?;
        let mut state = self.state.lock();
        let upload = state.upload(key, id)?;
        let mut pieces = Vec::with_capacity(parts.len());
        for (i, p) in parts.iter().enumerate() {
            match upload.parts.get(&p.at.number) {
                Some((at, bytes, tag)) if *at == p.at && *tag == p.tag && bytes.len() as u64 == p.len => {
                    pieces.push(bytes.clone())
                }
                _ => return fail(Kind::Invalid, format!("part {} is not the one the store holds", p.at.number)),
            }
            if i + 1 < parts.len() && p.len < self.caps.min_part {
                return fail(Kind::Invalid, format!("part {} is smaller than {} bytes", p.at.number, self.caps.min_part));
            }
        }
        let meta = state.insert(key, join(pieces), &cond, self.clock.now())?;
        state.uploads.remove(&id.0);
        Ok(meta)
    }

    async fn upload_abort(&self, key: &Key, id: &UploadId) -> Result<()> {
        let mut state = self.state.lock();
        if state.upload(key, id).is_ok() {
            state.uploads.remove(&id.0);
        }
        Ok(())
    }

    async fn uploads(&self, prefix: &str) -> Result<Vec<(String, UploadId)>> {
        let state = self.state.lock();
        let under = state.uploads.iter().filter(|(_, u)| u.key.starts_with(prefix));
        Ok(under.map(|(id, u)| (u.key.clone(), UploadId(id.clone()))).collect())
    }

    async fn idle_uploads(&self, prefix: &str, before: Time) -> Result<Vec<(String, UploadId)>> {
        let state = self.state.lock();
        let idle = state.uploads.iter().filter(|(_, u)| u.key.starts_with(prefix) && u.touched < before);
        Ok(idle.map(|(id, u)| (u.key.clone(), UploadId(id.clone()))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_same_name_is_the_same_bucket() {
        let (a, b) = (MemoryStore::named("same"), MemoryStore::named("same"));
        a.put("k", vec![Bytes::from_static(b"x")], Cond::Absent).await.unwrap();
        assert_eq!(b.head("k").await.unwrap().len, 1);
        assert_eq!(MemoryStore::named("other").head("k").await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(MemoryStore::named("").head("k").await.unwrap_err().kind(), Kind::NotFound);
    }
}
