//! Failed unlocks: they happen before any key is known, so they are noted in the open (a time each) and taken into the chain
//! with the next mount.
//!
//! Whoever can write to the state directory can change these notes; from the next mount on the chain keeps them.

use crate::disk::{Access, Disk, join, read_all};
use crate::error::Result;
use crate::types::Time;

const FILE: &str = "unlock-failed";
const NOTE_LEN: usize = 12;
/// Notes kept: more say nothing new.
const MAX_NOTES: usize = 1000;

/// Notes in `dir` of `disk` that a wrong passphrase or recovery code was tried at `now`.
pub fn note_failed_unlock(disk: &dyn Disk, dir: &str, now: Time) -> Result<()> {
    disk.make_dir(dir)?;
    let file = disk.open(&join(dir, FILE), Access::Create)?;
    let len = file.len()?;
    if len >= (MAX_NOTES * NOTE_LEN) as u64 {
        return Ok(());
    }
    let mut note = [0; NOTE_LEN];
    note[..8].copy_from_slice(&now.sec.to_be_bytes());
    note[8..].copy_from_slice(&now.nsec.to_be_bytes());
    file.pwrite(len - len % NOTE_LEN as u64, &note)?;
    file.sync_data()
}

/// The notes in `dir`. A file that cannot be read has none.
pub(super) fn notes(disk: &dyn Disk, dir: &str) -> Vec<Time> {
    let Ok(notes) = read_all(disk, &join(dir, FILE), MAX_NOTES * NOTE_LEN) else { return Vec::new() };
    let time = |note: &[u8; NOTE_LEN]| {
        let (sec, nsec) = note.split_at(8);
        Some(Time { sec: i64::from_be_bytes(sec.try_into().ok()?), nsec: u32::from_be_bytes(nsec.try_into().ok()?) })
    };
    notes.as_chunks::<NOTE_LEN>().0.iter().filter_map(time).collect()
}

/// Removes the notes, which are in the chain now.
pub(super) fn forget(disk: &dyn Disk, dir: &str) {
    if let Err(e) = disk.remove(&join(dir, FILE)) {
        tracing::warn!("notes of failed unlocks could not be removed and will be recorded again: {e}");
    }
}
