//! Local files behind a trait.
