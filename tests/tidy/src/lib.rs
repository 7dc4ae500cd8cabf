//! Tests about the repository itself: the arrow rule, the brains' purity, budgets, lints, documents.
//!
//! The library reads the tree once; each file under `tests/` holds one subject. All of it runs with plain `cargo test`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What a crate may be used by (ARCHITECTURE.md, "Folders and crates").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Types that several parts speak; used from anywhere.
    Vocabulary,
    /// A synchronous decision machine; uses vocabularies only.
    Brain,
    /// A program; uses vocabularies and brains, never another program.
    Binary,
    /// Tests may use anything.
    Test,
}

/// Every member of the workspace, in the order of reading, with its kind.
pub const CRATES: [(&str, Kind); 20] = [
    ("guest-units", Kind::Vocabulary),
    ("guest-protocol", Kind::Vocabulary),
    ("guest-policy", Kind::Brain),
    ("guest-monitor", Kind::Binary),
    ("controller-api", Kind::Vocabulary),
    ("controller-qmp", Kind::Vocabulary),
    ("controller-lifecycle", Kind::Brain),
    ("controller-operator", Kind::Binary),
    ("controller-kubectl", Kind::Binary),
    ("scheduler-protocol", Kind::Vocabulary),
    ("scheduler-ledger", Kind::Brain),
    ("scheduler-extender", Kind::Binary),
    ("host-protocol", Kind::Vocabulary),
    ("host-scaling", Kind::Brain),
    ("host-agent", Kind::Binary),
    ("host-runner", Kind::Binary),
    ("images-allocate-loop", Kind::Binary),
    ("tests-simulation", Kind::Test),
    ("tests-cluster", Kind::Test),
    ("tests-tidy", Kind::Test),
];

/// The kind of a crate of this workspace, `None` for one from outside.
#[must_use]
pub fn kind(package: &str) -> Option<Kind> {
    CRATES.iter().find(|(name, _)| *name == package).map(|(_, kind)| *kind)
}

/// The top of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// One package of the workspace: its name, folder and manifest.
#[derive(Debug)]
pub struct Package {
    /// Name as in the manifest.
    pub name: String,
    /// Folder of the manifest.
    pub folder: PathBuf,
    /// Direct, non-development dependencies by name.
    pub dependencies: Vec<String>,
}

/// All packages of the workspace, as cargo sees them.
///
/// # Errors
/// When cargo cannot be run or answers something unexpected.
pub fn packages() -> Result<Vec<Package>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .context("run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("parse cargo metadata")?;
    let list = metadata["packages"].as_array().context("cargo metadata without packages")?;
    list.iter().map(package).collect()
}

fn package(value: &Value) -> Result<Package> {
    let name = value["name"].as_str().context("package without a name")?.to_owned();
    let manifest = value["manifest_path"].as_str().context("package without a manifest")?;
    let folder = Path::new(manifest).parent().context("manifest without a folder")?.to_owned();
    let dependencies = value["dependencies"]
        .as_array()
        .context("package without dependencies")?
        .iter()
        .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
        .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
        .collect();
    Ok(Package { name, folder, dependencies })
}

/// Names of all packages that `package` is built from, itself included.
///
/// # Errors
/// When cargo cannot be run or does not know the package.
pub fn tree(package: &str) -> Result<BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .args(["--package", package])
        .current_dir(root())
        .output()
        .context("run cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let listing = String::from_utf8(output.stdout).context("package names as UTF-8")?;
    let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
    Ok(listing.lines().filter_map(first).collect())
}

/// Every file that git tracks or would track, relative to the top.
///
/// # Errors
/// When git cannot be run.
pub fn files() -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .context("run git ls-files")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let listing = String::from_utf8(output.stdout).context("file names as UTF-8")?;
    Ok(listing.lines().map(PathBuf::from).filter(|path| root().join(path).is_file()).collect())
}

/// Every Rust file with its text, paths relative to the top.
///
/// # Errors
/// When a file cannot be read.
pub fn rust_files() -> Result<Vec<(PathBuf, String)>> {
    files()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let text = fs::read_to_string(root().join(&path))
                .with_context(|| format!("read {}", path.display()))?;
            Ok((path, text))
        })
        .collect()
}

/// Whether a file is written by a generator and so outside the budgets; such a file says so in its first lines.
#[must_use]
pub fn is_generated(text: &str) -> bool {
    text.lines().take(5).any(|line| line.contains("@generated"))
}

/// The lines of a Rust file that ship: those before its tests.
#[must_use]
pub fn production(text: &str) -> String {
    let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..tests].to_owned()
}
