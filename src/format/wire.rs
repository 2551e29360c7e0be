//! Reading and writing big-endian fields. The reader never panics, never reads beyond its input, and allocates nothing.

use super::failure::Failure;
use crate::error::Result;
use crate::types::Time;
use zeroize::Zeroizing;

/// Reads fields from the front of a byte slice; running short is a failure of the class given at the start.
pub struct Reader<'a> {
    left: &'a [u8],
    class: Failure,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`; malformed input is `class`.
    pub fn new(bytes: &'a [u8], class: Failure) -> Self {
        Reader { left: bytes, class }
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((head, rest)) = self.left.split_at_checked(n) else {
            return self.class.fail("the record is cut short");
        };
        self.left = rest;
        Ok(head)
    }

    /// The next `N` bytes by reference.
    pub fn slice<const N: usize>(&mut self) -> Result<&'a [u8; N]> {
        let Some((head, rest)) = self.left.split_first_chunk() else {
            return self.class.fail("the record is cut short");
        };
        self.left = rest;
        Ok(head)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.slice().copied()
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// Seconds and nanoseconds; the latter below 10^9.
    pub fn time(&mut self) -> Result<Time> {
        let (sec, nsec) = (self.i64()?, self.u32()?);
        self.class.unless(nsec < 1_000_000_000, "a time has too many nanoseconds")?;
        Ok(Time { sec, nsec })
    }

    /// `n` reserved bytes, all zero.
    pub fn zeros(&mut self, n: usize) -> Result<()> {
        let class = self.class;
        class.unless(self.bytes(n)?.iter().all(|b| *b == 0), "reserved bytes are in use")
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.left.len()
    }

    /// Refuses bytes after the last field.
    pub fn finish(self) -> Result<()> {
        self.class.unless(self.left.is_empty(), "there are bytes after the end")
    }
}

/// Writes fields to the end of a buffer that is wiped on drop, and so is every smaller one that it grew out of.
///
/// Give the final length at the start where it is known: growing copies the buffer.
pub struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    /// An empty buffer with room for `len` bytes.
    pub fn with_capacity(len: usize) -> Self {
        Writer(Zeroizing::new(Vec::with_capacity(len)))
    }

    /// Makes room for `more` bytes. A vector that grows by itself leaves its old allocation behind as it was, keys and all.
    fn make_room(&mut self, more: usize) {
        if self.0.capacity() - self.0.len() < more {
            self.grow(more);
        }
    }

    #[cold]
    fn grow(&mut self, more: usize) {
        let wanted = (self.0.len() + more).max(self.0.capacity() * 2);
        let mut larger = Zeroizing::new(Vec::with_capacity(wanted));
        larger.extend_from_slice(&self.0);
        // The old one is dropped here, and wiped by that.
        self.0 = larger;
    }

    /// Appends bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.make_room(bytes.len());
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends one byte.
    pub fn u8(&mut self, n: u8) -> &mut Self {
        self.bytes(&[n])
    }

    /// Appends two bytes.
    pub fn u16(&mut self, n: u16) -> &mut Self {
        self.bytes(&n.to_be_bytes())
    }

    /// Appends four bytes.
    pub fn u32(&mut self, n: u32) -> &mut Self {
        self.bytes(&n.to_be_bytes())
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, n: u64) -> &mut Self {
        self.bytes(&n.to_be_bytes())
    }

    /// Appends eight bytes, signed.
    pub fn i64(&mut self, n: i64) -> &mut Self {
        self.bytes(&n.to_be_bytes())
    }

    /// Appends seconds and nanoseconds.
    pub fn time(&mut self, t: Time) -> &mut Self {
        self.i64(t.sec).u32(t.nsec)
    }

    /// Appends zeros until the buffer is `len` bytes long.
    pub fn zeros_to(&mut self, len: usize) -> &mut Self {
        if self.0.len() < len {
            self.make_room(len - self.0.len());
            self.0.resize(len, 0);
        }
        self
    }

    /// Bytes so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The finished buffer, wiped when dropped.
    pub fn secret(self) -> Zeroizing<Vec<u8>> {
        self.0
    }

    /// The finished buffer, holding nothing secret.
    pub fn public(mut self) -> Vec<u8> {
        std::mem::take(&mut *self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back() {
        let t = Time { sec: -2, nsec: 999_999_999 };
        let mut w = Writer::with_capacity(64);
        w.u8(1).u16(2).u32(3).u64(4).i64(-5).time(t).bytes(b"ab").zeros_to(40);
        let bytes = w.public();
        let mut r = Reader::new(&bytes, Failure::Index);
        assert_eq!((r.u8().unwrap(), r.u16().unwrap(), r.u32().unwrap()), (1, 2, 3));
        assert_eq!((r.u64().unwrap(), r.i64().unwrap(), r.time().unwrap()), (4, -5, t));
        assert_eq!(r.bytes(2).unwrap(), b"ab");
        r.zeros(3).unwrap();
        assert_eq!(r.left(), 0);
        assert_eq!(Failure::of(&r.u8().unwrap_err()), Some(Failure::Index));
        r.finish().unwrap();
    }

    #[test]
    fn malformed_fields_are_refused() {
        assert!(Reader::new(&[0, 0, 1], Failure::Log).zeros(3).is_err());
        assert!(Reader::new(&[0xff; 12], Failure::Log).time().is_err());
        assert!(Reader::new(&[0], Failure::Log).finish().is_err());
        assert!(Reader::new(&[0; 3], Failure::Log).bytes(usize::MAX).is_err());
    }

    #[test]
    fn growing_takes_a_new_allocation_while_the_old_one_is_still_there_to_be_wiped() {
        let mut w = Writer::with_capacity(8);
        let mut written = Vec::new();
        for n in 0..2000_usize {
            let (at, room) = (w.as_slice().as_ptr(), w.0.capacity() - w.0.len());
            let piece = vec![n as u8; n % 7 + 1];
            match n % 2 {
                0 => w.bytes(&piece),
                _ => w.zeros_to(written.len() + piece.len()),
            };
            written.extend(piece.iter().map(|b| if n % 2 == 0 { *b } else { 0 }));
            // Two allocations that exist at one time differ; a vector that grows by itself may stay, or be moved by the allocator.
            assert_eq!(w.as_slice().as_ptr() == at, room >= piece.len(), "{n}");
        }
        assert_eq!(w.as_slice(), written);
    }
}
