//! The read path: from an index entry to verified plaintext.
//!
//! ```text
//!  fs ── open(Ask) ──> OpenObject             two parallel gets, or one; verified as FORMAT.md 4.5 says
//!     ── Handle::read_now ──> Cache           on the kernel's threads: memory only
//!     ── Handle::read ──> Cache ──miss──> Flights ──> disk cache ──miss──> store ──> AEAD, leaves ──> Cache
//!              └─ Pattern: what comes next ──> Flights (nobody waits)
//! ```
//! Nothing unverified is returned or kept. Every buffer is paid for from one [`budget::Budget`]. What fails twice goes to the
//! [`Witness`]. An open object is one version: each get carries its tag, and a replaced object is `Stale`.

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
