//! Taking the cluster away, whole or in pieces, and proving that nothing is left. Works from what the machine shows, not
//! from what was written down, so that it serves after a crash, too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::command::Run;
use crate::layout::Layout;
use crate::process::Process;
use crate::{cgroup, network, process};

const DEATH: Duration = Duration::from_secs(30);

/// Removes everything of the cluster and fails, naming it, when something stays.
pub fn down(layout: &Layout) -> Result<()> {
    kill_all(layout)?;
    network::down(layout)?;
    cgroup::remove(layout)?;
    detach_loops(layout)?;
    unmount_all(layout)?;
    remove_made_folders(layout)?;
    remove(layout.state())?;
    remove(layout.data())?;
    let left = leftovers(layout)?;
    if !left.is_empty() {
        bail!("the cluster is down, but this is left:\n  {}", left.join("\n  "));
    }
    Ok(())
}

/// Everything of the cluster that the machine shows.
pub fn leftovers(layout: &Layout) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for process in running(layout)? {
        left.push(format!("process {} ({})", process.pid, process::command_name(process)));
    }
    left.extend(network::interfaces(layout).into_iter().map(|name| format!("interface {name}")));
    let shown = |kind: &str, path: &PathBuf| format!("{kind} {}", path.display());
    left.extend(cgroup::groups(layout)?.iter().map(|path| shown("cgroup", path)));
    left.extend(mounts(layout)?.iter().map(|path| shown("mount", path)));
    left.extend(loops(layout)?.iter().map(|path| shown("loop device", path)));
    for dir in [layout.state(), layout.data()] {
        if dir.exists() {
            left.push(format!("folder {}", dir.display()));
        }
    }
    Ok(left)
}

/// The cluster's processes: those that carry its mark, and those in its groups.
fn running(layout: &Layout) -> Result<Vec<Process>> {
    let mut found = process::marked(layout)?;
    found.extend(cgroup::processes(layout)?);
    found.sort();
    found.dedup();
    let own = Process::of(rustix::process::getpid().as_raw_nonzero().get());
    found.retain(|process| Some(*process) != own);
    Ok(found)
}

fn kill_all(layout: &Layout) -> Result<()> {
    // Kubelets first: they would start again what ends.
    for process in running(layout)? {
        if process::command_name(process) == "kubelet" {
            process.signal(Signal::KILL)?;
        }
    }
    let records = process::records(layout)?;
    let begun = Instant::now();
    loop {
        let left = running(layout)?;
        for process in &left {
            process.signal(Signal::KILL)?;
        }
        // Components that this very process started stay in its table until they are collected.
        for record in records.values() {
            record.process.collect();
        }
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > DEATH {
            let names: Vec<String> = left.into_iter().map(process::command_name).collect();
            bail!("these processes do not die: {}", names.join(", "));
        }
        thread::sleep(Duration::from_millis(30));
    }
}

/// Mount points at and below the cluster's folders, the last mounted first.
fn mounts(layout: &Layout) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    Ok(mount_points(&text, &[layout.state(), layout.data()]))
}

fn mount_points(mountinfo: &str, below: &[&Path]) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut ours: Vec<PathBuf> =
        points.filter(|point| below.iter().any(|dir| point.starts_with(dir))).collect();
    ours.reverse();
    ours
}

/// Blanks in mount points are written as `\040`.
fn unescape(text: &str) -> PathBuf {
    PathBuf::from(text.replace("\\040", " "))
}

fn unmount_all(layout: &Layout) -> Result<()> {
    for point in mounts(layout)? {
        match unmount(&point, UnmountFlags::DETACH) {
            // Gone with a mount above it.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(err) => return Err(err).with_context(|| format!("unmount {}", point.display())),
        }
    }
    Ok(())
}

/// Loop devices whose file lies in one of the cluster's folders.
fn loops(layout: &Layout) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir("/sys/block") {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(err).context("list /sys/block"),
    };
    let ours = |device: &Path| {
        let file = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
        file.starts_with(&*layout.data().to_string_lossy())
            || file.starts_with(&*layout.state().to_string_lossy())
    };
    let devices = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let names = devices.filter(|device| ours(device));
    Ok(names.filter_map(|device| Some(Path::new("/dev").join(device.file_name()?))).collect())
}

fn detach_loops(layout: &Layout) -> Result<()> {
    for device in loops(layout)? {
        Run::new("losetup").arg("-d").arg(&device).status()?;
    }
    Ok(())
}

/// Removes the mount points that were made on the machine, if nobody else uses them by now.
fn remove_made_folders(layout: &Layout) -> Result<()> {
    let list = layout.made_folders();
    let text = match fs::read_to_string(&list) {
        Ok(text) => text,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(err).with_context(|| format!("read {}", list.display())),
    };
    for dir in text.lines().rev() {
        let _in_use_or_gone = fs::remove_dir(dir);
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(err).with_context(|| format!("remove {}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_below_the_folders_and_undone_in_reverse() {
        let info = "1 0 8:1 / / rw - ext4 /dev/vda rw\n\
                    2 1 8:1 /x /run/ours rw - ext4 /dev/vda rw\n\
                    3 2 0:4 net:[1] /run/ours/n1/net rw - nsfs nsfs rw\n\
                    4 1 8:1 /y /run/ours-not rw - ext4 /dev/vda rw\n\
                    5 1 8:1 /z /data/with\\040blank rw - ext4 /dev/vda rw\n";
        let found = mount_points(info, &[Path::new("/run/ours"), Path::new("/data")]);
        let wanted = ["/data/with blank", "/run/ours/n1/net", "/run/ours"].map(PathBuf::from);
        assert_eq!(found, wanted);
    }
}
