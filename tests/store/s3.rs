//! The S3 store against a real server.

use super::contract::S;
use super::{Made, namespace, skipped};
use bytes::Bytes;
use smpfs::error::Kind;
use smpfs::store::url::S3Spec;
use smpfs::store::{Cond, Options, Span, Stack, StoreSpec, open};

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
    assert_eq!(stack.probe().await.unwrap(), Vec::<String>::new());
    assert_eq!(stack.store.caps(), claimed);
    assert!(stack.store.list("", None, 10).await.unwrap().items.is_empty());
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
