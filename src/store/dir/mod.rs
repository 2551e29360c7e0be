//! A bucket in a directory: on a local disk, a network share or a removable drive.
//!
//! An object is a file whose path is its escaped key. A write goes to a temporary file in the reserved area `.%tmp` of the
//! same filesystem, is made durable, and is renamed into its place under a lock that other processes take as well: readers see
//! the old object or the new one, and conditions hold between processes. The version tag is the inode's number, the length and
//! a modification time that the store sets itself and never gives twice; it survives a restart, but not a copy of the bucket
//! to another disk. Files are never changed in place. Symbolic links are never followed as objects.

mod key;
mod list;
mod own;
mod place;
mod upload;

use super::*;
use crate::env::Env;
use crate::error::Error;
use place::{Place, Wanted};
use std::path::Path;
use std::sync::Arc;
use upload::{Source, Uploads};

/// A bucket in a directory.
pub struct DirStore {
    inner: Arc<Inner>,
}

struct Inner {
    place: Place,
    uploads: Uploads,
}

/// What a directory can do.
const CAPS: Capability = Capability {
    write: true,
    put_if_absent: true,
    put_if_match: true,
    complete_if: true,
    part_copy: true,
    copy: true,
    multipart: true,
    min_part: 1,
    max_part: 1 << 40,
    max_parts: 1 << 20,
    max_put: 1 << 40,
};

impl DirStore {
    /// Opens the bucket in directory `root`. With `create`, makes the directory when it is missing. Without `durable`, nothing
    /// is forced to disk: a crash of the machine may lose acknowledged writes (for tests).
    pub async fn open(root: &Path, create: bool, durable: bool, env: Env) -> Result<DirStore> {
        let root = root.to_owned();
        blocking(move || {
            let place = Place::open(&root, create, durable, env)?;
            Ok(DirStore { inner: Arc::new(Inner { place, uploads: Uploads::default() }) })
        })
        .await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = self.inner.clone();
        blocking(move || inner.place.settle(work(&inner))).await
    }

    async fn part(&self, key: &Key, id: &UploadId, at: PartAt, from: Source) -> Result<Part> {
        check_part_number(at.number, CAPS.max_parts)?;
        let (key, id, attempt) = (key.to_owned(), id.clone(), self.inner.uploads.attempt());
        self.run(move |i| i.place.upload_part(&i.uploads, attempt, &key, &id, at, &from)).await
    }
}

/// Runs blocking work on tokio's pool for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::with_source(Kind::Bug, "a thread of the directory store ended early", e)),
    }
}

#[async_trait]
impl Store for DirStore {
    fn url(&self) -> String {
        format!("dir://{}", self.inner.place.root.display())
    }

    fn caps(&self) -> Capability {
        match self.inner.place.may_write() {
            true => CAPS,
            false => CAPS.read_only(),
        }
    }

    async fn get(&self, key: &Key, span: Span, only: Option<&ETag>) -> Result<Got> {
        check_key(key)?;
        let (key, only) = (key.to_owned(), only.cloned());
        self.run(move |i| i.place.get(&key, &span, only.as_ref())).await
    }

    async fn head(&self, key: &Key) -> Result<Meta> {
        check_key(key)?;
        let key = key.to_owned();
        self.run(move |i| i.place.stat(&key)).await
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>, cond: Cond) -> Result<Meta> {
        check_key(key)?;
        let key = key.to_owned();
        let (_waiting, wanted) = Wanted::new();
        self.run(move |i| i.place.put(&key, &body, &cond, &wanted)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        check_key(key)?;
        let key = key.to_owned();
        match self.run(move |i| i.place.delete(&key, None)).await {
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            other => other,
        }
    }

    async fn delete_if(&self, key: &Key, only: &ETag) -> Result<()> {
        check_key(key)?;
        let (key, only) = (key.to_owned(), only.clone());
        match self.run(move |i| i.place.delete(&key, Some(&only))).await {
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            other => other,
        }
    }

    async fn copy(&self, from: &Key, only: &ETag, to: &Key, cond: Cond) -> Result<Meta> {
        check_key(from)?;
        check_key(to)?;
        let (from, only, to) = (from.to_owned(), only.clone(), to.to_owned());
        let (_waiting, wanted) = Wanted::new();
        self.run(move |i| i.place.copy(&from, &only, &to, &cond, &wanted)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.run(move |i| i.place.list(&prefix, after.as_deref(), limit)).await
    }

    async fn upload_start(&self, key: &Key) -> Result<UploadId> {
        check_key(key)?;
        let key = key.to_owned();
        self.run(move |i| i.place.upload_start(&key)).await
    }

    async fn upload_part(&self, key: &Key, id: &UploadId, at: PartAt, body: Vec<Bytes>) -> Result<Part> {
        self.part(key, id, at, Source::Bytes(body)).await
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
        check_key(from)?;
        self.part(key, id, at, Source::Object(from.to_owned(), only.clone(), range)).await
    }

    async fn upload_complete(&self, key: &Key, id: &UploadId, parts: &[Part], cond: Cond) -> Result<Meta> {
        let (key, id, parts) = (key.to_owned(), id.clone(), parts.to_vec());
        let (_waiting, wanted) = Wanted::new();
        self.run(move |i| i.place.upload_complete(&i.uploads, &key, &id, &parts, &cond, &wanted)).await
    }

    async fn upload_abort(&self, key: &Key, id: &UploadId) -> Result<()> {
        let (key, id) = (key.to_owned(), id.clone());
        self.run(move |i| i.place.upload_abort(&i.uploads, &key, &id)).await
    }

    async fn uploads(&self, prefix: &str) -> Result<Vec<(String, UploadId)>> {
        let prefix = prefix.to_owned();
        self.run(move |i| i.place.uploads(&prefix, None)).await
    }

    async fn idle_uploads(&self, prefix: &str, before: Time) -> Result<Vec<(String, UploadId)>> {
        let prefix = prefix.to_owned();
        self.run(move |i| i.place.uploads(&prefix, Some(before))).await
    }
}
