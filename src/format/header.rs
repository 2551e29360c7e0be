//! The first 128 bytes of a sealed file: the same for the life of a file id (FORMAT.md, section 4.1).

use super::failure::Failure;
use super::geometry::HEADER_LEN;
use super::params::Params;
use super::wire::{Reader, Writer};
use crate::crypto::hash::sha256;
use crate::error::Result;
use crate::types::{FileId, Hash};

/// What a sealed file begins with: recognisable, and broken by a transfer in text mode.
pub const MAGIC: [u8; 8] = *b"\x89SMPFS1\n";

/// Header of a sealed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Constants of the volume.
    pub params: Params,
    /// The file.
    pub file_id: FileId,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut w = Writer::with_capacity(HEADER_LEN);
        w.bytes(&MAGIC);
        self.params.write(&mut w);
        w.bytes(&self.file_id.0);
        let mut out = [0; HEADER_LEN];
        out[..w.as_slice().len()].copy_from_slice(w.as_slice());
        out
    }

    /// Reads a header: magic, version, suite, parameters, reserved bytes.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Header> {
        let mut r = Reader::new(bytes, Failure::Params);
        Failure::Magic.unless(r.array::<8>()? == MAGIC, "this is not an object of smpfs")?;
        let params = Params::read(&mut r)?;
        let file_id = FileId(r.array()?);
        r.zeros(64)?;
        r.finish()?;
        Ok(Header { params, file_id })
    }

    /// SHA-256 of the header, as the trailer signs it.
    pub fn hash(&self) -> Hash {
        Hash(sha256(&[&self.encode()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Geometry;
    use crate::types::{Suite, VolumeId};

    #[test]
    fn fields_lie_where_the_document_says_and_every_bit_counts() {
        let params =
            Params { volume_id: VolumeId([7; 16]), suite: Suite::ChaCha20Poly1305, geometry: Geometry::new(14, 4).unwrap() };
        let header = Header { params, file_id: FileId([9; 32]) };
        let bytes = header.encode();
        assert_eq!(bytes[..16], *b"\x89SMPFS1\n\0\x01\0\x02\x0e\x04\0\0");
        assert_eq!((&bytes[16..32], &bytes[32..64], &bytes[64..]), (&[7u8; 16][..], &[9u8; 32][..], &[0u8; 64][..]));
        assert_eq!(Header::parse(&bytes).unwrap(), header);
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Header::parse(&bad).ok(), Some(header), "bit {bit}");
        }
    }
}
