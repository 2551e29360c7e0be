//! Tests of the order of sources, of store entries, and of docs/CONFIGURATION.md.

use super::*;
use std::collections::HashMap;

struct World {
    dir: tempfile::TempDir,
    environment: HashMap<String, String>,
}

impl World {
    fn new(file: &str) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(".config/smpfs")).unwrap();
        std::fs::write(dir.path().join(".config/smpfs/config.toml"), file).unwrap();
        World { dir, environment: HashMap::new() }
    }

    fn load(&self, store: Option<&str>, given: &[(&'static str, &str)]) -> Result<Loaded> {
        load(Sources {
            file: None,
            given: given.iter().map(|(k, v)| Entry { key: k, value: v.to_string(), origin: format!("--{k}") }).collect(),
            environment: &|name| self.environment.get(name).cloned(),
            store,
            identity: Identity { uid: 7, home: Some(self.dir.path().into()), xdg: Default::default() },
        })
    }
}

const FILE: &str = r#"
retries = 2
memory-budget = "1GiB"
[stores.work-s3]
url = "s3://bucket/prefix/"
region = "eu-central-1"
retries = 3
"#;

#[test]
fn later_sources_win_one_by_one() {
    let mut world = World::new(FILE);
    assert_eq!(World::new("").load(None, &[]).unwrap().config.retries, 4);
    assert_eq!(world.load(None, &[]).unwrap().config.retries, 2);
    assert_eq!(world.load(Some("work-s3:"), &[]).unwrap().config.retries, 3);
    world.environment.insert("SMPFS_RETRIES".into(), "5".into());
    assert_eq!(world.load(Some("work-s3:"), &[]).unwrap().config.retries, 5);
    assert_eq!(world.load(Some("work-s3:"), &[("retries", "6")]).unwrap().config.retries, 6);
    assert_eq!(world.load(Some("work-s3:"), &[("retries", "6"), ("retries", "7")]).unwrap().config.retries, 7);
}

#[test]
fn entries_become_urls_and_urls_stay() {
    let world = World::new(FILE);
    for (spec, url, below) in [
        ("work-s3", "s3://bucket/prefix/", ""),
        ("work-s3:", "s3://bucket/prefix/", ""),
        ("work-s3:/", "s3://bucket/prefix/", ""),
        ("work-s3:/sub/dir", "s3://bucket/prefix/", "sub/dir"),
        ("work-s3:sub/", "s3://bucket/prefix/", "sub"),
        ("s3://other/p", "s3://other/p", ""),
        ("dir:///data/b", "dir:///data/b", ""),
        ("memory:", "memory:", ""),
        ("memory:x", "memory:x", ""),
    ] {
        let want = StoreRef { url: url.into(), below: below.into() };
        assert_eq!(world.load(Some(spec), &[]).unwrap().store, Some(want), "{spec}");
    }
    assert_eq!(world.load(Some("work-s3:"), &[]).unwrap().config.region.as_deref(), Some("eu-central-1"));
    assert_eq!(world.load(Some("s3://bucket/prefix/"), &[]).unwrap().config.region, None);
    let said = world.load(Some("work-s4:/x"), &[]).unwrap_err().to_string();
    assert!(said.contains("did you mean `work-s3:`?"), "{said}");
    for (path, url) in
        [("/data/b", "dir:///data/b"), ("/a b:c", "dir:///a b:c"), ("/50%", "dir:///50%25"), ("~/b", "dir:///absolute/path")]
    {
        let said = world.load(Some(path), &[]).unwrap_err().to_string();
        assert!(said.ends_with(url), "{said}");
    }
    let here = std::env::current_dir().unwrap();
    let said = world.load(Some("./b"), &[]).unwrap_err().to_string();
    assert!(said.ends_with(&format!("dir://{}/b", here.display())), "{said}");
    let said = World::new("").load(Some("x"), &[]).unwrap_err().to_string();
    assert!(said.contains("no [stores.NAME] entry"), "{said}");
}

#[test]
fn a_wrong_value_is_named_with_its_origin() {
    let mut world = World::new("\nretries = \"many\"\n");
    let said = world.load(None, &[]).unwrap_err().to_string();
    assert!(said.contains("config.toml, line 2: retries: `many` is not a whole number"), "{said}");
    world = World::new("");
    let said = world.load(None, &[("cache-size", "10 parsecs")]).unwrap_err().to_string();
    assert!(said.starts_with("--cache-size: `10 parsecs` is not a size"), "{said}");
    world.environment.insert("SMPFS_FSYNC".into(), "never".into());
    let e = world.load(None, &[]).unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid);
    assert_eq!(e.to_string(), "SMPFS_FSYNC: `never` is not one of: remote, local");
}

#[test]
fn bounds_are_checked_together() {
    let world = World::new("");
    for (given, word) in [
        (vec![("memory-budget", "1MiB"), ("prefetch-window", "0")], "32MiB"),
        (
            vec![("prefetch-window", "400MiB")],
            "half of memory-budget (prefetch-window is 400MiB; memory-budget is 512MiB, the default)",
        ),
        (vec![("retry-base", "2m")], "retry-cap is 60s, the default"),
        (vec![("operation-timeout", "5s")], "connect-timeout"),
        (vec![("cache-size", "1MiB")], "64MiB"),
        (vec![("request-concurrency", "0")], "1 to 1024"),
        (vec![("log-target", "file")], "log-file"),
        (vec![("upload-limit", "1")], "16KiB"),
    ] {
        let said = world.load(None, &given).unwrap_err().to_string();
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(world.load(None, &[("cache-size", "0")]).unwrap().config.cache_size, Size(0));
}

#[test]
fn a_named_file_must_exist_and_the_default_one_need_not() {
    let world = World::new("");
    std::fs::remove_file(world.dir.path().join(".config/smpfs/config.toml")).unwrap();
    assert!(world.load(None, &[]).is_ok());
    let missing = load(Sources {
        file: Some(world.dir.path().join("none.toml")),
        given: vec![],
        environment: &|_| None,
        store: None,
        identity: Identity::default(),
    });
    assert!(missing.unwrap_err().to_string().contains("cannot read the configuration"));
}

#[test]
fn log_level_comes_from_the_usual_variables() {
    let mut world = World::new("log-level = \"warn\"");
    assert_eq!(world.load(None, &[]).unwrap().config.log_level, "warn");
    world.environment.insert("RUST_LOG".into(), "debug".into());
    assert_eq!(world.load(None, &[]).unwrap().config.log_level, "debug");
    world.environment.insert("SMPFS_LOG".into(), "trace".into());
    assert_eq!(world.load(None, &[]).unwrap().config.log_level, "trace");
    assert_eq!(world.load(None, &[("log-file", "/x/y.log")]).unwrap().config.log_target, LogTarget::File);
}

#[test]
fn variables_that_are_no_settings_are_pointed_out() {
    let names = [
        "SMPFS_RETRIES",
        "SMPFS_CONFIG",
        "SMPFS_TEST_S3",
        "SMPFS_TEST_S3_READER",
        "SMPFS_VENV",
        "HOME",
        "SMPFS_MEMORY_BUGET",
        "SMPFS_XYZZY",
    ]
    .map(str::to_owned);
    let said = stray_variables(names.into_iter());
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].ends_with("did you mean SMPFS_MEMORY_BUDGET?"), "{said:?}");
}

#[test]
fn relative_paths_become_absolute_and_empty_variables_are_unset() {
    let mut world = World::new("");
    world.environment.insert("SMPFS_CACHE_SIZE".into(), String::new());
    let config = world.load(None, &[("cache-dir", "here/cache")]).unwrap().config;
    assert_eq!(config.cache_dir, std::env::current_dir().unwrap().join("here/cache"));
    assert_eq!(config.cache_size, Size(10 << 30));
}

#[test]
fn names_are_unique_and_default_values_parse_back() {
    let config = Config::bare().unwrap();
    for (i, key) in KEYS.iter().enumerate() {
        assert!(!KEYS[..i].iter().any(|k| k.name == key.name), "{} twice", key.name);
        let mut copy = config.clone();
        (key.set)(&mut copy, &(key.get)(&config)).unwrap_or_else(|e| panic!("{}: {e}", key.name));
        assert_eq!(copy, config, "{}", key.name);
    }
    assert_eq!(Key::find("memory_budget").unwrap().variable(), "SMPFS_MEMORY_BUDGET");
}

/// Every row `| \`name\` | kind | default | text |` of the document is a setting, and every setting has its row, in order.
#[test]
fn the_document_and_the_table_agree() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONFIGURATION.md");
    let text = std::fs::read_to_string(path).unwrap();
    let tables = text.split("## All settings").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<Vec<String>> = tables
        .lines()
        .filter(|l| l.starts_with("| `"))
        .map(|l| l.trim_matches('|').split(" | ").map(|c| c.trim().to_owned()).collect())
        .collect();
    let expected: Vec<Vec<String>> = KEYS
        .iter()
        .map(|k| {
            let default = match k.name {
                "cache-dir" | "state-dir" | "runtime-dir" => "see Places".to_owned(),
                _ if k.default.is_empty() => "–".to_owned(),
                _ => format!("`{}`", k.default),
            };
            vec![format!("`{}`", k.name), k.kind.to_owned(), default, k.doc.to_owned()]
        })
        .collect();
    for (row, want) in rows.iter().zip(&expected) {
        assert_eq!(row, want, "docs/CONFIGURATION.md; the row should be\n| {} |\n", want.join(" | "));
    }
    assert_eq!(rows.len(), expected.len(), "docs/CONFIGURATION.md lacks rows or has too many");
    for (name, _) in VARIABLES {
        assert!(text.contains(name), "docs/CONFIGURATION.md does not mention {name}");
    }
}
