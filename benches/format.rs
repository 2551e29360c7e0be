//! What sealing and opening cost: chunks in both suites and backends, segments, roots, index objects, leaves' hashes.
//!
//! `cargo bench --bench format` (default features: both backends). The numbers decide the default backend of `crypto::aead`
//! and of `crypto::hash`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use smpfs::crypto::aead::{AeadKey, Backend};
use smpfs::crypto::hash::sha256;
use smpfs::crypto::kdf::{Argon2Cost, argon2id};
use smpfs::crypto::secmem::SecretKey;
use smpfs::format::entry::{Attributes, Body, Entry, FileRef};
use smpfs::format::header::Header;
use smpfs::format::index::{DirRef, IndexNode, Role};
use smpfs::format::manifest::{Hints, Manifest, SegmentSecret};
use smpfs::format::names::Place;
use smpfs::format::object::{Expect, NewVersion, ObjectRoot, Opening, seal_root};
use smpfs::format::segment::{SegmentAt, SegmentOpener, seal_segment, verify_segment};
use smpfs::format::{Geometry, Params, VolumeKeys};
use smpfs::types::{DirId, FileId, Hash, Suite, Time, VolumeId};
use std::hint::black_box;

const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];
const CHUNK: usize = 64 << 10;

fn chunks(c: &mut Criterion) {
    let backends = [
        Backend::RustCrypto,
        #[cfg(feature = "aws-lc")]
        Backend::AwsLc,
    ];
    let mut group = c.benchmark_group("chunk 64 KiB");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    for suite in SUITES {
        for backend in backends {
            let key = AeadKey::with_backend(backend, suite, &[1; 32]);
            let mut buf = vec![7; CHUNK];
            group.bench_function(BenchmarkId::new(format!("seal {suite:?}"), format!("{backend:?}")), |b| {
                b.iter(|| key.seal_in_place(&[2; 12], &[3; 40], black_box(&mut buf)));
            });
            let mut sealed = vec![7; CHUNK];
            let tag = key.seal_in_place(&[2; 12], &[3; 40], &mut sealed);
            group.bench_function(BenchmarkId::new(format!("open {suite:?}"), format!("{backend:?}")), |b| {
                b.iter(|| {
                    buf.copy_from_slice(&sealed);
                    key.open_in_place(&[2; 12], &[3; 40], black_box(&mut buf), &tag).is_ok()
                });
            });
        }
    }
    let data = vec![7; CHUNK];
    group.bench_function("SHA-256 by sha2", |b| b.iter(|| sha256(&[&[0], black_box(&data)])));
    #[cfg(feature = "aws-lc")]
    group.bench_function("SHA-256 by AWS-LC", |b| {
        b.iter(|| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, black_box(&data)));
    });
    group.finish();
}

fn params(suite: Suite) -> Params {
    Params { volume_id: VolumeId([1; 16]), suite, geometry: Geometry::DEFAULT }
}

fn segments(c: &mut Criterion) {
    let mut group = c.benchmark_group("segment 8 MiB");
    group.sample_size(10).throughput(Throughput::Bytes(8 << 20));
    let plain = vec![7; 8 << 20];
    for suite in SUITES {
        let (params, file_id) = (params(suite), FileId([2; 32]));
        let at = SegmentAt { params: &params, file_id: &file_id, k: 0, plain: 8 << 20 };
        let seal = || seal_segment(at, SegmentSecret([3; 32]), 1, black_box(&plain)).ok();
        group.bench_function(format!("seal {suite:?}"), |b| b.iter(seal));
        let Some((stored, record)) = seal() else { continue };
        let smpfs::format::manifest::Record::Stored { secret, root, .. } = record else { continue };
        group.bench_function(format!("leaves {suite:?}"), |b| b.iter(|| verify_segment(&at, black_box(&stored), &root).is_ok()));
        let opener = SegmentOpener::new(&at, &secret);
        let mut buf = vec![0; CHUNK + 16];
        group.bench_function(format!("open 128 chunks {suite:?}"), |b| {
            b.iter(|| {
                for (i, chunk) in (0..128).zip(stored.chunks(CHUNK + 16)) {
                    buf.copy_from_slice(chunk);
                    let _ = black_box(opener.open_in_place(i, &mut buf));
                }
            });
        });
    }
    group.finish();
}

fn keys() -> VolumeKeys {
    VolumeKeys::derive(&SecretKey::new(&[4; 32]), VolumeId([1; 16]), vec![SecretKey::new(&[5; 32])])
}

fn roots(c: &mut Criterion) {
    let (keys, params) = (keys(), params(Suite::Aes256Gcm));
    let (file_id, file_key) = (FileId([2; 32]), SecretKey::new(&[6; 32]));
    let hints =
        Hints { mtime: Time::default(), ctime: Time::default(), mode: 0o644, dir_id: DirId([3; 16]), name: b"name".to_vec() };
    let manifest = Manifest { size: 0, hints, content_sha256: None, records: Vec::new() };
    let new =
        NewVersion { params: &params, file_id, file_key: &file_key, generation: 1, previous: Hash::ZERO, manifest: &manifest };
    c.bench_function("root: seal", |b| b.iter(|| seal_root(&keys, black_box(&new), &[7; 24], &[8; 24]).is_ok()));
    let Ok(root) = seal_root(&keys, &new, &[7; 24], &[8; 24]) else { return };
    let object = [&Header { params, file_id }.encode()[..], &root.tail].concat();
    let expect = Expect { file_id, generation: 1, trailer_hash: root.trailer_hash, file_key: file_key.clone() };
    c.bench_function("root: open", |b| {
        b.iter(|| {
            let opening = ObjectRoot::open(&params, &keys, &expect, black_box(&object), &object, object.len() as u64);
            matches!(opening, Ok(Opening::Done(_)))
        });
    });
}

fn indexes(c: &mut Criterion) {
    let keys = keys();
    let dir = DirRef { dir_id: DirId([3; 16]), dir_key: SecretKey::new(&[6; 32]) };
    let entries = (0..1000u32).map(|i| {
        let file = FileRef {
            file_id: FileId([i as u8; 32]),
            file_key: SecretKey::new(&[i as u8; 32]),
            generation: 1,
            trailer_hash: Hash([9; 32]),
            size: 1 << 20,
            object_len: 1 << 20,
            key: None,
        };
        let name = format!("IM-{i:06}.dcm").into_bytes();
        Entry { name, attributes: Attributes::default(), body: Body::File(file), refs: Vec::new(), xattrs: Vec::new() }
    });
    let role = Role::Head { shard_bits: 0, epoch: 0 };
    let node = IndexNode { role, frozen: false, generation: 1, previous: Hash::ZERO, entries: entries.collect() };
    c.bench_function("index of 1000 files: seal", |b| b.iter(|| node.seal(&keys, &dir, &[7; 24]).is_ok()));
    let Ok((bytes, _)) = node.seal(&keys, &dir, &[7; 24]) else { return };
    c.bench_function("index of 1000 files: open", |b| {
        b.iter(|| IndexNode::open(&keys, &dir, Place::HEAD, black_box(&bytes)).is_ok());
    });
}

fn passphrases(c: &mut Criterion) {
    let mut group = c.benchmark_group("passphrase");
    group.sample_size(10);
    group.bench_function("Argon2id, 256 MiB, 3 passes, 4 lanes", |b| {
        b.iter(|| argon2id(b"passphrase", &[1; 32], Argon2Cost::DEFAULT).is_ok());
    });
    group.finish();
}

criterion_group!(benches, chunks, segments, roots, indexes, passphrases);
criterion_main!(benches);
