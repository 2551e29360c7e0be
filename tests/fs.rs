//! The production filesystem without the kernel: against the reference model, over crashes, faults of the store, and two machines
//! on one bucket; and directed tests of what the bucket is made to hold.
#![allow(clippy::unwrap_used)]

#[path = "fs/alloc.rs"]
mod alloc;
#[path = "fs/attrs.rs"]
mod attrs;
#[path = "fs/clauses.rs"]
mod clauses;
#[path = "fs/conflict.rs"]
mod conflict;
#[path = "fs/crash.rs"]
mod crash;
#[path = "fs/directed.rs"]
mod directed;
#[path = "fs/hold.rs"]
mod hold;
#[path = "fs/lease.rs"]
mod lease;
#[path = "fs/links.rs"]
mod links;
#[path = "fs/machines.rs"]
mod machines;
#[path = "fs/moves.rs"]
mod moves;
#[path = "fs/plain.rs"]
mod plain;
#[path = "fs/props.rs"]
mod props;
#[path = "fs/races.rs"]
mod races;
#[path = "fs/reader.rs"]
mod reader;
#[path = "fs/recover.rs"]
mod recover;
#[path = "fs/rmdir.rs"]
mod rmdir;
#[path = "fs/scrub.rs"]
mod scrub;
mod support;
#[path = "fs/uploads.rs"]
mod uploads;
#[path = "fs/world.rs"]
mod world;
