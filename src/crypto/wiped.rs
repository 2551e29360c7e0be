//! Buffers of plaintext that are wiped when they go.
//!
//! `Zeroizing<Vec<u8>>` wipes a vector byte by byte, each store on its own: at chunk and segment sizes that costs as much as the
//! cipher. A slice is wiped at the speed of memory, behind the same barrier, so this type wipes as a slice.

use std::fmt;
use std::ops::{Deref, DerefMut};
use zeroize::Zeroize;

/// A byte vector that is wiped, spare capacity included, when it is dropped. Growing it beyond its capacity leaves an unwiped
/// copy behind: make room first.
#[derive(Default)]
pub struct Wiped(Vec<u8>);

impl Wiped {
    /// Takes a vector over.
    pub fn new(bytes: Vec<u8>) -> Wiped {
        Wiped(bytes)
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Wiped {
        Wiped(vec![0; len])
    }

    /// The vector, which nobody wipes from here on: for buffers that hold nothing secret any more.
    pub fn take(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl Deref for Wiped {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Wiped {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

/// Its length, and never what it holds.
impl fmt::Debug for Wiped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wiped({} bytes)", self.0.len())
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Overwrites the whole allocation of `bytes` with zeros, and empties it.
pub fn wipe(bytes: &mut Vec<u8>) {
    // What lies behind the length may hold what was truncated; within the capacity this moves nothing.
    bytes.spare_capacity_mut().zeroize();
    bytes.as_mut_slice().zeroize();
    bytes.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wiping_empties_a_vector_and_moves_nothing() {
        let mut bytes = vec![0xA5; 1000];
        bytes.truncate(300);
        let (at, capacity) = (bytes.as_ptr(), bytes.capacity());
        wipe(&mut bytes);
        assert!(bytes.is_empty() && bytes.as_ptr() == at && bytes.capacity() == capacity);
        let zeros = Wiped::zeros(5);
        assert_eq!(**zeros, [0; 5]);
        assert_eq!(format!("{zeros:?}"), "Wiped(5 bytes)");
    }
}
