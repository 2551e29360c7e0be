//! What reading costs above the store: 4 KiB from the cache, and a sequential pass over a memory store, cold.
//!
//! `cargo bench --bench read`

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use smpfs::crypto::secmem::SecretKey;
use smpfs::format::header::Header;
use smpfs::format::manifest::{Hints, Manifest, SegmentSecret};
use smpfs::format::object::{NewVersion, seal_root};
use smpfs::format::segment::{SegmentAt, seal_segment};
use smpfs::format::{Geometry, Params, VolumeKeys};
use smpfs::read::{Ask, CorruptReport, Handle, ReadOptions, Reader, Witness};
use smpfs::store::{Cond, Store, memory::MemoryStore};
use smpfs::types::{DirId, FileId, Hash, Suite, Time, VolumeId};
use std::hint::black_box;
use std::sync::Arc;

const SIZE: usize = 256 << 20;
const STEP: u32 = 1 << 20;

/// Corruption in a bench is a mistake in it.
struct Strict;

impl Witness for Strict {
    fn corrupt(&self, report: CorruptReport) {
        panic!("{report:?}");
    }
}

/// A sealed file of `SIZE` bytes: what to ask for, and its object.
fn object(params: &Params, keys: &VolumeKeys) -> (Ask, Vec<Bytes>) {
    let (file_id, file_key) = (FileId([3; 32]), SecretKey::new(&[4; 32]));
    let plain: Vec<u8> = (0..params.geometry.seg_size()).map(|i| (i / 7) as u8).collect();
    let mut body = vec![Bytes::copy_from_slice(&Header { params: *params, file_id }.encode())];
    let mut records = Vec::new();
    for k in 0..params.geometry.segments(SIZE as u64) {
        let len = params.geometry.seg_plain(SIZE as u64, k);
        let at = SegmentAt { params, file_id: &file_id, k, plain: len };
        let (stored, record) = seal_segment(at, SegmentSecret([k as u8; 32]), 1, &plain[..len as usize]).expect("sealing");
        body.push(stored.into());
        records.push(record);
    }
    let hints =
        Hints { mtime: Time::default(), ctime: Time::default(), mode: 0o600, dir_id: DirId([0; 16]), name: b"f".to_vec() };
    let manifest = Manifest { size: SIZE as u64, hints, content_sha256: None, records };
    let new = NewVersion { params, file_id, file_key: &file_key, generation: 1, previous: Hash::ZERO, manifest: &manifest };
    let root = seal_root(keys, &new, &[5; 24], &[6; 24]).expect("sealing the root");
    body.push(root.tail.into());
    let ask =
        Ask { key: "f".into(), file_id, file_key, generation: 1, trailer_hash: root.trailer_hash, object_len: root.object_len };
    (ask, body)
}

fn reading(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    let params = Params { volume_id: VolumeId([1; 16]), suite: Suite::Aes256Gcm, geometry: Geometry::DEFAULT };
    let keys = Arc::new(VolumeKeys::derive(&SecretKey::new(&[2; 32]), params.volume_id, vec![SecretKey::new(&[7; 32])]));
    let store = Arc::new(MemoryStore::new());
    let (ask, body) = object(&params, &keys);
    runtime.block_on(store.put(&ask.key, body, Cond::Any)).expect("storing");
    let reader = Reader::new(store, params, keys, Arc::new(Strict), None, ReadOptions::default()).expect("a reader");
    let open = runtime.block_on(reader.open(&ask)).expect("opening");

    let mut group = c.benchmark_group("read");
    let handle = Handle::new(&reader, open.clone());
    runtime.block_on(handle.read(0, STEP)).expect("reading");
    let mut at = 0;
    group.throughput(Throughput::Bytes(4096));
    group.bench_function("4 KiB from the cache", |b| {
        b.iter(|| {
            at = (at + 12_288) % u64::from(STEP - 4096);
            black_box(handle.read_now(at, 4096).expect("it is in memory").expect("reading"))
        });
    });
    group.throughput(Throughput::Bytes(SIZE as u64));
    group.sample_size(10);
    group.bench_function("256 MiB in a row, cold", |b| {
        b.iter(|| {
            reader.clear();
            let handle = Handle::new(&reader, open.clone());
            for offset in (0..SIZE as u64).step_by(STEP as usize) {
                black_box(runtime.block_on(handle.read(offset, STEP)).expect("reading"));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, reading);
criterion_main!(benches);
