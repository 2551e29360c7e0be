//! Holds single requests of a mount up, and single writes to its local disk, so that a test decides what happens first.

use parking_lot::{Condvar, Mutex};
use smpfs::disk::{Access, Disk, DiskFile, Entry, LockGuard, Space};
use smpfs::error::Result;
use smpfs::store::Store;
use smpfs::store::layers::{Around, Call, Op, Reply, Verb};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

#[track_caller]
fn reaches(count: &AtomicUsize, n: usize) {
    let start = Instant::now();
    while count.load(Ordering::SeqCst) < n {
        assert!(start.elapsed() < Duration::from_secs(20), "what was to be held up never came");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A request whose answer is held up, by verb and part of its key, after some that are not.
struct Rule {
    verb: Verb,
    part: String,
    skip: u32,
}

/// The layer. It lies above time limits and retries: what it holds up just takes long.
pub struct Hold {
    rules: Mutex<Vec<Rule>>,
    caught: AtomicUsize,
    go: Semaphore,
}

impl Default for Hold {
    fn default() -> Self {
        Hold { rules: Mutex::default(), caught: AtomicUsize::new(0), go: Semaphore::new(0) }
    }
}

impl Hold {
    /// After `skip` of them the next such request is carried out, and its answer comes with [`Hold::release`].
    pub fn answer(&self, verb: Verb, part: &str, skip: u32) {
        self.rules.lock().push(Rule { verb, part: part.to_owned(), skip });
    }

    /// Waits until `n` requests in all are held up, or were.
    #[track_caller]
    pub fn wait(&self, n: usize) {
        reaches(&self.caught, n);
    }

    /// Lets one held request go on.
    pub fn release(&self) {
        self.go.add_permits(1);
    }

    async fn pause(&self) {
        self.caught.fetch_add(1, Ordering::SeqCst);
        self.go.acquire().await.unwrap().forget();
    }
}

impl Around for Hold {
    async fn around<'a, T: Reply>(&'a self, _: &'a dyn Store, op: Op<'a>, call: Call<'a, T>) -> Result<T> {
        let rule = {
            let mut rules = self.rules.lock();
            let at = rules.iter_mut().position(|r| {
                let fits = r.verb == op.verb && op.key.contains(&r.part);
                let now = fits && r.skip == 0;
                r.skip -= u32::from(fits && !now);
                now
            });
            at.map(|i| rules.remove(i))
        };
        let reply = call().await;
        if rule.is_some() {
            self.pause().await;
        }
        reply
    }
}

/// A local disk on which single writes to the spool take as long as a test wants: whoever writes holds the file meanwhile.
pub struct SlowDisk {
    inner: Arc<dyn Disk>,
    pace: Arc<Pace>,
}

#[derive(Default)]
struct Pace {
    /// Writes that are still to be held up, and writes that may go on.
    state: Mutex<(u32, u32)>,
    bell: Condvar,
    caught: AtomicUsize,
}

impl SlowDisk {
    pub fn new(inner: Arc<dyn Disk>) -> Arc<SlowDisk> {
        Arc::new(SlowDisk { inner, pace: Arc::default() })
    }

    /// The next write to the spool waits for [`SlowDisk::release`].
    pub fn hold(&self) {
        self.pace.state.lock().0 += 1;
    }

    /// Waits until `n` writes in all are held up, or were.
    #[track_caller]
    pub fn wait(&self, n: usize) {
        reaches(&self.pace.caught, n);
    }

    /// Lets one write go on.
    pub fn release(&self) {
        self.pace.state.lock().1 += 1;
        self.pace.bell.notify_all();
    }
}

struct SlowFile(Arc<dyn DiskFile>, Arc<Pace>);

impl DiskFile for SlowFile {
    fn pread(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.0.pread(offset, buf)
    }
    fn pwrite(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.1.state.lock();
        if state.0 > 0 {
            state.0 -= 1;
            self.1.caught.fetch_add(1, Ordering::SeqCst);
            while state.1 == 0 {
                self.1.bell.wait(&mut state);
            }
            state.1 -= 1;
        }
        drop(state);
        self.0.pwrite(offset, data)
    }
    fn len(&self) -> Result<u64> {
        self.0.len()
    }
    fn truncate(&self, len: u64) -> Result<()> {
        self.0.truncate(len)
    }
    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        self.0.punch(offset, len)
    }
    fn pwrite_durable(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.pwrite(offset, data)?;
        self.0.sync_data()
    }
    fn sync_data(&self) -> Result<()> {
        self.0.sync_data()
    }
}

impl Disk for SlowDisk {
    fn open(&self, path: &str, access: Access) -> Result<Arc<dyn DiskFile>> {
        let file = self.inner.open(path, access)?;
        Ok(if path.starts_with("spool/") { Arc::new(SlowFile(file, self.pace.clone())) } else { file })
    }
    fn make_dir(&self, path: &str) -> Result<()> {
        self.inner.make_dir(path)
    }
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &str) -> Result<()> {
        self.inner.remove(path)
    }
    fn remove_dir(&self, path: &str) -> Result<()> {
        self.inner.remove_dir(path)
    }
    fn list(&self, dir: &str) -> Result<Vec<Entry>> {
        self.inner.list(dir)
    }
    fn len(&self, path: &str) -> Result<u64> {
        self.inner.len(path)
    }
    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.inner.sync_dir(dir)
    }
    fn space(&self) -> Result<Space> {
        self.inner.space()
    }
    fn lock(&self, path: &str) -> Result<Box<dyn LockGuard>> {
        self.inner.lock(path)
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}
