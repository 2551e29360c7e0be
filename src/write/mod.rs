//! The write path: what programs write waits in a sealed spool ([`spool`], [`layer`], [`extents`]), and becomes a new version of
//! an object ([`plan`], [`upload`]).

pub mod extents;
pub mod layer;
pub mod plan;
pub mod spool;
pub mod upload;
