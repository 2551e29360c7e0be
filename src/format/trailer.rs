//! The last 512 bytes of a sealed file: its only root (FORMAT.md, section 4.4).

use super::failure::Failure;
use super::geometry::TRAILER_LEN;
use super::params::Params;
use super::wire::{Reader, Writer};
use super::{WRAPPED_LEN, Wrapped};
use crate::crypto::hash::sha256;
use crate::crypto::sign::{SigningKey, VerifyingKey};
use crate::error::Result;
use crate::types::{FileId, Hash};

/// What a trailer begins with.
pub const MAGIC: [u8; 8] = *b"SMPTAIL\x01";
/// The writer id of the volume's owner.
pub const OWNER: u32 = 0;
const SIGN_LABEL: &[u8] = b"smpfs/v1/trailer\0";
const SIGNED: usize = TRAILER_LEN - 64;

/// Trailer of a sealed file, without its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Constants of the volume.
    pub params: Params,
    /// The file.
    pub file_id: FileId,
    /// Version of the file, from 1.
    pub generation: u64,
    /// Offset of the manifest in the object.
    pub manifest_off: u64,
    /// Length of the manifest.
    pub manifest_len: u64,
    /// Which key-encryption key wraps the file key.
    pub kek_epoch: u32,
    /// Who signs; 0 is the owner.
    pub writer_id: u32,
    /// SHA-256 of the header.
    pub header_hash: Hash,
    /// Hash over the roots of all stored segments.
    pub body_root: Hash,
    /// SHA-256 of the sealed manifest.
    pub manifest_hash: Hash,
    /// Trailer hash of the version before; zeros in generation 1.
    pub previous: Hash,
    /// The file key under the key-encryption key of the epoch.
    pub wrapped_key: Wrapped,
    /// Keyed hash of directory and name at the time of writing.
    pub name_bind: [u8; 32],
}

impl Trailer {
    /// The trailer's bytes, signed by `writer`.
    pub fn seal(&self, writer: &SigningKey) -> [u8; TRAILER_LEN] {
        let mut w = Writer::with_capacity(TRAILER_LEN);
        w.bytes(&MAGIC);
        self.params.write(&mut w);
        w.bytes(&self.file_id.0).u64(self.generation).u64(self.manifest_off).u64(self.manifest_len);
        w.u32(self.kek_epoch).u32(self.writer_id);
        w.bytes(&self.header_hash.0).bytes(&self.body_root.0).bytes(&self.manifest_hash.0).bytes(&self.previous.0);
        w.bytes(&self.wrapped_key).bytes(&self.name_bind).zeros_to(SIGNED);
        let signature = writer.sign(&[SIGN_LABEL, w.as_slice()]);
        let mut out = [0; TRAILER_LEN];
        out[..SIGNED].copy_from_slice(w.as_slice());
        out[SIGNED..].copy_from_slice(&signature);
        out
    }

    /// Reads a trailer; the signature is not checked here.
    pub fn parse(bytes: &[u8; TRAILER_LEN]) -> Result<Trailer> {
        let mut r = Reader::new(&bytes[..SIGNED], Failure::Params);
        Failure::Magic.unless(r.array::<8>()? == MAGIC, "the object does not end like one of smpfs")?;
        let trailer = Trailer {
            params: Params::read(&mut r)?,
            file_id: FileId(r.array()?),
            generation: r.u64()?,
            manifest_off: r.u64()?,
            manifest_len: r.u64()?,
            kek_epoch: r.u32()?,
            writer_id: r.u32()?,
            header_hash: Hash(r.array()?),
            body_root: Hash(r.array()?),
            manifest_hash: Hash(r.array()?),
            previous: Hash(r.array()?),
            wrapped_key: r.array::<WRAPPED_LEN>()?,
            name_bind: r.array()?,
        };
        r.zeros(88)?;
        r.finish()?;
        Failure::Params.unless(trailer.generation > 0, "a generation of zero")?;
        let first = trailer.generation == 1;
        Failure::Params
            .unless(first == (trailer.previous == Hash::ZERO), "generation and previous version contradict each other")?;
        Ok(trailer)
    }

    /// Checks the signature over a trailer's bytes.
    pub fn verify(bytes: &[u8; TRAILER_LEN], writer: &VerifyingKey) -> Result<()> {
        let (signed, signature) = bytes.split_at(SIGNED);
        let good = signature.try_into().is_ok_and(|s| writer.verify(&[SIGN_LABEL, signed], s).is_ok());
        Failure::Signature.unless(good, "the object's signature does not hold")
    }
}

/// The trailer hash: SHA-256 of all 512 bytes.
pub fn trailer_hash(bytes: &[u8; TRAILER_LEN]) -> Hash {
    Hash(sha256(&[bytes]))
}
