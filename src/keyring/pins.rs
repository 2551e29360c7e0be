//! Pins: what this machine remembers of a volume config, as `known_hosts` remembers the keys of servers.
//!
//! A pin must be readable before any key exists, because it decides whether a passphrase is worth trying at all. So it is a
//! plain text file with public values only, one per store URL, under `pins/` in the directory for state:
//!
//! ```text
//! smpfs pin 1
//! volume 4f1c...            which volume this store held
//! owner 8b03...             its owner's public key
//! generation 3              of its config
//! config 90aa...            SHA-256 of that config
//! store s3://bucket/prefix  where
//! ```
//!
//! Where is the store's identity: on a server that is not Amazon's own it names the server too
//! (`s3+https://host:port/bucket/prefix`). Pins that were written without it are taken over when their volume is the one found.
//!
//! A config is judged by two questions: what did *this URL* hold when last mounted from here (so that a swapped bucket is
//! noticed although its volume id is new), and what is known of *this volume id* at whatever URL (so that an old config is
//! noticed although the bucket moved).

use crate::crypto::hash::sha256;
use crate::disk::{self, Disk, EntryKind};
use crate::error::{Error, Kind, Result, fail};
use crate::format::Failure;
use crate::format::object::check_version;
use crate::types::{Hash, VolumeId};
use data_encoding::HEXLOWER;
use std::sync::Arc;

/// Where pins lie in the directory for state.
const DIR: &str = "pins";
/// Longest pin file. URLs are far shorter.
const MAX_FILE: usize = 8 << 10;
/// Pin files that are read at most when one looks for a volume id.
const MAX_FILES: usize = 4096;
/// The first line of a pin file.
const FIRST_LINE: &str = "smpfs pin 1";

/// What is remembered of a volume config: public values only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The volume.
    pub volume: VolumeId,
    /// The owner's Ed25519 public key.
    pub owner: [u8; 32],
    /// Generation of the config.
    pub generation: u64,
    /// SHA-256 of the config.
    pub config: Hash,
    /// Identity of the store: its URL, without credentials, and its server where that is not Amazon's own.
    pub store: String,
}

/// What a pin of the same store said as long as pins did not name servers.
fn without_server(store: &str) -> Option<String> {
    let (_, rest) = store.strip_prefix("s3+")?.split_once("://")?;
    Some(format!("s3://{}", rest.split_once('/')?.1))
}

/// The pins of this machine. Calls block on the disk.
#[derive(Clone)]
pub struct ConfigPins {
    disk: Arc<dyn Disk>,
}

impl ConfigPins {
    /// Pins in the given directory for state.
    pub fn new(disk: Arc<dyn Disk>) -> ConfigPins {
        ConfigPins { disk }
    }

    /// What the store at `url` held when it was last mounted from here.
    ///
    /// Fails with `Corrupt` when the pin file is damaged: a pin that cannot be read must not count as none.
    pub fn at(&self, url: &str) -> Result<Option<Pin>> {
        match disk::read_all(&*self.disk, &path_of(url), MAX_FILE) {
            Ok(bytes) => match Pin::parse(&bytes) {
                Some(pin) if pin.store == url => Ok(Some(pin)),
                _ => Err(self.damaged(url)),
            },
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            Err(e) => Err(e.context("reading what is remembered of this volume")),
        }
    }

    /// The newest pin of a volume, at whatever URL it was mounted. Damaged files of other URLs are passed over.
    pub fn of(&self, volume: VolumeId) -> Result<Option<Pin>> {
        let entries = match self.disk.list(DIR) {
            Ok(entries) => entries,
            Err(e) if e.kind() == Kind::NotFound => return Ok(None),
            Err(e) => return Err(e.context("reading what is remembered of volumes")),
        };
        let files = entries.iter().filter(|e| e.kind == EntryKind::File && !e.name.ends_with(".tmp")).take(MAX_FILES);
        let pins = files.filter_map(|e| disk::read_all(&*self.disk, &disk::join(DIR, &e.name), MAX_FILE).ok());
        Ok(pins.filter_map(|bytes| Pin::parse(&bytes)).filter(|pin| pin.volume == volume).max_by_key(|pin| pin.generation))
    }

    /// Judges a config whose form and signature hold, before any key is derived: `Corrupt` when it contradicts what is
    /// remembered. Says whether the volume was known at all.
    pub fn check(&self, found: &Pin) -> Result<bool> {
        let here = match self.at(&found.store)? {
            None => self.without_server(found)?,
            here => here,
        };
        if let Some(here) = here.as_ref().filter(|here| here.volume != found.volume) {
            return Err(self.replaced(here, found));
        }
        let newest = match (here, self.of(found.volume)?) {
            (Some(here), Some(other)) if other.generation > here.generation => Some(other),
            (Some(here), _) => Some(here),
            (None, other) => other,
        };
        match &newest {
            Some(known) => judge(known, found).map(|()| true),
            None => Ok(false),
        }
    }

    /// The pin that does not name the server, if it is of this volume: another volume's is of another server.
    fn without_server(&self, found: &Pin) -> Result<Option<Pin>> {
        let Some(url) = without_server(&found.store) else { return Ok(None) };
        Ok(self.at(&url)?.filter(|pin| pin.volume == found.volume))
    }

    /// Remembers a config that was unlocked or written here, durably. A lower generation than the one remembered is left alone.
    pub fn remember(&self, pin: &Pin) -> Result<()> {
        let held = self.at(&pin.store)?;
        let moved = if held.is_none() { self.without_server(pin)? } else { None };
        if let Some(held) = &held {
            let older = held.volume == pin.volume && held.generation > pin.generation;
            if older || held == pin {
                return Ok(());
            }
        }
        match moved {
            None => self.replace(pin),
            Some(moved) => {
                let url = moved.store.clone();
                let newest = if moved.generation > pin.generation { moved } else { pin.clone() };
                self.replace(&Pin { store: pin.store.clone(), ..newest })?;
                self.forget(&url)
            }
        }
    }

    /// Remembers a config whatever was there before: for the one who has just made a volume at this URL.
    pub fn replace(&self, pin: &Pin) -> Result<()> {
        if pin.store.len() > MAX_FILE / 2 || pin.store.contains('\n') {
            return fail(Kind::Invalid, "the store's URL is too long or has a line end in it");
        }
        let put = || {
            self.disk.make_dir(DIR)?;
            self.disk.sync_dir("")?;
            disk::replace(&*self.disk, &path_of(&pin.store), pin.to_text().as_bytes())
        };
        put().map_err(|e: Error| e.context("remembering the volume on this machine"))
    }

    /// Forgets what a URL held.
    pub fn forget(&self, url: &str) -> Result<()> {
        match self.disk.remove(&path_of(url)) {
            Ok(()) => self.disk.sync_dir(DIR),
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// What a missing config means at this URL: nothing special when none was known there, else a sentence.
    pub fn check_absent(&self, url: &str) -> Result<()> {
        match self.at(url)? {
            None => Ok(()),
            Some(pin) => Failure::Omission.fail(format!(
                "{url} held volume {} when it was last mounted from here, and now its config is gone; nothing was changed",
                pin.volume.hex()
            )),
        }
    }

    fn replaced(&self, known: &Pin, found: &Pin) -> Error {
        Failure::Identity.error(format!(
            "{} held volume {} when it was last mounted from here, and holds volume {} now; \
             if you made the new one yourself, delete {} and try again",
            found.store,
            known.volume.hex(),
            found.volume.hex(),
            self.file(&found.store)
        ))
    }

    fn damaged(&self, url: &str) -> Error {
        Error::new(
            Kind::Corrupt,
            format!(
                "the file that remembers this volume is damaged: {}; delete it if you trust the bucket as it is",
                self.file(url)
            ),
        )
    }

    fn file(&self, url: &str) -> String {
        format!("{}/{}", self.disk.describe(), path_of(url))
    }
}

/// Compares a config with the newest that is known of the same volume.
fn judge(known: &Pin, found: &Pin) -> Result<()> {
    if known.owner != found.owner {
        return Failure::Identity.fail("the volume config is signed by another owner than the one this machine has seen");
    }
    check_version((known.generation, known.config), (found.generation, found.config)).map_err(|e| {
        e.context(format!("the volume config has generation {}, this machine has seen {}", found.generation, known.generation))
    })
}

/// The pin file of a URL: named by a hash, because a URL can hold anything.
fn path_of(url: &str) -> String {
    disk::join(DIR, &HEXLOWER.encode(&sha256(&[b"smpfs pin\0", url.as_bytes()])[..16]))
}

impl Pin {
    fn to_text(&self) -> String {
        format!(
            "{FIRST_LINE}\nvolume {}\nowner {}\ngeneration {}\nconfig {}\nstore {}\n",
            self.volume.hex(),
            HEXLOWER.encode(&self.owner),
            self.generation,
            self.config.hex(),
            self.store
        )
    }

    /// Exactly the six lines of [`Pin::to_text`], or nothing.
    fn parse(bytes: &[u8]) -> Option<Pin> {
        let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let mut lines = text.split('\n');
        if lines.next()? != FIRST_LINE {
            return None;
        }
        let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let pin = Pin {
            volume: VolumeId(from_hex(value("volume")?)?),
            owner: from_hex(value("owner")?)?,
            generation: value("generation")?.parse().ok()?,
            config: Hash(from_hex(value("config")?)?),
            store: value("store")?.to_owned(),
        };
        lines.next().is_none().then_some(pin)
    }
}

fn from_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;
    use crate::disk::sim::{Crash, Faults};

    const HERE: &str = "s3://bucket/here";
    const THERE: &str = "s3://bucket/there";

    fn pin(volume: u8, generation: u64, config: u8, store: &str) -> Pin {
        Pin { volume: VolumeId([volume; 16]), owner: [9; 32], generation, config: Hash([config; 32]), store: store.to_owned() }
    }

    fn pins() -> (Arc<SimDisk>, ConfigPins) {
        let disk = Arc::new(SimDisk::new(1));
        (disk.clone(), ConfigPins::new(disk))
    }

    #[track_caller]
    fn refused(outcome: Result<bool>, class: Failure) {
        let e = outcome.unwrap_err();
        assert_eq!((e.kind(), Failure::of(&e)), (Kind::Corrupt, Some(class)), "{e}");
    }

    #[test]
    fn text_round_trip() {
        let p = pin(1, 77, 2, HERE);
        assert_eq!(Pin::parse(p.to_text().as_bytes()), Some(p.clone()));
        let text = p.to_text();
        for cut in 0..text.len() {
            assert_eq!(Pin::parse(&text.as_bytes()[..cut]), None, "cut at {cut}");
        }
        assert_eq!(Pin::parse(format!("{text}more\n").as_bytes()), None);
        assert_eq!(Pin::parse(text.replace("pin 1", "pin 2").as_bytes()), None);
    }

    #[test]
    fn unknown_then_known_then_newer() {
        let (_, pins) = pins();
        assert!(!pins.check(&pin(1, 1, 1, HERE)).unwrap());
        pins.remember(&pin(1, 1, 1, HERE)).unwrap();
        assert!(pins.check(&pin(1, 1, 1, HERE)).unwrap());
        assert!(pins.check(&pin(1, 2, 2, HERE)).unwrap());
    }

    #[test]
    fn rollback_fork_other_owner_and_replacement_are_refused() {
        let (_, pins) = pins();
        pins.remember(&pin(1, 5, 5, HERE)).unwrap();
        refused(pins.check(&pin(1, 4, 4, HERE)), Failure::Rollback);
        refused(pins.check(&pin(1, 5, 6, HERE)), Failure::Fork);
        refused(pins.check(&Pin { owner: [8; 32], ..pin(1, 6, 6, HERE) }), Failure::Identity);
        refused(pins.check(&pin(2, 1, 1, HERE)), Failure::Identity);
        assert_eq!(pins.check_absent(HERE).unwrap_err().kind(), Kind::Corrupt);
        assert!(pins.check_absent(THERE).is_ok());
    }

    #[test]
    fn a_volume_is_recognised_at_another_url() {
        let (_, pins) = pins();
        pins.remember(&pin(1, 5, 5, HERE)).unwrap();
        refused(pins.check(&pin(1, 4, 4, THERE)), Failure::Rollback);
        pins.remember(&pin(1, 6, 6, THERE)).unwrap();
        refused(pins.check(&pin(1, 5, 5, HERE)), Failure::Rollback);
        assert!(!pins.check(&pin(2, 1, 1, "dir:///elsewhere")).unwrap());
    }

    #[test]
    fn servers_with_buckets_of_one_name_are_told_apart() {
        let (_, pins) = pins();
        let (one, two) = ("s3+https://one:9000/bucket/here", "s3+https://two:9000/bucket/here");
        pins.remember(&pin(1, 5, 5, one)).unwrap();
        assert!(!pins.check(&pin(2, 1, 1, two)).unwrap());
        pins.replace(&pin(2, 1, 1, two)).unwrap();
        assert!(pins.check(&pin(1, 5, 5, one)).unwrap());
        refused(pins.check(&pin(3, 1, 1, one)), Failure::Identity);
        assert!(pins.check_absent(one).is_err() && pins.check_absent("s3+https://three/bucket/here").is_ok());
    }

    #[test]
    fn a_pin_without_its_server_is_taken_over_by_its_own_volume() {
        let (_, pins) = pins();
        let (one, two) = ("s3+https://one:9000/bucket/here", "s3+http://two/bucket/here");
        pins.remember(&pin(1, 5, 5, HERE)).unwrap();
        // Another server's volume is no reason for an alarm, and leaves the pin where it is.
        assert!(!pins.check(&pin(2, 1, 1, two)).unwrap());
        pins.remember(&pin(2, 1, 1, two)).unwrap();
        assert_eq!(pins.at(HERE).unwrap(), Some(pin(1, 5, 5, HERE)));
        refused(pins.check(&pin(1, 4, 4, one)), Failure::Rollback);
        assert!(pins.check(&pin(1, 6, 6, one)).unwrap());
        // It does not go back on its way.
        pins.remember(&pin(1, 4, 4, one)).unwrap();
        assert_eq!((pins.at(one).unwrap(), pins.at(HERE).unwrap()), (Some(pin(1, 5, 5, one)), None));
        refused(pins.check(&pin(3, 1, 1, one)), Failure::Identity);
    }

    #[test]
    fn identities_lose_their_server() {
        assert_eq!(without_server("s3+https://h:9/b/p/").as_deref(), Some("s3://b/p/"));
        assert_eq!(without_server("s3+https://h/b/").as_deref(), Some("s3://b/"));
        assert_eq!([without_server("s3://b/p/"), without_server("dir:///s3+x://y/z")], [None, None]);
    }

    #[test]
    fn remembering_never_goes_back() {
        let (_, pins) = pins();
        pins.remember(&pin(1, 5, 5, HERE)).unwrap();
        pins.remember(&pin(1, 4, 4, HERE)).unwrap();
        assert_eq!(pins.at(HERE).unwrap().unwrap().generation, 5);
        pins.replace(&pin(2, 1, 1, HERE)).unwrap();
        assert_eq!(pins.at(HERE).unwrap().unwrap().volume, VolumeId([2; 16]));
        pins.forget(HERE).unwrap();
        pins.forget(HERE).unwrap();
        assert_eq!(pins.at(HERE).unwrap(), None);
    }

    #[test]
    fn a_damaged_pin_is_not_taken_for_none() {
        let (disk, pins) = pins();
        pins.remember(&pin(1, 5, 5, HERE)).unwrap();
        disk.tamper(&path_of(HERE), |bytes| bytes.truncate(40)).unwrap();
        let e = pins.check(&pin(1, 5, 5, HERE)).unwrap_err();
        assert!(e.kind() == Kind::Corrupt && e.to_string().contains("is damaged"), "{e}");
        assert!(!pins.check(&pin(2, 1, 1, THERE)).unwrap(), "other volumes go on");
    }

    #[test]
    fn a_pin_is_whole_after_a_crash_at_any_moment() {
        for seed in 0..20 {
            for fail_write in 0..2 {
                let disk = Arc::new(SimDisk::new(seed));
                let pins = ConfigPins::new(disk.clone());
                pins.remember(&pin(1, 1, 1, HERE)).unwrap();
                disk.set_faults(Faults { fail_write: Some(fail_write), ..Faults::default() });
                let second = pins.remember(&pin(1, 2, 2, HERE));
                disk.crash(Crash::Power);
                disk.set_faults(Faults::default());
                let held = pins.at(HERE).unwrap().unwrap().generation;
                assert!(held == 2 || (second.is_err() && held == 1), "seed {seed}: {held}");
            }
        }
    }

    #[test]
    fn a_url_that_does_not_fit_is_refused() {
        let (_, pins) = pins();
        assert_eq!(pins.remember(&pin(1, 1, 1, "dir:///a\nb")).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(pins.remember(&pin(1, 1, 1, &"x".repeat(MAX_FILE))).unwrap_err().kind(), Kind::Invalid);
    }
}
