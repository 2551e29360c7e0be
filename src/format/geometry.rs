//! Where things lie: plaintext offsets, object offsets and lengths (FORMAT.md, section 4). Arithmetic only.
//!
//! ```text
//! HEADER 128 | SEGMENT | ... | SEGMENT | MANIFEST | TRAILER 512
//! SEGMENT = CHUNK[0] .. CHUNK[m-1] || FOOT 16 || LEAF[0] .. LEAF[m-1]
//! ```

use crate::crypto::aead::TAG_LEN;
use crate::crypto::sealed_blob::sealed_len;
use std::ops::Range;

/// Bytes of the header.
pub const HEADER_LEN: usize = 128;
/// Bytes of the trailer.
pub const TRAILER_LEN: usize = 512;
/// Bytes of a segment's foot.
pub const FOOT_LEN: usize = 16;
/// Bytes of a leaf.
pub const LEAF_LEN: usize = 32;
/// Bytes of the manifest's fixed part, in the clear.
pub const MANIFEST_FIXED: usize = 384;
/// Bytes of a segment's record in the manifest, in the clear.
pub const RECORD_LEN: usize = 80;
/// Segments of a file at most: 8 TiB at the default geometry, an 80 MiB manifest.
pub const MAX_SEGMENTS: u64 = 1 << 20;
/// The shortest object: an empty file.
pub const MIN_OBJECT: u64 = (HEADER_LEN + sealed_len(MANIFEST_FIXED) + TRAILER_LEN) as u64;
/// Bytes fetched from the end of an object when it is opened.
pub const TAIL_FETCH: u64 = 64 << 10;
/// Objects up to this length are fetched whole.
pub const WHOLE_FETCH: u64 = 1 << 20;

/// Chunk and segment sizes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    chunk_log2: u8,
    seg_log2: u8,
}

impl Geometry {
    /// Chunks of 64 KiB, segments of 128 chunks.
    pub const DEFAULT: Geometry = Geometry { chunk_log2: 16, seg_log2: 7 };

    /// Chunks of `2^chunk_log2` bytes (14..=20), segments of `2^seg_log2` chunks (4..=10); `None` outside.
    pub const fn new(chunk_log2: u8, seg_log2: u8) -> Option<Geometry> {
        if chunk_log2 >= 14 && chunk_log2 <= 20 && seg_log2 >= 4 && seg_log2 <= 10 {
            Some(Geometry { chunk_log2, seg_log2 })
        } else {
            None
        }
    }

    /// Exponent of the chunk size.
    pub const fn chunk_log2(self) -> u8 {
        self.chunk_log2
    }

    /// Exponent of the number of chunks in a full segment.
    pub const fn seg_log2(self) -> u8 {
        self.seg_log2
    }

    /// C: plaintext bytes of a full chunk.
    pub const fn chunk_size(self) -> u64 {
        1 << self.chunk_log2
    }

    /// Ciphertext and tag of a full chunk.
    pub const fn chunk_stored(self) -> u64 {
        self.chunk_size() + TAG_LEN as u64
    }

    /// S: plaintext bytes of a full segment.
    pub const fn seg_size(self) -> u64 {
        1 << (self.chunk_log2 + self.seg_log2)
    }

    /// Chunks of a full segment.
    pub const fn chunks_per_seg(self) -> u32 {
        1 << self.seg_log2
    }

    /// The largest file.
    pub const fn max_size(self) -> u64 {
        MAX_SEGMENTS << (self.chunk_log2 + self.seg_log2)
    }

    /// n: segments of a file of `size` bytes.
    pub const fn segments(self, size: u64) -> u64 {
        size.div_ceil(self.seg_size())
    }

    /// Plaintext bytes of segment `k` of a file of `size` bytes; 0 beyond its end.
    pub fn seg_plain(self, size: u64, k: u64) -> u64 {
        let start = k.saturating_mul(self.seg_size());
        size.saturating_sub(start).min(self.seg_size())
    }

    /// m: chunks of a segment of `plain` bytes.
    pub const fn seg_chunks(self, plain: u64) -> u32 {
        plain.div_ceil(self.chunk_size()) as u32
    }

    /// Plaintext bytes of chunk `i` of a segment of `plain` bytes; 0 beyond its end.
    pub fn chunk_plain(self, plain: u64, i: u32) -> u64 {
        plain.saturating_sub(u64::from(i) * self.chunk_size()).min(self.chunk_size())
    }

    /// Stored bytes of a segment of `plain` bytes.
    pub const fn seg_stored(self, plain: u64) -> u64 {
        plain + 48 * self.seg_chunks(plain) as u64 + FOOT_LEN as u64
    }

    /// Bytes of the sealed manifest of `n` segments.
    pub const fn manifest_len(self, n: u64) -> u64 {
        sealed_len(MANIFEST_FIXED + RECORD_LEN * n as usize) as u64
    }

    /// Length of the object that holds a file of `size` bytes without holes.
    pub fn object_len(self, size: u64) -> u64 {
        Layout::new(self, size, Vec::new()).object_len()
    }

    /// The size of the file without holes whose object has length `len`; `None` when no size gives that length.
    pub fn size_of(self, len: u64) -> Option<u64> {
        let (mut low, mut high) = (0, self.max_size());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.object_len(middle) < len { low = middle + 1 } else { high = middle }
        }
        (self.object_len(low) == len).then_some(low)
    }

    /// The first bytes to fetch when an object is opened: header and first chunk.
    pub const fn head_fetch(self) -> u64 {
        HEADER_LEN as u64 + self.chunk_stored()
    }

    /// Where plaintext offset `at` lies: segment, chunk in the segment, offset in the chunk.
    pub const fn locate(self, at: u64) -> (u64, u32, u64) {
        let in_seg = at & (self.seg_size() - 1);
        (at >> (self.chunk_log2 + self.seg_log2), (in_seg >> self.chunk_log2) as u32, in_seg & (self.chunk_size() - 1))
    }
}

/// Where the parts of one object lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    geometry: Geometry,
    size: u64,
    /// Holes in ascending order, all below the number of segments.
    holes: Vec<u64>,
}

impl Layout {
    /// The layout of a file of `size` bytes, whose segments `holes` (ascending, each once) are not stored.
    pub fn new(geometry: Geometry, size: u64, holes: Vec<u64>) -> Layout {
        debug_assert!(holes.is_sorted_by(|a, b| a < b) && holes.last().is_none_or(|k| *k < geometry.segments(size)));
        Layout { geometry, size, holes }
    }

    /// Chunk and segment sizes.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Plaintext bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Segments of the file, holes included.
    pub fn segments(&self) -> u64 {
        self.geometry.segments(self.size)
    }

    /// Whether segment `k` is a hole: it reads as zeros and is not stored.
    pub fn is_hole(&self, k: u64) -> bool {
        self.holes.binary_search(&k).is_ok()
    }

    /// Plaintext bytes of segment `k`, hole or not.
    pub fn seg_plain(&self, k: u64) -> u64 {
        self.geometry.seg_plain(self.size, k)
    }

    /// Chunks of segment `k`, hole or not.
    pub fn seg_chunks(&self, k: u64) -> u32 {
        self.geometry.seg_chunks(self.seg_plain(k))
    }

    /// Object offset at which segment `k` begins, or would begin if it were stored. All stored segments before `k` are full.
    fn seg_start(&self, k: u64) -> u64 {
        let holes_before = self.holes.partition_point(|h| *h < k) as u64;
        HEADER_LEN as u64 + (k - holes_before) * self.geometry.seg_stored(self.geometry.seg_size())
    }

    /// Object bytes of segment `k`, foot and leaves included; `None` for a hole or beyond the end.
    pub fn segment(&self, k: u64) -> Option<Range<u64>> {
        if k >= self.segments() || self.is_hole(k) {
            return None;
        }
        let start = self.seg_start(k);
        Some(start..start + self.geometry.seg_stored(self.seg_plain(k)))
    }

    /// Object bytes of the chunks `chunks` of segment `k`, tags included; `None` for a hole or beyond its end.
    pub fn chunks(&self, k: u64, chunks: Range<u32>) -> Option<Range<u64>> {
        let segment = self.segment(k)?;
        let m = self.seg_chunks(k);
        if chunks.start >= chunks.end || chunks.end > m {
            return None;
        }
        let body = self.seg_plain(k) + u64::from(m) * TAG_LEN as u64;
        let at = |i: u32| segment.start + (u64::from(i) * self.geometry.chunk_stored()).min(body);
        Some(at(chunks.start)..at(chunks.end))
    }

    /// Object bytes of foot and leaves of segment `k`; `None` for a hole or beyond the end.
    pub fn foot(&self, k: u64) -> Option<Range<u64>> {
        let segment = self.segment(k)?;
        Some(segment.end - FOOT_LEN as u64 - u64::from(self.seg_chunks(k)) * LEAF_LEN as u64..segment.end)
    }

    /// Object bytes of the manifest.
    pub fn manifest(&self) -> Range<u64> {
        let n = self.segments();
        let full = self.geometry.seg_stored(self.geometry.seg_size());
        let last_missing = match n.checked_sub(1) {
            Some(last) if !self.is_hole(last) => full - self.geometry.seg_stored(self.seg_plain(last)),
            _ => 0,
        };
        let start = HEADER_LEN as u64 + (n - self.holes.len() as u64) * full - last_missing;
        start..start + self.geometry.manifest_len(n)
    }

    /// Length of the object.
    pub fn object_len(&self) -> u64 {
        self.manifest().end + TRAILER_LEN as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_numbers_of_the_document() {
        let g = Geometry::DEFAULT;
        assert_eq!(MIN_OBJECT, 1096);
        assert_eq!(g.object_len(0), 1096);
        assert_eq!((g.chunk_size(), g.seg_size(), g.max_size()), (64 << 10, 8 << 20, 8 << 40));
        let tib = g.object_len(1 << 40) as f64 / (1u64 << 40) as f64;
        assert!((tib - 1.00074).abs() < 0.00002, "{tib}");
        assert_eq!(g.locate((8 << 20) + (64 << 10) * 3 + 5), (1, 3, 5));
        assert_eq!(Geometry::new(13, 7), None);
        assert_eq!(Geometry::new(16, 11), None);
    }

    fn geometry() -> impl Strategy<Value = Geometry> {
        (14u8..=20, 4u8..=10).prop_map(|(c, s)| Geometry::new(c, s).unwrap())
    }

    proptest! {
        #[test]
        fn size_and_object_length_map_one_to_one(g in geometry(), size in 0u64..1 << 44) {
            let size = size % (g.max_size() + 1);
            let len = g.object_len(size);
            prop_assert_eq!(g.size_of(len), Some(size));
            if size < g.max_size() {
                let next = g.object_len(size + 1);
                prop_assert!(next > len);
                for gap in [len + 1, next - 1] {
                    prop_assert_eq!(g.size_of(gap), if gap == len { Some(size) } else if gap == next { Some(size + 1) } else { None });
                }
            }
        }

        /// Parts follow one another without gap or overlap, whatever the holes are.
        #[test]
        fn parts_tile_the_object(
            g in geometry(),
            n in 0u64..12,
            last in 1u64..1 << 30,
            holes in prop::collection::btree_set(0u64..12, 0..6),
        ) {
            let size = if n == 0 { 0 } else { (n - 1) * g.seg_size() + 1 + last % g.seg_size() };
            let holes: Vec<u64> = holes.into_iter().filter(|k| *k < n).collect();
            let layout = Layout::new(g, size, holes.clone());
            prop_assert_eq!(layout.segments(), n);
            let mut at = HEADER_LEN as u64;
            for k in 0..n {
                prop_assert_eq!(layout.is_hole(k), holes.contains(&k));
                let Some(range) = layout.segment(k) else {
                    prop_assert!(holes.contains(&k));
                    prop_assert_eq!(layout.chunks(k, 0..1), None);
                    continue;
                };
                prop_assert_eq!(range.start, at);
                let m = layout.seg_chunks(k);
                for i in 0..m {
                    let chunk = layout.chunks(k, i..i + 1).unwrap();
                    prop_assert_eq!(chunk.start, at);
                    prop_assert_eq!(chunk.end - chunk.start, g.chunk_plain(layout.seg_plain(k), i) + 16);
                    at = chunk.end;
                }
                prop_assert_eq!(layout.chunks(k, 0..m).unwrap(), range.start..at);
                prop_assert_eq!(layout.chunks(k, 0..m + 1), None);
                prop_assert_eq!(layout.foot(k).unwrap(), at..range.end);
                at = range.end;
            }
            prop_assert_eq!(layout.segment(n), None);
            prop_assert_eq!(layout.manifest().start, at);
            prop_assert_eq!(layout.object_len(), layout.manifest().end + 512);
        }
    }
}
