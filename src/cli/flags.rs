//! Flags that set a setting: `--memory-budget 1GiB` is the setting `memory-budget`. They stay text here; the configuration,
//! which knows where every value came from, checks them all alike.

use clap::Args;

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident, $heading:literal, [ $($vname:literal $vfield:ident $value:literal $vhide:literal $vhelp:literal;)* ]
     switches [ $($sname:literal $sfield:ident $shide:literal $shelp:literal;)* ]) => {
        $(#[$doc])*
        #[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $( #[doc = $vhelp]
               #[arg(long = $vname, value_name = $value, help = $vhelp, help_heading = $heading, hide_short_help = $vhide)]
               pub $vfield: Option<String>, )*
            $( #[doc = $shelp]
               #[arg(long = $sname, value_name = "BOOL", help = $shelp, help_heading = $heading, hide_short_help = $shide,
                     num_args = 0..=1, require_equals = true, default_missing_value = "true")]
               pub $sfield: Option<String>, )*
        }

        impl $name {
            /// Name and text of each setting that was given.
            pub fn pairs(&self) -> Vec<(&'static str, String)> {
                let all: &[(&'static str, &Option<String>)] = &[ $(($vname, &self.$vfield),)* $(($sname, &self.$sfield),)* ];
                all.iter().filter_map(|(k, v)| v.as_ref().map(|v| (*k, v.clone()))).collect()
            }

            /// Names of all of them.
            pub const NAMES: &'static [&'static str] = &[ $($vname,)* $($sname,)* ];
        }
    };
}

flags! {
    /// Where the passphrase comes from.
    KeyFlags, "Passphrase (asked for on the terminal when none of these is given)",
    [
        "passphrase-file" passphrase_file "FILE" false "Read the passphrase from FILE";
        "recovery-code-file" recovery_code_file "FILE" false "Use the recovery code in FILE instead of a passphrase";
    ] switches []
}

flags! {
    /// How the store is reached.
    StoreFlags, "Store",
    [
        "endpoint" endpoint "URL" false "S3-compatible server";
        "region" region "REGION" false "S3 region";
        "profile" profile "NAME" false "Profile in ~/.aws";
        "storage-class" storage_class "CLASS" true "Storage class of new objects";
        "kms-key" kms_key "KEY" true "KMS key for the server's own encryption";
        "retries" retries "N" true "Tries of a request in all";
        "retry-base" retry_base "TIME" true "Wait before the second try, doubled with each further one";
        "retry-cap" retry_cap "TIME" true "Longest wait between two tries; not below retry-base";
        "connect-timeout" connect_timeout "TIME" true "How long a connection may take; 1s or more";
        "operation-timeout" operation_timeout "TIME" true "How long a file operation may wait for the store";
        "request-concurrency" request_concurrency "N" true "Requests at once";
        "download-limit" download_limit "SIZE" true "Bytes per second from the store";
        "upload-limit" upload_limit "SIZE" true "Bytes per second to the store";
    ] switches [
        "path-style" path_style true "Put the bucket into the path of an S3 URL";
    ]
}

flags! {
    /// How the mount behaves.
    MountFlags, "Mount",
    [
        "uid" uid "UID" false "Show every file as owned by this user";
        "gid" gid "GID" false "Show every file as owned by this group";
        "umask" umask "OCTAL" false "Take these permission bits away everywhere";
        "fsync" fsync "WHEN" false "fsync returns when data is in the bucket (remote) or in the sealed spool (local)";
        "on-unavailable" on_unavailable "HOW" false "Reads while the store is away: fail or wait";
        "unmount-timeout" unmount_timeout "TIME" true "How long an unmount waits for uploads [default: until all is sent]";
        "verify" verify "HOW" true "What is verified on reading: aead or full";
        "attribute-ttl" attribute_ttl "TIME" true "How long the kernel answers names and attributes by itself";
        "metadata-ttl" metadata_ttl "TIME" true "How long a directory index is trusted without asking the store";
        "fuse-threads" fuse_threads "N" true "Threads that take requests from the kernel, 1 to 64";
    ] switches [
        "read-only" read_only false "Refuse every change";
        "allow-other" allow_other false "Let other users enter the mount";
        "nonempty" nonempty true "Mount over a directory that is not empty";
    ]
}

flags! {
    /// Memory, caches, prefetch.
    ResourceFlags, "Memory and disk",
    [
        "memory-budget" memory_budget "SIZE" false "Memory for caches, prefetch and uploads together [default: 512MiB]";
        "cache-size" cache_size "SIZE" false "Most disk for the sealed cache, 0 for none [default: 10GiB]";
        "cache-dir" cache_dir "DIR" false "Where the sealed cache lies";
        "spool-size" spool_size "SIZE" true "Most disk for data that waits for its upload [default: 50GiB]";
        "prefetch-window" prefetch_window "SIZE" true "Most that is fetched ahead of a sequential reader [default: 32MiB]";
        "upload-concurrency" upload_concurrency "N" true "Files uploaded at once, 1 to 256 [default: 4]";
    ] switches []
}

flags! {
    /// Places and logs: for every subcommand.
    CommonFlags, "Common",
    [
        "state-dir" state_dir "DIR" true "Where spool, quarantine and audit log lie";
        "runtime-dir" runtime_dir "DIR" true "Where control sockets lie";
        "log-target" log_target "WHERE" true "auto, stderr, journald or file";
        "log-file" log_file "FILE" true "Write log lines to FILE";
        "log-level" log_level "LEVEL" true "error, warn, info, debug, trace, or directives";
        "log-format" log_format "FORMAT" true "text or json";
    ] switches []
}
