//! `smpfs quickstart`: the whole path on one machine: a volume in a directory, mounted by the very process that `smpfs mount` starts,
//! filled with sample images, unmounted, mounted again, read back and compared.
//!
//! Everything lies below one new directory, which is removed at the end, also after Ctrl-C and after an error.

use super::failure::{Failure, Outcome};
use super::secret::Secret;
use super::status::size;
use super::{client, harden, init, join, mount, mountpoint, print, samples, settings, socket, unmount};
use crate::cli::{Cli, Command, Exit, MountArgs, QuickstartArgs};
use crate::env::Env;
use crate::error::{Error, Kind, Result, fail};
use crate::keyring::InitParams;
use crate::store::StoreSpec;
use clap::Parser;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

/// A text that is in a sample file and must be nowhere in the bucket.
const CANARY: &[u8] = b"Phantom^Quickstart";
/// How long uploads of a few small files may take before the listing is shown all the same.
const UPLOADS: Duration = Duration::from_secs(30);
/// What ends a tour at the user's wish.
const INTERRUPTED: &str = "interrupted";
/// Lines of each list at most.
const MAX_ROWS: usize = 16;

/// Runs it.
pub fn run(args: &QuickstartArgs) -> Outcome<()> {
    harden::harden()?;
    if !Path::new("/dev/fuse").exists() {
        fail(
            Kind::Unsupported,
            "there is no /dev/fuse: run `modprobe fuse`; in a container, pass --device /dev/fuse --cap-add SYS_ADMIN",
        )?;
    }
    let stop = Interrupts::catch()?;
    let place = Place::make(args)?;
    let outcome = tour(&place, args, &stop);
    let cleaned = place.clean(args.keep);
    match outcome {
        Err(failure) if failure.message != INTERRUPTED => Err(failure),
        Err(_) => {
            cleaned?;
            let rest = if args.keep { "everything but the bucket was removed" } else { "everything was removed" };
            print(&format!("\nstopped; {rest}\n"));
            Ok(())
        }
        Ok(()) => cleaned,
    }
}

fn tour(place: &Place, args: &QuickstartArgs, stop: &Interrupts) -> Outcome<()> {
    let env = Env::real();
    let passphrase = Zeroizing::new(data_encoding::HEXLOWER.encode(&env.random::<12>()));

    step(1, "A volume in a directory, which stands for a bucket in the cloud");
    print(&format!("   smpfs init dir://{}\n", place.bucket.display()));
    init_volume(place, &passphrase)?;
    print(&format!("   passphrase (made up for this tour): {}\n", passphrase.as_str()));
    stop.check()?;

    step(2, "Mounted: what goes in is sealed before it leaves this machine");
    print(&format!("   smpfs mount dir://{} {}\n", place.bucket.display(), place.mount.display()));
    place.start(&passphrase)?;
    stop.check()?;

    step(3, "Sample files, written as any program writes");
    let written = write_samples(&place.mount)?;
    place.wait_for_uploads()?;
    both_views(place)?;
    stop.check()?;

    step(4, "Unmounted and mounted again: nothing is left in a cache, all comes from the bucket");
    place.unmount(false)?;
    place.start(&passphrase)?;
    for (name, hash) in &written {
        let found = Sha256::digest(fs::read(place.mount.join(name)).map_err(|e| at(name, e))?);
        if found[..] != hash[..] {
            return Err(Failure::new(Exit::Corrupt, format!("{name} came back different")));
        }
        print(&format!("   {name:<28} SHA-256 {}...  the same\n", data_encoding::HEXLOWER.encode(&hash[..6])));
    }
    search_bucket(&place.bucket)?;
    stop.check()?;

    if !args.once {
        what_next(place);
        stop.wait();
        print("\n");
    }
    step(5, "Unmounting: uploads what is left, wipes local traces");
    place.unmount(true)?;
    print("   done\n");
    Ok(())
}

fn init_volume(place: &Place, passphrase: &Zeroizing<String>) -> Outcome<()> {
    let store = StoreSpec::Dir { path: place.bucket.clone() };
    let params = InitParams { name: "quickstart".into(), ..InitParams::default() };
    let mut config = settings::load(None, vec![], None)?.config;
    config.state_dir = place.base.join("local/state");
    let passphrase = Zeroizing::new(passphrase.as_bytes().to_vec());
    init::runtime()?.block_on(join::create(&store, params, passphrase, &config))?;
    Ok(())
}

/// Writes the samples and returns their names and hashes.
fn write_samples(mount: &Path) -> Outcome<Vec<(&'static str, [u8; 32])>> {
    let notes = b"Smpfs keeps these images sealed in the bucket and readable here.\n".to_vec();
    let files = [
        ("study-1/phantom.dcm", samples::dicom()),
        ("study-1/brain.nii", samples::nifti()),
        ("study-1/preview.png", samples::png()),
        ("notes.txt", notes),
    ];
    fs::create_dir(mount.join("study-1")).map_err(|e| at("study-1", e))?;
    let mut written = Vec::new();
    for (name, bytes) in files {
        fs::write(mount.join(name), &bytes).map_err(|e| at(name, e))?;
        written.push((name, Sha256::digest(&bytes).into()));
    }
    Ok(written)
}

fn at(name: &str, e: std::io::Error) -> Failure {
    Error::from(e).context(format!("{name} in the mount")).into()
}

/// What lies in the bucket, and what the mount shows: one after the other, since an object is not one file.
fn both_views(place: &Place) -> Outcome<()> {
    for (title, dir) in [("The bucket sees", &place.bucket), ("You see", &place.mount)] {
        let all = listing(dir)?;
        print(&format!("\n   {title}:\n"));
        for (name, len) in all.iter().take(MAX_ROWS) {
            print(&format!("     {:>10}  {name}\n", size(*len)));
        }
        if all.len() > MAX_ROWS {
            print(&format!("     and {} more\n", all.len() - MAX_ROWS));
        }
    }
    Ok(())
}

/// Files below a directory with their sizes, sorted, but a directory store's own lock files.
fn listing(dir: &Path) -> Outcome<Vec<(String, u64)>> {
    let mut found = Vec::new();
    walk(dir, &mut |path, meta| {
        let name = path.strip_prefix(dir).unwrap_or(path).display().to_string();
        if !name.starts_with(".%tmp/") {
            found.push((name, meta.len()));
        }
        Ok(())
    })?;
    found.sort();
    Ok(found)
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata) -> Outcome<()>) -> Outcome<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() { walk(&entry.path(), visit)? } else { visit(&entry.path(), &meta)? }
    }
    Ok(())
}

/// The patient's name of the sample is in no object, nor is a file name in any key.
fn search_bucket(bucket: &Path) -> Outcome<()> {
    walk(bucket, &mut |path, _| {
        let leaks = fs::read(path)?.windows(CANARY.len()).any(|w| w == CANARY) || path.to_string_lossy().contains("phantom");
        if leaks {
            return Err(Failure::new(Exit::Corrupt, "the sample's patient name or a file name is readable in the bucket"));
        }
        Ok(())
    })?;
    let objects = listing(bucket)?.len();
    print(&format!("   patient and file names: in none of the {objects} objects of the bucket\n"));
    Ok(())
}

fn what_next(place: &Place) {
    let (bucket, mount, run) = (place.bucket.display(), place.mount.display(), place.runtime.display());
    let smpfs = super::own_command();
    print(&format!(
        "\nTry next, in another terminal:\n\
         \x20  ls -l {mount}/study-1\n\
         \x20  cat {mount}/.smpfs/status\n\
         \x20  cp -r YOUR_STUDY {mount}/\n\
         \x20  find {bucket} -type f | head         # what a thief of the bucket gets\n\
         \x20  {smpfs} status --runtime-dir {run}\n\
         With a bucket of your own:\n\
         \x20  {smpfs} init s3://BUCKET/PREFIX\n\
         \x20  {smpfs} mount s3://BUCKET/PREFIX DIR\n\n\
         Press Ctrl-C to unmount and remove all of this.\n"
    ));
}

fn step(n: u32, what: &str) {
    print(&format!("\n{n}. {what}\n"));
}

/// The directories of a tour.
struct Place {
    base: PathBuf,
    bucket: PathBuf,
    mount: PathBuf,
    runtime: PathBuf,
    state: PathBuf,
    /// The base directory was made here.
    made_base: bool,
}

impl Place {
    fn make(args: &QuickstartArgs) -> Outcome<Place> {
        let unique = || format!("smpfs-quickstart-{}", data_encoding::HEXLOWER.encode(&Env::real().random::<6>()));
        let base = args.dir.clone().unwrap_or_else(|| std::env::temp_dir().join(unique()));
        let made_base = !base.exists();
        if !made_base && fs::read_dir(&base)?.next().is_some() {
            return Err(Failure::new(
                Exit::Usage,
                format!("{} is not empty: give --dir an empty or new directory", base.display()),
            ));
        }
        mountpoint::private_dir(&base)?;
        let base = base.canonicalize()?;
        let place = Place {
            bucket: base.join("bucket"),
            mount: base.join("patients"),
            runtime: base.join("local/run"),
            state: base.join("local/state"),
            made_base,
            base,
        };
        for dir in [&place.bucket, &place.mount, &place.runtime] {
            mountpoint::private_dir(dir)?;
        }
        Ok(place)
    }

    /// The command line of its mount.
    fn mount_args(&self) -> Outcome<MountArgs> {
        let mut words: Vec<OsString> = vec!["smpfs".into(), "mount".into()];
        let store = StoreSpec::Dir { path: self.bucket.clone() }.to_string();
        words.extend([OsString::from(store), self.mount.clone().into_os_string()]);
        for (flag, dir) in [("--state-dir", "local/state"), ("--cache-dir", "local/cache"), ("--runtime-dir", "local/run")] {
            words.extend([flag.into(), self.base.join(dir).into_os_string()]);
        }
        words.extend(["--log-target=file".into(), "--log-file".into(), self.base.join("local/log").into_os_string()]);
        match Cli::try_parse_from(words).map(|cli| cli.command) {
            Ok(Command::Mount(args)) => Ok(*args),
            _ => Err(Failure::new(Exit::Other, "the tour's own mount options are wrong")),
        }
    }

    fn start(&self, passphrase: &Zeroizing<String>) -> Outcome<u32> {
        let secret = Secret { bytes: Zeroizing::new(passphrase.as_bytes().to_vec()), recovery_code: false };
        mount::start(&self.mount_args()?, None, &secret)
    }

    /// Waits until the bucket has everything, so that the listing is complete.
    fn wait_for_uploads(&self) -> Outcome<()> {
        let start = Instant::now();
        while start.elapsed() < UPLOADS {
            let Some(stream) = client::connect(&socket::path_of(&self.runtime, &self.mount))? else { break };
            if client::status(stream)?.pending.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn places(&self) -> unmount::Places<'_> {
        unmount::Places { runtime: &self.runtime, state: &self.state }
    }

    /// With `force`, also when a shell of the user's stands in it.
    fn unmount(&self, force: bool) -> Outcome<()> {
        self.end(force, None, false)
    }

    fn end(&self, force: bool, limit: Option<Duration>, quiet: bool) -> Outcome<()> {
        let unmount =
            || unmount::unmount(self.places(), &self.mount, unmount::How { timeout: limit, quiet, ..Default::default() });
        match unmount() {
            Err(busy) if force && busy.exit() == Exit::Busy => {
                if let Some(stream) = client::connect(&socket::path_of(&self.runtime, &self.mount))? {
                    let pid = nix::unistd::Pid::from_raw(client::status(stream)?.pid as i32);
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
                }
                // It detaches in a moment.
                std::thread::sleep(Duration::from_millis(200));
                unmount()
            }
            ended => ended,
        }
    }

    /// Unmounts what is still mounted and removes what was made.
    fn clean(&self, keep: bool) -> Outcome<()> {
        let serving = client::connect(&socket::path_of(&self.runtime, &self.mount))?.is_some();
        if serving {
            self.end(true, Some(UPLOADS), true)?;
        }
        crate::fuse::clear_stale(&self.mount)?;
        // Removing below a mount would empty the volume: only an empty, unmounted directory goes away like this.
        fs::remove_dir(&self.mount)
            .map_err(|e| Error::from(e).context(format!("{} is still in use; nothing was removed", self.mount.display())))?;
        fs::remove_dir_all(self.base.join("local"))?;
        if keep {
            print(&format!("   kept: {}\n", self.bucket.display()));
            return Ok(());
        }
        fs::remove_dir_all(&self.bucket)?;
        if self.made_base {
            fs::remove_dir(&self.base)?;
        }
        Ok(())
    }
}

/// TERM and INT, caught so that the tour can clean up.
struct Interrupts {
    requested: Arc<AtomicBool>,
    wake: mpsc::Receiver<()>,
}

impl Interrupts {
    fn catch() -> Result<Interrupts> {
        let trouble = |e: std::io::Error| Error::with_source(Kind::Unavailable, "catching signals", e);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(trouble)?;
        let (mut term, mut int) = {
            let _inside = runtime.enter();
            (signal(SignalKind::terminate()).map_err(trouble)?, signal(SignalKind::interrupt()).map_err(trouble)?)
        };
        let requested = Arc::new(AtomicBool::new(false));
        let (to, wake) = mpsc::sync_channel(1);
        let flag = requested.clone();
        std::thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
                    flag.store(true, Ordering::SeqCst);
                    // One is enough to wake whoever waits.
                    let _ = to.try_send(());
                }
            });
        });
        Ok(Interrupts { requested, wake })
    }

    fn requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Ends the tour between two steps.
    fn check(&self) -> Outcome<()> {
        if self.requested() { Err(Failure::new(Exit::Other, INTERRUPTED)) } else { Ok(()) }
    }

    fn wait(&self) {
        // The sender lives as long as the process.
        let _ = self.wake.recv();
    }
}
