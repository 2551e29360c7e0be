//! What a power loss leaves of bytes and names that were never synced.

use super::{FileOp, Inode, Node, State, put};
use crate::disk::split;
use std::collections::BTreeSet;
use std::ops::Range;

/// Unit in which a drive loses or keeps data.
const SECTOR: usize = 512;

impl Inode {
    /// The part of every pending write that lies in `range` becomes durable; the rest stays pending.
    pub(super) fn sync_range(&mut self, range: Range<u64>) {
        let pending = std::mem::take(&mut self.pending);
        for op in pending {
            let FileOp::Write(at, data) = op else {
                self.pending.push(op);
                continue;
            };
            let cut = |to: u64| to.saturating_sub(at).min(data.len() as u64) as usize;
            let (from, to) = (cut(range.start), cut(range.end));
            if from < to {
                put(&mut self.durable, at + from as u64, &data[from..to]);
            }
            for (from, to) in [(0, from.min(to)), (to.max(from), data.len())] {
                if from < to {
                    self.pending.push(FileOp::Write(at + from as u64, data[from..to].to_vec()));
                }
            }
        }
    }
}

impl State {
    /// SplitMix64 (Steele, Lea, Flood 2014): good enough to choose what a crash leaves.
    fn random(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below.max(1) as u64) as usize
    }

    pub(super) fn lose_power(&mut self) {
        // Metadata is journalled: a prefix of the changes survives, in order.
        let kept = self.random(self.name_ops.len() + 1);
        for op in std::mem::take(&mut self.name_ops).iter().take(kept) {
            op.apply(&mut self.durable);
        }
        // A file whose directory was lost is lost with it.
        let names = self.durable.clone();
        self.durable.retain(|path, _| split(path).0.is_empty() || names.contains_key(split(path).0));
        self.live = self.durable.clone();
        let reachable: BTreeSet<u64> =
            self.live.values().filter_map(|n| if let Node::File(i) = n { Some(*i) } else { None }).collect();
        self.inodes.retain(|i, _| reachable.contains(i));
        for id in reachable {
            self.lose_writes(id);
        }
    }

    fn lose_writes(&mut self, id: u64) {
        let Some(inode) = self.inodes.get_mut(&id) else { return };
        let (mut image, pending) = (std::mem::take(&mut inode.durable), std::mem::take(&mut inode.pending));
        match self.random(4) {
            0 => {}
            1 => pending.iter().for_each(|op| op.apply(&mut image)),
            2 => self.keep_prefix(&mut image, &pending),
            _ => self.keep_sectors(&mut image, &pending),
        }
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.live.clone_from(&image);
            inode.durable = image;
        }
    }

    /// All writes up to one, which is torn at any byte.
    fn keep_prefix(&mut self, image: &mut Vec<u8>, pending: &[FileOp]) {
        let kept = self.random(pending.len() + 1);
        pending[..kept].iter().for_each(|op| op.apply(image));
        if let Some(FileOp::Write(offset, data)) = pending.get(kept) {
            let torn = self.random(data.len() + 1);
            put(image, *offset, &data[..torn]);
        }
    }

    /// Any subset of sectors; the length is there and the contents are not, as on a filesystem that journals metadata only.
    fn keep_sectors(&mut self, image: &mut Vec<u8>, pending: &[FileOp]) {
        for op in pending {
            let FileOp::Write(offset, data) = op else {
                op.apply(image);
                continue;
            };
            let mut at = *offset;
            let mut rest = &data[..];
            while !rest.is_empty() {
                let part = rest.len().min(SECTOR - (at as usize % SECTOR));
                if self.random(2) == 0 {
                    put(image, at, &rest[..part]);
                }
                at += part as u64;
                rest = &rest[part..];
            }
        }
    }
}
