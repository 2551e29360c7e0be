//! What a fuzzer calls: every parser that meets hostile bytes. A target returns on any input; panics, hangs and huge
//! allocations are findings. Where a parser accepts, writing what it read must give the input back.

use smpfs::crypto::sealed_blob;
use smpfs::crypto::secmem::SecretKey;
use smpfs::format::config::Config;
use smpfs::format::header::Header;
use smpfs::format::index::{self, DirRef, IndexNode};
use smpfs::format::lease::Lease;
use smpfs::format::log::{LogId, LogKey, LogKind, open_header};
use smpfs::format::manifest::Manifest;
use smpfs::format::names::{Place, file_of_key, is_readable_key, object_key};
use smpfs::format::object::{Expect, ObjectRoot};
use smpfs::format::segment::{SegmentAt, SegmentOpener, verify_segment};
use smpfs::format::slot::RecoveryCode;
use smpfs::format::trailer::Trailer;
use smpfs::format::{Geometry, Params, VolumeKeys};
use smpfs::types::{DirId, FileId, Hash, Suite, VolumeId};
use std::sync::LazyLock;

/// A fuzz target.
pub type Target = fn(&[u8]);

/// All targets by name; `fuzz_targets/` has one file for each.
pub const ALL: [(&str, Target); 11] = [
    ("header", header),
    ("trailer", trailer),
    ("manifest", manifest),
    ("object", object),
    ("segment", segment),
    ("config", config),
    ("index", index_object),
    ("payload", payload),
    ("blob", blob),
    ("log", log),
    ("lease", lease),
];

struct World {
    params: Params,
    keys: VolumeKeys,
    key: SecretKey,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let key = SecretKey::new(&[7; 32]);
    let volume_id = VolumeId([1; 16]);
    let geometry = Geometry::new(14, 4).unwrap();
    let keys = VolumeKeys::derive(&key, volume_id, vec![key.clone()]);
    World { params: Params { volume_id, suite: Suite::Aes256Gcm, geometry }, keys, key }
});

/// A header that parses is written the same.
pub fn header(data: &[u8]) {
    if let Some(bytes) = data.first_chunk()
        && let Ok(header) = Header::parse(bytes)
    {
        assert_eq!(header.encode(), *bytes);
    }
}

/// A trailer that parses is written the same, but for its signature.
pub fn trailer(data: &[u8]) {
    if let Some(bytes) = data.last_chunk()
        && let Ok(trailer) = Trailer::parse(bytes)
    {
        assert_eq!(trailer.seal(WORLD.keys.owner())[..448], bytes[..448]);
        let _ = Trailer::verify(bytes, &WORLD.keys.owner().verifying_key());
    }
}

/// A manifest that parses is written the same, and its layout lies inside what it says.
pub fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::parse(data, u64::MAX) else { return };
    assert_eq!(&**manifest.encode().unwrap(), data);
    if let Ok(layout) = manifest.layout(Geometry::DEFAULT) {
        let last = layout.segments();
        assert!(layout.segment(last).is_none());
        if let Some(range) = last.checked_sub(1).and_then(|k| layout.segment(k)) {
            assert_eq!(range.end, layout.manifest().start);
        }
    }
}

/// Opens bytes as an object of a volume that did not write them.
pub fn object(data: &[u8]) {
    let expect = Expect { file_id: FileId([2; 32]), generation: 1, trailer_hash: Hash::ZERO, file_key: WORLD.key.clone() };
    assert!(ObjectRoot::open(&WORLD.params, &WORLD.keys, &expect, data, data, data.len() as u64).is_err());
}

/// Opens bytes as chunk and as segment; nobody has the key.
pub fn segment(data: &[u8]) {
    let file_id = FileId([2; 32]);
    let at = SegmentAt { params: &WORLD.params, file_id: &file_id, k: 3, plain: (data.len() as u64).clamp(1, 1 << 18) };
    let secret = smpfs::format::manifest::SegmentSecret([9; 32]);
    assert!(SegmentOpener::new(&at, &secret).open(0, data).is_err());
    assert!(verify_segment(&at, data, &Hash::ZERO).is_err());
}

/// Parses a config, and keys and codes as text.
pub fn config(data: &[u8]) {
    if let Ok(config) = Config::parse(data) {
        assert!(config.check_pin(&config.pin()).is_ok());
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = (RecoveryCode::parse(text), is_readable_key(text));
        if let Some(file) = file_of_key(text) {
            assert_eq!(object_key(&file), text);
        }
    }
}

/// Opens bytes as an index object of a volume that did not write them.
pub fn index_object(data: &[u8]) {
    let dir = DirRef { dir_id: DirId([3; 16]), dir_key: WORLD.key.clone() };
    assert!(IndexNode::open(&WORLD.keys, &dir, Place::HEAD, data).is_err());
    assert!(index::verify(&WORLD.keys, data).is_err());
}

/// An index payload that parses is written the same.
pub fn payload(data: &[u8]) {
    if let Ok(node) = IndexNode::parse(data) {
        assert_eq!(&**node.encode().unwrap(), data);
    }
}

/// Opens bytes as a sealed blob that nobody has the key of.
pub fn blob(data: &[u8]) {
    assert!(sealed_blob::open(&[7; 32], b"context", data).is_err());
    if let Some(len) = sealed_blob::opened_len(data.len()) {
        assert_eq!(sealed_blob::sealed_len(len), data.len());
    }
}

/// Opens bytes as a lease of a volume that did not write it.
pub fn lease(data: &[u8]) {
    assert!(Lease::open(&WORLD.keys, data).is_err());
}

/// Opens bytes as header and record of a log.
pub fn log(data: &[u8]) {
    if let Some(header) = data.first_chunk() {
        assert!(open_header(header, LogKind::Journal, WORLD.params.volume_id, &WORLD.key).is_err());
    }
    let key = LogKey::new(&[7; 32], LogId { kind: LogKind::Spool, volume: WORLD.params.volume_id, id: [1; 16] });
    assert!(key.open(0, 256, &mut data.to_vec()).is_err());
}
