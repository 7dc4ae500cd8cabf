//! Manifests: one place for versions, lints inherited by all.

use std::fs;

use tests_tidy::packages;

#[test]
fn every_crate_inherits_the_lints() {
    for package in packages().unwrap() {
        let manifest = fs::read_to_string(package.folder.join("Cargo.toml")).unwrap();
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{} has lints of its own",
            package.name
        );
    }
}

#[test]
fn versions_stand_in_the_workspace_only() {
    for package in packages().unwrap() {
        let manifest = fs::read_to_string(package.folder.join("Cargo.toml")).unwrap();
        for line in manifest.lines().filter(|line| !line.trim_start().starts_with('#')) {
            let own = line.contains("version = \"")
                || line.split_once(" = \"").is_some_and(|(_, value)| {
                    value.starts_with(|first: char| first.is_ascii_digit() || first == '=')
                });
            assert!(!own, "{}: {line}", package.name);
        }
    }
}
