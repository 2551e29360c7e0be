//! Looking a whole volume through: what is found, what is deleted and what never is, also while mounts change it.

use crate::world::{Listener, Mount, SEG, World, data};
use bytes::Bytes;
use parking_lot::Mutex;
use smpfs::crypto::sign::VerifyingKey;
use smpfs::env::{Clock, Env};
use smpfs::error::{Error, Kind, Result};
use smpfs::fs::{KnownMemory, Sink};
use smpfs::keyring::Known;
use smpfs::ops::{Invalidate, Invalidations};
use smpfs::read::{CorruptReport, Witness};
use smpfs::scrub::{Options, Parts, PublicParts, Report, Root, Scrub, What, check_public};
use smpfs::store::layers::{Around, Call, Fault, Op, Reply, Verb, Wrap};
use smpfs::store::memory::MemoryStore;
use smpfs::store::{Cond, Span, Store};
use smpfs::types::{DirId, FileId, Mode, Suite, Time};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::runtime::Runtime;

const DAY: i64 = 86_400;

/// A clock that stands until it is moved.
pub struct HandClock(AtomicI64);

impl Clock for HandClock {
    fn now(&self) -> Time {
        Time { sec: self.0.load(Ordering::SeqCst), nsec: 0 }
    }
}

/// Remembers what it is told.
#[derive(Default)]
pub struct Ear {
    pub inner: Listener,
    pub foreign: Mutex<Vec<String>>,
    pub kept: Mutex<Vec<(String, Bytes)>>,
}

impl Sink for Ear {
    fn index_corrupt(&self, dir: DirId, error: &Error) {
        self.inner.index_corrupt(dir, error);
    }
    fn object_missing(&self, key: &str, file: FileId, generation: u64) {
        self.inner.object_missing(key, file, generation);
    }
    fn trouble(&self, error: &Error) {
        self.inner.trouble(error);
    }
    fn saved(&self, _: FileId, _: u64) {}
    fn invalidate(&self, _: Invalidate) {}
    fn invalidations(&self) -> Option<Arc<Invalidations>> {
        None
    }
}

impl Witness for Ear {
    fn corrupt(&self, report: CorruptReport) {
        Witness::corrupt(&self.inner, report);
    }
}

impl smpfs::scrub::Listener for Ear {
    fn foreign(&self, key: &str) {
        self.foreign.lock().push(key.to_owned());
    }
    fn keep(&self, _: DirId, key: &str, bytes: &Bytes) -> Result<()> {
        self.kept.lock().push((key.to_owned(), bytes.clone()));
        Ok(())
    }
}

type Deed = Box<dyn FnOnce() + Send>;

/// Does something at a moment: just before a certain request.
#[derive(Default)]
pub struct Hook(Mutex<Vec<(Verb, String, u32, Deed)>>);

impl Hook {
    /// Before the request of that kind on a key that begins so, when `skip` of them have passed.
    pub fn on(&self, verb: Verb, key: &str, skip: u32, deed: impl FnOnce() + Send + 'static) {
        self.0.lock().push((verb, key.to_owned(), skip, Box::new(deed)));
    }

    /// Whether everything was done.
    pub fn done(&self) -> bool {
        self.0.lock().is_empty()
    }

    fn pick(&self, op: &Op<'_>) -> Option<Deed> {
        let mut all = self.0.lock();
        let at = all.iter_mut().position(|(verb, key, skip, _)| {
            let hit = *verb == op.verb && op.key.starts_with(key.as_str());
            let now = hit && *skip == 0;
            *skip = skip.saturating_sub(u32::from(hit));
            now
        })?;
        Some(all.remove(at).3)
    }
}

impl Around for Hook {
    async fn around<'a, T: Reply>(&'a self, _: &'a dyn Store, op: Op<'a>, call: Call<'a, T>) -> Result<T> {
        if let Some(deed) = self.pick(&op) {
            tokio::task::spawn_blocking(deed).await.unwrap();
        }
        call().await
    }
}

/// A volume whose store has a clock of its own, and what is needed to look it through.
pub struct Scene {
    pub world: World,
    pub clock: Arc<HandClock>,
    pub rt: Runtime,
}

/// A scrub with everything that hears of it.
pub struct Looker {
    pub scrub: Scrub,
    pub ear: Arc<Ear>,
    pub hook: Arc<Hook>,
}

impl Scene {
    pub fn new(mode: Mode) -> Scene {
        let clock = Arc::new(HandClock(AtomicI64::new(1_700_000_000)));
        let world = World::at(Arc::new(MemoryStore::with_clock(clock.clone())), mode, Suite::Aes256Gcm);
        Scene { world, clock, rt: runtime() }
    }

    pub fn days(&self, n: i64) {
        self.clock.0.fetch_add(n * DAY, Ordering::SeqCst);
    }

    /// On a machine that has never seen the volume.
    pub fn looker(&self) -> Looker {
        self.looker_with(Arc::new(Known::in_memory()))
    }

    /// On a machine that knows what it has seen.
    pub fn looker_with(&self, known: Arc<Known>) -> Looker {
        looker(&self.world, &self.rt, known)
    }

    pub fn report(&self) -> Report {
        let l = self.looker();
        self.rt.block_on(l.scrub.check()).unwrap();
        l.scrub.report()
    }

    pub fn get(&self, key: &str) -> Vec<u8> {
        self.rt.block_on(self.world.bucket.get(key, Span::Whole { max: 1 << 30 }, None)).unwrap().bytes.to_vec()
    }

    pub fn put(&self, key: &str, bytes: &[u8]) {
        self.rt.block_on(self.world.bucket.put(key, vec![bytes.to_vec().into()], Cond::Any)).unwrap();
    }

    pub fn delete(&self, key: &str) {
        self.rt.block_on(self.world.bucket.delete(key)).unwrap();
    }

    pub fn all(&self) -> BTreeMap<String, Vec<u8>> {
        self.world.keys_in_bucket().into_iter().map(|k| (k.clone(), self.get(&k))).collect()
    }

    /// Writes a file through a mount of its own; gives the key of its object.
    pub fn file(&self, mount: &Mount, path: &str, bytes: &[u8]) -> String {
        mount.drain();
        let before = self.world.keys_in_bucket();
        mount.put(path, bytes);
        mount.drain();
        let new: Vec<String> =
            self.world.keys_in_bucket().into_iter().filter(|k| !before.contains(k) && !k.starts_with(".smpfs/d/")).collect();
        assert_eq!(new.len(), 1, "{new:?}");
        new[0].clone()
    }

    /// The key of a directory's head.
    pub fn head_of(&self, mount: &Mount, path: &str) -> String {
        mount.drain();
        let before = self.world.keys_in_bucket();
        mount.mkdir(path);
        mount.drain();
        let new: Vec<String> = self.world.keys_in_bucket().into_iter().filter(|k| !before.contains(k)).collect();
        assert_eq!(new.len(), 1, "{new:?}");
        new[0].clone()
    }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub fn looker(world: &World, rt: &Runtime, known: Arc<Known>) -> Looker {
    let (ear, hook) = (Arc::new(Ear::default()), Arc::new(Hook::default()));
    let parts = Parts {
        store: Arc::new(Wrap::new(world.bucket.clone(), hook.clone())),
        keys: world.keys.clone(),
        params: world.params,
        mode: world.mode,
        roots: Root::all(world.root.clone(), &world.keys),
        memory: Arc::new(KnownMemory(known)),
        listener: ear.clone(),
        env: Env::real(),
        options: Options { memory: 64 << 20, pause: std::time::Duration::ZERO, ..Options::default() },
    };
    let _in = rt.enter();
    Looker { scrub: Scrub::new(parts).unwrap(), ear, hook }
}

fn path(find: &smpfs::scrub::Find) -> String {
    String::from_utf8(find.path.clone().unwrap_or_default()).unwrap()
}

fn finds(report: &Report) -> Vec<(What, String)> {
    report.finds.iter().map(|f| (f.what, path(f))).collect()
}

/// A scrub of the volume by a machine that knows nothing finds orphans at the most.
#[track_caller]
pub fn nothing_is_damaged(world: &World) {
    let rt = runtime();
    let l = looker(world, &rt, Arc::new(Known::in_memory()));
    rt.block_on(l.scrub.check()).unwrap();
    let finds = l.scrub.report().finds;
    let bad: Vec<_> = finds.iter().filter(|f| f.what != What::Orphan).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn a_sound_volume_is_read_whole_and_nothing_is_found() {
    for mode in [Mode::Standard, Mode::ZeroKnowledge] {
        let scene = Scene::new(mode);
        let mount = scene.world.fresh();
        mount.mkdir("d");
        mount.mkdir("d/e");
        mount.put("d/e/large", &data(1, 3 * SEG as usize + 17));
        mount.put("empty", b"");
        mount.put("small", &data(2, 5000));
        let sparse = mount.create("sparse");
        mount.write(sparse, 20 * SEG, b"behind holes").unwrap();
        mount.close(sparse).unwrap();
        mount.drain();
        let before = scene.all();
        let report = scene.report();
        assert!(report.complete && report.steady && report.is_clean(), "{report:?}");
        let c = report.counts;
        assert_eq!((c.dirs, c.files, c.objects, c.young), (3, 4, before.len() as u64, 0), "{c:?}");
        assert_eq!(c.bytes, 3 * SEG + 17 + 5000 + 12, "holes have no bytes");
        assert!(scene.all() == before, "looking changes nothing");
    }
}

/// Offsets in every part of an object of `len` bytes whose manifest begins at `manifest`.
fn parts(len: usize, manifest: usize) -> Vec<(&'static str, usize)> {
    let segment = 16 * (16_384 + 16);
    vec![
        ("magic", 3),
        ("file id of the header", 40),
        ("reserved bytes of the header", 100),
        ("first chunk", 128 + 5),
        ("a later chunk", 128 + 3 * 16_400 + 7),
        ("foot", 128 + segment + 1),
        ("leaf", 128 + segment + 16 + 40),
        ("manifest", manifest + 60),
        ("trailer magic", len - 512),
        ("body root", len - 512 + 130),
        ("signature", len - 1),
    ]
}

#[test]
fn a_flipped_bit_in_every_part_is_found_with_and_without_keys() {
    let scene = Scene::new(Mode::ZeroKnowledge);
    let mount = scene.world.fresh();
    mount.put("other", &data(2, 5000));
    let key = scene.file(&mount, "victim", &data(1, 2 * SEG as usize + 40_000));
    let good = scene.get(&key);
    let manifest = u64::from_be_bytes(good[good.len() - 440..good.len() - 432].try_into().unwrap()) as usize;
    for (part, at) in parts(good.len(), manifest) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        scene.put(&key, &bad);
        let looker = scene.looker();
        scene.rt.block_on(looker.scrub.check()).unwrap();
        let report = looker.scrub.report();
        assert_eq!(finds(&report), [(What::Corrupt, "/victim".to_owned())], "{part}: {report:?}");
        assert_eq!(report.counts.files, 2, "{part}: the other file was verified as well");
        assert!(!looker.ear.inner.corrupt.lock().is_empty(), "{part}: quarantine and audit log hear of it");
        let public = public(&scene);
        assert_eq!(public.finds.len(), 1, "{part}: {public:?}");
        assert_eq!(public.finds[0].key, key);
    }
    scene.put(&key, &good);
    assert!(scene.report().is_clean());
    let public = public(&scene);
    assert!(public.is_clean(), "{public:?}");
}

pub fn public(scene: &Scene) -> Report {
    let parts = PublicParts {
        store: scene.world.bucket.clone(),
        params: scene.world.params,
        owner: VerifyingKey::from_bytes(&scene.world.keys.owner().public()).unwrap(),
        jobs: 4,
    };
    scene.rt.block_on(check_public(&parts, |_| {})).unwrap()
}

#[test]
fn all_chunks_that_fail_are_counted() {
    let scene = Scene::new(Mode::ZeroKnowledge);
    let mount = scene.world.fresh();
    let key = scene.file(&mount, "f", &data(1, 2 * SEG as usize));
    let mut bad = scene.get(&key);
    for chunk in [0, 3, 15] {
        bad[128 + chunk * 16_400 + 9] ^= 1;
    }
    scene.put(&key, &bad);
    let report = scene.report();
    assert_eq!(finds(&report), [(What::Corrupt, "/f".to_owned())]);
    assert!(
        report.finds[0].detail.contains("3 of 32 chunks do not verify") && report.finds[0].detail.contains("0, 3, 15"),
        "{report:?}"
    );
}

#[test]
fn objects_cut_extended_swapped_deleted_put_back_and_foreign() {
    for mode in [Mode::Standard, Mode::ZeroKnowledge] {
        let scene = Scene::new(mode);
        let mount = scene.world.fresh();
        let key = scene.file(&mount, "a", &data(1, 9000));
        let other = scene.file(&mount, "b", &data(2, 9000));
        let old = scene.get(&key);
        mount.put("a", &data(3, 9000));
        mount.drain();
        let clean = scene.all();
        let (new, b) = (clean[&key].clone(), clean[&other].clone());
        let cases: [(&str, Option<Vec<u8>>, What); 6] = [
            ("cut", Some(new[..new.len() - 100].to_vec()), What::Corrupt),
            ("extended", Some([&new[..], b"more"].concat()), What::Corrupt),
            ("another file", Some(b.clone()), What::Corrupt),
            ("noise", Some(data(9, 3000)), What::Corrupt),
            ("put back", Some(old.clone()), What::RolledBack),
            ("deleted", None, What::Missing),
        ];
        for (what, bytes, expect) in cases {
            match &bytes {
                Some(bytes) => scene.put(&key, bytes),
                None => scene.delete(&key),
            }
            let looker = scene.looker();
            scene.rt.block_on(looker.scrub.check()).unwrap();
            assert_eq!(finds(&looker.scrub.report()), [(expect, "/a".to_owned())], "{what}");
            assert_eq!(looker.ear.inner.corrupt.lock().len(), 1, "{what}");
            scene.put(&key, &new);
        }
        // Objects beside the volume's: not ours, and a copy of one of ours.
        scene.put("holiday.jpg", b"not ours");
        scene.put(".smpfs/d/00112233445566778899aabbccddeeff", b"not ours either");
        scene.put(".smpfs/o/aa/bb", &new);
        scene.days(8);
        let looker = scene.looker();
        scene.rt.block_on(looker.scrub.check()).unwrap();
        let report = looker.scrub.report();
        let of = |what| report.finds.iter().filter(|f| f.what == what).map(|f| f.key.as_str()).collect::<Vec<_>>();
        assert_eq!(of(What::Foreign), [".smpfs/d/00112233445566778899aabbccddeeff", "holiday.jpg"], "{report:?}");
        assert_eq!(of(What::Orphan), [".smpfs/o/aa/bb"]);
        assert_eq!(looker.ear.foreign.lock().len(), 2);
    }
}

#[test]
fn damaged_indexes_are_found_and_then_nothing_is_deleted() {
    let scene = Scene::new(Mode::ZeroKnowledge);
    let mount = scene.world.fresh();
    let head = scene.head_of(&mount, "d");
    let key = scene.file(&mount, "d/f", &data(1, 9000));
    let good = scene.get(&head);
    scene.days(30);
    for what in ["flipped", "deleted", "put back"] {
        match what {
            "flipped" => scene.put(&head, &{
                let mut bad = good.clone();
                bad[500] ^= 1;
                bad
            }),
            "deleted" => scene.delete(&head),
            _ => {
                scene.put(&head, &good);
                mount.put("d/g", b"x");
                mount.drain();
                scene.put(&head, &good);
            }
        }
        let looker = scene.looker_with(mount.known.clone());
        let mut seen = scene.rt.block_on(looker.scrub.check()).unwrap();
        let report = looker.scrub.report();
        assert!(finds(&report).contains(&(What::Index, "/d/".to_owned())), "{what}: {report:?}");
        let e = scene.rt.block_on(looker.scrub.gc(&mut seen, false)).unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt, "{what}: {e}");
        assert!(scene.world.keys_in_bucket().contains(&key), "{what}");
    }
}

/// Takes the name of a file away and leaves its object, as a machine that stops between the two does.
fn orphan(scene: &Scene, mount: &Mount, path: &str, bytes: &[u8]) -> String {
    let key = scene.file(mount, path, bytes);
    let object = scene.get(&key);
    mount.unlink(path).unwrap();
    mount.drain();
    crate::directed::until("the object goes", || !scene.world.keys_in_bucket().contains(&key));
    scene.put(&key, &object);
    key
}

fn begin_upload(scene: &Scene, key: &str) {
    scene.rt.block_on(scene.world.bucket.upload_start(key)).unwrap();
}

#[test]
fn what_is_left_over_is_deleted_when_it_is_old() {
    let scene = Scene::new(Mode::ZeroKnowledge);
    let mount = scene.world.fresh();
    mount.put("keep", &data(4, 100));
    mount.drain();
    let old = orphan(&scene, &mount, "old", &data(1, 9000));
    begin_upload(&scene, ".smpfs/o/11/old");
    begin_upload(&scene, "not/of/this/mode");
    scene.put("holiday.jpg", b"not ours");
    scene.days(4);
    let young = orphan(&scene, &mount, "young", &data(2, 9000));
    begin_upload(&scene, ".smpfs/o/22/young");
    scene.days(4);
    let before = scene.world.keys_in_bucket();
    for dry in [true, false] {
        let looker = scene.looker();
        let mut seen = scene.rt.block_on(looker.scrub.check()).unwrap();
        let report = looker.scrub.report();
        assert_eq!((report.count(What::Orphan), report.count(What::Upload), report.counts.young), (1, 1, 1), "{report:?}");
        let gone = scene.rt.block_on(looker.scrub.gc(&mut seen, dry)).unwrap();
        assert_eq!((gone.objects, gone.uploads), (vec![old.clone()], vec![".smpfs/o/11/old".to_owned()]));
        assert_eq!(scene.world.keys_in_bucket() == before, dry);
    }
    let mut expect = before;
    expect.remove(&old);
    assert!(expect.contains(&young) && expect.contains("holiday.jpg"));
    assert_eq!(scene.world.keys_in_bucket(), expect);
    let left = scene.rt.block_on(scene.world.bucket.uploads("")).unwrap();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(scene.world.fresh().names(""), mount.names(""));
}

#[test]
fn a_grace_that_is_too_short_is_refused() {
    let scene = Scene::new(Mode::ZeroKnowledge);
    let mut looker = scene.looker();
    let parts = Parts {
        store: scene.world.bucket.clone(),
        keys: scene.world.keys.clone(),
        params: scene.world.params,
        mode: scene.world.mode,
        roots: Root::all(scene.world.root.clone(), &scene.world.keys),
        memory: Arc::new(KnownMemory(Arc::new(Known::in_memory()))),
        listener: looker.ear.clone(),
        env: Env::real(),
        options: Options { grace: std::time::Duration::from_secs(60), ..Options::default() },
    };
    let _in = scene.rt.enter();
    looker.scrub = Scrub::new(parts).unwrap();
    let mut seen = scene.rt.block_on(looker.scrub.check()).unwrap();
    assert_eq!(scene.rt.block_on(looker.scrub.gc(&mut seen, true)).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn what_moves_from_an_unread_directory_to_a_read_one_survives() {
    let scene = Scene::new(Mode::ZeroKnowledge);
    let mount = Arc::new(scene.world.fresh());
    let d = scene.head_of(&mount, "d");
    let key = scene.file(&mount, "d/f", &data(1, 9000));
    let sub = scene.head_of(&mount, "d/sub");
    mount.put("d/sub/g", &data(2, 100));
    mount.drain();
    scene.days(30);
    let looker = scene.looker();
    let mover = mount.clone();
    // The root was read, `d` was not.
    looker.hook.on(Verb::Get, &d, 0, move || {
        mover.rename("d/f", "f").unwrap();
        mover.rename("d/sub", "sub").unwrap();
        mover.drain();
    });
    let mut seen = scene.rt.block_on(looker.scrub.check()).unwrap();
    assert!(looker.hook.done());
    let report = looker.scrub.report();
    assert!(report.is_clean() && report.counts.files == 2, "{report:?}");
    let gone = scene.rt.block_on(looker.scrub.gc(&mut seen, false)).unwrap();
    assert_eq!(gone, Default::default());
    assert!(scene.world.keys_in_bucket().is_superset(&[key, sub].into()));
    let other = scene.world.fresh();
    assert!(other.get("f").unwrap() == data(1, 9000) && other.get("sub/g").unwrap() == data(2, 100));
}

#[test]
fn what_is_on_its_way_survives() {
    let scene = Scene::new(Mode::Standard);
    let mount = scene.world.fresh();
    mount.put("before", &data(1, 100));
    mount.drain();
    scene.days(30);
    // Objects arrive, and their names cannot yet.
    mount.faulty.script_on(
        Some(Verb::Put),
        &scene.world.keys.index_key(&scene.world.root.dir_id, PLACE),
        0,
        u32::MAX,
        Fault::Before(Kind::Unavailable),
    );
    mount.put("new", &data(2, 9000));
    mount.mkdir("dir");
    mount.put("dir/x", &data(3, 9000));
    let all = || scene.world.keys_in_bucket().len();
    crate::directed::until("objects without names", || all() == 5);
    let looker = scene.looker();
    let mut seen = scene.rt.block_on(looker.scrub.check()).unwrap();
    let report = looker.scrub.report();
    assert!(report.is_clean() && report.counts.young == 3, "{report:?}");
    assert_eq!(scene.rt.block_on(looker.scrub.gc(&mut seen, false)).unwrap(), Default::default());
    assert_eq!(scene.rt.block_on(looker.scrub.repair(&mut seen)).unwrap(), Default::default());
    mount.faulty.clear();
    mount.drain();
    let other = scene.world.fresh();
    assert!(other.get("new").unwrap() == data(2, 9000) && other.get("dir/x").unwrap() == data(3, 9000));
    assert!(scene.report().is_clean());
}

const PLACE: smpfs::format::names::Place = smpfs::format::names::Place::HEAD;

#[test]
fn what_is_named_or_written_before_its_deletion_survives() {
    let scene = Scene::new(Mode::ZeroKnowledge);
    let mount = scene.world.fresh();
    let keys: Vec<String> = ["a", "b", "c"].iter().map(|n| orphan(&scene, &mount, n, &data(1, 500))).collect();
    let gone = orphan(&scene, &mount, "gone", &data(2, 500));
    scene.days(8);
    let looker = scene.looker();
    let mut seen = scene.rt.block_on(looker.scrub.check()).unwrap();
    assert_eq!(looker.scrub.report().count(What::Orphan), 4);
    // Linked back by another machine, written again before the last look, written again between the look and the deletion.
    let index = scene.world.keys.index_key(&scene.world.root.dir_id, PLACE);
    let (world, rt) = (&scene.world, runtime());
    let other = looker_on(world, &rt);
    let (b, c) = (keys[1].clone(), keys[2].clone());
    let (bucket, bytes_b, bytes_c) = (world.bucket.clone(), scene.get(&b), scene.get(&c));
    let write = move |bucket: Arc<dyn Store>, key: String, bytes: Vec<u8>| {
        runtime().block_on(bucket.put(&key, vec![bytes.into()], Cond::Any)).unwrap();
    };
    let (bb, bk) = (bucket.clone(), b.clone());
    let a = keys[0].clone();
    looker.hook.on(Verb::List, ".smpfs/d/", 0, move || link_only(&rt, &other, &a));
    looker.hook.on(Verb::List, &b, 0, move || write(bb, bk, bytes_b));
    let (cb, ck) = (bucket, c.clone());
    looker.hook.on(Verb::Delete, &c, 0, move || write(cb, ck, bytes_c));
    let done = scene.rt.block_on(looker.scrub.gc(&mut seen, false)).unwrap();
    assert!(looker.hook.done());
    assert_eq!(done.objects.as_slice(), std::slice::from_ref(&gone), "{done:?}");
    assert_eq!(done.spared.len(), 3);
    let left = scene.world.keys_in_bucket();
    assert!(keys.iter().all(|k| left.contains(k)) && !left.contains(&gone) && left.contains(&index));
    assert!(scene.world.fresh().get("a").unwrap() == data(1, 500));
}

fn looker_on(world: &World, rt: &Runtime) -> Looker {
    looker(world, rt, Arc::new(Known::in_memory()))
}

/// Another machine repairs, and only one of the orphans is there for it.
fn link_only(rt: &Runtime, other: &Looker, key: &str) {
    let mut seen = rt.block_on(other.scrub.check()).unwrap();
    seen.only(key);
    let done = rt.block_on(other.scrub.repair(&mut seen)).unwrap();
    assert_eq!(done.linked.len(), 1, "{done:?}");
}
