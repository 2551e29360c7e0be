//! Volume keys: init, unlock, pins.

pub mod known;
pub mod pins;
