//! The .smpfs tree in front of the filesystem.
