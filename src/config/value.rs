//! Values of settings: sizes, durations, switches and words, parsed from text and printed back.

use std::path::PathBuf;
use std::time::Duration;

/// A type that a setting can have. `parse` and `show` are inverse: `parse(show(v)) == v`.
pub trait Value: Sized {
    /// What a value looks like, for messages and documentation.
    const KIND: &'static str;
    /// Whether the name alone, without a value, means "yes".
    const SWITCH: bool = false;
    /// Reads a value, or says what is wrong with it (the caller adds where it stood).
    fn parse(text: &str) -> Result<Self, String>;
    /// The value as it would be written in a file; empty when there is none.
    fn show(&self) -> String;
}

impl Value for bool {
    const KIND: &'static str = "true or false";
    const SWITCH: bool = true;
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(format!("`{text}` is neither true nor false")),
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for u32 {
    const KIND: &'static str = "number";
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("`{text}` is not a whole number from 0 to {}", u32::MAX))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    const KIND: &'static str = "text";
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    const KIND: &'static str = "path";
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the path is empty".into());
        }
        Ok(PathBuf::from(text))
    }
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl<T: Value> Value for Option<T> {
    const KIND: &'static str = T::KIND;
    const SWITCH: bool = T::SWITCH;
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { T::parse(text).map(Some) }
    }
    fn show(&self) -> String {
        self.as_ref().map(T::show).unwrap_or_default()
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

impl Value for Size {
    const KIND: &'static str = "size";
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size: write a number and a unit, such as 256MiB, 10GiB or 5MB");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(unit).map(Size).ok_or_else(|| format!("`{text}` is too large"))
    }
    fn show(&self) -> String {
        if self.0 == 0 {
            return "0".into();
        }
        let (unit, n) = UNITS.iter().find(|(_, n)| self.0.is_multiple_of(*n)).unwrap_or(&("", 1));
        format!("{}{unit}", self.0 / n)
    }
}

impl Value for Duration {
    const KIND: &'static str = "duration";
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a duration: write a number and a unit, such as 500ms, 90s, 5m or 2h");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let unit_ms: u64 = match text[digits..].trim() {
            "" | "s" | "sec" => 1_000,
            "ms" => 1,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(|| format!("`{text}` is too long"))
    }
    fn show(&self) -> String {
        let ms = self.as_millis();
        if ms.is_multiple_of(1000) { format!("{}s", ms / 1000) } else { format!("{ms}ms") }
    }
}

/// Permission bits, written in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Octal(pub u16);

impl Value for Octal {
    const KIND: &'static str = "octal";
    fn parse(text: &str) -> Result<Self, String> {
        match u16::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8) {
            Ok(n) if n <= 0o777 => Ok(Octal(n)),
            _ => Err(format!("`{text}` is not an octal number from 0 to 777, such as 022")),
        }
    }
    fn show(&self) -> String {
        format!("{:03o}", self.0)
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $( $(#[$vdoc:meta])* $variant:ident = $word:literal ),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[$vdoc])* $variant ),+ }

        impl Value for $name {
            const KIND: &'static str = $kind;
            fn parse(text: &str) -> Result<Self, String> {
                match text {
                    $( $word => Ok($name::$variant), )+
                    _ => Err(format!("`{text}` is not one of: {}", $kind)),
                }
            }
            fn show(&self) -> String {
                match self { $( $name::$variant => $word.into() ),+ }
            }
        }
    };
}

words!(
    /// What a read does while the store is away.
    OnUnavailable, "fail, wait",
    /// EIO after the operation's time limit.
    Fail = "fail",
    /// Waits until the store is back.
    Wait = "wait"
);
words!(
    /// How much of an object is verified on reading.
    Verify, "aead, full",
    /// The authenticated cipher of each chunk, under the signed root.
    Aead = "aead",
    /// That and the SHA-256 leaf of each chunk.
    Full = "full"
);
words!(
    /// When fsync(2) returns.
    Fsync, "remote, local",
    /// When the data is in the bucket.
    Remote = "remote",
    /// When the data is in the sealed local spool.
    Local = "local"
);
words!(
    /// Where log lines go.
    LogTarget, "auto, stderr, journald, file",
    /// The terminal in the foreground, journald under systemd, a file in the state directory otherwise.
    Auto = "auto",
    /// Standard error (foreground only).
    Stderr = "stderr",
    /// systemd's journal.
    Journald = "journald",
    /// `log-file`.
    File = "file"
);
words!(
    /// How log lines look.
    LogFormat, "text, json",
    /// For people.
    Text = "text",
    /// One JSON object a line.
    Json = "json"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_and_durations_as_people_write_them() {
        for (text, bytes) in [("256MiB", 256 << 20), ("10g", 10 << 30), ("5MB", 5_000_000), ("0", 0), ("64 KiB", 65536)] {
            assert_eq!(Size::parse(text), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "10 parsecs", "99999999TiB"] {
            assert!(Size::parse(bad).is_err(), "{bad}");
        }
        for (text, ms) in [("90s", 90_000), ("500ms", 500), ("5m", 300_000), ("7", 7_000), ("2h", 7_200_000)] {
            assert_eq!(Duration::parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert!(Duration::parse("soon").is_err());
        assert_eq!(Octal::parse("022"), Ok(Octal(0o022)));
        assert!(Octal::parse("899").is_err() && Octal::parse("1000").is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_parsed_back(n in any::<u64>(), ms in 0u64..1 << 50, bits in 0u16..=0o777) {
            prop_assert_eq!(Size::parse(&Size(n).show()), Ok(Size(n)));
            let d = Duration::from_millis(ms);
            prop_assert_eq!(Duration::parse(&d.show()), Ok(d));
            prop_assert_eq!(Octal::parse(&Octal(bits).show()), Ok(Octal(bits)));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,20}") {
            let _ = (Size::parse(&text), Duration::parse(&text), Octal::parse(&text), bool::parse(&text));
        }
    }
}
