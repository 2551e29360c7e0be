//! What to fetch ahead of a reader: pure arithmetic over the offsets it asked for.
//!
//! A handle may carry several streams at once (a player reads video and audio of one file; `cmp` of two halves). Each stream
//! knows where it should go on and how far was fetched ahead. Its window begins at [`FIRST`] with the second read in a row and
//! doubles each time half of it is used up. The kernel's readahead sends requests from two threads in any order, so a read a
//! little before or after the expected place still belongs to the stream; a jump within the window keeps what was fetched and
//! only slows its growth; a read elsewhere starts a new stream, which fetches nothing ahead until it proves sequential.

use std::ops::Range;

/// The first window, bytes.
pub(super) const FIRST: u64 = 256 << 10;
/// How far from the expected offset a read still counts as sequential: two requests of the kernel's largest readahead.
const SLACK: u64 = 2 << 20;
/// Streams that one handle keeps apart; the one that was idle longest makes room.
const STREAMS: usize = 4;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stream {
    /// The furthest byte asked for.
    next: u64,
    /// Everything before this was asked of the store, or jumped over.
    ahead: u64,
    /// Bytes to keep between `next` and `ahead`; 0 until the stream proves sequential.
    window: u64,
    /// Time of the last read, in reads of the handle.
    seen: u64,
}

/// Follows the reads of one handle.
#[derive(Debug, Default)]
pub(super) struct Pattern {
    streams: [Option<Stream>; STREAMS],
    clock: u64,
}

impl Pattern {
    /// Notes a read of `at` (not empty) in a file of `size` bytes and returns what to fetch ahead, if anything. `max` is the
    /// largest window allowed now, bytes; 0 turns fetching ahead off.
    pub(super) fn read(&mut self, at: Range<u64>, size: u64, max: u64) -> Option<Range<u64>> {
        self.clock += 1;
        let Some(index) = self.find(&at) else {
            self.begin(&at);
            return None;
        };
        let clock = self.clock;
        let s = self.streams[index].as_mut()?;
        s.seen = clock;
        let close = at.start <= s.next.saturating_add(SLACK) && at.start.saturating_add(SLACK) >= s.next;
        let moved = at.end > s.next;
        if !moved {
            return None; // a request that was overtaken, or a look back
        }
        if !close {
            s.window /= 2; // a jump ahead within the window
        }
        s.next = at.end;
        s.ahead = s.ahead.max(s.next);
        let left = s.ahead - s.next;
        if max == 0 || left > s.window / 2 {
            return None;
        }
        s.window = s.window.saturating_mul(2).max(FIRST).min(max);
        let end = s.next.saturating_add(s.window);
        // On a grid of about a third of the window: requests then begin and end where segments do, and so do the parts that the
        // store keeps; a range across two of them costs most servers twice.
        let grid = power_below(s.window / 3);
        let end = if end < size { end / grid * grid } else { size };
        let from = s.ahead;
        if end <= from {
            return None;
        }
        s.ahead = end;
        Some(from..end)
    }

    /// Notes that of the last range only the bytes before `reached` could be asked for: memory is short. The window shrinks and
    /// the rest is asked for again when the reader comes nearer.
    pub(super) fn fell_short(&mut self, wanted: &Range<u64>, reached: u64) {
        for s in self.streams.iter_mut().flatten() {
            if s.ahead == wanted.end && s.next <= wanted.end {
                s.ahead = reached.max(s.next);
                s.window = (s.window / 4).max(FIRST);
            }
        }
    }

    /// The stream that this read goes on with: the one that expects it most exactly.
    fn find(&self, at: &Range<u64>) -> Option<usize> {
        let reach = |s: &Stream| {
            let forward = s.ahead.max(s.next.saturating_add(SLACK));
            let back = s.next.saturating_sub(s.window.max(SLACK));
            (back..=forward).contains(&at.start)
        };
        let mut best: Option<(u64, usize)> = None;
        for (i, s) in self.streams.iter().enumerate() {
            if let Some(s) = s.as_ref().filter(|s| reach(s)) {
                let distance = s.next.abs_diff(at.start);
                if best.is_none_or(|(d, _)| distance < d) {
                    best = Some((distance, i));
                }
            }
        }
        best.map(|(_, i)| i)
    }

    fn begin(&mut self, at: &Range<u64>) {
        let stream = Stream { next: at.end, ahead: at.end, window: 0, seen: self.clock };
        let idle = |s: &Option<Stream>| s.map_or(0, |s| s.seen);
        if let Some(place) = self.streams.iter_mut().min_by_key(|s| idle(s)) {
            *place = Some(stream);
        }
    }
}

/// The largest power of two that is not above `n`; 1 for 0.
fn power_below(n: u64) -> u64 {
    1 << n.max(1).ilog2()
}

/// Cuts `wanted` into pieces for parallel requests: as long as they can be, at least `least`, at most `most` bytes, with
/// ends on multiples of the length of a piece, which is a power of two and (but for a smaller `most`) no less than `grain`.
pub(super) fn pieces(wanted: Range<u64>, least: u64, most: u64, grain: u64) -> Vec<Range<u64>> {
    let len = wanted.end.saturating_sub(wanted.start);
    let step = power_below(len.clamp(least.min(most), most)).max(power_below(grain));
    let mut out = Vec::new();
    let mut at = wanted.start;
    while at < wanted.end {
        let end = (at / step * step).saturating_add(step).min(wanted.end);
        out.push(at..end);
        at = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const K: u64 = 1 << 10;
    const M: u64 = 1 << 20;
    const MAX: u64 = 32 * M;

    /// Reads `step` bytes at a time from `from` to `to` and returns what was fetched ahead.
    fn stream(p: &mut Pattern, from: u64, to: u64, step: u64, size: u64) -> Vec<Range<u64>> {
        (from..to).step_by(step as usize).filter_map(|o| p.read(o..(o + step).min(to), size, MAX)).collect()
    }

    #[test]
    fn a_first_read_fetches_nothing_ahead_and_the_second_does() {
        let mut p = Pattern::default();
        assert_eq!(p.read(0..128 * K, 100 * M, MAX), None);
        assert_eq!(p.read(128 * K..256 * K, 100 * M, MAX), Some(256 * K..512 * K));
    }

    #[test]
    fn the_window_doubles_up_to_the_maximum_and_covers_each_byte_once() {
        let mut p = Pattern::default();
        let ahead = stream(&mut p, 0, 512 * M, 128 * K, 512 * M);
        for two in ahead.windows(2) {
            assert_eq!(two[0].end, two[1].start, "no gap, no overlap");
        }
        let longest = ahead.iter().map(|r| r.end - r.start).max().unwrap();
        assert!((MAX / 2..=MAX).contains(&longest), "{longest}");
        assert_eq!(ahead.last().unwrap().end, 512 * M);
        assert!(ahead.len() < 50, "{}", ahead.len());
    }

    /// A server that keeps parts of 8 MiB answers requests for whole parts at half the cost of others.
    #[test]
    fn a_long_read_asks_for_whole_parts() {
        // The second is what half a gigabyte of memory allows.
        for max in [MAX, 29 * M + 333 * K] {
            let mut p = Pattern::default();
            let reads = (0..1 << 30).step_by(M as usize);
            let ahead = reads.filter_map(|o| p.read(o..o + M, 1 << 30, max));
            let all: Vec<_> = ahead.flat_map(|r| pieces(r, 2 * M, 8 * M, 64 * K)).collect();
            let whole = all.iter().filter(|r| r.start % (8 * M) == 0 && r.end == r.start + 8 * M).count();
            assert!(whole >= 120 && all.len() <= 140, "{whole} of {}", all.len());
        }
    }

    #[test]
    fn a_short_stretch_fetches_a_bounded_surplus() {
        let mut p = Pattern::default();
        let ahead = stream(&mut p, 0, 4 * M, 4 * K, 64 * M);
        let reached = ahead.last().unwrap().end;
        assert!(reached <= 16 * M, "{reached}");
        assert!(ahead.len() <= 8, "{ahead:?}");
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let mut p = Pattern::default();
        for i in 0..200u64 {
            let at = (i * 7_919 % 1_000) * 100 * M;
            assert_eq!(p.read(at..at + 4 * K, 100_000 * M, MAX), None, "{i}");
        }
    }

    #[test]
    fn swapped_neighbours_are_one_stream() {
        let mut p = Pattern::default();
        let mut total = 0;
        for pair in 0..400u64 {
            for o in [pair * 2 + 1, pair * 2] {
                if let Some(r) = p.read(o * 128 * K..(o + 1) * 128 * K, 1 << 30, MAX) {
                    total += r.end - r.start;
                }
            }
        }
        assert_eq!(p.streams.iter().flatten().count(), 1);
        assert!((100 * M..132 * M + MAX).contains(&total), "{total}");
    }

    #[test]
    fn three_interleaved_streams_each_fetch_ahead() {
        let mut p = Pattern::default();
        let mut got = [0u64; 3];
        for step in 0..100u64 {
            for (i, sum) in got.iter_mut().enumerate() {
                let at = i as u64 * (1 << 30) + step * 128 * K;
                *sum += p.read(at..at + 128 * K, 4 << 30, MAX).map_or(0, |r| r.end - r.start);
            }
        }
        assert!(got.iter().all(|&g| g > 12 * M && g < 64 * M), "{got:?}");
    }

    #[test]
    fn a_jump_inside_the_window_asks_for_nothing_twice() {
        let mut p = Pattern::default();
        let before = stream(&mut p, 0, 64 * M, 128 * K, 1 << 30);
        let end = before.last().unwrap().end;
        let jumped = 64 * M + 5 * M;
        let after = stream(&mut p, jumped, jumped + 64 * M, 128 * K, 1 << 30);
        assert_eq!(after.first().unwrap().start, end);
        // Back by a little: what lies there was fetched.
        assert_eq!(p.read(jumped + 60 * M..jumped + 60 * M + 4 * K, 1 << 30, MAX), None);
    }

    #[test]
    fn short_memory_asks_again_for_what_was_left_out() {
        let mut p = Pattern::default();
        let mut at = 0;
        let wanted = loop {
            let wanted = p.read(at..at + 128 * K, 1 << 30, MAX);
            at += 128 * K;
            if let Some(long) = wanted.filter(|r| r.end - r.start > 2 * M) {
                break long;
            }
        };
        p.fell_short(&wanted, wanted.start + M);
        let more = stream(&mut p, at, at + 64 * M, 128 * K, 1 << 30);
        assert_eq!(more.first().unwrap().start, wanted.start + M);
    }

    #[test]
    fn nothing_is_fetched_when_it_is_turned_off() {
        let mut p = Pattern::default();
        for o in 0..100 {
            assert_eq!(p.read(o * K..(o + 1) * K, M, 0), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_fetched_ahead_lies_in_the_file_and_within_the_window(
            reads in prop::collection::vec((0u64..64 * M, 1u64..M), 1..200),
            size in 1u64..64 * M, max in 0u64..16 * M,
        ) {
            let mut p = Pattern::default();
            for (at, len) in reads {
                let at = at.min(size - 1);
                let end = (at + len).min(size);
                if let Some(r) = p.read(at..end, size, max) {
                    prop_assert!(r.start < r.end && r.end <= size);
                    prop_assert!(r.start >= end && r.end - end <= max.max(end - at));
                }
            }
        }

        #[test]
        fn pieces_cover_exactly(start in 0u64..8 * M, len in 0u64..64 * M, grain in prop::sample::select(vec![16 * K, 64 * K, M])) {
            let all = pieces(start..start + len, M, 8 * M, grain);
            let mut at = start;
            for p in &all {
                prop_assert_eq!(p.start, at);
                prop_assert!(p.end > p.start && p.end - p.start <= 8 * M + grain);
                at = p.end;
            }
            prop_assert_eq!(at, start + len);
        }
    }
}
