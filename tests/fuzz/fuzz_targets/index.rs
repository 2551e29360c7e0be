//! Fuzz target: see `targets::index_object`.
#![no_main]
#[path = "../targets.rs"]
#[allow(dead_code)]
mod targets;
libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::index_object(data));
