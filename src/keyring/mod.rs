//! Volume keys: init, unlock, pins.

pub mod known;
