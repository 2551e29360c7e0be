//! umount.smpfs

fn main() {}
