//! Entries of a directory: names, attributes, and what they stand for (FORMAT.md, section 7).

use super::failure::Failure;
use super::manifest::MODE_BITS;
use super::names::{MAX_KEY, is_readable_key, object_key};
use super::object::Expect;
use super::wire::{Reader, Writer};
use crate::crypto::secmem::SecretKey;
use crate::error::{Error, Kind, Result};
use crate::types::{DirId, FileId, Hash, LinkId, LinkRef, NAME_MAX, Time};
use std::fmt;
use zeroize::Zeroizing;

const CLASS: Failure = Failure::Index;
/// Longest symlink target, bytes.
pub const TARGET_MAX: usize = 4095;
/// Longest value of an extended attribute, bytes.
pub const XATTR_VALUE_MAX: usize = 65_536;
/// The shortest entry: a FIFO with a name of one byte.
pub(super) const MIN_ENTRY: usize = 2 + 1 + 1 + 2 + 8 + 48 + 2;

/// Attributes that every entry has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, set-id bits and sticky: 12 bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last read.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the entry.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
}

/// Which version of which object holds a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRef {
    /// The file.
    pub file_id: FileId,
    /// The file's key.
    pub file_key: SecretKey,
    /// Version of the file, from 1.
    pub generation: u64,
    /// Identity of that version.
    pub trailer_hash: Hash,
    /// Plaintext bytes.
    pub size: u64,
    /// Bytes of the object.
    pub object_len: u64,
    /// The object's key, where it is not the one that follows from the file id.
    pub key: Option<String>,
}

impl FileRef {
    /// The object's key in the bucket.
    pub fn object_key(&self) -> String {
        self.key.clone().unwrap_or_else(|| object_key(&self.file_id))
    }

    /// What the object must be.
    pub fn expect(&self) -> Expect {
        Expect {
            file_id: self.file_id,
            generation: self.generation,
            trailer_hash: self.trailer_hash,
            file_key: self.file_key.clone(),
        }
    }
}

/// A name of a file that has several: it leads to an entry in the links directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The inode.
    pub id: LinkId,
    /// This name, as the inode counts it.
    pub own: LinkRef,
    /// Type of the inode, as [`Body::code`] gives it.
    pub kind: u8,
}

impl Link {
    /// Name of the inode's entry in the links directory.
    pub fn inode_name(&self) -> Vec<u8> {
        self.id.hex().into_bytes()
    }
}

/// The link id of a file.
pub fn link_id(file: &FileId) -> LinkId {
    let mut id = [0; 16];
    id.copy_from_slice(&file.0[..16]);
    LinkId(id)
}

/// What an entry stands for.
#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    /// A regular file.
    File(FileRef),
    /// A directory: its id and the key of its index.
    Dir {
        /// The directory.
        dir_id: DirId,
        /// Key of its index objects.
        dir_key: SecretKey,
    },
    /// A symbolic link and where it points.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A name of something that has several.
    Link(Link),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::File(file) => f.debug_struct("File").field("id", &file.file_id).field("generation", &file.generation).finish(),
            Body::Dir { dir_id, .. } => f.debug_tuple("Dir").field(dir_id).finish(),
            Body::Symlink(_) => f.write_str("Symlink"),
            Body::Fifo => f.write_str("Fifo"),
            Body::Socket => f.write_str("Socket"),
            Body::CharDevice { major, minor } => write!(f, "CharDevice({major}:{minor})"),
            Body::BlockDevice { major, minor } => write!(f, "BlockDevice({major}:{minor})"),
            Body::Link(link) => f.debug_tuple("Link").field(&link.id).finish(),
        }
    }
}

/// An extended attribute: name (1..=255 bytes) and value (up to 64 KiB).
pub type Xattr = (Vec<u8>, Vec<u8>);

/// An entry of a directory. `Debug` shows neither names nor keys.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name: 1..=255 bytes, no NUL, no slash, not "." or "..".
    pub name: Vec<u8>,
    /// Attributes.
    pub attributes: Attributes,
    /// What it stands for.
    pub body: Body,
    /// In the links directory: the names that lead here, ascending. Elsewhere empty.
    pub refs: Vec<LinkRef>,
    /// Extended attributes, ascending by name.
    pub xattrs: Vec<Xattr>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("body", &self.body).finish_non_exhaustive()
    }
}

/// Whether `name` may be an entry's.
pub fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && name != b"." && name != b".." && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// Bit of an entry's type: the names that lead to it follow the body.
const WITH_REFS: u8 = 0x80;
/// Names of one inode at most, as the format counts them.
pub const MAX_REFS: usize = u16::MAX as usize;

/// Whether something of this type can have several names.
fn is_linkable(code: u8) -> bool {
    matches!(code, 1 | 3..=7)
}

impl Body {
    /// The type's number in the format.
    pub fn code(&self) -> u8 {
        match self {
            Body::File(_) => 1,
            Body::Dir { .. } => 2,
            Body::Symlink(_) => 3,
            Body::Fifo => 4,
            Body::Socket => 5,
            Body::CharDevice { .. } => 6,
            Body::BlockDevice { .. } => 7,
            Body::Link(_) => 8,
        }
    }

    fn len(&self) -> usize {
        match self {
            Body::File(file) => 32 + 32 + 8 + 32 + 8 + 8 + 2 + file.key.as_ref().map_or(0, String::len),
            Body::Dir { .. } => 16 + 32,
            Body::Symlink(target) => 2 + target.len(),
            Body::Fifo | Body::Socket => 0,
            Body::CharDevice { .. } | Body::BlockDevice { .. } => 8,
            Body::Link(_) => 16 + 16 + 1,
        }
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Body::File(file) => {
                let key = file.key.as_deref().unwrap_or("");
                w.bytes(&file.file_id.0).bytes(file.file_key.expose()).u64(file.generation).bytes(&file.trailer_hash.0);
                w.u64(file.size).u64(file.object_len).u16(key.len() as u16).bytes(key.as_bytes());
            }
            Body::Dir { dir_id, dir_key } => {
                w.bytes(&dir_id.0).bytes(dir_key.expose());
            }
            Body::Symlink(target) => {
                w.u16(target.len() as u16).bytes(target);
            }
            Body::Fifo | Body::Socket => {}
            Body::CharDevice { major, minor } | Body::BlockDevice { major, minor } => {
                w.u32(*major).u32(*minor);
            }
            Body::Link(link) => {
                w.bytes(&link.id.0).bytes(&link.own.0).u8(link.kind);
            }
        }
    }

    fn read(code: u8, r: &mut Reader<'_>) -> Result<Body> {
        Ok(match code {
            1 => Body::File(read_file(r)?),
            2 => Body::Dir { dir_id: DirId(r.array()?), dir_key: SecretKey::new(r.slice()?) },
            3 => {
                let len = usize::from(r.u16()?);
                let target = r.bytes(len)?;
                CLASS.unless(is_target(target), "a symlink's target is malformed")?;
                Body::Symlink(target.to_vec())
            }
            4 => Body::Fifo,
            5 => Body::Socket,
            6 => Body::CharDevice { major: r.u32()?, minor: r.u32()? },
            7 => Body::BlockDevice { major: r.u32()?, minor: r.u32()? },
            8 => {
                let link = Link { id: LinkId(r.array()?), own: LinkRef(r.array()?), kind: r.u8()? };
                CLASS.unless(is_linkable(link.kind), "a link leads to something that has one name only")?;
                Body::Link(link)
            }
            _ => return CLASS.fail("an entry of unknown type; a newer smpfs may have written this"),
        })
    }
}

fn read_refs(r: &mut Reader<'_>) -> Result<Vec<LinkRef>> {
    let count = usize::from(r.u16()?);
    CLASS.unless((1..=r.left() / 16).contains(&count), "an inode claims more names than it has bytes, or none")?;
    let mut refs: Vec<LinkRef> = Vec::with_capacity(count);
    for _ in 0..count {
        let one = LinkRef(r.array()?);
        CLASS.unless(refs.last().is_none_or(|last| *last < one), "the names of an inode are out of order")?;
        refs.push(one);
    }
    Ok(refs)
}

fn is_target(target: &[u8]) -> bool {
    (1..=TARGET_MAX).contains(&target.len()) && !target.contains(&0)
}

fn read_file(r: &mut Reader<'_>) -> Result<FileRef> {
    let file_id = FileId(r.array()?);
    let file_key = SecretKey::new(r.slice()?);
    let generation = r.u64()?;
    CLASS.unless(generation > 0, "a file of generation zero")?;
    let (trailer_hash, size, object_len) = (Hash(r.array()?), r.u64()?, r.u64()?);
    let key_len = usize::from(r.u16()?);
    CLASS.unless(key_len <= MAX_KEY, "an object key is too long")?;
    let key = match std::str::from_utf8(r.bytes(key_len)?) {
        Ok("") => None,
        Ok(key) if is_readable_key(key) => Some(key.to_owned()),
        _ => return CLASS.fail("an object key is malformed"),
    };
    Ok(FileRef { file_id, file_key, generation, trailer_hash, size, object_len, key })
}

impl Entry {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir { .. })
    }

    /// The link that it is.
    pub fn link(&self) -> Option<Link> {
        match self.body {
            Body::Link(link) => Some(link),
            _ => None,
        }
    }

    /// The file, of a regular file.
    pub fn file_id(&self) -> Option<FileId> {
        match &self.body {
            Body::File(f) => Some(f.file_id),
            _ => None,
        }
    }

    /// The directory, of one.
    pub fn dir_id(&self) -> Option<DirId> {
        match &self.body {
            Body::Dir { dir_id, .. } => Some(*dir_id),
            _ => None,
        }
    }

    /// The entry alone, as an index object holds it: for local sealed logs.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>> {
        self.check()?;
        let mut w = Writer::with_capacity(self.encoded_len());
        self.write(&mut w);
        Ok(w.secret())
    }

    /// Reads what [`Entry::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Entry> {
        let mut r = Reader::new(bytes, CLASS);
        let entry = Entry::read(&mut r)?;
        r.finish()?;
        Ok(entry)
    }

    /// Bytes that [`Entry::write`] appends.
    pub fn encoded_len(&self) -> usize {
        let xattrs: usize = self.xattrs.iter().map(|(name, value)| 1 + name.len() + 4 + value.len()).sum();
        let refs = if self.refs.is_empty() { 0 } else { 2 + 16 * self.refs.len() };
        MIN_ENTRY - 1 + self.name.len() + self.body.len() + refs + xattrs
    }

    /// Refuses what cannot be written: kinds as a program should see them.
    pub fn check(&self) -> Result<()> {
        let bad = |kind, message: &'static str| Err(Error::new(kind, message));
        if self.name.len() > NAME_MAX {
            return bad(Kind::NameTooLong, "a name is longer than 255 bytes");
        }
        if !is_name(&self.name) {
            return bad(Kind::Invalid, "a name is empty, reserved, or has a slash or NUL in it");
        }
        let a = &self.attributes;
        if a.mode > MODE_BITS || [a.atime, a.mtime, a.ctime, a.btime].iter().any(|t| t.nsec >= 1_000_000_000) {
            return bad(Kind::Invalid, "an attribute is out of range");
        }
        match &self.body {
            Body::Symlink(target) if target.len() > TARGET_MAX => return bad(Kind::NameTooLong, "a symlink target is too long"),
            Body::Symlink(target) if !is_target(target) => {
                return bad(Kind::Invalid, "a symlink target is empty or has a NUL in it");
            }
            Body::File(file) if file.generation == 0 => return bad(Kind::Bug, "a file without a stored version in the index"),
            Body::File(file) if file.key.as_ref().is_some_and(|k| !is_readable_key(k)) => {
                return bad(Kind::Bug, "an object key that the format does not allow");
            }
            _ => {}
        }
        if self.refs.len() > MAX_REFS {
            return bad(Kind::TooMany, "a file has more names than its entry can hold");
        }
        let plain = matches!(self.body, Body::Link(_)) && (*a != Attributes::default() || !self.xattrs.is_empty());
        let counted = !self.refs.is_empty() && !is_linkable(self.body.code());
        if plain || counted || !self.refs.is_sorted_by(|a, b| a < b) {
            return bad(Kind::Bug, "a link with attributes, or names counted where there can be one only or out of order");
        }
        if self.xattrs.len() > usize::from(u16::MAX) || self.xattrs.iter().any(|(_, v)| v.len() > XATTR_VALUE_MAX) {
            return bad(Kind::NoSpace, "extended attributes are too large");
        }
        if !self.xattrs.iter().all(|(n, _)| is_xattr_name(n)) || !self.xattrs.is_sorted_by(|(a, _), (b, _)| a < b) {
            return bad(Kind::Invalid, "the names of extended attributes are malformed or out of order");
        }
        Ok(())
    }

    /// Appends the entry; [`Entry::check`] must hold.
    pub(super) fn write(&self, w: &mut Writer) {
        let a = &self.attributes;
        let flag = if self.refs.is_empty() { 0 } else { WITH_REFS };
        w.u16(self.name.len() as u16).bytes(&self.name).u8(self.body.code() | flag).u16(a.mode).u32(a.uid).u32(a.gid);
        w.time(a.atime).time(a.mtime).time(a.ctime).time(a.btime);
        self.body.write(w);
        if !self.refs.is_empty() {
            w.u16(self.refs.len() as u16);
            for one in &self.refs {
                w.bytes(&one.0);
            }
        }
        w.u16(self.xattrs.len() as u16);
        for (name, value) in &self.xattrs {
            w.u8(name.len() as u8).bytes(name).u32(value.len() as u32).bytes(value);
        }
    }

    /// Reads an entry.
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Entry> {
        let name_len = usize::from(r.u16()?);
        let name = r.bytes(name_len)?;
        CLASS.unless(is_name(name), "an entry's name is malformed")?;
        let code = r.u8()?;
        let attributes = Attributes {
            mode: r.u16()?,
            uid: r.u32()?,
            gid: r.u32()?,
            atime: r.time()?,
            mtime: r.time()?,
            ctime: r.time()?,
            btime: r.time()?,
        };
        CLASS.unless(attributes.mode <= MODE_BITS, "an entry's mode has unknown bits")?;
        let counted = code & WITH_REFS != 0;
        let body = Body::read(code & !WITH_REFS, r)?;
        CLASS.unless(!counted || is_linkable(body.code()), "an entry of unknown type; a newer smpfs may have written this")?;
        let refs = if counted { read_refs(r)? } else { Vec::new() };
        let count = usize::from(r.u16()?);
        // Not reserved in advance: the count is only a claim until its bytes have been read.
        let mut xattrs: Vec<Xattr> = Vec::new();
        for _ in 0..count {
            let len = usize::from(r.u8()?);
            let name = r.bytes(len)?;
            CLASS.unless(is_xattr_name(name), "the name of an extended attribute is malformed")?;
            CLASS.unless(xattrs.last().is_none_or(|(last, _)| last[..] < *name), "extended attributes are out of order")?;
            let len = r.u32()? as usize;
            CLASS.unless(len <= XATTR_VALUE_MAX, "an extended attribute is too large")?;
            xattrs.push((name.to_vec(), r.bytes(len)?.to_vec()));
        }
        let plain = attributes == Attributes::default() && xattrs.is_empty();
        CLASS.unless(plain || !matches!(body, Body::Link(_)), "a link has attributes of its own")?;
        Ok(Entry { name: name.to_vec(), attributes, body, refs, xattrs })
    }
}

fn is_xattr_name(name: &[u8]) -> bool {
    (1..=255).contains(&name.len()) && !name.contains(&0)
}
