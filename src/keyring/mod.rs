//! Volume keys: init, unlock, pins.
