//! The rules of the code and of its documents, checked by reading them. Every failure is a sentence that says what to do.
//!
//! The checks themselves are tested on small bad inputs ([`checker`]), so that a check that sees nothing is found out.

#![allow(clippy::unwrap_used)] // helpers of tests stop at the first surprise, as tests do

#[path = "tidy/checker.rs"]
mod checker;
#[path = "tidy/docs.rs"]
mod docs;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/size.rs"]
mod size;
#[path = "tidy/source.rs"]
mod source;

use source::Source;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[track_caller]
fn report(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n\n{}\n", wrong.join("\n"));
}

/// Every source, after a look that the tree was found at all.
fn tree() -> Vec<Source> {
    let sources = source::read_tree(root());
    assert!(sources.len() > 40, "only {} files found below {}", sources.len(), root().display());
    sources
}

#[test]
fn modules_import_only_from_lower_ranks() {
    let ranks = layers::Ranks::parse(&read("src/lib.rs"));
    assert!(ranks.len() >= 20, "the table of ranks at the head of src/lib.rs was not understood: {} modules", ranks.len());
    report(tree().iter().flat_map(|s| layers::ranks(s, &ranks)).collect());
}

#[test]
fn words_stay_in_their_folders() {
    report(tree().iter().flat_map(layers::confined).collect());
}

#[test]
fn format_and_crypto_are_pure() {
    report(tree().iter().flat_map(layers::pure).collect());
}

#[test]
fn files_and_functions_are_small() {
    report(size::sizes(&tree(), size::EXCEPTIONS));
}

#[test]
fn every_file_says_what_it_is_for() {
    report(tree().iter().flat_map(size::purpose).collect());
}

#[test]
fn nothing_unwraps_outside_tests() {
    report(tree().iter().flat_map(size::unwraps).collect());
}

#[test]
fn every_test_is_run_and_described() {
    let sources = tree();
    let files: Vec<&str> = sources.iter().map(|s| s.path.as_str()).collect();
    let mut targets = docs::targets(&read("Cargo.toml"));
    assert!(!targets.is_empty(), "no [[test]] found in Cargo.toml");
    for target in docs::targets(&read("mount-helper/Cargo.toml")) {
        // A path there begins in the package's folder.
        let path = target.path.strip_prefix("../").map_or(format!("mount-helper/{}", target.path), str::to_owned);
        targets.push(docs::Target { path, ..target });
    }
    report(docs::described(&targets, &read("docs/TESTING.md"), &files));
}

#[test]
fn every_clause_of_semantics_has_a_test_or_is_listed_as_pending() {
    let clauses = docs::clauses(&read("docs/SEMANTICS.md"), &tree());
    println!("SEMANTICS.md: {} clauses tested, {} pending", clauses.tested, clauses.pending.len());
    clauses.pending.iter().for_each(|clause| println!("  pending: {clause}"));
    assert!(clauses.tested + clauses.pending.len() + clauses.wrong.len() > 20, "the clauses of SEMANTICS.md were not understood");
    report(clauses.wrong);
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for file in ["README.md", "CHANGELOG.md"] {
        wrong.extend(docs::links(root(), file, &read(file)));
    }
    for folder in ["docs", "docs/adr"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                let path = format!("{folder}/{name}");
                wrong.extend(docs::links(root(), &path, &read(&path)));
            }
        }
    }
    report(wrong);
}
