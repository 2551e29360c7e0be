//! The extent map of a layer: which bytes of a file were written, and where they lie. Pure.
//!
//! Extents never overlap; a later insert replaces what it covers. Bytes that no extent covers belong to the layer below.

use std::collections::BTreeMap;

/// Where the bytes of an extent come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<P> {
    /// Zeros.
    Zero,
    /// Bytes of a log record, from `skip` on.
    Record {
        /// The record.
        pos: P,
        /// Bytes of the record's data before the extent begins.
        skip: u32,
    },
}

impl<P: Copy> Source<P> {
    fn advance(self, by: u64) -> Self {
        match self {
            Source::Zero => Source::Zero,
            Source::Record { pos, skip } => Source::Record { pos, skip: skip + by as u32 },
        }
    }
}

/// A piece of a range: an extent's bytes, or `None` where the layer says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<P> {
    /// First byte in the file.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Where the bytes lie.
    pub source: Option<Source<P>>,
}

#[derive(Clone, Copy, Debug)]
struct Extent<P> {
    end: u64,
    source: Source<P>,
}

/// Non-overlapping extents, ordered by offset.
#[derive(Clone, Debug)]
pub struct ExtentMap<P> {
    map: BTreeMap<u64, Extent<P>>,
}

impl<P> Default for ExtentMap<P> {
    fn default() -> Self {
        ExtentMap { map: BTreeMap::new() }
    }
}

impl<P: Copy> ExtentMap<P> {
    /// No extents at all?
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Number of extents (a bound for memory: about 64 bytes each).
    pub fn count(&self) -> usize {
        self.map.len()
    }

    /// Makes `start..end` come from `source`, whatever was there.
    pub fn insert(&mut self, start: u64, end: u64, source: Source<P>) {
        if start >= end {
            return;
        }
        self.remove(start, end);
        self.map.insert(start, Extent { end, source });
    }

    /// Forgets what is known of `start..end`.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some((&s, &e)) = self.map.range(..start).next_back()
            && e.end > start
        {
            self.map.insert(s, Extent { end: start, source: e.source });
            if e.end > end {
                self.map.insert(end, Extent { end: e.end, source: e.source.advance(end - s) });
                return;
            }
        }
        let inside: Vec<u64> = self.map.range(start..end).map(|(&s, _)| s).collect();
        for s in inside {
            if let Some(e) = self.map.remove(&s)
                && e.end > end
            {
                self.map.insert(end, Extent { end: e.end, source: e.source.advance(end - s) });
            }
        }
    }

    /// The pieces of `start..end` in order, gaps included; together they cover it exactly.
    pub fn pieces(&self, start: u64, end: u64) -> Vec<Piece<P>> {
        let mut out = Vec::new();
        if start >= end {
            return out;
        }
        let mut at = start;
        let first = self.map.range(..start).next_back().filter(|(_, e)| e.end > start);
        for (&s, &e) in first.into_iter().chain(self.map.range(start..end)) {
            let from = s.max(start);
            if from > at {
                out.push(Piece { start: at, end: from, source: None });
            }
            let to = e.end.min(end);
            out.push(Piece { start: from, end: to, source: Some(e.source.advance(from - s)) });
            at = to;
        }
        if at < end {
            out.push(Piece { start: at, end, source: None });
        }
        out
    }

    /// The piece that begins at `start`, up to `end` at most: the rest of the extent there, or the gap before the next one.
    pub fn piece_at(&self, start: u64, end: u64) -> Piece<P> {
        match self.map.range(..=start).next_back().filter(|(_, e)| e.end > start) {
            Some((&s, e)) => Piece { start, end: e.end.min(end), source: Some(e.source.advance(start - s)) },
            None => {
                let next = self.map.range(start..).next().map_or(end, |(&s, _)| s.min(end));
                Piece { start, end: next, source: None }
            }
        }
    }

    /// Whether extents cover all of `start..end`.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        self.pieces(start, end).iter().all(|p| p.source.is_some())
    }

    /// Extents in order: start, end, source.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, Source<P>)> + '_ {
        self.map.iter().map(|(&s, e)| (s, e.end, e.source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flatten(m: &ExtentMap<u32>, len: u64) -> Vec<Option<(u32, u32)>> {
        let mut out = vec![];
        for p in m.pieces(0, len) {
            for i in 0..(p.end - p.start) as u32 {
                out.push(match p.source {
                    None => None,
                    Some(Source::Zero) => Some((u32::MAX, 0)),
                    Some(Source::Record { pos, skip }) => Some((pos, skip + i)),
                });
            }
        }
        out
    }

    proptest! {
        #[test]
        fn equals_a_byte_by_byte_model(ops in proptest::collection::vec((0u64..200, 1u64..80, 0u8..3), 1..40)) {
            let mut m = ExtentMap::default();
            let mut model = vec![None; 300];
            for (i, (start, len, what)) in ops.into_iter().enumerate() {
                let end = start + len;
                match what {
                    0 => m.insert(start, end, Source::Record { pos: i as u32, skip: 0 }),
                    1 => m.insert(start, end, Source::Zero),
                    _ => m.remove(start, end),
                }
                for b in start..end {
                    model[b as usize] = match what {
                        0 => Some((i as u32, (b - start) as u32)),
                        1 => Some((u32::MAX, 0)),
                        _ => None,
                    };
                }
                prop_assert_eq!(flatten(&m, 300), model.clone());
                prop_assert_eq!(m.covers(start, end), what != 2);
                let mut walked = vec![];
                while let Some(at) = walked.last().map_or(Some(0), |p: &Piece<u32>| (p.end < 300).then_some(p.end)) {
                    walked.push(m.piece_at(at, 300));
                }
                prop_assert_eq!(walked, m.pieces(0, 300));
            }
        }
    }

    #[test]
    fn pieces_of_an_empty_map_are_one_gap() {
        let m: ExtentMap<u32> = ExtentMap::default();
        assert_eq!(m.pieces(3, 9), vec![Piece { start: 3, end: 9, source: None }]);
        assert!(m.pieces(9, 9).is_empty());
    }
}
