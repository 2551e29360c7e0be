//! The production filesystem without the kernel: against the reference model, over crashes, faults of the store, and two machines
//! on one bucket; and directed tests of what the bucket is made to hold.
#![allow(clippy::unwrap_used)]

#[path = "fs/conflict.rs"]
mod conflict;
#[path = "fs/crash.rs"]
mod crash;
#[path = "fs/directed.rs"]
mod directed;
#[path = "fs/props.rs"]
mod props;
#[path = "fs/reader.rs"]
mod reader;
mod support;
#[path = "fs/world.rs"]
mod world;
