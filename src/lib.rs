//! smpfs: an encrypted cloud bucket as a local directory.
//!
//! A request enters at [`fuse`], is answered by an [`ops::Ops`] (the [`control`] overlay in front of [`fs`]), which asks [`tree`]
//! what exists and [`read`] or [`mod@write`] for bytes; these turn bytes into sealed chunks with [`mod@format`] and [`crypto`], and move
//! them with [`store`]. `docs/ARCHITECTURE.md` has the picture, `docs/FORMAT.md` every byte that reaches a bucket or a disk.
//!
//! A module imports only from a lower rank, never from its own; `tests/tidy.rs` checks it:
//! 9 `app` · 8 `fuse cli config` · 7 `control` · 6 `wipe scrub` · 5 `fs` · 4 `tree read write keyring audit lease` · 3 `sealedlog` ·
//! 2 `format store` · 1 `crypto ops disk env` · 0 `types error`.

#![warn(missing_docs)]

pub mod app;
pub mod audit;
pub mod cli;
pub mod config;
pub mod control;
pub mod crypto;
pub mod disk;
pub mod env;
pub mod error;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod keyring;
pub mod lease;
pub mod ops;
pub mod read;
pub mod scrub;
pub mod sealedlog;
pub mod store;
pub mod tree;
pub mod types;
pub mod wipe;
pub mod write;
