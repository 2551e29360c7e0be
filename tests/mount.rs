//! The real `smpfs` on real kernel mounts, as people use it: commands, damage in the bucket, a store that goes away, crashes, a full
//! disk, and what is left on the local disk. Skipped (and said so) where nothing can be mounted.
#![allow(clippy::unwrap_used)] // helpers of tests stop at the first surprise, as tests do

// First: the others use its macros.
#[path = "mount/world.rs"]
#[macro_use]
mod world;

#[path = "mount/blackhole.rs"]
mod blackhole;
#[path = "mount/bucket.rs"]
mod bucket;
#[path = "mount/commands.rs"]
mod commands;
#[path = "mount/crash.rs"]
mod crash;
#[path = "mount/damage.rs"]
mod damage;
#[path = "mount/extremes.rs"]
mod extremes;
#[path = "mount/failpoints.rs"]
mod failpoints;
#[path = "mount/lease.rs"]
mod lease;
#[path = "mount/links.rs"]
mod links;
#[path = "mount/machines.rs"]
mod machines;
#[path = "mount/outage.rs"]
mod outage;
#[path = "mount/posix.rs"]
mod posix;
#[path = "mount/process.rs"]
mod process;
#[path = "support/rclone.rs"]
mod rclone;
#[path = "mount/scrub.rs"]
mod scrub;
#[path = "mount/secrets.rs"]
mod secrets;
#[path = "mount/server.rs"]
mod server;
#[path = "mount/space.rs"]
mod space;
