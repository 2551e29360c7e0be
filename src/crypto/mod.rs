//! AEAD, key derivation, secret memory.
