//! The commands of a day: init, mount, copy, compare, unmount, mount elsewhere.

use super::world::*;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A tree with everything a study has: sizes around every boundary, depth, odd names, links.
fn study(dir: &Path) {
    fs::create_dir_all(dir.join("series 1/ünïcode/deep/er")).unwrap();
    for (i, len) in [0, 1, 100, 4096, 65_535, 65_536, 65_537, 1 << 20, (8 << 20) + 5].into_iter().enumerate() {
        fs::write(dir.join(format!("series 1/image {i}.dcm")), noise(i as u64, len)).unwrap();
    }
    fs::write(dir.join("series 1/ünïcode/deep/er/leaf"), "leaf").unwrap();
    std::os::unix::fs::symlink("series 1/image 2.dcm", dir.join("first")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
}

fn a_day(mut world: World, mode: &str) {
    world.init(&["--mode", mode]);
    study(&world.path("src"));
    let same = |world: &World| {
        shell("diff -r \"$1\" \"$2/STUDY\"", &[&world.path("src"), &world.mnt()]).ok();
        assert_eq!(fs::read_link(world.file("STUDY/first")).unwrap(), PathBuf::from("series 1/image 2.dcm"));
        assert!(world.file("STUDY/empty").is_dir());
    };
    let mount = world.mount(&[]);
    shell("cp -a \"$1\" \"$2/STUDY\"", &[&world.path("src"), &world.mnt()]).ok();
    same(&world);
    // A file replaced, appended to, cut, renamed, deleted.
    for dir in [world.path("src"), world.file("STUDY")] {
        fs::write(dir.join("series 1/image 3.dcm"), noise(77, 9000)).unwrap();
        let mut f = fs::OpenOptions::new().append(true).open(dir.join("series 1/image 4.dcm")).unwrap();
        f.write_all(b"more").unwrap();
        fs::OpenOptions::new().write(true).open(dir.join("series 1/image 7.dcm")).unwrap().set_len(70_000).unwrap();
        fs::rename(dir.join("series 1/ünïcode"), dir.join("renamed")).unwrap();
        fs::remove_file(dir.join("series 1/image 5.dcm")).unwrap();
    }
    same(&world);
    mount.unmount();
    assert_eq!(fs::read_dir(world.mnt()).unwrap().count(), 0);
    let bucket = world.bucket();
    assert_eq!(bucket.unfinished(), 0);
    let readable = bucket.keys().iter().any(|k| k.contains("STUDY"));
    assert_eq!(readable, mode == "standard", "{:?}", bucket.keys());
    assert_eq!(bucket.files().len(), 9, "{:?}", bucket.keys());

    world.become_another_machine("elsewhere");
    let mount = world.mount(&["--read-only"]);
    same(&world);
    assert_eq!(errno(fs::write(world.file("x"), "x")), libc::EROFS);
    mount.unmount();
}

#[test]
fn a_study_goes_in_and_comes_out_on_another_machine() {
    need_mounts!("a_study_goes_in_and_comes_out_on_another_machine");
    a_day(World::dir(), "zero-knowledge");
}

#[test]
fn a_study_in_standard_mode() {
    need_mounts!("a_study_in_standard_mode");
    a_day(World::dir(), "standard");
}

#[test]
fn a_study_on_s3() {
    need_mounts!("a_study_on_s3");
    a_day(s3_world!("a_study_on_s3"), "zero-knowledge");
    a_day(s3_world!("a_study_on_s3"), "standard");
}

/// Pipes, sockets, devices with their numbers, and attributes: made, or checked when they are there.
const KINDS: &str = r#"
import os, socket, stat, sys
os.chdir(sys.argv[1])
make = sys.argv[2] == "make"
devices = {"null": (stat.S_IFCHR, 1, 3), "disk": (stat.S_IFBLK, 259, 70000), "wide": (stat.S_IFCHR, 4095, 0xfffff)}
attributes = {
    "file": [("user.one", b"1"), ("user.empty", b""), ("user.long", b"x" * 30000), ("trusted.t", b"2"), ("security.s", b"3")],
    "dir": [("user.d", b"of a directory"), ("trusted.d", b"t")],
    "link": [("trusted.l", b"of a link")],
    "pipe": [("trusted.p", b"of a pipe")],
}
if make:
    os.mkfifo("pipe", 0o640)
    socket.socket(socket.AF_UNIX).bind("socket")
    for name, (kind, major, minor) in devices.items():
        os.mknod(name, kind | 0o600, os.makedev(major, minor))
    open("file", "w").close(); os.mkdir("dir"); os.symlink("file", "link")
    for path, pairs in attributes.items():
        for name, value in pairs:
            os.setxattr(path, name, value, follow_symlinks=False)
assert stat.S_ISFIFO(os.lstat("pipe").st_mode) and stat.S_IMODE(os.lstat("pipe").st_mode) == 0o640
assert stat.S_ISSOCK(os.lstat("socket").st_mode)
for name, (kind, major, minor) in devices.items():
    s = os.lstat(name)
    assert (stat.S_IFMT(s.st_mode), os.major(s.st_rdev), os.minor(s.st_rdev)) == (kind, major, minor), (name, s)
for path, pairs in attributes.items():
    assert sorted(os.listxattr(path, follow_symlinks=False)) == sorted(n for n, _ in pairs), path
    for name, value in pairs:
        assert os.getxattr(path, name, follow_symlinks=False) == value, (path, name)
"#;

#[test]
fn pipes_sockets_devices_and_attributes_outlive_the_mount() {
    need_mounts!("pipes_sockets_devices_and_attributes_outlive_the_mount");
    if std::process::Command::new("python3").arg("--version").output().is_err() {
        return skipped("pipes_sockets_devices_and_attributes_outlive_the_mount", "python3 is not installed");
    }
    let mut world = World::dir();
    world.init(&[]);
    fs::write(world.path("kinds.py"), KINDS).unwrap();
    for (machine, how) in [("home", "make"), ("home", "check"), ("elsewhere", "check")] {
        world.become_another_machine(machine);
        let mount = world.mount(&[]);
        shell(&format!("python3 \"$1\" \"$2\" {how}"), &[&world.path("kinds.py"), &world.mnt()]).ok();
        mount.unmount();
    }
    assert_eq!(world.bucket().files().len(), 1);
}

#[test]
fn of_two_inits_at_once_one_wins() {
    for world in [Some(World::dir()), World::s3("of_two_inits_at_once_one_wins")] {
        let Some(world) = world else {
            return skipped("of_two_inits_at_once_one_wins", "SMPFS_TEST_S3 is not set");
        };
        let words = ["init", &world.store, "--kdf-memory", "64", "--kdf-passes", "1"];
        let both: Vec<_> = (0..2).map(|_| world.command(&words)).collect();
        let threads: Vec<_> = both.into_iter().map(|c| std::thread::spawn(|| run(c))).collect();
        let mut said: Vec<Said> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        said.sort_by_key(|s| s.code);
        assert_eq!((said[0].code, said[1].code), (0, 1), "{said:?}");
        assert!(said[1].err.contains("volume"), "{said:?}");
        if can_mount() {
            world.mount(&[]).unmount();
        }
    }
}

#[test]
fn a_wrong_passphrase_mounts_nothing() {
    need_mounts!("a_wrong_passphrase_mounts_nothing");
    let world = World::dir();
    world.init(&[]);
    fs::write(world.path("wrong"), "six random words are even better").unwrap();
    let said = world.try_mount(&["--passphrase-file", world.path("wrong").to_str().unwrap()]);
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.err.contains("passphrase") && !said.err.contains("even better"), "{said:?}");
    assert!(!is_mounted(&world.mnt()));
    let mount = world.mount(&[]);
    assert_eq!(mount.audit("unlock-failed").len(), 1);
    mount.unmount();
}

#[test]
fn status_tells_of_every_mount() {
    need_mounts!("status_tells_of_every_mount");
    let mut world = World::dir();
    assert_eq!(world.run(&["status"]).ok().out, "nothing is mounted\n");
    world.init(&["--name", "scans"]);
    let mount = world.mount(&[]);
    let version = fs::read_to_string(world.file(".smpfs/version")).unwrap();
    assert_eq!(version, format!("smpfs {}\n", env!("CARGO_PKG_VERSION")));
    let mnt = world.mnt().display().to_string();
    let listed = world.run(&["status"]).ok().out;
    for text in [listed, fs::read_to_string(world.file(".smpfs/status")).unwrap()] {
        assert!(text.contains(&mnt) && text.contains("scans") && text.contains("all is in the bucket"), "{text}");
    }
    let all: serde_json::Value = serde_json::from_str(&world.run(&["status", "--json"]).ok().out).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 1);
    let own: serde_json::Value = serde_json::from_str(&fs::read_to_string(world.file(".smpfs/status.json")).unwrap()).unwrap();
    for s in [&all[0], &mount.status(), &own] {
        assert_eq!((s["mount_point"].as_str(), s["volume_name"].as_str()), (Some(mnt.as_str()), Some("scans")));
        assert_eq!((s["health"].as_str(), s["mode"].as_str()), (Some("ok"), Some("zero-knowledge")));
    }
    // Twice in one place, and twice of one volume on one machine, is refused; the mount goes on.
    let again = world.try_mount(&[]);
    assert_eq!(again.code, 7, "{again:?}");
    fs::create_dir(world.path("other")).unwrap();
    let other = world.run(&["mount", &world.store, world.path("other").to_str().unwrap()]);
    assert!(other.code != 0 && other.err.contains("mounted already"), "{other:?}");
    assert!(!is_mounted(&world.path("other")));
    fs::write(world.file("still"), "here").unwrap();
    mount.unmount();
    assert_eq!(world.run(&["status"]).ok().out, "nothing is mounted\n");
    world.become_another_machine("elsewhere");
    let mount = world.mount(&[]);
    assert_eq!(fs::read(world.file("still")).unwrap(), b"here");
    mount.unmount();
}

#[test]
fn unmount_waits_for_the_bucket() {
    need_mounts!("unmount_waits_for_the_bucket");
    let world = World::dir();
    world.init(&[]);
    let mount = world.mount(&["--upload-limit", "2MiB"]);
    fs::write(world.file("slow"), noise(1, 4 << 20)).unwrap();
    let mnt = world.mnt();
    let early = world.run(&["unmount", mnt.to_str().unwrap(), "--timeout", "0s"]);
    assert_eq!(early.code, 6, "{early:?}");
    assert!(early.err.contains("not everything is in the bucket yet"), "{early:?}");
    assert!(!is_mounted(&mnt));
    let late = world.run(&["unmount", mnt.to_str().unwrap()]);
    // The uploads may have ended between the two: then there is no process to ask any more.
    assert!(late.code == 0 || (late.code == 9 && !alive(mount.pid)), "{late:?}");
    let mount = world.mount(&[]);
    assert!(fs::read(world.file("slow")).unwrap() == noise(1, 4 << 20));
    let keep_open = fs::File::open(world.file("slow")).unwrap();
    let busy = world.run(&["unmount", mnt.to_str().unwrap()]);
    assert_eq!(busy.code, 7, "{busy:?}");
    drop(keep_open);
    mount.unmount();
}

/// Python with a module, from the tests' virtual environment or the path.
fn python(module: &str) -> Option<String> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python3").display().to_string();
    let given = std::env::var("PYTHON").ok();
    let mut all = given.into_iter().chain([venv, "python3".to_owned()]);
    all.find(|p| Command::new(p).args(["-c", &format!("import {module}")]).output().is_ok_and(|o| o.status.success()))
}

#[test]
fn dicom_files_are_read_back_by_pydicom() {
    need_mounts!("dicom_files_are_read_back_by_pydicom");
    let Some(python) = python("pydicom") else {
        return skipped("dicom_files_are_read_back_by_pydicom", "pydicom is not installed");
    };
    let world = World::dir();
    world.init(&[]);
    let find = "import pydicom.data, os; print(os.path.dirname(pydicom.data.get_testdata_file('CT_small.dcm', download=False)))";
    let from = run({
        let mut c = Command::new(&python);
        c.args(["-c", find]);
        c
    })
    .ok();
    let mount = world.mount(&[]);
    let copied = world.file("DICOM");
    shell("cp -r \"$1\" \"$2\"; diff -r \"$1\" \"$2\"", &[Path::new(from.out.trim()), &copied]).ok();
    mount.unmount();
    let mount = world.mount(&[]);
    let check = "import sys, os, hashlib, pydicom\n\
        a, b, n = sys.argv[1], sys.argv[2], 0\n\
        for d, _, names in os.walk(b):\n\
        \x20   for name in names:\n\
        \x20       p = os.path.join(d, name); q = os.path.join(a, os.path.relpath(p, b))\n\
        \x20       assert open(p, 'rb').read() == open(q, 'rb').read(), p\n\
        \x20       try: want = pydicom.dcmread(q)\n\
        \x20       except Exception: continue\n\
        \x20       assert pydicom.dcmread(p) == want, p\n\
        \x20       n += 1\n\
        print(n)";
    let mut c = Command::new(&python);
    c.args(["-c", check, from.out.trim()]).arg(&copied);
    let read = run(c).ok();
    assert!(read.out.trim().parse::<u32>().unwrap() > 50, "{read:?}");
    mount.unmount();
}

#[test]
fn a_nifti_is_read_by_nibabel() {
    need_mounts!("a_nifti_is_read_by_nibabel");
    let Some(python) = python("nibabel") else { return skipped("a_nifti_is_read_by_nibabel", "nibabel is not installed") };
    let world = World::dir();
    world.init(&[]);
    let mount = world.mount(&[]);
    let write = "import sys, numpy, nibabel\n\
        nibabel.save(nibabel.Nifti1Image(numpy.arange(64**3, dtype='int32').reshape(64, 64, 64), numpy.eye(4)), sys.argv[1])";
    let read = "import sys, numpy, nibabel\n\
        i = nibabel.load(sys.argv[1]); assert (numpy.asarray(i.dataobj).ravel() == numpy.arange(64**3)).all()";
    let call = |code: &str, name: &str| {
        let mut c = Command::new(&python);
        c.args(["-c", code]).arg(world.file(name));
        run(c).ok();
    };
    for name in ["brain.nii", "brain.nii.gz"] {
        call(write, name);
        call(read, name);
    }
    mount.unmount();
    let mount = world.mount(&[]);
    call(read, "brain.nii");
    call(read, "brain.nii.gz");
    mount.unmount();
}

#[test]
fn a_video_is_made_in_the_mount_and_probed() {
    need_mounts!("a_video_is_made_in_the_mount_and_probed");
    if !["ffmpeg", "ffprobe"].iter().all(|p| Command::new(p).arg("-version").output().is_ok_and(|o| o.status.success())) {
        return skipped("a_video_is_made_in_the_mount_and_probed", "ffmpeg is not installed");
    }
    let world = World::dir();
    world.init(&[]);
    let mount = world.mount(&[]);
    // +faststart moves the index to the front: it reads and rewrites the whole file.
    let make = "ffmpeg -v error -f lavfi -i testsrc=duration=3:size=320x240:rate=10 -c:v mpeg4 -movflags +faststart \"$1\"";
    shell(make, &[&world.file("v.mp4")]).ok();
    mount.unmount();
    let mount = world.mount(&[]);
    let probe = "ffprobe -v error -count_frames -show_entries stream=nb_read_frames,width -of csv=p=0 \"$1\"";
    assert_eq!(shell(probe, &[&world.file("v.mp4")]).ok().out.trim(), "320,30");
    mount.unmount();
}
