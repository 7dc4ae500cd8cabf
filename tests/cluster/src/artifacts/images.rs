//! The system's container images, from the Dockerfiles in images/, as docker archives: no engine, no registry.
//!
//! buildah builds them with its plainest storage, in a store that lives as long as one build: what is kept is the archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::rust::Binaries;
use super::{kernel, rootfs, rust};
use crate::cache::{Cache, Key, hash_file, repo_root};
use crate::command::Run;
use crate::progress::{Progress, Step};
use crate::tools;

/// Raised when the steps below change what comes out.
const RECIPE: &str = "1";
const DEADLINE: Duration = Duration::from_secs(900);
/// What the builds below run, as Debian packages.
const PACKAGES: &[&str] = &["buildah", "e2fsprogs", "mmdebstrap", "qemu-utils", "util-linux"];
const BASES: &[&str] = &["service", "runner", "client"];

/// An image: its name, its folder in images/, its base and the files that its Dockerfile copies.
struct Recipe {
    name: &'static str,
    folder: &'static str,
    base: Option<&'static str>,
    files: &'static [&'static str],
}

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "neonvm-controller",
        folder: "controller",
        base: Some("service"),
        files: &["vm-controller"],
    },
    Recipe {
        name: "autoscale-scheduler",
        folder: "scheduler",
        base: Some("service"),
        files: &["autoscale-scheduler"],
    },
    Recipe {
        name: "autoscaler-agent",
        folder: "agent",
        base: Some("service"),
        files: &["autoscaler-agent"],
    },
    Recipe {
        name: "neonvm-runner",
        folder: "runner",
        base: Some("runner"),
        files: &["vm-runner", "vhost-device-vsock", "vmlinux"],
    },
    Recipe { name: "vm-postgres", folder: "vm-postgres", base: None, files: &["disk.qcow2"] },
    Recipe { name: "client", folder: "client", base: Some("client"), files: &[] },
];

/// The number of steps that `all` shows.
pub const STEPS: usize = 1 + kernel::STEPS + rust::STEPS + 2 + BASES.len() * 2 + RECIPES.len();

/// What the images are made of.
struct Parts {
    kernel: PathBuf,
    disk: PathBuf,
    binaries: Binaries,
    /// Archives of the bases, by name.
    bases: Vec<(&'static str, PathBuf)>,
}

impl Parts {
    fn file(&self, name: &str) -> Result<&Path> {
        match name {
            "vmlinux" => Ok(&self.kernel),
            "disk.qcow2" => Ok(&self.disk),
            program => self.binaries.path(program),
        }
    }

    fn base(&self, name: &str) -> Result<&Path> {
        let found = self.bases.iter().find(|(known, _)| *known == name);
        found.map(|(_, path)| path.as_path()).with_context(|| format!("no base is called {name}"))
    }
}

/// The system, built.
#[derive(Debug)]
pub struct System {
    /// Name with tag, and archive, of each image.
    pub images: Vec<(String, PathBuf)>,
    /// The plugin for kubectl.
    pub kubectl_vm: PathBuf,
}

/// Builds the system, or finds it in the cache.
pub fn all(progress: &Progress) -> Result<System> {
    tools::need_root()?;
    let cache = &Cache::open()?;
    progress.expect_more(STEPS);
    tools::ensure_packages(progress, "images", PACKAGES)?;
    let kernel = kernel::ensure(cache, progress)?;
    let bases = BASES
        .iter()
        .map(|name| Ok((*name, base_archive(cache, progress, name)?)))
        .collect::<Result<_>>()?;
    let binaries = rust::ensure(cache, progress)?;
    let disk = rootfs::postgres_disk(cache, progress, &binaries)?;
    let parts = Parts { kernel, disk, binaries, bases };
    let images = RECIPES.iter().map(|recipe| image(cache, progress, recipe, &parts));
    let images = images.collect::<Result<_>>()?;
    Ok(System { images, kubectl_vm: parts.binaries.path("kubectl-vm")?.to_path_buf() })
}

/// A base as an archive that a Dockerfile can start from.
fn base_archive(cache: &Cache, progress: &Progress, name: &str) -> Result<PathBuf> {
    let tree = rootfs::tree(cache, progress, name)?;
    let dockerfile = repo_root()?.join("images/bases/Dockerfile");
    let key = Key::new()
        .text(RECIPE)
        .text(&tree.to_string_lossy())
        .text(&hash_file(&dockerfile)?)
        .finish();
    let context = tree.parent().context("a tree has a folder")?.to_path_buf();
    let place = cache.ensure(progress, &format!("base-image-{name}"), &key, |out, step| {
        let image = format!("localhost/base-{name}:local");
        buildah(
            &Build { dockerfile: &dockerfile, context: &context, base: None, image: &image },
            out,
            step,
        )
    })?;
    Ok(place.join("image.tar"))
}

fn image(
    cache: &Cache,
    progress: &Progress,
    recipe: &Recipe,
    parts: &Parts,
) -> Result<(String, PathBuf)> {
    let dockerfile = repo_root()?.join("images").join(recipe.folder).join("Dockerfile");
    let base = recipe.base.map(|base| parts.base(base)).transpose()?;
    let mut key = Key::new().text(RECIPE).text(&hash_file(&dockerfile)?);
    if let Some(base) = base {
        key = key.text(&base.to_string_lossy());
    }
    for name in recipe.files {
        key = key.text(name).text(&hash_file(parts.file(name)?)?);
    }
    let image = format!("localhost/{}:local", recipe.name);
    let step_name = format!("image-{}", recipe.name);
    let place = cache.ensure(progress, &step_name, &key.finish(), |out, step| {
        let context = out.join("context");
        fs::create_dir(&context).with_context(|| format!("make {}", context.display()))?;
        for name in recipe.files {
            let from = parts.file(name)?;
            fs::copy(from, context.join(name))
                .with_context(|| format!("copy {}", from.display()))?;
        }
        buildah(
            &Build { dockerfile: &dockerfile, context: &context, base, image: &image },
            out,
            step,
        )?;
        fs::remove_dir_all(&context).with_context(|| format!("remove {}", context.display()))
    })?;
    Ok((image, place.join("image.tar")))
}

/// One run of buildah.
struct Build<'a> {
    dockerfile: &'a Path,
    context: &'a Path,
    base: Option<&'a Path>,
    image: &'a str,
}

/// Builds an image and writes it as `image.tar` of the folder.
fn buildah(build: &Build<'_>, out: &Path, step: &Step) -> Result<()> {
    let store = out.join("store");
    let run = || {
        Run::new("buildah")
            .arg("--root")
            .arg(store.join("root"))
            .arg("--runroot")
            .arg(store.join("run"))
            .env("STORAGE_DRIVER", "vfs")
            .env("BUILDAH_ISOLATION", "chroot")
            .log(step.log())
            .deadline(DEADLINE)
    };
    let mut bud = run().args(["bud", "--timestamp", "0", "--tag", build.image, "--file"]);
    bud = bud.arg(build.dockerfile);
    if let Some(base) = build.base {
        bud = bud.arg("--build-arg").arg(format!("BASE=docker-archive:{}", base.display()));
    }
    bud.arg(build.context).status()?;
    let archive = format!("docker-archive:{}:{}", out.join("image.tar").display(), build.image);
    run().args(["push", build.image]).arg(archive).status()?;
    fs::remove_dir_all(&store).with_context(|| format!("remove {}", store.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dockerfile_copies_what_its_recipe_gives() {
        let images = repo_root().unwrap().join("images");
        for recipe in RECIPES {
            let text = fs::read_to_string(images.join(recipe.folder).join("Dockerfile")).unwrap();
            let copied: Vec<&str> = text
                .lines()
                .filter_map(|line| line.strip_prefix("COPY "))
                .flat_map(|line| {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    words[..words.len() - 1].to_vec()
                })
                .collect();
            assert_eq!(copied, recipe.files, "{}", recipe.name);
            assert_eq!(text.contains("FROM ${BASE}"), recipe.base.is_some(), "{}", recipe.name);
            assert!(recipe.base.is_none_or(|base| BASES.contains(&base)), "{}", recipe.name);
        }
    }

    #[test]
    fn names_are_those_of_the_manifests() {
        let names: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
        assert_eq!(
            names,
            [
                "neonvm-controller",
                "autoscale-scheduler",
                "autoscaler-agent",
                "neonvm-runner",
                "vm-postgres",
                "client"
            ]
        );
    }
}
