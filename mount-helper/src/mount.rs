//! mount.smpfs

fn main() {}
