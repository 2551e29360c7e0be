//! Where a store is: `dir:///path`, `s3://bucket/prefix`, `memory:`.

use crate::error::{Error, Kind, Result, fail};
use percent_encoding::percent_decode_str;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest prefix in bytes: with it, every key that follows from an id is one that S3 takes.
const PREFIX_MAX: usize = 900;

/// Schemes that are planned; named so that the error can say so.
const LATER: [&str; 6] = ["azblob", "gdrive", "dropbox", "sftp", "pacs", "webdav"];

/// What `STORE` may be, for error messages and help.
pub const ACCEPTED: &str = "dir:///absolute/path, s3://bucket[/prefix], memory:[name], or the name of a store in config.toml";

/// A store, as a URL or a section of config.toml describes it. It never holds credentials: those come from each cloud's own
/// chain. `Display` gives a URL for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSpec {
    /// A directory of this machine.
    Dir {
        /// Absolute path of the bucket.
        path: PathBuf,
    },
    /// Amazon S3 or a compatible server.
    S3(S3Spec),
    /// Memory of this process, for tests. An empty name is a new bucket for each `open`; the same name is the same bucket.
    Memory {
        /// Name.
        name: String,
    },
}

/// Where an S3 bucket is. What is `None` is found by the SDK's own chain (environment, profile, instance metadata).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Spec {
    /// Bucket.
    pub bucket: String,
    /// Keys of the volume begin with this: empty, or ending in `/`.
    pub prefix: String,
    /// Endpoint of a compatible server, as `https://host:port`.
    pub endpoint: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Profile of ~/.aws/config.
    pub profile: Option<String>,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`; by default when an endpoint is set.
    pub path_style: Option<bool>,
    /// Storage class for new objects, such as `STANDARD_IA`.
    pub storage_class: Option<String>,
    /// KMS key for server-side encryption, on top of smpfs's own.
    pub kms_key: Option<String>,
}

impl StoreSpec {
    /// Parses a store URL.
    pub fn parse(text: &str) -> Result<StoreSpec> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return fail(Kind::Invalid, format!("{text:?} is not a store; accepted are {ACCEPTED}"));
        };
        match scheme {
            "dir" => parse_dir(rest),
            "s3" => parse_s3(rest),
            "memory" => parse_memory(rest),
            s if LATER.contains(&s) => fail(
                Kind::Unsupported,
                format!("{s} stores are planned but not part of this version; today accepted are {ACCEPTED}"),
            ),
            s => fail(
                Kind::Invalid,
                format!("{s:?} is neither a kind of store nor a name in config.toml; accepted are {ACCEPTED}"),
            ),
        }
    }

    /// The same store, `path` further down (`work-s3:/sub/dir`).
    pub fn join(mut self, path: &str) -> Result<StoreSpec> {
        let sub = path.trim_matches('/');
        if sub.is_empty() {
            return Ok(self);
        }
        check_path(sub)?;
        match &mut self {
            StoreSpec::Dir { path } => path.push(sub),
            StoreSpec::S3(s3) => {
                s3.prefix = format!("{}{sub}/", s3.prefix);
                check_prefix(&s3.prefix)?;
            }
            StoreSpec::Memory { .. } => return fail(Kind::Unsupported, "a memory store has no sub-directories"),
        }
        Ok(self)
    }
}

fn check_path(path: &str) -> Result<()> {
    if path.split('/').any(|c| c.is_empty() || c == "." || c == "..") || path.chars().any(|c| c.is_control()) {
        return fail(Kind::Invalid, "a store's path holds an empty, `.` or `..` component, or a control character");
    }
    Ok(())
}

fn check_prefix(prefix: &str) -> Result<()> {
    match prefix.len() <= PREFIX_MAX {
        true => Ok(()),
        false => fail(
            Kind::Invalid,
            format!("the prefix of an S3 store has {} bytes; {PREFIX_MAX} leave room for the keys behind it", prefix.len()),
        ),
    }
}

fn decode(text: &str) -> Result<String> {
    let text = percent_decode_str(text).decode_utf8();
    Ok(text.map_err(|_| Error::new(Kind::Invalid, "a store URL is not UTF-8 after percent-decoding"))?.into_owned())
}

fn parse_dir(rest: &str) -> Result<StoreSpec> {
    let Some(path) = rest.strip_prefix("//").filter(|p| p.starts_with('/')) else {
        return fail(Kind::Invalid, "a directory store is written dir:///absolute/path");
    };
    let path = decode(path)?;
    if path.contains('\0') {
        return fail(Kind::Invalid, "a path cannot hold a NUL byte");
    }
    Ok(StoreSpec::Dir { path: PathBuf::from(path) })
}

fn parse_s3(rest: &str) -> Result<StoreSpec> {
    let Some(rest) = rest.strip_prefix("//") else {
        return fail(Kind::Invalid, "an S3 store is written s3://bucket or s3://bucket/prefix");
    };
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') {
        // Not echoed: it may be a secret.
        return fail(
            Kind::Invalid,
            "credentials do not belong in a store URL; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        );
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if bucket.is_empty() || bucket.len() > 255 || !bucket.chars().all(good) {
        return fail(Kind::Invalid, format!("{bucket:?} is not a bucket name; an S3 store is written s3://bucket/prefix"));
    }
    let prefix = decode(prefix.trim_matches('/'))?;
    if !prefix.is_empty() {
        check_path(&prefix)?;
    }
    let prefix = if prefix.is_empty() { prefix } else { prefix + "/" };
    check_prefix(&prefix)?;
    Ok(StoreSpec::S3(S3Spec { bucket: bucket.into(), prefix, ..S3Spec::default() }))
}

fn parse_memory(rest: &str) -> Result<StoreSpec> {
    let name = rest.trim_start_matches('/');
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        return fail(Kind::Invalid, "the name of a memory store is of letters, digits, `-`, `_` and `.`");
    }
    Ok(StoreSpec::Memory { name: name.into() })
}

impl FromStr for StoreSpec {
    type Err = Error;
    fn from_str(text: &str) -> Result<StoreSpec> {
        StoreSpec::parse(text)
    }
}

impl fmt::Display for StoreSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escape = |text: &str| text.replace('%', "%25");
        match self {
            StoreSpec::Dir { path } => write!(f, "dir://{}", escape(&path.to_string_lossy())),
            StoreSpec::S3(s) => write!(f, "s3://{}/{}", s.bucket, escape(&s.prefix)),
            StoreSpec::Memory { name } => write!(f, "memory:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(url: &str) -> S3Spec {
        match StoreSpec::parse(url).unwrap() {
            StoreSpec::S3(s) => s,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_three_schemes_parse_and_print() {
        assert_eq!(StoreSpec::parse("dir:///data/a%20b").unwrap(), StoreSpec::Dir { path: "/data/a b".into() });
        let s = s3("s3://bucket/some/prefix/");
        assert_eq!((s.bucket.as_str(), s.prefix.as_str()), ("bucket", "some/prefix/"));
        assert_eq!(s3("s3://bucket").prefix, "");
        assert_eq!(StoreSpec::parse("s3://bucket/some/prefix").unwrap().to_string(), "s3://bucket/some/prefix/");
        assert_eq!(StoreSpec::parse("memory:").unwrap(), StoreSpec::Memory { name: String::new() });
        assert_eq!(StoreSpec::parse("memory:a").unwrap().to_string(), "memory:a");
    }

    #[test]
    fn planned_schemes_say_not_yet_and_others_list_what_is_accepted() {
        for url in ["azblob://c", "gdrive:x", "dropbox:/", "sftp://h/p", "pacs://h"] {
            let e = StoreSpec::parse(url).unwrap_err();
            assert_eq!(e.kind(), Kind::Unsupported, "{url}");
            assert!(e.to_string().contains("not part of this version"), "{e}");
        }
        for url in ["", "bucket", "http://x", "dir:relative", "dir://host/x", "s3:bucket", "s3://", "s3://a b/", "s3://b/../c"] {
            assert_eq!(StoreSpec::parse(url).unwrap_err().kind(), Kind::Invalid, "{url}");
        }
        assert!(StoreSpec::parse("ftp://x").unwrap_err().to_string().contains("dir:///"));
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        let e = StoreSpec::parse("s3://AKIA:hunter2@bucket/x").unwrap_err();
        assert!(!e.to_string().contains("hunter2"), "{e}");
    }

    #[test]
    fn a_prefix_leaves_room_for_keys() {
        let longest = format!("s3://b/{}", "p".repeat(PREFIX_MAX - 1));
        assert_eq!(s3(&longest).prefix.len(), PREFIX_MAX);
        for e in [StoreSpec::parse(&format!("{longest}p")), StoreSpec::parse(&longest).unwrap().join("x")] {
            let e = e.unwrap_err();
            assert!(e.kind() == Kind::Invalid && e.to_string().contains("prefix"), "{e}");
        }
    }

    #[test]
    fn join_goes_down_and_never_up() {
        let joined = StoreSpec::parse("s3://b/p").unwrap().join("/sub/dir/").unwrap();
        assert_eq!(joined.to_string(), "s3://b/p/sub/dir/");
        assert_eq!(StoreSpec::parse("dir:///d").unwrap().join("/").unwrap().to_string(), "dir:///d");
        assert_eq!(StoreSpec::parse("dir:///d").unwrap().join("x/../..").unwrap_err().kind(), Kind::Invalid);
    }
}
