//! Memory for keys: locked, absent from core dumps, wiped when freed. The one file of smpfs with `unsafe` in it.
//!
//! A [`SecretKey`] is a slot of 32 bytes in an arena of small mappings. A mapping is, in this order, what the kernel grants:
//!
//! 1. `memfd_secret(2)`: locked, and unmapped from the kernel's own address space (Linux 5.14, on by default since 6.5).
//!    While it is in use the machine cannot hibernate, which is intended: hibernation writes memory to disk.
//! 2. anonymous memory with `mlock(2)`: never in swap;
//! 3. anonymous memory alone, when `RLIMIT_MEMLOCK` refuses the lock. [`report`] tells, so that a warning can be logged.
//!
//! All of them carry `MADV_DONTDUMP` and `MADV_DONTFORK`: a child process has no copy, and must not touch keys before `exec`.
//! The arena is bounded; keys beyond the bound live in ordinary heap memory, are wiped all the same, and are counted.

use parking_lot::Mutex;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

const KEY_LEN: usize = 32;
/// Bytes of one mapping: a multiple of every page size in use (4, 16 and 64 KiB).
const SLAB: usize = 64 << 10;
const SLOTS: usize = SLAB / KEY_LEN;
/// Mappings at most: 4 MiB, half of the usual RLIMIT_MEMLOCK of 8 MiB, room for 131 072 keys.
const MAX_SLABS: usize = 64;

/// How the memory of keys is protected in this process, as far as keys have been made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes mapped with `memfd_secret`.
    pub secret: usize,
    /// Bytes mapped and locked with `mlock`.
    pub locked: usize,
    /// Bytes mapped that the kernel refused to lock: they may reach swap.
    pub unlocked: usize,
    /// Keys made in ordinary heap memory because the arena was full, since the process began.
    pub on_heap: u64,
}

impl Report {
    /// Whether every key so far is in locked memory.
    pub fn all_locked(&self) -> bool {
        self.unlocked == 0 && self.on_heap == 0
    }
}

/// What protects the keys of this process.
pub fn report() -> Report {
    ARENA.lock().report
}

static ARENA: Mutex<Arena> =
    Mutex::new(Arena { free: Vec::new(), slabs: 0, report: Report { secret: 0, locked: 0, unlocked: 0, on_heap: 0 } });

struct Arena {
    /// Free slots, all zeros.
    free: Vec<Slot>,
    slabs: usize,
    report: Report,
}

/// The address of 32 bytes in a mapping that is never unmapped.
struct Slot(NonNull<[u8; KEY_LEN]>);

// SAFETY: a slot is owned by the free list or by one `SecretKey`, and points into memory that lives as long as the process and
// belongs to no thread.
unsafe impl Send for Slot {}
// SAFETY: a shared slot is only read; writing needs `&mut`.
unsafe impl Sync for Slot {}

impl Slot {
    fn get(&self) -> &[u8; KEY_LEN] {
        // SAFETY: the pointer is aligned (an array of bytes), points into a live mapping, was initialised to zeros by the
        // kernel, and nobody else writes to it while this slot is borrowed.
        unsafe { self.0.as_ref() }
    }

    fn get_mut(&mut self) -> &mut [u8; KEY_LEN] {
        // SAFETY: as in `get`; the slot is borrowed exclusively.
        unsafe { self.0.as_mut() }
    }
}

impl Arena {
    fn take(&mut self) -> Option<Slot> {
        if self.free.is_empty() && self.slabs < MAX_SLABS {
            self.grow();
        }
        let slot = self.free.pop();
        if slot.is_none() {
            self.report.on_heap += 1;
        }
        slot
    }

    fn grow(&mut self) {
        let Some((base, protection)) = map_slab() else { return };
        self.slabs += 1;
        match protection {
            Protection::Secret => self.report.secret += SLAB,
            Protection::Locked => self.report.locked += SLAB,
            Protection::Unlocked => self.report.unlocked += SLAB,
        }
        self.free.reserve_exact(SLOTS * self.slabs);
        for i in (0..SLOTS).rev() {
            // SAFETY: `i * KEY_LEN + KEY_LEN <= SLAB`, so the address lies inside the mapping.
            let at = unsafe { base.cast::<[u8; KEY_LEN]>().add(i) };
            self.free.push(Slot(at));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protection {
    Secret,
    Locked,
    Unlocked,
}

fn map_slab() -> Option<(NonNull<u8>, Protection)> {
    let (base, protection) = match map_secret() {
        Some(base) => (base, Protection::Secret),
        None => map_anonymous()?,
    };
    for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
        // SAFETY: the range is the mapping made above; neither advice changes its content. A refusal leaves the mapping usable.
        unsafe { libc::madvise(base.as_ptr().cast(), SLAB, advice) };
    }
    Some((base, protection))
}

/// Maps memory that the kernel takes out of its own address space.
fn map_secret() -> Option<NonNull<u8>> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    // SAFETY: a system call with one integer argument; it returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the descriptor is new, so nobody else owns it. The mapping outlives it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the descriptor is open.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), SLAB as libc::off_t) } != 0 {
        return None;
    }
    map(libc::MAP_SHARED, fd.as_raw_fd())
}

fn map_anonymous() -> Option<(NonNull<u8>, Protection)> {
    let base = map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    // SAFETY: the range is the mapping just made.
    let locked = unsafe { libc::mlock(base.as_ptr().cast(), SLAB) } == 0;
    Some((base, if locked { Protection::Locked } else { Protection::Unlocked }))
}

fn map(flags: i32, fd: i32) -> Option<NonNull<u8>> {
    // SAFETY: no address is asked for, so no existing mapping is touched; the kernel checks the rest.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), SLAB, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast()) }
}

enum Place {
    Slot(Slot),
    Heap(Box<[u8; KEY_LEN]>),
}

/// A 32-byte key in protected memory. Wiped when the last clone is dropped, compared in constant time, never printed. A clone
/// shares the slot.
#[derive(Clone)]
pub struct SecretKey(Arc<Place>);

impl SecretKey {
    /// Copies `key`; wiping the original is the caller's business.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        Self::from_fn(|out| out.copy_from_slice(key))
    }

    /// Lets `fill` write the key in place, so that no copy of it exists elsewhere. The buffer begins as zeros.
    pub fn from_fn(fill: impl FnOnce(&mut [u8; KEY_LEN])) -> Self {
        let slot = ARENA.lock().take();
        let mut place = match slot {
            Some(slot) => Place::Slot(slot),
            None => Place::Heap(Box::new([0; KEY_LEN])),
        };
        fill(place.bytes_mut());
        SecretKey(Arc::new(place))
    }

    /// The key itself. Do not copy it into memory that is not wiped.
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        match &*self.0 {
            Place::Slot(slot) => slot.get(),
            Place::Heap(bytes) => bytes,
        }
    }
}

impl Place {
    fn bytes_mut(&mut self) -> &mut [u8; KEY_LEN] {
        match self {
            Place::Slot(slot) => slot.get_mut(),
            Place::Heap(bytes) => bytes,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        if let Place::Slot(slot) = self {
            // Room was reserved when the slot was made: this push never allocates.
            ARENA.lock().free.push(Slot(slot.0));
        }
    }
}

impl PartialEq for SecretKey {
    fn eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Eq for SecretKey {}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The `VmFlags` of the mapping that holds `address`.
    fn vm_flags(address: usize) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split(' ').next().unwrap().split_once('-');
            if let Some((Ok(from), Ok(to))) = range.map(|(a, b)| (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16))) {
                inside = (from..to).contains(&address);
            }
            if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        panic!("no mapping at {address:x}");
    }

    fn assert_protected(address: usize, locked: bool) {
        let flags = vm_flags(address);
        let has = |f: &str| flags.iter().any(|g| g == f);
        assert!(has("dd"), "in core dumps: {flags:?}");
        assert!(has("dc"), "copied by fork: {flags:?}");
        assert_eq!(has("lo"), locked, "{flags:?}");
    }

    #[test]
    fn keys_lie_in_locked_memory_outside_core_dumps() {
        let key = SecretKey::new(&[0x5a; 32]);
        let locked = report().unlocked == 0;
        if !locked {
            eprintln!("skipped in part: the kernel refuses to lock memory here ({:?})", report());
        }
        assert_protected(key.expose().as_ptr() as usize, locked);
    }

    #[test]
    fn both_kinds_of_mapping_are_protected() {
        let (anonymous, protection) = map_anonymous().unwrap();
        // SAFETY: the mapping was just made and is `SLAB` long.
        unsafe { libc::madvise(anonymous.as_ptr().cast(), SLAB, libc::MADV_DONTDUMP) };
        // SAFETY: as above.
        unsafe { libc::madvise(anonymous.as_ptr().cast(), SLAB, libc::MADV_DONTFORK) };
        assert_protected(anonymous.as_ptr() as usize, protection == Protection::Locked);
        match map_secret() {
            Some(at) => assert!(vm_flags(at.as_ptr() as usize).iter().any(|f| f == "lo")),
            None => eprintln!("skipped: this kernel has no memfd_secret"),
        }
    }

    #[test]
    fn drop_wipes_and_the_slot_is_used_again() {
        let mut arena = Arena { free: Vec::new(), slabs: 0, report: Report::default() };
        let mut slot = arena.take().unwrap();
        *slot.get_mut() = [7; 32];
        let at = slot.0;
        let key = SecretKey(Arc::new(Place::Slot(slot)));
        assert_eq!(key.expose(), &[7; 32]);
        drop(key);
        // SAFETY: the slot went to the process-wide free list; its mapping is never unmapped. Another test may have taken it
        // meanwhile, so only "not the old key" can be asserted.
        assert_ne!(unsafe { at.as_ref() }, &[7; 32]);
    }

    #[test]
    fn a_full_arena_falls_back_to_the_heap_and_says_so() {
        let mut arena = Arena { free: Vec::new(), slabs: MAX_SLABS, report: Report::default() };
        assert!(arena.take().is_none());
        assert_eq!(arena.report.on_heap, 1);
        assert!(!arena.report.all_locked());
        let heap = SecretKey(Arc::new(Place::Heap(Box::new([1; 32]))));
        assert_eq!(heap, SecretKey::new(&[1; 32]));
    }

    #[test]
    fn equality_debug_and_clone() {
        let key = SecretKey::from_fn(|k| k[31] = 9);
        let mut expected = [0; 32];
        expected[31] = 9;
        assert_eq!(key.expose(), &expected);
        assert_eq!(key.clone(), key);
        assert_ne!(key, SecretKey::new(&[0; 32]));
        assert_eq!(format!("{key:?}"), "SecretKey(..)");
    }

    #[test]
    fn many_keys_from_many_threads_keep_apart() {
        std::thread::scope(|s| {
            for t in 0..4u8 {
                s.spawn(move || {
                    let keys: Vec<SecretKey> =
                        (0..3000u32).map(|i| SecretKey::from_fn(|k| k[..5].copy_from_slice(&key_tag(t, i)))).collect();
                    for (i, key) in keys.iter().enumerate() {
                        assert_eq!(key.expose()[..5], key_tag(t, i as u32));
                    }
                });
            }
        });
    }

    fn key_tag(thread: u8, i: u32) -> [u8; 5] {
        let i = i.to_be_bytes();
        [thread, i[0], i[1], i[2], i[3]]
    }
}
