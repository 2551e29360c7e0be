//! The chain: how a line is made, and how a log is checked.

use super::event::Event;
use super::{HEAD, LINE};
use crate::crypto::hash::sha256;
use crate::error::{Kind, Result, fail};
use crate::sealedlog::{LogSet, Tail};
use crate::types::{Hash, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Problems listed at most; a chain broken everywhere need not fill memory.
const MAX_PROBLEMS: usize = 100;

/// A line and its place.
pub(super) struct Link {
    n: u64,
    hash: Hash,
    pub(super) line: String,
}

#[derive(Serialize)]
struct Written<'e> {
    n: u64,
    prev: String,
    time: String,
    #[serde(flatten)]
    event: &'e Event,
}

/// What checking needs of a line.
#[derive(Deserialize)]
struct Seen {
    n: u64,
    prev: String,
    event: String,
    first: Option<u64>,
    problems: Option<Vec<String>>,
}

fn hash_line(line: &[u8]) -> Hash {
    Hash(sha256(&[b"smpfs/v1/audit\0", line]))
}

/// Where the chain stands.
pub(super) struct Chain {
    /// Number of the next line.
    next: u64,
    /// Hash of the last line.
    last: Hash,
    /// First line of each file.
    firsts: BTreeMap<u64, u64>,
}

impl Chain {
    /// The line that would come next.
    pub(super) fn next(&self, at: Time, event: &Event) -> Result<Link> {
        let written = Written { n: self.next, prev: self.last.hex(), time: rfc3339(at), event };
        match serde_json::to_string(&written) {
            Ok(line) => Ok(Link { n: self.next, hash: hash_line(line.as_bytes()), line }),
            Err(e) => fail(Kind::Bug, format!("an audit event cannot be written as JSON: {e}")),
        }
    }

    /// The line is in `file`.
    pub(super) fn accept(&mut self, link: &Link, file: u64) {
        (self.next, self.last) = (link.n + 1, link.hash);
        self.firsts.entry(file).or_insert(link.n);
    }

    /// Number of the first line in `file`, or of the next line when it has none.
    pub(super) fn first_in(&self, file: u64) -> u64 {
        self.firsts.get(&file).copied().unwrap_or(self.next)
    }

    /// Where the chain ends, for the log of heads: count of lines and hash of the last.
    pub(super) fn head(&self) -> Vec<u8> {
        [&self.next.to_be_bytes()[..], &self.last.0].concat()
    }
}

/// Something wrong with the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line that should have been next.
    pub line: u64,
    /// What is wrong, for people.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// What a check of the log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of the first line that is kept.
    pub first: u64,
    /// Lines read.
    pub lines: u64,
    /// Files read.
    pub files: u64,
    /// What is wrong; empty when the chain holds. At most a hundred.
    pub problems: Vec<Problem>,
    /// Number of the line in which a mount last wrote down what was wrong.
    pub written_down: Option<u64>,
}

impl Report {
    /// Problems that no line of the log speaks of yet, as sentences; ten at most.
    pub(super) fn news(&self) -> Vec<String> {
        let new = |p: &&Problem| self.written_down.is_none_or(|n| p.line > n);
        self.problems.iter().filter(new).take(10).map(Problem::to_string).collect()
    }
}

/// A check under way.
struct Check {
    chain: Chain,
    report: Report,
    /// Highest line number from which on, by the chain's own word, it is kept.
    kept_from: u64,
    /// The head: lines there must be, and the hash of the last of them.
    head: Option<(u64, Hash)>,
    head_met: bool,
}

/// Reads the log and the heads; gives every line to `each`; returns where the chain stands and what is wrong with it.
pub(super) fn read(lines: &LogSet, heads: &LogSet, mut each: impl FnMut(&str)) -> Result<(Chain, Report)> {
    let chain = Chain { next: 0, last: Hash::ZERO, firsts: BTreeMap::new() };
    let head = read_head(heads)?;
    let head_met = head.is_none_or(|(n, _)| n == 0);
    let mut check = Check { chain, report: Report::default(), kept_from: 0, head, head_met };
    let tails = lines.replay(|file, record| {
        check.line(file, record.kind, &record.payload);
        if let Ok(line) = std::str::from_utf8(&record.payload) {
            each(line);
        }
        Ok(())
    })?;
    check.report.files = tails.len() as u64;
    for (file, tail) in tails {
        if let Tail::Damaged { at, lost } = tail {
            let line = check.chain.firsts.range(file + 1..).next().map_or(check.chain.next, |(_, first)| *first);
            check.problem_at(line, format!("file {file} is damaged at byte {at}; {lost} bytes cannot be read"));
        }
    }
    Ok(check.finish())
}

/// The furthest head. Heads are only ever appended, so it is the last one.
fn read_head(heads: &LogSet) -> Result<Option<(u64, Hash)>> {
    let mut head = None;
    heads.replay(|_, record| {
        if let (HEAD, Some((n, hash))) = (record.kind, record.payload.split_first_chunk())
            && let Ok(hash) = hash.try_into()
        {
            head = Some((u64::from_be_bytes(*n), Hash(hash)));
        }
        Ok(())
    })?;
    Ok(head)
}

impl Check {
    fn problem(&mut self, what: impl Into<String>) {
        self.problem_at(self.chain.next, what);
    }

    fn problem_at(&mut self, line: u64, what: impl Into<String>) {
        if self.report.problems.len() < MAX_PROBLEMS {
            self.report.problems.push(Problem { line, what: what.into() });
        }
    }

    fn line(&mut self, file: u64, kind: u8, bytes: &[u8]) {
        let seen = if kind == LINE { serde_json::from_slice::<Seen>(bytes).ok() } else { None };
        let Some(seen) = seen else {
            return self.problem("something that is not an audit line");
        };
        if self.report.lines == 0 {
            // The first line that is kept cannot be checked against the one before it.
            self.report.first = seen.n;
        } else if seen.n != self.chain.next {
            self.problem(format!("the next line has number {}: lines are missing, repeated or moved", seen.n));
        } else if seen.prev != self.chain.last.hex() {
            self.problem("the chain is broken: this line does not follow the one before it");
        }
        if seen.n == 0 && seen.prev != Hash::ZERO.hex() {
            self.problem("the first line claims that something came before it");
        }
        if seen.event == "rotated" {
            self.kept_from = self.kept_from.max(seen.first.unwrap_or(0));
        }
        if seen.event == "audit-broken" {
            self.report.written_down = Some(seen.n);
            let found = seen.problems.unwrap_or_default().join("; ");
            self.problem_at(seen.n, format!("a mount found and wrote down: {found}"));
        }
        let hash = hash_line(bytes);
        self.chain.accept(&Link { n: seen.n, hash, line: String::new() }, file);
        self.report.lines += 1;
        if let Some((n, expected)) = self.head
            && n == seen.n + 1
        {
            self.head_met = true;
            if hash != expected {
                self.problem("the last line that was known to be durable is another one now");
            }
        }
    }

    fn finish(mut self) -> (Chain, Report) {
        if self.report.lines > 0 && self.report.first > self.kept_from {
            let first = self.report.first;
            self.problem_at(first, format!("the log begins with line {first} and no rotation explains that"));
        }
        if self.report.lines > 0 && self.head.is_none() {
            self.problem("the record of where the log ends is missing");
        }
        if let Some((n, hash)) = self.head {
            if !self.head_met {
                self.problem(format!("the log ends too early: {n} lines were durable"));
            }
            // New lines must not take the numbers of lines that are known to have been there.
            if n > self.chain.next {
                (self.chain.next, self.chain.last) = (n, hash);
            }
        }
        (self.chain, self.report)
    }
}

/// A time as RFC 3339 has it, in UTC, with milliseconds.
pub fn rfc3339(t: Time) -> String {
    t.rfc3339()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_date() {
        // Expected values from `date -u -d @N +%FT%TZ`.
        for (sec, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_795_379_696, "2026-11-22T20:34:56.000Z"),
            (-1, "1969-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(Time { sec, nsec: 0 }), expected);
        }
        assert_eq!(rfc3339(Time { sec: 0, nsec: 7_999_999 }), "1970-01-01T00:00:00.007Z");
    }
}
