//! The keys of a volume, all derived from its root key (FORMAT.md, section 5), and the wrapping of 32-byte keys.

use super::failure::Failure;
use super::index::DirRef;
use super::names::{self, Place};
use super::trailer::OWNER;
use super::wire::{Reader, Writer};
use super::{Salt, WRAPPED_LEN, Wrapped};
use crate::crypto::kdf::hkdf_sha512;
use crate::crypto::sealed_blob;
use crate::crypto::secmem::SecretKey;
use crate::crypto::sign::{SigningKey, VerifyingKey};
use crate::error::{Kind, Result, fail};
use crate::types::{DirId, FileId, VolumeId};

/// Key-encryption keys of a volume at most.
pub const MAX_EPOCHS: u32 = 1024;

/// Everything that follows from a volume's root key.
pub struct VolumeKeys {
    volume_id: VolumeId,
    config_mac: SecretKey,
    epochs: SecretKey,
    owner: SigningKey,
    owner_public: VerifyingKey,
    dir_name: SecretKey,
    root_dir: SecretKey,
    bind: SecretKey,
    links: DirRef,
    local_log: SecretKey,
    lease: SecretKey,
    /// Key-encryption keys; epoch `e` is at `e - 1`.
    keks: Vec<SecretKey>,
}

/// K(label): HKDF-SHA-512 of the volume root key. The labels are those of FORMAT.md, section 5, and no others.
fn derive(vrk: &SecretKey, volume_id: &VolumeId, label: &str) -> SecretKey {
    SecretKey::from_fn(|out| {
        out.copy_from_slice(&*hkdf_sha512::<32>(&volume_id.0, vrk.expose(), &[b"smpfs/v1/key\0", label.as_bytes()]));
    })
}

impl VolumeKeys {
    /// Derives all keys but the table of key-encryption keys, which comes from the config or, in a new volume, from `keks`.
    pub fn derive(vrk: &SecretKey, volume_id: VolumeId, keks: Vec<SecretKey>) -> VolumeKeys {
        let key = |label| derive(vrk, &volume_id, label);
        let owner = SigningKey::from_seed(key("owner-sign").expose());
        let mut links_id = [0; 16];
        links_id.copy_from_slice(&key("links-id").expose()[..16]);
        VolumeKeys {
            volume_id,
            config_mac: key("config-mac"),
            epochs: key("epochs"),
            owner_public: owner.verifying_key(),
            owner,
            dir_name: key("dir-name"),
            root_dir: key("root-dir"),
            bind: key("bind"),
            links: DirRef { dir_id: DirId(links_id), dir_key: key("links-dir") },
            local_log: key("local-log"),
            lease: key("lease"),
            keks,
        }
    }

    /// The volume.
    pub fn volume_id(&self) -> VolumeId {
        self.volume_id
    }

    /// The owner's signing key.
    pub fn owner(&self) -> &SigningKey {
        &self.owner
    }

    /// The public key of a writer; `None` when there is no such writer.
    pub fn writer(&self, id: u32) -> Option<&VerifyingKey> {
        (id == OWNER).then_some(&self.owner_public)
    }

    /// Key of the root directory.
    pub fn root_dir(&self) -> &SecretKey {
        &self.root_dir
    }

    /// The links directory: what has several names has its entry there.
    pub fn links_dir(&self) -> &DirRef {
        &self.links
    }

    /// Key that wraps the keys of local sealed logs.
    pub fn local_log(&self) -> &SecretKey {
        &self.local_log
    }

    pub(super) fn lease(&self) -> &SecretKey {
        &self.lease
    }

    pub(super) fn config_mac(&self) -> &SecretKey {
        &self.config_mac
    }

    /// The epoch whose key wraps the keys of new files; 0 only before the table is known.
    pub fn latest_epoch(&self) -> u32 {
        self.keks.len() as u32
    }

    /// The key-encryption key of an epoch.
    pub fn kek(&self, epoch: u32) -> Option<&SecretKey> {
        self.keks.get(usize::try_from(epoch.checked_sub(1)?).ok()?)
    }

    /// Key of an index object in the bucket.
    pub fn index_key(&self, dir: &DirId, place: Place) -> String {
        names::index_key(&self.dir_name, dir, place)
    }

    /// name_bind of a file for a trailer.
    pub fn name_bind(&self, dir: &DirId, name: &[u8], file: &FileId) -> [u8; 32] {
        names::name_bind(&self.bind, dir, name, file)
    }

    /// Wraps a file key under the latest key-encryption key: epoch and blob.
    pub fn wrap_file_key(&self, file: &FileId, file_key: &SecretKey, salt: &Salt) -> Result<(u32, Wrapped)> {
        let epoch = self.latest_epoch();
        let Some(kek) = self.kek(epoch) else {
            return fail(Kind::Bug, "the volume has no key-encryption key");
        };
        Ok((epoch, wrap(kek, &file_key_context(&self.volume_id, file), salt, file_key)))
    }

    /// Unwraps a file key; `key-wrap` when the epoch is unknown or the blob does not open.
    pub fn unwrap_file_key(&self, file: &FileId, epoch: u32, wrapped: &Wrapped) -> Result<SecretKey> {
        let Some(kek) = self.kek(epoch) else {
            return Failure::KeyWrap.fail("the file key is wrapped under an unknown epoch");
        };
        unwrap(kek, &file_key_context(&self.volume_id, file), wrapped)
    }

    /// The table of key-encryption keys, sealed for the config.
    pub fn seal_epochs(&self, salt: &Salt) -> Vec<u8> {
        let mut w = Writer::with_capacity(4 + 36 * self.keks.len());
        w.u32(self.keks.len() as u32);
        for (epoch, kek) in (1..).zip(&self.keks) {
            w.u32(epoch).bytes(kek.expose());
        }
        sealed_blob::seal(self.epochs.expose(), &epochs_context(&self.volume_id), salt, w.as_slice())
    }

    /// Opens the table of key-encryption keys and keeps it.
    pub(super) fn open_epochs(&mut self, sealed: &[u8]) -> Result<()> {
        let Ok(plain) = sealed_blob::open(self.epochs.expose(), &epochs_context(&self.volume_id), sealed) else {
            return Failure::KeyWrap.fail("the table of key-encryption keys does not open");
        };
        let mut r = Reader::new(&plain, Failure::Params);
        let count = r.u32()?;
        Failure::Params.unless((1..=MAX_EPOCHS).contains(&count), "the number of key epochs is out of range")?;
        Failure::Params.unless(r.left() == 36 * count as usize, "the table of key-encryption keys has another length")?;
        let mut keks = Vec::with_capacity(count as usize);
        for epoch in 1..=count {
            Failure::Params.unless(r.u32()? == epoch, "key epochs are not in order")?;
            keks.push(SecretKey::new(r.slice()?));
        }
        r.finish()?;
        self.keks = keks;
        Ok(())
    }
}

impl std::fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeKeys").field("volume_id", &self.volume_id).finish_non_exhaustive()
    }
}

fn file_key_context(volume: &VolumeId, file: &FileId) -> Vec<u8> {
    [b"smpfs/v1/fk\0", &volume.0[..], &file.0].concat()
}

fn epochs_context(volume: &VolumeId) -> Vec<u8> {
    [b"smpfs/v1/epochs\0", &volume.0[..]].concat()
}

/// Wraps `key` under `outer` for the place that `context` names.
pub(super) fn wrap(outer: &SecretKey, context: &[u8], salt: &Salt, key: &SecretKey) -> Wrapped {
    let blob = sealed_blob::seal(outer.expose(), context, salt, key.expose());
    let mut out = [0; WRAPPED_LEN];
    out.copy_from_slice(&blob);
    out
}

/// Unwraps a key; `key-wrap` when the blob does not open.
pub(super) fn unwrap(outer: &SecretKey, context: &[u8], wrapped: &Wrapped) -> Result<SecretKey> {
    match sealed_blob::open(outer.expose(), context, wrapped) {
        Ok(plain) if plain.len() == 32 => Ok(SecretKey::from_fn(|out| out.copy_from_slice(&plain))),
        _ => Failure::KeyWrap.fail("a wrapped key does not open"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_and_file_keys_round_trip() {
        let vrk = SecretKey::new(&[1; 32]);
        let volume = VolumeId([2; 16]);
        let keks = vec![SecretKey::new(&[3; 32]), SecretKey::new(&[4; 32])];
        let keys = VolumeKeys::derive(&vrk, volume, keks);
        let mut again = VolumeKeys::derive(&vrk, volume, Vec::new());
        again.open_epochs(&keys.seal_epochs(&[5; 24])).unwrap();
        assert_eq!(again.latest_epoch(), 2);

        let (file, key) = (FileId([6; 32]), SecretKey::new(&[7; 32]));
        let (epoch, wrapped) = keys.wrap_file_key(&file, &key, &[8; 24]).unwrap();
        assert_eq!(again.unwrap_file_key(&file, epoch, &wrapped).unwrap(), key);
        for (f, e) in [(FileId([9; 32]), 2), (file, 1), (file, 0), (file, 3)] {
            assert_eq!(Failure::of(&again.unwrap_file_key(&f, e, &wrapped).unwrap_err()), Some(Failure::KeyWrap));
        }
    }

    #[test]
    fn every_label_gives_another_key() {
        let vrk = SecretKey::new(&[1; 32]);
        let labels =
            ["config-mac", "epochs", "owner-sign", "dir-name", "root-dir", "bind", "links-id", "links-dir", "local-log", "lease"];
        let keys: Vec<_> = labels.iter().map(|l| derive(&vrk, &VolumeId([2; 16]), l)).collect();
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|b| a != b));
            assert_ne!(a, &derive(&vrk, &VolumeId([3; 16]), labels[i]));
        }
    }
}
