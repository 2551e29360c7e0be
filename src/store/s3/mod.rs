//! Amazon S3 and servers that speak its protocol.
//!
//! Credentials come from the SDK's standard chain (environment, profile, SSO, web identity, container, instance metadata) and
//! are refreshed by it. The SDK's own retries are off: `layers::Retry` sees every attempt. Whether a server honours
//! conditions is not assumed: `store::probe` finds out. Keys are the volume's prefix and the key; tags are kept without their
//! quotes. Sources: the Amazon S3 API Reference, 2006-03-01.
//!
//! Every body goes with a CRC-32 in a signed header, which the server checks. Its SHA-256 is in the signature as well where
//! somebody on the way could change it, that is without TLS: behind TLS, and on the loopback interface, the hash would protect
//! from nobody, and cost as much as the encryption.

mod connect;
mod fault;
mod limit;
#[cfg(test)]
mod wire_tests;

use super::memory::join;
use super::*;
use crate::error::Error;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, ServerSideEncryption, StorageClass};
use bytes::BytesMut;
use fault::{Failure, fault};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::future::Future;
use std::time::Duration;

/// What S3 documents. The probe replaces what a server claims by what it does.
const CAPS: Capability = Capability {
    write: true,
    put_if_absent: true,
    put_if_match: true,
    complete_if: true,
    part_copy: true,
    copy: true,
    multipart: true,
    min_part: 5 << 20,
    max_part: 5 << 30,
    max_parts: 10_000,
    max_put: 5 << 30,
};
/// Pages of a listing of uploads that are read at most, 1 000 uploads each.
const UPLOAD_PAGES: usize = 100;
/// Pages of an upload's parts that are looked at; it may have ten thousand.
const PART_PAGES: usize = 16;
/// Empty pages of a listing that are followed before giving up.
const EMPTY_PAGES: usize = 100;
/// A server that ignores ranges sends everything; so much more than was asked for is taken, and nothing beyond.
const RANGELESS: u64 = 1 << 20;
/// Begins a `Page::next` that is a mark of the server's. No key begins so.
const MARK: char = '\u{1}';
/// In `x-amz-copy-source` everything but these is percent-encoded.
const SOURCE: AsciiSet = NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A bucket, or a part of one.
pub struct S3Store {
    client: Client,
    bucket: String,
    prefix: String,
    storage_class: Option<StorageClass>,
    kms_key: Option<String>,
    first_byte: Duration,
    /// Where the server is, as `https://host:port`; `None` for Amazon's own, where a bucket's name says all.
    server: Option<String>,
    /// Bodies go without a hash of their own in the signature: nobody on the way to the server can change them.
    unhashed: bool,
}

/// A tag as this module keeps it: without quotes.
fn tag(raw: Option<&str>) -> Result<ETag> {
    match raw.map(|t| t.trim_start_matches("W/").trim_matches('"')) {
        Some(t) if !t.is_empty() => Ok(ETag(t.to_owned())),
        _ => fail(Kind::Unsupported, "the server gives no ETag, without which versions cannot be told apart"),
    }
}

fn quoted(tag: &ETag) -> String {
    format!("\"{}\"", tag.0)
}

/// The headers If-None-Match and If-Match of a condition.
fn headers(cond: &Cond) -> (Option<String>, Option<String>) {
    match cond {
        Cond::Any => (None, None),
        Cond::Absent => (Some("*".into()), None),
        Cond::Match(tag) => (None, Some(quoted(tag))),
    }
}

fn length(n: Option<i64>) -> Result<u64> {
    n.and_then(|n| u64::try_from(n).ok()).ok_or_else(|| Error::new(Kind::Unsupported, "the server gives no length of an object"))
}

/// First byte and total length out of `bytes 0-9/100`.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

/// A write that expects a version and finds no object at all: some servers say 404, others 412.
fn absent_is_stale(cond: &Cond, e: Error) -> Error {
    match (cond, e.kind()) {
        (Cond::Match(_), Kind::NotFound) => Error::with_source(Kind::Stale, "the object is not there any more", e),
        _ => e,
    }
}

impl S3Store {
    fn full(&self, key: &Key) -> Result<String> {
        let full = format!("{}{key}", self.prefix);
        match full.len() <= KEY_MAX {
            true => Ok(full),
            false => fail(
                Kind::NameTooLong,
                format!("an object key has {} bytes with the prefix of the store; S3 takes {KEY_MAX}", full.len()),
            ),
        }
    }

    fn source(&self, key: &Key) -> String {
        utf8_percent_encode(&format!("{}/{}{key}", self.bucket, self.prefix), &SOURCE).to_string()
    }

    fn sse(&self) -> Option<ServerSideEncryption> {
        self.kms_key.as_ref().map(|_| ServerSideEncryption::AwsKms)
    }

    /// Sends a request without a body of its own: its answer must begin within the read time-out.
    async fn ask<T, E: Failure>(&self, what: &str, send: impl Future<Output = Result<T, E>>) -> Result<T> {
        match tokio::time::timeout(self.first_byte, send).await {
            Ok(answer) => answer.map_err(|e| fault(what, e)),
            Err(_) => fail(Kind::Unavailable, format!("{what}: no answer within {} seconds", self.first_byte.as_secs())),
        }
    }

    async fn collect(&self, mut body: ByteStream, len: u64) -> Result<Bytes> {
        let broken = |e| Error::with_source(Kind::Unavailable, "reading an object: the answer broke off", e);
        let Some(first) = body.next().await.transpose().map_err(broken)? else {
            return Ok(Bytes::new());
        };
        if first.len() as u64 == len {
            // The usual case for small objects: nothing is copied. The stream is drained so that its checksum is verified.
            return match body.next().await.transpose().map_err(broken)? {
                None => Ok(first),
                Some(_) => fail(Kind::Unavailable, "reading an object: the answer is longer than it said"),
            };
        }
        let mut bytes = BytesMut::with_capacity(len as usize);
        bytes.extend_from_slice(&first);
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece.map_err(broken)?);
            if bytes.len() as u64 > len {
                return fail(Kind::Unavailable, "reading an object: the answer is longer than it said");
            }
        }
        Ok(bytes.freeze())
    }

    /// An empty answer for a span that holds no byte of the object.
    async fn nothing(&self, key: &Key, at: u64, only: Option<&ETag>) -> Result<Got> {
        let meta = self.head(key).await?;
        match only {
            Some(tag) if *tag != meta.etag => fail(Kind::Stale, "the object was changed"),
            _ => Ok(Got { bytes: Bytes::new(), start: at.min(meta.len), meta }),
        }
    }

    async fn read(&self, key: &Key, span: &Span, only: Option<&ETag>) -> Result<Got> {
        let range = match span {
            Span::Whole { .. } => None,
            Span::Range(r) => Some(format!("bytes={}-{}", r.start, r.end - 1)),
            Span::Last(n) => Some(format!("bytes=-{n}")),
        };
        let get = self.client.get_object().bucket(&self.bucket).key(self.full(key)?);
        let got = self.ask("reading an object", get.set_range(range).set_if_match(only.map(quoted)).send()).await?;
        let len = length(got.content_length)?;
        let etag = tag(got.e_tag())?;
        // Also for servers that ignore If-Match on reads: two versions must never be mixed.
        if only.is_some_and(|only| *only != etag) {
            return fail(Kind::Stale, "the object was changed");
        }
        let Some((start, total)) = got.content_range().and_then(content_range) else {
            let r = resolve(span, len)?;
            if len - (r.end - r.start) > RANGELESS {
                return fail(Kind::Unsupported, "the server ignores ranges: large objects cannot be read from it");
            }
            let whole = self.collect(got.body, len).await?;
            short(&whole, len)?;
            return Ok(Got { bytes: whole.slice(r.start as usize..r.end as usize), start: r.start, meta: Meta { len, etag } });
        };
        let r = resolve(span, total)?;
        if start != r.start || len != r.end - r.start {
            return fail(Kind::Unavailable, "reading an object: the server sent another range than was asked for");
        }
        let bytes = self.collect(got.body, len).await?;
        short(&bytes, len)?;
        Ok(Got { bytes, start, meta: Meta { len: total, etag } })
    }
}

fn short(bytes: &Bytes, len: u64) -> Result<()> {
    match bytes.len() as u64 == len {
        true => Ok(()),
        false => fail(Kind::Unavailable, "reading an object: the answer broke off"),
    }
}

#[async_trait]
impl Store for S3Store {
    fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }

    fn identity(&self) -> String {
        match &self.server {
            Some(server) => format!("s3+{server}/{}/{}", self.bucket, self.prefix),
            None => self.url(),
        }
    }

    fn caps(&self) -> Capability {
        CAPS
    }

    async fn get(&self, key: &Key, span: Span, only: Option<&ETag>) -> Result<Got> {
        check_key(key)?;
        match &span {
            Span::Range(r) if r.start >= r.end => return self.nothing(key, r.start, only).await,
            Span::Last(0) => return self.nothing(key, u64::MAX, only).await,
            _ => {}
        }
        match self.read(key, &span, only).await {
            // 416: the object ends before the span begins.
            Err(e) if e.kind() == Kind::Range => {
                let at = if let Span::Range(r) = &span { r.start } else { 0 };
                let got = self.nothing(key, at, only).await?;
                match got.start < got.meta.len {
                    true => fail(Kind::Unavailable, "the object was changed while it was read"),
                    false => Ok(got),
                }
            }
            other => other,
        }
    }

    async fn head(&self, key: &Key) -> Result<Meta> {
        check_key(key)?;
        let head = self.client.head_object().bucket(&self.bucket).key(self.full(key)?);
        let head = self.ask("asking for an object", head.send()).await?;
        Ok(Meta { len: length(head.content_length)?, etag: tag(head.e_tag())? })
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>, cond: Cond) -> Result<Meta> {
        check_key(key)?;
        let len = body_len(&body);
        let (none, this) = headers(&cond);
        let put = self.client.put_object().bucket(&self.bucket).key(self.full(key)?);
        let put = put.set_if_none_match(none).set_if_match(this).set_storage_class(self.storage_class.clone());
        let put = put.set_server_side_encryption(self.sse()).set_ssekms_key_id(self.kms_key.clone());
        let put = put.content_length(len as i64).body(join(body).into()).customize();
        let put = if self.unhashed { put.disable_payload_signing() } else { put };
        let done = put.send().await;
        let done = done.map_err(|e| absent_is_stale(&cond, fault("writing an object", e)))?;
        Ok(Meta { len, etag: tag(done.e_tag())? })
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        check_key(key)?;
        let delete = self.client.delete_object().bucket(&self.bucket).key(self.full(key)?);
        match self.ask("deleting an object", delete.send()).await {
            Err(e) if e.kind() != Kind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    async fn delete_if(&self, key: &Key, only: &ETag) -> Result<()> {
        // The look comes first also where the server has conditional deletes: some ignore the condition.
        match self.head(key).await {
            Ok(meta) if meta.etag != *only => return fail(Kind::Stale, "the object was changed"),
            Err(e) if e.kind() == Kind::NotFound => return Ok(()),
            other => other?,
        };
        let delete = self.client.delete_object().bucket(&self.bucket).key(self.full(key)?).if_match(quoted(only));
        match self.ask("deleting an object", delete.send()).await {
            Err(e) if e.kind() == Kind::Unsupported => self.delete(key).await,
            Err(e) if e.kind() != Kind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    async fn copy(&self, from: &Key, only: &ETag, to: &Key, cond: Cond) -> Result<Meta> {
        check_key(from)?;
        check_key(to)?;
        let (none, this) = headers(&cond);
        let copy = self.client.copy_object().bucket(&self.bucket).key(self.full(to)?).copy_source(self.source(from));
        let copy = copy.copy_source_if_match(quoted(only)).set_if_none_match(none).set_if_match(this);
        let copy = copy.set_storage_class(self.storage_class.clone());
        let copy = copy.set_server_side_encryption(self.sse()).set_ssekms_key_id(self.kms_key.clone());
        let done = copy.send().await.map_err(|e| fault("copying an object", e))?;
        let etag = tag(done.copy_object_result().and_then(|r| r.e_tag()))?;
        // The answer has no length. The object is asked for, and must be the one that was just made.
        let meta = self.head(to).await?;
        if meta.etag != etag {
            return fail(Kind::Stale, "the copy was replaced by another writer");
        }
        Ok(meta)
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page> {
        // Paging goes by the server's own mark: not every server lists in the order of keys, and going on behind the last key
        // would then leave objects out.
        let (mut mark, after) = match after.and_then(|a| a.strip_prefix(MARK)) {
            Some(mark) => (Some(mark.to_owned()), None),
            None => (None, after),
        };
        for _ in 0..EMPTY_PAGES {
            let list = self.client.list_objects_v2().bucket(&self.bucket).prefix(self.full(prefix)?);
            let list = list.max_keys(limit.clamp(1, 1000) as i32).set_continuation_token(mark.clone());
            let list = list.set_start_after(after.filter(|_| mark.is_none()).map(|a| self.full(a)).transpose()?);
            let page = self.ask("listing objects", list.send()).await?;
            let mut items = Vec::with_capacity(page.contents().len());
            for object in page.contents() {
                // A key outside the prefix or behind us would be the server's mistake: it must not become a name.
                let key = object.key().and_then(|k| k.strip_prefix(&self.prefix));
                let Some(key) = key.filter(|k| k.starts_with(prefix) && after.is_none_or(|a| *k > a)) else { continue };
                // "Directories" that consoles make, and the prefix itself.
                if key.is_empty() {
                    continue;
                }
                let meta = Meta { len: length(object.size())?, etag: tag(object.e_tag())? };
                let modified = object.last_modified().map(time);
                items.push(Listed { key: key.to_owned(), meta, modified });
            }
            items.sort_by(|a, b| a.key.cmp(&b.key));
            mark = page.next_continuation_token().filter(|_| page.is_truncated() == Some(true)).map(str::to_owned);
            if !items.is_empty() || mark.is_none() {
                return Ok(Page { items, next: mark.map(|m| format!("{MARK}{m}")) });
            }
        }
        fail(Kind::Unsupported, "the server lists page after page without an object")
    }

    async fn upload_start(&self, key: &Key) -> Result<UploadId> {
        check_key(key)?;
        let start = self.client.create_multipart_upload().bucket(&self.bucket).key(self.full(key)?);
        let start = start.set_storage_class(self.storage_class.clone());
        let start = start.set_server_side_encryption(self.sse()).set_ssekms_key_id(self.kms_key.clone());
        let done = self.ask(fault::STARTING, start.send()).await?;
        match done.upload_id() {
            Some(id) if !id.is_empty() => Ok(UploadId(id.to_owned())),
            _ => fail(Kind::Unsupported, "the server gives no upload id"),
        }
    }

    async fn upload_part(&self, key: &Key, id: &UploadId, at: PartAt, body: Vec<Bytes>) -> Result<Part> {
        check_part_number(at.number, CAPS.max_parts)?;
        let len = body_len(&body);
        let part = self.client.upload_part().bucket(&self.bucket).key(self.full(key)?).upload_id(&id.0);
        let part = part.part_number(at.number as i32).content_length(len as i64).body(join(body).into()).customize();
        let part = if self.unhashed { part.disable_payload_signing() } else { part };
        let done = part.send().await.map_err(|e| fault("uploading a part", e))?;
        Ok(Part { at, len, tag: tag(done.e_tag())?.0 })
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
        check_part_number(at.number, CAPS.max_parts)?;
        // Where the source ends the server knows.
        check_source(&range, u64::MAX)?;
        let part = self.client.upload_part_copy().bucket(&self.bucket).key(self.full(key)?).upload_id(&id.0);
        let part = part.part_number(at.number as i32).copy_source(self.source(from)).copy_source_if_match(quoted(only));
        let part = part.copy_source_range(format!("bytes={}-{}", range.start, range.end - 1));
        let done = part.send().await.map_err(|e| {
            let e = fault("copying a part", e);
            // 416: the source is shorter.
            if e.kind() == Kind::Range { Error::with_source(Kind::Invalid, "beyond the end of the source", e) } else { e }
        })?;
        let tag = tag(done.copy_part_result().and_then(|r| r.e_tag()))?.0;
        Ok(Part { at, len: range.end - range.start, tag })
    }

    async fn upload_complete(&self, key: &Key, id: &UploadId, parts: &[Part], cond: Cond) -> Result<Meta> {
        let len = check_parts(parts)?;
        let list = parts
            .iter()
            .map(|p| CompletedPart::builder().part_number(p.at.number as i32).e_tag(quoted(&ETag(p.tag.clone()))).build());
        let list = CompletedMultipartUpload::builder().set_parts(Some(list.collect())).build();
        let (none, this) = headers(&cond);
        let end = self.client.complete_multipart_upload().bucket(&self.bucket).key(self.full(key)?).upload_id(&id.0);
        let end = end.set_if_none_match(none).set_if_match(this).multipart_upload(list);
        let done = end.send().await.map_err(|e| {
            let unknown = fault::code(&e) == Some("NoSuchUpload");
            let e = fault("completing an upload", e);
            if unknown { e } else { absent_is_stale(&cond, e) }
        })?;
        Ok(Meta { len, etag: tag(done.e_tag())? })
    }

    async fn upload_abort(&self, key: &Key, id: &UploadId) -> Result<()> {
        let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(self.full(key)?).upload_id(&id.0);
        match self.ask("aborting an upload", abort.send()).await {
            Err(e) if e.kind() != Kind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    async fn uploads(&self, prefix: &str) -> Result<Vec<(String, UploadId)>> {
        Ok(self.begun(prefix).await?.into_iter().map(|(key, id, _)| (key, id)).collect())
    }

    async fn idle_uploads(&self, prefix: &str, before: Time) -> Result<Vec<(String, UploadId)>> {
        let mut idle = Vec::new();
        for (key, id, begun) in self.begun(prefix).await? {
            if begun.is_some_and(|t| t < before) && !self.got_part_since(&key, &id, before).await? {
                idle.push((key, id));
            }
        }
        Ok(idle)
    }
}

/// A time as the server gives it.
fn time(at: &aws_smithy_types::DateTime) -> Time {
    Time { sec: at.secs(), nsec: at.subsec_nanos() }
}

impl S3Store {
    /// Uploads under way, and when they were begun.
    async fn begun(&self, prefix: &str) -> Result<Vec<(String, UploadId, Option<Time>)>> {
        let mut out = Vec::new();
        let (mut at_key, mut at_id) = (None, None);
        for _ in 0..UPLOAD_PAGES {
            let list = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(self.full(prefix)?);
            let list = list.set_key_marker(at_key.take()).set_upload_id_marker(at_id.take());
            let page = self.ask("listing uploads", list.send()).await?;
            for upload in page.uploads() {
                let key = upload.key().and_then(|k| k.strip_prefix(&self.prefix)).filter(|k| k.starts_with(prefix));
                if let (Some(key), Some(id)) = (key, upload.upload_id()) {
                    out.push((key.to_owned(), UploadId(id.to_owned()), upload.initiated().map(time)));
                }
            }
            if page.is_truncated() != Some(true) {
                break;
            }
            at_key = page.next_key_marker().map(str::to_owned);
            at_id = page.next_upload_id_marker().map(str::to_owned);
        }
        Ok(out)
    }

    /// Whether a part of an upload is younger than that. An upload that is gone got none.
    async fn got_part_since(&self, key: &str, id: &UploadId, since: Time) -> Result<bool> {
        let mut mark = None;
        for _ in 0..PART_PAGES {
            let list = self.client.list_parts().bucket(&self.bucket).key(self.full(key)?).upload_id(&id.0);
            let page = match self.ask("listing the parts of an upload", list.set_part_number_marker(mark.take()).send()).await {
                Err(e) if e.kind() == Kind::NotFound => return Ok(false),
                other => other?,
            };
            if page.parts().iter().any(|p| p.last_modified().map(time).is_none_or(|t| t >= since)) {
                return Ok(true);
            }
            mark = page.next_part_number_marker().filter(|_| page.is_truncated() == Some(true)).map(str::to_owned);
            if mark.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_lose_their_quotes_and_get_them_back() {
        assert_eq!(tag(Some("\"abc-2\"")).unwrap(), ETag("abc-2".into()));
        assert_eq!(quoted(&tag(Some("W/\"x\"")).unwrap()), "\"x\"");
        assert_eq!(tag(Some("\"\"")).unwrap_err().kind(), Kind::Unsupported);
        assert!(tag(None).is_err());
    }

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 5-9/100"), Some((5, 100)));
        for bad in ["", "bytes */100", "bytes 5-9/*", "5-9/100", "bytes 5/100"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_missing_object_is_stale_only_to_who_expects_a_version() {
        let gone = || Error::new(Kind::NotFound, "x");
        assert_eq!(absent_is_stale(&Cond::Match(ETag("t".into())), gone()).kind(), Kind::Stale);
        assert_eq!(absent_is_stale(&Cond::Any, gone()).kind(), Kind::NotFound);
    }
}
