//! Fs
pub mod status;
