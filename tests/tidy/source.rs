//! A Rust file as the checks see it: comments and the insides of literals blanked, test code marked.
//!
//! This is a scanner, not a parser: it knows comments, literals, brackets and attributes, which is enough for rules about words
//! and lengths, and keeps the checks free of dependencies.

use std::collections::BTreeSet;
use std::path::Path;

/// One file.
pub struct Source {
    /// Path from the repository's root, with `/`.
    pub path: String,
    /// The text as it is.
    pub text: String,
    /// The text with comments and the insides of literals blanked, line by line as long as before.
    pub code: String,
    /// Whether each line is test code.
    pub test: Vec<bool>,
}

/// A function with a body.
pub struct Function<'a> {
    pub name: &'a str,
    /// Line of the word `fn`, from 0.
    pub line: usize,
    /// Lines from there to the closing brace.
    pub lines: usize,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        let code = blank(text);
        let mut test = vec![false; text.lines().count()];
        if code.contains("#![cfg(test)]") || path.starts_with("tests/") || path.starts_with("benches/") {
            test.fill(true);
        }
        for (from, to) in test_items(&code) {
            let (first, last) = (line_of(&code, from), line_of(&code, to));
            test[first..=last.min(text.lines().count() - 1)].fill(true);
        }
        Source { path: path.to_owned(), text: text.to_owned(), code, test }
    }

    /// Whether the byte at `at` is in test code.
    pub fn is_test(&self, at: usize) -> bool {
        self.test.get(line_of(&self.code, at)).copied().unwrap_or(false)
    }

    /// Lines that are no test code.
    pub fn plain_lines(&self) -> usize {
        self.test.iter().filter(|test| !**test).count()
    }

    /// `path:line` for people.
    pub fn place(&self, at: usize) -> String {
        format!("{}:{}", self.path, line_of(&self.code, at) + 1)
    }

    /// Words (identifiers and keywords) of the code and where they begin.
    pub fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        words(&self.code)
    }

    /// Names below which this file's items live: `src/a/b.rs` gives `a`, `b`; `src/a/mod.rs` gives `a`; `tests/c.rs` gives `c`.
    pub fn module(&self) -> Vec<&str> {
        let inner = self.path.trim_start_matches("mount-helper/");
        let inner = inner.trim_start_matches("src/").trim_start_matches("tests/").trim_end_matches(".rs");
        inner.split('/').filter(|part| !matches!(*part, "mod" | "lib")).collect()
    }

    /// Functions with a body.
    pub fn functions(&self) -> Vec<Function<'_>> {
        let all: Vec<(usize, &str)> = self.words().collect();
        let named = all.windows(2).filter(|pair| pair[0].1 == "fn" && self.code[pair[0].0 + 2..pair[1].0].trim().is_empty());
        let bodies = named.filter_map(|pair| {
            let (open, close) = body(&self.code, pair[1].0 + pair[1].1.len())?;
            debug_assert!(open < close);
            let line = line_of(&self.code, pair[0].0);
            Some(Function { name: pair[1].1, line, lines: line_of(&self.code, close) - line + 1 })
        });
        bodies.collect()
    }
}

/// Every `.rs` file of the project, with out-of-line test modules (`#[cfg(test)] mod name;`) marked as test code.
pub fn read_tree(root: &Path) -> Vec<Source> {
    let mut files = Vec::new();
    for top in ["src", "tests", "benches", "mount-helper"] {
        walk(root, &root.join(top), &mut files);
    }
    let mut sources: Vec<Source> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
    mark_test_modules(&mut sources);
    sources
}

/// Marks the files of out-of-line test modules, and of modules that such files declare.
pub fn mark_test_modules(sources: &mut [Source]) {
    loop {
        let test_modules: BTreeSet<String> = sources.iter().flat_map(outer_test_modules).collect();
        let is_meant = |path: &str| {
            let stem = path.trim_end_matches(".rs");
            test_modules.iter().any(|m| stem == m || stem.strip_suffix("/mod") == Some(m.as_str()))
        };
        let news = sources.iter_mut().filter(|source| is_meant(&source.path) && source.test.contains(&false));
        if news.map(|source| source.test.fill(true)).count() == 0 {
            return;
        }
    }
}

fn walk(root: &Path, dir: &Path, files: &mut Vec<(String, String)>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut paths: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            walk(root, &path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            files.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
}

/// `src/a/b` for a `mod b;` in test code of `src/a/mod.rs` or `src/a.rs`, or what its `#[path = "..."]` says.
fn outer_test_modules(source: &Source) -> Vec<String> {
    let stem = source.path.trim_end_matches(".rs");
    let (own_folder, _) = source.path.rsplit_once('/').unwrap_or(("", ""));
    let folder = stem.strip_suffix("/mod").or(stem.strip_suffix("/lib")).unwrap_or(stem);
    let all: Vec<(usize, &str)> = source.words().collect();
    let declared = all.windows(2).filter(|pair| {
        let behind = pair[1].0 + pair[1].1.len();
        pair[0].1 == "mod" && source.code[behind..].starts_with(';') && source.is_test(pair[0].0)
    });
    let named = declared.map(|pair| {
        // Attributes right above. The code has blanks in the place of the path: the text has it.
        let line = line_of(&source.code, pair[0].0);
        let above: Vec<&str> = source.text.lines().take(line).collect();
        let mut attributes = above.iter().rev().map(|l| l.trim()).take_while(|l| l.starts_with("#["));
        match attributes.find_map(|l| l.strip_prefix("#[path = \"")?.split('"').next()) {
            Some(path) => format!("{own_folder}/{}", path.trim_end_matches(".rs")),
            None => format!("{folder}/{}", pair[1].1),
        }
    });
    named.collect()
}

/// Line of a byte, from 0.
pub fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count()
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let bytes = code.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && !is_word(bytes[at]) {
            at += 1;
        }
        let start = at;
        while at < bytes.len() && is_word(bytes[at]) {
            at += 1;
        }
        (start < at).then(|| (start, &code[start..at]))
    })
}

/// Byte ranges (first, last) of items behind `#[cfg(test)]`, attribute included.
fn test_items(code: &str) -> Vec<(usize, usize)> {
    let starts = code.match_indices("#[cfg(test)]").map(|(at, attribute)| (at, at + attribute.len()));
    starts.map(|(from, behind)| (from, item_end(code, behind))).collect()
}

/// The last byte of the item that begins at `at`: its closing brace or its semicolon.
fn item_end(code: &str, at: usize) -> usize {
    body(code, at).map(|(_, close)| close).unwrap_or_else(|| code[at..].find(';').map_or(code.len() - 1, |n| at + n))
}

/// Braces of the first block from `at` on; `None` when a semicolon outside brackets comes first.
fn body(code: &str, at: usize) -> Option<(usize, usize)> {
    let mut depth = 0;
    let mut open = None;
    for (i, b) in code.bytes().enumerate().skip(at) {
        match b {
            b';' if depth == 0 => return None,
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' => {
                if depth == 0 && open.is_none() {
                    open = Some(i);
                }
                depth += 1;
            }
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return open.map(|open| (open, i));
                }
            }
            _ => {}
        }
    }
    None
}

/// Blanks comments and the insides of string and character literals; keeps every line end.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        // What to blank, and where to go on.
        let (from, to, next) = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => literal(at, find(bytes, at, b"\n"), 0),
            b'/' if bytes[at..].starts_with(b"/*") => literal(at, block_comment_end(bytes, at), 0),
            b'"' => literal(at + 1, quoted_end(bytes, at + 1, b'"'), 1),
            b'r' | b'b' | b'c' if at == 0 || !is_word(bytes[at - 1]) => match raw_string(bytes, at) {
                Some((from, to)) => literal(from, to, 1),
                None => literal(at, at, 1),
            },
            b'\'' => match character(bytes, at) {
                Some(end) => literal(at + 1, end, 1),
                None => literal(at, at, 1),
            },
            _ => literal(at, at, 1),
        };
        out[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at = next;
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Blank `from..to` and go on `behind` bytes after it.
fn literal(from: usize, to: usize, behind: usize) -> (usize, usize, usize) {
    (from, to, to + behind)
}

fn find(bytes: &[u8], at: usize, what: &[u8]) -> usize {
    bytes[at..].windows(what.len()).position(|w| w == what).map_or(bytes.len(), |n| at + n)
}

fn block_comment_end(bytes: &[u8], at: usize) -> usize {
    let mut depth = 0;
    let mut i = at;
    while i < bytes.len() {
        if bytes[i..].starts_with(b"/*") {
            depth += 1;
            i += 2;
        } else if bytes[i..].starts_with(b"*/") {
            depth -= 1;
            i += 2;
            if depth == 0 {
                return i;
            }
        } else {
            i += 1;
        }
    }
    bytes.len()
}

/// Inside of `r"..."`, `r#"..."#`, `br"..."`, `cr"..."` that begins at `at`.
fn raw_string(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let mut i = at + matches!(bytes[at], b'b' | b'c') as usize;
    if bytes.get(i) != Some(&b'r') {
        return None;
    }
    i += 1;
    let hashes = bytes[i..].iter().take_while(|b| **b == b'#').count();
    i += hashes;
    if bytes.get(i) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.extend(std::iter::repeat_n(b'#', hashes));
    Some((i + 1, find(bytes, i + 1, &close)))
}

/// Where the literal that began before `at` has its closing quote.
fn quoted_end(bytes: &[u8], mut at: usize, quote: u8) -> usize {
    while at < bytes.len() && bytes[at] != quote {
        at += 1 + (bytes[at] == b'\\') as usize;
    }
    at.min(bytes.len())
}

/// The closing quote of the character literal at `at`; `None` for a lifetime.
fn character(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at + 1) == Some(&b'\\') {
        return Some(quoted_end(bytes, at + 1, b'\''));
    }
    let rest = std::str::from_utf8(&bytes[at + 1..bytes.len().min(at + 6)]);
    let first = match rest {
        Ok(rest) => rest.chars().next()?,
        Err(e) => std::str::from_utf8(&bytes[at + 1..at + 1 + e.valid_up_to()]).ok()?.chars().next()?,
    };
    let end = at + 1 + first.len_utf8();
    (bytes.get(end) == Some(&b'\'')).then_some(end)
}
