//! Who may import whom, and which words stay in which folder.

use super::source::Source;

/// Which module has which rank.
pub struct Ranks(Vec<(String, u8)>);

impl Ranks {
    /// Reads the table as the head of `src/lib.rs` gives it: "2 `format store` · 1 `crypto`".
    pub fn parse(lib: &str) -> Ranks {
        let doc: String = lib.lines().map_while(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join(" ");
        let mut ranks = Vec::new();
        for part in doc.split('·') {
            let Some((before, rest)) = part.split_once('`') else { continue };
            let number = before.split_whitespace().next_back().and_then(|word| word.parse().ok());
            let (Some(number), Some((names, _))) = (number, rest.split_once('`')) else { continue };
            ranks.extend(names.split_whitespace().map(|name| (name.to_owned(), number)));
        }
        // The first part holds the sentences before the table as well: its number stands before its last pair of backquotes.
        let first = doc.split('·').next().unwrap_or_default();
        if let Some((before, names)) = first.trim_end().strip_suffix('`').and_then(|part| part.rsplit_once('`'))
            && let Some(number) = before.split_whitespace().next_back().and_then(|word| word.parse().ok())
        {
            ranks.extend(names.split_whitespace().map(|name| (name.to_owned(), number)));
        }
        ranks.sort();
        ranks.dedup();
        Ranks(ranks)
    }

    fn of(&self, module: &str) -> Option<u8> {
        self.0.iter().find(|(name, _)| name == module).map(|(_, rank)| *rank)
    }

    /// How many modules have a rank.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// A word (or, with a trailing `*`, a beginning of words), where it may stand, and why.
struct Confined {
    word: &'static str,
    /// Paths begin with one of these.
    only: &'static [&'static str],
    why: &'static str,
}

const CONFINED: &[Confined] = &[
    Confined {
        word: "fuser",
        only: &["src/fuse/"],
        why: "the kernel is met in one place; everything else answers the trait `Ops`",
    },
    Confined { word: "aws_lc_rs", only: &["src/crypto/"], why: "a cipher backend belongs behind `crypto::aead`" },
    Confined { word: "aws_*", only: &["src/store/s3"], why: "one backend must not leak into the others" },
    Confined { word: "unsafe", only: &["src/crypto/secmem.rs"], why: "memory safety is argued in one file" },
];

/// Folders without input, output, clock or randomness, and the words that would bring them in.
const PURE: &[&str] = &["src/format/", "src/crypto/"];
const IMPURE_FILE: &str = "src/crypto/secmem.rs";
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "tokio",
    "SystemTime",
    "Instant",
    "getrandom",
    "rand",
    "OsRng",
    "crate::store",
    "crate::disk",
    "crate::env",
];

/// The layer rule, on every path that names a module of the crate: `use` lines, grouped and nested ones, and paths in code.
pub fn ranks(source: &Source, ranks: &Ranks) -> Vec<String> {
    let Some(own) = source.path.strip_prefix("src/").map(|_| source.module()) else { return Vec::new() };
    let Some(own_name) = own.first().copied().filter(|name| !matches!(*name, "main")) else { return Vec::new() };
    let Some(own_rank) = ranks.of(own_name) else {
        return vec![format!(
            "{}: module `{own_name}` has no rank: give it one in the table at the head of src/lib.rs",
            source.path
        )];
    };
    let mut wrong = Vec::new();
    for (at, module) in crate_paths(source, own.len()) {
        if module == own_name {
            continue;
        }
        match ranks.of(&module) {
            None => wrong.push(format!("{}: `{module}` is no module with a rank: check the spelling, or give it one in the table at the head of src/lib.rs", source.place(at))),
            Some(rank) if rank >= own_rank => wrong.push(format!(
                "{}: `{own_name}` (rank {own_rank}) imports `{module}` (rank {rank}): import only from a lower rank; \
                 let `{own_name}` define a trait that a higher module joins, or move what both need down",
                source.place(at)
            )),
            Some(_) => {}
        }
    }
    wrong
}

/// Top-level modules that the code names, as `crate::x`, `crate::{x, y::z}` or enough `super::`s.
fn crate_paths(source: &Source, depth: usize) -> Vec<(usize, String)> {
    let code = &source.code;
    let mut found = Vec::new();
    for (at, _) in source.words().filter(|(_, word)| *word == "crate") {
        heads(code, at + "crate".len(), &mut found);
    }
    let words: Vec<(usize, &str)> = source.words().collect();
    for (i, (at, word)) in words.iter().enumerate() {
        // In test code, `super` counts from an inner module: only `crate::` paths are followed there.
        if *word != "super" || source.is_test(*at) || (i > 0 && words[i - 1].1 == "super") {
            continue;
        }
        let ups = words[i..].iter().take_while(|(_, w)| *w == "super").count();
        if ups >= depth {
            let (last, _) = words[i + ups - 1];
            heads(code, last + "super".len(), &mut found);
        }
    }
    found
}

/// First names of the path that goes on at `at` with `::name` or `::{name, name::more}`; macros (`name!`) are not modules.
fn heads(code: &str, at: usize, found: &mut Vec<(usize, String)>) {
    let Some(rest) = code[at..].strip_prefix("::") else { return };
    let start = at + 2;
    let name = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    if !rest.starts_with('{') {
        let head = name(rest);
        if !rest[head.len()..].starts_with('!') && head.starts_with(|c: char| c.is_lowercase()) {
            found.push((start, head));
        }
        return;
    }
    let mut depth = 0;
    let mut expect = true;
    for (i, c) in rest.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return,
            '}' => depth -= 1,
            ',' if depth == 1 => expect = true,
            c if expect && depth == 1 && (c.is_alphabetic() || c == '_') => {
                found.push((start + i, name(&rest[i..])));
                expect = false;
            }
            _ => {}
        }
    }
}

/// Words that stand outside of their folder.
pub fn confined(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    if !source.path.starts_with("src/") {
        return wrong;
    }
    for (at, word) in source.words() {
        // The first rule that knows the word decides, so that `aws_lc_rs` is not judged as `aws_*`.
        let rule = CONFINED.iter().find(|rule| match rule.word.strip_suffix('*') {
            Some(start) => word.starts_with(start),
            None => word == rule.word,
        });
        let Some(rule) = rule else { continue };
        if !rule.only.iter().any(|place| source.path.starts_with(place)) {
            wrong.push(format!("{}: `{word}` belongs only in {}: {}", source.place(at), rule.only.join(", "), rule.why));
        }
    }
    wrong
}

/// Input, output, clock or randomness in a pure folder.
pub fn pure(source: &Source) -> Vec<String> {
    let pure = PURE.iter().any(|folder| source.path.starts_with(folder)) && source.path != IMPURE_FILE;
    if !pure {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    for banned in IMPURE {
        for (at, _) in source.code.match_indices(banned) {
            let before = source.code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
            let after = source.code[at + banned.len()..].chars().next().is_some_and(|c| c.is_alphanumeric() || c == '_');
            if !before && !after && !source.is_test(at) {
                wrong.push(format!(
                    "{}: `{banned}` in a pure folder: pass the bytes, the time or the randomness in as an argument",
                    source.place(at)
                ));
            }
        }
    }
    wrong
}
