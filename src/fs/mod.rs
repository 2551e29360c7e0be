//! Fs: the filesystem, joining tree, read and write.

pub mod status;
