//! What the kernel should forget, on its way from a filesystem to whoever serves the mount.
//!
//! A notification to the kernel can wait for locks that a request in progress holds, so a filesystem never sends one itself: it
//! puts it here, which takes no time, and one thread of the mount takes it out. The queue is bounded. When too many inodes are
//! waiting, they are replaced by [`Invalidate::All`], which is slower and never wrong. Names have no such summary: when too many
//! are waiting, further ones are dropped and counted, and the kernel believes them until their time to live is over.

use super::Ino;
use parking_lot::{Condvar, Mutex};
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// Inodes, and likewise names, that wait at most.
pub const MAX_INVALIDATIONS: usize = 32_768;

/// Something the kernel should forget.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Invalidate {
    /// Pages and attributes of an inode.
    Inode(Ino),
    /// Attributes of an inode; its pages are still right.
    Attr(Ino),
    /// A name in a directory.
    Entry(Ino, Vec<u8>),
    /// Pages and attributes of every inode that [`Ops::inodes`](super::Ops::inodes) names.
    All,
}

/// The queue. Sending never waits; one item waits at most once.
#[derive(Default)]
pub struct Invalidations {
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Default)]
struct State {
    order: VecDeque<Invalidate>,
    waiting: HashSet<Invalidate>,
    names: usize,
    dropped: u64,
}

impl Invalidations {
    /// Tells the kernel, soon, to forget `what`.
    pub fn send(&self, what: Invalidate) {
        let mut state = self.state.lock();
        if state.waiting.contains(&what) {
            return;
        }
        match what {
            Invalidate::Entry(..) if state.names >= MAX_INVALIDATIONS => state.dropped += 1,
            Invalidate::Entry(..) => {
                state.names += 1;
                state.put(what);
            }
            Invalidate::Inode(_) | Invalidate::Attr(_) if state.order.len() - state.names < MAX_INVALIDATIONS => {
                state.put(what);
            }
            _ => {
                state.order.retain(|w| matches!(w, Invalidate::Entry(..)));
                state.waiting.retain(|w| matches!(w, Invalidate::Entry(..)));
                state.put(Invalidate::All);
            }
        }
        self.ready.notify_one();
    }

    /// Names dropped so far because too many were waiting.
    pub fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }

    /// Takes the next item, waiting up to `timeout`. `None`: nothing came.
    pub fn recv(&self, timeout: Duration) -> Option<Invalidate> {
        let mut state = self.state.lock();
        if state.order.is_empty() {
            self.ready.wait_for(&mut state, timeout);
        }
        let next = state.order.pop_front()?;
        state.waiting.remove(&next);
        state.names -= usize::from(matches!(next, Invalidate::Entry(..)));
        Some(next)
    }
}

impl State {
    fn put(&mut self, what: Invalidate) {
        self.waiting.insert(what.clone());
        self.order.push_back(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    #[test]
    fn an_item_waits_once_and_comes_out_in_order() {
        let q = Invalidations::default();
        q.send(Invalidate::Inode(7));
        q.send(Invalidate::Entry(1, b"a".to_vec()));
        q.send(Invalidate::Inode(7));
        assert_eq!(q.recv(SHORT), Some(Invalidate::Inode(7)));
        assert_eq!(q.recv(SHORT), Some(Invalidate::Entry(1, b"a".to_vec())));
        assert_eq!(q.recv(SHORT), None);
        q.send(Invalidate::Inode(7));
        assert_eq!(q.recv(SHORT), Some(Invalidate::Inode(7)));
    }

    #[test]
    fn too_many_inodes_become_all_and_names_stay() {
        let q = Invalidations::default();
        q.send(Invalidate::Entry(1, b"a".to_vec()));
        for i in 0..=MAX_INVALIDATIONS as Ino {
            q.send(Invalidate::Inode(i));
        }
        assert_eq!(q.recv(SHORT), Some(Invalidate::Entry(1, b"a".to_vec())));
        assert_eq!(q.recv(SHORT), Some(Invalidate::All));
        assert_eq!(q.recv(SHORT), None);
    }

    #[test]
    fn too_many_names_are_counted() {
        let q = Invalidations::default();
        for i in 0..MAX_INVALIDATIONS + 3 {
            q.send(Invalidate::Entry(1, i.to_le_bytes().to_vec()));
        }
        assert_eq!(q.dropped(), 3);
        assert_eq!(q.recv(SHORT), Some(Invalidate::Entry(1, 0usize.to_le_bytes().to_vec())));
    }

    #[test]
    fn sending_wakes_who_waits() {
        let q = std::sync::Arc::new(Invalidations::default());
        let other = q.clone();
        let waiter = std::thread::spawn(move || other.recv(Duration::from_secs(60)));
        q.send(Invalidate::All);
        assert_eq!(waiter.join().unwrap(), Some(Invalidate::All));
    }
}
