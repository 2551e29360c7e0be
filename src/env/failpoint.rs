//! Named points at which a test lets the process die, to see what is left.
//!
//! `SMPFS_TEST_DIE_AT=NAME` kills the process (SIGKILL: nothing is flushed, nothing runs any more) when it reaches the point for the
//! first time, `NAME:N` when it does so for the N-th. It leaves a file at `SMPFS_TEST_DIED`. Builds without debug assertions have no
//! such points.

/// A point, and what must hold when the process dies there.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Its name.
    pub name: &'static str,
    /// What whoever mounts the volume next relies on.
    pub holds: &'static str,
}

const fn point(name: &'static str, holds: &'static str) -> Point {
    Point { name, holds }
}

/// Every point, in the order in which a change passes them on its way from a program to the bucket.
pub const POINTS: &[Point] = &[
    point("spool-log-made", "a log without a head holds nothing that was acknowledged; it is removed"),
    point("spool-record-appended", "data that a program did not hear of may be there or not; what it did hear of is"),
    point("name-journalled", "a change of names that a program did not hear of is there as a whole or not at all"),
    point("layer-frozen", "what is being saved is in the spool, as before"),
    point("upload-ahead-begun", "an upload that nobody noted is unfinished in the bucket and names nothing"),
    point("upload-begun", "the same, for an upload of a whole version"),
    point("upload-noted", "the next mount aborts the upload, and sends the data from the spool"),
    point("part-sent", "parts are no version: the old one is whole"),
    point("parts-sent", "all parts are no version either"),
    point("version-intended", "the version may be in the bucket or not: the next mount tells it for its own"),
    point("object-written", "the version is in the bucket, and nothing here knows it: it is not uploaded twice, nor a conflict"),
    point("version-noted", "spool and journal tell of the version; the index does not"),
    point("index-written", "the index names the version, and local state has not seen that index yet"),
    point("directory-written", "a directory without a name in its parent gets it from the journal"),
    point("names-landed", "index and local state are written; spool and journal still tell of the names"),
    point("spool-key-erased", "a log whose key is gone is no damage"),
    point("spool-logs-gone", "names whose contents are in the bucket are written again, with nothing changed"),
    point("names-forgotten", "the journal is done with the names"),
    point("journal-begun-anew", "two journals tell of the same; the newer change of each name counts"),
    point("shards-written", "shards that no head names are nothing"),
    point("shards-named", "the head names the new shards, and what held the names before is of no use"),
    point("object-doomed", "an object that no index names stays behind, and harms nothing"),
    point("object-deleted", "the index that named it was written before"),
    point("drained", "the bucket has everything, and the journal says so or says what is written again"),
    point("journal-closed", "nothing is left to tell"),
    point("recovery-journalled", "the journals of the mounts before and the one that took them over tell of the same"),
];

/// The process passes a point.
#[cfg(debug_assertions)]
pub fn reach(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static WANTED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("SMPFS_TEST_DIE_AT").ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), AtomicU64::new(times.parse().ok()?)))
    });
    debug_assert!(POINTS.iter().any(|p| p.name == name), "{name} is not among the points");
    let Some((_, left)) = wanted.as_ref().filter(|(w, _)| w == name) else { return };
    if left.fetch_sub(1, Ordering::SeqCst) == 1 {
        if let Ok(path) = std::env::var("SMPFS_TEST_DIED") {
            let _ = std::fs::write(path, name);
        }
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

/// The process passes a point: nothing happens.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_name: &str) {}
