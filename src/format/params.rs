//! The constants of a volume that every object repeats, and the numbers that stand for suites and modes.

use super::failure::Failure;
use super::geometry::Geometry;
use super::wire::{Reader, Writer};
use crate::error::Result;
use crate::types::{Mode, Suite, VolumeId};

/// What all objects of a volume have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// The volume.
    pub volume_id: VolumeId,
    /// The cipher of chunks.
    pub suite: Suite,
    /// Chunk and segment sizes.
    pub geometry: Geometry,
}

/// The number of a suite in every object.
pub fn suite_code(suite: Suite) -> u16 {
    match suite {
        Suite::Aes256Gcm => 1,
        Suite::ChaCha20Poly1305 => 2,
    }
}

/// The suite of a number; others are refused.
pub fn suite_from(code: u16) -> Result<Suite> {
    match code {
        1 => Ok(Suite::Aes256Gcm),
        2 => Ok(Suite::ChaCha20Poly1305),
        _ => Failure::Suite.fail("the cipher suite is unknown; a newer smpfs may have written this"),
    }
}

/// The number of a mode in the volume config.
pub fn mode_code(mode: Mode) -> u8 {
    match mode {
        Mode::Standard => 1,
        Mode::ZeroKnowledge => 2,
    }
}

/// The mode of a number; others are refused.
pub fn mode_from(code: u8) -> Result<Mode> {
    match code {
        1 => Ok(Mode::Standard),
        2 => Ok(Mode::ZeroKnowledge),
        _ => Failure::Params.fail("the volume's mode is unknown; a newer smpfs may have written this"),
    }
}

/// Chunk and segment sizes from their exponents; others than the allowed ones are refused.
pub fn geometry_from(chunk_log2: u8, seg_log2: u8) -> Result<Geometry> {
    Geometry::new(chunk_log2, seg_log2).ok_or_else(|| Failure::Params.error("chunk or segment size is outside the allowed range"))
}

/// Checks the version that follows a magic.
pub fn version_from(r: &mut Reader<'_>) -> Result<()> {
    let known = r.u16()? == super::VERSION;
    Failure::Version.unless(known, "the format version is unknown; a newer smpfs may have written this")
}

impl Params {
    /// Writes version, suite, geometry, flags (none) and volume id: the bytes that header and trailer share.
    pub(super) fn write(&self, w: &mut Writer) {
        w.u16(super::VERSION).u16(suite_code(self.suite));
        w.u8(self.geometry.chunk_log2()).u8(self.geometry.seg_log2()).u16(0).bytes(&self.volume_id.0);
    }

    /// Reads the same, in the order of the checks: version, suite, geometry, flags.
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Params> {
        version_from(r)?;
        let suite = suite_from(r.u16()?)?;
        let geometry = geometry_from(r.u8()?, r.u8()?)?;
        Failure::Params.unless(r.u16()? == 0, "a flag is set that this version does not know")?;
        Ok(Params { volume_id: VolumeId(r.array()?), suite, geometry })
    }

    /// Refuses `other` when its suite or geometry is not this one. (A wrong volume id is a matter of identity.)
    pub fn check(&self, other: &Params) -> Result<()> {
        Failure::Suite.unless(self.suite == other.suite, "the object's cipher suite is not the volume's")?;
        Failure::Params.unless(self.geometry == other.geometry, "the object's chunk sizes are not the volume's")
    }
}
