//! The read path.

pub mod budget;
pub mod cache;
pub mod diskcache;
mod fill;
mod flight;
mod handle;
mod object;
mod open;
mod pattern;
mod pool;
mod reader;
mod verify;
mod witness;

pub use handle::Handle;
pub use object::{ObjectParts, OpenObject};
pub use open::Ask;
pub use reader::{MAX_READ, OnUnavailable, ReadOptions, Reader};
pub use witness::{CorruptReport, EVIDENCE_MAX, Witness};
#[cfg(test)]
mod testkit;
#[cfg(test)]
mod tests;
