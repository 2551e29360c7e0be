//! Tests of a directory in memory.

use super::dir::*;
use crate::format::entry::{Attributes, Body, Entry};
use crate::types::DirId;
use proptest::prelude::*;
use std::sync::Arc;

fn entry(name: &str, tag: u32) -> Arc<Entry> {
    Arc::new(Entry {
        name: name.as_bytes().to_vec(),
        attributes: Attributes { uid: tag, ..Attributes::default() },
        body: Body::Fifo,
        refs: Vec::new(),
        xattrs: Vec::new(),
    })
}
fn put(name: &str, tag: u32) -> Change {
    Change { entry: Some(entry(name, tag)), ..Change::default() }
}
fn shown(d: &Dir) -> Vec<(String, u32)> {
    d.iter().map(|e| (String::from_utf8_lossy(&e.name).into_owned(), e.attributes.uid)).collect()
}
fn tags(v: &[Arc<Entry>]) -> Vec<u32> {
    v.iter().map(|e| e.attributes.uid).collect()
}
const ALL: fn(&[u8]) -> bool = |_| true;

#[test]
fn a_change_is_settled_once_the_bucket_has_it_and_not_before() {
    let mut d = Dir::unloaded(DirId([1; 16]));
    d.merge(vec![entry("a", 1)], ALL);
    d.set(b"a", 5, put("a", 10));
    let batch = d.take(|_| true, ALL, 100);
    d.set(b"a", 6, put("a", 11));
    // A newer change is pending: that says nothing about the one before it.
    assert!(d.settled_until(4) && !d.settled_until(5) && !d.name_settled_until(b"a", 5));
    d.commit(&batch);
    assert!(d.settled_until(5) && d.name_settled_until(b"a", 5) && !d.name_settled_until(b"a", 6));
    let batch = d.take(|_| true, ALL, 100);
    d.commit(&batch);
    assert!(d.settled_until(6) && d.name_settled_until(b"a", 6));
}

#[test]
fn a_name_that_is_not_ready_keeps_its_old_entry_in_the_bucket() {
    let mut d = Dir::unloaded(DirId([1; 16]));
    d.merge(vec![entry("a", 1), entry("b", 2)], ALL);
    d.set(b"a", 1, put("a", 10));
    d.set(b"b", 2, put("b", 20));
    let batch = d.take(|e| e.attributes.uid != 10, ALL, 100);
    assert_eq!(tags(&d.content(&batch, ALL)), [1, 20]);
    d.commit(&batch);
    assert_eq!(d.pending_count(), 1);
    assert_eq!(shown(&d), [("a".into(), 10), ("b".into(), 20)]);
}

#[test]
fn a_removal_waits_for_the_arrival_of_the_moved_file() {
    let mut a = Dir::unloaded(DirId([1; 16]));
    a.merge(vec![entry("x", 1)], ALL);
    let mut b = Dir::empty(DirId([2; 16]));
    let token = Arc::new(MoveToken::default());
    a.set(b"x", 1, Change { wait: vec![token.clone()], ..Change::default() });
    b.set(b"y", 2, Change { carry: vec![token], ..put("y", 1) });
    assert!(a.take(|_| true, ALL, 9).is_empty());
    let batch = b.take(|_| true, ALL, 9);
    assert!(b.commit(&batch).1);
    assert_eq!(a.take(|_| true, ALL, 9).len(), 1);
}

#[test]
fn came_and_went_leaves_nothing_pending_and_frees_its_guards() {
    let mut d = Dir::empty(DirId([1; 16]));
    d.set(b"t", 1, Change { after: vec![Box::new(1u8)], ..put("t", 1) });
    let due = d.set(b"t", 2, Change::default());
    assert_eq!(due.len(), 1);
    assert!(!d.has_pending());
}

#[test]
fn changed_again_while_in_flight_stays_pending_with_the_new_base() {
    let mut d = Dir::empty(DirId([1; 16]));
    d.set(b"f", 1, put("f", 1));
    let batch = d.take(|_| true, ALL, 9);
    d.set(b"f", 2, Change::default());
    assert!(d.has_pending(), "the write under way may bring f back");
    d.commit(&batch);
    let batch = d.take(|_| true, ALL, 9);
    assert_eq!(batch.len(), 1);
    assert!(batch[0].entry.is_none());
    d.commit(&batch);
    assert!(!d.has_pending());
}

#[test]
fn a_failed_write_may_have_landed_until_a_merge_tells() {
    let mut d = Dir::empty(DirId([1; 16]));
    d.set(b"f", 1, put("f", 1));
    let batch = d.take(|_| true, ALL, 9);
    d.untake(&batch, false);
    assert!(d.set(b"f", 2, Change { after: vec![Box::new(1u8)], ..Change::default() }).is_empty());
    assert!(d.has_pending(), "the bucket may hold f by now");
    d.merge(vec![entry("f", 1)], ALL);
    assert_eq!(d.take(|_| true, ALL, 9).len(), 1);
    d.merge(Vec::new(), ALL);
    assert!(d.has_pending(), "in flight");
}

#[test]
fn a_removal_never_goes_without_the_arrival_it_waits_for() {
    let mut d = Dir::unloaded(DirId([1; 16]));
    d.merge((0..50).map(|i| entry(&format!("a{i:02}"), i)).collect(), ALL);
    for i in 0..50u64 {
        let token = Arc::new(MoveToken::default());
        d.set(format!("a{i:02}").as_bytes(), i + 1, Change { wait: vec![token.clone()], ..Change::default() });
        d.set(format!("z{i:02}").as_bytes(), i + 1, Change { carry: vec![token], ..put(&format!("z{i:02}"), i as u32) });
    }
    while d.has_pending() {
        let batch = d.take(|_| true, ALL, 30);
        let held = tags(&d.content(&batch, ALL));
        assert!((0..50).all(|i| held.contains(&i)), "every file has a name at every moment");
        d.commit(&batch);
    }
}

#[test]
fn cookies_are_stable_while_the_directory_changes() {
    let mut d = Dir::unloaded(DirId([1; 16]));
    d.merge((0..100).map(|i| entry(&format!("f{i:03}"), i)).collect(), ALL);
    let first: Vec<u64> = d.after(0).take(50).map(|(c, _)| c).collect();
    for i in 0..100 {
        if i % 3 == 0 {
            d.set(format!("f{i:03}").as_bytes(), i + 1, Change::default());
        }
    }
    d.set(b"a-new", 1000, put("a-new", 1));
    let rest: Vec<u32> = d.after(first[49]).map(|(_, e)| e.attributes.uid).collect();
    let want: Vec<u32> = (50..100).filter(|i| i % 3 != 0).chain([1]).collect();
    assert_eq!(rest, want);
}

proptest! {
    /// Whatever two writers do, once both have committed with merges, both show what the bucket holds, and no name that
    /// only one of them touched is lost.
    #[test]
    fn two_writers_converge(ops in proptest::collection::vec((0..2usize, 0..6u8, 0..3u8), 1..60)) {
        let mut bucket: Vec<Arc<Entry>> = vec![];
        let mut version = 0u32;
        let mut dirs = [Dir::empty(DirId([1; 16])), Dir::empty(DirId([1; 16]))];
        let mut seen = [0u32; 2];
        let mut seq = 0;
        let commit = |d: &mut Dir, seen: &mut u32, bucket: &mut Vec<Arc<Entry>>, version: &mut u32| {
            if *seen != *version {
                d.merge(bucket.clone(), ALL);
            }
            let batch = d.take(|_| true, ALL, 100);
            *bucket = d.content(&batch, ALL);
            *version += 1;
            *seen = *version;
            d.commit(&batch);
        };
        for (who, name, what) in ops {
            seq += 1;
            let name = format!("n{name}");
            match what {
                0 => { dirs[who].set(name.as_bytes(), seq, put(&name, seq as u32)); }
                1 => { dirs[who].set(name.as_bytes(), seq, Change::default()); }
                _ => { commit(&mut dirs[who], &mut seen[who], &mut bucket, &mut version); }
            }
        }
        for _ in 0..2 {
            for who in 0..2 {
                commit(&mut dirs[who], &mut seen[who], &mut bucket, &mut version);
            }
        }
        for dir in &mut dirs {
            dir.merge(bucket.clone(), ALL);
            prop_assert!(!dir.has_pending());
            prop_assert_eq!(tags(&dir.content(&[], ALL)), tags(&bucket));
        }
    }
}

#[test]
fn what_another_machine_did_to_a_pending_name_is_told() {
    let mut d = Dir::unloaded(DirId([1; 16]));
    d.merge(vec![entry("a", 1), entry("b", 2)], ALL);
    d.set(b"a", 1, Change { after: vec![Box::new(1u8)], ..Change::default() });
    d.set(b"b", 2, put("b", 20));
    d.set(b"c", 3, put("c", 30));
    // Nothing new: no clash.
    d.merge(vec![entry("a", 1), entry("b", 2)], ALL);
    assert!(d.take_clashes().is_empty() && d.pending_count() == 3);
    // What was written here, and perhaps landed, is none either.
    let batch = d.take(|_| true, ALL, 9);
    d.untake(&batch, false);
    d.merge(vec![entry("b", 20), entry("c", 30)], ALL);
    assert!(d.take_clashes().is_empty());
    let link = |target: &str| {
        let body = crate::format::entry::Body::Symlink(target.as_bytes().to_vec());
        Arc::new(Entry { body, ..Entry::clone(&entry("x", 0)) })
    };
    d.set(b"x", 4, Change { entry: Some(link("mine")), ..Change::default() });
    assert_eq!(d.merge(vec![link("theirs")], ALL).changed, [b"b".to_vec(), b"c".to_vec(), b"x".to_vec()]);
    let clashes = d.take_clashes();
    let x = clashes.iter().find(|c| c.name == b"x").unwrap();
    assert!(x.mine == Some(link("mine")) && x.theirs == Some(link("theirs")) && x.base.is_none());
    assert!(d.get(b"x") == Some(&link("theirs")) && d.take_clashes().is_empty());
}

#[test]
fn a_machine_that_forgot_what_it_saw_asks_its_journal() {
    let mut d = Dir::unloaded(DirId([1; 16]));
    d.set(b"a", 1, Change::default());
    d.recall(b"a", &[Some(entry("a", 1))], false);
    assert_eq!(d.seen(b"a"), [Some(entry("a", 1))]);
    d.merge(vec![entry("a", 1)], ALL);
    assert!(d.take_clashes().is_empty() && d.pending_count() == 1, "seen: it is removed");
    let mut d = Dir::unloaded(DirId([1; 16]));
    d.set(b"a", 1, Change::default());
    d.recall(b"a", &[None], false);
    d.merge(vec![entry("a", 1)], ALL);
    assert_eq!((d.take_clashes().len(), d.pending_count()), (1, 0), "never seen: it stays");
}

#[test]
fn a_write_that_was_refused_is_not_taken_for_the_other_machines() {
    let mut d = Dir::unloaded(DirId([1; 16]));
    d.merge(vec![entry("a", 1)], ALL);
    d.set(b"a", 1, Change::default());
    for refused in [false, true] {
        let batch = d.take(|_| true, ALL, 9);
        d.untake(&batch, refused);
        // Once nobody knew, and that stays so.
        assert_eq!(d.seen(b"a"), [Some(entry("a", 1)), None]);
    }
    let mut d = Dir::unloaded(DirId([1; 16]));
    d.merge(vec![entry("a", 1)], ALL);
    d.set(b"a", 1, Change::default());
    let batch = d.take(|_| true, ALL, 9);
    d.untake(&batch, true);
    d.merge(vec![], ALL);
    assert_eq!((d.take_clashes().len(), d.has_pending()), (1, false));
}
