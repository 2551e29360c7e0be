//! Decorators around a store: retry, time limits, bandwidth limits, counting, circuit state, faults.
//!
//! A layer implements [`Around`]: one function through which every request passes. [`Wrap`] turns it into a [`Store`].

mod caps;
mod faulty;
mod health;
mod limit;
mod meter;
mod retry;
mod timeout;

pub use caps::Probed;
pub use faulty::{Fault, Faulty};
pub use health::{Gate, Health, Watch};
pub use limit::Limit;
pub use meter::{Meter, Snapshot, VerbCount};
pub use retry::Retry;
pub use timeout::Timeout;

use super::*;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum Verb {
    Get,
    Head,
    Put,
    Delete,
    Copy,
    List,
    UploadStart,
    UploadPart,
    UploadPartCopy,
    UploadComplete,
    UploadAbort,
    Uploads,
}

impl Verb {
    /// All of them, in the order of their numbers.
    pub const ALL: [Verb; 12] = [
        Verb::Get,
        Verb::Head,
        Verb::Put,
        Verb::Delete,
        Verb::Copy,
        Verb::List,
        Verb::UploadStart,
        Verb::UploadPart,
        Verb::UploadPartCopy,
        Verb::UploadComplete,
        Verb::UploadAbort,
        Verb::Uploads,
    ];

    /// A short name for people and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::Head => "head",
            Verb::Put => "put",
            Verb::Delete => "delete",
            Verb::Copy => "copy",
            Verb::List => "list",
            Verb::UploadStart => "upload_start",
            Verb::UploadPart => "upload_part",
            Verb::UploadPartCopy => "upload_part_copy",
            Verb::UploadComplete => "upload_complete",
            Verb::UploadAbort => "upload_abort",
            Verb::Uploads => "uploads",
        }
    }

    /// Whether the request may change the bucket.
    pub fn writes(self) -> bool {
        !matches!(self, Verb::Get | Verb::Head | Verb::List | Verb::Uploads)
    }
}

/// A request, as a layer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Op<'a> {
    /// What it does.
    pub verb: Verb,
    /// The key, or the prefix of a listing.
    pub key: &'a str,
    /// Bytes sent.
    pub up: u64,
    /// Bytes expected back at most, as far as the request tells.
    pub down: u64,
    /// The span of a get.
    pub span: Option<&'a Span>,
    /// The pieces of a put.
    pub body: Option<&'a [Bytes]>,
    /// The condition of a put, copy or completion.
    pub cond: Option<&'a Cond>,
}

/// What comes back from a request.
pub trait Reply: Send + 'static {
    /// Bytes of content received.
    fn down(&self) -> u64 {
        0
    }
    /// The bytes of a get, for layers that tamper with them.
    fn as_got(&mut self) -> Option<&mut Got> {
        None
    }
    /// Makes the reply of a write from an object that proved to be its outcome; `None` for other requests.
    fn from_meta(_meta: &Meta) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }
}

impl Reply for Got {
    fn down(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn as_got(&mut self) -> Option<&mut Got> {
        Some(self)
    }
}
impl Reply for Meta {
    fn from_meta(meta: &Meta) -> Option<Meta> {
        Some(meta.clone())
    }
}
impl Reply for () {}
impl Reply for Page {}
impl Reply for UploadId {}
impl Reply for Part {}
impl Reply for Vec<(String, UploadId)> {}

/// One attempt of a request, under way.
pub type Attempt<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;
/// Starts an attempt; may be called again for another.
pub type Call<'a, T> = Box<dyn Fn() -> Attempt<'a, T> + Send + Sync + 'a>;

/// A layer: does something before, after or instead of a request.
pub trait Around: Send + Sync + 'static {
    /// Passes on, repeats, delays or refuses a request. `inner` is the store below, for requests of the layer's own.
    fn around<'a, T: Reply>(
        &'a self,
        inner: &'a dyn Store,
        op: Op<'a>,
        call: Call<'a, T>,
    ) -> impl Future<Output = Result<T>> + Send + 'a;

    /// What the store can do, seen through the layer.
    fn caps(&self, inner: Capability) -> Capability {
        inner
    }
}

/// A store with a layer around it.
pub struct Wrap<A> {
    inner: Arc<dyn Store>,
    layer: A,
}

impl<A: Around> Wrap<A> {
    /// Puts `layer` around `inner`.
    pub fn new(inner: Arc<dyn Store>, layer: A) -> Wrap<A> {
        Wrap { inner, layer }
    }

    /// The layer.
    pub fn layer(&self) -> &A {
        &self.layer
    }
}

/// Lets a handle that others share be the layer.
impl<A: Around> Around for Arc<A> {
    fn around<'a, T: Reply>(
        &'a self,
        inner: &'a dyn Store,
        op: Op<'a>,
        call: Call<'a, T>,
    ) -> impl Future<Output = Result<T>> + Send + 'a {
        (**self).around(inner, op, call)
    }

    fn caps(&self, inner: Capability) -> Capability {
        (**self).caps(inner)
    }
}

impl<A: Around> Wrap<A> {
    async fn pass<'a, T: Reply>(&'a self, op: Op<'a>, call: impl Fn() -> Attempt<'a, T> + Send + Sync + 'a) -> Result<T> {
        self.layer.around(&*self.inner, op, Box::new(call)).await
    }
}

/// A request that moves no content.
fn plain(verb: Verb, key: &str) -> Op<'_> {
    Op { verb, key, up: 0, down: 0, span: None, body: None, cond: None }
}

/// Bytes that a span asks for at most; 0 when only the store knows.
fn expected(span: &Span) -> u64 {
    match span {
        Span::Whole { .. } => 0,
        Span::Range(r) => r.end.saturating_sub(r.start),
        Span::Last(n) => *n,
    }
}

#[async_trait]
impl<A: Around> Store for Wrap<A> {
    fn url(&self) -> String {
        self.inner.url()
    }
    fn identity(&self) -> String {
        self.inner.identity()
    }

    fn caps(&self) -> Capability {
        self.layer.caps(self.inner.caps())
    }

    async fn get(&self, key: &Key, span: Span, only: Option<&ETag>) -> Result<Got> {
        let op = Op { down: expected(&span), span: Some(&span), ..plain(Verb::Get, key) };
        self.pass(op, || self.inner.get(key, span.clone(), only)).await
    }

    async fn head(&self, key: &Key) -> Result<Meta> {
        self.pass(plain(Verb::Head, key), || self.inner.head(key)).await
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>, cond: Cond) -> Result<Meta> {
        let op = Op { up: body_len(&body), body: Some(&body), cond: Some(&cond), ..plain(Verb::Put, key) };
        self.pass(op, || self.inner.put(key, body.clone(), cond.clone())).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.pass(plain(Verb::Delete, key), || self.inner.delete(key)).await
    }

    async fn delete_if(&self, key: &Key, only: &ETag) -> Result<()> {
        self.pass(plain(Verb::Delete, key), || self.inner.delete_if(key, only)).await
    }

    async fn copy(&self, from: &Key, only: &ETag, to: &Key, cond: Cond) -> Result<Meta> {
        let op = Op { cond: Some(&cond), ..plain(Verb::Copy, to) };
        self.pass(op, || self.inner.copy(from, only, to, cond.clone())).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page> {
        self.pass(plain(Verb::List, prefix), || self.inner.list(prefix, after, limit)).await
    }

    async fn upload_start(&self, key: &Key) -> Result<UploadId> {
        self.pass(plain(Verb::UploadStart, key), || self.inner.upload_start(key)).await
    }

    async fn upload_part(&self, key: &Key, id: &UploadId, at: PartAt, body: Vec<Bytes>) -> Result<Part> {
        let op = Op { up: body_len(&body), body: Some(&body), ..plain(Verb::UploadPart, key) };
        self.pass(op, || self.inner.upload_part(key, id, at, body.clone())).await
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
        let call = || self.inner.upload_part_copy(key, id, at, from, only, range.clone());
        self.pass(plain(Verb::UploadPartCopy, key), call).await
    }

    async fn upload_complete(&self, key: &Key, id: &UploadId, parts: &[Part], cond: Cond) -> Result<Meta> {
        let op = Op { cond: Some(&cond), ..plain(Verb::UploadComplete, key) };
        self.pass(op, || self.inner.upload_complete(key, id, parts, cond.clone())).await
    }

    async fn upload_abort(&self, key: &Key, id: &UploadId) -> Result<()> {
        self.pass(plain(Verb::UploadAbort, key), || self.inner.upload_abort(key, id)).await
    }

    async fn uploads(&self, prefix: &str) -> Result<Vec<(String, UploadId)>> {
        self.pass(plain(Verb::Uploads, prefix), || self.inner.uploads(prefix)).await
    }

    async fn idle_uploads(&self, prefix: &str, before: Time) -> Result<Vec<(String, UploadId)>> {
        self.pass(plain(Verb::Uploads, prefix), || self.inner.idle_uploads(prefix, before)).await
    }
}
