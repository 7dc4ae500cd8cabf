//! The top level, the documents, and what may not stand in any file.

use std::collections::BTreeSet;
use std::fs;

use tests_tidy::{files, root, rust_files};

const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".deny.toml",
    ".gitignore",
    ".rustfmt.toml",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "controller",
    "guest",
    "host",
    "images",
    "kernel",
    "rust-toolchain.toml",
    "scheduler",
    "tests",
];

#[test]
fn the_top_level_is_as_designed() {
    let found: BTreeSet<String> = files()
        .unwrap()
        .iter()
        .filter_map(|path| path.components().next())
        .map(|first| first.as_os_str().to_string_lossy().into_owned())
        .collect();
    let designed: BTreeSet<String> = TOP_LEVEL.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, designed);
}

#[test]
fn every_invariant_names_a_test_that_exists() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, invariants) = architecture.split_once("\n## Invariants\n").unwrap();
    let invariants = invariants.split("\n## ").next().unwrap_or_default();
    let sources = rust_files().unwrap();
    let mut rows = 0;
    for row in
        invariants.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| rule "))
    {
        let tests: Vec<&str> =
            row.split('`').skip(1).step_by(2).filter(|word| word.contains("::")).collect();
        assert!(!tests.is_empty(), "an invariant without a test: {row}");
        for test in tests {
            let (file, name) = test.split_once("::").unwrap_or_default();
            let exists = sources.iter().any(|(path, text)| {
                let path = path.to_string_lossy();
                path.contains(file) && text.contains(&format!("fn {name}("))
            });
            assert!(exists, "{test} does not exist");
            rows += 1;
        }
    }
    assert!(rows >= 10, "the ten rules name {rows} tests");
}

#[test]
fn no_registry_host_and_no_machine_path_is_named() {
    // Written in halves, so that this file does not name them either.
    let banned = [
        ("crates", ".io/"),
        ("proxy.golang", ".org"),
        ("deb.debian", ".org"),
        ("npmjs", ".org"),
        ("/ro", "ot/.cargo"),
    ]
    .map(|(left, right)| format!("{left}{right}"));
    for path in files().unwrap() {
        if path.extension().is_some_and(|extension| extension == "lock") {
            continue;
        }
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for word in &banned {
            assert!(!text.contains(word.as_str()), "{} names {word}", path.display());
        }
    }
}
