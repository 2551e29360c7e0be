//! `smpfs status`, and the text form of a status (also `.smpfs/status`).

use super::failure::{Failure, Outcome};
use super::socket::{list, path_of};
use super::{client, mountpoint, settings};
use crate::cli::{Exit, StatusArgs};
use crate::fs::status::{Fill, Lease, Pending, Status};
use crate::types::Time;
use std::path::PathBuf;

/// Runs it.
pub fn run(args: &StatusArgs, config_file: Option<PathBuf>) -> Outcome<()> {
    let config = settings::load_common(config_file, &args.common)?.config;
    if let Some(dir) = &args.dir {
        let dir = mountpoint::canonical(dir)?;
        let stream = client::connect(&path_of(&config.runtime_dir, &dir))?.ok_or_else(|| {
            Failure::new(Exit::NotFound, format!("no smpfs mount of yours on {}; `smpfs status` lists them", dir.display()))
        })?;
        let status = client::status(stream)?;
        super::print(&if args.json { json(&status)? } else { render(&status) });
        return Ok(());
    }
    let mut all = Vec::new();
    for socket in list(&config.runtime_dir)? {
        // One that ended in between, or was killed, is no mount.
        let Some(stream) = client::connect(&socket)? else { continue };
        match client::status(stream) {
            Ok(status) => all.push(status),
            // One that hangs must not hide the others.
            Err(failure) => super::warn(&format!("{}: {failure}", socket.display())),
        }
    }
    if args.json {
        super::print(&json(&all)?);
    } else if all.is_empty() {
        super::print("nothing is mounted\n");
    } else {
        super::print(&all.iter().map(render).collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}

pub(super) fn json<T: serde::Serialize>(value: &T) -> Outcome<String> {
    serde_json::to_string_pretty(value).map(|s| s + "\n").map_err(|e| Failure::new(Exit::Other, e.to_string()))
}

/// What is not in the bucket, in words: files, their bytes, and names.
pub fn unsent(p: &Pending) -> String {
    let files = (p.files > 0 || p.bytes > 0).then(|| format!("{}, {}", count(p.files, "file"), size(p.bytes)));
    let names = (p.names > 0).then(|| format!("{} to names", count(p.names, "change")));
    files.into_iter().chain(names).collect::<Vec<_>>().join(" and ")
}

/// A status for people, one fact a line.
pub fn render(s: &Status) -> String {
    let name = if s.volume_name.is_empty() { String::new() } else { format!(" \"{}\"", s.volume_name) };
    let access = if s.read_only { ", read-only" } else { "" };
    let mut out = format!("{}\n", s.mount_point);
    let mut line = |label: &str, text: String| out += &format!("  {label:<12}{text}\n");
    line("volume", format!("{}{name} ({}{access})", s.store, s.mode));
    line("health", format!("{}, up {}, smpfs {}, pid {}", s.health.word(), uptime(s.uptime_s), s.version, s.pid));
    match s.pending.is_empty() {
        true => line("uploads", "all is in the bucket".to_owned()),
        false => line("uploads", format!("{} not in the bucket yet", unsent(&s.pending))),
    }
    if let Some(text) = lease(&s.lease) {
        line("lease", text);
    }
    line("memory", fill(s.memory));
    line("disk cache", fill(s.disk_cache));
    line("spool", fill(s.spool));
    let t = &s.traffic;
    line(
        "traffic",
        format!(
            "{} down, {} up, {}, {} tried again",
            size(t.bytes_down),
            size(t.bytes_up),
            count(t.requests, "request"),
            t.retries
        ),
    );
    let looked = t.cache_hits + t.cache_misses;
    if let Some(percent) = (t.cache_hits * 100).checked_div(looked) {
        line("cache hits", format!("{percent} % of {}", count(looked, "chunk")));
    }
    let e = &s.trouble;
    if e.store_errors + e.corrupt + e.quarantined + e.panics > 0 {
        line(
            "errors",
            format!(
                "{} of the store, {} failed verifications, {} quarantined, {} panics",
                e.store_errors, e.corrupt, e.quarantined, e.panics
            ),
        );
    }
    let c = &s.conflicts;
    if c.settled + c.waiting > 0 {
        let waiting = if c.waiting > 0 { format!(", {} on the way", c.waiting) } else { String::new() };
        line("conflicts", format!("{} with other machines settled{waiting}; see names with \"(conflict, \"", c.settled));
    }
    if c.incomplete > 0 {
        line(
            "conflicts",
            format!(
                "{} incomplete: another machine replaced what was edited here, and parts of it are gone from the bucket. They are zeros in files with \
                 \", incomplete)\" in their names; what was written here is in them",
                count(c.incomplete, "copy")
            ),
        );
    }
    if c.stuck > 0 {
        line("conflicts", format!("{} that cannot be kept; what was written stays in the spool", count(c.stuck, "version")));
    }
    if let Some(last) = &e.last_error {
        line("last error", last.clone());
    }
    out
}

/// Where the store takes one writer at a time: whether that is us.
fn lease(l: &Lease) -> Option<String> {
    let at = |time: Option<i64>| Time { sec: time.unwrap_or_default(), nsec: 0 }.rfc3339();
    let (since, renewed) = (at(l.since), at(l.renewed));
    Some(match l.state.as_str() {
        "" => return None,
        "held" => format!("held since {since}, renewed {renewed}; the store takes one writer at a time"),
        "lapsed" => format!("not renewed since {renewed}: read-only until the store answers"),
        "lost" => format!("lost, renewed last {renewed}: another machine took it over, and this mount is read-only"),
        other => format!("{other}, renewed last {renewed}"),
    })
}

fn fill(f: Fill) -> String {
    if f.limit == 0 { "off".to_owned() } else { format!("{} of {}", size(f.used), size(f.limit)) }
}

fn uptime(s: u64) -> String {
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min", s / 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// "1 file", "2 files".
pub fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// A size with one decimal: "1.5 GiB".
pub fn size(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::status::Health;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [size(0), size(1023), size(1024), size(1536), size(10 << 30)],
            ["0 B", "1023 B", "1 KiB", "1.5 KiB", "10 GiB"]
        );
        assert_eq!([count(1, "file"), count(0, "file")], ["1 file", "0 files"]);
        assert_eq!([uptime(59), uptime(3700), uptime(200_000)], ["59 s", "1 h 1 min", "2 d 7 h"]);
    }

    #[test]
    fn a_status_reads_like_a_summary() {
        let mut s = Status {
            mount_point: "/mnt/p".into(),
            store: "s3://b/p".into(),
            mode: "zero-knowledge".into(),
            health: Health::Degraded,
            pending: Pending { files: 2, bytes: 3 << 20, sent_bytes: 0, names: 1 },
            ..Status::default()
        };
        s.trouble.corrupt = 1;
        s.trouble.last_error = Some("an object failed verification".into());
        let text = render(&s);
        for part in [
            "/mnt/p\n",
            "s3://b/p (zero-knowledge)",
            "degraded",
            "2 files, 3 MiB and 1 change to names not in the bucket yet",
            "1 failed verifications",
            "last error",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        s.conflicts = crate::fs::status::Conflicts { settled: 2, waiting: 1, incomplete: 1, stuck: 1 };
        let text = render(&s);
        for part in ["2 with other machines settled, 1 on the way", "1 copy incomplete: ", "1 version that cannot be kept"] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        for (state, part) in
            [("held", "held since 2023-11-14T22:13:20.000Z"), ("lapsed", "read-only until"), ("lost", "took it over")]
        {
            s.lease = Lease { state: state.into(), since: Some(1_700_000_000), renewed: Some(1_700_000_100) };
            let text = render(&s);
            assert!(text.contains("  lease       ") && text.contains(part), "{text}");
        }
        s.pending = Pending { names: 3, ..Pending::default() };
        assert!(render(&s).contains("3 changes to names not in the bucket yet"), "names are no less than files");
        assert!(!render(&Status::default()).contains("conflicts") && !render(&Status::default()).contains("lease"));
        assert!(render(&Status::default()).contains("all is in the bucket"));
    }
}
