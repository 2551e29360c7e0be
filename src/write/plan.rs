//! What a new version of a file is made of: which segments are sealed anew, kept or holes, and which parts upload them. Pure.

use crate::format::geometry::{Geometry, HEADER_LEN};
use crate::store::Capability;
use std::ops::Range;

/// What becomes of a segment in the next version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegPlan {
    /// Sealed anew from spool, old version and zeros.
    Fresh,
    /// Its bytes and record are those of the old version.
    Keep,
    /// Zeros: no bytes in the object.
    Hole,
}

/// The old version, as far as the plan needs it.
#[derive(Clone, Copy, Debug)]
pub struct Old {
    /// Its size in bytes.
    pub size: u64,
    /// Bytes from here on must not show through (the file was cut shorter meanwhile).
    pub visible: u64,
}

/// How the layers above the old version touch a range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Not at all.
    None,
    /// With zeros only.
    Zeroed {
        /// The first byte that it leaves alone, if there is one.
        gap: Option<u64>,
    },
    /// With data.
    Data,
}

/// Plans the segments of a file of `size` bytes with segments of `seg` bytes.
///
/// `old_hole(k)` tells whether segment `k` of the old version is a hole; `touch(range)` how the layers touch a range.
pub fn segments(
    size: u64,
    seg: u64,
    old: Old,
    old_hole: impl Fn(u64) -> bool,
    touch: impl Fn(Range<u64>) -> Touch,
) -> Vec<SegPlan> {
    let n = size.div_ceil(seg);
    let visible = old.visible.min(old.size);
    (0..n)
        .map(|k| {
            let (start, end) = (k * seg, ((k + 1) * seg).min(size));
            let (first, zeroed) = match touch(start..end) {
                Touch::Data => return SegPlan::Fresh,
                Touch::Zeroed { gap: None } => return SegPlan::Hole,
                Touch::Zeroed { gap: Some(at) } => (at, true),
                Touch::None => (start, false),
            };
            // From the first byte on that the layers say nothing of, nothing shows through but zeros.
            if first >= visible || old_hole(k) {
                return SegPlan::Hole;
            }
            if zeroed {
                return SegPlan::Fresh;
            }
            let old_end = ((k + 1) * seg).min(old.size);
            if visible >= old_end && old_end == end { SegPlan::Keep } else { SegPlan::Fresh }
        })
        .collect()
}

/// How many segments the parts of a multipart upload hold: what the store takes as a part, in segments of this volume.
#[derive(Clone, Copy, Debug)]
pub struct PartLimits {
    /// Most parts of an upload.
    max_parts: u32,
    /// Segments of an early part: the fewest that are large enough. One at the default geometry.
    early: u64,
    /// Segments of a late part.
    late: u64,
    /// Whether the store takes a part as large as an early one.
    possible: bool,
}

/// Up to this part number parts are as small as they may be; later ones hold [`GROUP`] times as many segments.
const SINGLE_PARTS: u64 = 2000;
/// A late part is so many times an early one: 64 MiB at the default geometry.
const GROUP: u64 = 8;
/// What the first part has before its segments.
const FIRST: u64 = HEADER_LEN as u64;

impl PartLimits {
    /// The limits of a store for a volume.
    pub fn new(caps: &Capability, geometry: Geometry) -> PartLimits {
        let segment = geometry.seg_stored(geometry.seg_size());
        let early = caps.min_part.div_ceil(segment).max(1);
        let possible = early.saturating_mul(segment).saturating_add(FIRST) <= caps.max_part;
        let late = (early * GROUP).min(caps.max_part / segment).max(early);
        PartLimits { max_parts: caps.max_parts, early, late, possible }
    }

    fn tiered(self) -> bool {
        self.max_parts <= 100_000
    }

    /// The stored segments (counted from 0) that part `number` (from 1) holds.
    ///
    /// It depends on the number alone, so that a writer can upload parts before it knows how long the file will be.
    pub fn body_part(self, number: u32) -> Range<u64> {
        let p = u64::from(number) - 1;
        if !self.tiered() || p < SINGLE_PARTS {
            return p * self.early..(p + 1) * self.early;
        }
        let start = SINGLE_PARTS * self.early + (p - SINGLE_PARTS) * self.late;
        start..start + self.late
    }

    /// How many parts hold `stored` segments (manifest and trailer take one more).
    pub fn body_parts(self, stored: u64) -> u64 {
        if !self.tiered() || stored <= SINGLE_PARTS * self.early {
            return stored.div_ceil(self.early);
        }
        SINGLE_PARTS + (stored - SINGLE_PARTS * self.early).div_ceil(self.late)
    }

    /// Segments that the largest object stores.
    pub fn max_stored(self) -> u64 {
        let body = u64::from(self.max_parts).saturating_sub(1);
        match self.tiered() && body > SINGLE_PARTS {
            true => SINGLE_PARTS * self.early + (body - SINGLE_PARTS) * self.late,
            false => body * self.early,
        }
    }

    /// Whether an object of `stored` segments can be uploaded in parts.
    pub fn fits(self, stored: u64) -> bool {
        self.possible && self.body_parts(stored) < u64::from(self.max_parts)
    }
}

#[cfg(test)]
// Lists of one range are meant as such.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 100;

    fn plan(size: u64, old: u64, visible: u64, touched: &[Range<u64>]) -> Vec<SegPlan> {
        segments(
            size,
            S,
            Old { size: old, visible },
            |_| false,
            |r| {
                if touched.iter().any(|t| t.start < r.end && r.start < t.end) { Touch::Data } else { Touch::None }
            },
        )
    }

    #[test]
    fn untouched_segments_are_kept() {
        use SegPlan::*;
        assert_eq!(plan(350, 350, u64::MAX, &[]), [Keep, Keep, Keep, Keep]);
        assert_eq!(plan(350, 350, u64::MAX, &[120..130]), [Keep, Fresh, Keep, Keep]);
    }

    #[test]
    fn growing_rewrites_the_short_last_segment_and_leaves_holes() {
        use SegPlan::*;
        assert_eq!(plan(550, 250, u64::MAX, &[520..550]), [Keep, Keep, Fresh, Hole, Hole, Fresh]);
        assert_eq!(plan(300, 200, u64::MAX, &[]), [Keep, Keep, Hole]);
    }

    #[test]
    fn cut_and_grown_again_hides_the_old_bytes() {
        use SegPlan::*;
        assert_eq!(plan(350, 350, 150, &[]), [Keep, Fresh, Hole, Hole]);
        assert_eq!(plan(150, 350, 150, &[]), [Keep, Fresh]);
        assert_eq!(plan(0, 350, 0, &[]), []);
    }

    #[test]
    fn zeros_make_holes_where_nothing_else_shows_through() {
        use SegPlan::*;
        let zeroed = |size, old, visible, holes: &[u64], zeros: Range<u64>| {
            let touch = |r: Range<u64>| match zeros.start < r.end && r.start < zeros.end {
                false => Touch::None,
                true if zeros.start > r.start => Touch::Zeroed { gap: Some(r.start) },
                true => Touch::Zeroed { gap: (zeros.end < r.end).then_some(zeros.end) },
            };
            segments(size, S, Old { size: old, visible }, |k| holes.contains(&k), touch)
        };
        assert_eq!(zeroed(350, 350, u64::MAX, &[], 100..200), [Keep, Hole, Keep, Keep]);
        assert_eq!(zeroed(350, 350, u64::MAX, &[], 50..350), [Fresh, Hole, Hole, Hole]);
        assert_eq!(zeroed(350, 350, u64::MAX, &[], 0..150), [Hole, Fresh, Keep, Keep]);
        // The rest of the segment is a hole already, or hidden by a truncation, or behind the old end.
        assert_eq!(zeroed(350, 350, u64::MAX, &[1], 120..130), [Keep, Hole, Keep, Keep]);
        assert_eq!(zeroed(350, 350, 150, &[], 100..150), [Keep, Hole, Hole, Hole]);
        assert_eq!(zeroed(300, 250, u64::MAX, &[], 200..250), [Keep, Keep, Hole]);
        assert_eq!(zeroed(300, 250, u64::MAX, &[], 200..240), [Keep, Keep, Fresh]);
    }

    /// As S3 has it, and as a store without limits.
    fn caps(max_parts: u32) -> Capability {
        let base = crate::store::memory::CAPS;
        match max_parts {
            10_000 => Capability { min_part: 5 << 20, max_part: 5 << 30, max_parts, ..base },
            _ => Capability { min_part: 1, max_part: u64::MAX, max_parts, ..base },
        }
    }

    #[test]
    fn parts_of_the_default_geometry_hold_one_segment_and_from_the_2001st_on_eight() {
        let l = PartLimits::new(&caps(10_000), Geometry::DEFAULT);
        assert_eq!([l.body_part(1), l.body_part(2), l.body_part(2000)], [0..1, 1..2, 1999..2000]);
        assert_eq!([l.body_part(2001), l.body_part(2002), l.body_part(9999)], [2000..2008, 2008..2016, 65_984..65_992]);
        assert!(l.fits(65_992) && !l.fits(65_993));
        let free = PartLimits::new(&caps(10_000_000), Geometry::DEFAULT);
        assert_eq!(free.body_part(5000), 4999..5000);
    }

    #[test]
    fn every_geometry_makes_parts_that_the_store_takes() {
        for (chunk, seg) in (14..=20).flat_map(|c| (4..=10).map(move |s| (c, s))) {
            let g = Geometry::new(chunk, seg).unwrap();
            let c = caps(10_000);
            let l = PartLimits::new(&c, g);
            let len = |r: Range<u64>| (r.end - r.start) * g.seg_stored(g.seg_size());
            for number in [1, 2, 2000, 2001, 9999] {
                let bytes = len(l.body_part(number));
                assert!((c.min_part..=c.max_part - FIRST).contains(&bytes), "{chunk} {seg} {number}: {bytes}");
            }
            assert!(l.fits(2000), "{chunk} {seg}");
        }
        // A store whose parts are smaller than a segment of this volume.
        let tiny = Capability { max_part: 1 << 20, ..caps(10_000) };
        assert!(!PartLimits::new(&tiny, Geometry::DEFAULT).fits(1));
    }

    proptest! {
        #[test]
        fn parts_cover_all_segments_once(
            stored in 0u64..60_000,
            max in prop_oneof![Just(10_000u32), Just(10_000_000u32)],
            chunk in 14u8..=20,
            seg in 4u8..=10,
        ) {
            let l = PartLimits::new(&caps(max), Geometry::new(chunk, seg).unwrap());
            let n = l.body_parts(stored);
            let mut at = 0;
            for p in 1..=n {
                let r = l.body_part(p as u32);
                prop_assert_eq!(r.start, at);
                at = r.end;
            }
            prop_assert!(at >= stored);
            if n > 0 {
                prop_assert!(l.body_part(n as u32).start < stored);
            }
            // Where late parts are less than eight times an early one, fewer segments fit.
            prop_assert!(l.fits(stored) || (max == 10_000 && l.late < GROUP));
            prop_assert!(!l.possible || l.fits(l.max_stored()) && !l.fits(l.max_stored() + 1));
        }
    }
}
