//! What becomes of a name that two machines changed at once: a merge of three entries. Pure.
//!
//! `base` is what this machine last saw in the bucket, `mine` what it shows, `theirs` what the bucket holds now. The rules, in
//! words, are in SEMANTICS.md ("Several machines"): nothing that somebody wrote and the other did not see may vanish.

use crate::format::entry::{Attributes, Body, Entry, FileRef, Xattr};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What becomes of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What is pending here stands, with what the other machine changed of the same file put in.
    Mine(Option<Arc<Entry>>),
    /// What the bucket holds stands, and nothing is pending any more.
    Theirs,
    /// The other machine removed or replaced what this one wrote new contents to: the contents need a file of their own.
    Rescue,
    /// Both stay: the bucket's keeps the name, and what is pending here needs another.
    Both,
}

/// Whether two entries stand for the same file, directory or the like.
pub fn same(a: &Entry, b: &Entry) -> bool {
    match (&a.body, &b.body) {
        (Body::File(a), Body::File(b)) => a.file_id == b.file_id,
        (Body::Dir { dir_id: a, .. }, Body::Dir { dir_id: b, .. }) => a == b,
        (a, b) => a == b,
    }
}

/// Whether `a` is a version of the file `b` with newer contents.
pub fn newer(a: &Entry, b: &Entry) -> bool {
    matches!((&a.body, &b.body), (Body::File(a), Body::File(b)) if a.file_id == b.file_id && a.generation > b.generation)
}

/// Decides. `moved`: this machine renamed what `base` stands for, so that taking its old name away deletes nothing.
pub fn judge(base: Option<&Entry>, mine: Option<&Entry>, theirs: Option<&Entry>, moved: bool) -> Verdict {
    let seen = |e: &Entry| base.is_some_and(|b| same(b, e));
    match (mine, theirs) {
        (Some(m), Some(t)) if same(m, t) => Verdict::Mine(Some(Arc::new(merge(base, m, t)))),
        // Replaced here, changed there.
        (Some(m), Some(t)) if seen(t) => match !moved && unseen(base, t) {
            true => Verdict::Both,
            false => Verdict::Mine(Some(Arc::new(m.clone()))),
        },
        // Changed here, replaced there.
        (Some(m), Some(_)) if seen(m) => match base.is_some_and(|b| newer(m, b)) {
            true => Verdict::Rescue,
            false => Verdict::Theirs,
        },
        (Some(_), Some(_)) => Verdict::Both,
        // Removed here, changed or replaced there.
        (None, Some(t)) => match seen(t) && (moved || !unseen(base, t)) {
            true => Verdict::Mine(None),
            false => Verdict::Theirs,
        },
        // Changed here, removed there.
        (Some(m), None) if seen(m) => match base.is_some_and(|b| newer(m, b)) {
            true => Verdict::Rescue,
            false => Verdict::Theirs,
        },
        (Some(m), None) => Verdict::Mine(Some(Arc::new(m.clone()))),
        (None, None) => Verdict::Theirs,
    }
}

/// Whether removing `t` would remove something that this machine never saw: new contents, or what may be in a directory.
fn unseen(base: Option<&Entry>, t: &Entry) -> bool {
    t.is_dir() || base.is_none_or(|b| newer(t, b))
}

/// Two states of one file (directory, link) in one: the contents of the higher generation; of every attribute the state that is
/// not `base`'s, and where both changed it, the one of the later change time.
pub fn merge(base: Option<&Entry>, mine: &Entry, theirs: &Entry) -> Entry {
    let later = mine.attributes.ctime > theirs.attributes.ctime;
    let body = match (&mine.body, &theirs.body) {
        (Body::File(m), Body::File(t)) => Body::File(contents(m, t).clone()),
        _ => theirs.body.clone(),
    };
    let base = base.filter(|b| same(b, mine));
    Entry {
        name: theirs.name.clone(),
        attributes: attributes(base.map(|b| &b.attributes), &mine.attributes, &theirs.attributes, later),
        body,
        refs: theirs.refs.clone(),
        xattrs: xattrs(base.map(|b| &b.xattrs[..]), &mine.xattrs, &theirs.xattrs, later),
    }
}

/// The newer of two versions of a file. Of two of one generation the bucket's is the one that exists.
pub fn contents<'a>(mine: &'a FileRef, theirs: &'a FileRef) -> &'a FileRef {
    if mine.generation > theirs.generation { mine } else { theirs }
}

fn pick<T: PartialEq + Copy>(base: Option<T>, mine: T, theirs: T, later: bool) -> T {
    match base {
        Some(b) if mine == b => theirs,
        Some(b) if theirs == b => mine,
        _ if later => mine,
        _ => theirs,
    }
}

fn attributes(base: Option<&Attributes>, m: &Attributes, t: &Attributes, later: bool) -> Attributes {
    Attributes {
        mode: pick(base.map(|b| b.mode), m.mode, t.mode, later),
        uid: pick(base.map(|b| b.uid), m.uid, t.uid, later),
        gid: pick(base.map(|b| b.gid), m.gid, t.gid, later),
        atime: pick(base.map(|b| b.atime), m.atime, t.atime, later),
        mtime: pick(base.map(|b| b.mtime), m.mtime, t.mtime, later),
        ctime: m.ctime.max(t.ctime),
        btime: t.btime,
    }
}

fn xattrs(base: Option<&[Xattr]>, mine: &[Xattr], theirs: &[Xattr], later: bool) -> Vec<Xattr> {
    let names: BTreeSet<&[u8]> = mine.iter().chain(theirs).map(|(n, _)| n.as_slice()).collect();
    let value = |of: &'_ [Xattr], name: &[u8]| of.iter().position(|(n, _)| n == name);
    let mut out = Vec::new();
    for name in names {
        let of = |list: &'_ [Xattr]| value(list, name).map(|i| list[i].1.clone());
        let (m, t) = (of(mine), of(theirs));
        let kept = match base.map(of) {
            Some(b) if m == b => t,
            Some(b) if t == b => m,
            _ if later => m,
            _ => t,
        };
        out.extend(kept.map(|v| (name.to_vec(), v)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secmem::SecretKey;
    use crate::types::{DirId, FileId, Hash, Time};

    fn entry(body: Body) -> Entry {
        Entry { name: b"n".to_vec(), attributes: Attributes::default(), body, refs: Vec::new(), xattrs: Vec::new() }
    }
    fn file(id: u8, generation: u64) -> Entry {
        entry(Body::File(FileRef {
            file_id: FileId([id; 32]),
            file_key: SecretKey::new(&[0; 32]),
            generation,
            trailer_hash: Hash([generation as u8; 32]),
            size: generation,
            object_len: 0,
            key: None,
        }))
    }
    fn dir(id: u8) -> Entry {
        entry(Body::Dir { dir_id: DirId([id; 16]), dir_key: SecretKey::new(&[0; 32]) })
    }
    fn at(mut e: Entry, mode: u16, ctime: i64) -> Entry {
        e.attributes.mode = mode;
        e.attributes.ctime = Time { sec: ctime, nsec: 0 };
        e
    }
    fn generation(e: &Entry) -> u64 {
        match &e.body {
            Body::File(f) => f.generation,
            _ => 0,
        }
    }

    #[test]
    fn attributes_and_contents_of_one_file_come_together() {
        let base = at(file(1, 1), 0o644, 10);
        let (chmod, write) = (at(file(1, 1), 0o600, 12), at(file(1, 2), 0o644, 11));
        for (mine, theirs) in [(&chmod, &write), (&write, &chmod)] {
            let Verdict::Mine(Some(e)) = judge(Some(&base), Some(mine), Some(theirs), false) else { panic!() };
            assert_eq!((generation(&e), e.attributes.mode, e.attributes.ctime.sec), (2, 0o600, 12));
        }
        // Without knowing what it was before, the later change counts; contents never go back.
        let e = merge(None, &chmod, &write);
        assert_eq!((generation(&e), e.attributes.mode), (2, 0o600));
    }

    #[test]
    fn extended_attributes_are_merged_one_by_one() {
        let with = |list: &[(&str, &str)], ctime| {
            let mut e = at(file(1, 1), 0, ctime);
            e.xattrs = list.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
            e
        };
        let base = with(&[("a", "1"), ("b", "1"), ("c", "1")], 1);
        let mine = with(&[("a", "2"), ("c", "1"), ("d", "m")], 3);
        let theirs = with(&[("a", "1"), ("b", "1"), ("c", "t"), ("d", "t")], 2);
        assert_eq!(merge(Some(&base), &mine, &theirs).xattrs, with(&[("a", "2"), ("c", "t"), ("d", "m")], 0).xattrs);
    }

    #[test]
    fn what_nobody_saw_is_never_removed() {
        let (b, newer, other) = (file(1, 1), file(1, 2), file(2, 1));
        let judge = |base: &Entry, mine: Option<&Entry>, theirs: Option<&Entry>| judge(Some(base), mine, theirs, false);
        // A deletion counts for what was seen.
        assert_eq!(judge(&b, None, Some(&newer)), Verdict::Theirs);
        assert_eq!(judge(&b, None, Some(&other)), Verdict::Theirs);
        assert_eq!(judge(&b, None, Some(&at(b.clone(), 0o600, 1))), Verdict::Mine(None));
        assert_eq!(judge(&dir(1), None, Some(&at(dir(1), 0o700, 1))), Verdict::Theirs);
        // So does replacing a name.
        assert_eq!(judge(&b, Some(&other), Some(&newer)), Verdict::Both);
        assert!(matches!(judge(&b, Some(&other), Some(&at(b.clone(), 0o600, 1))), Verdict::Mine(Some(_))));
        assert_eq!(judge(&b, Some(&other), Some(&file(3, 1))), Verdict::Both);
        // New contents outlive a removal and a replacement; new attributes do not.
        assert_eq!(judge(&b, Some(&newer), None), Verdict::Rescue);
        assert_eq!(judge(&b, Some(&newer), Some(&other)), Verdict::Rescue);
        assert_eq!(judge(&b, Some(&at(b.clone(), 0o600, 1)), None), Verdict::Theirs);
        assert_eq!(judge(&dir(1), Some(&at(dir(1), 0o700, 1)), None), Verdict::Theirs);
    }

    #[test]
    fn names_made_twice_both_stay() {
        assert_eq!(judge(None, Some(&file(1, 1)), Some(&file(2, 1)), false), Verdict::Both);
        assert_eq!(judge(None, Some(&dir(1)), Some(&dir(2)), false), Verdict::Both);
        assert_eq!(judge(None, Some(&file(1, 1)), Some(&dir(2)), false), Verdict::Both);
        let fifo = entry(Body::Fifo);
        assert!(matches!(judge(None, Some(&fifo), Some(&at(fifo.clone(), 0o600, 1)), false), Verdict::Mine(Some(_))));
    }

    #[test]
    fn a_rename_takes_along_what_was_written_meanwhile() {
        let (b, newer) = (file(1, 1), file(1, 2));
        assert_eq!(judge(Some(&b), None, Some(&newer), true), Verdict::Mine(None));
        assert!(matches!(judge(Some(&b), Some(&file(2, 1)), Some(&newer), true), Verdict::Mine(Some(_))));
        assert_eq!(judge(Some(&b), None, Some(&file(2, 1)), true), Verdict::Theirs);
    }
}
