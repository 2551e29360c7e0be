//! Identifiers and plain values that every layer shares.

use std::fmt;

/// Bytes of plaintext in a chunk at the default geometry: the unit of encryption.
pub const CHUNK_SIZE: usize = 1 << 16;
/// Longest file name in bytes, as POSIX's NAME_MAX on Linux.
pub const NAME_MAX: usize = 255;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Lower-case hexadecimal.
            pub fn hex(&self) -> String {
                data_encoding::HEXLOWER.encode(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0[..4]))
            }
        }
    };
}

id!(
    /// A volume: 16 random bytes, chosen at `init`.
    VolumeId, 16
);
id!(
    /// A directory: 16 random bytes, chosen at `mkdir`.
    DirId, 16
);
id!(
    /// A file: 32 random bytes, chosen at creation and kept for life.
    FileId, 32
);
id!(
    /// A file with several names: what its entry in the links directory is called.
    LinkId, 16
);
id!(
    /// One name of such a file: 16 random bytes that are never used again.
    LinkRef, 16
);
id!(
    /// SHA-256 of something: a trailer, an index object, a config.
    Hash, 32
);

impl Hash {
    /// "Nothing before this": the previous hash of a first version.
    pub const ZERO: Hash = Hash([0; 32]);
}

/// How object names are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Contents sealed, an object's key is its path.
    Standard,
    /// Names and structure hidden as well: the default.
    ZeroKnowledge,
}

/// The AEAD that seals chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Suite 1: AES-256-GCM.
    Aes256Gcm,
    /// Suite 2: ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

/// Seconds and nanoseconds since 1970-01-01 UTC; seconds may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, below 1 000 000 000.
    pub nsec: u32,
}

impl Time {
    /// As RFC 3339 has it, in UTC, with milliseconds.
    pub fn rfc3339(self) -> String {
        // Days to civil date after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (2013).
        let (days, second) = (self.sec.div_euclid(86_400), self.sec.rem_euclid(86_400));
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let doe = shifted.rem_euclid(146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let day = doy - (153 * mp + 2) / 5 + 1;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = yoe + era * 400 + i64::from(month <= 2);
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", self.nsec / 1_000_000)
    }
}
