//! What exists: directory indexes.
