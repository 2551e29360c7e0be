//! Subcommands: what the command line does.

mod client;
mod failure;
mod handshake;
mod harden;
mod logs;
mod mounted;
mod mountpoint;
mod secret;
mod serve;
mod settings;
mod socket;

pub use failure::{Failure, Outcome};
pub use mounted::Mounted;
