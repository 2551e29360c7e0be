//! The `smpfs` binary.

fn main() {}
