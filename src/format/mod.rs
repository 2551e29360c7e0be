//! SMP1: every byte that smpfs writes to a bucket or a local log, as `docs/FORMAT.md` says.
//!
//! Pure: no input, output, clock or randomness; salts and secrets arrive as arguments. Parsers take hostile bytes: they never
//! panic, allocate no more than a small multiple of their input, and refuse whatever they do not know.
//!
//! - [`params`], [`geometry`], [`wire`], [`failure`]: constants of a volume, offset arithmetic, fields, failure classes
//! - [`header`], [`segment`], [`manifest`], [`trailer`] and [`object`], which joins them: a sealed file
//! - [`config`] and [`slot`]: the volume config and the ways to unlock it; [`keys`]: what follows from the volume root key
//! - [`index`] and [`entry`]: directories; [`names`]: object keys; [`lease`]: who may write where a store has no conditional writes
//! - [`log`]: sealed local logs

pub mod config;
pub mod entry;
pub mod failure;
pub mod geometry;
pub mod header;
pub mod index;
pub mod keys;
pub mod lease;
pub mod log;
pub mod manifest;
pub mod names;
pub mod object;
pub mod params;
pub mod segment;
pub mod slot;
pub mod trailer;
pub mod wire;

pub use failure::Failure;
pub use geometry::{Geometry, Layout};
pub use keys::VolumeKeys;
pub use params::Params;

/// Bytes of salt that every sealed blob wants: fresh randomness each time.
pub type Salt = [u8; crate::crypto::sealed_blob::SALT_LEN];
/// A 32-byte key, wrapped: a sealed blob of 104 bytes.
pub type Wrapped = [u8; WRAPPED_LEN];
/// Bytes of a wrapped key.
pub const WRAPPED_LEN: usize = 104;
/// The only version of the format.
pub const VERSION: u16 = 1;
