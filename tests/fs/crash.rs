//! Power losses and damage on the local disk.
