//! `-o` lists, as mount(8), fstab and people write them: split, unquoted, and sorted by what smpfs does with each.

use crate::error::{Kind, Result, fail};

/// One option of a list, as written but unquoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawOption {
    /// Name, before the first `=`.
    pub name: String,
    /// What follows the `=`, if there is one.
    pub value: Option<String>,
}

/// What smpfs does with an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It is for mount(8), systemd or the kernel's own taste: ignored.
    Ignored,
    /// The configuration file.
    Config(String),
    /// Handed to the kernel.
    Kernel(KernelFlag),
    /// `--take-over`.
    TakeOver,
    /// A setting of smpfs: its name with `-` between words, and its value.
    Setting(String, Option<String>),
}

/// Mount flags that the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFlag {
    /// Honour set-user-id bits, or not.
    Suid(bool),
    /// Honour device nodes, or not.
    Dev(bool),
    /// Allow programs to run, or not.
    Exec(bool),
}

/// Splits a list at its commas. `"` quotes commas anywhere in an option; `\,`, `\"` and `\\` stand for the second character, any
/// other `\` for itself (systemd and fstab have undone their own escapes before).
pub fn split(list: &str) -> Result<Vec<RawOption>> {
    let mut out = Vec::new();
    let mut item = Item::default();
    let mut quoted = false;
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next_if(|n| matches!(n, ',' | '"' | '\\')) {
                Some(escaped) => item.push(escaped),
                None => item.push('\\'),
            },
            '"' => quoted = !quoted,
            ',' if !quoted => std::mem::take(&mut item).finish(&mut out)?,
            '=' if item.value.is_none() => item.value = Some(String::new()),
            c => item.push(c),
        }
    }
    if quoted {
        return fail(Kind::Invalid, "-o: a quotation mark is not closed");
    }
    item.finish(&mut out)?;
    Ok(out)
}

#[derive(Default)]
struct Item {
    name: String,
    value: Option<String>,
}

impl Item {
    fn push(&mut self, c: char) {
        self.value.as_mut().unwrap_or(&mut self.name).push(c);
    }

    fn finish(self, out: &mut Vec<RawOption>) -> Result<()> {
        match (self.name.is_empty(), &self.value) {
            (true, None) => Ok(()),
            (true, Some(_)) => fail(Kind::Invalid, "-o: an option lacks its name"),
            (false, _) => {
                out.push(RawOption { name: self.name, value: self.value });
                Ok(())
            }
        }
    }
}

/// Options that concern mount(8), fstab, systemd, or times that smpfs keeps in its own way.
const IGNORED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "nofail",
    "_netdev",
    "_rnetdev",
    "comment",
    "helper",
    "uhelper",
    "async",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "silent",
    "loud",
];

/// Sorts one option.
pub fn meaning(option: RawOption) -> Result<Meaning> {
    let RawOption { name, value } = option;
    if IGNORED.contains(&name.as_str()) || name.starts_with("x-") || name.starts_with("X-") {
        return Ok(Meaning::Ignored);
    }
    let name = name.replace('_', "-");
    let flag = match (name.as_str(), &value) {
        ("suid" | "nosuid", None) => Some(KernelFlag::Suid(name == "suid")),
        ("dev" | "nodev", None) => Some(KernelFlag::Dev(name == "dev")),
        ("exec" | "noexec", None) => Some(KernelFlag::Exec(name == "exec")),
        _ => None,
    };
    if let Some(flag) = flag {
        return Ok(Meaning::Kernel(flag));
    }
    match (name.as_str(), value) {
        ("ro" | "rw", None) => Ok(Meaning::Setting("read-only".into(), Some((name == "ro").to_string()))),
        ("take-over", None) => Ok(Meaning::TakeOver),
        ("config", Some(path)) => Ok(Meaning::Config(path)),
        ("remount", None) => {
            let what = "-o remount: smpfs changes no mount in place; unmount it and mount it again. What the kernel itself can do, read-only and \
                        back, it does without a helper: `mount -i -o remount,ro DIR`";
            fail(Kind::Invalid, what)
        }
        ("sync" | "dirsync", None) => {
            fail(Kind::Invalid, format!("-o {name}: not offered; fsync(2) and unmount return when data is in the bucket"))
        }
        (_, value) => Ok(Meaning::Setting(name, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(name: &str, value: Option<&str>) -> RawOption {
        RawOption { name: name.into(), value: value.map(str::to_owned) }
    }

    #[test]
    fn lists_as_people_write_them() {
        let got = split(r#"ro,"profile=a,b",region="x,y",endpoint=http://h:1/?a=b,cache_dir=/a\,b\\c\d,,_netdev"#).unwrap();
        let want = [
            raw("ro", None),
            raw("profile", Some("a,b")),
            raw("region", Some("x,y")),
            raw("endpoint", Some("http://h:1/?a=b")),
            raw("cache_dir", Some(r"/a,b\c\d")),
            raw("_netdev", None),
        ];
        assert_eq!(got, want);
        assert_eq!(split("").unwrap(), []);
        assert_eq!(split("region=").unwrap(), [raw("region", Some(""))]);
        assert!(split("a=\"b").is_err());
        assert!(split("=b").is_err());
    }

    #[test]
    fn options_are_sorted() {
        let one = |text: &str| meaning(split(text).unwrap().remove(0));
        for ignored in
            ["_netdev", "nofail", "x-systemd.automount", "X-mount.mkdir=0700", "defaults", "user=alice", "noauto", "noatime"]
        {
            assert_eq!(one(ignored).unwrap(), Meaning::Ignored, "{ignored}");
        }
        assert_eq!(one("ro").unwrap(), Meaning::Setting("read-only".into(), Some("true".into())));
        assert_eq!(one("rw").unwrap(), Meaning::Setting("read-only".into(), Some("false".into())));
        assert_eq!(one("allow_other").unwrap(), Meaning::Setting("allow-other".into(), None));
        assert_eq!(one("nosuid").unwrap(), Meaning::Kernel(KernelFlag::Suid(false)));
        assert_eq!([one("take-over").unwrap(), one("take_over").unwrap()], [Meaning::TakeOver, Meaning::TakeOver]);
        assert_eq!(one("config=/etc/x").unwrap(), Meaning::Config("/etc/x".into()));
        let said = one("remount").unwrap_err();
        assert_eq!(said.kind(), Kind::Invalid, "a wrong command line, exit code 2");
        assert!(said.to_string().contains("`mount -i -o remount,ro DIR`"), "{said}");
        assert!(one("sync").is_err());
    }

    fn quoted(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }

    fn escaped(text: &str) -> String {
        text.replace('\\', "\\\\").replace('"', "\\\"").replace(',', "\\,")
    }

    proptest! {
        #[test]
        fn quoting_and_escaping_bring_any_value_through(
            options in proptest::collection::vec(("[a-z][a-z_-]{0,9}", proptest::option::of(".{0,12}"), any::<bool>()), 0..6)
        ) {
            let written: Vec<String> = options.iter().map(|(name, value, quote)| match value {
                None => name.clone(),
                Some(v) if *quote => quoted(&format!("{name}={v}")),
                Some(v) => format!("{name}={}", escaped(v)),
            }).collect();
            let want: Vec<RawOption> = options.into_iter().map(|(name, value, _)| RawOption { name, value }).collect();
            prop_assert_eq!(split(&written.join(",")).unwrap(), want);
        }

        #[test]
        fn no_list_makes_it_panic(list in ".{0,40}") {
            let _ = split(&list).map(|all| all.into_iter().map(meaning).collect::<Vec<_>>());
        }
    }
}
