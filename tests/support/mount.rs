//! A real mount of the reference filesystem, and what tests of mounts need around it.

use super::model::ModelFs;
use smpfs::control::{Control, ControlSource, Node};
use smpfs::error::Result;
use smpfs::fuse::{MountOptions, Session, mount};
use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Far more than anything here takes; a test that waits so long has failed.
pub const LONG: Duration = Duration::from_secs(60);

/// Says something for every control file.
pub struct Words;

impl ControlSource for Words {
    fn render(&self, node: Node) -> Result<Vec<u8>> {
        Ok(format!("{node:?}: all is well\n").into_bytes())
    }
}

/// A mount with everything that belongs to it; unmounted when dropped.
pub struct Mount {
    pub session: Session,
    pub model: Arc<ModelFs>,
    pub dir: tempfile::TempDir,
    _rt: tokio::runtime::Runtime,
}

/// Why no mount is possible here.
pub fn why_not() -> Option<&'static str> {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Err(_) => Some("/dev/fuse cannot be opened"),
        Ok(_) if !nix::unistd::geteuid().is_root() => Some("these mounts need root"),
        Ok(_) => None,
    }
}

/// Whether the kernel's list of connections is there; systemd mounts it, a bare container does not.
pub fn has_connections() -> bool {
    static MOUNTED: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let dir = "/sys/fs/fuse/connections";
        let is_there = || fs::read_to_string("/proc/mounts").unwrap().lines().any(|l| l.contains(" fusectl "));
        if !is_there() {
            let _ = Command::new("mount").args(["-t", "fusectl", "fusectl", dir]).status();
        }
        is_there()
    });
    *MOUNTED
}

#[macro_export]
macro_rules! need_connections {
    () => {
        if !$crate::support::mount::has_connections() {
            println!("skipped: fusectl is not mounted and cannot be");
            return;
        }
    };
}

#[macro_export]
macro_rules! need_fuse {
    () => {
        if let Some(why) = $crate::support::mount::why_not() {
            println!("skipped: {why}");
            return;
        }
    };
}

/// Mounts `model` behind the control tree.
pub fn mount_with(model: ModelFs, opts: MountOptions) -> Mount {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let model = Arc::new(model);
    let control = Control::new(model.clone(), Arc::new(Words), 0, 0, smpfs::types::Time::default());
    let session = mount(Arc::new(control), dir.path(), &opts, rt.handle().clone()).unwrap();
    Mount { session, model, dir, _rt: rt }
}

/// A mount with default options.
pub fn plain() -> Mount {
    mount_with(ModelFs::new(), MountOptions::default())
}

impl Mount {
    /// A path inside the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Unmounts in order and checks that nothing was left open.
    pub fn end(self) {
        // A release comes some time after its close, and one that has not come before the unmount never does.
        until("the release of every handle", || self.model.held().0 == 0);
        self.session.unmount().unwrap();
        assert!(self.session.wait(LONG) && self.session.drained(LONG));
        assert_eq!(self.session.stats().in_flight, 0);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.model.heal();
        let _ = self.session.detach();
    }
}

/// Waits for something that must happen.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The errno of a result, 0 when it is none.
pub fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.err().and_then(|e| e.raw_os_error()).unwrap_or(0)
}
