//! The table of the control tree.

use crate::ops::{FileType, Ino};

/// Inode numbers of the control tree have this bit, and no others do.
const TOP: Ino = 1 << 63;
/// The directory `.smpfs` itself: the first row.
pub(super) const DIR: Ino = TOP | 1;

/// A file of the control tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// What all this is.
    Readme,
    /// The program's version.
    Version,
    /// The state of the mount, for people.
    Status,
    /// The state of the mount, for programs.
    StatusJson,
    /// The audit log, one line for each event.
    Audit,
    /// Objects that failed verification.
    Quarantine,
}

/// One row: a directory when `node` is none.
pub(super) struct Row {
    pub name: &'static str,
    /// Row of the directory that holds it; the first row holds itself.
    pub parent: usize,
    pub node: Option<Node>,
    /// Only root and the owner of the mount may read it.
    pub private: bool,
    pub help: &'static str,
}

const fn file(name: &'static str, node: Node, private: bool, help: &'static str) -> Row {
    Row { name, parent: 0, node: Some(node), private, help }
}

/// The tree. Rows only ever get added at the end: a row's place is its inode number.
pub(super) static TABLE: &[Row] = &[
    Row { name: ".smpfs", parent: 0, node: None, private: false, help: "" },
    file("README", Node::Readme, false, "this list"),
    file("version", Node::Version, false, "the version of the program that serves the mount"),
    file("status", Node::Status, false, "the state of the mount, for people"),
    file("status.json", Node::StatusJson, false, "the state of the mount, for programs"),
    file("audit", Node::Audit, true, "the audit log, one line for each event; for root and the owner of the mount"),
    file("quarantine", Node::Quarantine, true, "objects that failed verification; for root and the owner of the mount"),
];

/// Whether an inode is of the control tree.
pub(super) fn is_control(ino: Ino) -> bool {
    ino & TOP != 0
}

/// The inode number of a row.
pub(super) fn ino_of(row: usize) -> Ino {
    DIR + row as Ino
}

/// The row of an inode number.
pub(super) fn row_of(ino: Ino) -> Option<(usize, &'static Row)> {
    let index = usize::try_from(ino.checked_sub(DIR)?).ok()?;
    TABLE.get(index).map(|row| (index, row))
}

/// The rows of directory `dir`.
pub(super) fn children(dir: usize) -> impl Iterator<Item = (usize, &'static Row)> {
    TABLE.iter().enumerate().filter(move |(i, row)| *i != 0 && row.parent == dir)
}

impl Row {
    pub(super) fn kind(&self) -> FileType {
        if self.node.is_some() { FileType::File } else { FileType::Dir }
    }

    pub(super) fn perm(&self) -> u16 {
        match (self.node.is_some(), self.private) {
            (false, false) => 0o555,
            (false, true) => 0o500,
            (true, false) => 0o444,
            (true, true) => 0o400,
        }
    }
}

/// The README: the table itself.
pub(super) fn readme() -> Vec<u8> {
    let mut text =
        "This directory is not stored anywhere: smpfs answers for it. It is found by name and not listed.\n\n".to_owned();
    for (_, row) in children(0) {
        text += &format!("{:<12} {}\n", row.name, row.help);
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_a_tree() {
        for (i, row) in TABLE.iter().enumerate() {
            assert!(row.parent < i.max(1), "{} comes after its directory", row.name);
            assert!(TABLE[row.parent].node.is_none(), "{} lies in a directory", row.name);
            assert_eq!(row_of(ino_of(i)).map(|(j, _)| j), Some(i));
            assert_eq!(i == 0, row.help.is_empty());
        }
        assert!(row_of(1).is_none() && row_of(ino_of(TABLE.len())).is_none());
        assert!(is_control(DIR) && !is_control(u64::MAX >> 1));
    }

    #[test]
    fn the_readme_names_every_file() {
        let text = String::from_utf8(readme()).unwrap();
        assert!(children(0).all(|(_, row)| text.contains(row.name)));
    }
}
