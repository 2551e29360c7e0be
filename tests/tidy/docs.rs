//! Documents stay true: every test target is described, every clause of SEMANTICS.md has a test, links lead somewhere.

use super::source::Source;
use std::path::Path;

/// A test or bench target of a manifest.
pub struct Target {
    /// `test` or `bench`.
    pub kind: &'static str,
    pub name: String,
    pub path: String,
}

/// `[[test]]` and `[[bench]]` entries, with cargo's default path where none is given.
pub fn targets(manifest: &str) -> Vec<Target> {
    let mut found: Vec<Target> = Vec::new();
    let mut open = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            let kind = match line {
                "[[test]]" => Some("test"),
                "[[bench]]" => Some("bench"),
                _ => None,
            };
            open = kind.is_some();
            found.extend(kind.map(|kind| Target { kind, name: String::new(), path: String::new() }));
        } else if open
            && let Some((key, value)) = line.split_once('=')
            && let Some(target) = found.last_mut()
        {
            let value = value.split('#').next().unwrap_or_default().trim().trim_matches('"').to_owned();
            match key.trim() {
                "name" => target.name = value,
                "path" => target.path = value,
                _ => {}
            }
        }
    }
    for target in &mut found {
        if target.path.is_empty() {
            target.path = format!("{}/{}.rs", if target.kind == "test" { "tests" } else { "benches" }, target.name);
        }
    }
    found
}

/// Targets that `docs/TESTING.md` does not name, and files of tests/ and benches/ that no target runs.
pub fn described(targets: &[Target], testing: &str, files: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for target in targets {
        if !testing.contains(&format!("`{}`", target.name)) {
            wrong.push(format!(
                "docs/TESTING.md does not name `{}`: say in one line what this {} covers",
                target.name, target.kind
            ));
        }
        if !files.contains(&target.path.as_str()) {
            wrong.push(format!("Cargo.toml: the {} `{}` has no file {}", target.kind, target.name, target.path));
        }
    }
    let is_root = |file: &&&str| file.matches('/').count() == 1 && (file.starts_with("tests/") || file.starts_with("benches/"));
    for file in files.iter().filter(is_root) {
        if !targets.iter().any(|t| t.path == **file) {
            wrong.push(format!("{file}: no entry in Cargo.toml runs it (autotests is off): add one, or move it into a folder"));
        }
    }
    wrong
}

/// What SEMANTICS.md promises.
#[derive(Default)]
pub struct Clauses {
    /// Clauses with at least one test.
    pub tested: usize,
    /// Clauses that wait for their test.
    pub pending: Vec<String>,
    /// What is wrong with the rest.
    pub wrong: Vec<String>,
}

/// Checks the clauses: `**12.** What holds. [test: a::b, c::d]` or `[pending: why]`, numbered without gaps, up to an empty line.
pub fn clauses(semantics: &str, sources: &[Source]) -> Clauses {
    let mut out = Clauses::default();
    let mut expected = 1;
    for block in semantics.split("\n\n").map(str::trim).filter(|block| block.starts_with("**") && block.contains(".**")) {
        let number = block.trim_start_matches("**").split('.').next().unwrap_or_default().to_owned();
        if number.parse() != Ok(expected) {
            out.wrong
                .push(format!("docs/SEMANTICS.md: clause {number} follows clause {}: number them without gaps", expected - 1));
        }
        expected = number.parse().unwrap_or(expected) + 1;
        let mark = block.rsplit_once('[').and_then(|(_, mark)| mark.strip_suffix(']'));
        match mark.and_then(|mark| mark.split_once(": ")) {
            Some(("test", names)) => {
                let missing: Vec<&str> =
                    names.split(',').map(|n| n.trim().trim_matches('`')).filter(|n| !has_test(n, sources)).collect();
                out.tested += missing.is_empty() as usize;
                out.wrong.extend(missing.iter().map(|name| {
                    format!("docs/SEMANTICS.md: clause {number} names the test `{name}`, which does not exist: correct the name or write it")
                }));
            }
            Some(("pending", why)) if !why.trim().is_empty() => {
                out.pending.push(format!("clause {number}: {}", why.replace('\n', " ")))
            }
            _ => out
                .wrong
                .push(format!("docs/SEMANTICS.md: clause {number} must end with `[test: module::function]` or `[pending: why]`")),
        }
    }
    out
}

/// Whether `a::b::name` is a test: `name` a function in test code of a file whose module begins with `a::b` (or `tests/a.rs`).
fn has_test(name: &str, sources: &[Source]) -> bool {
    let parts: Vec<&str> = name.split("::").collect();
    let Some((function, module)) = parts.split_last() else { return false };
    if module.is_empty() {
        return false;
    }
    let in_module = sources.iter().filter(|s| s.module().starts_with(module));
    in_module
        .flat_map(|s| s.functions().into_iter().filter(|f| s.test[f.line] && is_test(s, f.line)))
        .any(|f| f.name == *function)
}

/// Whether an attribute like `#[test]` or `#[tokio::test]` stands right above a line.
fn is_test(source: &Source, line: usize) -> bool {
    let above: Vec<&str> = source.code.lines().take(line).collect();
    let attributes = above.iter().rev().map(|l| l.trim()).take_while(|l| l.starts_with("#[") || l.is_empty());
    attributes.into_iter().any(|l| l.starts_with("#[test]") || l.contains("::test]") || l.contains("::test("))
}

/// Relative links of a Markdown file that lead nowhere.
pub fn links(root: &Path, file: &str, text: &str) -> Vec<String> {
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    let mut wrong = Vec::new();
    for (at, _) in text.match_indices("](") {
        let target = text[at + 2..].split(')').next().unwrap_or_default().split('#').next().unwrap_or_default();
        if !target.is_empty() && !target.contains("://") && !root.join(folder).join(target).exists() {
            wrong.push(format!("{file}: the link to {target} leads nowhere"));
        }
    }
    wrong
}
