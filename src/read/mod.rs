//! The read path.

pub mod budget;
pub mod cache;
pub mod diskcache;
