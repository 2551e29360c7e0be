//! What comes over the wire from a server that does not keep to the protocol.

use super::limit::{Bounded, MAX_ANSWER};
use super::*;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Builder, Credentials, Region};
use std::io::{Read, Write};
use std::net::TcpListener;

/// A store at an endpoint, without anything from the environment.
pub(super) fn store_at(endpoint: &str, prefix: &str) -> S3Store {
    let config = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .credentials_provider(Credentials::new("id", "secret", None, None, "test"))
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .interceptor(Bounded)
        .endpoint_url(endpoint);
    S3Store {
        client: Client::from_conf(config.build()),
        bucket: "b".into(),
        prefix: prefix.into(),
        storage_class: None,
        kms_key: None,
        first_byte: Duration::from_secs(60),
        server: None,
        unhashed: true,
    }
}

/// A server that answers its only request with `head` and as many bytes of `fill` as somebody takes, `most` at most. Gives the
/// store, and how many were taken.
fn server(head: &'static str, fill: &'static [u8], most: usize) -> (S3Store, tokio::task::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = store_at(&format!("http://{}", listener.local_addr().unwrap()), "");
    let serve = move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        while !got.windows(4).any(|w| w == b"\r\n\r\n") {
            let mut buf = [0; 4096];
            let n = stream.read(&mut buf).unwrap();
            assert!(n > 0, "the request broke off");
            got.extend_from_slice(&buf[..n]);
        }
        stream.write_all(head.as_bytes()).unwrap();
        let piece = fill.repeat((64 << 10) / fill.len());
        let mut taken = 0;
        while taken < most {
            let n = piece.len().min(most - taken);
            if stream.write_all(&piece[..n]).is_err() {
                break;
            }
            taken += n;
        }
        taken
    };
    (store, tokio::task::spawn_blocking(serve))
}

/// What sockets on this machine may hold between the server and a client that has stopped reading.
const IN_SOCKETS: usize = 16 << 20;

#[tokio::test]
async fn an_answer_far_longer_than_what_was_asked_for_is_refused_before_it_is_read() {
    let most = 60 << 20;
    let head = "HTTP/1.1 200 OK\r\nETag: \"t\"\r\nContent-Length: 62914560\r\nConnection: close\r\n\r\n";
    let (store, sent) = server(head, b"x", most);
    let e = store.get("k", Span::Range(0..1000), None).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Unsupported, "{e}");
    assert!(e.to_string().contains("ignores ranges"), "{e}");
    assert!(sent.await.unwrap() < IN_SOCKETS.max(most / 2));
}

#[tokio::test]
async fn a_small_object_is_read_from_a_server_that_ignores_ranges() {
    let head = "HTTP/1.1 200 OK\r\nETag: \"t\"\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n";
    let (store, sent) = server(head, b"x", 1000);
    let got = store.get("k", Span::Range(10..20), None).await.unwrap();
    assert_eq!((&got.bytes[..], got.start, got.meta.len), (&b"xxxxxxxxxx"[..], 10, 1000));
    sent.await.unwrap();
}

#[tokio::test]
async fn an_endless_listing_or_error_is_read_up_to_a_bound() {
    let most = MAX_ANSWER + 3 * IN_SOCKETS;
    let listing = "HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nConnection: close\r\n\r\n<ListBucketResult>";
    let error = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/xml\r\nConnection: close\r\n\r\n<Error><Message>";
    let (store, sent) = server(listing, b"<a/>", most);
    let e = store.list("", None, 10).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    assert!(sent.await.unwrap() <= MAX_ANSWER + 2 * IN_SOCKETS);
    // Also where an object was asked for: an error is none.
    let (store, sent) = server(error, b"x", most);
    let e = store.get("k", Span::Range(0..1000), None).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
    assert!(sent.await.unwrap() <= MAX_ANSWER + 2 * IN_SOCKETS);
}

#[tokio::test]
async fn an_object_is_longer_than_other_answers_may_be() {
    let len = MAX_ANSWER + 1;
    let head = "HTTP/1.1 200 OK\r\nETag: \"t\"\r\nContent-Length: 8388609\r\nConnection: close\r\n\r\n";
    let (store, sent) = server(head, b"x", len);
    let got = store.get("k", Span::Whole { max: 9 << 20 }, None).await.unwrap();
    assert_eq!(got.bytes.len(), len);
    sent.await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_too_long_with_its_prefix_is_refused_before_any_request() {
    // Port 9 (discard) is not served on any test machine.
    let store = store_at("http://127.0.0.1:9", &format!("{}/", "p".repeat(899)));
    let key = "k".repeat(KEY_MAX - 899);
    let id = UploadId("u".into());
    let at = PartAt { number: 1, offset: 0 };
    let outcomes = [
        store.get(&key, Span::Last(1), None).await.map(drop),
        store.head(&key).await.map(drop),
        store.put(&key, vec![], Cond::Any).await.map(drop),
        store.delete(&key).await,
        store.copy("a", &ETag("t".into()), &key, Cond::Any).await.map(drop),
        store.upload_start(&key).await.map(drop),
        store.upload_part(&key, &id, at, vec![]).await.map(drop),
    ];
    for outcome in outcomes {
        let e = outcome.unwrap_err();
        assert_eq!(e.kind(), Kind::NameTooLong, "{e}");
    }
    assert_eq!(store.head(&key[1..]).await.unwrap_err().kind(), Kind::Unavailable);
}

#[test]
fn a_server_that_is_not_amazons_is_part_of_the_identity_and_not_of_the_url() {
    let amazon = store_at("http://127.0.0.1:9", "p/");
    assert_eq!((amazon.url(), amazon.identity()), ("s3://b/p/".into(), "s3://b/p/".into()));
    let other = S3Store { server: Some("https://minio.example:9000".into()), ..amazon };
    assert_eq!((other.url(), other.identity()), ("s3://b/p/".into(), "s3+https://minio.example:9000/b/p/".into()));
}
