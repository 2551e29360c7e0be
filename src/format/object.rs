//! A sealed file as a whole: assembling its root and verifying it in the order of FORMAT.md, section 4.5.

use super::Salt;
use super::failure::Failure;
use super::geometry::{HEADER_LEN, Layout, MIN_OBJECT, TRAILER_LEN};
use super::header::Header;
use super::keys::VolumeKeys;
use super::manifest::{Manifest, Record};
use super::params::Params;
use super::segment::{SegmentAt, SegmentOpener, body_root, verify_segment};
use super::trailer::{OWNER, Trailer, trailer_hash};
use crate::crypto::hash::sha256;
use crate::crypto::secmem::SecretKey;
use crate::crypto::sign::VerifyingKey;
use crate::error::{Kind, Result, fail};
use crate::types::{FileId, Hash};
use std::ops::Range;
use zeroize::Zeroizing;

/// The version about to be written.
pub struct NewVersion<'a> {
    /// Constants of the volume.
    pub params: &'a Params,
    /// The file.
    pub file_id: FileId,
    /// The file's key.
    pub file_key: &'a SecretKey,
    /// 1 for a new file, one more than the version before otherwise.
    pub generation: u64,
    /// Trailer hash of the version before; zeros for a new file.
    pub previous: Hash,
    /// Size, hints and records.
    pub manifest: &'a Manifest,
}

/// What follows the segments of an object, ready to be written.
#[derive(Clone, Debug)]
pub struct SealedRoot {
    /// Manifest and trailer.
    pub tail: Vec<u8>,
    /// Identity of this version.
    pub trailer_hash: Hash,
    /// Length of the whole object.
    pub object_len: u64,
    /// Where everything lies.
    pub layout: Layout,
}

/// Seals manifest and trailer of a version whose stored segments are in the manifest's records. The salts are fresh randomness.
pub fn seal_root(keys: &VolumeKeys, new: &NewVersion<'_>, manifest_salt: &Salt, wrap_salt: &Salt) -> Result<SealedRoot> {
    if (new.generation == 1) != (new.previous == Hash::ZERO) || new.generation == 0 {
        return fail(Kind::Bug, "a version was to be written whose generation and predecessor contradict each other");
    }
    let layout = match new.manifest.layout(new.params.geometry) {
        Ok(layout) => layout,
        Err(_) if new.manifest.size > new.params.geometry.max_size() => {
            return fail(Kind::TooLarge, "the file is larger than a volume of this geometry can hold");
        }
        Err(_) => return fail(Kind::Bug, "a manifest was to be sealed whose size and records contradict each other"),
    };
    let hints = &new.manifest.hints;
    let manifest = new.manifest.seal(new.file_key, &new.params.volume_id, &new.file_id, new.generation, manifest_salt)?;
    let (kek_epoch, wrapped_key) = keys.wrap_file_key(&new.file_id, new.file_key, wrap_salt)?;
    let trailer = Trailer {
        params: *new.params,
        file_id: new.file_id,
        generation: new.generation,
        manifest_off: layout.manifest().start,
        manifest_len: manifest.len() as u64,
        kek_epoch,
        writer_id: OWNER,
        header_hash: Header { params: *new.params, file_id: new.file_id }.hash(),
        body_root: body_root(&new.manifest.records),
        manifest_hash: Hash(sha256(&[&manifest])),
        previous: new.previous,
        wrapped_key,
        name_bind: keys.name_bind(&hints.dir_id, &hints.name, &new.file_id),
    };
    let trailer = trailer.seal(keys.owner());
    let mut tail = manifest;
    tail.extend_from_slice(&trailer);
    Ok(SealedRoot { tail, trailer_hash: trailer_hash(&trailer), object_len: layout.object_len(), layout })
}

/// What the directory index says of a file: the object must be this version of this file, or a later one.
#[derive(Clone, Debug)]
pub struct Expect {
    /// The file.
    pub file_id: FileId,
    /// The version that must be there.
    pub generation: u64,
    /// Its trailer hash.
    pub trailer_hash: Hash,
    /// The file's key.
    pub file_key: SecretKey,
}

/// Header and trailer, verified as far as no key of the file is needed: steps 1 to 5, and the header hash.
#[derive(Clone, Debug)]
pub struct CheckedTrailer {
    trailer: Trailer,
    hash: Hash,
    len: u64,
}

impl CheckedTrailer {
    /// Checks header and trailer of an object of `len` bytes. With `expect` its identity and generation must be the index
    /// entry's; without (scrubbing, recovery) the volume alone is compared.
    pub fn check(
        params: &Params,
        keys: &VolumeKeys,
        header: &[u8; HEADER_LEN],
        trailer_bytes: &[u8; TRAILER_LEN],
        len: u64,
        expect: Option<&Expect>,
    ) -> Result<CheckedTrailer> {
        CheckedTrailer::check_by(params, |id| keys.writer(id).cloned(), header, trailer_bytes, len, expect)
    }

    /// The same with the public keys of writers alone: for somebody without the volume's keys.
    pub fn check_by(
        params: &Params,
        writer_key: impl Fn(u32) -> Option<VerifyingKey>,
        header: &[u8; HEADER_LEN],
        trailer_bytes: &[u8; TRAILER_LEN],
        len: u64,
        expect: Option<&Expect>,
    ) -> Result<CheckedTrailer> {
        Failure::Length.unless(len >= MIN_OBJECT, "the object is shorter than an empty file")?;
        let head = Header::parse(header)?;
        let trailer = Trailer::parse(trailer_bytes)?;
        params.check(&head.params)?;
        params.check(&trailer.params)?;
        let Some(writer) = writer_key(trailer.writer_id) else {
            return Failure::Signature.fail("the object was signed by an unknown writer");
        };
        Trailer::verify(trailer_bytes, &writer)?;
        let same = |volume, file| volume == params.volume_id && expect.is_none_or(|e| e.file_id == file);
        let ours = same(head.params.volume_id, head.file_id) && same(trailer.params.volume_id, trailer.file_id);
        Failure::Identity.unless(ours && head.file_id == trailer.file_id, "the object belongs to another file")?;
        let hash = trailer_hash(trailer_bytes);
        if let Some(expect) = expect {
            check_version((expect.generation, expect.trailer_hash), (trailer.generation, hash))?;
        }
        Failure::HeaderHash
            .unless(Hash(sha256(&[header])) == trailer.header_hash, "the header is not the one that was signed")?;
        let end = trailer.manifest_off.checked_add(trailer.manifest_len);
        let fits =
            trailer.manifest_off >= HEADER_LEN as u64 && end.is_some_and(|end| end.checked_add(TRAILER_LEN as u64) == Some(len));
        Failure::ManifestHash.unless(fits, "the manifest does not lie where the trailer says")?;
        Ok(CheckedTrailer { trailer, hash, len })
    }

    /// The trailer.
    pub fn trailer(&self) -> &Trailer {
        &self.trailer
    }

    /// Identity of this version.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Object bytes of the sealed manifest, to be fetched when the tail does not hold all of them. The signature has been
    /// checked, so its length is what a writer of the volume chose.
    pub fn manifest_range(&self) -> Range<u64> {
        self.trailer.manifest_off..self.trailer.manifest_off + self.trailer.manifest_len
    }

    /// Opens the manifest and checks the rest: steps 6 to 10. With `expected` that must be the wrapped file key.
    pub fn open_manifest(self, keys: &VolumeKeys, manifest: &[u8], expected: Option<&SecretKey>) -> Result<ObjectRoot> {
        let t = &self.trailer;
        let signed = Hash(sha256(&[manifest])) == t.manifest_hash && manifest.len() as u64 == t.manifest_len;
        Failure::ManifestHash.unless(signed, "the manifest is not the one that was signed")?;
        let file_key = keys.unwrap_file_key(&t.file_id, t.kek_epoch, &t.wrapped_key)?;
        Failure::KeyWrap.unless(expected.is_none_or(|k| *k == file_key), "the object's file key is not the index entry's")?;
        let opened = Manifest::open(manifest, &file_key, &t.params.volume_id, &t.file_id, t.generation)?;
        let layout = opened.layout(t.params.geometry)?;
        let agree = layout.manifest() == self.manifest_range() && layout.object_len() == self.len;
        Failure::Size.unless(agree, "the file's size and the object's length contradict each other")?;
        Failure::BodyRoot
            .unless(body_root(&opened.records) == t.body_root, "the segment roots are not the ones that were signed")?;
        Ok(ObjectRoot { trailer: self.trailer, trailer_hash: self.hash, manifest: opened, layout, file_key })
    }
}

/// Step 5: a version that was seen or is recorded (generation and hash), against the one that was found. The same generation must
/// be the same version (else `fork`), a lower one is `rollback`, a higher one is accepted.
pub fn check_version(known: (u64, Hash), found: (u64, Hash)) -> Result<()> {
    Failure::Rollback.unless(found.0 >= known.0, "an older version was put back")?;
    Failure::Fork.unless(found.0 > known.0 || found.1 == known.1, "another version of the same generation was put there")
}

/// A verified root: everything needed to read the file's chunks.
#[derive(Clone, Debug)]
pub struct ObjectRoot {
    trailer: Trailer,
    trailer_hash: Hash,
    manifest: Manifest,
    layout: Layout,
    file_key: SecretKey,
}

/// How far [`ObjectRoot::open`] came with the bytes it was given.
#[derive(Debug)]
pub enum Opening {
    /// All the way.
    Done(Box<ObjectRoot>),
    /// The manifest is longer than the tail: fetch [`CheckedTrailer::manifest_range`], call [`CheckedTrailer::open_manifest`].
    NeedManifest(Box<CheckedTrailer>),
}

impl ObjectRoot {
    /// Opens an object of `len` bytes from its first bytes and its last bytes (both the whole object when it was fetched at
    /// once). When the tail does not hold all of the manifest, the answer says what else to fetch.
    pub fn open(params: &Params, keys: &VolumeKeys, expect: &Expect, head: &[u8], tail: &[u8], len: u64) -> Result<Opening> {
        let (Some(header), Some(trailer)) = (head.first_chunk(), tail.last_chunk()) else {
            return Failure::Length.fail("the object is shorter than an empty file");
        };
        let checked = CheckedTrailer::check(params, keys, header, trailer, len, Some(expect))?;
        let wanted = checked.trailer.manifest_len;
        let available = (tail.len() - TRAILER_LEN) as u64;
        if wanted > available {
            return Ok(Opening::NeedManifest(Box::new(checked)));
        }
        let manifest = &tail[(available - wanted) as usize..available as usize];
        Ok(Opening::Done(Box::new(checked.open_manifest(keys, manifest, Some(&expect.file_key))?)))
    }

    /// The trailer.
    pub fn trailer(&self) -> &Trailer {
        &self.trailer
    }

    /// Version of the file.
    pub fn generation(&self) -> u64 {
        self.trailer.generation
    }

    /// Identity of this version.
    pub fn trailer_hash(&self) -> Hash {
        self.trailer_hash
    }

    /// Plaintext bytes.
    pub fn size(&self) -> u64 {
        self.manifest.size
    }

    /// Size, hints and records.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where everything lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The file's key.
    pub fn file_key(&self) -> &SecretKey {
        &self.file_key
    }

    /// Segment `k`'s place, for sealing and verifying.
    pub fn segment_at(&self, k: u64) -> SegmentAt<'_> {
        SegmentAt { params: &self.trailer.params, file_id: &self.trailer.file_id, k, plain: self.layout.seg_plain(k) }
    }

    /// An opener for the chunks of segment `k`; `None` for a hole or beyond the end.
    pub fn segment(&self, k: u64) -> Option<SegmentOpener> {
        match self.record(k)? {
            Record::Stored { secret, .. } => Some(SegmentOpener::new(&self.segment_at(k), secret)),
            Record::Hole { .. } => None,
        }
    }

    /// The root that segment `k`'s leaves must have; `None` for a hole or beyond the end.
    pub fn segment_root(&self, k: u64) -> Option<Hash> {
        match self.record(k)? {
            Record::Stored { root, .. } => Some(*root),
            Record::Hole { .. } => None,
        }
    }

    fn record(&self, k: u64) -> Option<&Record> {
        self.manifest.records.get(usize::try_from(k).ok()?)
    }

    /// Verifies and decrypts a whole object that is in memory: leaves first, then chunks. For objects fetched at once, for
    /// scrubbing and for recovery. Files of more than `max` bytes (holes cost no object bytes) are refused with `TooLarge`.
    pub fn read_all(&self, object: &[u8], max: u64) -> Result<Zeroizing<Vec<u8>>> {
        if self.size() > max {
            return fail(Kind::TooLarge, "the file is too large to be read in one piece");
        }
        Failure::Length.unless(object.len() as u64 == self.layout.object_len(), "the object has another length")?;
        let mut plain = Zeroizing::new(Vec::with_capacity(self.size() as usize));
        for k in 0..self.layout.segments() {
            let at = self.segment_at(k);
            let (Some(range), Some(opener), Some(root)) = (self.layout.segment(k), self.segment(k), self.segment_root(k)) else {
                let len = plain.len() + at.plain as usize;
                plain.resize(len, 0);
                continue;
            };
            let stored = &object[range.start as usize..range.end as usize];
            verify_segment(&at, stored, &root)?;
            let body = at.plain as usize + self.layout.seg_chunks(k) as usize * 16;
            for (i, chunk) in (0..).zip(stored[..body].chunks(at.params.geometry.chunk_stored() as usize)) {
                plain.extend_from_slice(&Zeroizing::new(opener.open(i, chunk)?));
            }
        }
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Geometry;
    use crate::format::manifest::{Hints, SegmentSecret};
    use crate::format::segment::seal_segment;
    use crate::types::{DirId, Suite, Time, VolumeId};

    struct Sparse {
        params: Params,
        keys: VolumeKeys,
        expect: Expect,
        object: Vec<u8>,
    }

    /// A file of `holes` holes and one byte behind them.
    fn sparse(holes: u64) -> Sparse {
        let params = Params { volume_id: VolumeId([1; 16]), suite: Suite::Aes256Gcm, geometry: Geometry::new(14, 4).unwrap() };
        let keys = VolumeKeys::derive(&SecretKey::new(&[2; 32]), params.volume_id, vec![SecretKey::new(&[3; 32])]);
        let (file_id, file_key) = (FileId([4; 32]), SecretKey::new(&[5; 32]));
        let mut records = vec![Record::Hole { written: 1 }; holes as usize];
        let at = SegmentAt { params: &params, file_id: &file_id, k: holes, plain: 1 };
        let (stored, record) = seal_segment(at, SegmentSecret([6; 32]), 1, b"x").unwrap();
        records.push(record);
        let time = Time::default();
        let hints = Hints { mtime: time, ctime: time, mode: 0, dir_id: DirId([7; 16]), name: b"n".to_vec() };
        let size = holes * params.geometry.seg_size() + 1;
        let manifest = Manifest { size, hints, content_sha256: None, records };
        let new = NewVersion {
            params: &params,
            file_id,
            file_key: &file_key,
            generation: 1,
            previous: Hash::ZERO,
            manifest: &manifest,
        };
        let root = seal_root(&keys, &new, &[8; 24], &[9; 24]).unwrap();
        let object = [&Header { params, file_id }.encode()[..], &stored, &root.tail].concat();
        assert_eq!(object.len() as u64, root.object_len);
        Sparse { params, keys, expect: Expect { file_id, generation: 1, trailer_hash: root.trailer_hash, file_key }, object }
    }

    #[test]
    fn a_manifest_longer_than_the_tail_is_asked_for() {
        let s = sparse(1000);
        let tail = &s.object[s.object.len() - crate::format::geometry::TAIL_FETCH as usize..];
        let opening = ObjectRoot::open(&s.params, &s.keys, &s.expect, &s.object[..128], tail, s.object.len() as u64).unwrap();
        let Opening::NeedManifest(checked) = opening else { panic!("the tail does not hold 80 KiB") };
        let range = checked.manifest_range();
        let manifest = &s.object[range.start as usize..range.end as usize];
        let short = checked.clone().open_manifest(&s.keys, &manifest[1..], None).unwrap_err();
        assert_eq!(Failure::of(&short), Some(Failure::ManifestHash));
        let root = checked.open_manifest(&s.keys, manifest, Some(&s.expect.file_key)).unwrap();
        assert_eq!((root.size(), root.layout().is_hole(999), root.layout().is_hole(1000)), (1000 << 18 | 1, true, false));
        assert!(root.segment(999).is_none() && root.segment_root(1001).is_none());
        let chunk = root.layout().chunks(1000, 0..1).unwrap();
        let stored = &s.object[chunk.start as usize..chunk.end as usize];
        assert_eq!(root.segment(1000).unwrap().open(0, stored).unwrap(), b"x");
    }

    #[test]
    fn holes_cannot_be_used_to_exhaust_memory() {
        let s = sparse(3);
        let Opening::Done(root) =
            ObjectRoot::open(&s.params, &s.keys, &s.expect, &s.object, &s.object, s.object.len() as u64).unwrap()
        else {
            panic!("all bytes are there")
        };
        assert_eq!(root.read_all(&s.object, 1 << 18).unwrap_err().kind(), Kind::TooLarge);
        let plain = root.read_all(&s.object, 1 << 20).unwrap();
        assert_eq!((plain.len(), plain.iter().map(|b| u64::from(*b)).sum::<u64>()), (3 << 18 | 1, u64::from(b'x')));
    }

    #[test]
    fn impossible_versions_are_not_written() {
        let s = sparse(1);
        let hints = Hints { mtime: Time::default(), ctime: Time::default(), mode: 0, dir_id: DirId([7; 16]), name: vec![] };
        let kind = |generation, previous, size| {
            let manifest = Manifest { size, hints: hints.clone(), content_sha256: None, records: vec![] };
            let (params, file_key) = (&s.params, &s.expect.file_key);
            let new = NewVersion { params, file_id: s.expect.file_id, file_key, generation, previous, manifest: &manifest };
            seal_root(&s.keys, &new, &[0; 24], &[0; 24]).map(drop).map_err(|e| e.kind())
        };
        assert_eq!(kind(1, Hash::ZERO, 0), Ok(()));
        assert_eq!(kind(0, Hash::ZERO, 0), Err(Kind::Bug));
        assert_eq!(kind(2, Hash::ZERO, 0), Err(Kind::Bug));
        assert_eq!(kind(1, Hash([1; 32]), 0), Err(Kind::Bug));
        assert_eq!(kind(1, Hash::ZERO, 5), Err(Kind::Bug));
        assert_eq!(kind(1, Hash::ZERO, u64::MAX), Err(Kind::TooLarge));
    }
}
