//! config.toml: strict keys, `${VAR}`, store entries. An error names the file, the line and the nearest valid key.

use super::suggest::nearest;
use super::{Entry, KEYS, Key};
use crate::error::{Error, Kind, Result, fail};
use std::collections::BTreeMap;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest configuration file, bytes.
pub const MAX_LEN: u64 = 1 << 20;

/// A `[stores.NAME]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreEntry {
    /// URL of the store.
    pub url: String,
    /// Settings that apply when this entry is mounted.
    pub settings: Vec<Entry>,
}

/// A parsed configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// Settings at the top of the file.
    pub settings: Vec<Entry>,
    /// Store entries by name.
    pub stores: BTreeMap<String, StoreEntry>,
}

/// Where we are in the text, for messages.
struct Place<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    fn at(&self, offset: usize) -> String {
        let line = self.text[..offset.min(self.text.len())].matches('\n').count() + 1;
        format!("{}, line {line}", self.path.display())
    }
}

/// Parses the text of a file at `path` (used in messages only). `variable` looks up `${NAME}`.
pub fn parse(path: &Path, text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<File> {
    let place = Place { path, text };
    let table = DeTable::parse(text).map_err(|e| {
        let at = place.at(e.span().map_or(0, |s| s.start));
        Error::new(Kind::Invalid, format!("{at}: {}", e.message()))
    })?;
    let mut file = File::default();
    for (key, value) in table.get_ref() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("stores", DeValue::Table(stores)) => {
                for (name, entry) in stores {
                    file.stores.insert(check_name(&place, name)?, store(&place, name, entry, variable)?);
                }
            }
            ("stores", _) => return fail(Kind::Invalid, format!("{}: write [stores.NAME] tables", place.at(key.span().start))),
            _ => file.settings.push(setting(&place, key, value, variable, &["stores"])?),
        }
    }
    Ok(file)
}

fn check_name(place: &Place, name: &Spanned<std::borrow::Cow<str>>) -> Result<String> {
    let text = name.get_ref();
    if text.is_empty() || text.contains([':', '/', ',', ' ']) || RESERVED.contains(&text.as_ref()) {
        let at = place.at(name.span().start);
        return fail(
            Kind::Invalid,
            format!("{at}: `{text}` cannot be a store's name: use letters, digits, `-` and `_`, and no URL scheme"),
        );
    }
    Ok(text.to_string())
}

/// Names that would be taken for a URL scheme.
const RESERVED: &[&str] = &["dir", "s3", "memory", "azure", "sftp", "gdrive", "dropbox", "file", "http", "https", "pacs"];

fn store(
    place: &Place,
    name: &Spanned<std::borrow::Cow<str>>,
    entry: &Spanned<DeValue>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<StoreEntry> {
    let DeValue::Table(table) = entry.get_ref() else {
        return fail(
            Kind::Invalid,
            format!("{}: a store entry is a table: [stores.{}]", place.at(name.span().start), name.get_ref()),
        );
    };
    let mut out = StoreEntry::default();
    for (key, value) in table {
        if key.get_ref() == "url" {
            out.url = scalar(place, "url", value, variable)?;
        } else {
            out.settings.push(setting(place, key, value, variable, &["url"])?);
        }
    }
    if out.url.is_empty() {
        let at = place.at(name.span().start);
        return fail(Kind::Invalid, format!("{at}: [stores.{}] lacks url = \"s3://bucket/prefix\"", name.get_ref()));
    }
    Ok(out)
}

fn setting(
    place: &Place,
    key: &Spanned<std::borrow::Cow<str>>,
    value: &Spanned<DeValue>,
    variable: &dyn Fn(&str) -> Option<String>,
    also: &[&str],
) -> Result<Entry> {
    let name = key.get_ref().as_ref();
    let at = place.at(key.span().start);
    let Some(known) = Key::find(name) else {
        return fail(Kind::Invalid, format!("{at}: {}", unknown(name, "key", also)));
    };
    Ok(Entry { key: known.name, value: scalar(place, name, value, variable)?, origin: at })
}

/// The sentence for a name that is no setting.
pub fn unknown(name: &str, what: &str, also: &[&str]) -> String {
    let plain = name.replace('_', "-");
    if ["passphrase", "password", "pass", "recovery-code", "key", "secret"].contains(&plain.as_str()) {
        return format!("there is no {what} `{name}`: secrets are never written here; use passphrase-file");
    }
    match nearest(&plain, KEYS.iter().map(|k| k.name).chain(also.iter().copied())) {
        Some(near) => format!("unknown {what} `{name}`; did you mean `{near}`?"),
        None => format!("unknown {what} `{name}`; docs/CONFIGURATION.md lists them all"),
    }
}

fn scalar(place: &Place, name: &str, value: &Spanned<DeValue>, variable: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    let at = || place.at(value.span().start);
    match value.get_ref() {
        DeValue::String(s) => expand(s, variable).map_err(|e| Error::new(Kind::Invalid, format!("{}: {name}: {e}", at()))),
        DeValue::Integer(i) => Ok(i.as_str().replace('_', "")),
        DeValue::Boolean(b) => Ok(b.to_string()),
        _ => fail(Kind::Invalid, format!("{}: {name} takes one value: text in quotes, a number, true or false", at())),
    }
}

/// Replaces `${NAME}` by the environment variable NAME; `$${` stands for `${` itself.
pub fn expand(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> std::result::Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at - 1]);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let Some(len) = rest[at..].find('}') else { return Err("a `${` lacks its `}`".into()) };
        let name = &rest[at + 2..at + len];
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!("`${{{name}}}` does not name a variable"));
        }
        out.push_str(&variable(name).ok_or_else(|| format!("the variable {name} is not set"))?);
        rest = &rest[at + len + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<File> {
        parse(Path::new("/etc/smpfs/config.toml"), text, &|n| (n == "BUCKET").then(|| "scans".to_owned()))
    }

    fn complaint(text: &str) -> String {
        let e = read(text).unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid);
        e.to_string()
    }

    #[test]
    fn settings_and_stores_with_variables() {
        let text = "memory_budget = \"1GiB\"\nretries = 1_0\n\n[stores.work-s3]\nurl = \"s3://${BUCKET}/p\"\npath-style = true\n";
        let file = read(text).unwrap();
        assert_eq!(file.settings.len(), 2);
        assert!(file.settings.iter().any(|e| e.key == "retries" && e.value == "10"));
        let store = &file.stores["work-s3"];
        assert_eq!(store.url, "s3://scans/p");
        let origin = "/etc/smpfs/config.toml, line 6".to_owned();
        assert_eq!(store.settings, [Entry { key: "path-style", value: "true".into(), origin }]);
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line_and_neighbour() {
        let said = complaint("\nread-only = true\nmemory-buget = \"1GiB\"\n");
        assert_eq!(said, "/etc/smpfs/config.toml, line 3: unknown key `memory-buget`; did you mean `memory-budget`?");
        assert!(complaint("[stores.a]\nurll = \"s3://b\"\n").ends_with("line 2: unknown key `urll`; did you mean `url`?"));
        assert!(complaint("passphrase = \"x\"\n").contains("use passphrase-file"));
        assert!(complaint("qqqqqqqqqqqq = 1\n").contains("docs/CONFIGURATION.md"));
    }

    #[test]
    fn broken_files_say_where() {
        assert!(complaint("a = \n").contains("line 1"), "{}", complaint("a = \n"));
        assert!(complaint("retries = [1]\n").contains("line 1: retries takes one value"));
        assert!(complaint("cache-dir = \"${NOT_THERE}/x\"\n").contains("the variable NOT_THERE is not set"));
        assert!(complaint("[stores.s3]\nurl=\"s3://x\"\n").contains("cannot be a store's name"));
        assert!(complaint("\n[stores.a]\nprofile=\"x\"\n").contains("line 2: [stores.a] lacks url"));
        assert!(complaint("stores = 3\n").contains("[stores.NAME]"));
        assert!(complaint("retries = 1\nretries = 2\n").contains("line 2"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(?s).{0,80}") {
            let _ = read(&text);
        }

        #[test]
        fn text_without_variables_is_left_alone(text in "[^$]{0,40}") {
            prop_assert_eq!(expand(&text, &|_| None), Ok(text));
        }
    }

    #[test]
    fn a_doubled_dollar_is_a_dollar() {
        assert_eq!(expand("a$${B}c$d", &|_| None), Ok("a${B}c$d".to_owned()));
        assert!(expand("${", &|_| None).is_err());
        assert!(expand("${a b}", &|_| None).is_err());
    }
}
