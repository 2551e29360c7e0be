//! docs/JSON.md names every field that is printed, and no others.

use super::scrub::{self, Done};
use super::status;
use crate::audit::{Audit, Event, Finding, Limits, Names, Quarantine, QuarantineLimits};
use crate::crypto::secmem::SecretKey;
use crate::disk::SimDisk;
use crate::env::Env;
use crate::fs::status::Status;
use crate::scrub::{Find, Gc, Repaired, Report, What};
use crate::types::{Time, VolumeId};
use serde_json::Value;
use std::collections::BTreeSet;

const DOCUMENT: &str = include_str!("../../docs/JSON.md");
const VOLUME: VolumeId = VolumeId([1; 16]);

/// First words of the rows of the `nth` table below a heading.
fn rows(heading: &str, nth: usize) -> Vec<Vec<String>> {
    let section = DOCUMENT.split(&format!("\n## {heading}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
    let table = section.split("\n\n").filter(|block| block.starts_with('|')).nth(nth).unwrap();
    let cells = |row: &str| row.trim_matches('|').split(" | ").map(|c| c.trim().to_owned()).collect();
    table.lines().skip(2).map(cells).collect()
}

/// The words in backquotes of a cell.
fn words(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn first_words(rows: &[Vec<String>]) -> BTreeSet<String> {
    rows.iter().flat_map(|row| words(&row[0])).collect()
}

/// Names of all fields: `a.b`, and `a[]` for what is in a list.
fn fields(value: &Value) -> BTreeSet<String> {
    fn add(at: &str, value: &Value, out: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(name, v)| add(&format!("{at}.{name}"), v, out)),
            Value::Array(items) => items.iter().for_each(|v| add(&format!("{at}[]"), v, out)),
            _ => drop(out.insert(at.trim_start_matches('.').to_owned())),
        }
    }
    let mut out = BTreeSet::new();
    add("", value, &mut out);
    out
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn every_field_of_a_status_is_documented() {
    let printed = fields(&parse(&status::json(&Status { notes: vec![String::new()], ..Status::default() }).unwrap()));
    assert_eq!(printed, first_words(&rows("Status", 0)));
}

#[test]
fn every_field_and_kind_of_a_scrub_is_documented() {
    let find = Find { what: What::Corrupt, key: "k".into(), path: Some(b"/p".to_vec()), file: "f".into(), detail: "d".into() };
    let report = Report { finds: vec![find], ..Report::default() };
    let gc = Gc { objects: vec!["o".into()], uploads: vec!["u".into()], ..Gc::default() };
    let done = Done { gc: Some(gc), repaired: Some(Repaired { linked: vec![b"/l".to_vec()], ..Repaired::default() }) };
    let printed = fields(&parse(&scrub::json(&report, &done, true).unwrap()));
    assert_eq!(printed, first_words(&rows("Scrub", 0)));
    let kinds = What::ALL.map(|what| {
        assert_eq!(serde_json::to_value(what).unwrap(), what.name());
        what.name().to_owned()
    });
    assert_eq!(BTreeSet::from(kinds), first_words(&rows("Scrub", 1)));
}

fn wrap() -> SecretKey {
    SecretKey::new(&[7; 32])
}

#[test]
fn every_field_of_the_quarantine_is_documented_and_times_read_as_those_of_the_audit_log() {
    let disk = SimDisk::new(1).process();
    let limits = QuarantineLimits::default();
    let quarantine = Quarantine::open(disk, "quarantine", VOLUME, &wrap(), &Env::real(), limits).unwrap();
    let text = String::new;
    let finding = Finding {
        object: "o".into(),
        version: text(),
        file: text(),
        generation: 1,
        chunk: Some(2),
        stage: text(),
        expected: text(),
        got: text(),
    };
    quarantine.report(Time { sec: 1_700_000_000, nsec: 0 }, finding, bytes::Bytes::from_static(b"evidence"));
    quarantine.flush().unwrap();
    let line = parse(quarantine.listing(Names::Hidden).lines().next().unwrap());
    assert_eq!(fields(&line), first_words(&rows("Quarantine", 0)));
    assert_eq!(line["time"], "2023-11-14T22:13:20.000Z");
}

/// One of each.
fn events() -> Vec<Event> {
    let s = String::new;
    vec![
        Event::Init,
        Event::Mount { read_only: false, version: s() },
        Event::Unmount { clean: true, pending: 0 },
        Event::UnlockFailed,
        Event::Corrupt { object: s(), version: s(), file: s(), generation: 0, chunk: None, stage: s(), expected: s(), got: s() },
        Event::Foreign { object: s() },
        Event::Rollback { object: s(), seen: 2, got: 1 },
        Event::Omission { object: s() },
        Event::Wipe { files: 0, bytes: 0, failed: 0 },
        Event::Committed { file: s(), generation: 1 },
        Event::Conflict { kind: s(), file: s(), copy: s() },
        Event::Lease { what: s(), detail: s() },
        Event::Control { action: s(), uid: 0, ok: true },
        Event::LocalDamage { log: s(), at: 0, lost: 0 },
        Event::Dropped { count: 1 },
        Event::Rotated { first: 1 },
        Event::AuditBroken { problems: vec![s()] },
    ]
}

/// A new variant does not compile here until [`events`] can be asked to have it.
fn place(event: &Event) -> usize {
    match event {
        Event::Init => 0,
        Event::Mount { .. } => 1,
        Event::Unmount { .. } => 2,
        Event::UnlockFailed => 3,
        Event::Corrupt { .. } => 4,
        Event::Foreign { .. } => 5,
        Event::Rollback { .. } => 6,
        Event::Omission { .. } => 7,
        Event::Wipe { .. } => 8,
        Event::Committed { .. } => 9,
        Event::Conflict { .. } => 10,
        Event::Lease { .. } => 11,
        Event::Control { .. } => 12,
        Event::LocalDamage { .. } => 13,
        Event::Dropped { .. } => 14,
        Event::Rotated { .. } => 15,
        Event::AuditBroken { .. } => 16,
    }
}

#[test]
fn every_event_of_the_audit_log_is_documented_with_its_fields() {
    let events = events();
    events.iter().enumerate().for_each(|(i, event)| assert_eq!(place(event), i));
    let count = events.len();
    let audit = Audit::open(SimDisk::new(1).process(), "audit", VOLUME, &wrap(), &Env::real(), Limits::default()).unwrap();
    events.into_iter().for_each(|event| audit.event(Time { sec: 0, nsec: 0 }, event));
    audit.flush().unwrap();
    let lines: Vec<Value> = audit.tail(count).iter().map(|line| parse(line)).collect();
    assert_eq!(lines.len(), count);
    let common = first_words(&rows("Audit log", 0));
    let documented = rows("Audit log", 1);
    assert_eq!(documented.len(), count);
    for line in &lines {
        let name = format!("`{}`", line["event"].as_str().unwrap());
        let row = documented.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("{name} has no row"));
        let printed: BTreeSet<String> = line.as_object().unwrap().keys().cloned().collect();
        assert_eq!(printed, &common | &words(&row[1]), "{name}");
    }
}
