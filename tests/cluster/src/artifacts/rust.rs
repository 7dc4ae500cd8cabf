//! Our own binaries, and the vsock back end from the crate registry. Cargo decides what is fresh; each is a step.

use std::path::{Path, PathBuf};
use std::time::Duration;

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
        Run::new("cargo")
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

/// The back end of virtio-vsock, one process beside each QEMU; from the crate registry, by version.
fn vsock_backend(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    let key = Key::new().text(VSOCK_BACKEND).text(VSOCK_BACKEND_VERSION).finish();
    let place = cache.ensure(progress, VSOCK_BACKEND, &key, |out, step| {
        Run::new("cargo")
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
        std::fs::remove_dir_all(out.join("target")).context("remove the intermediate files")
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
    fn every_program_is_a_binary_of_its_package() {
        let repo = repo_root().unwrap();
        let workspace = std::fs::read_to_string(repo.join("Cargo.toml")).unwrap();
        for (package, binary, _) in PROGRAMS {
            let folder = package.replacen('-', "/", 1);
            assert!(workspace.contains(&format!("\"{folder}\"")), "{folder} is no member");
            let manifest = std::fs::read_to_string(repo.join(&folder).join("Cargo.toml")).unwrap();
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
