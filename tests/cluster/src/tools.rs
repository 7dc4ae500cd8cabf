//! The programs that a step needs: installed where that is possible, otherwise named with the command that installs them.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::command::Run;
use crate::progress::{Progress, Step};

/// What the cluster itself runs on.
pub const CLUSTER: &[&str] = &[
    "runc",
    "nftables",
    "iproute2",
    "e2fsprogs",
    "util-linux",
    "mount",
    "conntrack",
    "kmod",
    "procps",
];

const INSTALL_TIME: Duration = Duration::from_secs(1800);
const GO: (u32, u32) = (1, 26);

/// Fails unless this process is root, and says how to become it.
pub fn need_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the cluster needs namespaces, mounts and cgroups of its own, hence root.\n\
         Run it again as: sudo -E env \"PATH=$PATH\" cargo cluster up"
    );
    Ok(())
}

/// Makes sure that Debian packages are installed. Is one step of the progress.
pub fn ensure_packages(progress: &Progress, what: &str, packages: &[&str]) -> Result<()> {
    progress.step(&format!("packages for {what}"), |step| {
        let missing = missing(packages)?;
        if missing.is_empty() {
            step.reused();
            return Ok(());
        }
        install(step, &missing)
    })
}

/// The packages among these that are not installed.
pub fn missing(packages: &[&str]) -> Result<Vec<String>> {
    ensure!(
        find("dpkg-query").is_some(),
        "dpkg-query is not here: this tool works on Debian 12, or in a container made from it"
    );
    let mut query = Run::new("dpkg-query").args(["-W", "-f", "${Package} ${db:Status-Status}\\n"]);
    query = query.args(packages);
    // dpkg-query fails when one of the packages is unknown, and lists the others all the same.
    let listed = query.output_whatever_the_end()?;
    Ok(not_installed(packages, &listed))
}

fn not_installed(packages: &[&str], listed: &str) -> Vec<String> {
    let installed: Vec<&str> =
        listed.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    packages.iter().filter(|name| !installed.contains(name)).map(|&name| name.into()).collect()
}

fn install(step: &Step, missing: &[String]) -> Result<()> {
    let line = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() {
        bail!("missing packages: {}\nInstall them with: sudo {line}", missing.join(" "));
    }
    let apt = || {
        Run::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .log(step.log())
            .deadline(INSTALL_TIME)
    };
    let install =
        || apt().args(["install", "-y", "--no-install-recommends"]).args(missing).status();
    // The lists may be old or absent: fetched once, before anything is asked from them.
    apt().arg("update").status().context("fetch the package lists")?;
    install().with_context(|| format!("install the missing packages; by hand: {line}"))
}

/// Fails unless Go is here and new enough.
pub fn need_go() -> Result<()> {
    let hint = format!(
        "Go {}.{} or newer is needed to build Kubernetes; unpack it from https://go.dev/dl to /usr/local and \
         add /usr/local/go/bin to PATH",
        GO.0, GO.1
    );
    ensure!(find("go").is_some(), "go is not in PATH. {hint}");
    let version = Run::new("go").args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local").output()?;
    ensure!(
        go_version(&version).is_some_and(|version| version >= GO),
        "this Go is {}. {hint}",
        version.trim()
    );
    Ok(())
}

fn go_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().strip_prefix("go")?.split(['.', ' ', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Fails unless cargo is here.
pub fn need_cargo() -> Result<()> {
    ensure!(
        find("cargo").is_some(),
        "cargo is not in PATH; install Rust from https://rustup.rs and add ~/.cargo/bin to PATH"
    );
    Ok(())
}

/// Cargo, as from a shell. `cargo run` tells its program about its package; some build scripts ask for that, so that
/// they and all that depends on them would be built anew for each program and each clone.
#[must_use]
pub fn cargo() -> Run {
    Run::new("cargo").without(std::env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
            .iter()
            .any(|start| name.starts_with(start))
    }))
}

/// Makes sure that the toolchain compiles for a target. Rustup does this by itself only where automatic installation is on.
pub fn ensure_target(step: &Step, repo: &Path, target: &str) -> Result<()> {
    need_cargo()?;
    let folder = Run::new("rustc").args(["--print", "target-libdir", "--target", target]).dir(repo);
    if Path::new(folder.output().context("ask where the target's libraries are")?.trim()).is_dir() {
        return Ok(());
    }
    let line = format!("rustup target add {target}");
    ensure!(
        find("rustup").is_some(),
        "the toolchain has no target {target}, and there is no rustup to add it: with rustup, {line}"
    );
    Run::new("rustup")
        .args(["target", "add", target])
        .dir(repo)
        .log(step.log())
        .deadline(INSTALL_TIME)
        .status()
        .with_context(|| format!("install the target; by hand: {line}"))
}

/// Where a program lies in PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // The system's folders are not in every user's PATH.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(OsStr::new(program))).find(|file| executable(file))
}

fn executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_are_absent_or_removed_are_missing() {
        let listed = "runc installed\nkmod config-files\n";
        assert_eq!(not_installed(&["runc", "kmod", "nftables"], listed), ["kmod", "nftables"]);
    }

    #[test]
    fn go_versions_are_compared_as_numbers() {
        assert_eq!(go_version("go1.26.8\n"), Some((1, 26)));
        assert_eq!(go_version("go1.9"), Some((1, 9)));
        assert_eq!(go_version("go1.27-devel_abc"), Some((1, 27)));
        assert_eq!(go_version("gibberish"), None);
        assert!((1, 9) < GO && (1, 27) > GO);
    }

    #[test]
    fn cargo_hears_nothing_of_the_package_that_calls_it() {
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some(), "cargo has set it for this test");
        let shown = format!("{:?}", cargo());
        assert!(
            shown.contains("CARGO_PKG_NAME") && shown.contains("CARGO_MANIFEST_DIR"),
            "{shown}"
        );
        assert!(!shown.contains("CARGO_HOME"), "{shown}");
    }

    #[test]
    fn programs_are_found_in_path() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-here"), None);
    }
}
