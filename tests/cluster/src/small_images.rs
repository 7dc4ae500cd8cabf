//! The images that the cluster itself needs: pause, busybox (a test client), a runner without a VM, CoreDNS and
//! kube-scheduler.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::archive::Image;
use crate::cache::{Cache, Key};
use crate::command::Run;
use crate::progress::{Progress, Step};

/// Raised when the recipe below changes.
const RECIPE: &str = "3";

/// The images as archives, name and path, in the order in which nodes need them.
pub fn ensure(
    cache: &Cache,
    progress: &Progress,
    binaries: &Path,
) -> Result<Vec<(String, PathBuf)>> {
    // The folder's name is the content key of the binaries in it.
    let key = Key::new().text(RECIPE).text(&binaries.to_string_lossy()).finish();
    let dir = cache.ensure(progress, "small-images", &key, |out, step| {
        let busybox = Busybox::fetch(out, step)?;
        for image in IMAGES {
            let tagged = format!("localhost/{image}:local");
            let built = match *image {
                "pause" => {
                    busybox.image(&tagged).entrypoint(&["/bin/busybox", "sleep", "2147483647"])
                }
                "busybox" => busybox.image(&tagged).command(&["/bin/sh"]),
                "idle-runner" => {
                    busybox.image(&tagged).entrypoint(&["/bin/sh", "-c", IDLE_RUNNER, "idle"])
                }
                program => Image::new(&tagged)
                    .file(binaries.join(program), &format!("/{program}"))
                    .entrypoint(&[&format!("/{program}")]),
            };
            step.say(&format!("writing {tagged}"));
            built.write(&out.join(format!("{image}.tar")))?;
        }
        fs::remove_dir_all(&busybox.dir)
            .with_context(|| format!("remove {}", busybox.dir.display()))
    })?;
    Ok(IMAGES
        .iter()
        .map(|name| (format!("localhost/{name}:local"), dir.join(format!("{name}.tar"))))
        .collect())
}

const IMAGES: &[&str] = &["pause", "coredns", "busybox", "idle-runner", "kube-scheduler"];
/// Stands for a runner where the VM itself does not matter: its pod is real, and starts without a boot.
const IDLE_RUNNER: &str = "[ \"$1\" = net ] || exec sleep 2147483647";
/// How many of them a node needs for its first pods.
pub const FIRST: usize = 2;

/// Debian's dynamic busybox with its libraries: the static one dies in name look-ups.
struct Busybox {
    dir: PathBuf,
    program: PathBuf,
    libraries: Vec<(PathBuf, String)>,
    applets: Vec<String>,
}

impl Busybox {
    fn fetch(out: &Path, step: &Step) -> Result<Self> {
        let dir = out.join("busybox");
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        download(&dir, step)?;
        let package = fs::read_dir(&dir)
            .with_context(|| format!("list {}", dir.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get downloaded no busybox package")?;
        let root = dir.join("root");
        Run::new("dpkg-deb").arg("-x").arg(&package).arg(&root).log(step.log()).status()?;
        let program = ["bin/busybox", "usr/bin/busybox"]
            .map(|path| root.join(path))
            .into_iter()
            .find(|path| path.is_file())
            .context("the busybox package holds no busybox")?;
        let libraries = libraries(&Run::new("ldd").arg(&program).output()?)?;
        let applets = Run::new(&program).arg("--list").output()?;
        let applets =
            applets.lines().filter(|name| *name != "busybox").map(str::to_owned).collect();
        Ok(Self { dir, program, libraries, applets })
    }

    fn image(&self, name: &str) -> Image {
        let mut image = Image::new(name).file(&self.program, "/bin/busybox");
        for (from, to) in &self.libraries {
            image = image.file(from, to);
        }
        self.applets
            .iter()
            .fold(image, |image, applet| image.link("busybox", &format!("/bin/{applet}")))
    }
}

fn download(dir: &Path, step: &Step) -> Result<()> {
    let apt = |args: &[&str]| {
        // As root apt-get would become `_apt`, which may not write into the cache.
        Run::new("apt-get")
            .args(["-o", "APT::Sandbox::User=root"])
            .args(args)
            .dir(dir)
            .log(step.log())
            .deadline(Duration::from_secs(600))
            .status()
    };
    if apt(&["download", "busybox"]).is_ok() {
        return Ok(());
    }
    apt(&["update"]).context("fetch the package lists")?;
    apt(&["download", "busybox"]).context("download the package busybox")
}

/// The libraries that `ldd` lists: the file, and the path at which the program looks for it.
fn libraries(listed: &str) -> Result<Vec<(PathBuf, String)>> {
    listed
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(|path| {
            let real =
                fs::canonicalize(path).with_context(|| format!("find the library {path}"))?;
            Ok((real, path.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_taken_from_the_listing_and_the_loader_too() {
        let shell = fs::canonicalize("/bin/sh").unwrap();
        let listed = "\tlinux-vdso.so.1 (0x00)\n\tlibx.so.6 => /bin/sh (0x00)\n\t/bin/sh (0x00)\n";
        let wanted = (shell, "/bin/sh".to_owned());
        assert_eq!(libraries(listed).unwrap(), vec![wanted.clone(), wanted]);
    }
}
