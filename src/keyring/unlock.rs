//! From the bytes in a bucket and a secret to keys, in the order in which nothing hostile costs more than it must.

use super::{ConfigPins, Secret, Volume, VolumeInfo, blocking};
use crate::crypto::kdf::Argon2Cost;
use crate::error::{Error, Kind, Result, fail};
use crate::format::Failure;
use crate::format::config::{Config, MAX_LEN};
use crate::format::names::CONFIG;
use crate::format::slot::{Credential, SlotKind};
use crate::store::{Span, Store};
use std::sync::Arc;

/// Fetches the volume config and checks all that can be checked without a secret: form, bounds, signature, pins. Says whether
/// this machine knew the volume. A mount does this before it asks for a passphrase.
///
/// `NotFound` when there is no volume; `Corrupt` when the config was changed, set back, or put in the place of another one.
pub async fn check_config(store: &dyn Store, pins: Option<&ConfigPins>) -> Result<(VolumeInfo, bool)> {
    let (config, known) = fetch(store, pins).await?;
    Ok((VolumeInfo::of(&config), known))
}

/// Unlocks the volume in a store and remembers its config.
///
/// As [`check_config`]; then `Locked` when the secret does not open it, `Invalid` for an impossible passphrase, and `Corrupt`
/// when the secret opens a slot of a config that was not made by a holder of the volume's keys.
pub async fn unlock(store: &dyn Store, secret: Secret, pins: Option<&ConfigPins>) -> Result<Volume> {
    if let Secret::Passphrase(bytes) = &secret {
        check_passphrase(bytes)?;
    }
    let (config, known_before) = fetch(store, pins).await?;
    affordable(&config)?;
    let info = VolumeInfo::of(&config);
    // Argon2id takes most of a second and much memory.
    let unlocked = blocking(move || match &secret {
        Secret::Passphrase(bytes) => config.unlock(&Credential::Passphrase(bytes)),
        Secret::Recovery(code) => config.unlock(&Credential::Recovery(code)),
    });
    let keys = Arc::new(unlocked.await?.keys);
    if let Some(pins) = pins.cloned() {
        let pin = info.pin(&store.identity());
        blocking(move || pins.remember(&pin)).await?;
    }
    Ok(Volume { info, keys, known_before })
}

/// Refuses what cannot be a passphrase: nothing at all, or bytes that are not UTF-8.
pub(super) fn check_passphrase(bytes: &[u8]) -> Result<()> {
    match std::str::from_utf8(bytes) {
        Err(_) => fail(Kind::Invalid, "the passphrase is not UTF-8 text"),
        Ok(text) if text.trim_end_matches(['\r', '\n']).is_empty() => fail(Kind::Invalid, "the passphrase is empty"),
        Ok(_) => Ok(()),
    }
}

async fn fetch(store: &dyn Store, pins: Option<&ConfigPins>) -> Result<(Config, bool)> {
    let bytes = match store.get(CONFIG, Span::Whole { max: MAX_LEN as u64 }, None).await {
        Ok(got) => got.bytes,
        Err(e) if e.kind() == Kind::NotFound => return Err(absent(store, pins).await),
        Err(e) if e.kind() == Kind::TooLarge => return Failure::Length.fail("the volume config is longer than 64 KiB"),
        Err(e) => return Err(e.context("reading the volume config")),
    };
    let config = Config::parse(&bytes).map_err(|e| e.context("the volume config"))?;
    let Some(pins) = pins.cloned() else { return Ok((config, false)) };
    let found = VolumeInfo::of(&config).pin(&store.identity());
    let known = blocking(move || pins.check(&found)).await?;
    Ok((config, known))
}

/// The error for a store without a config.
async fn absent(store: &dyn Store, pins: Option<&ConfigPins>) -> Error {
    let url = store.url();
    if let Some(pins) = pins.cloned() {
        let at = store.identity();
        if let Err(e) = blocking(move || pins.check_absent(&at)).await {
            return e;
        }
    }
    Error::new(Kind::NotFound, format!("there is no smpfs volume at {url}; `smpfs init` makes one"))
}

/// Refuses a config whose passphrase slots together ask for more work than one slot may: a forged config with many of the dearest
/// ones would otherwise multiply the bound.
fn affordable(config: &Config) -> Result<()> {
    let work = |c: Argon2Cost| u64::from(c.m_kib) * u64::from(c.t);
    let asked = config.slots().iter().map(|slot| match slot.kind {
        SlotKind::Passphrase(cost) => work(cost),
        SlotKind::Recovery => 0,
    });
    Failure::Params
        .unless(asked.sum::<u64>() <= work(Argon2Cost::MAX), "the volume config asks for more key derivation than is allowed")
}

#[cfg(test)]
mod tests {
    use super::super::worlds::*;
    use super::super::{Made, Pin, RecoveryCode};
    use super::*;
    use crate::crypto::secmem::SecretKey;
    use crate::format::VolumeKeys;
    use crate::format::config::{Settings, seal};
    use crate::format::index::IndexNode;
    use crate::format::names::Place;
    use crate::format::slot::Slot;
    use crate::store::Cond;
    use crate::store::memory::MemoryStore;
    use bytes::Bytes;

    #[tokio::test]
    async fn passphrase_and_recovery_code_open_the_same_keys() {
        let (store, made) = volume().await;
        let by_passphrase = unlock(&store, pass(PASSPHRASE), None).await.unwrap();
        let code = RecoveryCode::parse(&made.recovery.text().to_lowercase()).unwrap();
        let by_code = unlock(&store, Secret::Recovery(code), None).await.unwrap();
        assert_eq!(by_passphrase.info, made.info);
        assert_eq!(by_passphrase.root(), by_code.root());
        assert_eq!(by_passphrase.keys.owner().public(), made.info.owner);
        assert_eq!(by_passphrase.keys.kek(1), by_code.keys.kek(1));
        assert!(by_passphrase.keys.kek(1).is_some() && by_passphrase.keys.kek(2).is_none());
        unlock(&store, pass("correct horse\n"), None).await.unwrap();
    }

    #[tokio::test]
    async fn the_root_directory_is_there_and_empty() {
        let (store, _) = volume().await;
        let volume = unlock(&store, pass(PASSPHRASE), None).await.unwrap();
        let key = volume.keys.index_key(&volume.root().dir_id, Place::HEAD);
        let got = store.get(&key, Span::Whole { max: 1 << 20 }, None).await.unwrap();
        let (node, _) = IndexNode::open(&volume.keys, &volume.root(), Place::HEAD, &got.bytes).unwrap();
        assert_eq!((node.generation, node.entries.len()), (1, 0));
    }

    #[tokio::test]
    async fn a_wrong_passphrase_is_told_as_such() {
        let (store, _) = volume().await;
        let e = unlock(&store, pass("correct horsf"), None).await.unwrap_err();
        assert_eq!((e.kind(), e.message()), (Kind::Locked, "the passphrase does not open this volume"));
        let e = unlock(&store, Secret::Recovery(RecoveryCode::new(&[1; 32])), None).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Locked);
        for impossible in ["", "\n", "\r\n"] {
            assert_eq!(unlock(&store, pass(impossible), None).await.unwrap_err().kind(), Kind::Invalid);
        }
        let e = unlock(&store, Secret::Passphrase(vec![0xff].into()), None).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid);
    }

    #[tokio::test]
    async fn an_empty_bucket_is_told_as_such() {
        let e = unlock(&MemoryStore::new(), pass(PASSPHRASE), None).await.unwrap_err();
        assert_eq!(e.kind(), Kind::NotFound);
        assert!(e.to_string().contains("smpfs init"), "{e}");
    }

    #[tokio::test]
    async fn every_changed_byte_of_the_config_is_refused_before_the_passphrase_is_used() {
        let (store, _) = volume().await;
        let good = config_of(&store).await;
        let (_, pins) = pins();
        check_config(&store, Some(&pins)).await.unwrap();
        for at in 0..good.len() {
            for bit in [0x01, 0x80] {
                let mut bad = good.to_vec();
                bad[at] ^= bit;
                put_config(&store, bad).await;
                // No passphrase is given at all: the config is refused without one.
                let e = check_config(&store, None).await.expect_err(&format!("byte {at}"));
                assert_eq!(e.kind(), Kind::Corrupt, "byte {at}: {e}");
                assert!(check_config(&store, Some(&pins)).await.is_err(), "byte {at}");
            }
        }
        for cut in 0..good.len() {
            put_config(&store, good[..cut].to_vec()).await;
            assert_eq!(check_config(&store, None).await.unwrap_err().kind(), Kind::Corrupt, "cut at {cut}");
        }
        for more in [1, MAX_LEN] {
            put_config(&store, [&good[..], &vec![0; more]].concat()).await;
            assert_eq!(check_config(&store, None).await.unwrap_err().kind(), Kind::Corrupt);
        }
    }

    /// A config that somebody without the volume's keys signed with keys of their own, around the true slots.
    fn forged(store_config: &[u8], slots: impl FnOnce(&mut Vec<Slot>)) -> Vec<u8> {
        let config = Config::parse(store_config).unwrap();
        let mut all = config.slots().to_vec();
        slots(&mut all);
        let settings = Settings { generation: config.settings().generation + 1, ..config.settings().clone() };
        let keys = VolumeKeys::derive(&SecretKey::new(&[6; 32]), settings.params.volume_id, vec![SecretKey::new(&[5; 32])]);
        seal(&settings, &all, &keys, &[4; 24]).unwrap()
    }

    #[tokio::test]
    async fn a_config_signed_by_somebody_else_is_refused_with_and_without_a_pin() {
        let (store, _) = volume().await;
        let (_, pins) = pins();
        unlock(&store, pass(PASSPHRASE), Some(&pins)).await.unwrap();
        let good = config_of(&store).await;
        put_config(&store, forged(&good, |_| {})).await;
        let e = unlock(&store, pass(PASSPHRASE), None).await.unwrap_err();
        assert_eq!(Failure::of(&e), Some(Failure::Mac), "{e}");
        let e = check_config(&store, Some(&pins)).await.unwrap_err();
        assert_eq!(Failure::of(&e), Some(Failure::Identity), "{e}");
    }

    #[tokio::test]
    async fn an_older_config_is_refused_where_a_newer_one_was_seen() {
        let (store, made) = volume().await;
        let old = config_of(&store).await;
        let (_, pins) = pins();
        pins.remember(&Pin { generation: 2, ..made.info.pin(&store.url()) }).unwrap();
        put_config(&store, old.to_vec()).await;
        let e = unlock(&store, pass(PASSPHRASE), Some(&pins)).await.unwrap_err();
        assert_eq!(Failure::of(&e), Some(Failure::Rollback), "{e}");
        assert!(unlock(&store, pass(PASSPHRASE), None).await.is_ok(), "a machine that never saw it cannot know");
    }

    #[tokio::test]
    async fn another_volume_in_the_same_place_and_an_emptied_bucket_are_noticed() {
        let (store, _) = volume().await;
        let (_, pins) = pins();
        assert!(!unlock(&store, pass(PASSPHRASE), Some(&pins)).await.unwrap().known_before);
        assert!(unlock(&store, pass(PASSPHRASE), Some(&pins)).await.unwrap().known_before);
        let (other, _) = volume().await;
        put_config(&store, config_of(&other).await.to_vec()).await;
        let e = unlock(&store, pass(PASSPHRASE), Some(&pins)).await.unwrap_err();
        assert_eq!(Failure::of(&e), Some(Failure::Identity), "{e}");
        store.delete(CONFIG).await.unwrap();
        let e = unlock(&store, pass(PASSPHRASE), Some(&pins)).await.unwrap_err();
        assert_eq!(Failure::of(&e), Some(Failure::Omission), "{e}");
    }

    #[tokio::test]
    async fn hostile_derivation_costs_are_refused_before_they_run() {
        let (store, _) = volume().await;
        let good = config_of(&store).await;
        let first = |slots: &mut Vec<Slot>, cost| slots[0].kind = SlotKind::Passphrase(cost);
        for cost in [
            Argon2Cost { m_kib: u32::MAX, t: 1, p: 1 },
            Argon2Cost { m_kib: 1 << 20, t: u32::MAX, p: 1 },
            Argon2Cost { m_kib: 1 << 20, t: 1, p: u32::MAX },
            Argon2Cost { m_kib: 8, t: 1, p: 1 },
        ] {
            put_config(&store, forged(&good, |slots| first(slots, cost))).await;
            let e = unlock(&store, pass(PASSPHRASE), None).await.unwrap_err();
            assert_eq!(Failure::of(&e), Some(Failure::Params), "{e}");
        }
        // Sixteen slots at the bound would be sixteen times the bound.
        put_config(
            &store,
            forged(&good, |slots| {
                first(slots, Argon2Cost::MAX);
                *slots = vec![slots[0].clone(); 16];
            }),
        )
        .await;
        let e = unlock(&store, pass(PASSPHRASE), None).await.unwrap_err();
        assert_eq!(Failure::of(&e), Some(Failure::Params), "{e}");
    }

    #[tokio::test]
    async fn mistyped_recovery_codes_are_found_without_trying_them() {
        let (_, Made { recovery, .. }) = volume().await;
        let text = recovery.text();
        for (at, c) in text.char_indices().filter(|(_, c)| *c != '-') {
            let mut typed = text.to_string();
            typed.replace_range(at..at + 1, if c == 'A' { "B" } else { "A" });
            assert_eq!(RecoveryCode::parse(&typed).err().map(|e| e.kind()), Some(Kind::Invalid), "character {at}");
        }
        let swapped = [&text[5..9], "-", &text[..4], &text[9..]].concat();
        assert!(swapped == **text || RecoveryCode::parse(&swapped).is_err());
    }

    #[tokio::test]
    async fn debug_shows_no_secret() {
        let (store, made) = volume().await;
        let volume = unlock(&store, pass(PASSPHRASE), None).await.unwrap();
        let shown = format!("{volume:?} {made:?} {:?} {:?}", pass(PASSPHRASE), volume.keys.root_dir());
        assert!(!shown.contains(PASSPHRASE) && !shown.contains(&made.recovery.text()[..9]));
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        for key in [volume.keys.root_dir(), volume.keys.local_log(), volume.keys.kek(1).unwrap()] {
            assert!(!shown.contains(&hex(&key.expose()[..4])));
            assert!(!shown.contains(format!("{:?}", &key.expose()[..4]).trim_matches(['[', ']'])));
        }
    }

    #[tokio::test]
    async fn the_config_alone_can_be_replaced_only_by_its_owner() {
        // What a later release does when it changes slots: generation one higher, same keys.
        let (store, _) = volume().await;
        let (_, pins) = pins();
        let volume = unlock(&store, pass(PASSPHRASE), Some(&pins)).await.unwrap();
        let config = Config::parse(&config_of(&store).await).unwrap();
        let next = Settings { generation: 2, ..config.settings().clone() };
        let bytes = seal(&next, config.slots(), &volume.keys, &[1; 24]).unwrap();
        store.put(CONFIG, vec![Bytes::from(bytes)], Cond::Any).await.unwrap();
        assert_eq!(unlock(&store, pass(PASSPHRASE), Some(&pins)).await.unwrap().info.generation, 2);
        assert_eq!(pins.at(&store.url()).unwrap().unwrap().generation, 2);
    }
}
