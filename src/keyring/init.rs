//! Making a volume: keys, a root directory, and last the config, so that a volume is there only when it is whole.
//!
//! ```text
//!  config there? ──yes──> Exists
//!       │ no
//!  objects there? ──yes──> a warning
//!       │
//!  put the root's head (its key is random: nobody else's)
//!       │
//!  put the config if there is none ──> made
//!       │ somebody was faster
//!  delete our head ──> Exists
//! ```
//!
//! Of several at once one wins, because the config is created conditionally and names its own root. A store that cannot do that
//! is asked before and after; [`Made::warnings`] then says that this is no guarantee.

use super::unlock::check_passphrase;
use super::{ConfigPins, RecoveryCode, VolumeInfo, blocking};
use crate::crypto::kdf::Argon2Cost;
use crate::crypto::secmem::SecretKey;
use crate::env::Env;
use crate::error::{Error, Kind, Result, fail};
use crate::format::config::{self, Config, MAX_LEN, Settings};
use crate::format::index::{DirRef, IndexNode, Role};
use crate::format::names::{CONFIG, PROBE_PREFIX, Place};
use crate::format::slot::{Credential, Slot};
use crate::format::{Geometry, Params, VolumeKeys};
use crate::store::{Cond, Span, Store, temporary};
use crate::types::{DirId, Hash, Mode, NAME_MAX, Suite, VolumeId};
use bytes::Bytes;
use zeroize::Zeroizing;

/// What a new volume is to be.
#[derive(Clone, Debug)]
pub struct InitParams {
    /// How object names are chosen.
    pub mode: Mode,
    /// Cipher of the contents.
    pub suite: Suite,
    /// What people call it: up to 255 bytes, readable in the bucket.
    pub name: String,
    /// What one guess of the passphrase costs.
    pub kdf: Argon2Cost,
    /// Chunk and segment sizes.
    pub geometry: Geometry,
}

impl Default for InitParams {
    fn default() -> Self {
        InitParams {
            mode: Mode::ZeroKnowledge,
            suite: Suite::Aes256Gcm,
            name: String::new(),
            kdf: Argon2Cost::DEFAULT,
            geometry: Geometry::DEFAULT,
        }
    }
}

/// A volume that was made.
#[derive(Debug)]
pub struct Made {
    /// Its public side.
    pub info: VolumeInfo,
    /// Opens it when the passphrase is lost. To be shown once, and kept by people.
    pub recovery: RecoveryCode,
    /// Sentences for people about what was met on the way.
    pub warnings: Vec<String>,
}

/// The bytes of a new volume.
struct Drawn {
    root_key: String,
    root: Vec<u8>,
    config: Vec<u8>,
    recovery: RecoveryCode,
}

/// Makes a volume in a store that holds none, and remembers it in `pins`.
///
/// `Exists` when there is one, also when somebody else made one at the same moment; `Invalid` for a passphrase that is empty or
/// not UTF-8, a name that is too long, or a cost out of bounds; else as the store fails. After an error nothing that could be
/// taken for a volume is left.
pub async fn init(
    store: &dyn Store,
    params: InitParams,
    passphrase: Zeroizing<Vec<u8>>,
    pins: Option<&ConfigPins>,
    env: &Env,
) -> Result<Made> {
    check_params(&params)?;
    check_passphrase(&passphrase)?;
    if read_config(store).await?.is_some() {
        return Err(taken(store));
    }
    let mut warnings = look_around(store, pins).await?;
    let drawn = {
        let env = env.clone();
        blocking(move || draw(&params, &passphrase, &env)).await?
    };
    let body = vec![Bytes::from(drawn.root)];
    store.put(&drawn.root_key, body, Cond::Any).await.map_err(|e| e.context("writing the root directory"))?;
    match claim(store, &drawn.config).await {
        Claim::Ours => {}
        Claim::Refused(e) => {
            // A head that no config names means nothing; a failure to remove it changes nothing.
            let _ = store.delete(&drawn.root_key).await;
            return Err(e);
        }
        // Our config may be there, or be on its way still: without its root it would be a broken volume, so the root stays.
        Claim::Unknown(e) => return Err(e.context("writing the volume config; look again before you use this volume")),
    }
    if !store.caps().put_if_absent {
        warnings.push(
            "this store has no conditional creation: if somebody made a volume here at the same moment, one of the two is lost"
                .to_owned(),
        );
    }
    let info = VolumeInfo::of(&Config::parse(&drawn.config)?);
    if let Some(pins) = pins.cloned() {
        let pin = info.pin(&store.identity());
        blocking(move || pins.replace(&pin)).await?;
    }
    Ok(Made { info, recovery: drawn.recovery, warnings })
}

fn check_params(params: &InitParams) -> Result<()> {
    if params.name.len() > NAME_MAX {
        return fail(Kind::Invalid, "the volume's name is longer than 255 bytes");
    }
    if !params.kdf.allowed() {
        return fail(
            Kind::Invalid,
            "the cost of the passphrase is out of bounds: 64 MiB to 4 GiB, 1 to 64 passes, 1 to 16 lanes",
        );
    }
    Ok(())
}

async fn read_config(store: &dyn Store) -> Result<Option<Bytes>> {
    match store.get(CONFIG, Span::Whole { max: MAX_LEN as u64 }, None).await {
        Ok(got) => Ok(Some(got.bytes)),
        Err(e) if e.kind() == Kind::NotFound => Ok(None),
        // Too long for a config, and still in its place: whatever it is, it is not overwritten.
        Err(e) if e.kind() == Kind::TooLarge => Ok(Some(Bytes::new())),
        Err(e) => Err(e.context("looking for a volume")),
    }
}

fn taken(store: &dyn Store) -> Error {
    Error::new(Kind::Exists, format!("{} holds a volume already; nothing was changed", store.url()))
}

/// What a person should know before a volume is made here.
async fn look_around(store: &dyn Store, pins: Option<&ConfigPins>) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let page = store.list("", None, 32).await.map_err(|e| e.context("looking into the bucket"))?;
    if page.items.iter().any(|item| !item.key.starts_with(PROBE_PREFIX)) {
        warnings.push(format!("{} is not empty: what is there stays there, and is not shown in the volume", store.url()));
    }
    let Some(pins) = pins.cloned() else { return Ok(warnings) };
    let url = store.identity();
    // A damaged pin is no reason to refuse: the new volume replaces it.
    if let Ok(Some(pin)) = blocking(move || pins.at(&url)).await {
        warnings.push(format!("{} held volume {} when it was last mounted from here", store.url(), pin.volume.hex()));
    }
    Ok(warnings)
}

/// Makes keys, slots, config and the root's empty index.
fn draw(params: &InitParams, passphrase: &[u8], env: &Env) -> Result<Drawn> {
    let secret = || SecretKey::from_fn(|key| env.rng.fill(key));
    let volume = VolumeId(env.random());
    let vrk = secret();
    let recovery = RecoveryCode::new(&Zeroizing::new(env.random()));
    let slot = |credential: Credential<'_>| Slot::seal(&credential, params.kdf, &volume, &vrk, env.random(), &env.random());
    let slots = [slot(Credential::Passphrase(passphrase))?, slot(Credential::Recovery(&recovery))?];
    let keys = VolumeKeys::derive(&vrk, volume, vec![secret()]);
    let settings = Settings {
        mode: params.mode,
        params: Params { volume_id: volume, suite: params.suite, geometry: params.geometry },
        generation: 1,
        root_dir: DirId(env.random()),
        created: env.clock.now().sec,
        name: params.name.clone(),
    };
    let config = config::seal(&settings, &slots, &keys, &env.random())?;
    let root = DirRef { dir_id: settings.root_dir, dir_key: keys.root_dir().clone() };
    let head = IndexNode {
        role: Role::Head { shard_bits: 0, epoch: 0 },
        frozen: false,
        generation: 1,
        previous: Hash::ZERO,
        entries: Vec::new(),
    };
    let (root_bytes, _) = head.seal(&keys, &root, &env.random())?;
    Ok(Drawn { root_key: keys.index_key(&root.dir_id, Place::HEAD), root: root_bytes, config, recovery })
}

/// How the attempt to create the config ended.
enum Claim {
    /// Our config is there.
    Ours,
    /// It is not, and will not be.
    Refused(Error),
    /// Nobody can tell.
    Unknown(Error),
}

/// Creates the config, or finds that somebody else has one there.
async fn claim(store: &dyn Store, config: &[u8]) -> Claim {
    let conditional = store.caps().put_if_absent;
    let free = conditional || matches!(read_config(store).await, Ok(None));
    if !free {
        return Claim::Refused(taken(store));
    }
    let cond = if conditional { Cond::Absent } else { Cond::Any };
    let put = store.put(CONFIG, vec![Bytes::copy_from_slice(config)], cond).await;
    // An answer can be lost on its way while the write is done, and a retry then finds our own config in the way. So what the
    // store holds now decides.
    match (read_config(store).await, put) {
        (Ok(Some(there)), _) if there == config => Claim::Ours,
        (Ok(Some(_)), _) => Claim::Refused(taken(store)),
        // Acknowledged and conditional: it is ours, read back or not.
        (Err(_), Ok(_)) if conditional => Claim::Ours,
        (_, Err(e)) if !temporary(e.kind()) && e.kind() != Kind::Stale => Claim::Refused(e.context("writing the volume config")),
        (_, Err(e)) | (Err(e), Ok(_)) => Claim::Unknown(e),
        (Ok(None), Ok(_)) => Claim::Unknown(Error::new(Kind::Unavailable, "the store lost the config that it acknowledged")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::worlds::*;
    use super::super::{Secret, unlock};
    use super::*;
    use crate::format::Failure;
    use crate::store::layers::{Fault, Faulty, Verb, Wrap};
    use crate::store::memory::MemoryStore;
    use std::sync::Arc;

    fn words() -> Zeroizing<Vec<u8>> {
        PASSPHRASE.as_bytes().to_vec().into()
    }

    async fn keys_in(store: &dyn Store) -> Vec<String> {
        store.list("", None, 100).await.unwrap().items.into_iter().map(|item| item.key).collect()
    }

    #[tokio::test]
    async fn both_modes_and_suites_unlock_as_they_were_made() {
        for mode in [Mode::Standard, Mode::ZeroKnowledge] {
            for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
                let store = MemoryStore::new();
                let asked = InitParams { mode, suite, geometry: Geometry::new(14, 4).unwrap(), ..params() };
                let made = init(&store, asked, words(), None, &Env::real()).await.unwrap();
                assert!(made.warnings.is_empty());
                let info = unlock(&store, pass(PASSPHRASE), None).await.unwrap().info;
                assert_eq!((info.mode, info.params.suite, info.name.as_str()), (mode, suite, "scans"));
                assert_eq!((info.generation, info.params.geometry.chunk_log2()), (1, 14));
                assert_eq!(keys_in(&store).await.len(), 2, "the config and the root");
            }
        }
    }

    #[tokio::test]
    async fn a_volume_is_never_overwritten() {
        let (store, _) = volume().await;
        let before = config_of(&store).await;
        let e = init(&store, params(), words(), None, &Env::real()).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Exists, "{e}");
        assert_eq!(config_of(&store).await, before);
        for occupied in [vec![], b"something else".to_vec(), vec![7; 1 << 20]] {
            put_config(&store, occupied).await;
            assert_eq!(init(&store, params(), words(), None, &Env::real()).await.unwrap_err().kind(), Kind::Exists);
        }
    }

    #[tokio::test]
    async fn of_many_at_once_one_wins_and_nothing_is_left_of_the_others() {
        let store = Arc::new(MemoryStore::new());
        let tasks: Vec<_> = (0..6)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { init(&*store, params(), words(), None, &Env::real()).await })
            })
            .collect();
        let mut won = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                Ok(made) => won.push(made),
                Err(e) => assert_eq!(e.kind(), Kind::Exists, "{e}"),
            }
        }
        assert_eq!(won.len(), 1);
        let volume = unlock(&*store, Secret::Recovery(won.remove(0).recovery), None).await.unwrap();
        let head = volume.keys.index_key(&volume.info.root_dir, Place::HEAD);
        assert_eq!(keys_in(&*store).await, [head, CONFIG.to_owned()]);
    }

    #[tokio::test]
    async fn a_store_without_conditional_creation_is_asked_and_people_are_told() {
        let caps = MemoryStore::new().caps();
        let store = MemoryStore::with_caps(crate::store::Capability { put_if_absent: false, ..caps });
        let made = init(&store, params(), words(), None, &Env::real()).await.unwrap();
        assert!(made.warnings[0].contains("no conditional creation"), "{:?}", made.warnings);
        assert_eq!(init(&store, params(), words(), None, &Env::real()).await.unwrap_err().kind(), Kind::Exists);
    }

    /// `init` on an empty bucket whose next put of a key with `part` suffers `fault`; the outcome and what is in the bucket.
    async fn under(part: &str, fault: Fault) -> (Result<Made>, Vec<String>) {
        let bucket = Arc::new(MemoryStore::new());
        let store = Wrap::new(bucket.clone(), Faulty::new(1));
        store.layer().script_on(Some(Verb::Put), part, 0, 1, fault);
        let made = init(&store, params(), words(), None, &Env::real()).await;
        (made, keys_in(&*bucket).await)
    }

    #[tokio::test]
    async fn a_lost_answer_is_no_lost_volume() {
        // As a retry reports it: the first try created the config, the second one found it in the way.
        for kind in [Kind::Unavailable, Kind::Stale] {
            let (made, keys) = under(CONFIG, Fault::After(kind)).await;
            assert!(made.is_ok(), "{made:?}");
            assert_eq!(keys.len(), 2);
        }
    }

    #[tokio::test]
    async fn a_failure_leaves_nothing_behind() {
        for part in [".smpfs/d/", CONFIG] {
            let (made, keys) = under(part, Fault::Before(Kind::Denied)).await;
            assert_eq!(made.unwrap_err().kind(), Kind::Denied);
            assert_eq!(keys, [""; 0], "{part}");
        }
    }

    #[tokio::test]
    async fn a_write_that_may_come_late_keeps_its_root() {
        let (made, keys) = under(CONFIG, Fault::Before(Kind::Unavailable)).await;
        let e = made.unwrap_err();
        assert!(e.kind() == Kind::Unavailable && e.to_string().contains("look again"), "{e}");
        assert!(keys.len() == 1 && keys[0].starts_with(".smpfs/d/"), "{keys:?}");
    }

    #[tokio::test]
    async fn a_bucket_with_other_things_in_it_is_used_with_a_warning() {
        let store = MemoryStore::new();
        store.put("holiday.jpg", vec![Bytes::from_static(b"x")], Cond::Any).await.unwrap();
        let made = init(&store, params(), words(), None, &Env::real()).await.unwrap();
        assert!(made.warnings[0].contains("not empty"), "{:?}", made.warnings);
        assert!(keys_in(&store).await.contains(&"holiday.jpg".to_owned()));
        let probed = MemoryStore::new();
        probed.put(".smpfs/probe/1", vec![], Cond::Any).await.unwrap();
        assert!(init(&probed, params(), words(), None, &Env::real()).await.unwrap().warnings.is_empty());
    }

    #[tokio::test]
    async fn whoever_makes_a_volume_is_not_told_that_it_was_replaced() {
        let (_, pins) = pins();
        let store = MemoryStore::new();
        let first = init(&store, params(), words(), Some(&pins), &Env::real()).await.unwrap();
        assert!(unlock(&store, pass(PASSPHRASE), Some(&pins)).await.unwrap().known_before);
        store.delete(CONFIG).await.unwrap();
        let e = unlock(&store, pass(PASSPHRASE), Some(&pins)).await.unwrap_err();
        assert_eq!(Failure::of(&e), Some(Failure::Omission));
        let second = init(&store, params(), words(), Some(&pins), &Env::real()).await.unwrap();
        assert!(second.warnings.iter().any(|w| w.contains(&first.info.params.volume_id.hex())), "{:?}", second.warnings);
        assert!(unlock(&store, pass(PASSPHRASE), Some(&pins)).await.is_ok());
    }

    #[tokio::test]
    async fn impossible_wishes_are_refused_before_anything_is_written() {
        let store = MemoryStore::new();
        let bad = [
            InitParams { name: "x".repeat(256), ..params() },
            InitParams { kdf: Argon2Cost { m_kib: 8, t: 1, p: 1 }, ..params() },
        ];
        for params in bad {
            assert_eq!(init(&store, params, words(), None, &Env::real()).await.unwrap_err().kind(), Kind::Invalid);
        }
        for passphrase in [vec![], b"\n".to_vec(), vec![0xff]] {
            assert_eq!(init(&store, params(), passphrase.into(), None, &Env::real()).await.unwrap_err().kind(), Kind::Invalid);
        }
        assert!(keys_in(&store).await.is_empty());
    }
}
