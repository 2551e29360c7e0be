//! The command line as a user meets it: the real binary, its exit codes and sentences. Needs no kernel mount.

#![allow(clippy::unwrap_used)] // helpers of tests stop at the first surprise, as tests do

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A machine of its own: every place that smpfs uses lies below a scratch directory.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(world.path("mnt")).unwrap();
        std::fs::write(world.path("pass"), "five random words are better\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(world.path("pass"), mode).unwrap();
        std::fs::write(world.path("config.toml"), "").unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_smpfs"));
        c.env_clear().args(words).stdin(Stdio::null());
        for place in ["state", "cache", "runtime"] {
            c.env(format!("SMPFS_{}_DIR", place.to_uppercase()), self.path(place));
        }
        c.env("SMPFS_CONFIG", self.path("config.toml"));
        c
    }

    fn run(&self, words: &[&str]) -> (i32, String, String) {
        said(self.command(words).output().unwrap())
    }

    fn bucket(&self) -> String {
        format!("dir://{}", self.path("bucket").display())
    }

    fn init(&self) -> String {
        let pass = self.path("pass");
        let words =
            ["init", &self.bucket(), "--kdf-memory", "64", "--kdf-passes", "1", "--passphrase-file", pass.to_str().unwrap()];
        let (code, out, err) = self.run(&words);
        assert_eq!(code, 0, "{err}");
        out
    }
}

fn said(o: Output) -> (i32, String, String) {
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (o.status.code().unwrap_or(-1), text(o.stdout), text(o.stderr))
}

#[test]
fn help_is_complete_and_unknown_words_are_usage_errors() {
    let world = World::new();
    let (code, help, _) = world.run(&["--help"]);
    assert_eq!(code, 0);
    for part in
        ["init", "mount", "unmount", "status", "quickstart", "scrub", "recover", "Examples:", "Exit codes:", "wrong passphrase"]
    {
        assert!(help.contains(part), "{part}");
    }
    assert_eq!(world.run(&["frobnicate"]).0, 2);
    assert_eq!(world.run(&["mount", "s3://b"]).0, 2);
    assert_eq!(world.run(&["mount", "s3://b", "/m", "--passphrase", "x"]).0, 2);
}

#[test]
fn a_volume_is_made_once_and_the_recovery_code_is_shown_on_standard_output() {
    let world = World::new();
    let out = world.init();
    let code = out.lines().map(str::trim).find(|l| l.len() == 69 && l.matches('-').count() == 13);
    assert!(code.is_some(), "{out}");
    assert!(!out.contains("five random words"));
    let pass = world.path("pass");
    let (exit, _, err) = world.run(&["init", &world.bucket(), "--passphrase-file", pass.to_str().unwrap()]);
    assert_eq!(exit, 1, "{err}");
    assert!(err.contains("volume"), "{err}");
}

#[test]
fn a_wrong_passphrase_has_an_exit_code_of_its_own() {
    let world = World::new();
    world.init();
    let mut child = world
        .command(&["mount", &world.bucket(), world.path("mnt").to_str().unwrap(), "--passphrase-fd", "0"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"not the one\n").unwrap();
    let (code, _, err) = said(child.wait_with_output().unwrap());
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("passphrase") && err.contains("recovery code"), "{err}");
    assert!(!err.contains("not the one"), "{err}");
}

#[test]
fn a_mistyped_recovery_code_is_a_wrong_secret_and_a_file_without_one_a_wrong_command_line() {
    let world = World::new();
    let out = world.init();
    let code = out.lines().map(str::trim).find(|l| l.len() == 69).unwrap();
    let file = world.path("code");
    let scrub = |content: &str| {
        std::fs::write(&file, content).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        world.run(&["scrub", &world.bucket(), "--quiet", "--recovery-code-file", file.to_str().unwrap()])
    };
    let (exit, out, err) = scrub(code);
    assert_eq!(exit, 0, "{out}{err}");
    let last = if code.ends_with('A') { "B" } else { "A" };
    let mistyped = format!("{}{last}", &code[..code.len() - 1]);
    for (content, said) in [(mistyped.as_str(), "mistyped"), ("no code", "56"), (&code[..60], "56")] {
        let (exit, _, err) = scrub(content);
        assert_eq!(exit, 3, "{err}");
        assert!(err.contains(said) && !err.contains(&code[..20]), "{err}");
    }
    assert_eq!(scrub("\n").0, 2);
}

#[test]
fn a_scrub_says_what_it_saw_and_that_nothing_was_wrong() {
    let world = World::new();
    world.init();
    let pass = world.path("pass");
    let scrub = |more: &[&str]| {
        let bucket = world.bucket();
        let words = [&["scrub", &bucket, "--quiet", "--passphrase-file", pass.to_str().unwrap()], more].concat();
        let (code, out, err) = world.run(&words);
        assert_eq!((code, err.as_str()), (0, ""), "{more:?}: {out}");
        out
    };
    for (more, want) in [
        (&[][..], "1 directory in 1 index object, 0 files verified (0 B); 2 objects ("),
        (&["--quick"], "1 directory in 1 index object, no contents read (--quick); 2 objects ("),
        (&["--keyless"], "2 of 2 objects ("),
    ] {
        let out = scrub(more);
        assert!(out.starts_with(want) && out.ends_with("Nothing wrong was found.\n"), "{out}");
        assert!(!out.contains("too young"), "{out}");
    }
    assert!(scrub(&["--keyless"]).contains("verified without keys"));
}

#[test]
fn a_path_is_told_the_url_it_was_meant_for_and_a_missing_bucket_how_to_make_it() {
    let world = World::new();
    let path = world.path("bucket");
    let (code, _, err) = world.run(&["init", path.to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(err.contains(&format!("is written {}\n", world.bucket())), "{err}");
    let (code, _, err) = world.run(&["mount", &world.bucket(), world.path("mnt").to_str().unwrap()]);
    assert_eq!(code, 9);
    assert!(err.contains(&format!("`smpfs init {}` makes it", world.bucket())), "{err}");
}

/// A metadata service that refuses everybody: the SDK warns of it, on the way to our sentence. Gives its address.
fn refusing_metadata_service() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    address
}

#[test]
fn what_the_sdk_says_on_the_way_to_our_sentence_is_for_those_who_look_for_details() {
    let world = World::new();
    let (mnt, pass, home) = (world.path("mnt"), world.path("pass"), world.path(""));
    let metadata = refusing_metadata_service();
    let log = world.path("log");
    let try_it = |more: &[&str]| {
        let words = ["mount", "s3://bucket/p", mnt.to_str().unwrap(), "--passphrase-file", pass.to_str().unwrap()];
        let mut c = world.command(&[&words[..], more].concat());
        let (code, _, err) = said(c.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata).env("HOME", &home).output().unwrap());
        assert_eq!(code, 8, "{err}");
        err
    };
    for foreground in [&[][..], &["--foreground"]] {
        let err = try_it(&[foreground, &["--log-target", "stderr"]].concat());
        assert!(err.starts_with("smpfs: no AWS credentials") && !err.contains("WARN"), "{err}");
        let err = try_it(&[foreground, &["--log-target", "stderr", "--log-level", "debug"]].concat());
        assert!(err.contains("WARN"), "{err}");
    }
    let err = try_it(&["--log-file", log.to_str().unwrap()]);
    assert!(err.starts_with("smpfs: no AWS credentials"), "{err}");
    assert!(std::fs::read_to_string(log).unwrap().contains("WARN aws"), "the log has it");
}

#[test]
fn variables_of_the_tests_are_not_pointed_out() {
    let world = World::new();
    let url = world.bucket();
    let mut c = world.command(&["scrub", &url, "--keyless"]);
    let (_, _, err) =
        said(c.env("SMPFS_TEST_S3", "s3://b").env("SMPFS_TEST_S3_READER", "a:b").env("SMPFS_XYZZY", "1").output().unwrap());
    assert!(err.contains("SMPFS_XYZZY") && !err.contains("SMPFS_TEST"), "{err}");
}

#[test]
fn a_mount_without_a_volume_is_not_found_before_a_passphrase_is_asked_for() {
    let world = World::new();
    let mnt = world.path("mnt");
    let (code, _, err) = world.run(&["mount", &world.bucket(), mnt.to_str().unwrap()]);
    assert_eq!(code, 9, "{err}");
    std::fs::create_dir(world.path("bucket")).unwrap();
    let (code, _, err) = world.run(&["mount", &world.bucket(), mnt.to_str().unwrap()]);
    assert_eq!(code, 9, "{err}");
}

#[test]
fn without_a_terminal_a_passphrase_must_come_from_elsewhere() {
    let world = World::new();
    // setsid: no controlling terminal, whatever runs this test.
    let bucket = world.bucket();
    let mut c = Command::new("setsid");
    let inner = world.command(&["init", &bucket]);
    c.arg("--wait").arg(inner.get_program()).args(inner.get_args()).env_clear().stdin(Stdio::null());
    c.envs(inner.get_envs().filter_map(|(k, v)| v.map(|v| (k, v)))).env("PATH", "/usr/bin:/bin");
    let (code, _, err) = said(c.output().unwrap());
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("--passphrase-file"), "{err}");
}

#[test]
fn configuration_errors_name_file_line_and_the_nearest_key() {
    let world = World::new();
    std::fs::write(world.path("config.toml"), "retries = 3\nmemory-buget = \"1GiB\"\n").unwrap();
    let (code, _, err) = world.run(&["status"]);
    assert_eq!(code, 2);
    assert!(err.contains("config.toml, line 2: unknown key `memory-buget`; did you mean `memory-budget`?"), "{err}");
    std::fs::write(world.path("config.toml"), "").unwrap();
    let (code, _, err) = world.run(&["mount", &world.bucket(), world.path("mnt").to_str().unwrap(), "-o", "cache_sise=3"]);
    assert_eq!(code, 2);
    assert!(err.contains("did you mean `cache-size`?"), "{err}");
}

#[test]
fn dry_run_checks_and_mounts_nothing() {
    let world = World::new();
    let mnt = world.path("mnt");
    let words = ["mount", "--dry-run", &world.bucket(), mnt.to_str().unwrap(), "-o", "rw,_netdev,x-a=b,nofail,uid=3"];
    let (code, out, err) = world.run(&words);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("Nothing was mounted"), "{out}");
    std::fs::write(mnt.join("file"), "x").unwrap();
    let (code, _, err) = world.run(&words);
    assert_eq!(code, 2);
    assert!(err.contains("not empty"), "{err}");
    let (code, _, err) = world.run(&["mount", "--dry-run", "--nonempty", &world.bucket(), mnt.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
}

#[test]
fn status_and_unmount_without_a_mount() {
    let world = World::new();
    assert_eq!(world.run(&["status"]), (0, "nothing is mounted\n".into(), String::new()));
    assert_eq!(world.run(&["status", "--json"]).1, "[]\n");
    let mnt = world.path("mnt");
    for words in [["status", mnt.to_str().unwrap()], ["unmount", mnt.to_str().unwrap()]] {
        let (code, _, err) = world.run(&words);
        assert_eq!(code, 9);
        assert!(err.contains("no smpfs mount of yours"), "{err}");
    }
    assert_eq!(world.run(&["unmount", mnt.to_str().unwrap(), "--timeout", "soon"]).0, 2);
}

#[test]
fn a_stray_variable_and_an_open_passphrase_file_draw_warnings() {
    let world = World::new();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(world.path("pass"), mode).unwrap();
    let mnt = world.path("mnt");
    let mut c = world.command(&["mount", &world.bucket(), mnt.to_str().unwrap()]);
    c.env("SMPFS_MEMORY_BUGET", "1").env("SMPFS_PASSPHRASE_FILE", world.path("pass"));
    let (code, _, err) = said(c.output().unwrap());
    assert_eq!(code, 9, "{err}");
    assert!(err.contains("did you mean SMPFS_MEMORY_BUDGET?"), "{err}");
    assert!(err.contains("chmod 600"), "{err}");
}

#[test]
fn completions_and_man_pages_come_from_the_same_definitions() {
    let world = World::new();
    for (shell, mark) in [("bash", "_smpfs"), ("zsh", "#compdef smpfs"), ("fish", "complete -c smpfs")] {
        let (code, out, _) = world.run(&["completions", shell]);
        assert_eq!(code, 0);
        assert!(out.contains(mark) && out.contains("quickstart"), "{shell}");
    }
    let pages = world.path("man");
    assert_eq!(world.run(&["man", "--out", pages.to_str().unwrap()]).0, 0);
    let mount = std::fs::read_to_string(pages.join("smpfs-mount.1")).unwrap();
    assert!(mount.contains("memory\\-budget"));
    assert!(world.run(&["man"]).1.contains(".TH smpfs"));
}

#[test]
fn helpers_are_linked_and_taken_away_again() {
    let world = World::new();
    // A copy of the binary with neighbours of its own.
    let bin = world.path("bin");
    let sbin = world.path("sbin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::create_dir(&sbin).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_smpfs"), bin.join("smpfs")).unwrap();
    let run = |more: &[&str]| {
        let args = ["install-helpers", "--dir", sbin.to_str().unwrap()];
        said(Command::new(bin.join("smpfs")).args(args).args(more).output().unwrap())
    };
    assert_eq!(run(&[]).0, 9);
    for name in ["mount-smpfs", "umount-smpfs"] {
        std::fs::write(bin.join(name), "").unwrap();
    }
    assert_eq!(run(&[]).0, 0);
    assert_eq!(run(&[]).0, 0, "a second time changes nothing");
    for (link, program) in
        [("mount.smpfs", "mount-smpfs"), ("umount.smpfs", "umount-smpfs"), ("umount.fuse.smpfs", "umount-smpfs")]
    {
        assert_eq!(std::fs::read_link(sbin.join(link)).unwrap(), bin.canonicalize().unwrap().join(program));
    }
    std::fs::remove_file(sbin.join("mount.smpfs")).unwrap();
    std::fs::write(sbin.join("mount.smpfs"), "somebody else's").unwrap();
    assert_eq!(run(&[]).0, 1, "a file that is no link stays");
    assert_eq!(run(&["--remove"]).0, 0);
    let left: Vec<_> = std::fs::read_dir(&sbin).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["mount.smpfs"]);
}

/// The sample files of the quickstart, as the programs that people use see them. Skipped (and said so) where they are not installed.
#[test]
fn sample_files_are_read_by_real_readers() {
    let world = World::new();
    let files =
        [("a.dcm", smpfs::app::samples::dicom()), ("a.nii", smpfs::app::samples::nifti()), ("a.png", smpfs::app::samples::png())];
    for (name, bytes) in &files {
        std::fs::write(world.path(name), bytes).unwrap();
    }
    python(
        "pydicom",
        &world.path("a.dcm"),
        "d = pydicom.dcmread(path)\n\
         assert str(d.PatientName) == 'Phantom^Quickstart' and (d.Rows, d.Columns) == (128, 128), d\n\
         assert len(d.PixelData) == 32768 and d.file_meta.TransferSyntaxUID.name == 'Explicit VR Little Endian'",
    );
    python(
        "nibabel",
        &world.path("a.nii"),
        "i = nibabel.load(path)\n\
         assert i.shape == (32, 32, 32) and i.header.get_zooms() == (2.0, 2.0, 2.0), i.header\n\
         assert i.get_fdata().max() == 1000.0 and i.affine[0][3] == -32.0",
    );
    python(
        "PIL.Image",
        &world.path("a.png"),
        "i = PIL.Image.open(path); i.load(); assert i.size == (128, 128) and i.mode == 'L'",
    );
}

fn python(module: &str, path: &Path, check: &str) {
    let import = format!("import {module}");
    let run = |code: &str| Command::new("python3").args(["-c", code]).arg(path).output();
    if !run(&import).is_ok_and(|o| o.status.success()) {
        println!("skipped: {} was not read by {module}, which is not installed", path.display());
        return;
    }
    let (code, _, err) = said(run(&format!("{import}, sys\npath = sys.argv[1]\n{check}")).unwrap());
    assert_eq!(code, 0, "{module}: {err}");
}
