//! Trees made of Debian packages: bases of the container images, and the Postgres VM's disk.
//!
//! A base is described by images/bases/NAME.toml. What is slow (packages) is kept apart from what changes often (our binaries):
//! a changed binary costs a copy of the finished tree and a new file system, some ten seconds.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::debian::{self, RELEASE};
use super::rust::Binaries;
use super::trim;
use crate::cache::{Cache, Key, hash_file, repo_root};
use crate::command::Run;
use crate::progress::{Progress, Step};

/// Raised when the steps below change what comes out.
const RECIPE: &str = "1";
const DEADLINE: Duration = Duration::from_secs(1800);
/// What nobody reads in a container or a VM.
const UNREAD: &[&str] = &["doc", "info", "lintian", "locale", "man"];

/// The VM's disk: as large as this, though only what is used takes room.
const DISK_BYTES: u64 = 3 << 30;
const DISK_LABEL: &str = "vmroot";
const SECTOR_BYTES: u64 = 512;

/// images/bases/NAME.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Base {
    /// mmdebstrap's variant: `extract` unpacks only, `essential` makes a system whose packages are configured.
    variant: String,
    /// Packages, with `/SUITE` where a newer suite is meant.
    packages: Vec<String>,
    /// Files that must be there before the packages are configured.
    #[serde(default)]
    before: BTreeMap<String, String>,
    /// If given: only these files stay, with the libraries they load and a name for each applet of busybox.
    #[serde(default)]
    keep: Vec<String>,
    /// Files and folders that go.
    #[serde(default)]
    remove: Vec<String>,
    /// Where busybox lies; gets a link per applet.
    busybox: Option<String>,
    /// A script of the repository that gets the tree as its argument.
    finish: Option<PathBuf>,
}

/// The base of this name as a tree, built or found in the cache.
pub fn tree(cache: &Cache, progress: &Progress, name: &str) -> Result<PathBuf> {
    let repo = repo_root()?;
    let (base, key) = read(&repo, name)?;
    let place = cache.ensure(progress, &format!("base-{name}"), &key, |out, step| {
        build(&repo, &base, out, step)
    })?;
    Ok(place.join("tree"))
}

/// A base's description, and the content key of all that it is made from.
fn read(repo: &Path, name: &str) -> Result<(Base, String)> {
    let path = PathBuf::from(format!("images/bases/{name}.toml"));
    let text = fs::read_to_string(repo.join(&path))
        .with_context(|| format!("read the base {}", path.display()))?;
    let base: Base =
        toml::from_str(&text).with_context(|| format!("understand the base {}", path.display()))?;
    let script = base.finish.as_ref().and_then(|script| script.parent());
    let key = Key::new().text(RECIPE).files(repo, &[path.as_path()])?;
    let key = match script {
        Some(folder) => key.files(repo, &[folder])?,
        None => key,
    };
    Ok((base, key.finish()))
}

fn build(repo: &Path, base: &Base, out: &Path, step: &Step) -> Result<()> {
    let tree = out.join("tree");
    bootstrap(base, out, &tree, step)?;
    for path in &base.remove {
        trim::remove(&tree, path)?;
    }
    if !base.keep.is_empty() {
        let whole = out.join("whole");
        fs::rename(&tree, &whole).context("set the whole tree aside")?;
        trim::keep_only(&whole, &tree, &base.keep)?;
        fs::remove_dir_all(&whole).with_context(|| format!("remove {}", whole.display()))?;
    }
    if let Some(busybox) = &base.busybox {
        trim::link_applets(&tree, busybox)?;
    }
    if let Some(script) = &base.finish {
        // Mounts that the script makes are gone with its name space.
        Run::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-eu"])
            .arg(repo.join(script))
            .arg(&tree)
            .log(step.log())
            .deadline(DEADLINE)
            .status()?;
    }
    Ok(())
}

fn bootstrap(base: &Base, out: &Path, tree: &Path, step: &Step) -> Result<()> {
    let before = out.join("before");
    for (path, content) in &base.before {
        let file = before.join(path.trim_start_matches('/'));
        let folder = file.parent().context("a file before the packages has a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        fs::write(&file, content).with_context(|| format!("write {}", file.display()))?;
    }
    step.say("fetching and unpacking packages");
    let excludes =
        UNREAD.iter().map(|folder| format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
    let mut run = Run::new("nice")
        .args(["-n", "5", "mmdebstrap", "--mode=root"])
        .arg(format!("--variant={}", base.variant))
        .arg(format!("--include={}", base.packages.join(",")))
        .args(excludes);
    if !base.before.is_empty() {
        run = run.arg(format!("--essential-hook=cp -R '{}/.' \"$1/\"", before.display()));
    }
    run.arg(RELEASE)
        .arg(tree)
        .arg("-")
        .input(debian::sources()?)
        .log(step.log())
        .deadline(DEADLINE)
        .status()
}

/// The Postgres VM's disk with these binaries in it.
pub fn postgres_disk(cache: &Cache, progress: &Progress, binaries: &Binaries) -> Result<PathBuf> {
    let repo = repo_root()?;
    let base = tree(cache, progress, "vm-postgres")?;
    let monitor = binaries.path("vm-monitor")?;
    let load = binaries.path("allocate-loop")?;
    let files = Path::new("images/vm-postgres/rootfs");
    let key = Key::new()
        .text(RECIPE)
        .text(&base.to_string_lossy())
        .files(&repo, &[files])?
        .text(&hash_file(monitor)?)
        .text(&hash_file(load)?)
        .finish();
    let place = cache.ensure(progress, "vm-postgres-disk", &key, |out, step| {
        let tree = out.join("tree");
        copy_tree(&base, &tree, true, step)?;
        copy_tree(&repo.join(files), &tree, false, step)?;
        install(monitor, &tree.join("neonvm/bin/vm-monitor"))?;
        std::os::unix::fs::symlink("vm-monitor", tree.join("neonvm/bin/neonvmd"))
            .context("name the keeper")?;
        install(load, &tree.join("usr/local/bin/allocate-loop"))?;
        // How large the file system is: init compares it with the disk and grows it when the disk is larger.
        fs::write(tree.join("neonvm/root-sectors"), format!("{}\n", DISK_BYTES / SECTOR_BYTES))
            .context("write the size of the file system")?;
        make_disk(&tree, out, step)?;
        fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))
    })?;
    Ok(place.join("disk.qcow2"))
}

/// Copies what is inside one folder into another. The repository's files belong to whoever checked them out: not so in a tree.
fn copy_tree(from: &Path, to: &Path, keep_owners: bool, step: &Step) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let preserve = if keep_owners { "all" } else { "mode,timestamps" };
    Run::new("cp")
        .args(["--recursive", "--no-dereference", "--reflink=auto"])
        .arg(format!("--preserve={preserve}"))
        .arg(from.join("."))
        .arg(to)
        .log(step.log())
        .deadline(DEADLINE)
        .status()
}

fn install(binary: &Path, to: &Path) -> Result<()> {
    fs::copy(binary, to)
        .with_context(|| format!("copy {} to {}", binary.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", to.display()))
}

/// One ext4 file system, compressed. A raw disk in an image would be stored with all its holes.
fn make_disk(tree: &Path, out: &Path, step: &Step) -> Result<()> {
    let raw = out.join("disk.raw");
    step.say("making the file system");
    Run::new("mke2fs")
        // No reserved blocks: nobody but us writes. A small journal: the file system is small.
        .args(["-q", "-t", "ext4", "-L", DISK_LABEL, "-m", "0", "-J", "size=32", "-d"])
        .arg(tree)
        .arg(&raw)
        .arg(format!("{}k", DISK_BYTES / 1024))
        .log(step.log())
        .deadline(DEADLINE)
        .status()?;
    step.say("compressing the disk");
    let disk = out.join("disk.qcow2");
    Run::new("qemu-img")
        .args(["convert", "-c", "-O", "qcow2"])
        .arg(&raw)
        .arg(&disk)
        .log(step.log())
        .deadline(DEADLINE)
        .status()?;
    fs::remove_file(&raw).with_context(|| format!("remove {}", raw.display()))?;
    ensure!(disk.is_file(), "qemu-img made no {}", disk.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repositorys_bases_are_well_formed() {
        let repo = repo_root().unwrap();
        for name in ["client", "runner", "service", "vm-postgres"] {
            let (base, key) = read(&repo, name).unwrap();
            assert_eq!(key.len(), 16);
            assert!(["extract", "essential"].contains(&base.variant.as_str()), "{name}");
            let paths = base.keep.iter().chain(&base.remove).chain(base.before.keys());
            assert!(paths.into_iter().all(|path| path.starts_with('/')), "{name}");
        }
    }

    #[test]
    fn what_the_vm_runs_is_executable() {
        let bin = repo_root().unwrap().join("images/vm-postgres/rootfs");
        let scripts = ["vminit", "run-neonvmd", "run-vm-monitor", "vmstart", "vmshutdown"];
        let scripts = scripts.map(|name| format!("neonvm/bin/{name}"));
        for script in scripts.iter().map(String::as_str).chain(["usr/local/bin/neon-test"]) {
            let mode = fs::metadata(bin.join(script)).unwrap().permissions().mode();
            assert_eq!(mode & 0o111, 0o111, "{script}");
        }
    }

    #[test]
    fn init_runs_only_scripts_that_exist() {
        let root = repo_root().unwrap().join("images/vm-postgres/rootfs");
        let table = fs::read_to_string(root.join("etc/inittab")).unwrap();
        let programs: Vec<&str> = table
            .lines()
            .filter(|line| line.starts_with("::"))
            .filter_map(|line| line.rsplit(':').next())
            .collect();
        assert_eq!(programs.len(), 5);
        for program in programs {
            assert!(root.join(program.trim_start_matches('/')).is_file(), "{program}");
        }
    }
}
