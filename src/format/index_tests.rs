//! Tests of index objects and entries: what goes in comes out, and what must not be there is refused.

use super::*;
use crate::format::entry::{Attributes, Body, FileRef, Link, TARGET_MAX, XATTR_VALUE_MAX};
use crate::types::{FileId, LinkId, LinkRef, Time};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn keys() -> VolumeKeys {
    VolumeKeys::derive(&SecretKey::new(&[1; 32]), VolumeId([2; 16]), vec![SecretKey::new(&[3; 32])])
}

fn dir(n: u8) -> DirRef {
    DirRef { dir_id: DirId([n; 16]), dir_key: SecretKey::new(&[n; 32]) }
}

fn entry(name: &[u8], body: Body) -> Entry {
    Entry { name: name.to_vec(), attributes: Attributes::default(), body, refs: Vec::new(), xattrs: Vec::new() }
}

fn node(role: Role, names: &[&[u8]]) -> IndexNode {
    let entries = names.iter().map(|n| entry(n, Body::Fifo)).collect();
    IndexNode { role, frozen: false, generation: 1, previous: Hash::ZERO, entries }
}

const HEAD: Role = Role::Head { shard_bits: 0, epoch: 0 };

fn time() -> impl Strategy<Value = Time> {
    (any::<i64>(), 0u32..1_000_000_000).prop_map(|(sec, nsec)| Time { sec, nsec })
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>().prop_filter("no NUL, no slash", |b| !matches!(b, 0 | b'/')), 1..30)
        .prop_filter("a name", |n| crate::format::entry::is_name(n))
}

fn file() -> impl Strategy<Value = Body> {
    (any::<([u8; 32], [u8; 32], [u8; 32])>(), 1u64.., any::<(u64, u64)>(), proptest::option::of("[a-z]{1,9}/[a-zé .]{0,9}x"))
        .prop_map(|((id, key, hash), generation, (size, object_len), path)| {
            Body::File(FileRef {
                file_id: FileId(id),
                file_key: SecretKey::new(&key),
                generation,
                trailer_hash: Hash(hash),
                size,
                object_len,
                key: path,
            })
        })
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        3 => file(),
        1 => any::<([u8; 16], [u8; 32])>().prop_map(|(id, key)| Body::Dir { dir_id: DirId(id), dir_key: SecretKey::new(&key) }),
        1 => vec(1u8.., 1..200).prop_map(Body::Symlink),
        1 => Just(Body::Fifo),
        1 => Just(Body::Socket),
        1 => any::<(u32, u32)>().prop_map(|(major, minor)| Body::CharDevice { major, minor }),
        1 => any::<(u32, u32)>().prop_map(|(major, minor)| Body::BlockDevice { major, minor }),
        1 => any::<([u8; 16], [u8; 16])>().prop_map(|(id, own)| Body::Link(Link { id: LinkId(id), own: LinkRef(own), kind: 1 })),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let xattrs = btree_map(vec(1u8.., 1..20), vec(any::<u8>(), 0..50), 0..4);
    (name(), 0u16..0o10000, any::<(u32, u32)>(), (time(), time(), time(), time()), body(), xattrs).prop_map(
        |(name, mode, (uid, gid), (atime, mtime, ctime, btime), body, xattrs)| {
            if let Body::Link(_) = body {
                return entry(&name, body);
            }
            // Whatever can have several names has them now and then.
            let several = mode & 1 == 0 && !matches!(body, Body::Dir { .. });
            let refs =
                if several { xattrs.keys().map(|k| LinkRef([k[0]; 16])).collect::<BTreeSet<_>>() } else { BTreeSet::new() };
            Entry {
                name,
                attributes: Attributes { mode, uid, gid, atime, mtime, ctime, btime },
                body,
                refs: refs.into_iter().collect(),
                xattrs: xattrs.into_iter().collect(),
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nodes_round_trip(entries in btree_map(name(), any_entry(), 0..20), generation in 2u64.., frozen: bool) {
        let entries: Vec<Entry> = entries.into_iter().map(|(name, e)| Entry { name, ..e }).collect();
        let node = IndexNode { role: HEAD, frozen, generation, previous: Hash([9; 32]), entries };
        let payload = node.encode().unwrap();
        prop_assert_eq!(payload.len(), padded_len(node.payload_len()));
        let (bytes, hash) = node.seal(&keys(), &dir(1), &[4; 24]).unwrap();
        let (again, found) = IndexNode::open(&keys(), &dir(1), Place::HEAD, &bytes).unwrap();
        prop_assert_eq!(found, hash);
        prop_assert_eq!(again, node);
    }

    #[test]
    fn padding_grows_slowly_and_never_shrinks(len in 0usize..20 << 20) {
        let padded = padded_len(len);
        prop_assert!(padded >= len.max(4096));
        prop_assert!(padded as f64 <= len.max(4096) as f64 * 1.12);
        prop_assert_eq!(padded_len(padded), padded);
    }
}

#[test]
fn an_object_opens_in_its_place_only() {
    let keys = keys();
    let name = (0..).map(|i| format!("{i}").into_bytes()).find(|n| shard_of(n, 4) == 5).unwrap();
    let role = Role::Shard { shard_bits: 4, epoch: 2, slot: 5 };
    let (bytes, _) = node(role, &[&name]).seal(&keys, &dir(1), &[4; 24]).unwrap();
    let place = Place { epoch: 2, slot: 5 };
    assert!(IndexNode::open(&keys, &dir(1), place, &bytes).is_ok());
    let other = VolumeKeys::derive(&SecretKey::new(&[8; 32]), VolumeId([2; 16]), Vec::new());
    for (keys, dir, place) in [
        (&keys, dir(2), place),
        (&keys, dir(1), Place::HEAD),
        (&keys, dir(1), Place { epoch: 1, slot: 5 }),
        (&keys, dir(1), Place { epoch: 2, slot: 4 }),
        (&other, dir(1), place),
    ] {
        assert_eq!(Failure::of(&IndexNode::open(keys, &dir, place, &bytes).unwrap_err()), Some(Failure::Index));
    }
}

#[test]
fn shards_follow_the_top_bits() {
    // SHA-256("a") begins with ca, binary 1100 1010.
    assert_eq!([0, 1, 2, 4, 8, 16].map(|bits| shard_of(b"a", bits)), [0, 1, 3, 12, 0xca, 0xca97]);
}

#[test]
fn nodes_that_the_format_does_not_allow_are_not_written() {
    let wrong_shard = 1 - shard_of(b"a", 1);
    for bad in [
        node(HEAD, &[b"b", b"a"]),
        node(HEAD, &[b"a", b"a"]),
        node(Role::Head { shard_bits: 1, epoch: 1 }, &[b"a"]),
        node(Role::Head { shard_bits: 1, epoch: 0 }, &[]),
        node(Role::Head { shard_bits: 17, epoch: 1 }, &[]),
        node(Role::Shard { shard_bits: 1, epoch: 1, slot: wrong_shard }, &[b"a"]),
        node(Role::Shard { shard_bits: 1, epoch: 1, slot: 2 }, &[]),
        node(Role::Shard { shard_bits: 0, epoch: 1, slot: 0 }, &[]),
        IndexNode { generation: 2, ..node(HEAD, &[]) },
        IndexNode { generation: 0, ..node(HEAD, &[]) },
    ] {
        assert_eq!(bad.encode().unwrap_err().kind(), Kind::Bug, "{bad:?}");
    }
}

#[test]
fn entries_that_cannot_be_written_say_why() {
    let kind = |e: Entry| e.check().unwrap_err().kind();
    assert_eq!(kind(entry(&[b'x'; 256], Body::Fifo)), Kind::NameTooLong);
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
        assert_eq!(kind(entry(name, Body::Fifo)), Kind::Invalid);
    }
    assert_eq!(kind(entry(b"x", Body::Symlink(vec![b'x'; TARGET_MAX + 1]))), Kind::NameTooLong);
    assert_eq!(kind(entry(b"x", Body::Symlink(vec![]))), Kind::Invalid);
    let with = |xattrs: Vec<(Vec<u8>, Vec<u8>)>| Entry { xattrs, ..entry(b"x", Body::Fifo) };
    assert_eq!(kind(with(vec![(b"a".to_vec(), vec![0; XATTR_VALUE_MAX + 1])])), Kind::NoSpace);
    assert_eq!(kind(with(vec![(b"b".to_vec(), vec![]), (b"a".to_vec(), vec![])])), Kind::Invalid);
    assert_eq!(kind(with(vec![(vec![b'x'; 256], vec![])])), Kind::Invalid);
    let named = |body, refs: &[u8]| Entry { refs: refs.iter().map(|n| LinkRef([*n; 16])).collect(), ..entry(b"x", body) };
    let link = Body::Link(Link { id: LinkId([1; 16]), own: LinkRef([2; 16]), kind: 1 });
    named(Body::Fifo, &[1, 2]).check().unwrap();
    assert_eq!(kind(named(Body::Fifo, &[2, 1])), Kind::Bug);
    assert_eq!(kind(named(Body::Fifo, &[1, 1])), Kind::Bug);
    assert_eq!(kind(named(link.clone(), &[1])), Kind::Bug);
    let mut owned = entry(b"x", link);
    owned.attributes.uid = 1;
    assert_eq!(kind(owned), Kind::Bug);
    let mut late = entry(b"x", Body::Fifo);
    late.attributes.mtime.nsec = 1_000_000_000;
    assert_eq!(kind(late), Kind::Invalid);
}

#[test]
fn a_directory_too_large_for_one_object_is_refused_as_full() {
    let big = |i: u32| Entry {
        xattrs: (0..4u8).map(|x| (vec![b'a' + x], vec![0; XATTR_VALUE_MAX])).collect(),
        ..entry(format!("{i:09}").as_bytes(), Body::Fifo)
    };
    let entries = (0..64).map(big).collect();
    let full = IndexNode { entries, ..node(HEAD, &[]) };
    assert_eq!(full.encode().unwrap_err().kind(), Kind::NoSpace);
}

#[test]
fn debug_shows_neither_names_nor_targets_nor_keys() {
    let mut n = node(HEAD, &[b"secret-name"]);
    n.entries[0].body = Body::Symlink(b"secret-target".to_vec());
    n.entries[0].xattrs = vec![(b"secret-attribute".to_vec(), b"secret-value".to_vec())];
    let text = format!("{n:?} {:?}", dir(7));
    assert!(!text.contains("secret-") && !text.contains("115, 101, 99") && !text.contains("7, 7, 7"), "{text}");
}
