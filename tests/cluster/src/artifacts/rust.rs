//! Our own binaries, and the vsock back end from the crate registry. Cargo decides what is fresh; each is a step.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, Key, repo_root};
use crate::command::Run;
use crate::progress::Progress;
use crate::tools;

/// The number of steps that the builds show: the programs of each place, and the vsock back end.
pub const STEPS: usize = PLACES.len() + 1;

/// Static binaries for the inside of a VM.
const GUEST_TARGET: &str = "x86_64-unknown-linux-musl";
const GUEST_PROFILE: &str = "guest";
const VSOCK_BACKEND: &str = "vhost-device-vsock";
const VSOCK_BACKEND_VERSION: &str = "0.3.0";
const DEADLINE: Duration = Duration::from_secs(3600);

/// Where a program runs decides how it is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Host,
    Guest,
}

const PLACES: &[Place] = &[Place::Guest, Place::Host];

/// Package, binary, place.
const PROGRAMS: &[(&str, &str, Place)] = &[
    ("guest-monitor", "vm-monitor", Place::Guest),
    ("images-allocate-loop", "allocate-loop", Place::Guest),
    ("host-runner", "vm-runner", Place::Host),
    ("controller-operator", "vm-controller", Place::Host),
    ("scheduler-extender", "autoscale-scheduler", Place::Host),
    ("host-agent", "autoscaler-agent", Place::Host),
    ("controller-kubectl", "kubectl-vm", Place::Host),
];

/// What was built, by name.
#[derive(Debug)]
pub struct Binaries(Vec<(&'static str, PathBuf)>);

impl Binaries {
    /// The file of a program.
    pub fn path(&self, name: &str) -> Result<&Path> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, path)| path.as_path())
            .with_context(|| format!("no program is called {name}"))
    }
}

/// Builds all programs.
pub fn ensure(cache: &Cache, progress: &Progress) -> Result<Binaries> {
    tools::need_cargo()?;
    let repo = repo_root()?;
    let target = target_dir(cache, &repo);
    make_fresh(&target, &repo)?;
    let mut found = vec![(VSOCK_BACKEND, vsock_backend(cache, progress)?)];
    for &place in PLACES {
        found.extend(programs(progress, &repo, &target, place)?);
    }
    Ok(Binaries(found))
}

/// Builds the programs of one place in one call, so that what they share is compiled once; returns their files.
fn programs(
    progress: &Progress,
    repo: &Path,
    target: &Path,
    place: Place,
) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut names = Vec::new();
    let mut args = vec!["build", "--locked"];
    for &(package, binary, _) in PROGRAMS.iter().filter(|program| program.2 == place) {
        args.extend(["--package", package, "--bin", binary]);
        names.push(binary);
    }
    progress.step(&format!("compile {}", names.join(", ")), |step| {
        if place == Place::Guest {
            tools::ensure_target(step, repo, GUEST_TARGET)?;
        }
        tools::cargo()
            .args(args)
            .args(profile(place))
            .env("CARGO_TARGET_DIR", target)
            .dir(repo)
            .log(step.log())
            .deadline(DEADLINE)
            .status()?;
        let folder = target.join(output(place));
        let files = names.into_iter().map(|name| (name, folder.join(name)));
        files
            .map(|(name, path)| {
                ensure!(path.is_file(), "cargo built no {}", path.display());
                Ok((name, path))
            })
            .collect()
    })
}

fn profile(place: Place) -> &'static [&'static str] {
    match place {
        Place::Host => &["--release"],
        Place::Guest => &["--profile", GUEST_PROFILE, "--target", GUEST_TARGET],
    }
}

fn output(place: Place) -> PathBuf {
    match place {
        Place::Host => "release".into(),
        Place::Guest => Path::new(GUEST_TARGET).join(GUEST_PROFILE),
    }
}

/// Cargo's target folder for what goes into images: the user's choice, else one in the cache, so that another clone
/// compiles our own crates only.
fn target_dir(cache: &Cache, repo: &Path) -> PathBuf {
    let chosen = std::env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty());
    chosen.map_or_else(|| cache.root().join("target"), |dir| repo.join(dir))
}

/// Which clone used a target folder last.
const LAST_CLONE: &str = ".last-clone";

/// Cargo tells by times of files whether what it built is fresh. What another clone has built since must not look fresh to
/// this one: its files become newer. `.ci/run` does the same for all that it compiles.
fn make_fresh(target: &Path, repo: &Path) -> Result<()> {
    let (stamp, clone) = (target.join(LAST_CLONE), repo.display().to_string());
    if fs::read_to_string(&stamp).is_ok_and(|last| last.trim_end() == clone) {
        return Ok(());
    }
    let files = Run::new("git").args(["ls-files", "-z"]).dir(repo).output()?;
    let now = SystemTime::now();
    for file in files.split('\0').filter(|file| !file.is_empty()) {
        let path = repo.join(file);
        // One that was deleted and not committed is no hindrance.
        let Ok(open) = fs::File::options().append(true).open(&path) else { continue };
        open.set_modified(now).with_context(|| format!("touch {}", path.display()))?;
    }
    fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    fs::write(&stamp, clone).with_context(|| format!("write {}", stamp.display()))
}

/// The back end of virtio-vsock, one process beside each QEMU; from the crate registry, by version.
fn vsock_backend(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    let key = Key::new().text(VSOCK_BACKEND).text(VSOCK_BACKEND_VERSION).finish();
    let place = cache.ensure(progress, VSOCK_BACKEND, &key, |out, step| {
        tools::cargo()
            .args([
                "install",
                "--locked",
                "--version",
                &format!("={VSOCK_BACKEND_VERSION}"),
                "--root",
            ])
            .arg(out)
            .arg(VSOCK_BACKEND)
            // Not into the repository's target folder: its content would be rebuilt each time.
            .env("CARGO_TARGET_DIR", out.join("target"))
            .dir(out)
            .log(step.log())
            .deadline(DEADLINE)
            .status()?;
        fs::remove_dir_all(out.join("target")).context("remove the intermediate files")
    })?;
    Ok(place.join("bin").join(VSOCK_BACKEND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_programs_come_from_their_own_folder() {
        let guest = output(Place::Guest);
        assert_eq!(guest, Path::new("x86_64-unknown-linux-musl/guest"));
        assert_eq!(profile(Place::Host), ["--release"]);
    }

    #[test]
    fn files_become_newer_than_what_another_clone_has_built() {
        let top = std::env::temp_dir().join(format!("fresh-{}", std::process::id()));
        let (target, repo) = (top.join("target"), top.join("repo"));
        fs::create_dir_all(&repo).unwrap();
        let file = repo.join("lib.rs");
        fs::write(&file, "old").unwrap();
        let git = |words: &[&str]| Run::new("git").args(words).dir(&repo).output().unwrap();
        git(&["init", "-q"]);
        git(&["add", "lib.rs"]);
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        let age = || fs::File::options().append(true).open(&file).unwrap();
        let is_old = || fs::metadata(&file).unwrap().modified().unwrap() == hour_ago;
        age().set_modified(hour_ago).unwrap();
        make_fresh(&target, &repo).unwrap();
        assert!(!is_old(), "nobody knows who has used the folder");
        age().set_modified(hour_ago).unwrap();
        make_fresh(&target, &repo).unwrap();
        assert!(is_old(), "this clone has");
        fs::write(target.join(LAST_CLONE), "/another").unwrap();
        make_fresh(&target, &repo).unwrap();
        assert!(!is_old());
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn every_program_is_a_binary_of_its_package() {
        let repo = repo_root().unwrap();
        let workspace = fs::read_to_string(repo.join("Cargo.toml")).unwrap();
        for (package, binary, _) in PROGRAMS {
            let folder = package.replacen('-', "/", 1);
            assert!(workspace.contains(&format!("\"{folder}\"")), "{folder} is no member");
            let manifest = fs::read_to_string(repo.join(&folder).join("Cargo.toml")).unwrap();
            assert!(
                manifest.contains(&format!("name = \"{binary}\"")),
                "{package} has no {binary}"
            );
        }
    }

    #[test]
    fn an_unknown_program_is_named() {
        let none = Binaries(Vec::new());
        assert!(none.path("x").unwrap_err().to_string().contains("no program is called x"));
    }
}
