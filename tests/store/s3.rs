//! The S3 store against a real server.

use super::contract::S;
use super::rclone::Rclone;
use super::{Made, namespace, skipped};
use bytes::Bytes;
use smpfs::error::Kind;
use smpfs::store::url::S3Spec;
use smpfs::store::{Capability, Cond, Options, Span, Stack, StoreSpec, open};

const ABSENT: &str = "SMPFS_TEST_S3 is not set";

fn spec() -> Option<S3Spec> {
    match StoreSpec::parse(&std::env::var("SMPFS_TEST_S3").ok()?).unwrap() {
        StoreSpec::S3(s3) => Some(s3),
        other => panic!("SMPFS_TEST_S3 names {other}, which is not S3"),
    }
}

async fn stack(spec: S3Spec) -> Stack {
    open(&StoreSpec::S3(spec), &Options::default()).await.unwrap()
}

pub async fn store() -> Made<()> {
    let spec = spec().ok_or(ABSENT)?;
    Ok((stack(spec).await.store, ()))
}

#[tokio::test]
async fn the_probe_believes_the_server() {
    let Some(spec) = spec() else { return skipped("s3::the_probe_believes_the_server", ABSENT) };
    let stack = stack(S3Spec { prefix: namespace("probe"), ..spec }).await;
    let claimed = stack.store.caps();
    let notes = stack.probe().await.unwrap();
    let found = stack.store.caps();
    // Whether a race between completions has one winner differs from server to server, and from run to run.
    assert_eq!(Capability { complete_if: true, ..found }, claimed, "{notes:?}");
    assert_eq!(notes.is_empty(), found.complete_if, "{notes:?}");
    assert!(stack.store.list("", None, 10).await.unwrap().items.is_empty());
    assert!(stack.store.uploads("").await.unwrap().is_empty());
}

/// `SMPFS_TEST_S3_READER` is `key:secret` of an account that may only read the same bucket.
#[tokio::test]
async fn the_probe_recognises_credentials_that_may_only_read() {
    let test = "s3::the_probe_recognises_credentials_that_may_only_read";
    let (Some(_), Ok(reader)) = (spec(), std::env::var("SMPFS_TEST_S3_READER")) else {
        return skipped(test, "SMPFS_TEST_S3 and SMPFS_TEST_S3_READER are not both set");
    };
    let (key, secret) = reader.split_once(':').unwrap();
    // Through a profile, as a person would: the environment of this process belongs to the other tests.
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("config");
    std::fs::write(&config, format!("[profile reader]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")).unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "s3::as_a_reader", "--nocapture"])
        .env("AWS_CONFIG_FILE", &config)
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("a reader was recognised"), "{text}");
    assert!(!text.contains(secret));
}

#[tokio::test]
#[ignore = "run by the_probe_recognises_credentials_that_may_only_read, in a process of its own"]
async fn as_a_reader() {
    let spec = S3Spec { profile: Some("reader".into()), ..spec().unwrap() };
    let stack = stack(spec).await;
    let notes = stack.probe().await.unwrap();
    let caps = stack.store.caps();
    assert_eq!(caps, caps.read_only(), "{notes:?}");
    assert!(notes[0].contains("only read"), "{notes:?}");
    let e = stack.store.put("k", vec![], Cond::Any).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
    println!("a reader was recognised: {e}");
}

#[tokio::test]
async fn a_prefix_is_a_bucket_of_its_own() {
    let Some(spec) = spec() else { return skipped("s3::a_prefix_is_a_bucket_of_its_own", ABSENT) };
    let base = namespace("prefix");
    let below = |name: &str| S3Spec { prefix: format!("{base}{name}/"), ..spec.clone() };
    let (one, two): (S, S) = (stack(below("one +%é")).await.store, stack(below("two")).await.store);
    let meta = one.put("k", vec![Bytes::from_static(b"x")], Cond::Absent).await.unwrap();
    assert_eq!(two.head("k").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(one.list("", None, 10).await.unwrap().items[0].key, "k");
    one.copy("k", &meta.etag, "copy", Cond::Any).await.unwrap();
    assert_eq!(one.get("copy", Span::Last(1), None).await.unwrap().bytes, "x");
    let id = two.upload_start("up").await.unwrap();
    assert_eq!(two.uploads("").await.unwrap(), [("up".to_owned(), id.clone())]);
    assert!(one.uploads("").await.unwrap().is_empty());
    two.upload_abort("up", &id).await.unwrap();
}

#[tokio::test]
async fn a_bucket_that_does_not_exist_is_no_absent_object() {
    let Some(spec) = spec() else { return skipped("s3::a_bucket_that_does_not_exist_is_no_absent_object", ABSENT) };
    let store = stack(S3Spec { bucket: "smpfs-no-such-bucket".into(), ..spec }).await.store;
    for e in [store.get("k", Span::Last(1), None).await.err().unwrap(), store.list("", None, 1).await.err().unwrap()] {
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
        assert!(e.to_string().contains("bucket does not exist"), "{e}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let Some(spec) = spec() else { return skipped("s3::a_server_that_is_not_there_is_unavailable", ABSENT) };
    let opts = Options { tries: 1, ..Options::default() };
    // Port 9 (discard) is not served on any test machine.
    let spec = StoreSpec::S3(S3Spec { endpoint: Some("http://127.0.0.1:9".into()), ..spec });
    let stack = open(&spec, &opts).await.unwrap();
    let e = stack.store.head("k").await.unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    assert!(e.to_string().contains("does not answer"), "{e}");
    assert_eq!(stack.meter.snapshot().errors, 1);
}

#[test]
fn the_probe_catches_a_server_that_ignores_conditions() {
    let test = "s3::the_probe_catches_a_server_that_ignores_conditions";
    let Some(server) = Rclone::start() else { return skipped(test, "rclone is not installed (tests/setup)") };
    // In a process of its own: the environment of this one belongs to the other tests.
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "s3::at_a_server_that_ignores_conditions", "--nocapture"])
        .env("SMPFS_TEST_RCLONE", server.url())
        .envs(Rclone::CREDENTIALS)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("conditions are ignored"), "{text}");
}

#[tokio::test]
#[ignore = "run by the_probe_catches_a_server_that_ignores_conditions, in a process of its own"]
async fn at_a_server_that_ignores_conditions() {
    let endpoint = std::env::var("SMPFS_TEST_RCLONE").unwrap();
    let StoreSpec::S3(spec) = StoreSpec::parse("s3://bucket/v").unwrap() else { panic!("not S3") };
    let stack = stack(S3Spec { endpoint: Some(endpoint), ..spec }).await;
    // It says 200 where nothing may be written.
    stack.store.put("k", vec![Bytes::from_static(b"one")], Cond::Any).await.unwrap();
    let believed = stack.store.put("k", vec![Bytes::from_static(b"two")], Cond::Absent).await;
    let notes = stack.probe().await.unwrap();
    let caps = stack.store.caps();
    assert!(caps.write && !caps.put_if_absent && !caps.put_if_match && !caps.complete_if, "{caps:?} {notes:?}");
    assert!(notes.iter().any(|n| n.contains("compare-and-swap does not work")), "{notes:?}");
    println!("conditions are ignored: {:?}", believed.map(|m| m.len));
}
