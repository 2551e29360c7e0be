//! The simulated disk against its contract and its promises.

use super::*;
use crate::disk::{read_all, replace};

#[test]
fn passes_the_contract() {
    super::super::contract::run(&SimDisk::new(1));
}

#[test]
fn power_loss_keeps_what_was_synced_and_part_of_the_rest() {
    let (mut shorter, mut torn, mut whole) = (0, 0, 0);
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let f = disk.open("f", Access::Create).unwrap();
        f.pwrite(0, &[1; 1000]).unwrap();
        f.sync_data().unwrap();
        disk.sync_dir("").unwrap();
        f.pwrite(1000, &[2; 3000]).unwrap();
        disk.crash(Crash::Power);
        assert_eq!(f.len().err().map(|e| e.kind()), Some(Kind::Unavailable), "old handles are dead");
        let left = read_all(&disk, "f", 1 << 20).unwrap();
        assert_eq!(left[..1000], [1; 1000]);
        match &left[1000..] {
            rest if rest == [2; 3000] => whole += 1,
            rest if rest.iter().all(|b| *b == 2) => shorter += 1,
            _ => torn += 1,
        }
    }
    assert!(shorter > 20 && torn > 20 && whole > 20, "{shorter} {torn} {whole}");
}

#[test]
fn names_need_their_directory_synced() {
    let lost = (0..50).filter(|seed| {
        let disk = SimDisk::new(*seed);
        disk.open("f", Access::Create).unwrap().sync_data().unwrap();
        disk.crash(Crash::Power);
        disk.list("").unwrap().is_empty()
    });
    assert!(lost.count() > 10);
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        replace(&disk, "pins", b"old").unwrap();
        disk.set_faults(Faults { fail_sync: Some(u64::from(seed % 2 == 0)), ..Faults::default() });
        assert!(replace(&disk, "pins", b"new").is_err());
        disk.crash(Crash::Power);
        let left = read_all(&disk, "pins", 9).unwrap();
        assert!(left == b"old" || left == b"new", "never torn: {left:?}");
    }
}

#[test]
fn a_full_disk_takes_what_fits() {
    let disk = SimDisk::new(3);
    disk.set_faults(Faults { capacity: Some(10), ..Faults::default() });
    let f = disk.open("f", Access::Create).unwrap();
    f.pwrite(0, &[1; 8]).unwrap();
    assert_eq!(f.pwrite(8, &[2; 8]).err().map(|e| e.kind()), Some(Kind::NoSpace));
    assert_eq!((f.len().unwrap(), disk.space().unwrap().free), (10, 0));
    f.pwrite(0, &[3; 10]).unwrap();
    f.truncate(4).unwrap();
    f.pwrite(4, &[4; 6]).unwrap();
}

#[test]
fn kill_keeps_everything_written() {
    let disk = SimDisk::new(4);
    let _lock = disk.lock("lock").unwrap();
    disk.open("f", Access::Create).unwrap().pwrite(0, b"abc").unwrap();
    disk.crash(Crash::Kill);
    assert_eq!(read_all(&disk, "f", 9).unwrap(), b"abc");
    let process = disk.process();
    disk.crash(Crash::Kill);
    assert_eq!(process.open("f", Access::Read).err().map(|e| e.kind()), Some(Kind::Unavailable));
    assert_eq!(disk.process().len("f").unwrap(), 3);
    assert!(disk.durable_files().is_empty() && disk.holds(b"bc") && !disk.holds(b"bd"));
    disk.lock("lock").unwrap();
}

#[test]
fn a_durable_write_takes_nothing_else_along() {
    let mut rest_lost = 0;
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        let f = disk.open("f", Access::Create).unwrap();
        disk.sync_dir("").unwrap();
        f.pwrite(0, &[1; 1000]).unwrap();
        f.pwrite(500, &[2; 1000]).unwrap();
        f.pwrite_durable(400, &[3; 200]).unwrap();
        disk.crash(Crash::Power);
        let left = read_all(&disk, "f", 1 << 20).unwrap();
        assert_eq!(left[400..600], [3; 200]);
        rest_lost += u32::from(left.len() < 1500 || left[..400] != [1; 400] || left[600..] != [2; 900]);
    }
    assert!(rest_lost > 20, "{rest_lost}");
}
