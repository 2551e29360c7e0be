//! The table of settings: one line each, from which come the [`Config`] struct, its defaults, the names accepted in files,
//! environment and options, and what `docs/CONFIGURATION.md` is checked against.

use super::value::{Fsync, LogFormat, LogTarget, Octal, OnUnavailable, Size, Value, Verify};
use std::path::PathBuf;
use std::time::Duration;

/// One setting, as every source names it: `memory-budget` in a file, `--memory-budget`, `-o memory-budget=` (or
/// `memory_budget`), `SMPFS_MEMORY_BUDGET`.
pub struct Key {
    /// Name, words joined by `-`.
    pub name: &'static str,
    /// Heading under which people look for it.
    pub group: &'static str,
    /// What a value looks like.
    pub kind: &'static str,
    /// Whether the name alone means "true".
    pub switch: bool,
    /// Default as it would be written; empty for none.
    pub default: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// Stores a value of that text in a configuration, or says what is wrong with it.
    pub set: fn(&mut Config, &str) -> Result<(), String>,
    /// The value in a configuration, as text.
    pub get: fn(&Config) -> String,
}

impl Key {
    /// The setting of that name; `_` and `-` are the same.
    pub fn find(name: &str) -> Option<&'static Key> {
        let name = name.replace('_', "-");
        KEYS.iter().find(|k| k.name == name)
    }

    /// Its environment variable.
    pub fn variable(&self) -> String {
        format!("SMPFS_{}", self.name.replace('-', "_").to_ascii_uppercase())
    }
}

macro_rules! settings {
    ($( [$group:literal] $( $name:literal $field:ident : $type:ty = $default:literal, $doc:literal; )+ )+) => {
        /// Every setting, parsed and within bounds. Made by [`super::load`].
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            $($( #[doc = $doc] pub $field: $type, )+)+
        }

        impl Config {
            /// The defaults alone, directories not yet chosen.
            pub(super) fn bare() -> Result<Config, String> {
                Ok(Config { $($( $field: <$type as Value>::parse($default)?, )+)+ })
            }
        }

        /// Every setting, in the order of the documentation.
        pub static KEYS: &[Key] = &[ $($( Key {
            name: $name,
            group: $group,
            kind: <$type as Value>::KIND,
            switch: <$type as Value>::SWITCH,
            default: $default,
            doc: $doc,
            set: |config, text| { config.$field = <$type as Value>::parse(text)?; Ok(()) },
            get: |config| config.$field.show(),
        }, )+)+ ];
    };
}

settings! {
    ["Volume and keys"]
    "passphrase-file" passphrase_file: Option<PathBuf> = "", "File that holds the passphrase; one newline at its end is dropped.";
    "recovery-code-file" recovery_code_file: Option<PathBuf> = "", "File that holds the recovery code, used instead of a passphrase.";
    "read-only" read_only: bool = "false", "Refuse every change.";
    "verify" verify: Verify = "aead", "What is verified on reading: `aead` is enough for an owner, `full` also checks the hash of each chunk.";

    ["Mount"]
    "allow-other" allow_other: bool = "false", "Let other users enter the mount (non-root needs `user_allow_other` in /etc/fuse.conf).";
    "uid" uid: Option<u32> = "", "Show every file as owned by this user id.";
    "gid" gid: Option<u32> = "", "Show every file as owned by this group id.";
    "umask" umask: Option<Octal> = "", "Permission bits taken away from every file and directory.";
    "nonempty" nonempty: bool = "false", "Mount over a directory that is not empty.";
    "attribute-ttl" attribute_ttl: Duration = "60s", "How long the kernel may answer names and attributes by itself.";
    "metadata-ttl" metadata_ttl: Duration = "1s", "How long a directory index is trusted before the store is asked for a newer one.";
    "fuse-threads" fuse_threads: u32 = "2", "Threads that take requests from the kernel, 1 to 64.";
    "on-unavailable" on_unavailable: OnUnavailable = "fail", "Reads while the store is away: `fail` with EIO after `operation-timeout`, or `wait`.";
    "fsync" fsync: Fsync = "remote", "When fsync returns: data is in the bucket (`remote`) or in the sealed spool (`local`).";
    "unmount-timeout" unmount_timeout: Option<Duration> = "", "How long an unmount waits for uploads; without a value, until all is in the bucket.";

    ["Memory and disk"]
    "memory-budget" memory_budget: Size = "512MiB", "Memory for caches, prefetch and upload buffers together; 32MiB or more.";
    "cache-size" cache_size: Size = "10GiB", "Most disk that the sealed cache takes; 0 switches it off, else 64MiB or more.";
    "cache-dir" cache_dir: PathBuf = ".", "Where the sealed cache lies.";
    "state-dir" state_dir: PathBuf = ".", "Where the spool, the pinned generations, the quarantine and the audit log lie.";
    "runtime-dir" runtime_dir: PathBuf = ".", "Where the control sockets lie.";
    "spool-size" spool_size: Size = "50GiB", "Most disk that data waiting for its upload takes; writers get ENOSPC beyond it. 64MiB or more.";

    ["Transfers"]
    "prefetch-window" prefetch_window: Size = "32MiB", "Most that a sequential reader has fetched ahead, at most half of memory-budget; 0 switches prefetching off.";
    "request-concurrency" request_concurrency: u32 = "32", "Requests to the store at once, 1 to 1024.";
    "upload-concurrency" upload_concurrency: u32 = "4", "Files uploaded at once, 1 to 256.";
    "retries" retries: u32 = "4", "Tries of a request in all, the first one counted; 1 to 100.";
    "retry-base" retry_base: Duration = "2s", "Wait before the second try; it doubles with each further one, with jitter.";
    "retry-cap" retry_cap: Duration = "60s", "Longest wait between two tries; not below retry-base.";
    "connect-timeout" connect_timeout: Duration = "10s", "How long a connection may take; 1s or more.";
    "operation-timeout" operation_timeout: Duration = "60s", "How long a file operation may wait for the store, all tries together; not below connect-timeout.";
    "download-limit" download_limit: Size = "0", "Bytes per second from the store, 16KiB or more; 0 is no limit.";
    "upload-limit" upload_limit: Size = "0", "Bytes per second to the store, 16KiB or more; 0 is no limit.";

    ["S3"]
    "endpoint" endpoint: Option<String> = "", "URL of an S3-compatible server; also AWS_ENDPOINT_URL_S3.";
    "region" region: Option<String> = "", "Region; also AWS_REGION and the profile.";
    "profile" profile: Option<String> = "", "Profile in ~/.aws/config and ~/.aws/credentials; also AWS_PROFILE.";
    "path-style" path_style: Option<bool> = "", "Put the bucket into the path instead of the host name; without a value, when `endpoint` is set.";
    "storage-class" storage_class: Option<String> = "", "Storage class of new objects, such as `STANDARD_IA`.";
    "kms-key" kms_key: Option<String> = "", "KMS key for the server's own encryption, on top of smpfs's.";

    ["Log"]
    "log-target" log_target: LogTarget = "auto", "Where log lines go.";
    "log-file" log_file: Option<PathBuf> = "", "File for log lines; kept below 10 MiB, one older one beside it. Sets `log-target` to `file`.";
    "log-level" log_level: String = "info", "error, warn, info, debug or trace, or directives such as `info,smpfs::store=debug`; also SMPFS_LOG and RUST_LOG. Names of files are in no line, unless a directive asks a library for more than `info` (`fuser=debug`).";
    "log-format" log_format: LogFormat = "text", "How log lines look.";
}
