//! Golden and negative vectors of the on-bucket format, and the independent reader run against them.
//!
//! `SMPFS_WRITE_VECTORS=1 cargo test --test vectors` writes `tests/vectors/` anew after a deliberate change of the format;
//! otherwise what is there must be, byte for byte, what this version of smpfs writes.

#![allow(clippy::unwrap_used)] // helpers of tests, too, stop at the first surprise

#[path = "vectors/negative.rs"]
mod negative;
#[path = "vectors/world.rs"]
mod world;

use negative::Case;
use serde_json::{Value, json};
use smpfs::crypto::hash::sha256;
use smpfs::crypto::secmem::SecretKey;
use smpfs::error::{Error, Kind, Result};
use smpfs::format::config::Config;
use smpfs::format::index::{IndexNode, Role};
use smpfs::format::lease::Lease;
use smpfs::format::log::{LogId, LogKey, LogKind, seal_header};
use smpfs::format::names::Place;
use smpfs::format::object::{Expect, ObjectRoot, Opening, check_version};
use smpfs::format::slot::{Credential, RecoveryCode};
use smpfs::format::trailer::trailer_hash;
use smpfs::format::{Failure, Geometry};
use smpfs::types::{FileId, Hash, Mode, Suite, Time};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use world::{Object, PASSPHRASE, World, dir_name, fixed, hex, index_key, plaintext};

const SMALL: (u8, u8) = (14, 4);

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn small(mode: Mode, suite: Suite) -> World {
    World::new(mode, suite, Geometry::new(SMALL.0, SMALL.1).unwrap())
}

/// Compares a committed file with what it should hold, or writes it when asked to.
fn committed(path: &str, bytes: &[u8]) {
    let path = dir().join(path);
    if std::env::var_os("SMPFS_WRITE_VECTORS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let found = std::fs::read(&path).unwrap_or_default();
    assert!(found == bytes, "{} is not what this version writes: did the format change?", path.display());
}

fn committed_json(path: &str, value: &Value) {
    committed(path, (serde_json::to_string_pretty(value).unwrap() + "\n").as_bytes());
}

/// Opens an object of which all bytes are there, as a mount does, and reads it whole.
fn read(world: &World, expect: &Expect, bytes: &[u8]) -> Result<Vec<u8>> {
    match ObjectRoot::open(&world.params, &world.keys, expect, bytes, bytes, bytes.len() as u64)? {
        Opening::Done(root) => Ok(root.read_all(bytes, 1 << 30)?.to_vec()),
        Opening::NeedManifest(_) => Failure::ManifestHash.fail("all bytes were there"),
    }
}

fn expect_json(e: &Expect) -> Value {
    json!({
        "file_id": hex(&e.file_id.0), "file_key": hex(e.file_key.expose()), "generation": e.generation,
        "trailer_hash": hex(&e.trailer_hash.0),
    })
}

fn world_json(world: &World) -> Value {
    json!({
        "volume_id": hex(&world.params.volume_id.0), "vrk": hex(world.vrk.expose()),
        "suite": if world.params.suite == Suite::Aes256Gcm { 1 } else { 2 },
        "chunk_log2": world.params.geometry.chunk_log2(), "seg_log2": world.params.geometry.seg_log2(),
        "keks": [hex(&fixed::<32>("kek 1")), hex(&fixed::<32>("kek 2"))],
    })
}

/// Sizes around the edges of chunks and segments, at the default geometry in both suites.
#[test]
fn golden_objects() {
    let mut list = Vec::new();
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let world = World::new(Mode::ZeroKnowledge, suite, Geometry::DEFAULT);
        let s = Geometry::DEFAULT.seg_size();
        let mut objects: Vec<(&World, Object, &[u64])> = Vec::new();
        let little = small(Mode::ZeroKnowledge, suite);
        let c = little.params.geometry.chunk_size();
        for size in [0, 1, 65_535, 65_536, 65_537, s - 1, s, s + 1] {
            objects.push((&world, world.object(&format!("{suite:?} {size}"), world.root().dir_id, b"name", size, &[], 1), &[]));
        }
        let label = format!("{suite:?} small");
        objects.push((&little, little.object(&label, world.root().dir_id, b"name", c + 1, &[], 3), &[]));
        let label = format!("{suite:?} hole");
        objects.push((&little, little.object(&label, world.root().dir_id, b"name", 16 * c + 1, &[0], 1), &[0]));
        for (world, o, holes) in &objects {
            let mut plain = plaintext(o.size);
            holes.iter().for_each(|k| plain[*k as usize * 16 * c as usize..(*k as usize + 1) * 16 * c as usize].fill(0));
            assert!(read(world, &o.expect, &o.bytes).unwrap() == plain, "{}", o.label);
            if holes.is_empty() {
                assert_eq!(world.params.geometry.size_of(o.bytes.len() as u64), Some(o.size));
            }
            let file = (o.bytes.len() < 20_000).then(|| format!("objects/{}.smp", o.label.replace(' ', "-").to_lowercase()));
            if let Some(file) = &file {
                committed(file, &o.bytes);
            }
            list.push(json!({
                "label": o.label, "world": world_json(world), "expect": expect_json(&o.expect), "size": o.size, "holes": holes,
                "object_len": o.bytes.len(), "object_sha256": hex(&sha256(&[&o.bytes])), "plain_sha256": hex(&sha256(&[&plain])),
                "file": file,
            }));
        }
    }
    committed_json("golden.json", &Value::Array(list));
}

/// How `bytes` differ from `base`: runs of other bytes at equal length, else what stands between an equal front and an equal back.
fn patch(base: &[u8], bytes: &[u8]) -> Value {
    if base.len() != bytes.len() {
        let shorter = base.len().min(bytes.len());
        let front = base.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        let back = base.iter().rev().zip(bytes.iter().rev()).take(shorter - front).take_while(|(a, b)| a == b).count();
        return json!({ "front": front, "insert": hex(&bytes[front..bytes.len() - back]), "back": back });
    }
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for at in (0..base.len()).filter(|at| base[*at] != bytes[*at]) {
        match runs.last_mut() {
            Some((_, end)) if at < *end + 8 => *end = at + 1,
            _ => runs.push((at, at + 1)),
        }
    }
    json!(runs.iter().map(|(from, to)| json!([from, hex(&bytes[*from..*to])])).collect::<Vec<_>>())
}

fn case_json(kind: &str, base: &[u8], c: &Case, trailer_hash: Option<Hash>) -> Value {
    let mut v = json!({ "kind": kind, "name": c.name, "class": c.class.name(), "patch": patch(base, &c.bytes) });
    if let Some(hash) = trailer_hash {
        v["trailer_hash"] = json!(hex(&hash.0));
    }
    v
}

fn assert_class(name: &str, result: Result<()>, class: Failure) {
    let error = match result {
        Ok(()) => panic!("{name}: accepted, and should fail as {}", class.name()),
        Err(e) => e,
    };
    assert_eq!((error.kind(), Failure::of(&error)), (Kind::Corrupt, Some(class)), "{name}: {error}");
}

/// Every field that a reader checks, changed so that only that check can notice: the failure class is the document's.
#[test]
fn negative_vectors() {
    let world = small(Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let c = world.params.geometry.chunk_size();
    let o = world.object("Aes256Gcm small", world.root().dir_id, b"name", c + 1, &[], 3);
    let mut list = Vec::new();
    for case in negative::objects(&world, &o).into_iter().chain(negative::bodies(&world, &o)) {
        assert_class(&case.name, read(&world, &o.expect, &case.bytes).map(drop), case.class);
        list.push(case_json("object", &o.bytes, &case, None));
    }
    for case in negative::manifests(&world, &o) {
        let mut expect = o.expect.clone();
        expect.trailer_hash = trailer_hash(case.bytes.last_chunk().unwrap());
        assert_class(&case.name, read(&world, &expect, &case.bytes).map(drop), case.class);
        list.push(case_json("object", &o.bytes, &case, Some(expect.trailer_hash)));
    }
    let config = world.config();
    for case in negative::configs(&world) {
        let unlock = |config: Config| config.unlock(&Credential::Passphrase(PASSPHRASE)).map(drop);
        assert_class(&case.name, Config::parse(&case.bytes).and_then(unlock), case.class);
        list.push(case_json("config", &config, &case, None));
    }
    assert_class("config of more than 64 KiB", Config::parse(&[&config[..], &[0; 65_536]].concat()).map(drop), Failure::Length);
    let (bucket, _) = world.bucket();
    let head = bucket[&index_key(&world, &world.root(), Place::HEAD)].clone();
    let (node, _) = IndexNode::open(&world.keys, &world.root(), Place::HEAD, &head).unwrap();
    let (good, _) = node.seal(&world.keys, &world.root(), &fixed("index salt")).unwrap();
    committed("index.smp", &good);
    for case in negative::indexes(&world, &good) {
        assert_class(&case.name, IndexNode::open(&world.keys, &world.root(), Place::HEAD, &case.bytes).map(drop), case.class);
        list.push(case_json("index", &good, &case, None));
    }
    let payload = node.encode().unwrap();
    committed("index-payload.bin", &payload);
    for case in negative::payloads(&payload, node.entries[0].name.len()) {
        let sealed = negative::seal_payload(&world, &world.root(), Place::HEAD, &case.bytes);
        assert_class(&case.name, IndexNode::parse(&case.bytes).map(drop), case.class);
        assert_class(&case.name, IndexNode::open(&world.keys, &world.root(), Place::HEAD, &sealed).map(drop), case.class);
        list.push(case_json("index-payload", &payload, &case, None));
    }
    let bases = json!({ "object": "objects/aes256gcm-small.smp", "config": "bucket-zk/.smpfs/volume", "index": "index.smp",
        "index-payload": "index-payload.bin" });
    let root = json!({ "dir_id": hex(&world.root().dir_id.0), "dir_key": hex(world.root().dir_key.expose()) });
    let passphrase = String::from_utf8(PASSPHRASE.to_vec()).unwrap();
    let value = json!({ "world": world_json(&world), "bases": bases, "root": root, "passphrase": passphrase,
        "expect": expect_json(&o.expect) });
    let mut text = serde_json::to_string(&value).unwrap();
    text.truncate(text.len() - 1);
    let lines: Vec<String> = list.iter().map(Value::to_string).collect();
    text += &format!(",\"cases\":[\n{}\n]}}\n", lines.join(",\n"));
    committed("negative.json", text.as_bytes());
}

/// A key in the index that is not the one wrapped in the object; another file's object in its place.
#[test]
fn swapped_objects_and_keys_are_refused() {
    let world = small(Mode::ZeroKnowledge, Suite::ChaCha20Poly1305);
    let dir = world.root().dir_id;
    let (a, b) = (world.object("swap a", dir, b"a", 100, &[], 1), world.object("swap b", dir, b"b", 100, &[], 1));
    assert_class("swapped", read(&world, &a.expect, &b.bytes).map(drop), Failure::Identity);
    let other_key = Expect { file_key: b.expect.file_key.clone(), ..a.expect.clone() };
    assert_class("another key", read(&world, &other_key, &a.bytes).map(drop), Failure::KeyWrap);
    let other_id = Expect { file_id: FileId([0; 32]), ..a.expect.clone() };
    assert_class("another id", read(&world, &other_id, &a.bytes).map(drop), Failure::Identity);
}

#[test]
fn every_flipped_bit_every_cut_and_every_extension_of_an_object_is_refused() {
    let world = World::new(Mode::ZeroKnowledge, Suite::Aes256Gcm, Geometry::DEFAULT);
    let o = world.object("fragile", world.root().dir_id, b"name", 33, &[], 2);
    let refused = |bytes: &[u8], what: &str, at: usize| {
        let error = read(&world, &o.expect, bytes).err().unwrap_or_else(|| panic!("{what} {at} was accepted"));
        assert!(Failure::of(&error).is_some(), "{what} {at}: {error}");
    };
    for bit in 0..o.bytes.len() * 8 {
        let mut bad = o.bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        refused(&bad, "bit", bit);
    }
    for len in 0..o.bytes.len() {
        refused(&o.bytes[..len], "cut to", len);
        refused(&o.bytes[o.bytes.len() - len..], "tail of", len);
    }
    for more in 1..700 {
        refused(&[&o.bytes[..], &vec![0; more]].concat(), "zeros behind", more);
        refused(&[&o.bytes[..], &o.bytes[..more]].concat(), "itself behind", more);
        refused(&[&o.bytes[..128], &vec![0; more], &o.bytes[128..]].concat(), "zeros inside", more);
    }
}

#[test]
fn every_flipped_bit_of_config_and_index_is_refused() {
    let world = small(Mode::Standard, Suite::Aes256Gcm);
    let config = world.config();
    for bit in 0..config.len() * 8 {
        let mut bad = config.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Config::parse(&bad).is_err(), "config bit {bit}");
    }
    let node = world.node(Role::Head { shard_bits: 0, epoch: 0 }, Vec::new());
    let (index, _) = node.seal(&world.keys, &world.root(), &fixed("index salt")).unwrap();
    for at in 0..index.len() {
        let mut bad = index.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(IndexNode::open(&world.keys, &world.root(), Place::HEAD, &bad).is_err(), "index byte {at}");
        assert!(IndexNode::open(&world.keys, &world.root(), Place::HEAD, &index[..at]).is_err(), "index cut to {at}");
    }
}

#[test]
fn golden_config_unlocks_with_both_credentials() {
    let world = small(Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let config = Config::parse(&world.config()).unwrap();
    assert_eq!((config.settings().mode, config.settings().params), (world.mode, world.params));
    let code = RecoveryCode::parse(&RecoveryCode::new(&fixed("recovery code")).text()).unwrap();
    for credential in [Credential::Passphrase(PASSPHRASE), Credential::Recovery(&code)] {
        let unlocked = config.unlock(&credential).unwrap();
        assert_eq!(unlocked.vrk, world.vrk);
        assert_eq!((unlocked.keys.latest_epoch(), unlocked.keys.owner().public()), (2, world.keys.owner().public()));
    }
    let wrong = config.unlock(&Credential::Passphrase(b"wrong")).unwrap_err();
    assert_eq!((wrong.kind(), Failure::of(&wrong)), (Kind::Locked, None));
    let wrong = config.unlock(&Credential::Recovery(&RecoveryCode::new(&[0; 32]))).unwrap_err();
    assert_eq!(wrong.kind(), Kind::Locked);
}

#[test]
fn pins_refuse_another_owner_an_older_config_and_a_fork() {
    let config = Config::parse(&small(Mode::Standard, Suite::Aes256Gcm).config()).unwrap();
    let pin = config.pin();
    config.check_pin(&pin).unwrap();
    let mut other = pin;
    other.owner[0] ^= 1;
    assert_class("owner", config.check_pin(&other), Failure::Identity);
    let mut other = pin;
    other.generation = 2;
    assert_class("generation", config.check_pin(&other), Failure::Rollback);
    let mut other = pin;
    other.hash.0[0] ^= 1;
    assert_class("hash", config.check_pin(&other), Failure::Fork);
    other.generation = 0;
    config.check_pin(&other).unwrap();
    assert!(check_version((1, pin.hash), (2, other.hash)).is_ok());
}

fn golden_buckets() -> [(&'static str, World); 2] {
    [
        ("bucket-zk", small(Mode::ZeroKnowledge, Suite::Aes256Gcm)),
        ("bucket-standard", small(Mode::Standard, Suite::ChaCha20Poly1305)),
    ]
}

#[test]
fn golden_buckets_and_log() {
    let mut trees = serde_json::Map::new();
    for (name, world) in golden_buckets() {
        let (bucket, tree) = world.bucket();
        for (key, bytes) in &bucket {
            committed(&format!("{name}/{key}"), bytes);
        }
        let head = &bucket[&index_key(&world, &world.root(), Place::HEAD)];
        assert_eq!(dir_name(&world.vrk, &world.params.volume_id).expose().len(), 32);
        let (node, _) = IndexNode::open(&world.keys, &world.root(), Place::HEAD, head).unwrap();
        assert_eq!(node.entries.len(), 13);
        let inodes = &bucket[&index_key(&world, &world.links_dir(), Place::HEAD)];
        let (inodes, _) = IndexNode::open(&world.keys, &world.links_dir(), Place::HEAD, inodes).unwrap();
        let mut names: Vec<usize> = inodes.entries.iter().map(|e| e.refs.len()).collect();
        names.sort_unstable();
        assert_eq!(names, [2, 2]);
        assert!(node.find(b"hole").is_some() && node.find(b"absent").is_none());
        trees.insert(name.to_owned(), json!(tree));
    }
    committed_json("trees.json", &Value::Object(trees));

    let world = small(Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let log = LogId { kind: LogKind::Journal, volume: world.params.volume_id, id: fixed("log id") };
    let mut bytes = seal_header(log, world.keys.local_log(), &SecretKey::new(&fixed("log key")), &fixed("log salt")).to_vec();
    let key = LogKey::new(&fixed("log key"), log);
    for (seq, payload) in [(0, &b"first"[..]), (1, b""), (3, b"after a burned number")] {
        let offset = bytes.len() as u64;
        key.seal(seq, offset, 7, &[payload], &mut bytes).unwrap();
    }
    committed("log.smp", &bytes);
}

#[test]
fn golden_lease() {
    let world = small(Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let time = |sec| Time { sec, nsec: 5 };
    let (holder, mount) = (fixed("lease holder"), fixed("lease mount"));
    let (taken, issued, host) = (time(1_700_000_000), time(1_700_000_600), "kl\u{e4}r-2".to_owned());
    let lease = Lease { holder, mount, sequence: 31, taken, issued, period: 60, host };
    let bytes = lease.seal(&world.keys, &fixed("lease salt")).unwrap();
    assert_eq!(Lease::open(&world.keys, &bytes).unwrap(), lease);
    committed("lease.smp", &bytes);
    let value = json!({ "world": world_json(&world), "holder": hex(&holder), "mount": hex(&mount), "sequence": 31,
        "taken": [taken.sec, taken.nsec], "issued": [issued.sec, issued.nsec], "period": 60, "host": lease.host });
    committed_json("lease.json", &value);
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        assert_class(&format!("lease, byte {at}"), Lease::open(&world.keys, &bad).map(drop), Failure::Lease);
    }
}

/// Runs the independent reader; `None` (and a line that says so) where Python or its `cryptography` package is missing.
fn python(args: &[&str]) -> Option<(i32, String)> {
    let script = dir().join("read_v1.py");
    // Asked apart from the script, so that a mistake in the script is a failure and never a skip.
    let needed = "from cryptography.hazmat.primitives.kdf.argon2 import Argon2id";
    let can = Command::new("python3").args(["-c", needed]).output().is_ok_and(|o| o.status.success());
    if !can {
        eprintln!("skipped: python3 with the package cryptography (44 or later) is not installed");
        return None;
    }
    let out = Command::new("python3").arg("-B").arg(&script).args(args).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    Some((out.status.code().unwrap_or(-1), text))
}

fn write_bucket(at: &Path, bucket: &BTreeMap<String, Vec<u8>>) {
    for (key, bytes) in bucket {
        let path = at.join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn passphrase_file(at: &Path) -> String {
    let path = at.join("passphrase");
    std::fs::write(&path, [PASSPHRASE, b"\n"].concat()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn independent_reader_agrees_with_all_vectors() {
    let Some((code, text)) = python(&["vectors", dir().to_str().unwrap()]) else { return };
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("0 wrong"), "{text}");
}

#[test]
fn independent_reader_decrypts_whole_buckets() {
    let temp = tempfile::tempdir().unwrap();
    let pass = passphrase_file(temp.path());
    for (name, mode, suite) in [("a", Mode::ZeroKnowledge, Suite::ChaCha20Poly1305), ("b", Mode::Standard, Suite::Aes256Gcm)] {
        // At the default geometry: the hole is 8 MiB.
        let (bucket, tree) = World::new(mode, suite, Geometry::DEFAULT).bucket();
        let at = temp.path().join(name);
        write_bucket(&at, &bucket);
        let args = ["bucket", at.to_str().unwrap(), "--passphrase-file", &pass, "--json"];
        let Some((code, text)) = python(&args) else { return };
        assert_eq!(code, 0, "{text}");
        let found: Value = serde_json::from_str(&text).unwrap();
        let found: BTreeMap<String, String> =
            found["files"].as_array().unwrap().iter().map(|f| (field(f, "path_hex"), field(f, "sha256"))).collect();
        assert_eq!(found, tree);
    }
}

fn field(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

#[test]
fn independent_reader_names_the_failure() -> Result<(), Error> {
    let temp = tempfile::tempdir().unwrap();
    let pass = passphrase_file(temp.path());
    let (_, world) = &golden_buckets()[1];
    let (good, _) = world.bucket();
    let file = "two chunks.dcm";
    let changes: [(&str, &str, Option<usize>); 4] = [
        ("leaf", file, Some(200)),
        ("omission", file, None),
        ("index", &index_key(world, &world.root(), Place::HEAD), Some(99)),
        ("signature", ".smpfs/volume", Some(30)),
    ];
    for (class, key, flip) in changes {
        let mut bucket = good.clone();
        match flip {
            Some(at) => bucket.get_mut(key).unwrap()[at] ^= 1,
            None => drop(bucket.remove(key)),
        }
        let at = temp.path().join(class);
        write_bucket(&at, &bucket);
        let Some((code, text)) = python(&["bucket", at.to_str().unwrap(), "--passphrase-file", &pass]) else { return Ok(()) };
        assert_ne!(code, 0, "{class}: {text}");
        assert!(text.contains(&format!("failure class {class}")), "{class}: {text}");
    }
    Ok(())
}
