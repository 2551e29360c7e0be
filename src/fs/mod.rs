//! Fs: the filesystem, joining tree, read and write.
