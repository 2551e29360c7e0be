//! Directory index objects: heads and shards, sealed and signed (FORMAT.md, section 7).

use super::Salt;
use super::entry::{Entry, MIN_ENTRY};
use super::failure::Failure;
use super::keys::VolumeKeys;
use super::names::Place;
use super::params::version_from;
use super::trailer::OWNER;
use super::wire::{Reader, Writer};
use crate::crypto::hash::sha256;
use crate::crypto::sealed_blob;
use crate::crypto::secmem::SecretKey;
use crate::crypto::sign::VerifyingKey;
use crate::error::{Kind, Result, fail};
use crate::types::{DirId, Hash, VolumeId};
use zeroize::Zeroizing;

/// What an index object begins with.
pub const MAGIC: [u8; 8] = *b"SMPDIR\x01\x0a";
/// Most bytes of entries and fixed fields in one object, before padding.
pub const MAX_PAYLOAD: usize = 16 << 20;
/// Shards of a directory are `2^MAX_SHARD_BITS` at most.
pub const MAX_SHARD_BITS: u8 = 16;
/// Entries of a directory at most.
pub const MAX_ENTRIES: u64 = 1 << 24;
/// Longest index object: refuse to fetch more.
pub const MAX_OBJECT: u64 = (OUTER_LEN + sealed_blob::sealed_len(MAX_PAYLOAD) + 64) as u64;
const LABEL: &[u8] = b"smpfs/v1/index\0";
const CLASS: Failure = Failure::Index;
const FLAG_FROZEN: u8 = 1;
/// Bytes before the blob, and fixed bytes of the payload.
const OUTER_LEN: usize = 8 + 2 + 2 + 4 + 16 + 4;
const FIXED_LEN: usize = 4 + 4 + 4 + 8 + 32 + 4;
const MIN_PADDED: usize = 4096;

/// A directory: where its index belongs and what seals it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirRef {
    /// The directory.
    pub dir_id: DirId,
    /// Key of its index objects.
    pub dir_key: SecretKey,
}

/// What an index object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The head of a directory.
    Head {
        /// 0: the head holds the entries. b: `2^b` shards hold them.
        shard_bits: u8,
        /// Epoch of the shards; without shards the last epoch that was used, 0 at first.
        epoch: u32,
    },
    /// A shard.
    Shard {
        /// Number of shards: `2^shard_bits`.
        shard_bits: u8,
        /// Its epoch.
        epoch: u32,
        /// Its number.
        slot: u32,
    },
}

impl Role {
    /// Where an object of this role lies.
    pub fn place(self) -> Place {
        match self {
            Role::Head { .. } => Place::HEAD,
            Role::Shard { epoch, slot, .. } => Place { epoch, slot },
        }
    }

    fn valid(self) -> bool {
        match self {
            Role::Head { shard_bits, epoch } => shard_bits == 0 || (shard_bits <= MAX_SHARD_BITS && epoch > 0),
            Role::Shard { shard_bits, epoch, slot } => {
                (1..=MAX_SHARD_BITS).contains(&shard_bits) && epoch > 0 && slot < 1 << shard_bits
            }
        }
    }

    /// Whether an entry of this name belongs into an object of this role.
    fn holds(self, name: &[u8]) -> bool {
        match self {
            Role::Head { shard_bits, .. } => shard_bits == 0,
            Role::Shard { shard_bits, slot, .. } => shard_of(name, shard_bits) == slot,
        }
    }
}

/// The shard that an entry of this name lives in, among `2^shard_bits`.
pub fn shard_of(name: &[u8], shard_bits: u8) -> u32 {
    let hash = sha256(&[name]);
    let top = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    top.checked_shr(32 - u32::from(shard_bits.min(32))).unwrap_or(0)
}

/// One version of an index object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexNode {
    /// Head or shard, and which.
    pub role: Role,
    /// No entries may be added any more: the directory is being split.
    pub frozen: bool,
    /// Version of this object, from 1.
    pub generation: u64,
    /// Index hash of the version before; zeros in generation 1.
    pub previous: Hash,
    /// Entries in ascending byte order of name.
    pub entries: Vec<Entry>,
}

/// Bytes of an index object's payload when it is padded (Padmé; 4 096 bytes or more).
pub const fn padded_len(len: usize) -> usize {
    let len = if len < MIN_PADDED { MIN_PADDED } else { len };
    let exponent = len.ilog2();
    let low_bits = exponent - (exponent.ilog2() + 1);
    let mask = (1 << low_bits) - 1;
    (len + mask) & !mask
}

fn context(volume: &VolumeId, dir: &DirId, place: Place) -> Vec<u8> {
    [b"smpfs/v1/index\0", &volume.0[..], &dir.0, &place.epoch.to_be_bytes(), &place.slot.to_be_bytes()].concat()
}

impl IndexNode {
    /// Bytes of the payload before padding.
    pub fn payload_len(&self) -> usize {
        FIXED_LEN + self.entries.iter().map(Entry::encoded_len).sum::<usize>()
    }

    /// Seals and signs this version; the bytes and their index hash. `NoSpace` when the entries are too many for one object.
    pub fn seal(&self, keys: &VolumeKeys, dir: &DirRef, salt: &Salt) -> Result<(Vec<u8>, Hash)> {
        let volume = keys.volume_id();
        let payload = self.encode()?;
        let blob = sealed_blob::seal(dir.dir_key.expose(), &context(&volume, &dir.dir_id, self.role.place()), salt, &payload);
        let mut w = Writer::with_capacity(OUTER_LEN + blob.len() + 64);
        w.bytes(&MAGIC).u16(super::VERSION).u16(0).u32(OWNER).bytes(&volume.0).u32(blob.len() as u32).bytes(&blob);
        let signature = keys.owner().sign(&[LABEL, w.as_slice()]);
        w.bytes(&signature);
        let bytes = w.public();
        let hash = Hash(sha256(&[&bytes]));
        Ok((bytes, hash))
    }

    /// Opens the object found at `place` of `dir`, and gives its index hash. Everything that does not hold is `index`; whether
    /// this version may be the present one is for [`super::object::check_version`].
    pub fn open(keys: &VolumeKeys, dir: &DirRef, place: Place, bytes: &[u8]) -> Result<(IndexNode, Hash)> {
        let blob = verify(keys, bytes)?;
        let volume = keys.volume_id();
        let Ok(payload) = sealed_blob::open(dir.dir_key.expose(), &context(&volume, &dir.dir_id, place), blob) else {
            return CLASS.fail("an index object does not open: it belongs to another directory or was changed");
        };
        let node = IndexNode::parse(&payload)?;
        CLASS.unless(node.role.place() == place, "an index object says that it belongs elsewhere")?;
        Ok((node, Hash(sha256(&[bytes]))))
    }

    /// The payload before sealing, padded.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>> {
        let len = self.payload_len();
        let padded = padded_len(len);
        if padded > MAX_PAYLOAD {
            return fail(Kind::NoSpace, "the directory has too many entries for its index");
        }
        let chained = (self.generation == 1) == (self.previous == Hash::ZERO) && self.generation > 0;
        let sorted = self.entries.is_sorted_by(|a, b| a.name < b.name);
        if !chained || !sorted || !self.role.valid() || !self.entries.iter().all(|e| self.role.holds(&e.name)) {
            return fail(Kind::Bug, "an index object was to be written that the format does not allow");
        }
        let (kind, shard_bits, epoch, slot) = match self.role {
            Role::Head { shard_bits, epoch } => (1, shard_bits, epoch, 0),
            Role::Shard { shard_bits, epoch, slot } => (2, shard_bits, epoch, slot),
        };
        let mut w = Writer::with_capacity(padded);
        w.u8(kind).u8(if self.frozen { FLAG_FROZEN } else { 0 }).u8(shard_bits).u8(0).u32(epoch).u32(slot);
        w.u64(self.generation).bytes(&self.previous.0).u32(self.entries.len() as u32);
        for entry in &self.entries {
            entry.check()?;
            entry.write(&mut w);
        }
        w.zeros_to(padded);
        Ok(w.secret())
    }

    /// Reads a payload.
    pub fn parse(payload: &[u8]) -> Result<IndexNode> {
        CLASS.unless(payload.len() <= MAX_PAYLOAD, "an index object is too long")?;
        let mut r = Reader::new(payload, CLASS);
        let (kind, flags, shard_bits, reserved) = (r.u8()?, r.u8()?, r.u8()?, r.u8()?);
        CLASS.unless(reserved == 0 && flags & !FLAG_FROZEN == 0, "an index object has an unknown flag")?;
        let (epoch, slot) = (r.u32()?, r.u32()?);
        let role = match (kind, slot) {
            (1, 0) => Role::Head { shard_bits, epoch },
            (2, _) => Role::Shard { shard_bits, epoch, slot },
            _ => return CLASS.fail("an index object of unknown kind; a newer smpfs may have written this"),
        };
        CLASS.unless(role.valid(), "an index object has an impossible place")?;
        let (generation, previous) = (r.u64()?, Hash(r.array()?));
        let chained = generation > 0 && (generation == 1) == (previous == Hash::ZERO);
        CLASS.unless(chained, "generation and previous version contradict each other")?;
        let count = r.u32()? as usize;
        CLASS.unless(count <= r.left() / MIN_ENTRY, "an index object claims more entries than it has bytes")?;
        let mut entries: Vec<Entry> = Vec::with_capacity(count);
        for _ in 0..count {
            let entry = Entry::read(&mut r)?;
            CLASS.unless(entries.last().is_none_or(|last| last.name < entry.name), "index entries are out of order")?;
            CLASS.unless(role.holds(&entry.name), "an index entry lies in the wrong object")?;
            entries.push(entry);
        }
        let used = payload.len() - r.left();
        CLASS.unless(padded_len(used) == payload.len(), "an index object is padded to another length")?;
        r.zeros(r.left())?;
        Ok(IndexNode { role, frozen: flags & FLAG_FROZEN != 0, generation, previous, entries })
    }

    /// The entry of this name, where there is one.
    pub fn find(&self, name: &[u8]) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|e| e.name.as_slice().cmp(name)).ok()?;
        self.entries.get(at)
    }
}

/// Checks everything around the blob of an index object, signature included, and gives the blob. Needs no directory key.
pub fn verify<'a>(keys: &VolumeKeys, bytes: &'a [u8]) -> Result<&'a [u8]> {
    verify_by(keys.volume_id(), |id| keys.writer(id).cloned(), bytes)
}

/// The same with the public keys of writers alone: for somebody without the volume's keys.
pub fn verify_by(volume: VolumeId, writer_key: impl Fn(u32) -> Option<VerifyingKey>, bytes: &[u8]) -> Result<&[u8]> {
    CLASS.unless(bytes.len() as u64 <= MAX_OBJECT, "an index object is too long")?;
    let mut r = Reader::new(bytes, CLASS);
    CLASS.unless(r.array::<8>()? == MAGIC, "this is not an index object of smpfs")?;
    if version_from(&mut r).is_err() {
        return CLASS.fail("an index object of unknown version; a newer smpfs may have written this");
    }
    r.zeros(2)?;
    let writer = writer_key(r.u32()?);
    CLASS.unless(r.array()? == volume.0, "an index object of another volume")?;
    let blob_len = r.u32()? as usize;
    let blob = r.bytes(blob_len)?;
    let signed = &bytes[..bytes.len() - r.left()];
    let signature = r.slice()?;
    r.finish()?;
    let good = writer.is_some_and(|w| w.verify(&[LABEL, signed], signature).is_ok());
    CLASS.unless(good, "an index object's signature does not hold")?;
    Ok(blob)
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
