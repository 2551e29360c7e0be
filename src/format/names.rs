//! Keys of objects in the bucket, and the keyed hash that binds a file to its name (FORMAT.md, sections 2, 4.4 and 7).

use crate::crypto::mac::hmac_sha256;
use crate::crypto::secmem::SecretKey;
use crate::types::{DirId, FileId};
use data_encoding::HEXLOWER;

/// Key of the volume config.
pub const CONFIG: &str = ".smpfs/volume";
/// Key of the lease.
pub const LEASE: &str = ".smpfs/lease";
/// What the keys of index objects begin with.
pub const INDEX_PREFIX: &str = ".smpfs/d/";
/// What the keys of sealed files begin with, unless a file has a key of its own.
pub const OBJECT_PREFIX: &str = ".smpfs/o/";
/// What the keys of scratch objects begin with.
pub const PROBE_PREFIX: &str = ".smpfs/probe/";
/// Longest key of the readable form, bytes.
pub const MAX_KEY: usize = 900;

/// Which object of a directory: its head, or a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// 0 for the head; 1 or higher for shards.
    pub epoch: u32,
    /// 0 for the head; the shard's number for shards.
    pub slot: u32,
}

impl Place {
    /// The head of a directory.
    pub const HEAD: Place = Place { epoch: 0, slot: 0 };
}

/// Key of an index object; `dir_name` is K("dir-name").
pub fn index_key(dir_name: &SecretKey, dir: &DirId, place: Place) -> String {
    let mac = hmac_sha256(dir_name.expose(), &[&dir.0, &place.epoch.to_be_bytes(), &place.slot.to_be_bytes()]);
    format!("{INDEX_PREFIX}{}", HEXLOWER.encode(&mac[..16]))
}

/// Key of a sealed file that has none of its own: ZERO_KNOWLEDGE mode, and paths that cannot be keys.
pub fn object_key(file: &FileId) -> String {
    let hex = file.hex();
    format!("{OBJECT_PREFIX}{}/{}", &hex[..2], &hex[2..])
}

/// The file id in a key made by [`object_key`]; `None` for other keys.
pub fn file_of_key(key: &str) -> Option<FileId> {
    let (head, rest) = key.strip_prefix(OBJECT_PREFIX)?.split_once('/')?;
    let bytes = HEXLOWER.decode(format!("{head}{rest}").as_bytes()).ok()?;
    let file = FileId(bytes.try_into().ok()?);
    (object_key(&file) == key).then_some(file)
}

/// STANDARD mode: the readable key of a path in the volume; `None` when the path cannot be a key and [`object_key`] serves.
pub fn readable_key<'a>(path: impl IntoIterator<Item = &'a [u8]>) -> Option<String> {
    let mut key = String::new();
    for (i, component) in path.into_iter().enumerate() {
        let component = std::str::from_utf8(component).ok()?;
        if i > 0 {
            key.push('/');
        } else if component == ".smpfs" {
            return None;
        }
        if component.chars().any(char::is_control) || key.len() + component.len() > MAX_KEY {
            return None;
        }
        key.push_str(component);
    }
    (!key.is_empty()).then_some(key)
}

/// Whether `key` may stand in an index entry: what [`readable_key`] can give.
pub fn is_readable_key(key: &str) -> bool {
    let components = || key.split('/').map(str::as_bytes);
    components().all(|c| !c.is_empty() && c != b"." && c != b"..") && readable_key(components()).is_some()
}

/// name_bind: HMAC under K("bind") over directory, name and file.
pub fn name_bind(bind: &SecretKey, dir: &DirId, name: &[u8], file: &FileId) -> [u8; 32] {
    // Names hold 255 bytes at most, which `entry` and `manifest` enforce.
    hmac_sha256(bind.expose(), &[&dir.0, &(name.len() as u16).to_be_bytes(), name, &file.0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_keys_come_back_and_nothing_else_does() {
        let file = FileId([0xab; 32]);
        let key = object_key(&file);
        assert_eq!(key, format!(".smpfs/o/ab/{}", "ab".repeat(31)));
        assert_eq!(file_of_key(&key), Some(file));
        for bad in [&key[..key.len() - 1], &key.to_uppercase(), "a/b", ".smpfs/o/aba/b", &key.replacen("ab/", "a/b", 1)] {
            assert_eq!(file_of_key(bad), None, "{bad}");
        }
    }

    #[test]
    fn readable_keys() {
        let key = |path: &[&str]| readable_key(path.iter().map(|c| c.as_bytes()));
        assert_eq!(key(&["a b", "ü.dcm"]).unwrap(), "a b/ü.dcm");
        assert_eq!(key(&["x", ".smpfs"]).unwrap(), "x/.smpfs");
        assert_eq!(key(&[".smpfs", "x"]), None);
        assert_eq!(key(&["a\nb"]), None);
        assert_eq!(key(&["a\u{85}b"]), None);
        assert_eq!(readable_key([&b"\xff"[..]]), None);
        assert_eq!(key(&["x".repeat(MAX_KEY).as_str()]).unwrap().len(), MAX_KEY);
        assert_eq!(key(&["x".repeat(MAX_KEY - 1).as_str(), "y"]), None);
        assert_eq!(key(&[]), None);
        for (key, good) in
            [("a/b", true), ("a//b", false), ("/a", false), ("a/", false), ("a/../b", false), ("", false), (".smpfs/o/x", false)]
        {
            assert_eq!(is_readable_key(key), good, "{key}");
        }
    }

    #[test]
    fn index_keys_depend_on_every_part() {
        let key = |k: u8, d: u8, epoch, slot| index_key(&SecretKey::new(&[k; 32]), &DirId([d; 16]), Place { epoch, slot });
        let all = [key(1, 1, 0, 0), key(2, 1, 0, 0), key(1, 2, 0, 0), key(1, 1, 1, 0), key(1, 1, 0, 1)];
        for (i, a) in all.iter().enumerate() {
            assert_eq!(a.len(), INDEX_PREFIX.len() + 32);
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }
}
