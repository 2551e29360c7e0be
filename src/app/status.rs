//! `smpfs status`, and the text form of a status (also `.smpfs/status`).

use super::failure::{Failure, Outcome};
use super::socket::{list, path_of};
use super::{client, left, mountpoint, settings};
use crate::cli::{Exit, StatusArgs};
use crate::config::Config;
use crate::fs::status::{Fill, Health, Lease, Pending, Status};
use crate::types::Time;
use std::path::{Path, PathBuf};

/// Runs it.
pub fn run(args: &StatusArgs, config_file: Option<PathBuf>) -> Outcome<()> {
    let config = settings::load_common(config_file, &args.common)?.config;
    if let Some(dir) = &args.dir {
        let dir = mountpoint::canonical(dir)?;
        let Some(stream) = client::connect(&path_of(&config.runtime_dir, &dir))? else {
            return nobody_serves(&config, &dir, args.json);
        };
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
    all.extend(left::all(&config.state_dir, &config.runtime_dir, &all));
    if args.json {
        super::print(&json(&all)?);
    } else if all.is_empty() {
        super::print("nothing is mounted\n");
    } else {
        super::print(&all.iter().map(render).collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}

/// No process answers for this directory: a killed one left a dead mount, or there is none.
fn nobody_serves(config: &Config, dir: &Path, as_json: bool) -> Outcome<()> {
    let shown = dir.display();
    let Some(mount) = crate::fuse::dead_mounts().into_iter().find(|m| m.dir == dir) else {
        return Err(Failure::new(Exit::NotFound, format!("no smpfs mount of yours on {shown}; `smpfs status` lists them")));
    };
    let status = left::dead(&config.state_dir, &mount);
    super::print(&if as_json { json(&status)? } else { render(&status) });
    Err(Failure::new(Exit::Dead, format!("the process that served {shown} has gone")))
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
    if s.health == Health::Dead {
        return left::render(s);
    }
    let name = if s.volume_name.is_empty() { String::new() } else { format!(" \"{}\"", s.volume_name) };
    let access = if s.read_only { ", read-only" } else { "" };
    let mut out = format!("{}\n", s.mount_point);
    let mut line = |label: &str, text: String| out += &format!("  {label:<12}{text}\n");
    line("volume", format!("{}{name} ({}{access})", s.store, s.mode));
    let away = if s.store_away && s.health != Health::Offline { ", the store does not answer" } else { "" };
    line("health", format!("{}{away}, up {}, smpfs {}, pid {}", s.health.word(), uptime(s.uptime_s), s.version, s.pid));
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
    for note in &s.notes {
        line("store", note.clone());
    }
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
    for (label, text) in errors(s).into_iter().chain(conflicts(s)) {
        line(label, text);
    }
    if let Some(last) = &s.trouble.last_error {
        line("last error", last.clone());
    }
    out
}

/// Lines about errors.
fn errors(s: &Status) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let e = &s.trouble;
    if e.store_errors + e.corrupt + e.quarantined + e.panics > 0 {
        lines.push((
            "errors",
            format!(
                "{} of the store, {}, {} quarantined, {}",
                e.store_errors,
                count(e.corrupt, "failed verification"),
                e.quarantined,
                count(e.panics, "panic")
            ),
        ));
    }
    if e.corrupt + e.quarantined > 0 {
        lines.push((
            "what to do",
            format!(
                "`.smpfs/quarantine` in the mount lists what failed; `smpfs scrub {0}` names the files, and `smpfs recover {0}` writes lost indexes anew",
                s.store
            ),
        ));
    }
    lines
}

/// Lines about conflicts with other machines.
fn conflicts(s: &Status) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let c = &s.conflicts;
    if c.settled + c.waiting > 0 {
        let waiting = if c.waiting > 0 { format!(", {} on the way", c.waiting) } else { String::new() };
        lines.push(("conflicts", format!("{} with other machines settled{waiting}; see names with \"(conflict, \"", c.settled)));
    }
    if c.incomplete > 0 {
        lines.push((
            "conflicts",
            format!(
                "{} incomplete: another machine replaced what was edited here, and parts of it are gone from the bucket. They are zeros in files with \
                 \", incomplete)\" in their names; what was written here is in them",
                count(c.incomplete, "copy")
            ),
        ));
    }
    if c.stuck > 0 {
        lines.push((
            "conflicts",
            format!("{} that cannot be kept; what was written stays in the spool", count(c.stuck, "version")),
        ));
    }
    lines
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

/// "1 file", "2 files", "3 entries", "4 indexes".
pub fn count(n: u64, what: &str) -> String {
    match what.strip_suffix('y') {
        _ if n == 1 => format!("1 {what}"),
        Some(stem) => format!("{n} {stem}ies"),
        None if what.ends_with('x') => format!("{n} {what}es"),
        None => format!("{n} {what}s"),
    }
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

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [size(0), size(1023), size(1024), size(1536), size(10 << 30)],
            ["0 B", "1023 B", "1 KiB", "1.5 KiB", "10 GiB"]
        );
        assert_eq!([count(1, "file"), count(0, "file")], ["1 file", "0 files"]);
        assert_eq!([count(1, "copy"), count(2, "copy"), count(2, "index")], ["1 copy", "2 copies", "2 indexes"]);
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
            "1 failed verification,",
            "`smpfs scrub s3://b/p`",
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
        let away =
            Status { health: Health::Draining, store_away: true, notes: vec!["it lacks this".into()], ..Status::default() };
        let text = render(&away);
        assert!(
            text.contains("draining, the store does not answer, up") && text.contains("  store       it lacks this\n"),
            "{text}"
        );
    }
}
