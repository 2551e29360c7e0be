//! Makes the client: region, endpoint, credentials, time-outs.

use super::S3Store;
use super::limit::Bounded;
use crate::error::{Error, Kind, Result, fail};
use crate::store::Options;
use crate::store::url::S3Spec;
use aws_config::meta::region::RegionProviderChain;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, ProvideCredentials, StalledStreamProtectionConfig, retry::RetryConfig};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::types::StorageClass;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// The region when nothing names one: what servers other than Amazon's expect by default.
const REGION: &str = "us-east-1";

impl S3Store {
    /// Makes the client and looks whether there are credentials. The bucket itself is not asked yet.
    pub(in crate::store) async fn open(spec: &S3Spec, opts: &Options) -> Result<S3Store> {
        let config = load(spec, opts).await?;
        let Some(credentials) = config.credentials_provider() else { return fail(Kind::Denied, NO_CREDENTIALS) };
        if let Err(e) = credentials.provide_credentials().await {
            return Err(Error::with_source(Kind::Denied, NO_CREDENTIALS, e));
        }
        let custom = config.endpoint_url().is_some() || endpoint_in_env() || spec.endpoint.is_some();
        let grace = StalledStreamProtectionConfig::enabled().upload_enabled(true).grace_period(opts.read_timeout).build();
        let builder = Builder::from(&config)
            .force_path_style(spec.path_style.unwrap_or(custom))
            .retry_config(RetryConfig::disabled())
            .interceptor(Bounded)
            .stalled_stream_protection(grace);
        let client = Client::from_conf(builder.build());
        let address = address(&client, &spec.bucket).await;
        Ok(S3Store {
            unhashed: address.as_deref().is_some_and(guarded_address),
            server: address.as_deref().and_then(|a| foreign_server(a, &spec.bucket)),
            client,
            bucket: spec.bucket.clone(),
            prefix: spec.prefix.clone(),
            storage_class: spec.storage_class.as_deref().map(StorageClass::from),
            kms_key: spec.kms_key.clone(),
            first_byte: opts.read_timeout,
        })
    }
}

/// The address of a request, which the client takes from many places. None is sent.
async fn address(client: &Client, bucket: &str) -> Option<String> {
    let soon = PresigningConfig::expires_in(Duration::from_secs(60)).ok()?;
    let request = client.get_object().bucket(bucket).key("x").presigned(soon).await;
    request.ok().map(|r| r.uri().to_owned())
}

/// Scheme, host and port of a server that is not Amazon's own: another one may have a bucket of the same name. Amazon's are one
/// server with many addresses.
fn foreign_server(address: &str, bucket: &str) -> Option<String> {
    let (scheme, rest) = address.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?.to_ascii_lowercase();
    let authority = authority.strip_prefix(&format!("{}.", bucket.to_ascii_lowercase())).unwrap_or(&authority);
    let usual = if scheme == "https" { ":443" } else { ":80" };
    let authority = authority.strip_suffix(usual).unwrap_or(authority);
    let host = authority.split(':').next()?;
    let amazon = ["amazonaws.com", "amazonaws.com.cn", "api.aws"];
    match amazon.iter().any(|a| host.strip_suffix(a).is_some_and(|rest| rest.ends_with('.'))) {
        true => None,
        false => Some(format!("{scheme}://{authority}")),
    }
}

/// Whether nobody between this process and the server can change a body: requests go through TLS, or stay on this machine.
fn guarded_address(uri: &str) -> bool {
    if uri.starts_with("https://") {
        return true;
    }
    let Some(rest) = uri.strip_prefix("http://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return false;
    }
    match authority.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        Some((v6, _)) => v6.parse().is_ok_and(|ip: Ipv6Addr| ip.is_loopback()),
        // A name, `localhost` too, may mean any machine: only numbers count.
        None => authority.split(':').next().is_some_and(|v4| v4.parse().is_ok_and(|ip: Ipv4Addr| ip.is_loopback())),
    }
}

const NO_CREDENTIALS: &str = "no AWS credentials were found or could be refreshed; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and \
    AWS_SECRET_ACCESS_KEY, or sign in with `aws sso login`";

fn endpoint_in_env() -> bool {
    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].iter().any(|v| std::env::var_os(v).is_some_and(|e| !e.is_empty()))
}

async fn load(spec: &S3Spec, opts: &Options) -> Result<SdkConfig> {
    // The SDK's read time-out would count a body that is being sent: `S3Store::ask` and `layers::Timeout` bound requests.
    let timeouts = TimeoutConfig::builder().connect_timeout(opts.connect_timeout).build();
    let app = AppName::new("smpfs").map_err(|e| Error::with_source(Kind::Bug, "the name of the client", e))?;
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts).app_name(app);
    if let Some(profile) = &spec.profile {
        loader = loader.profile_name(profile);
    }
    let region = RegionProviderChain::first_try(spec.region.clone().map(Region::new));
    let region = match spec.endpoint.is_some() || endpoint_in_env() {
        // Not Amazon's: the instance metadata, which may take seconds to be absent, has nothing to say.
        true => region
            .or_else(aws_config::environment::region::EnvironmentVariableRegionProvider::new())
            .or_else(profile_region(spec))
            .or_else(Region::from_static(REGION)),
        false => region.or_default_provider().or_else(Region::from_static(REGION)),
    };
    loader = loader.region(region);
    if let Some(endpoint) = &spec.endpoint {
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return fail(Kind::Invalid, "an S3 endpoint is written https://host or https://host:port");
        }
        loader = loader.endpoint_url(endpoint);
    }
    Ok(loader.load().await)
}

fn profile_region(spec: &S3Spec) -> aws_config::profile::region::ProfileFileRegionProvider {
    let builder = aws_config::profile::region::ProfileFileRegionProvider::builder();
    match &spec.profile {
        Some(p) => builder.profile_name(p).build(),
        None => builder.build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::s3::wire_tests::store_at;
    use crate::store::{Cond, Store};
    use bytes::Bytes;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn bodies_are_hashed_where_somebody_could_change_them() {
        for guarded in
            ["https://s3.eu-west-1.amazonaws.com/b/x?a=b", "http://127.0.0.1:9000/b", "http://127.9.9.9", "http://[::1]:80/b"]
        {
            assert!(guarded_address(guarded), "{guarded}");
        }
        for open in [
            "http://10.0.0.1:9000/b",
            "http://localhost/b",
            "http://127.0.0.1.example/b",
            "http://[::2]/b",
            "ftp://127.0.0.1",
            "",
        ] {
            assert!(!guarded_address(open), "{open}");
        }
        // What comes before an @ is no address.
        assert!(!guarded_address("http://127.0.0.1@example.com/b"));
        assert!(!guarded_address("http://127.0.0.1:9000@example.com/b"));
    }

    #[test]
    fn servers_are_told_apart_and_amazons_are_one() {
        for amazon in [
            "https://bucket.s3.eu-west-1.amazonaws.com/x?a=b",
            "https://s3.amazonaws.com/bucket/x",
            "https://s3.cn-north-1.amazonaws.com.cn/bucket/x",
            "https://bucket.s3.dualstack.eu-west-1.amazonaws.com:443/x",
        ] {
            assert_eq!(foreign_server(amazon, "bucket"), None, "{amazon}");
        }
        for (address, server) in [
            ("https://minio.example:9000/bucket/x?a=b", "https://minio.example:9000"),
            ("https://bucket.minio.example:9000/x", "https://minio.example:9000"),
            ("https://MinIO.example:443/bucket/x", "https://minio.example"),
            ("http://minio.example:443/bucket/x", "http://minio.example:443"),
            ("http://minio.example:80/bucket/x", "http://minio.example"),
            ("http://[::1]:9000/bucket/x", "http://[::1]:9000"),
            ("https://notamazonaws.com/bucket/x", "https://notamazonaws.com"),
            ("https://amazonaws.com.example/bucket/x", "https://amazonaws.com.example"),
        ] {
            assert_eq!(foreign_server(address, "bucket").as_deref(), Some(server), "{address}");
        }
    }

    /// The head of the next request, lower case, answered as a PUT that went well.
    fn serve_one(listener: &TcpListener, body: usize) -> String {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        loop {
            let end = got.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
            if let Some(end) = end.filter(|end| got.len() >= end + body) {
                stream.write_all(b"HTTP/1.1 200 OK\r\nETag: \"t\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
                return String::from_utf8_lossy(&got[..end]).to_lowercase();
            }
            let mut buf = [0; 4096];
            let n = stream.read(&mut buf).unwrap();
            assert!(n > 0, "the request broke off");
            got.extend_from_slice(&buf[..n]);
        }
    }

    #[tokio::test]
    async fn every_body_has_a_signed_checksum_and_on_an_open_way_a_hash() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let plain = store_at(&endpoint, "");
        assert!(guarded_address(&address(&plain.client, "b").await.unwrap()));
        for unhashed in [true, false] {
            let store = S3Store { unhashed, ..store_at(&endpoint, "") };
            let own = listener.try_clone().unwrap();
            let server = tokio::task::spawn_blocking(move || serve_one(&own, 3));
            store.put("key", vec![Bytes::from_static(b"abc")], Cond::Any).await.unwrap();
            let head = server.await.unwrap();
            // CRC-32 and SHA-256 of "abc".
            assert!(head.contains("x-amz-checksum-crc32: nsrbwg==") || head.contains("x-amz-checksum-crc32:nsrbwg=="), "{head}");
            let signed = head.split("signedheaders=").nth(1).unwrap().split(',').next().unwrap();
            assert!(signed.contains("x-amz-checksum-crc32") && signed.contains("x-amz-content-sha256"), "{signed}");
            let hash = head.lines().find_map(|l| l.strip_prefix("x-amz-content-sha256:")).unwrap().trim();
            match unhashed {
                true => assert_eq!(hash, "unsigned-payload"),
                false => assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            }
        }
    }
}
