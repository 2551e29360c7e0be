//! The fixed world of the vectors: keys, ids and salts all follow from labels, so every run writes the same bytes.

use smpfs::crypto::hash::sha256;
use smpfs::crypto::kdf::{Argon2Cost, expand_sha512};
use smpfs::crypto::secmem::SecretKey;
use smpfs::format::config::{self, Settings};
use smpfs::format::entry::{Attributes, Body, Entry, FileRef, Link, link_id};
use smpfs::format::index::{DirRef, IndexNode, Role};
use smpfs::format::manifest::{Hints, Manifest, Record};
use smpfs::format::names::{self, Place, readable_key};
use smpfs::format::object::{Expect, NewVersion, SealedRoot, seal_root};
use smpfs::format::segment::{SegmentAt, fresh_secret, seal_segment};
use smpfs::format::slot::{Credential, RecoveryCode, Slot};
use smpfs::format::{Geometry, Params, VolumeKeys, header::Header, index::shard_of};
use smpfs::types::{DirId, FileId, Hash, LinkId, LinkRef, Mode, Suite, Time, VolumeId};
use std::collections::BTreeMap;

pub const PASSPHRASE: &[u8] = "vector pa\u{df}phrase".as_bytes();

/// `N` bytes that follow from a label.
pub fn fixed<const N: usize>(label: &str) -> [u8; N] {
    *expand_sha512::<N>(&sha256(&[b"smpfs vectors"]), &[label.as_bytes()])
}

/// The plaintext of all vectors: byte `i` is the XOR of the three low bytes of `i`.
pub fn plaintext(size: u64) -> Vec<u8> {
    let block: Vec<u8> = (0..1u32 << 16).map(|i| (i ^ (i >> 8)) as u8).collect();
    let mut out = Vec::with_capacity(size as usize);
    for high in 0..=(size >> 16) as u8 {
        out.extend(block.iter().map(|b| b ^ high).take(size as usize - out.len()));
    }
    out
}

pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

pub struct World {
    pub mode: Mode,
    pub params: Params,
    pub vrk: SecretKey,
    pub keys: VolumeKeys,
}

/// One sealed object and what the index says of it.
pub struct Object {
    pub label: String,
    pub bytes: Vec<u8>,
    pub expect: Expect,
    pub manifest: Manifest,
    pub size: u64,
    pub name: Vec<u8>,
}

impl World {
    pub fn new(mode: Mode, suite: Suite, geometry: Geometry) -> World {
        let volume_id = VolumeId(fixed("volume id"));
        let vrk = SecretKey::new(&fixed("volume root key"));
        let keks = vec![SecretKey::new(&fixed("kek 1")), SecretKey::new(&fixed("kek 2"))];
        let keys = VolumeKeys::derive(&vrk, volume_id, keks);
        World { mode, params: Params { volume_id, suite, geometry }, vrk, keys }
    }

    /// A sealed file; segments in `holes` are not stored (their plaintext reads as zeros).
    pub fn object(&self, label: &str, dir: DirId, name: &[u8], size: u64, holes: &[u64], generation: u64) -> Object {
        let file_id = FileId(fixed(&format!("{label} file id")));
        let file_key = SecretKey::new(&fixed(&format!("{label} file key")));
        let g = self.params.geometry;
        let plain = plaintext(size);
        let mut bytes = Header { params: self.params, file_id }.encode().to_vec();
        let mut records = Vec::new();
        for (k, part) in (0..).zip(plain.chunks(g.seg_size() as usize)) {
            if holes.contains(&k) {
                records.push(Record::Hole { written: generation });
                continue;
            }
            let secret = fresh_secret(&fixed(&format!("{label} segment {k}")), &file_key, &file_id, k, generation, k);
            let at = SegmentAt { params: &self.params, file_id: &file_id, k, plain: part.len() as u64 };
            let (stored, record) = seal_segment(at, secret, generation, part).unwrap();
            bytes.extend_from_slice(&stored);
            records.push(record);
        }
        let content_sha256 = holes.is_empty().then(|| Hash(sha256(&[&plain])));
        let time = Time { sec: 1_700_000_000, nsec: 123_456_789 };
        let hints = Hints { mtime: time, ctime: time, mode: 0o640, dir_id: dir, name: name.to_vec() };
        let manifest = Manifest { size, hints, content_sha256, records };
        let previous = if generation == 1 { Hash::ZERO } else { Hash(fixed("previous trailer")) };
        let params = &self.params;
        let new = NewVersion { params, file_id, file_key: &file_key, generation, previous, manifest: &manifest };
        let root: SealedRoot =
            seal_root(&self.keys, &new, &fixed(&format!("{label} manifest salt")), &fixed(&format!("{label} wrap salt")))
                .unwrap();
        bytes.extend_from_slice(&root.tail);
        assert_eq!(bytes.len() as u64, root.object_len);
        let expect = Expect { file_id, generation, trailer_hash: root.trailer_hash, file_key };
        Object { label: label.to_owned(), bytes, expect, manifest, size, name: name.to_vec() }
    }

    pub fn config(&self) -> Vec<u8> {
        let volume = &self.params.volume_id;
        let code = RecoveryCode::new(&fixed("recovery code"));
        let slot = |credential: &Credential<'_>, label: &str| {
            let salts = (fixed(&format!("{label} slot salt")), fixed(&format!("{label} slot wrap")));
            Slot::seal(credential, Argon2Cost::MIN, volume, &self.vrk, salts.0, &salts.1).unwrap()
        };
        let slots = [slot(&Credential::Passphrase(PASSPHRASE), "passphrase"), slot(&Credential::Recovery(&code), "recovery")];
        let settings = Settings {
            mode: self.mode,
            params: self.params,
            generation: 1,
            root_dir: self.root().dir_id,
            created: 1_700_000_000,
            name: "vectors \u{2713}".into(),
        };
        config::seal(&settings, &slots, &self.keys, &fixed("epochs salt")).unwrap()
    }

    pub fn root(&self) -> DirRef {
        DirRef { dir_id: DirId(fixed("root dir")), dir_key: self.keys.root_dir().clone() }
    }

    pub fn dir(&self, label: &str) -> DirRef {
        DirRef { dir_id: DirId(fixed(&format!("{label} dir id"))), dir_key: SecretKey::new(&fixed(&format!("{label} dir key"))) }
    }

    pub fn entry(&self, name: &[u8], body: Body) -> Entry {
        let time = |sec| Time { sec, nsec: 1 };
        let attributes =
            Attributes { mode: 0o750, uid: 1000, gid: 100, atime: time(-1), mtime: time(2), ctime: time(3), btime: time(4) };
        Entry {
            name: name.to_vec(),
            attributes,
            body,
            refs: Vec::new(),
            xattrs: vec![(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), vec![])],
        }
    }

    pub fn file_entry(&self, object: &Object, path: &[&[u8]]) -> Entry {
        let e = &object.expect;
        let key = if self.mode == Mode::Standard { readable_key(path.iter().copied()) } else { None };
        let file = FileRef {
            file_id: e.file_id,
            file_key: e.file_key.clone(),
            generation: e.generation,
            trailer_hash: e.trailer_hash,
            size: object.size,
            object_len: object.bytes.len() as u64,
            key,
        };
        self.entry(&object.name, Body::File(file))
    }

    pub fn node(&self, role: Role, mut entries: Vec<Entry>) -> IndexNode {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        IndexNode { role, frozen: false, generation: 2, previous: Hash(fixed("previous index")), entries }
    }

    fn put_index(&self, bucket: &mut BTreeMap<String, Vec<u8>>, dir: &DirRef, node: &IndexNode) {
        let place = node.role.place();
        let label = format!("index salt {} {place:?}", dir.dir_id.hex());
        let (bytes, _) = node.seal(&self.keys, dir, &fixed(&label)).unwrap();
        bucket.insert(names::index_key(&dir_name(&self.vrk, &self.params.volume_id), &dir.dir_id, place), bytes);
    }

    /// A whole bucket: files, a hole, a symlink, special files, a subdirectory that is sharded, a name that is no key.
    pub fn bucket(&self) -> (BTreeMap<String, Vec<u8>>, BTreeMap<String, String>) {
        let mut bucket = BTreeMap::from([(names::CONFIG.to_owned(), self.config())]);
        let mut tree = BTreeMap::new();
        let (root, sub) = (self.root(), self.dir("sub"));
        let mut head = Vec::new();
        let (c, s) = (self.params.geometry.chunk_size(), self.params.geometry.seg_size());
        let files: [(&[u8], u64, &[u64], u64); 3] =
            [(b"empty", 0, &[], 1), (b"two chunks.dcm", c + 1, &[], 3), (b"hole", s + 5, &[0], 1)];
        for (name, size, holes, generation) in files {
            self.add(&mut bucket, &mut tree, &mut head, &root, &[name], (size, holes, generation));
        }
        head.push(self.entry(b"link", Body::Symlink(b"sub/a".to_vec())));
        head.push(self.entry(b"pipe", Body::Fifo));
        head.push(self.entry(b"sock", Body::Socket));
        head.push(self.entry(b"tty", Body::CharDevice { major: 5, minor: 1 }));
        head.push(self.entry(b"disk", Body::BlockDevice { major: 8, minor: 0 }));
        head.push(self.entry(b"sub", Body::Dir { dir_id: sub.dir_id, dir_key: sub.dir_key.clone() }));
        self.add_linked(&mut bucket, &mut tree, &mut head, &root);
        self.put_index(&mut bucket, &root, &self.node(Role::Head { shard_bits: 0, epoch: 0 }, head));
        let mut shards = [Vec::new(), Vec::new()];
        for name in [&b"a"[..], b"b", b"c", "\u{fc}.nii".as_bytes(), b"new\nline", b"\xff\xfe"] {
            let shard = &mut shards[shard_of(name, 1) as usize];
            self.add(&mut bucket, &mut tree, shard, &sub, &[b"sub", name], (10, &[], 1));
        }
        self.put_index(&mut bucket, &sub, &self.node(Role::Head { shard_bits: 1, epoch: 1 }, Vec::new()));
        for (slot, entries) in (0..).zip(shards) {
            assert!(!entries.is_empty(), "both shards are in use");
            self.put_index(&mut bucket, &sub, &self.node(Role::Shard { shard_bits: 1, epoch: 1, slot }, entries));
        }
        (bucket, tree)
    }

    /// A file and a symlink with two names each: their inodes are in the links directory.
    fn add_linked(
        &self,
        bucket: &mut BTreeMap<String, Vec<u8>>,
        tree: &mut BTreeMap<String, String>,
        head: &mut Vec<Entry>,
        root: &DirRef,
    ) {
        let links = self.links_dir();
        assert_eq!(&links, self.keys.links_dir());
        let mut made = Vec::new();
        self.add(bucket, &mut BTreeMap::new(), &mut made, root, &[b"one"], (20, &[], 1));
        made.push(self.entry(b"target", Body::Symlink(b"sub/b".to_vec())));
        let names: [[&[u8]; 2]; 2] = [[b"one", b"other"], [b"soft", b"soft too"]];
        let mut inodes = Vec::new();
        for (mut inode, names) in made.into_iter().zip(names) {
            let id = match &inode.body {
                Body::File(f) => link_id(&f.file_id),
                _ => LinkId(fixed("link id")),
            };
            for name in names {
                let own = LinkRef(fixed(&format!("ref {}", hex(name))));
                let link = Link { id, own, kind: inode.body.code() };
                let body = Body::Link(link);
                head.push(Entry {
                    name: name.to_vec(),
                    attributes: Attributes::default(),
                    body,
                    refs: Vec::new(),
                    xattrs: Vec::new(),
                });
                inode.name = link.inode_name();
                inode.refs.push(own);
            }
            inode.refs.sort();
            inodes.push(inode);
        }
        for name in names[0] {
            tree.insert(hex(name), hex(&sha256(&[&plaintext(20)])));
        }
        self.put_index(bucket, &links, &self.node(Role::Head { shard_bits: 0, epoch: 0 }, inodes));
    }

    /// Id and key of the links directory, made as the document says and not by the code under test.
    pub fn links_dir(&self) -> DirRef {
        let key = |label: &[u8]| {
            let info = [b"smpfs/v1/key\0", label].concat();
            smpfs::crypto::kdf::hkdf_sha512::<32>(&self.params.volume_id.0, self.vrk.expose(), &[&info])
        };
        let mut id = [0; 16];
        id.copy_from_slice(&key(b"links-id")[..16]);
        DirRef { dir_id: DirId(id), dir_key: SecretKey::new(&key(b"links-dir")) }
    }

    fn add(
        &self,
        bucket: &mut BTreeMap<String, Vec<u8>>,
        tree: &mut BTreeMap<String, String>,
        entries: &mut Vec<Entry>,
        dir: &DirRef,
        path: &[&[u8]],
        (size, holes, generation): (u64, &[u64], u64),
    ) {
        let label = format!("file {}", hex(&path.join(&b'/')));
        let object = self.object(&label, dir.dir_id, path[path.len() - 1], size, holes, generation);
        let entry = self.file_entry(&object, path);
        let Body::File(file) = &entry.body else { panic!("a file") };
        bucket.insert(file.object_key(), object.bytes);
        let mut plain = plaintext(size);
        for k in holes {
            let s = self.params.geometry.seg_size() as usize;
            let end = plain.len().min((*k as usize + 1) * s);
            plain[*k as usize * s..end].fill(0);
        }
        tree.insert(hex(&path.join(&b'/')), hex(&sha256(&[&plain])));
        entries.push(entry);
    }
}

/// K("dir-name"), made as the document says and not by the code under test.
pub fn dir_name(vrk: &SecretKey, volume: &VolumeId) -> SecretKey {
    let okm = smpfs::crypto::kdf::hkdf_sha512::<32>(&volume.0, vrk.expose(), &[b"smpfs/v1/key\0dir-name"]);
    SecretKey::new(&okm)
}

/// Where an object of a directory must lie; the library's own answer is compared with it.
pub fn index_key(world: &World, dir: &DirRef, place: Place) -> String {
    world.keys.index_key(&dir.dir_id, place)
}
