//! What comes from outside: `.deny.toml` says what may, these tests hold it without another tool.

#![expect(clippy::unwrap_used, reason = "a failure to unwrap is a failed test")]

use std::fs;
use std::process::Command;

use serde_json::Value;
use tests_tidy::root;
use toml::Table;

struct Dependency {
    name: String,
    version: String,
    licence: String,
    registry: bool,
}

fn dependencies() -> Vec<Dependency> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |package: &Value, key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .filter(|package| !package["source"].is_null())
        .map(|package| Dependency {
            name: text(package, "name"),
            version: text(package, "version"),
            licence: text(package, "license"),
            registry: text(package, "source").starts_with("registry+"),
        })
        .collect()
}

fn rules() -> Table {
    fs::read_to_string(root().join(".deny.toml")).unwrap().parse().unwrap()
}

/// Whether one of the choices that a licence expression leaves consists of allowed licences only.
fn allowed(expression: &str, licences: &[&str]) -> bool {
    let expression = expression.replace(['(', ')'], "").replace('/', " OR ");
    expression
        .split(" OR ")
        .any(|choice| choice.split(" AND ").all(|licence| licences.contains(&licence.trim())))
}

#[test]
fn licences_are_permissive() {
    let rules = rules();
    let licences = rules["licenses"]["allow"].as_array().unwrap();
    let licences: Vec<&str> = licences.iter().filter_map(toml::Value::as_str).collect();
    assert!(allowed("MIT OR GPL-3.0", &licences) && allowed("(MIT OR X) AND ISC", &licences));
    assert!(!allowed("GPL-3.0", &licences) && !allowed("MIT AND GPL-3.0", &licences));
    let all = dependencies();
    assert!(all.len() > 100, "only {} dependencies were found", all.len());
    for Dependency { name, version, licence, .. } in all {
        assert!(allowed(&licence, &licences), "{name} {version}: {licence:?}");
    }
}

#[test]
fn what_is_banned_is_absent_and_what_may_be_there_once_is_there_once() {
    let all = dependencies();
    let rules = rules();
    let bans = rules["bans"]["deny"].as_array().unwrap();
    assert!(!bans.is_empty());
    for ban in bans {
        let (name, reason) = (ban["name"].as_str().unwrap(), ban["reason"].as_str().unwrap());
        let versions = all.iter().filter(|it| it.name == name).count();
        let once = ban.get("deny-multiple-versions").is_some();
        assert_eq!(versions, usize::from(once), "{name}: {reason}");
    }
}

#[test]
fn everything_comes_from_the_registry() {
    for Dependency { name, version, registry, .. } in dependencies() {
        assert!(registry, "{name} {version}");
    }
}
