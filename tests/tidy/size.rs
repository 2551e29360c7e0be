//! Files and functions stay small; exceptions are listed and can only shrink.

use super::source::Source;

/// Lines of a file, test code not counted.
pub const FILE_LINES: usize = 600;
/// Lines of a function, test code not counted.
pub const FUNCTION_LINES: usize = 70;

/// A file (`function: None`) or function that is allowed to be longer, and how long at most.
pub struct Exception {
    pub path: &'static str,
    pub function: Option<&'static str>,
    pub lines: usize,
}

/// The list may lose entries and numbers may fall. Nothing may grow: split it instead.
pub const EXCEPTIONS: &[Exception] = &[];

/// Files and functions that are too long, and exceptions that nothing needs any more.
pub fn sizes(sources: &[Source], exceptions: &[Exception]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut measured: Vec<(&str, Option<&str>, usize, usize)> = Vec::new();
    for source in sources {
        measured.push((&source.path, None, 1, source.plain_lines()));
        let plain = source.functions().into_iter().filter(|f| !source.test[f.line]);
        measured.extend(plain.map(|f| (source.path.as_str(), Some(f.name), f.line + 1, f.lines)));
    }
    for (path, function, line, lines) in &measured {
        let limit = if function.is_some() { FUNCTION_LINES } else { FILE_LINES };
        let exception = exceptions.iter().find(|e| e.path == *path && e.function == *function);
        if *lines <= exception.map_or(limit, |e| e.lines) {
            continue;
        }
        let what = function.map_or("the file".to_owned(), |name| format!("function `{name}`"));
        wrong.push(format!(
            "{path}:{line}: {what} has {lines} lines without tests, the limit is {limit}: split it by what it does"
        ));
    }
    for e in exceptions {
        let limit = if e.function.is_some() { FUNCTION_LINES } else { FILE_LINES };
        let longest =
            measured.iter().filter(|(path, function, ..)| e.path == *path && e.function == *function).map(|m| m.3).max();
        match longest {
            Some(lines) if lines > limit && lines == e.lines => {}
            Some(lines) if lines > limit && lines < e.lines => {
                wrong.push(format!("{}: {lines} lines now, {} allowed: lower the number in tests/tidy/size.rs", e.path, e.lines));
            }
            Some(lines) if lines > e.lines => {}
            _ => wrong.push(format!("{}: its exception in tests/tidy/size.rs is needed no more: remove it", e.path)),
        }
    }
    wrong
}

/// A file whose first line does not say what it is for.
pub fn purpose(source: &Source) -> Vec<String> {
    match source.text.lines().next() {
        Some(line) if line.starts_with("//! ") && line.len() > 8 => Vec::new(),
        _ => vec![format!("{}:1: begin with a line `//! ...` that says what the file is for", source.path)],
    }
}

/// `unwrap()` outside of tests.
pub fn unwraps(source: &Source) -> Vec<String> {
    let calls = source.code.match_indices(".unwrap()").filter(|(at, _)| !source.is_test(*at));
    calls
        .map(|(at, _)| {
            format!("{}: `unwrap()` outside tests: return an error, or `expect` with a reasoned allow", source.place(at))
        })
        .collect()
}
