//! How a key becomes a path below the root, and back. Pure.
//!
//! Components of a key become directories. A component is kept as it is, but: `%` and NUL become `%` and two hexadecimal
//! digits; the components `.` and `..` have their first dot escaped; the empty component becomes `%-`. A component longer than
//! a file name may be is cut into pieces, each but the last a directory whose name ends in `%+`. A `%` that begins none of
//! these cannot come from a key: `.%tmp`, the reserved area, is such a name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The reserved area: temporary files, uploads under way, locks.
pub(super) const RESERVED: &str = ".%tmp";
/// The longest name of a file.
const NAME_MAX: usize = 255;
/// Bytes of a piece of a component that is too long: three bytes of name each at worst, and the mark.
const PIECE: usize = 80;

/// What a name found in a directory stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// A component, or the last piece of one.
    Component(String),
    /// A piece that goes on in this directory.
    Piece(String),
    /// Nothing that a key could have made.
    Foreign,
}

fn escape(component: &str) -> String {
    match component {
        "" => return "%-".into(),
        "." => return "%2E".into(),
        ".." => return "%2E.".into(),
        _ => {}
    }
    component.replace('%', "%25").replace('\0', "%00")
}

/// The path of a key, relative to the root. It has no `.` or `..` and never begins with [`RESERVED`].
pub(super) fn path(key: &str) -> PathBuf {
    let mut out = PathBuf::new();
    for component in key.split('/') {
        let name = escape(component);
        if name.len() <= NAME_MAX {
            out.push(name);
            continue;
        }
        let mut rest = component;
        while rest.len() > PIECE {
            let cut = rest.floor_char_boundary(PIECE);
            out.push(escape(&rest[..cut]) + "%+");
            rest = &rest[cut..];
        }
        out.push(escape(rest));
    }
    out
}

/// What a directory entry's name means.
pub(super) fn decode(name: &OsStr) -> Decoded {
    let Ok(name) = std::str::from_utf8(name.as_bytes()) else { return Decoded::Foreign };
    let (body, piece) = match name.strip_suffix("%+") {
        Some(body) => (body, true),
        None => (name, false),
    };
    match unescape(body) {
        Some(text) if piece => Decoded::Piece(text),
        Some(text) => Decoded::Component(text),
        None => Decoded::Foreign,
    }
}

fn unescape(name: &str) -> Option<String> {
    if name == "%-" {
        return Some(String::new());
    }
    let mut out = String::with_capacity(name.len());
    let mut pieces = name.split('%');
    out.push_str(pieces.next()?);
    for piece in pieces {
        match piece.get(..2)? {
            "25" => out.push('%'),
            "00" => out.push('\0'),
            "2E" => out.push('.'),
            _ => return None,
        }
        out.push_str(&piece[2..]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Component;

    fn back(path: &std::path::Path) -> String {
        let mut out = String::new();
        for (i, c) in path.iter().enumerate() {
            match decode(c) {
                Decoded::Component(s) => out += &(s + "/"),
                Decoded::Piece(s) => out += &s,
                Decoded::Foreign => panic!("component {i} of {path:?}"),
            }
        }
        out.pop();
        out
    }

    #[test]
    fn dangerous_components_are_escaped() {
        assert_eq!(path("../../etc/passwd"), PathBuf::from("%2E./%2E./etc/passwd"));
        assert_eq!(path("a//b/./c"), PathBuf::from("a/%-/b/%2E/c"));
        assert_eq!(path(".%tmp/x"), PathBuf::from(".%25tmp/x"));
        assert_eq!(path(".smpfs/config"), PathBuf::from(".smpfs/config"));
        assert_eq!(decode(OsStr::new(RESERVED)), Decoded::Foreign);
        assert_eq!(decode(OsStr::new("half%2")), Decoded::Foreign);
    }

    #[test]
    fn long_components_are_cut_and_found_again() {
        for c in ["x", "%", "é", "\u{1F600}"] {
            let key = format!("dir/{}/end", c.repeat(600 / c.len()));
            let p = path(&key);
            assert!(p.iter().all(|c| c.len() <= NAME_MAX), "{p:?}");
            assert_eq!(back(&p), key);
        }
    }

    proptest! {
        #[test]
        fn every_key_comes_back_and_stays_inside(key in "([a-z%.]{0,3}/){0,3}[\\PC%/.\0]{1,40}") {
            let p = path(&key);
            prop_assert!(p.components().all(|c| matches!(c, Component::Normal(_))), "{p:?}");
            prop_assert_ne!(p.iter().next(), Some(OsStr::new(RESERVED)));
            prop_assert_eq!(back(&p), key);
        }
    }
}
