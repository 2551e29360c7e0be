//! Every byte that is written to a bucket or a local sealed file (pure, no IO).

pub mod log;
