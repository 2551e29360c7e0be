//! The independent reader on a bucket that the filesystem wrote: the same tree, the same contents.

use crate::world::{SEG, WHO, World, data};
use smpfs::crypto::kdf::Argon2Cost;
use smpfs::env::Env;
use smpfs::format::Geometry;
use smpfs::keyring::{InitParams, Secret, init, unlock};
use smpfs::ops::{FileType, Ops};
use smpfs::store::Store;
use smpfs::store::dir::DirStore;
use smpfs::types::{Mode, Suite};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const PASSPHRASE: &str = "correct horse battery";

/// A real volume in a directory, with a config that a passphrase opens.
pub fn volume(at: &Path, mode: Mode, suite: Suite) -> World {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    rt.block_on(async {
        let store: Arc<dyn Store> = Arc::new(DirStore::open(at, true, false, Env::real()).await.unwrap());
        let geometry = Geometry::new(14, 4).unwrap();
        let params = InitParams { mode, suite, name: "volume".to_owned(), kdf: Argon2Cost::MIN, geometry };
        let pass = || PASSPHRASE.as_bytes().to_vec().into();
        init(&*store, params, pass(), None, &Env::real()).await.unwrap();
        let volume = unlock(&*store, Secret::Passphrase(pass()), None).await.unwrap();
        let root = volume.root();
        World { bucket: store, keys: volume.keys.clone(), params: volume.info.params, mode, root }
    })
}

/// What the independent reader finds in a bucket: paths and the hashes of contents.
pub fn read(temp: &tempfile::TempDir, bucket: &Path) -> BTreeMap<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/read_v1.py");
    let pass = temp.path().join("pass");
    std::fs::write(&pass, PASSPHRASE).unwrap();
    let mut python = Command::new("python3");
    python.arg("-B").arg(&script).arg("bucket").arg(bucket).arg("--passphrase-file").arg(&pass).arg("--json");
    let out = python.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    let word = |v: &serde_json::Value, name: &str| v[name].as_str().unwrap().to_owned();
    let path = |v| String::from_utf8(data_encoding::HEXLOWER.decode(word(v, "path_hex").as_bytes()).unwrap()).unwrap();
    found["files"].as_array().unwrap().iter().map(|f| (path(f), word(f, "sha256"))).collect()
}

#[test]
fn the_independent_reader_sees_the_same_tree() {
    // Asked apart from the script, so that a mistake in the script is a failure and never a skip.
    let needed = "from cryptography.hazmat.primitives.kdf.argon2 import Argon2id";
    if !Command::new("python3").args(["-c", needed]).output().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: python3 with the package cryptography (44 or later) is not installed");
        return;
    }
    for (mode, suite) in [(Mode::Standard, Suite::Aes256Gcm), (Mode::ZeroKnowledge, Suite::ChaCha20Poly1305)] {
        let temp = tempfile::tempdir().unwrap();
        let bucket = temp.path().join("bucket");
        let world = volume(&bucket, mode, suite);
        let mount = world.fresh();
        mount.mkdir("d");
        mount.mkdir("d/e");
        for (i, len) in [0, 1, 16_383, 16_384, 16_385, SEG as usize, SEG as usize + 1, 5 * SEG as usize].into_iter().enumerate() {
            mount.put(&format!("d/e/{len}"), &data(i as u8, len));
        }
        mount.put("d/replaced", &data(1, 50_000));
        mount.put("d/edited", &data(1, 90 * SEG as usize));
        mount.drain();
        mount.put("d/replaced", &data(2, 40_000));
        let (ino, opened) = mount.open("d/edited", libc::O_RDWR).unwrap();
        mount.write((ino, opened.fh), 30 * SEG, &data(3, 100)).unwrap();
        mount.write((ino, opened.fh), 120 * SEG, b"behind a hole").unwrap();
        mount.close((ino, opened.fh)).unwrap();
        mount.rename("d/replaced", "moved").unwrap();
        let many = mount.mkdir("many");
        for i in 0..1100 {
            mount.wait(mount.fs.symlink(WHO, many, format!("n{i}").as_bytes(), b"t")).unwrap();
        }
        mount.put("many/f", b"in a shard");
        for (old, new) in [("moved", "d/second"), ("d/second", "d/e/third"), ("many/f", "f"), ("many/n7", "soft")] {
            mount.link(old, new).unwrap();
        }
        mount.unlink("d/second").unwrap();
        mount.rename("d/e/third", "third").unwrap();
        mount.drain();
        let tree = mount.tree();
        mount.unmount();
        let found = read(&temp, &bucket);
        let hex = |b: &[u8]| data_encoding::HEXLOWER.encode(b);
        let expected: BTreeMap<String, String> = tree
            .iter()
            .filter(|(_, l)| l.kind == FileType::File)
            .map(|(p, l)| (p.trim_start_matches('/').to_owned(), hex(&smpfs::crypto::hash::sha256(&[&l.bytes]))))
            .collect();
        assert_eq!(found, expected, "{mode:?}");
    }
}
