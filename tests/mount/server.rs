//! An S3 server of a test's own, behind a wire that can be cut.

use super::world::{World, scratch, until};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Forwards connections to a port that can change; port 0 refuses them.
struct Wire {
    port: u16,
    to: Arc<AtomicU16>,
}

impl Wire {
    fn new() -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = Arc::new(AtomicU16::new(0));
        let target = to.clone();
        std::thread::spawn(move || {
            for from in listener.incoming().flatten() {
                // A target that is not there: the connection is closed at once.
                if let Ok(to) = TcpStream::connect(("127.0.0.1", target.load(Ordering::Acquire))) {
                    forward(from.try_clone().unwrap(), to.try_clone().unwrap());
                    forward(to, from);
                }
            }
        });
        Wire { port, to }
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}

/// See the head of this file. Stopped when dropped.
pub struct Server {
    dir: tempfile::TempDir,
    wire: Wire,
}

impl Server {
    /// Starts SeaweedFS, where the tests with S3 are wanted at all.
    pub fn start() -> Option<Server> {
        std::env::var_os("SMPFS_TEST_S3")?;
        let server = Server { dir: scratch(), wire: Wire::new() };
        server.restart();
        Some(server)
    }

    fn control(&self, verb: &str) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/seaweedfs");
        let out = Command::new(script).arg(verb).arg(self.dir.path()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap().trim().to_owned()
    }

    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.file("pid").parse().unwrap())
    }

    /// Starts it, with the objects that it had.
    pub fn restart(&self) {
        self.control("start");
        self.wire.to.store(self.file("port").parse().unwrap(), Ordering::Release);
    }

    /// Kills it without a warning.
    pub fn kill(&self) {
        nix::sys::signal::kill(self.pid(), nix::sys::signal::Signal::SIGKILL).unwrap();
        self.wire.to.store(0, Ordering::Release);
        let stat = PathBuf::from(format!("/proc/{}/stat", self.pid()));
        until("the end of the server", || std::fs::read_to_string(&stat).map_or(true, |s| s.contains(") Z ")));
        std::fs::remove_file(self.dir.path().join("pid")).unwrap();
    }

    /// Connections are taken and nothing is answered.
    pub fn freeze(&self) {
        nix::sys::signal::kill(self.pid(), nix::sys::signal::Signal::SIGSTOP).unwrap();
    }

    /// It goes on, with the requests that it got while it was frozen as well.
    pub fn thaw(&self) {
        nix::sys::signal::kill(self.pid(), nix::sys::signal::Signal::SIGCONT).unwrap();
    }

    /// A world whose bucket is here.
    pub fn world(&self) -> World {
        let mut world = World::dir();
        world.endpoint = Some(format!("http://127.0.0.1:{}", self.wire.port));
        world.set("AWS_ENDPOINT_URL_S3", &format!("http://127.0.0.1:{}", self.wire.port));
        world.set("AWS_ACCESS_KEY_ID", "smpfswriter");
        world.set("AWS_SECRET_ACCESS_KEY", "smpfswritersecret");
        world.set("AWS_REGION", "us-east-1");
        world.store = "s3://smpfs-test/v".to_owned();
        world
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.dir.path().join("pid").exists() {
            self.thaw();
            let _ = nix::sys::signal::kill(self.pid(), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
