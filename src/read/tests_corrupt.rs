//! Every kind of damage is an error, is reported once, and leaves nothing in a cache.

use super::*;

/// Byte offset in the object of the middle of a chunk.
fn middle(object: &OpenObject, chunk: u64) -> usize {
    let range = object.stored_range(chunk..chunk + 1).unwrap();
    ((range.start + range.end) / 2) as usize
}

#[tokio::test]
async fn a_flipped_byte_in_a_chunk_fails_that_chunk_only() {
    for verify_full in [false, true] {
        let w = World::new(small(), ReadOptions { verify_full, ..options() });
        let (built, object) = w.open(content(2 << 20, 1)).await;
        let mut bytes = built.bytes.clone();
        bytes[middle(&object, 70)] ^= 1;
        w.put(&built.ask.key, &bytes).await;
        // Opened anew: the version tag is another one.
        let object = w.reader.open(&built.ask).await.unwrap();
        w.reader.clear();
        let want = if verify_full { Failure::Leaf } else { Failure::Chunk };
        assert_eq!(stage(w.reader.read(&object, 70 << 14, 10).await), Some(want));
        assert_eq!(stage(w.reader.read(&object, 69 << 14, 65_536).await), Some(want));
        assert_eq!(stage(w.reader.read_now(&object, 70 << 14, 10).unwrap()), Some(want));
        assert_eq!(w.reader.read(&object, 69 << 14, 1 << 14).await.unwrap(), built.plain[69 << 14..70 << 14]);
        assert_eq!(w.reader.read(&object, 71 << 14, 1 << 18).await.unwrap(), built.plain[71 << 14..(71 << 14) + (1 << 18)]);
        assert!(!w.reader.0.cache.contains(&object.chunk_key(70).unwrap()));
        assert_eq!(w.witness.stages(), [want], "reported once");
        let report = w.witness.0.lock()[0].clone();
        assert_eq!(report.chunk, Some(70));
        assert_eq!(report.evidence, bytes[report.range.start as usize..report.range.end as usize]);
    }
}

#[tokio::test]
async fn damage_on_the_way_is_fetched_once_more_and_forgotten() {
    for fault in [Fault::Flip, Fault::Short, Fault::Before(Kind::Corrupt)] {
        let w = World::new(small(), options());
        let built = w.file(content(2 << 20, 2), &[]).await;
        w.faulty.script(Some(Verb::Get), 1, fault);
        let object = w.reader.open(&built.ask).await.unwrap();
        for i in 0..8u64 {
            w.faulty.script(Some(Verb::Get), 1, fault);
            let at = (i * 200_000) as usize;
            assert_eq!(w.reader.read(&object, at as u64, 180_000).await.unwrap(), built.plain[at..at + 180_000], "{fault:?}");
        }
        assert!(w.witness.stages().is_empty());
    }
}

#[tokio::test]
async fn what_fails_twice_is_corrupt_for_every_fault() {
    for fault in [Fault::Flip, Fault::Short, Fault::Before(Kind::Corrupt)] {
        let w = World::new(small(), options());
        let (built, object) = w.open(content(2 << 20, 3)).await;
        w.faulty.script(Some(Verb::Get), u32::MAX, fault);
        assert_eq!(kind(w.reader.read(&object, 1 << 20, 10).await), Some(Kind::Corrupt), "{fault:?}");
        assert!(!w.reader.0.cache.contains(&object.chunk_key(64).unwrap()));
        assert_eq!(w.witness.stages().len(), 1);
        // A bit anywhere in the ends may be one that opening does not need; the other tests flip those that it does.
        if fault != Fault::Flip {
            assert_eq!(kind(w.reader.open(&built.ask).await), Some(Kind::Corrupt), "{fault:?}");
            assert_eq!(w.witness.stages().len(), 2);
        }
    }
}

/// Every byte of a small object: the open fails, or the bytes that are read are right, or the read fails.
#[tokio::test]
async fn no_flipped_byte_of_a_small_object_changes_what_is_read() {
    let w = World::new(small(), options());
    let built = w.seal(content(20_000, 4), &[], None);
    for at in (0..built.bytes.len()).step_by(37).chain(0..128).chain(built.bytes.len() - 600..built.bytes.len()) {
        let mut bytes = built.bytes.clone();
        bytes[at] ^= 0x40;
        w.put(&built.ask.key, &bytes).await;
        w.reader.clear();
        let before = w.witness.stages().len();
        let outcome = match w.reader.open(&built.ask).await {
            Ok(object) => all(&w.reader, &object, 1 << 20).await,
            Err(e) => Err(e),
        };
        assert_eq!(kind(outcome), Some(Kind::Corrupt), "byte {at}");
        assert!(w.witness.stages().len() > before, "byte {at}");
    }
}

#[tokio::test]
async fn truncation_and_extension_are_refused() {
    let w = World::new(small(), options());
    for size in [0, 20_000, 2 << 20] {
        let built = w.seal(content(size, 5), &[], None);
        let len = built.bytes.len();
        for cut in [0, 1, 127, 511, 1095, len / 2, len - 16_400.min(len), len - 512, len - 1] {
            w.put(&built.ask.key, &built.bytes[..cut]).await;
            assert_eq!(kind(w.reader.open(&built.ask).await), Some(Kind::Corrupt), "{size} cut to {cut}");
        }
        for more in [1, 16, 512, 70_000] {
            let mut bytes = built.bytes.clone();
            bytes.resize(len + more, 0);
            w.put(&built.ask.key, &bytes).await;
            assert_eq!(kind(w.reader.open(&built.ask).await), Some(Kind::Corrupt), "{size} with {more} more");
        }
    }
}

#[tokio::test]
async fn another_file_an_older_version_and_a_fork_are_refused() {
    let w = World::new(small(), options());
    for size in [30_000, 2 << 20] {
        let one = w.file(content(size, 6), &[]).await;
        let other = w.file(content(size, 7), &[]).await;
        let second = w.seal(content(size, 8), &[], Some(&one));
        let fork = w.seal(content(size, 9), &[], Some(&one));
        for (bytes, ask, want) in [
            (&other.bytes, &one.ask, Failure::Identity),
            (&one.bytes, &second.ask, Failure::Rollback),
            (&fork.bytes, &second.ask, Failure::Fork),
        ] {
            w.put(&ask.key, bytes).await;
            assert_eq!(stage(w.reader.open(ask).await), Some(want));
            assert_eq!(w.witness.stages().last(), Some(&want));
        }
        w.put(&one.ask.key, &one.bytes).await;
        let mut wrong = one.ask.clone();
        wrong.file_key = other.ask.file_key.clone();
        assert_eq!(stage(w.reader.open(&wrong).await), Some(Failure::KeyWrap));
    }
}

#[tokio::test]
async fn a_swapped_object_under_the_same_tag_is_noticed() {
    // A store that lies about tags: the bytes of another version under the tag of this one.
    let w = World::new(small(), options());
    let (built, object) = w.open(content(2 << 20, 10)).await;
    let next = w.seal(content(2 << 20, 11), &[], Some(&built));
    let lying = Arc::new(Liar { etag: object.etag().clone(), bytes: Bytes::from(next.bytes) });
    let reader = Reader::new(lying, w.params, w.keys.clone(), w.witness.clone(), None, options()).unwrap();
    assert_eq!(stage(reader.read(&object, 1 << 20, 10).await), Some(Failure::Chunk));
    assert_eq!(stage(reader.read(&object, 0, 1 << 20).await), Some(Failure::Chunk));
}

/// Answers every get from one object, under one tag.
struct Liar {
    etag: crate::store::ETag,
    bytes: Bytes,
}

#[async_trait::async_trait]
impl crate::store::Store for Liar {
    fn url(&self) -> String {
        "test:".into()
    }
    fn caps(&self) -> crate::store::Capability {
        unreachable!()
    }
    async fn get(&self, _: &str, span: crate::store::Span, _: Option<&crate::store::ETag>) -> Result<crate::store::Got, Error> {
        let len = self.bytes.len() as u64;
        let r = crate::store::resolve(&span, len)?;
        let meta = crate::store::Meta { len, etag: self.etag.clone() };
        Ok(crate::store::Got { bytes: self.bytes.slice(r.start as usize..r.end as usize), start: r.start, meta })
    }
    async fn head(&self, _: &str) -> Result<crate::store::Meta, Error> {
        unreachable!()
    }
    async fn put(&self, _: &str, _: Vec<Bytes>, _: crate::store::Cond) -> Result<crate::store::Meta, Error> {
        unreachable!()
    }
    async fn delete(&self, _: &str) -> Result<(), Error> {
        unreachable!()
    }
    async fn copy(&self, _: &str, _: &crate::store::ETag, _: &str, _: crate::store::Cond) -> Result<crate::store::Meta, Error> {
        unreachable!()
    }
    async fn list(&self, _: &str, _: Option<&str>, _: usize) -> Result<crate::store::Page, Error> {
        unreachable!()
    }
    async fn upload_start(&self, _: &str) -> Result<crate::store::UploadId, Error> {
        unreachable!()
    }
    async fn upload_part(
        &self,
        _: &str,
        _: &crate::store::UploadId,
        _: crate::store::PartAt,
        _: Vec<Bytes>,
    ) -> Result<crate::store::Part, Error> {
        unreachable!()
    }
    async fn upload_part_copy(
        &self,
        _: &str,
        _: &crate::store::UploadId,
        _: crate::store::PartAt,
        _: &str,
        _: &crate::store::ETag,
        _: std::ops::Range<u64>,
    ) -> Result<crate::store::Part, Error> {
        unreachable!()
    }
    async fn upload_complete(
        &self,
        _: &str,
        _: &crate::store::UploadId,
        _: &[crate::store::Part],
        _: crate::store::Cond,
    ) -> Result<crate::store::Meta, Error> {
        unreachable!()
    }
    async fn upload_abort(&self, _: &str, _: &crate::store::UploadId) -> Result<(), Error> {
        unreachable!()
    }
    async fn uploads(&self, _: &str) -> Result<Vec<(String, crate::store::UploadId)>, Error> {
        unreachable!()
    }
}
