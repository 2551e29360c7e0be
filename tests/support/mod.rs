//! What several integration tests share.
#![allow(dead_code, clippy::unwrap_used)]

pub mod model;
pub mod mount;
pub mod opgen;
