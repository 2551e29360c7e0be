//! The checks, checked: each must refuse a small bad input and accept the good one beside it.

use super::docs::{self, Target};
use super::layers::{Ranks, confined, pure, ranks};
use super::size::{self, Exception};
use super::source::{Source, mark_test_modules};

const LIB: &str = "//! Head.\n//!\n//! A sentence with `code` in it:\n//! 9 `app` · 8 `fuse cli` · 4 `tree read` ·\n//! 2 `format store` · 0 `error`.\npub mod app;\n";

fn of(path: &str, text: &str) -> Source {
    Source::new(path, text)
}

fn ranked(path: &str, text: &str) -> Vec<String> {
    ranks(&of(path, text), &Ranks::parse(LIB))
}

#[track_caller]
fn one(found: Vec<String>, part: &str) {
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains(part), "{found:?}");
}

#[test]
fn the_table_of_ranks_is_read() {
    assert_eq!(Ranks::parse(LIB).len(), 8);
    assert_eq!(Ranks::parse("//! 9 `app` · 8 `fuse`.").len(), 2);
    assert_eq!(Ranks::parse("pub mod app;").len(), 0);
}

#[test]
fn upward_and_sideways_imports_are_refused() {
    one(ranked("src/read/mod.rs", "use crate::fuse::X;"), "src/read/mod.rs:1: `read` (rank 4) imports `fuse` (rank 8)");
    one(ranked("src/read/mod.rs", "use crate::tree::X;"), "imports `tree` (rank 4)");
    one(
        ranked("src/read/mod.rs", "use crate::{\n    error::{Kind, Result},\n    store::{self, s3::Y},\n    tree,\n};"),
        "`tree`",
    );
    one(ranked("src/read/mod.rs", "fn f() { crate::tree::go() }"), "`tree`");
    one(ranked("src/read/mod.rs", "use super::tree::X;"), "`tree`");
    one(ranked("src/read/plan.rs", "use super::super::tree::X;"), "`tree`");
    one(ranked("src/read/mod.rs", "pub use crate :: nothing;\nuse crate::missing::X;"), "`missing` is no module with a rank");
    one(ranked("src/new/mod.rs", ""), "has no rank");
}

#[test]
fn downward_imports_are_accepted() {
    let good = "use crate::{error::{Kind, fuse}, store};\nuse crate::format::tree;\nuse super::super::store::X;\n// use crate::app::X;\n";
    assert_eq!(ranked("src/read/plan.rs", good), [""; 0]);
    assert_eq!(
        ranked("src/read/plan.rs", "use super::plan::X; let s = \"crate::app::x\"; crate::helper!(); crate::Thing"),
        [""; 0]
    );
    assert_eq!(ranked("src/read/mod.rs", "#[cfg(test)]\nmod tests {\n    use super::super::read::X;\n}\n"), [""; 0]);
    assert_eq!(ranked("src/main.rs", "use crate::anything;"), [""; 0]);
}

#[test]
fn confined_words_are_found_and_only_as_words() {
    one(confined(&of("src/fs/mod.rs", "use fuser::Reply;")), "`fuser` belongs only in src/fuse/");
    one(confined(&of("src/store/mod.rs", "use aws_sdk_s3::Client;")), "src/store/s3");
    one(confined(&of("src/store/dir.rs", "let x = unsafe { f() };")), "secmem.rs");
    one(confined(&of("src/store/s3/mod.rs", "use aws_lc_rs::aead;")), "src/crypto/");
    for (path, good) in [
        ("src/fuse/mod.rs", "use fuser::Reply;"),
        ("src/store/s3/mod.rs", "use aws_sdk_s3::Client;"),
        ("src/crypto/aead.rs", "use aws_lc_rs::aead;"),
        ("src/crypto/secmem.rs", "unsafe {}"),
        ("src/fs/mod.rs", "#![deny(unsafe_code)] // fuser\nlet fuser_like = \"unsafe fuser\";"),
        ("benches/x.rs", "use fuser::Reply;"),
    ] {
        assert_eq!(confined(&of(path, good)), [""; 0], "{path}: {good}");
    }
}

#[test]
fn pure_folders_are_held_pure() {
    one(pure(&of("src/format/index.rs", "let t = std::time::SystemTime::now();")), "SystemTime");
    one(pure(&of("src/crypto/aead.rs", "getrandom::fill(out)")), "getrandom");
    one(pure(&of("src/format/index.rs", "use crate::store::Store;")), "crate::store");
    for (path, good) in [
        ("src/crypto/secmem.rs", "std::fs::read(x)"),
        ("src/format/index.rs", "#[cfg(test)]\nmod tests { fn f() { std::fs::read(x) } }"),
        ("src/format/index.rs", "let operand = random_salt; // getrandom"),
        ("src/store/dir.rs", "std::fs::read(x)"),
    ] {
        assert_eq!(pure(&of(path, good)), [""; 0], "{path}: {good}");
    }
}

#[test]
fn long_files_and_functions_are_refused() {
    let long =
        |name: &str, lines: usize| format!("//! x\nfn {name}(a: [u8; 3]) -> Vec<u8> {{\n{}}}\n", "    a();\n".repeat(lines - 2));
    assert_eq!(size::sizes(&[of("src/a.rs", &long("f", 70))], &[]), [""; 0]);
    one(size::sizes(&[of("src/a.rs", &long("f", 71))], &[]), "src/a.rs:2: function `f` has 71 lines");
    one(size::sizes(&[of("src/a.rs", &"a();\n".repeat(601))], &[]), "the file has 601 lines");
    let tested = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "a();\n".repeat(590), long("f", 200));
    assert_eq!(size::sizes(&[of("src/a.rs", &tested)], &[]), [""; 0], "tests do not count");
}

#[test]
fn exceptions_only_shrink() {
    let file = [of("src/a.rs", &"a();\n".repeat(650))];
    let allow = |lines| [Exception { path: "src/a.rs", function: None, lines }];
    assert_eq!(size::sizes(&file, &allow(650)), [""; 0]);
    one(size::sizes(&file, &allow(649)), "has 650 lines");
    one(size::sizes(&file, &allow(700)), "lower the number");
    one(size::sizes(&[of("src/a.rs", "a();\n")], &allow(650)), "needed no more");
    one(size::sizes(&[], &allow(650)), "needed no more");
}

#[test]
fn unwraps_and_missing_heads_are_refused() {
    one(size::unwraps(&of("src/a.rs", "let x = y\n    .unwrap();")), "src/a.rs:2");
    assert_eq!(size::unwraps(&of("src/a.rs", "x.unwrap_or(1); // .unwrap()\n#[cfg(test)]\nfn t() { x.unwrap() }")), [""; 0]);
    assert_eq!(size::unwraps(&of("tests/a.rs", "x.unwrap()")), [""; 0]);
    one(size::purpose(&of("src/a.rs", "use x;\n//! Late.")), "begin with a line");
    one(size::purpose(&of("src/a.rs", "//!\n")), "begin with a line");
    assert_eq!(size::purpose(&of("src/a.rs", "//! Reads plans.\n")), [""; 0]);
}

#[test]
fn literals_comments_and_lifetimes_are_told_apart() {
    let text = r####"fn f<'a>(x: &'a str) { let q = '"'; let e = '\''; let r = r#"unsafe " fuser"#; b"\"unsafe"; /* unsafe /* x */ */ keep(""); 'ä'; }"####;
    let source = of("src/a.rs", text);
    let words: Vec<&str> = source.words().map(|(_, w)| w).collect();
    assert_eq!(words, ["fn", "f", "a", "x", "a", "str", "let", "q", "let", "e", "let", "r", "r", "b", "keep"]);
    assert_eq!(source.code.len(), text.len());
    assert_eq!(source.functions().len(), 1);
}

#[test]
fn test_code_is_told_from_the_rest() {
    let source = of("src/a.rs", "a();\n#[cfg(test)]\nmod b;\nc();\n#[cfg(test)]\nmod t {\n    d();\n}\ne();\n");
    assert_eq!(source.test, [false, true, true, false, true, true, true, true, false]);
}

#[test]
fn files_of_test_modules_are_test_code() {
    let mut sources = [
        of("src/a/mod.rs", "#[cfg(test)]\nmod tests;\n#[cfg(test)]\n#[path = \"b_tests.rs\"]\nmod others;\nmod plain;\n"),
        of("src/a/tests.rs", "x();\nmod more;\n#[path = \"c_tests.rs\"]\nmod c;\n"),
        of("src/a/tests/more.rs", "x();\n"),
        of("src/a/c_tests.rs", "x();\n"),
        of("src/a/b_tests.rs", "x();\n"),
        of("src/a/plain.rs", "x();\n"),
    ];
    mark_test_modules(&mut sources);
    assert_eq!(sources[1..].iter().map(|s| s.test[0]).collect::<Vec<_>>(), [true, true, true, true, false]);
}

fn target(name: &str) -> Target {
    Target { kind: "test", name: name.to_owned(), path: format!("tests/{name}.rs") }
}

#[test]
fn targets_are_read_from_a_manifest() {
    let found = docs::targets(
        "[package]\nname = \"x\"\n[[test]]\nname = \"tidy\" # the rules\n[[bench]]\nname = \"b\"\npath = \"benches/c.rs\"\nharness = false\n[lib]\nname = \"y\"\n",
    );
    let found: Vec<_> = found.iter().map(|t| (t.kind, t.name.as_str(), t.path.as_str())).collect();
    assert_eq!(found, [("test", "tidy", "tests/tidy.rs"), ("bench", "b", "benches/c.rs")]);
}

#[test]
fn tests_that_nobody_runs_or_describes_are_found() {
    let files = ["tests/a.rs", "tests/a/part.rs", "src/lib.rs"];
    assert_eq!(docs::described(&[target("a")], "| `a` | all |", &files), [""; 0]);
    one(docs::described(&[target("a")], "a", &files), "does not name `a`");
    one(docs::described(&[], "", &files), "tests/a.rs: no entry in Cargo.toml runs it");
    one(docs::described(&[target("a"), target("b")], "`a` `b`", &files), "has no file tests/b.rs");
}

#[test]
fn clauses_without_a_test_are_found() {
    let sources = [
        of(
            "src/write/close.rs",
            "//! x\nfn plain() {}\n#[cfg(test)]\nmod tests {\n    #[tokio::test(start_paused = true)]\n    async fn close_starts_it() {}\n    fn helper() {}\n}\n",
        ),
        of("tests/mount.rs", "//! x\n#[test]\nfn copies() {}\n"),
    ];
    let good = docs::clauses(
        "# T\n\nWords.\n\n**1.** A. [test: write::close::close_starts_it, mount::copies]\n\n**2.** B\nc. [pending: later]\n",
        &sources,
    );
    assert_eq!((good.tested, good.pending.len(), good.wrong.len()), (1, 1, 0), "{:?}", good.wrong);
    for (bad, part) in [
        ("**1.** A.", "must end with"),
        ("**1.** A. [pending: ]", "must end with"),
        ("**2.** A. [test: mount::copies]", "without gaps"),
        ("**1.** A. [test: mount::moves]", "`mount::moves`, which does not exist"),
        ("**1.** A. [test: write::close::plain]", "does not exist"),
        ("**1.** A. [test: write::close::helper]", "does not exist"),
        ("**1.** A. [test: read::close_starts_it]", "does not exist"),
        ("**1.** A. [test: copies]", "does not exist"),
    ] {
        one(docs::clauses(bad, &sources).wrong, part);
    }
}

#[test]
fn dead_links_are_found() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    one(docs::links(root, "docs/A.md", "[x](nowhere.md) [y](https://example.org) [z](#here) [c](../Cargo.toml)"), "nowhere.md");
}
