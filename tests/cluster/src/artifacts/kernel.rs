//! The guest's kernel: the distribution's source, our patches and fragments, one image. See kernel/pin.toml.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::cache::{Cache, Key, repo_root};
use crate::command::Run;
use crate::progress::{Progress, Step};
use crate::tools;

/// The number of steps that the build shows.
pub const STEPS: usize = 2;
/// Raised when the steps below change what comes out.
const RECIPE: &str = "2";
const DEADLINE: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_secs(300);

/// kernel/pin.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    source: Source,
    build: Build,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    package: String,
    archive: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    packages: Vec<String>,
    jobs: u8,
}

/// The kernel image, built or found in the cache.
pub fn ensure(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    let folder = repo_root()?.join("kernel");
    let pin = read_pin(&folder)?;
    let fragments = Fragments::read(&folder.join("config"))?;
    let mut packages: Vec<&str> = pin.build.packages.iter().map(String::as_str).collect();
    packages.push(&pin.source.package);
    tools::ensure_packages(progress, "the kernel", &packages)?;
    let key = Key::new()
        .text(RECIPE)
        .text(&package_version(&pin.source.package)?)
        .text(&fragments.stripped())
        .files(&folder, &["patches"])?
        .finish();
    let place = cache.ensure(progress, "kernel", &key, |out, step| {
        build(&folder, &pin, &fragments, out, step)
    })?;
    Ok(place.join("vmlinux"))
}

fn read_pin(folder: &Path) -> Result<Pin> {
    let path = folder.join("pin.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("understand {}", path.display()))
}

fn package_version(package: &str) -> Result<String> {
    Run::new("dpkg-query").args(["-W", "-f", "${Version}", package]).output()
}

fn build(folder: &Path, pin: &Pin, fragments: &Fragments, out: &Path, step: &Step) -> Result<()> {
    let source = out.join("source");
    unpack(&pin.source.archive, &source, step)?;
    patch(&folder.join("patches"), &source, step)?;
    let merged = out.join("fragments");
    fs::write(&merged, fragments.stripped()).context("write the merged fragments")?;
    let run = |program: &str| Run::new(program).dir(&source).log(step.log()).deadline(SHORT);
    run("make").arg("tinyconfig").status()?;
    run("scripts/kconfig/merge_config.sh").args(["-m", ".config"]).arg(&merged).status()?;
    run("make").arg("olddefconfig").status()?;
    let config = fs::read_to_string(source.join(".config")).context("read the final .config")?;
    fragments.check(&config)?;
    step.say("compiling the kernel: some seven minutes on two cores");
    run("nice")
        .args(["-n", "5", "make", "vmlinux", &format!("-j{}", pin.build.jobs)])
        .deadline(DEADLINE)
        .status()?;
    // Entered through its PVH note: neither a boot loader nor a decompressor runs, which under emulation saves half a second.
    run("objcopy").arg("--strip-all").arg("vmlinux").arg(out.join("vmlinux")).status()?;
    fs::write(out.join("config"), config).context("keep the final configuration")?;
    fs::remove_dir_all(&source).with_context(|| format!("remove {}", source.display()))
}

fn unpack(archive: &Path, source: &Path, step: &Step) -> Result<()> {
    fs::create_dir(source).with_context(|| format!("make {}", source.display()))?;
    step.say("unpacking the source");
    Run::new("tar")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(source)
        .arg("--strip-components=1")
        .log(step.log())
        .deadline(SHORT)
        .status()
}

fn patch(patches: &Path, source: &Path, step: &Step) -> Result<()> {
    for path in files_with(patches, "patch")? {
        let input = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Run::new("patch")
            .args(["-p1", "--forward", "--batch"])
            .input(input)
            .dir(source)
            .log(step.log())
            .status()
            .with_context(|| format!("apply {}", path.display()))?;
    }
    Ok(())
}

/// The files of a folder with this extension, by name.
fn files_with(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("list {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    ensure!(!paths.is_empty(), "there is no .{extension} file in {}", folder.display());
    Ok(paths)
}

/// The options of all fragments, by name.
#[derive(Debug, Default)]
struct Fragments(BTreeMap<String, Setting>);

#[derive(Debug)]
struct Setting {
    value: String,
    /// File and line, for messages.
    place: String,
}

impl Fragments {
    fn read(folder: &Path) -> Result<Self> {
        let mut fragments = Self::default();
        for path in files_with(folder, "config")? {
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            fragments.add(&name, &text)?;
        }
        Ok(fragments)
    }

    /// Adds one file's lines: `CONFIG_X=y  # reason`. Every option has a reason, and is set once.
    fn add(&mut self, file: &str, text: &str) -> Result<()> {
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let place = format!("{file}:{}", number + 1);
            let (setting, reason) =
                line.split_once(" #").with_context(|| format!("{place}: {line} has no reason"))?;
            let (name, value) = setting
                .trim()
                .split_once('=')
                .with_context(|| format!("{place}: {line} is not CONFIG_X=value"))?;
            ensure!(name.starts_with("CONFIG_"), "{place}: {name} is no option");
            ensure!(!reason.trim().is_empty(), "{place}: {name} has no reason");
            let setting = Setting { value: value.into(), place: place.clone() };
            if let Some(other) = self.0.insert(name.into(), setting) {
                bail!("{place}: {name} was set before, at {}", other.place);
            }
        }
        Ok(())
    }

    /// What the kernel's own tool reads: options without reasons.
    fn stripped(&self) -> String {
        self.0.iter().map(|(name, setting)| format!("{name}={}\n", setting.value)).collect()
    }

    /// Fails unless every option has its value in the final configuration: unknown ones vanish silently.
    fn check(&self, config: &str) -> Result<()> {
        let found: BTreeMap<&str, &str> =
            config.lines().filter_map(|line| line.trim().split_once('=')).collect();
        let lost: Vec<String> = self
            .0
            .iter()
            .filter_map(|(name, Setting { value, place })| {
                let got = found.get(name.as_str()).copied().unwrap_or("n");
                (got != value).then(|| format!("{place}: wanted {name}={value}, got {got}"))
            })
            .collect();
        ensure!(
            lost.is_empty(),
            "{} options did not survive `make olddefconfig`:\n  {}",
            lost.len(),
            lost.join("\n  ")
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragments(text: &str) -> Result<Fragments> {
        let mut fragments = Fragments::default();
        fragments.add("x.config", text).map(|()| fragments)
    }

    #[test]
    fn reasons_are_stripped() {
        let found =
            fragments("# about\n\nCONFIG_B=y  # because\nCONFIG_A=64 # as # above\n").unwrap();
        assert_eq!(found.stripped(), "CONFIG_A=64\nCONFIG_B=y\n");
    }

    #[test]
    fn a_line_without_a_reason_a_form_or_a_twin_is_refused() {
        for (text, problem) in [
            ("CONFIG_A=y", "x.config:1: CONFIG_A=y has no reason"),
            ("CONFIG_A=y  # ", "has no reason"),
            ("\nCONFIG_A  # why", "x.config:2: CONFIG_A  # why is not"),
            ("A=y  # why", "A is no option"),
            (
                "CONFIG_A=y  # a\nCONFIG_A=n  # b",
                "x.config:2: CONFIG_A was set before, at x.config:1",
            ),
        ] {
            let message = fragments(text).unwrap_err().to_string();
            assert!(message.contains(problem), "{message}");
        }
    }

    #[test]
    fn lost_options_are_named() {
        let found =
            fragments("CONFIG_A=y  # a\nCONFIG_B=n  # b\nCONFIG_C=64  # c\nCONFIG_D=n  # d")
                .unwrap();
        assert!(found.check("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=64\n").is_ok());
        let message = found.check("CONFIG_C=32\nCONFIG_B=y\n").unwrap_err().to_string();
        for part in
            ["3 options", "wanted CONFIG_A=y, got n", "CONFIG_B=n, got y", "CONFIG_C=64, got 32"]
        {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn the_repositorys_fragments_and_pin_are_well_formed() {
        let folder = repo_root().unwrap().join("kernel");
        assert!(Fragments::read(&folder.join("config")).unwrap().0.len() > 150);
        assert!(read_pin(&folder).unwrap().source.package.starts_with("linux-source-"));
    }
}
