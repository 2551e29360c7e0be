//! The read path against a memory store: what is read is what was written, or an error.

use super::testkit::*;
use super::*;
use crate::error::{Error, Kind};
use crate::format::{Failure, Geometry};
use crate::store::Store;
use crate::store::layers::{Fault, Verb};
use crate::types::Suite;
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn kind<T>(r: Result<T, Error>) -> Option<Kind> {
    r.err().map(|e| e.kind())
}

fn stage<T>(r: Result<T, Error>) -> Option<Failure> {
    r.err().and_then(|e| Failure::of(&e))
}

/// The whole file, read in steps.
async fn all(reader: &Reader, object: &Arc<OpenObject>, step: u32) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    while (out.len() as u64) < object.size() {
        let part = reader.read(object, out.len() as u64, step).await?;
        assert!(!part.is_empty());
        out.extend_from_slice(&part);
    }
    Ok(out)
}

fn geometries() -> impl Strategy<Value = Geometry> {
    prop::sample::select(vec![(14, 4), (14, 5), (16, 4), (16, 7), (20, 4)]).prop_map(|(c, s)| Geometry::new(c, s).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Random sizes, holes, sizes of chunks and segments, suites, verification modes, and reads: the same bytes as a plain Vec.
    #[test]
    fn reads_equal_a_plain_vector(
        geometry in geometries(),
        size in prop_oneof![0usize..3, 1usize..100_000, 1usize..3_000_000],
        holes in prop::collection::btree_set(0u64..12, 0..5),
        chacha: bool, verify_full: bool, with_hint: bool,
        reads in prop::collection::vec((0u64..3_200_000, 0u32..1 << 20), 1..12),
    ) {
        let suite = if chacha { Suite::ChaCha20Poly1305 } else { Suite::Aes256Gcm };
        runtime().block_on(async {
            let w = World::with(geometry, ReadOptions { verify_full, ..options() }, suite, None);
            let holes: Vec<u64> = holes.into_iter().collect();
            let built = w.file(content(size, 1), &holes).await;
            let mut ask = built.ask.clone();
            if !with_hint {
                ask.object_len = 0;
            }
            let object = w.reader.open(&ask).await.unwrap();
            assert_eq!(object.size(), size as u64);
            assert_eq!(object.object_len(), built.bytes.len() as u64);
            let handle = Handle::new(&w.reader, object.clone());
            for (at, len) in reads {
                let end = (at + u64::from(len)).min(size as u64);
                let want = &built.plain[(at.min(end)) as usize..end as usize];
                assert_eq!(&handle.read(at, len).await.unwrap()[..], want);
                if let Some(now) = handle.read_now(at, len) {
                    assert_eq!(&now.unwrap()[..], want);
                }
            }
            assert_eq!(all(&w.reader, &object, 1 << 20).await.unwrap(), built.plain);
            assert!(w.witness.stages().is_empty());
        });
    }
}

#[tokio::test]
async fn opening_costs_one_request_when_short_and_two_when_long() {
    let w = World::new(Geometry::DEFAULT, options());
    let (_, small) = w.open(content(500_000, 1)).await;
    assert_eq!(w.gets(), 1);
    // All of it came along: no further request.
    assert_eq!(all(&w.reader, &small, 65_000).await.unwrap(), content(500_000, 1));
    assert_eq!(w.gets(), 1);
    let (_, large) = w.open(content(3_000_000, 2)).await;
    assert_eq!(w.gets(), 3);
    // So did the first chunk.
    assert_eq!(w.reader.read(&large, 0, 65_536).await.unwrap()[..], content(65_536, 2)[..]);
    assert_eq!(w.gets(), 3);
}

#[tokio::test]
async fn an_object_just_written_is_read_without_opening() {
    let w = World::new(small(), options());
    let built = w.file(content(700_000, 3), &[1]).await;
    let opened = w.reader.open(&built.ask).await.unwrap();
    let parts = ObjectParts {
        key: built.ask.key.clone(),
        etag: opened.etag().clone(),
        file_id: built.ask.file_id,
        file_key: built.ask.file_key.clone(),
        params: w.params,
        generation: 1,
        trailer_hash: built.ask.trailer_hash,
        layout: opened.layout().clone(),
        records: built.records.clone(),
    };
    let written = Arc::new(OpenObject::from_written(parts).unwrap());
    assert_eq!(written.object_len(), built.bytes.len() as u64);
    let before = w.gets();
    // The same segments have the same names: what opening brought into the cache serves the other one too.
    assert_eq!(all(&w.reader, &written, 1 << 20).await.unwrap(), built.plain);
    assert_eq!(w.gets(), before);
}

#[tokio::test]
async fn a_manifest_longer_than_the_tail_is_fetched() {
    let w = World::new(small(), options());
    let holes: Vec<u64> = (0..2000).filter(|k| *k != 7 && *k != 1999).collect();
    let built = w.file(content(2000 * (256 << 10) - 5, 4), &holes).await;
    let object = w.reader.open(&Ask { object_len: 0, ..built.ask.clone() }).await.unwrap();
    assert_eq!(w.gets(), 3, "head, tail, and the rest of the manifest");
    for at in [7 * (256 << 10), 1999 * (256 << 10), 5000] {
        let len = 200_000.min(built.plain.len() - at);
        assert_eq!(w.reader.read(&object, at as u64, len as u32).await.unwrap(), built.plain[at..at + len]);
    }
}

#[tokio::test]
async fn concurrent_reads_of_a_chunk_are_one_request() {
    let w = World::new(Geometry::DEFAULT, options());
    let (built, object) = w.open(content(4 << 20, 5)).await;
    let before = w.gets();
    w.faulty.script(Some(Verb::Get), 1, Fault::Latency(std::time::Duration::from_millis(30)));
    let reads = (0..50u64).map(|i| {
        let (reader, object) = (w.reader.clone(), object.clone());
        tokio::spawn(async move { reader.read(&object, (1 << 20) + i * 1000, 4096).await })
    });
    for (i, read) in reads.collect::<Vec<_>>().into_iter().enumerate() {
        let at = (1 << 20) + i * 1000;
        assert_eq!(read.await.unwrap().unwrap(), built.plain[at..at + 4096]);
    }
    assert_eq!(w.gets(), before + 1);
}

#[tokio::test]
async fn neighbouring_chunks_come_in_one_request() {
    let w = World::new(small(), options());
    let (built, object) = w.open(content(4 << 20, 6)).await;
    let before = w.gets();
    // 1 MiB over four segments.
    assert_eq!(w.reader.read(&object, 300_000, 1 << 20).await.unwrap(), built.plain[300_000..300_000 + (1 << 20)]);
    assert_eq!(w.gets(), before + 1);
}

#[tokio::test]
async fn read_now_answers_from_memory_only() {
    let w = World::new(small(), options());
    let built = w.file(content(2 << 20, 7), &[3]).await;
    let object = w.reader.open(&built.ask).await.unwrap();
    let before = w.gets();
    assert!(w.reader.read_now(&object, 1 << 20, 4096).is_none());
    assert_eq!(w.gets(), before);
    w.reader.read(&object, 1 << 20, 100_000).await.unwrap();
    for (at, len) in [(1 << 20, 4096), ((1 << 20) + 16_000, 1000), ((1 << 20) + 1, 99_998)] {
        let now = w.reader.read_now(&object, at, len).unwrap().unwrap();
        assert_eq!(now, built.plain[at as usize..at as usize + len as usize]);
    }
    let hole = w.reader.read_now(&object, 3 << 18, 1 << 18).unwrap().unwrap();
    assert!(hole.len() == 1 << 18 && hole.iter().all(|b| *b == 0));
    assert_eq!(w.reader.read_now(&object, 2 << 20, 1).unwrap().unwrap(), Bytes::new());
    assert_eq!(w.reader.read_now(&object, u64::MAX, 1 << 20).unwrap().unwrap(), Bytes::new());
    assert!(w.reader.read_now(&object, 0, MAX_READ + 1).is_none());
    assert_eq!(kind(w.reader.read(&object, 0, MAX_READ + 1).await), Some(Kind::Invalid));
}

#[tokio::test]
async fn the_lower_cache_saves_requests_and_gets_verified_chunks_only() {
    let lower = Arc::new(Lower::default());
    let w = World::with(small(), options(), Suite::Aes256Gcm, Some(lower.clone()));
    let (built, object) = w.open(content(2 << 20, 8)).await;
    assert_eq!(all(&w.reader, &object, 1 << 20).await.unwrap(), built.plain);
    assert!(lower.chunks.lock().is_empty(), "what is read once costs the disk nothing");
    w.reader.clear();
    assert_eq!(all(&w.reader, &object, 1 << 20).await.unwrap(), built.plain);
    for _ in 0..100_000 {
        if lower.chunks.lock().len() == 128 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    w.reader.clear();
    let before = w.gets();
    // One chunk is missing below: one request for it.
    let key = object.chunk_key(70).unwrap();
    lower.chunks.lock().remove(&key);
    assert_eq!(all(&w.reader, &object, 1 << 20).await.unwrap(), built.plain);
    assert_eq!(w.gets(), before + 1);
    assert_eq!(lower.answered.load(Ordering::SeqCst), 127);
}

#[tokio::test]
async fn cached_data_is_served_while_the_store_is_down() {
    let w = World::new(small(), options());
    let (built, object) = w.open(content(2 << 20, 9)).await;
    w.reader.read(&object, 1 << 20, 65_536).await.unwrap();
    w.faulty.script(Some(Verb::Get), u32::MAX, Fault::Before(Kind::Unavailable));
    assert_eq!(w.reader.read(&object, 1 << 20, 65_536).await.unwrap(), built.plain[1 << 20..(1 << 20) + 65_536]);
    assert_eq!(kind(w.reader.read(&object, 1 << 19, 100).await), Some(Kind::Unavailable));
    w.faulty.clear();
    assert_eq!(w.reader.read(&object, 1 << 19, 100).await.unwrap(), built.plain[1 << 19..(1 << 19) + 100]);
    assert!(w.witness.stages().is_empty(), "an outage is not corruption");
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_store_ends_with_its_return_or_the_deadline() {
    let deadline = std::time::Duration::from_secs(30);
    let w = World::new(small(), ReadOptions { on_unavailable: OnUnavailable::Wait, deadline, ..options() });
    let (built, object) = w.open(content(2 << 20, 10)).await;
    w.faulty.script(Some(Verb::Get), 5, Fault::Before(Kind::Unavailable));
    assert_eq!(w.reader.read(&object, 1 << 20, 10).await.unwrap(), built.plain[1 << 20..(1 << 20) + 10]);
    for fault in [Fault::Before(Kind::Unavailable), Fault::Stall] {
        w.faulty.script(Some(Verb::Get), u32::MAX, fault);
        let began = tokio::time::Instant::now();
        assert_eq!(kind(w.reader.read(&object, 1 << 19, 10).await), Some(Kind::Unavailable));
        assert!(began.elapsed() <= deadline);
        assert_eq!(kind(w.reader.open(&built.ask).await), Some(Kind::Unavailable));
        w.faulty.clear();
    }
}

#[tokio::test]
async fn a_replaced_object_is_stale_and_never_mixed() {
    let w = World::new(small(), options());
    let (built, object) = w.open(content(2 << 20, 11)).await;
    let next = w.seal(content(2 << 20, 12), &[], Some(&built));
    w.put(&next.ask.key, &next.bytes).await;
    assert_eq!(kind(w.reader.read(&object, 1 << 20, 65_536).await), Some(Kind::Stale));
    // The index still names the old version: a later one is accepted.
    let fresh = w.reader.open(&built.ask).await.unwrap();
    assert_eq!(fresh.generation(), 2);
    assert_eq!(all(&w.reader, &fresh, 1 << 20).await.unwrap(), next.plain);
    assert_eq!(kind(w.reader.read(&object, 1 << 20, 65_536).await), Some(Kind::Stale));
    w.memory.delete(&next.ask.key).await.unwrap();
    w.reader.clear();
    assert_eq!(kind(w.reader.read(&fresh, 1 << 20, 65_536).await), Some(Kind::Stale));
    assert_eq!(kind(w.reader.open(&next.ask).await), Some(Kind::NotFound));
    assert!(w.witness.stages().is_empty());
}

#[tokio::test]
async fn an_object_replaced_while_it_is_opened_is_opened_anew() {
    let w = World::new(small(), options());
    let built = w.file(content(2 << 20, 13), &[]).await;
    let next = w.seal(content(2 << 20, 14), &[], Some(&built));
    let store: Arc<dyn crate::store::Store> = w.reader.0.store.clone();
    store.put(&next.ask.key, vec![Bytes::from(next.bytes.clone())], crate::store::Cond::Any).await.unwrap();
    w.faulty.script(Some(Verb::Get), 1, Fault::Old);
    let object = w.reader.open(&built.ask).await.unwrap();
    assert_eq!(object.generation(), 2);
    assert_eq!(all(&w.reader, &object, 1 << 20).await.unwrap(), next.plain);
}

#[tokio::test]
async fn closing_ends_everything() {
    let w = World::new(small(), options());
    let (_, object) = w.open(content(2 << 20, 15)).await;
    w.faulty.script(Some(Verb::Get), u32::MAX, Fault::Stall);
    let (reader, held) = (w.reader.clone(), object.clone());
    let waiting = tokio::spawn(async move { reader.read(&held, 1 << 20, 10).await });
    while w.reader.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    w.reader.close();
    assert_eq!(kind(waiting.await.unwrap()), Some(Kind::Interrupted));
    assert_eq!(kind(w.reader.read(&object, 1 << 20, 10).await), Some(Kind::Interrupted));
    settle(&w.reader).await;
}

#[tokio::test]
async fn a_reader_who_gives_up_stops_a_fetch_that_nobody_else_wants() {
    let w = World::new(small(), options());
    let (_, object) = w.open(content(2 << 20, 16)).await;
    w.faulty.script(Some(Verb::Get), u32::MAX, Fault::Stall);
    let (reader, held) = (w.reader.clone(), object.clone());
    let waiting = tokio::spawn(async move { reader.read(&held, 1 << 20, 10).await });
    while w.reader.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    settle(&w.reader).await;
    w.faulty.clear();
    assert_eq!(w.reader.read(&object, 1 << 20, 10).await.unwrap().len(), 10);
}

#[path = "tests_corrupt.rs"]
mod corrupt;
#[path = "tests_load.rs"]
mod load;
