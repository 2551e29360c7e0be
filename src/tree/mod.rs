//! What exists: directory indexes. [`dir`] is one directory in memory, [`meet`] what happens to it when the bucket is read again,
//! [`merge`] and [`delta`] what becomes of names and inodes that two machines changed (all pure); [`io`] moves index objects to
//! and from the bucket.

pub mod delta;
pub mod dir;
#[cfg(test)]
mod dir_tests;
pub mod gone;
pub mod io;
pub mod meet;
pub mod merge;
