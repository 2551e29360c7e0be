//! Cryptographic building blocks: ciphers, derivations, signatures, and memory for keys.
//!
//! Everything here is pure: no input, output or clock, and randomness arrives as bytes from the caller. Nothing is invented
//! here either: each file wraps one published construction, names its source, and is tested against that source's vectors.
//! What the constructions are used *for* is the business of `format`.

pub mod aead;
pub mod hash;
pub mod kdf;
pub mod mac;
pub mod sealed_blob;
pub mod secmem;
pub mod sign;
pub mod wiped;
