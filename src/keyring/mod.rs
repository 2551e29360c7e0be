//! Volume keys: making a volume, unlocking one, and remembering what this machine has seen of it.
//!
//! ```text
//!  init ───> `.smpfs/volume` (conditionally created) and an empty root directory
//!  unlock ─> fetch config ─> form, bounds, signature ─> pins ─> Argon2id or recovery code ─> MAC, key table ─> [`Volume`]
//!            └──────────── refused here without touching the passphrase ─────┘
//!  pins    what each URL and volume held: plain, public values, judged before any key exists
//!  known   generations of index objects: sealed, judged on every read of an index
//! ```
//!
//! What the keys are and how they are derived is the business of [`crate::format`]; this module decides when.

mod init;
pub mod known;
pub mod pins;
mod unlock;
#[cfg(test)]
mod worlds;

pub use crate::format::slot::RecoveryCode;
pub use init::{InitParams, Made, init};
pub use known::{Known, ObjectName, Verdict, object_of_key};
pub use pins::{ConfigPins, Pin};
pub use unlock::{check_config, unlock};

use crate::error::{Error, Kind, Result};
use crate::format::config::Config;
use crate::format::index::DirRef;
use crate::format::{Params, VolumeKeys};
use crate::types::{DirId, Hash, Mode};
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// What a person unlocks a volume with.
pub enum Secret {
    /// A passphrase: UTF-8 bytes; one line end behind it is ignored.
    Passphrase(Zeroizing<Vec<u8>>),
    /// A recovery code.
    Recovery(RecoveryCode),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Secret::Passphrase(_) => "Passphrase(..)",
            Secret::Recovery(_) => "Recovery(..)",
        })
    }
}

/// What anybody who reads the bucket can know of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Volume id, suite and geometry.
    pub params: Params,
    /// How object names are chosen.
    pub mode: Mode,
    /// What people call it. Readable in the bucket.
    pub name: String,
    /// When it was made: seconds since 1970.
    pub created: i64,
    /// The root directory.
    pub root_dir: DirId,
    /// Version of the config.
    pub generation: u64,
    /// The owner's public key.
    pub owner: [u8; 32],
    /// SHA-256 of the config.
    pub config: Hash,
}

impl VolumeInfo {
    fn of(config: &Config) -> VolumeInfo {
        let (settings, pin) = (config.settings(), config.pin());
        VolumeInfo {
            params: settings.params,
            mode: settings.mode,
            name: settings.name.clone(),
            created: settings.created,
            root_dir: settings.root_dir,
            generation: settings.generation,
            owner: pin.owner,
            config: pin.hash,
        }
    }

    /// What to remember of this volume, found at the store with this URL.
    pub fn pin(&self, store: &str) -> Pin {
        Pin {
            volume: self.params.volume_id,
            owner: self.owner,
            generation: self.generation,
            config: self.config,
            store: store.to_owned(),
        }
    }
}

/// An unlocked volume.
#[derive(Debug)]
pub struct Volume {
    /// Its public side.
    pub info: VolumeInfo,
    /// Its keys: names, indexes, file keys, signatures, local logs. Debug shows none of them.
    pub keys: Arc<VolumeKeys>,
    /// Whether this machine had unlocked it before. On the first time nothing vouches for the bucket but the passphrase.
    pub known_before: bool,
}

impl Volume {
    /// The root directory: its id and key.
    pub fn root(&self) -> DirRef {
        DirRef { dir_id: self.info.root_dir, dir_key: self.keys.root_dir().clone() }
    }

    /// Opens what this machine knows of the volume's index objects, in `dir` of the disk for state (see [`Known::open_in`]).
    pub fn known(&self, disk: Arc<dyn crate::disk::Disk>, dir: &str, env: &crate::env::Env) -> Result<Known> {
        Known::open_in(disk, dir, self.info.params.volume_id, self.keys.local_log(), env)
    }
}

/// Runs work that computes or waits for the disk off the asynchronous threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::with_source(Kind::Bug, "work on keys ended before its time", e)),
    }
}
