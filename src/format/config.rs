//! The volume config, `.smpfs/volume`: parameters, slots, the table of key-encryption keys (FORMAT.md, section 6).

use super::Salt;
use super::failure::Failure;
use super::keys::VolumeKeys;
use super::object::check_version;
use super::params::{Params, geometry_from, mode_code, mode_from, suite_code, suite_from, version_from};
use super::slot::{Credential, MAX_SLOTS, SLOT_LEN, Slot};
use super::wire::{Reader, Writer};
use crate::crypto::hash::sha256;
use crate::crypto::mac::{equal, hmac_sha256};
use crate::crypto::secmem::SecretKey;
use crate::crypto::sign::VerifyingKey;
use crate::error::{Kind, Result, fail};
use crate::types::{DirId, Hash, Mode, NAME_MAX, VolumeId};

/// What a volume config begins with.
pub const MAGIC: [u8; 8] = *b"SMPVOL\x01\x0a";
/// Longest config.
pub const MAX_LEN: usize = 64 << 10;
const LABEL: &[u8] = b"smpfs/v1/volume\0";

/// The readable part of a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How object names are chosen.
    pub mode: Mode,
    /// Constants of the volume.
    pub params: Params,
    /// Version of the config, from 1.
    pub generation: u64,
    /// The root directory.
    pub root_dir: DirId,
    /// When the volume was made: seconds since 1970.
    pub created: i64,
    /// What people call it: up to 255 bytes.
    pub name: String,
}

/// What a machine remembers of a volume's config, to notice another one put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The owner's public key.
    pub owner: [u8; 32],
    /// Highest generation seen.
    pub generation: u64,
    /// SHA-256 of the config of that generation.
    pub hash: Hash,
}

/// A parsed config whose signature holds. Nothing in it is trusted beyond "somebody with `owner` wrote it" until
/// [`Config::check_pin`] and [`Config::unlock`] succeed.
#[derive(Clone, Debug)]
pub struct Config {
    settings: Settings,
    owner: [u8; 32],
    slots: Vec<Slot>,
    epochs: Vec<u8>,
    mac: [u8; 32],
    /// Everything before the MAC, as read.
    maced: Vec<u8>,
    hash: Hash,
}

/// What a credential opens.
#[derive(Debug)]
pub struct Unlocked {
    /// The volume root key: needed to change slots.
    pub vrk: SecretKey,
    /// Everything else.
    pub keys: VolumeKeys,
}

/// Builds the bytes of a config: the first of a volume, or a changed one (then with a generation one higher).
pub fn seal(settings: &Settings, slots: &[Slot], keys: &VolumeKeys, epochs_salt: &Salt) -> Result<Vec<u8>> {
    if settings.name.len() > NAME_MAX {
        return fail(Kind::NameTooLong, "the volume's name is longer than 255 bytes");
    }
    if !(1..=MAX_SLOTS).contains(&slots.len()) {
        return fail(Kind::TooMany, "a volume has between 1 and 16 ways to unlock it");
    }
    let epochs = keys.seal_epochs(epochs_salt);
    let p = &settings.params;
    let mut w = Writer::with_capacity(300 + settings.name.len() + epochs.len() + SLOT_LEN * slots.len());
    w.bytes(&MAGIC).u16(super::VERSION).u8(mode_code(settings.mode)).u8(0);
    w.u16(suite_code(p.suite)).u8(p.geometry.chunk_log2()).u8(p.geometry.seg_log2()).u32(0).bytes(&p.volume_id.0);
    w.u64(settings.generation).bytes(&keys.owner().public()).bytes(&settings.root_dir.0).i64(settings.created);
    w.u16(settings.name.len() as u16).bytes(settings.name.as_bytes());
    w.u32(epochs.len() as u32).bytes(&epochs).u8(slots.len() as u8);
    for slot in slots {
        slot.write(&mut w);
    }
    let mac = hmac_sha256(keys.config_mac().expose(), &[LABEL, w.as_slice()]);
    w.bytes(&mac);
    let signature = keys.owner().sign(&[LABEL, w.as_slice()]);
    w.bytes(&signature);
    if w.as_slice().len() > MAX_LEN {
        return fail(Kind::TooLarge, "the volume config would be longer than 64 KiB");
    }
    Ok(w.public())
}

impl Config {
    /// Parses a config, checks its bounds and its signature. No key derivation happens here.
    pub fn parse(bytes: &[u8]) -> Result<Config> {
        Failure::Length.unless(bytes.len() <= MAX_LEN, "the volume config is longer than 64 KiB")?;
        let mut r = Reader::new(bytes, Failure::Length);
        Failure::Magic.unless(r.array::<8>()? == MAGIC, "this is not a volume config of smpfs")?;
        version_from(&mut r)?;
        let mode = mode_from(r.u8()?)?;
        Failure::Params.unless(r.u8()? == 0, "a reserved byte is in use")?;
        let suite = suite_from(r.u16()?)?;
        let geometry = geometry_from(r.u8()?, r.u8()?)?;
        Failure::Params.unless(r.u32()? == 0, "a flag is set that this version does not know")?;
        let params = Params { volume_id: VolumeId(r.array()?), suite, geometry };
        let generation = r.u64()?;
        Failure::Params.unless(generation > 0, "a generation of zero")?;
        let owner: [u8; 32] = r.array()?;
        let (root_dir, created) = (DirId(r.array()?), r.i64()?);
        let name_len = usize::from(r.u16()?);
        Failure::Params.unless(name_len <= NAME_MAX, "the volume's name is too long")?;
        let Ok(name) = std::str::from_utf8(r.bytes(name_len)?) else {
            return Failure::Params.fail("the volume's name is not UTF-8");
        };
        let epochs_len = r.u32()? as usize;
        let epochs = r.bytes(epochs_len)?.to_vec();
        let count = usize::from(r.u8()?);
        Failure::Params.unless((1..=MAX_SLOTS).contains(&count), "the number of slots is out of range")?;
        let mut slots = Vec::with_capacity(count);
        for _ in 0..count {
            slots.push(Slot::read(&mut r)?);
        }
        let maced = bytes[..bytes.len() - r.left()].to_vec();
        let mac = r.array()?;
        let signed = &bytes[..bytes.len() - r.left()];
        let signature = r.array()?;
        r.finish()?;
        let good = VerifyingKey::from_bytes(&owner).is_ok_and(|key| key.verify(&[LABEL, signed], &signature).is_ok());
        Failure::Signature.unless(good, "the volume config's signature does not hold")?;
        let settings = Settings { mode, params, generation, root_dir, created, name: name.to_owned() };
        Ok(Config { settings, owner, slots, epochs, mac, maced, hash: Hash(sha256(&[bytes])) })
    }

    /// The readable part.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The ways to unlock the volume.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// What to remember of this config once it has been unlocked.
    pub fn pin(&self) -> Pin {
        Pin { owner: self.owner, generation: self.settings.generation, hash: self.hash }
    }

    /// Compares with what this machine remembers; to be done before a key is derived. `identity`, `rollback` or `fork`.
    pub fn check_pin(&self, pin: &Pin) -> Result<()> {
        Failure::Identity
            .unless(self.owner == pin.owner, "the volume config belongs to another owner than the one known here")?;
        check_version((pin.generation, pin.hash), (self.settings.generation, self.hash))
    }

    /// Tries every slot of the credential's kind. `Locked` when none opens; `mac` or `key-wrap` when one opens but the config
    /// was not made by a holder of the volume's keys. Takes as long as the slots' Argon2id cost says: run it off the reactor.
    pub fn unlock(&self, credential: &Credential<'_>) -> Result<Unlocked> {
        let volume_id = self.settings.params.volume_id;
        let mut opened = None;
        for slot in &self.slots {
            opened = slot.open(credential, &volume_id)?;
            if opened.is_some() {
                break;
            }
        }
        let Some(vrk) = opened else {
            let what = match credential {
                Credential::Passphrase(_) => "the passphrase does not open this volume",
                Credential::Recovery(_) => "the recovery code does not open this volume",
            };
            return fail(Kind::Locked, what);
        };
        let mut keys = VolumeKeys::derive(&vrk, volume_id, Vec::new());
        Failure::Mac.unless(keys.owner().public() == self.owner, "the volume config was signed by somebody without its keys")?;
        let mac = hmac_sha256(keys.config_mac().expose(), &[LABEL, &self.maced]);
        Failure::Mac.unless(equal(&mac, &self.mac), "the volume config was changed by somebody without its keys")?;
        keys.open_epochs(&self.epochs)?;
        Ok(Unlocked { vrk, keys })
    }
}
