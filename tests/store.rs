//! Runs the one contract suite against every backend: memory, a directory, S3, and each through faults with retries.
//!
//! S3: set `SMPFS_TEST_S3` to the URL of a scratch bucket, and `AWS_*` as for any client (`tests/servers/seaweedfs` prints
//! both). Without it these tests are counted and printed as skipped.

// Helpers of tests fail by panicking, as the tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "store/contract.rs"]
mod contract;
#[path = "store/dir.rs"]
mod dir;
#[cfg(feature = "s3")]
#[allow(dead_code)] // other tests use the rest
#[path = "support/rclone.rs"]
mod rclone;
#[cfg(feature = "s3")]
#[path = "store/s3.rs"]
mod s3;

use contract::S;
use smpfs::env::Env;
use smpfs::error::Kind;
use smpfs::store::dir::DirStore;
use smpfs::store::layers::{Fault, Faulty, Verb, Wrap};
use smpfs::store::memory::MemoryStore;
use smpfs::store::{Options, Store, StoreSpec, layer, open};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Prints that a test could not run here.
fn skipped(test: &str, why: &str) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
    // Straight to the terminal: the harness captures what `println!` prints.
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "skipped: store::{test} ({why}); {n} skipped so far");
}

/// A prefix that no other test or run uses.
fn namespace(test: &str) -> String {
    let id = Env::real().random::<8>();
    format!("t/{test}-{}/", id.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

/// The tests of the suite as tests of one backend.
macro_rules! suite {
    ($backend:ident, $make:expr; $($test:ident)*) => {
        mod $backend {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    // What the second value holds lives as long as the test.
                    match $make.await {
                        Ok((store, _held)) => contract::$test(store, namespace(stringify!($test))).await,
                        Err(why) => skipped(concat!(stringify!($backend), "::", stringify!($test)), why),
                    }
                }
            )*
        }
    };
}

macro_rules! backend {
    ($backend:ident, $make:expr) => {
        suite! { $backend, $make;
            objects_come_and_go
            a_version_is_deleted_and_no_other
            ages_are_told_by_one_clock
            conditions_hold
            of_eight_creators_one_wins
            compare_and_swap_loses_nothing
            spans
            reads_of_one_version_only
            tags_never_repeat
            readers_see_whole_objects
            listings_are_complete_and_in_byte_order
            odd_keys
            empty_objects
            big_objects
            multipart_in_any_order
            a_part_sent_again_replaces_the_first
            completion_takes_conditions
            of_eight_completions_one_wins
            aborted_uploads_are_gone
            completion_refuses_wrong_parts
            copies
            an_upload_of_copied_and_new_parts
        }
    };
}

type Made<T> = std::result::Result<(S, T), &'static str>;

fn spec(path: &Path) -> StoreSpec {
    StoreSpec::Dir { path: path.to_owned() }
}

async fn memory_store() -> Made<()> {
    Ok((open(&StoreSpec::Memory { name: String::new() }, &Options::default()).await.unwrap().store, ()))
}

async fn dir_store() -> Made<tempfile::TempDir> {
    let tmp = tempfile::tempdir().unwrap();
    let opts = Options { create: true, ..Options::default() };
    Ok((open(&spec(tmp.path()), &opts).await.unwrap().store, tmp))
}

/// Faults that retries must hide. Beginning and completing an upload fail only before they are carried out: what follows
/// otherwise is the caller's to sort out, and tested in `layers::retry`.
fn with_faults(base: Arc<dyn Store>) -> S {
    let faulty = Arc::new(Faulty::new(11));
    for verb in Verb::ALL {
        faulty.seeded(Some(verb), 80, Fault::Before(Kind::Unavailable));
        if !matches!(verb, Verb::UploadStart | Verb::UploadComplete | Verb::Copy) {
            faulty.seeded(Some(verb), 80, Fault::After(Kind::Unavailable));
        }
    }
    let opts = Options {
        tries: 12,
        backoff_base: Duration::from_millis(1),
        backoff_cap: Duration::from_millis(5),
        // Injected faults are no outage.
        down_after: u32::MAX,
        ..Options::default()
    };
    layer(Arc::new(Wrap::new(base, faulty)), &opts).store
}

async fn faulty_memory() -> Made<()> {
    Ok((with_faults(Arc::new(MemoryStore::new())), ()))
}

async fn faulty_dir() -> Made<tempfile::TempDir> {
    let tmp = tempfile::tempdir().unwrap();
    let base = DirStore::open(tmp.path(), true, true, Env::real()).await.unwrap();
    Ok((with_faults(Arc::new(base)), tmp))
}

backend! { memory, memory_store() }
backend! { directory, dir_store() }
backend! { memory_with_faults, faulty_memory() }
backend! { directory_with_faults, faulty_dir() }
#[cfg(feature = "s3")]
backend! { s3_server, s3::store() }

#[tokio::test]
async fn the_probe_believes_memory_and_directory() {
    let tmp = tempfile::tempdir().unwrap();
    let opts = Options { create: true, ..Options::default() };
    for spec in [spec(tmp.path()), StoreSpec::Memory { name: String::new() }] {
        let stack = open(&spec, &opts).await.unwrap();
        let claimed = stack.store.caps();
        assert_eq!(stack.probe().await.unwrap(), Vec::<String>::new(), "{spec}");
        assert_eq!(stack.store.caps(), claimed);
        assert!(stack.store.list("", None, 10).await.unwrap().items.is_empty(), "{spec}");
        assert!(stack.meter.snapshot().requests > 20);
        assert!(!stack.health.is_down());
    }
}
