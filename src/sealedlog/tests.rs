//! Logs under faults, crashes and tampering.

use super::*;
use crate::disk::SimDisk;
use crate::disk::sim::{Crash, Faults};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn owner() -> LogOwner {
    LogOwner { kind: LogKind::Spool, volume: VolumeId([8; 16]), wrap: SecretKey::new(&[9; 32]) }
}

fn create(disk: &SimDisk) -> SealedLog {
    SealedLog::create(Arc::new(disk.clone()), "log", &owner(), &Env::real()).unwrap()
}

fn closed(disk: &SimDisk) -> ClosedLog {
    ClosedLog::open(Arc::new(disk.clone()), "log", &owner()).unwrap().unwrap()
}

/// Types and payloads of a closed log, and its end.
fn replay(disk: &SimDisk) -> (Vec<(u8, Vec<u8>)>, Tail) {
    let mut all = Vec::new();
    let Some(log) = ClosedLog::open(Arc::new(disk.clone()), "log", &owner()).unwrap() else { return (all, Tail::Clean) };
    let tail = log.replay(|r| {
        assert_eq!(*log.read(r.pos)?, *r.payload, "a position reads what the replay gave");
        all.push((r.kind, r.payload.to_vec()));
        Ok(())
    });
    (all, tail.unwrap())
}

#[test]
fn round_trip_by_position_and_in_order() {
    let disk = SimDisk::new(1);
    let log = create(&disk);
    assert!(log.is_empty());
    let sizes = [0, 1, 100, 65536 + 64, MAX_PAYLOAD];
    let mut positions = Vec::new();
    for (i, n) in sizes.iter().enumerate() {
        positions.push(log.append(i as u8, &vec![i as u8; *n]).unwrap());
    }
    assert_eq!(log.append(0, &vec![0; MAX_PAYLOAD + 1]).unwrap_err().kind(), Kind::TooLarge);
    for (i, pos) in positions.iter().enumerate() {
        assert_eq!(*log.read(*pos).unwrap(), vec![i as u8; sizes[i]]);
    }
    let wrong = RecordPos { seq: 7, ..positions[1] };
    assert_eq!(log.read(wrong).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(log.read(RecordPos { offset: 1 << 40, ..positions[1] }).unwrap_err().kind(), Kind::Corrupt);
    let (all, tail) = replay(&disk);
    assert_eq!(tail, Tail::Clean);
    assert_eq!(
        all.iter().map(|(k, p)| (*k as usize, p.len())).collect::<Vec<_>>(),
        sizes.into_iter().enumerate().collect::<Vec<_>>()
    );
    assert_eq!(closed(&disk).len(), log.len());
}

#[test]
fn one_buffer_serves_many_reads() {
    let disk = SimDisk::new(1);
    let log = create(&disk);
    let positions = [100, 70_000, 3].map(|n| log.append_parts(1, &[&[7; 8], &vec![n as u8; n]]).unwrap());
    let mut opened = Opened::default();
    assert!(opened.payload().is_empty());
    for i in [1, 0, 2, 1] {
        log.read_into(positions[i], &mut opened).unwrap();
        assert_eq!(opened.payload(), *log.read(positions[i]).unwrap());
    }
    // What failed to open leaves nothing that could be taken for the record.
    assert!(log.read_into(RecordPos { seq: 9, ..positions[0] }, &mut opened).is_err());
    assert!(opened.payload().is_empty());
    closed(&disk).read_into(positions[2], &mut opened).unwrap();
    assert_eq!(opened.payload(), [7, 7, 7, 7, 7, 7, 7, 7, 3, 3, 3]);
}

#[test]
fn nothing_readable_is_on_the_disk_and_destroy_leaves_no_way_in() {
    let disk = SimDisk::new(2);
    let log = create(&disk);
    log.append(0, b"CANARY-CANARY-CANARY").unwrap();
    log.sync().unwrap();
    assert!(!disk.holds(b"CANARY") && !disk.holds(&[9; 32]));
    let header = disk.files()["log"][..HEADER_LEN].to_vec();
    log.destroy().unwrap();
    assert!(disk.files().is_empty() && disk.durable_files().is_empty());
    assert!(!disk.holds(&header[44..148]), "the wrapped key is overwritten on the drive, not only unlinked");
    for e in [log.append(0, b"x").unwrap_err(), log.sync().unwrap_err()] {
        assert_eq!(e.kind(), Kind::Stale);
    }
}

#[test]
fn an_interrupted_destroy_or_creation_is_an_empty_log() {
    for damage in
        [|f: &mut Vec<u8>| f[..HEADER_LEN].fill(0), |f: &mut Vec<u8>| f.truncate(HEADER_LEN - 1), |f: &mut Vec<u8>| f.clear()]
    {
        let disk = SimDisk::new(3);
        create(&disk).append(0, b"x").unwrap();
        disk.tamper("log", damage).unwrap();
        assert!(ClosedLog::open(Arc::new(disk), "log", &owner()).unwrap().is_none());
    }
}

#[test]
fn another_owner_does_not_open_it() {
    let disk = SimDisk::new(4);
    create(&disk);
    let shared: Arc<dyn Disk> = Arc::new(disk);
    for other in [
        LogOwner { kind: LogKind::Journal, ..owner() },
        LogOwner { volume: VolumeId([0; 16]), ..owner() },
        LogOwner { wrap: SecretKey::new(&[0; 32]), ..owner() },
    ] {
        assert_eq!(ClosedLog::open(shared.clone(), "log", &other).err().map(|e| e.kind()), Some(Kind::Corrupt));
    }
    assert_eq!(SealedLog::create(shared, "log", &owner(), &Env::real()).err().map(|e| e.kind()), Some(Kind::Exists));
}

#[test]
fn a_full_disk_costs_nothing_but_the_record_that_did_not_fit() {
    let disk = SimDisk::new(5);
    let log = create(&disk);
    log.append(0, &[1; 100]).unwrap();
    disk.set_faults(Faults { capacity: Some(log.len() + 60), ..Faults::default() });
    // Far more failures than a reader would try numbers for.
    for _ in 0..50 {
        assert_eq!(log.append(1, &[2; 100]).unwrap_err().kind(), Kind::NoSpace);
        assert_eq!(disk.len("log").unwrap(), log.len(), "the torn bytes are cut off");
    }
    let small = log.append(2, &[3; 20]).unwrap();
    assert_eq!(small.seq, 2, "only the first failure risked a number");
    disk.set_faults(Faults::default());
    log.append(3, &[4; 100]).unwrap();
    let (all, tail) = replay(&disk);
    assert_eq!((all.iter().map(|r| r.0).collect::<Vec<_>>(), tail), (vec![0, 2, 3], Tail::Clean));
}

#[test]
fn failed_writes_burn_their_numbers_and_a_log_that_readers_could_not_follow_is_given_up() {
    let disk = SimDisk::new(6);
    let log = create(&disk);
    let first = log.append(0, b"first").unwrap();
    for _ in 0..3 {
        // The second write of an append is the record itself, behind the probe.
        disk.set_faults(Faults { fail_write: Some(u64::from(log.tail.lock().cautious)), ..Faults::default() });
        assert_eq!(log.append(0, b"lost").unwrap_err().kind(), Kind::Unavailable);
    }
    let second = log.append(0, b"second").unwrap();
    assert_eq!((first.seq, second.seq), (0, 4));
    assert_eq!(replay(&disk).0.len(), 2);
    while !log.is_broken() {
        disk.set_faults(Faults { fail_write: Some(u64::from(log.tail.lock().cautious)), ..Faults::default() });
        log.append(0, b"lost").unwrap_err();
    }
    assert_eq!(log.tail.lock().burnt, SEQ_WINDOW - 1);
    assert!(log.append(0, b"never").is_err() && log.read(second).is_ok());
    log.sync().unwrap();
    assert_eq!(replay(&disk).0.len(), 2);
}

#[test]
fn after_a_failed_sync_nothing_is_promised() {
    for nth in [0, 1] {
        let disk = SimDisk::new(7);
        let log = create(&disk);
        let pos = log.append(0, b"x").unwrap();
        disk.set_faults(Faults { fail_sync: Some(nth), ..Faults::default() });
        assert!(log.sync().is_err() && log.sync().is_err() && log.append(0, b"y").is_err());
        assert_eq!(*log.read(pos).unwrap(), b"x");
    }
}

#[test]
fn a_failed_repair_ends_the_log() {
    let disk = SimDisk::new(8);
    let log = create(&disk);
    log.append(0, b"kept").unwrap();
    disk.set_faults(Faults { fail_write: Some(0), fail_truncate: Some(0), ..Faults::default() });
    assert!(log.append(0, b"lost").is_err() && log.is_broken());
    assert_eq!(replay(&disk).0, [(0, b"kept".to_vec())]);
    assert!(matches!(replay(&disk).1, Tail::Torn { .. }));
}

#[test]
fn damage_in_the_middle_is_told_from_a_torn_tail() {
    let disk = SimDisk::new(9);
    let log = create(&disk);
    let positions: Vec<RecordPos> = (0..10).map(|i| log.append(i, &[i; 50]).unwrap()).collect();
    let good = disk.files()["log"].clone();
    let at = |i: usize| positions[i].offset as usize;
    type Change = Box<dyn Fn(&mut Vec<u8>)>;
    let step = at(1) - at(0);
    let damaged: Vec<(usize, Change)> = vec![
        (4, Box::new(move |f| f[HEADER_LEN + 4 * step + 20] ^= 1)),
        (4, Box::new(move |f| f[HEADER_LEN + 4 * step] ^= 1)),
        (4, Box::new(move |f| f[HEADER_LEN + 4 * step + 3] ^= 0x70)),
        (0, Box::new(move |f| f[HEADER_LEN + step - 1] ^= 1)),
        (3, Box::new(move |f| drop(f.drain(HEADER_LEN + 3 * step..HEADER_LEN + 4 * step)))), // one dropped
        (3, Box::new(move |f| f[HEADER_LEN + 3 * step..HEADER_LEN + 5 * step].rotate_left(step))), // two swapped
        (10, Box::new(|f| f.extend(vec![7; 2 << 20]))),
    ];
    for (i, (whole, change)) in damaged.into_iter().enumerate() {
        disk.tamper("log", |f| f.clone_from(&good)).unwrap();
        disk.tamper("log", |f| change(f)).unwrap();
        let (all, tail) = replay(&disk);
        let place = positions.get(whole).map_or(good.len() as u64, |p| p.offset);
        assert_eq!(all.len(), whole, "case {i}");
        // A dropped record leaves nothing that opens in its new place: no life behind, so it looks torn, but it is noticed.
        let noticed = matches!(tail, Tail::Damaged { at, .. } | Tail::Torn { at, .. } if at == place);
        assert!(noticed && (i == 4 || tail.check().is_err()), "case {i}: {tail:?}");
    }
    for cut in 0..step {
        disk.tamper("log", |f| *f = good[..good.len() - cut].to_vec()).unwrap();
        let (all, tail) = replay(&disk);
        assert_eq!((all.len(), tail == Tail::Clean), if cut == 0 { (10, true) } else { (9, false) });
        tail.check().unwrap();
    }
    disk.tamper("log", |f| *f = [&good[..], &vec![0; 3 << 20]].concat()).unwrap();
    assert_eq!(replay(&disk).1, Tail::Torn { at: good.len() as u64, lost: 3 << 20 });
    disk.tamper("log", |f| *f = [&good[..], &vec![1; 3000]].concat()).unwrap();
    assert_eq!(replay(&disk).1, Tail::Torn { at: good.len() as u64, lost: 3000 });
}

#[test]
fn many_threads_append_read_and_sync() {
    let disk = SimDisk::new(10);
    let log = create(&disk);
    std::thread::scope(|s| {
        for t in 0..4u8 {
            let log = &log;
            s.spawn(move || {
                for i in 0..200u16 {
                    let payload = [&[t][..], &i.to_be_bytes(), &vec![t; i as usize]].concat();
                    let pos = log.append(t, &payload).unwrap();
                    assert_eq!(*log.read(pos).unwrap(), payload);
                    if i % 50 == 0 {
                        log.sync().unwrap();
                    }
                }
            });
        }
    });
    let (all, tail) = replay(&disk);
    assert_eq!((all.len(), tail), (800, Tail::Clean));
    for t in 0..4 {
        let order: Vec<u8> = all.iter().filter(|(k, _)| *k == t).map(|(_, p)| p[2]).collect();
        assert_eq!(order, (0..200).collect::<Vec<u8>>(), "each thread's records keep their order");
    }
}

#[test]
fn a_set_goes_on_in_new_files_and_never_in_old_ones() {
    let disk = SimDisk::new(11);
    let open = || LogSet::open(Arc::new(disk.clone()), "logs", "known", owner(), Env::real()).unwrap();
    let contents = |set: &LogSet| {
        let mut all = Vec::new();
        let tails = set
            .replay(|_, r| {
                all.push(r.payload.to_vec());
                Ok(())
            })
            .unwrap();
        assert!(tails.iter().all(|(_, t)| *t == Tail::Clean));
        all
    };
    for round in 0..3u8 {
        let set = open();
        assert_eq!(contents(&set).len(), round as usize * 2);
        set.append(0, &[round, 0]).unwrap();
        set.rotate().unwrap();
        set.append(0, &[round, 1]).unwrap();
        set.sync().unwrap();
        disk.crash(Crash::Power);
    }
    let set = open();
    assert_eq!(contents(&set), [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]);
    let files = set.files().unwrap();
    set.destroy_before(files[2].0).unwrap();
    assert_eq!(contents(&set), [[1, 0], [1, 1], [2, 0], [2, 1]]);
    set.rewrite(&mut [(0, b"all".to_vec())].into_iter()).unwrap();
    disk.crash(Crash::Power);
    assert_eq!(contents(&open()), [b"all".to_vec()]);
}

#[test]
fn a_set_outlives_a_broken_file_but_does_not_forget_a_failed_sync() {
    let disk = SimDisk::new(12);
    let set = LogSet::open(Arc::new(disk.clone()), "logs", "q", owner(), Env::real()).unwrap();
    set.append(0, b"one").unwrap();
    disk.set_faults(Faults { fail_sync: Some(0), ..Faults::default() });
    assert!(set.sync().is_err());
    set.append(0, b"two").unwrap();
    assert_eq!(set.files().unwrap().len(), 2);
    assert!(set.sync().is_err(), "`one` may be lost, and only its owner can say it again");
    set.accept_loss().unwrap();
    set.append(0, b"three").unwrap();
    set.sync().unwrap();
    set.destroy_before(2).unwrap();
    disk.set_faults(Faults { fail_write: Some(1), ..Faults::default() });
    assert!(set.rewrite(&mut [(0, b"never".to_vec())].into_iter()).is_err());
    assert_eq!(set.files().unwrap().len(), 2, "a failed rewrite leaves the old files");
    set.rewrite(&mut [(0, b"both".to_vec())].into_iter()).unwrap();
    set.sync().unwrap();
    assert_eq!(set.files().unwrap().len(), 1);
}

/// What a random history does to a log.
#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Sync,
    Full,
    FailWrite,
    Heal,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop_oneof![0..40usize, 400..700usize, Just(5000)].prop_map(Step::Append),
        2 => Just(Step::Sync),
        1 => Just(Step::Full),
        1 => Just(Step::FailWrite),
        1 => Just(Step::Heal),
    ]
}

proptest! {
    /// After any history and any crash a replay gives a prefix of what was acknowledged, and all of what was synced; no number
    /// is used twice; nothing in clear reaches the disk.
    #[test]
    fn a_crash_leaves_a_prefix_with_everything_synced(
        seed: u64,
        power: bool,
        history in prop::collection::vec(step(), 1..60),
    ) {
        let disk = SimDisk::new(seed);
        let log = create(&disk);
        let (mut acknowledged, mut synced, mut numbers) = (Vec::new(), 0, BTreeSet::new());
        for (i, step) in history.iter().enumerate() {
            match step {
                Step::Append(n) => {
                    let payload = [b"CANARY".to_vec(), vec![i as u8; *n]].concat();
                    let seq = log.tail.lock().seq;
                    let result = log.append(i as u8, &payload);
                    if let Ok(pos) = result {
                        prop_assert_eq!(pos.seq, seq);
                        prop_assert!(numbers.insert(seq), "number {} was used twice", seq);
                        acknowledged.push((i as u8, payload));
                    } else if log.tail.lock().seq > seq {
                        prop_assert!(numbers.insert(seq), "number {} was used twice", seq);
                    }
                }
                Step::Sync if log.sync().is_ok() => synced = acknowledged.len(),
                Step::Sync => {}
                Step::Full => disk.set_faults(Faults { capacity: Some(log.len() + 100), ..Faults::default() }),
                Step::FailWrite => disk.set_faults(Faults { fail_write: Some(0), ..Faults::default() }),
                Step::Heal => disk.set_faults(Faults::default()),
            }
        }
        prop_assert!(!disk.holds(b"CANARY"));
        disk.crash(if power { Crash::Power } else { Crash::Kill });
        disk.set_faults(Faults::default());
        if synced == 0 && disk.len("log").is_err() {
            return Ok(());
        }
        let (all, tail) = replay(&disk);
        if power {
            prop_assert!(all.len() >= synced, "{} of {} synced records", all.len(), synced);
            prop_assert!(acknowledged.starts_with(&all));
        } else {
            prop_assert_eq!(&all, &acknowledged);
            prop_assert_eq!(tail, Tail::Clean);
        }
    }

    /// A log cut at any byte gives the records that are whole; one changed at any byte never gives a wrong one.
    #[test]
    fn any_cut_and_any_flip(sizes in prop::collection::vec(0usize..300, 1..12), cut: prop::sample::Index, bit in 0u8..8) {
        let disk = SimDisk::new(0);
        let log = create(&disk);
        let ends: Vec<(u64, Vec<u8>)> = sizes.iter().map(|n| {
            let payload = vec![*n as u8; *n];
            log.append(0, &payload).unwrap();
            (log.len(), payload)
        }).collect();
        let good = disk.files()["log"].clone();
        let at = HEADER_LEN + cut.index(good.len() - HEADER_LEN);
        let whole = ends.iter().filter(|(end, _)| *end <= at as u64).count();
        disk.tamper("log", |f| f.truncate(at)).unwrap();
        let (all, tail) = replay(&disk);
        prop_assert_eq!(all.len(), whole);
        prop_assert!(tail.check().is_ok());
        disk.tamper("log", |f| { *f = good; f[at] ^= 1 << bit; }).unwrap();
        let (all, tail) = replay(&disk);
        prop_assert_eq!(all.len(), whole);
        prop_assert!(tail != Tail::Clean);
        for ((_, payload), (_, expected)) in all.iter().zip(&ends) {
            prop_assert_eq!(payload, expected);
        }
    }
}
