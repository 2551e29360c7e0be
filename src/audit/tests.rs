//! The audit log and the quarantine under tampering, crashes and full disks.

use super::*;
use crate::disk::sim::{Crash, Faults};
use crate::disk::{Access, SimDisk};
use crate::sealedlog::SealedLog;

const VOLUME: VolumeId = VolumeId([1; 16]);
const AT: Time = Time { sec: 1_700_000_000, nsec: 5_000_000 };

fn wrap() -> SecretKey {
    SecretKey::new(&[2; 32])
}

fn open_with(disk: &SimDisk, limits: Limits) -> Audit {
    Audit::open(disk.process(), "audit", VOLUME, &wrap(), &Env::real(), limits).unwrap()
}

fn open(disk: &SimDisk) -> Audit {
    open_with(disk, Limits::default())
}

fn committed(generation: u64) -> Event {
    Event::Committed { file: "ab".repeat(32), generation }
}

/// The one file of lines, oldest first.
fn line_files(disk: &SimDisk) -> Vec<String> {
    disk.files().into_keys().filter(|p| p.starts_with("audit/audit-")).collect()
}

/// An attacker with the volume's keys: replaces all files of lines by one with these lines.
fn forge(disk: &SimDisk, lines: &[String]) {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    for path in line_files(disk) {
        shared.remove(&path).unwrap();
    }
    let owner = LogOwner { kind: LogKind::Audit, volume: VOLUME, wrap: wrap() };
    let log = SealedLog::create(shared, "audit/audit-0000000000000001.log", &owner, &Env::real()).unwrap();
    for line in lines {
        log.append(LINE, line.as_bytes()).unwrap();
    }
}

fn history(disk: &SimDisk, n: u64) -> Vec<String> {
    let audit = open(disk);
    audit.event(AT, Event::Mount { read_only: false, version: "1".to_owned() });
    (1..n).for_each(|i| audit.event(AT, committed(i)));
    audit.close().unwrap();
    audit.tail(n as usize)
}

#[test]
fn lines_are_chained_across_mounts_and_sealed() {
    let disk = SimDisk::new(1);
    for mount in 0..3 {
        let audit = open(&disk);
        audit.event(AT, Event::Foreign { object: "CANARY/patient".to_owned() });
        audit.event(AT, committed(mount));
        audit.flush().unwrap();
        let report = audit.verify().unwrap();
        assert_eq!((report.lines, report.first, report.problems), (2 * mount + 2, 0, vec![]));
        if mount == 1 {
            disk.crash(Crash::Power); // without a word: `audit` still thinks it can write
        }
    }
    let audit = open(&disk);
    let tail = audit.tail(2);
    assert_eq!((tail.len(), audit.tail(100).len()), (2, 6));
    assert!(
        tail[0].starts_with("{\"n\":4,\"prev\":\"")
            && tail[0].contains("\"time\":\"2023-11-14T22:13:20.005Z\",\"event\":\"foreign\"")
    );
    assert!(!tail[0].contains("CANARY"), "names stay out unless allowed");
    assert!(!disk.holds(b"CANARY") && !disk.holds(b"committed") && !disk.holds(b"foreign"));
    let open_names = open_with(&disk, Limits { names: Names::Shown, ..Limits::default() });
    open_names.event(AT, Event::Foreign { object: "CANARY/patient".to_owned() });
    open_names.flush().unwrap();
    assert!(open_names.tail(1)[0].contains("CANARY/patient"));
    assert!(!disk.holds(b"CANARY"));
}

#[test]
fn edits_drops_reorders_and_truncation_are_seen_even_when_the_keys_are_known() {
    let pristine = SimDisk::new(2);
    let lines = history(&pristine, 10);
    type Change = fn(&mut Vec<String>);
    let told: [(&str, Change, &str); 8] = [
        ("nothing", |_| (), ""),
        ("edit", |l| l[4] = l[4].replace("\"generation\":4", "\"generation\":5"), "broken"),
        ("edit of the last", |l| l[9] = l[9].replace("\"generation\":9", "\"generation\":5"), "another one"),
        ("drop", |l| drop(l.remove(4)), "missing"),
        ("reorder", |l| l.swap(3, 4), "moved"),
        ("repeat", |l| l.insert(4, l[4].clone()), "repeated"),
        ("truncate the end", |l| l.truncate(7), "too early"),
        ("truncate the beginning", |l| drop(l.drain(..3)), "no rotation"),
    ];
    for (what, change, problem) in told {
        let disk = SimDisk::new(2);
        history(&disk, 10);
        let mut forged = lines.clone();
        change(&mut forged);
        forge(&disk, &forged);
        let audit = open(&disk);
        let report = audit.verify().unwrap();
        if problem.is_empty() {
            assert_eq!(report.problems, [], "{what}");
            continue;
        }
        assert!(report.problems.iter().any(|p| p.what.contains(problem)), "{what}: {:?}", report.problems);
        assert!(audit.tail(1)[0].contains("audit-broken"), "{what}: the next mount writes it down");
        audit.event(AT, committed(99));
        audit.close().unwrap();
        let again = open(&disk);
        assert!(again.tail(1)[0].contains("\"generation\":99"), "{what}: and only the next");
        assert!(again.verify().unwrap().problems.iter().any(|p| p.what.contains(problem)), "{what}: it is never forgotten");
    }
}

#[test]
fn changed_and_missing_files_are_seen() {
    type Change = fn(&SimDisk, &str);
    let changes: [(Change, &str); 4] = [
        (|d, p| d.tamper(p, |f| f[600] ^= 1).unwrap(), "damaged"),
        (|d, p| d.tamper(p, |f| f[50] ^= 1).unwrap(), "damaged"),
        (|d, p| d.remove(p).unwrap(), "ends too early"),
        (
            |d, _| {
                d.list("audit")
                    .unwrap()
                    .iter()
                    .filter(|e| e.name.starts_with("head"))
                    .for_each(|e| d.remove(&format!("audit/{}", e.name)).unwrap())
            },
            "is missing",
        ),
    ];
    for (change, problem) in changes {
        let disk = SimDisk::new(3);
        history(&disk, 20);
        change(&disk, &line_files(&disk)[0]);
        let report = open(&disk).verify().unwrap();
        assert!(report.problems.iter().any(|p| p.what.contains(problem)), "{problem}: {:?}", report.problems);
    }
}

#[test]
fn rotation_bounds_the_size_and_keeps_the_chain() {
    let disk = SimDisk::new(4);
    let limits = Limits { file_bytes: 4096, files: 3, names: Names::Hidden };
    for _ in 0..3 {
        let audit = open_with(&disk, limits);
        for i in 0..200 {
            audit.event(AT, committed(i));
            if i % 50 == 0 {
                audit.flush().unwrap();
            }
        }
        audit.close().unwrap();
        assert_eq!(audit.dropped(), 0);
    }
    let size: usize = line_files(&disk).iter().map(|p| disk.files()[p].len()).sum();
    assert!(line_files(&disk).len() <= 4 && size < 4 * 4096 + 1024, "{size}");
    let audit = open_with(&disk, limits);
    let report = audit.verify().unwrap();
    assert!(report.first > 500 && report.problems.is_empty(), "{report:?}");
    // Somebody removes one more than rotation did.
    drop(audit);
    disk.remove(&line_files(&disk)[0]).unwrap();
    assert!(open_with(&disk, limits).verify().unwrap().problems.iter().any(|p| p.what.contains("no rotation")));
}

#[test]
fn a_full_disk_fails_nobody_and_is_written_down_later() {
    let disk = SimDisk::new(5);
    let audit = open(&disk);
    audit.event(AT, committed(1));
    audit.flush().unwrap();
    let used: usize = disk.files().values().map(Vec::len).sum();
    disk.set_faults(Faults { capacity: Some(used as u64 + 20), ..Faults::default() });
    (0..30).for_each(|i| audit.event(AT, committed(i)));
    audit.flush().unwrap();
    assert_eq!(audit.dropped(), 30);
    disk.set_faults(Faults::default());
    audit.event(AT, committed(2));
    audit.close().unwrap();
    let tail = audit.tail(2);
    assert!(tail[0].contains("\"event\":\"dropped\",\"count\":30") && tail[1].contains("\"generation\":2"), "{tail:?}");
    audit.event(AT, committed(3));
    assert_eq!(audit.dropped(), 31, "a closed log counts as well");
    assert_eq!(open(&disk).verify().unwrap().problems, []);
}

#[test]
fn a_disk_that_is_full_from_the_beginning_does_not_stop_a_mount() {
    let disk = SimDisk::new(9);
    disk.set_faults(Faults { capacity: Some(0), ..Faults::default() });
    let audit = open(&disk);
    audit.event(AT, committed(1));
    assert!(audit.flush().is_err());
    disk.set_faults(Faults::default());
    audit.event(AT, committed(2));
    audit.close().unwrap();
    assert_eq!((audit.dropped(), open(&disk).verify().unwrap().problems), (1, vec![]));
}

#[test]
fn a_failed_sync_is_a_gap_at_worst() {
    let disk = SimDisk::new(6);
    let audit = open(&disk);
    audit.event(AT, committed(1));
    audit.flush().unwrap();
    audit.event(AT, committed(2));
    disk.set_faults(Faults { fail_sync: Some(0), ..Faults::default() });
    assert!(audit.flush().is_err());
    audit.event(AT, committed(3));
    audit.flush().unwrap();
    assert_eq!(audit.verify().unwrap().problems, []);
    audit.close().unwrap();
    assert_eq!(open(&disk).verify().unwrap().lines, 3);
}

#[test]
fn a_kill_loses_no_line_and_a_power_loss_none_that_was_flushed() {
    for seed in 0..30 {
        let disk = SimDisk::new(seed);
        let audit = open(&disk);
        (0..20).for_each(|i| audit.event(AT, committed(i)));
        audit.flush().unwrap();
        (0..20).for_each(|i| audit.event(AT, committed(i)));
        disk.crash(Crash::Power);
        drop(audit);
        let again = open(&disk);
        let report = again.verify().unwrap();
        assert!(report.lines >= 20, "{report:?}");
        let chain = report.problems.iter().filter(|p| !p.what.contains("damaged at byte")).count();
        assert_eq!(chain, 0, "{:?}", report.problems);
    }
}

#[test]
fn many_threads_write_one_chain() {
    let disk = SimDisk::new(7);
    let audit = open(&disk);
    std::thread::scope(|s| (0..4).for_each(|_| drop(s.spawn(|| (0..500).for_each(|i| audit.event(AT, committed(i)))))));
    audit.flush().unwrap();
    let report = audit.verify().unwrap();
    assert_eq!(report.problems, []);
    let dropped_lines = u64::from(audit.dropped() > 0);
    assert!(report.lines + audit.dropped() >= 2000 + dropped_lines, "every event is a line or counted: {report:?}");
}

#[test]
fn failed_unlocks_wait_for_a_key() {
    let disk = SimDisk::new(8);
    for i in 0..3 {
        note_failed_unlock(&disk, "audit", Time { sec: i, nsec: 0 }).unwrap();
    }
    disk.open("audit/unlock-failed", Access::Write).unwrap().pwrite(36, b"torn").unwrap();
    note_failed_unlock(&disk, "audit", Time { sec: 3, nsec: 0 }).unwrap();
    let audit = open(&disk);
    let tail = audit.tail(10);
    assert_eq!(tail.iter().filter(|l| l.contains("unlock-failed")).count(), 4);
    assert!(tail[3].contains("1970-01-01T00:00:03.000Z"));
    assert!(disk.len("audit/unlock-failed").is_err());
    audit.close().unwrap();
    assert_eq!(open(&disk).tail(10).len(), 4);
    for i in 0..2000 {
        note_failed_unlock(&disk, "audit", Time { sec: i, nsec: 0 }).unwrap();
    }
    assert_eq!(disk.len("audit/unlock-failed").unwrap(), 12_000, "an attacker cannot fill the disk with guesses");
}

mod quarantine {
    use super::*;
    use bytes::Bytes;

    fn open(disk: &SimDisk, limits: QuarantineLimits) -> Quarantine {
        Quarantine::open(disk.process(), "q", VOLUME, &wrap(), &Env::real(), limits).unwrap()
    }

    fn finding(object: &str, chunk: Option<u64>) -> Finding {
        Finding {
            object: object.to_owned(),
            version: "v1".to_owned(),
            file: "ff".repeat(32),
            generation: 3,
            chunk,
            stage: "chunk".to_owned(),
            expected: "an authentic chunk".to_owned(),
            got: "another".to_owned(),
        }
    }

    #[test]
    fn finds_are_kept_listed_and_released() {
        let disk = SimDisk::new(1);
        let q = open(&disk, QuarantineLimits::default());
        let evidence = Bytes::from_static(b"ciphertext as it came");
        assert!(q.report(AT, finding("CANARY.dcm", Some(4)), evidence.clone()));
        assert!(!q.report(AT, finding("CANARY.dcm", Some(4)), evidence.clone()), "the same again");
        assert!(q.report(AT, finding("other", None), evidence));
        assert!(q.holds("CANARY.dcm", "v1", 4) && !q.holds("CANARY.dcm", "v1", 5) && !q.holds("CANARY.dcm", "v2", 4));
        assert!(q.holds("other", "v1", 77), "the whole object is held");
        q.flush().unwrap();
        let expected = Counts { records: 2, objects: 2, evidence_bytes: 42, ..Counts::default() };
        assert_eq!((q.counts(), q.list()[0].count), (expected, 2));
        assert!(!disk.holds(b"CANARY"), "the record is sealed");
        assert!(!q.listing(Names::Hidden).contains("CANARY") && q.listing(Names::Shown).contains("CANARY.dcm"));
        disk.crash(Crash::Power);
        let q = open(&disk, QuarantineLimits::default());
        assert_eq!(q.counts(), expected);
        let kept = q.list()[0].clone();
        assert_eq!((kept.time, kept.finding), (AT.sec, finding("CANARY.dcm", Some(4))));
        assert_eq!(disk.files()[&format!("q/evidence/{}", kept.evidence.unwrap())], b"ciphertext as it came");
        assert_eq!((q.release("CANARY.dcm").unwrap(), q.release("CANARY.dcm").unwrap()), (1, 0));
        assert!(!q.holds("CANARY.dcm", "v1", 4));
        let stray = disk.open("q/evidence/0000000000000000.bin", Access::Create).unwrap();
        stray.pwrite(0, b"a crash came before its record").unwrap();
        for _ in 0..3 {
            disk.crash(Crash::Power);
            let q = open(&disk, QuarantineLimits::default());
            assert_eq!(q.counts(), Counts { records: 1, objects: 1, evidence_bytes: 21, ..Counts::default() });
        }
    }

    #[test]
    fn bounds_hold() {
        let disk = SimDisk::new(2);
        let q = open(&disk, QuarantineLimits { records: 5, evidence_bytes: 250 });
        for i in 0..10 {
            q.report(AT, finding("object", Some(i)), Bytes::from(vec![0; 100]));
            q.flush().unwrap();
        }
        let counts = q.counts();
        assert_eq!((counts.records, counts.beyond, counts.evidence_bytes, counts.unwritten), (5, 5, 200, 0));
        assert_eq!(q.list().iter().filter(|h| h.evidence.is_some()).count(), 2, "the first finds keep their evidence");
    }

    #[test]
    fn a_failing_disk_keeps_the_set_in_memory() {
        let disk = SimDisk::new(3);
        let q = open(&disk, QuarantineLimits::default());
        disk.set_faults(Faults { capacity: Some(0), ..Faults::default() });
        assert!(q.report(AT, finding("a", Some(1)), Bytes::from_static(b"x")));
        q.flush().unwrap();
        assert!(q.holds("a", "v1", 1));
        assert_eq!((q.counts().unwritten, q.counts().evidence_bytes), (1, 0));
        disk.set_faults(Faults::default());
        q.report(AT, finding("b", Some(1)), Bytes::from_static(b"x"));
        disk.set_faults(Faults { fail_sync: Some(2), ..Faults::default() });
        q.flush().unwrap();
        drop(q);
        let again = open(&disk, QuarantineLimits::default());
        assert!(again.holds("b", "v1", 1));
    }
}
