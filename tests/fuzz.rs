//! Runs every fuzz target of `tests/fuzz/` over a small corpus: the golden vectors, cut, flipped and joined. A real fuzzing
//! session needs `cargo fuzz` and a nightly compiler (see `tests/fuzz/README.md`); this keeps the targets alive in between.

#![allow(clippy::unwrap_used)] // helpers of tests, too, stop at the first surprise

#[path = "fuzz/targets.rs"]
mod targets;

use std::path::{Path, PathBuf};

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if !path.extension().is_some_and(|e| e == "rs" || e == "py" || e == "json" || e == "pyc") {
            found.push(path);
        }
    }
}

/// The golden files and what random damage makes of them, the same in every run.
fn corpus() -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors"), &mut paths);
    paths.sort();
    assert!(paths.len() > 30, "the golden vectors are the corpus");
    let seeds: Vec<Vec<u8>> = paths.iter().map(|p| std::fs::read(p).unwrap()).filter(|b| b.len() < 8192).collect();
    let mut state = 1u64;
    let mut random = |below: usize| {
        // xorshift64*: quality does not matter here, repeatability does.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % below.max(1)
    };
    let mut out = vec![Vec::new(), vec![0; 1], vec![0xff; 4096]];
    for seed in &seeds {
        out.push(seed.clone());
        for _ in 0..12 {
            let mut bytes = seed.clone();
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes.truncate(at),
                    1 => bytes.splice(at..at, seed[..random(seed.len())].iter().copied()).for_each(drop),
                    _ if bytes.is_empty() => bytes.push(0xff),
                    2 => bytes[at] ^= 1 << random(8),
                    _ => bytes[at] = [0, 0xff, 0x7f, 0x80][random(4)],
                }
            }
            out.push(bytes);
        }
    }
    out
}

#[test]
fn every_target_survives_the_corpus() {
    let corpus = corpus();
    for (name, target) in targets::ALL {
        for (i, bytes) in corpus.iter().enumerate() {
            let caught = std::panic::catch_unwind(|| target(bytes));
            assert!(caught.is_ok(), "{name} panicked on input {i} of {}", corpus.len());
        }
    }
}
