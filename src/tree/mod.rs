//! What exists: directory indexes. [`dir`] is one directory in memory and [`merge`] what becomes of a name that two machines
//! changed (both pure); [`io`] moves index objects to and from the bucket.

pub mod dir;
#[cfg(test)]
mod dir_tests;
pub mod io;
pub mod merge;
