//! What every [`Disk`] must do, as one suite that both of them pass.

use super::*;

fn kind<T>(r: Result<T>) -> Option<Kind> {
    r.err().map(|e| e.kind())
}

/// Runs the suite on an empty disk.
pub fn run(disk: &dyn Disk) {
    files(disk);
    names(disk);
    helpers(disk);
}

fn files(disk: &dyn Disk) {
    assert_eq!(kind(disk.open("f", Access::Read)), Some(Kind::NotFound));
    assert_eq!(kind(disk.open("f", Access::Write)), Some(Kind::NotFound));
    let f = disk.open("f", Access::CreateNew).unwrap();
    assert_eq!(kind(disk.open("f", Access::CreateNew)), Some(Kind::Exists));
    assert!(f.is_empty().unwrap());
    f.pwrite(4, b"data").unwrap();
    f.pwrite(0, b"ab").unwrap();
    let mut buf = [9; 10];
    assert_eq!(f.pread(0, &mut buf).unwrap(), 8);
    assert_eq!(&buf, b"ab\0\0data\x09\x09");
    assert_eq!((f.pread(6, &mut buf).unwrap(), f.pread(8, &mut buf).unwrap(), f.pread(99, &mut buf).unwrap()), (2, 0, 0));
    f.punch(4, 2).unwrap();
    assert_eq!(read_all(disk, "f", 8).unwrap(), b"ab\0\0\0\0ta");
    assert_eq!(kind(read_all(disk, "f", 7)), Some(Kind::TooLarge));
    f.truncate(3).unwrap();
    f.truncate(5).unwrap();
    f.pwrite_durable(1, b"b").unwrap();
    f.sync_data().unwrap();
    assert_eq!(disk.open("f", Access::Create).unwrap().len().unwrap(), 5);
    assert_eq!((disk.len("f").unwrap(), read_all(disk, "f", 5).unwrap()), (5, b"ab\0\0\0".to_vec()));
    // An open file outlives its name.
    disk.remove("f").unwrap();
    f.pwrite(0, b"z").unwrap();
    assert_eq!((f.len().unwrap(), kind(disk.len("f")), kind(disk.remove("f"))), (5, Some(Kind::NotFound), Some(Kind::NotFound)));
}

fn names(disk: &dyn Disk) {
    assert_eq!(kind(disk.open("a/x", Access::Create)), Some(Kind::NotFound));
    disk.make_dir("a/b").unwrap();
    disk.make_dir("a/b").unwrap();
    disk.make_dir("").unwrap();
    disk.open("a/x", Access::Create).unwrap().pwrite(0, b"x").unwrap();
    disk.open("a/y", Access::Create).unwrap().pwrite(0, b"yy").unwrap();
    assert_eq!(kind(disk.make_dir("a/x/y")), Some(Kind::NotDir));
    assert_eq!(kind(disk.open("a/b", Access::Write)), Some(Kind::IsDir));
    assert_eq!(kind(disk.len("a/b")), Some(Kind::IsDir));
    assert_eq!(kind(disk.list("nothing")), Some(Kind::NotFound));
    let entry = |name: &str, kind, len| Entry { name: name.to_owned(), kind, len };
    assert_eq!(
        disk.list("a").unwrap(),
        [entry("b", EntryKind::Dir, 0), entry("x", EntryKind::File, 1), entry("y", EntryKind::File, 2)]
    );
    assert_eq!(disk.list("").unwrap(), [entry("a", EntryKind::Dir, 0)]);
    assert_eq!(kind(disk.remove_dir("a")), Some(Kind::NotEmpty));
    disk.rename("a/x", "a/y").unwrap();
    assert_eq!(kind(disk.rename("a/x", "a/z")), Some(Kind::NotFound));
    assert_eq!(read_all(disk, "a/y", 9).unwrap(), b"x");
    disk.rename("a", "c").unwrap();
    assert_eq!(disk.len("c/y").unwrap(), 1);
    for dir in ["c", "c/b", ""] {
        disk.sync_dir(dir).unwrap();
    }
    disk.remove("c/y").unwrap();
    disk.remove_dir("c/b").unwrap();
    disk.remove_dir("c").unwrap();
    assert!(disk.list("").unwrap().is_empty());
    for bad in ["/etc/passwd", "../x", "a/../../x", ""] {
        assert_eq!(kind(disk.open(bad, Access::Create)), Some(Kind::Invalid), "{bad:?}");
        assert_eq!(kind(disk.remove(bad)), Some(Kind::Invalid));
        assert_eq!(kind(disk.rename("c", bad)), Some(Kind::Invalid));
    }
}

fn helpers(disk: &dyn Disk) {
    replace(disk, "r", b"one").unwrap();
    replace(disk, "r", b"two!").unwrap();
    assert_eq!(read_all(disk, "r", 99).unwrap(), b"two!");
    assert_eq!(disk.list("").unwrap().len(), 1, "no temporary file stays");
    let f = disk.open("r", Access::Read).unwrap();
    assert_eq!(kind(read_exact(&*f, 2, &mut [0; 3])), Some(Kind::Corrupt));
    let file = disk.open("r", Access::Write).unwrap();
    assert_eq!(overwrite(&*file, &mut |b| b.fill(b'#')).unwrap(), 4);
    assert_eq!(read_all(disk, "r", 9).unwrap(), b"####");
    file.truncate(0).unwrap();
    assert_eq!(overwrite(&*file, &mut |_| ()).unwrap(), 0);
    disk.remove("r").unwrap();
    let held = disk.lock("l").unwrap();
    assert_eq!(kind(disk.lock("l")), Some(Kind::Busy));
    drop(held);
    drop(disk.lock("l").unwrap());
    let space = disk.space().unwrap();
    assert!(space.free <= space.total && space.total > 0);
    assert!(!disk.describe().is_empty());
    disk.remove("l").unwrap();
}
