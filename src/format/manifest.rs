//! The sealed manifest of a file: its size, hints for recovery, and one record per segment (FORMAT.md, section 4.3).

use super::Salt;
use super::failure::Failure;
use super::geometry::{Geometry, Layout, MANIFEST_FIXED, RECORD_LEN};
use super::wire::{Reader, Writer};
use crate::crypto::sealed_blob;
use crate::crypto::secmem::SecretKey;
use crate::error::{Kind, Result, fail};
use crate::types::{DirId, FileId, Hash, NAME_MAX, Time, VolumeId};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const FLAG_CONTENT_HASH: u32 = 1;
const FLAG_HOLES: u32 = 2;
const RECORD_HOLE: u64 = 1;
/// The permission bits that a mode may have: rwx for three, set-id bits and sticky.
pub const MODE_BITS: u16 = 0o7777;

/// The secret from which one write of one segment derives its key and nonces. Wiped on drop.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SegmentSecret(pub [u8; 32]);

impl std::fmt::Debug for SegmentSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SegmentSecret(..)")
    }
}

/// What the manifest says of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Reads as zeros; not stored.
    Hole {
        /// File generation in which the hole was made.
        written: u64,
    },
    /// Stored in the object.
    Stored {
        /// Key material of these segment bytes.
        secret: SegmentSecret,
        /// Hash over the segment's leaves.
        root: Hash,
        /// File generation in which these bytes were sealed.
        written: u64,
    },
}

impl Record {
    /// File generation in which the segment was written.
    pub fn written(&self) -> u64 {
        match self {
            Record::Hole { written } | Record::Stored { written, .. } => *written,
        }
    }

    /// Whether the segment is a hole.
    pub fn is_hole(&self) -> bool {
        matches!(self, Record::Hole { .. })
    }
}

/// Hints for a recovery without index; the index entry is the truth.
#[derive(Clone, PartialEq, Eq)]
pub struct Hints {
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
    /// Permission bits.
    pub mode: u16,
    /// Directory at the time of writing.
    pub dir_id: DirId,
    /// Name at the time of writing.
    pub name: Vec<u8>,
}

impl std::fmt::Debug for Hints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hints").field("dir_id", &self.dir_id).finish_non_exhaustive()
    }
}

/// Manifest of one version of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Plaintext bytes.
    pub size: u64,
    /// Hints for recovery.
    pub hints: Hints,
    /// SHA-256 of the plaintext, where the writer knew it.
    pub content_sha256: Option<Hash>,
    /// One record per segment.
    pub records: Vec<Record>,
}

fn context(volume: &VolumeId, file: &FileId, generation: u64) -> Vec<u8> {
    [b"smpfs/v1/manifest\0", &volume.0[..], &file.0, &generation.to_be_bytes()].concat()
}

impl Manifest {
    /// Seals the manifest under the file key.
    pub fn seal(&self, file_key: &SecretKey, volume: &VolumeId, file: &FileId, generation: u64, salt: &Salt) -> Result<Vec<u8>> {
        let plain = self.encode()?;
        Ok(sealed_blob::seal(file_key.expose(), &context(volume, file, generation), salt, &plain))
    }

    /// Opens a sealed manifest; `manifest` when it does not open or is malformed.
    pub fn open(sealed: &[u8], file_key: &SecretKey, volume: &VolumeId, file: &FileId, generation: u64) -> Result<Manifest> {
        match sealed_blob::open(file_key.expose(), &context(volume, file, generation), sealed) {
            Ok(plain) => Manifest::parse(&plain, generation),
            Err(_) => Failure::Manifest.fail("the manifest does not open"),
        }
    }

    /// The bytes before sealing.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>> {
        if self.hints.name.len() > NAME_MAX {
            return fail(Kind::NameTooLong, "a file name is longer than 255 bytes");
        }
        let holes = self.records.iter().any(Record::is_hole);
        let flags = if self.content_sha256.is_some() { FLAG_CONTENT_HASH } else { 0 } | if holes { FLAG_HOLES } else { 0 };
        let mut w = Writer::with_capacity(MANIFEST_FIXED + RECORD_LEN * self.records.len());
        w.u64(self.size).time(self.hints.mtime).time(self.hints.ctime).u32(u32::from(self.hints.mode & MODE_BITS));
        w.u64(self.records.len() as u64).u32(flags).bytes(&self.content_sha256.unwrap_or(Hash::ZERO).0);
        w.bytes(&self.hints.dir_id.0).u16(self.hints.name.len() as u16).bytes(&self.hints.name).zeros_to(MANIFEST_FIXED);
        for record in &self.records {
            match record {
                Record::Hole { written } => w.bytes(&[0; 64]).u64(*written).u64(RECORD_HOLE),
                Record::Stored { secret, root, written } => w.bytes(&secret.0).bytes(&root.0).u64(*written).u64(0),
            };
        }
        Ok(w.secret())
    }

    /// Reads the bytes inside a sealed manifest of a file's `generation`.
    pub fn parse(plain: &[u8], generation: u64) -> Result<Manifest> {
        const CLASS: Failure = Failure::Manifest;
        let mut r = Reader::new(plain, CLASS);
        let size = r.u64()?;
        let (mtime, ctime) = (r.time()?, r.time()?);
        let mode = r.u32()?;
        let n = r.u64()?;
        let flags = r.u32()?;
        let content = Hash(r.array()?);
        let dir_id = DirId(r.array()?);
        let name_len = usize::from(r.u16()?);
        CLASS.unless(name_len <= NAME_MAX, "a name in the manifest is too long")?;
        let name = r.bytes(name_len)?.to_vec();
        r.zeros(NAME_MAX - name_len + 31)?;
        CLASS.unless(mode <= u32::from(MODE_BITS), "a mode in the manifest has unknown bits")?;
        CLASS.unless(flags & !(FLAG_CONTENT_HASH | FLAG_HOLES) == 0, "a manifest flag is unknown")?;
        let hashed = flags & FLAG_CONTENT_HASH != 0;
        CLASS.unless(hashed || content == Hash::ZERO, "a content hash is there that is not valid")?;
        // The number of records follows from the bytes that are there, so that nothing is allocated on the word of `n`.
        CLASS.unless(
            r.left().is_multiple_of(RECORD_LEN) && n == (r.left() / RECORD_LEN) as u64,
            "the number of records is wrong",
        )?;
        let mut records = Vec::with_capacity(r.left() / RECORD_LEN);
        for _ in 0..n {
            records.push(read_record(&mut r, generation)?);
        }
        r.finish()?;
        let holes = records.iter().any(Record::is_hole);
        CLASS.unless(holes == (flags & FLAG_HOLES != 0), "the holes contradict the manifest's flags")?;
        let hints = Hints { mtime, ctime, mode: mode as u16, dir_id, name };
        Ok(Manifest { size, hints, content_sha256: hashed.then_some(content), records })
    }

    /// Where everything lies; `size` when size and number of segments contradict each other.
    pub fn layout(&self, geometry: Geometry) -> Result<Layout> {
        let fits = self.size <= geometry.max_size() && geometry.segments(self.size) == self.records.len() as u64;
        Failure::Size.unless(fits, "the file's size and its number of segments contradict each other")?;
        let holes = (0..).zip(&self.records).filter(|(_, r)| r.is_hole()).map(|(k, _)| k).collect();
        Ok(Layout::new(geometry, self.size, holes))
    }
}

fn read_record(r: &mut Reader<'_>, generation: u64) -> Result<Record> {
    const CLASS: Failure = Failure::Manifest;
    let secret = SegmentSecret(r.array()?);
    let root = Hash(r.array()?);
    let (written, flags) = (r.u64()?, r.u64()?);
    CLASS.unless((1..=generation).contains(&written), "a segment was written in a generation that is not the file's")?;
    match flags {
        0 => Ok(Record::Stored { secret, root, written }),
        RECORD_HOLE => {
            CLASS.unless(secret.0 == [0; 32] && root == Hash::ZERO, "a hole has a key or a root")?;
            Ok(Record::Hole { written })
        }
        _ => CLASS.fail("a segment flag is unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let g = Geometry::new(14, 4).unwrap();
        Manifest {
            size: 2 * g.seg_size() + 1,
            hints: Hints {
                mtime: Time { sec: -5, nsec: 1 },
                ctime: Time { sec: 6, nsec: 2 },
                mode: 0o640,
                dir_id: DirId([1; 16]),
                name: b"a.dcm".to_vec(),
            },
            content_sha256: Some(Hash([2; 32])),
            records: vec![
                Record::Stored { secret: SegmentSecret([3; 32]), root: Hash([4; 32]), written: 1 },
                Record::Hole { written: 2 },
                Record::Stored { secret: SegmentSecret([5; 32]), root: Hash([6; 32]), written: 3 },
            ],
        }
    }

    #[test]
    fn round_trip_and_offsets() {
        let m = sample();
        let bytes = m.encode().unwrap();
        assert_eq!(bytes.len(), 384 + 3 * 80);
        assert_eq!(bytes[36..44], 3u64.to_be_bytes());
        assert_eq!(bytes[98..103], *b"a.dcm");
        assert_eq!(Manifest::parse(&bytes, 3).unwrap(), m);
        assert_eq!(m.layout(Geometry::new(14, 4).unwrap()).unwrap().segment(1), None);
        assert_eq!(Failure::of(&m.layout(Geometry::DEFAULT).unwrap_err()), Some(Failure::Size));
    }

    #[test]
    fn malformed_fields_are_refused() {
        let good = sample().encode().unwrap();
        let refused = |at: usize, byte: u8, generation| {
            let mut bad = good.to_vec();
            bad[at] = byte;
            let e = Manifest::parse(&bad, generation).unwrap_err();
            assert_eq!(Failure::of(&e), Some(Failure::Manifest), "byte {at}");
        };
        for (at, byte) in [(16, 0xff), (28, 0xff), (34, 0x10), (43, 4), (47, 7), (47, 2), (47, 1), (96, 1), (200, 1), (370, 1)] {
            refused(at, byte, 3);
        }
        let record = |i: usize| 384 + 80 * i;
        for (at, byte) in [
            (record(0) + 79, 2),
            (record(0) + 79, 1),
            (record(1), 1),
            (record(1) + 63, 1),
            (record(1) + 79, 0),
            (record(0) + 71, 0),
        ] {
            refused(at, byte, 3);
        }
        refused(0, 0, 2);
        assert!(Manifest::parse(&good[..good.len() - 1], 3).is_err());
        assert!(Manifest::parse(&good[..383], 3).is_err());
    }

    #[test]
    fn debug_shows_neither_secret_nor_name() {
        let text = format!("{:?}", sample());
        assert!(!text.contains("a.dcm") && !text.contains("97, 46") && !text.contains("[3, 3"), "{text}");
    }
}
