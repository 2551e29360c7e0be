//! What exists: directory indexes. [`dir`] is one directory in memory (pure); [`io`] moves index objects to and from the bucket.

pub mod delta;
pub mod dir;
pub mod io;
