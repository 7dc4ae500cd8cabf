//! Making a tree small: what goes, or what alone stays, with the libraries that the programs load.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::command::Run;

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
const ELF: &[u8] = b"\x7fELF";
/// Folders that a running system needs, though they may be empty.
const FOLDERS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
];
/// Users by name: root, and those that our pods run as.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    runner:x:10001:10001:runner:/:/bin/sh\n\
    nonroot:x:65532:65532:nonroot:/tmp:/bin/sh\n";
const GROUP: &str = "root:x:0:\nrunner:x:10001:\nnonroot:x:65532:\n";
/// Names are looked up in files, hosts also by DNS.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";
const BIN: &[&str] = &["bin", "sbin", "usr/bin", "usr/sbin"];

/// Removes a file or a folder; it must be there, or the list of what goes is out of date.
pub(super) fn remove(tree: &Path, path: &str) -> Result<()> {
    let full = inside(tree, path)?;
    let meta =
        fs::symlink_metadata(&full).with_context(|| format!("find {path}, which is to go"))?;
    let removed = if meta.is_dir() { fs::remove_dir_all(&full) } else { fs::remove_file(&full) };
    removed.with_context(|| format!("remove {}", full.display()))
}

/// Makes `new` from the listed files of `tree` and all libraries that they load.
pub(super) fn keep_only(tree: &Path, new: &Path, paths: &[String]) -> Result<()> {
    for (folder, mode) in FOLDERS {
        let path = new.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode))
            .with_context(|| format!("set the mode of {}", path.display()))?;
    }
    let mut copied = BTreeSet::new();
    for path in paths {
        keep(tree, new, path, &mut copied)?;
        for library in libraries(tree, path)? {
            keep(tree, new, &library, &mut copied)?;
        }
    }
    for (path, content) in
        [("etc/passwd", PASSWD), ("etc/group", GROUP), ("etc/nsswitch.conf", NSSWITCH)]
    {
        fs::write(new.join(path), content).with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

/// Copies one file; of a symbolic link also what it points to.
fn keep(tree: &Path, new: &Path, path: &str, copied: &mut BTreeSet<String>) -> Result<()> {
    if !copied.insert(path.to_owned()) {
        return Ok(());
    }
    let (from, to) = (inside(tree, path)?, inside(new, path)?);
    let meta =
        fs::symlink_metadata(&from).with_context(|| format!("find {path}, which is to stay"))?;
    let folder = to.parent().context("a file that stays has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    if meta.is_symlink() {
        let target = fs::read_link(&from).with_context(|| format!("read the link {path}"))?;
        symlink(&target, &to).with_context(|| format!("make the link {}", to.display()))?;
        return keep(tree, new, &resolved(path, &target)?, copied);
    }
    ensure!(meta.is_file(), "{path} is to stay, but is no file");
    fs::copy(&from, &to).with_context(|| format!("copy {path}"))?;
    Ok(())
}

/// Where a link at `path` points to, as a path of the tree.
fn resolved(path: &str, target: &Path) -> Result<String> {
    let folder = Path::new(path).parent().context("a link has a folder")?;
    let mut parts: Vec<&str> = Vec::new();
    let joined = folder.join(target);
    for part in joined.components() {
        match part {
            Component::Normal(name) => parts.push(name.to_str().context("a path is text")?),
            Component::ParentDir => {
                parts.pop().with_context(|| format!("{path} points out of the tree"))?;
            }
            Component::RootDir | Component::CurDir => {}
            Component::Prefix(_) => bail!("{path} is no path of this system"),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// The libraries that a program loads, by the tree's own loader; none for what is no program.
fn libraries(tree: &Path, path: &str) -> Result<Vec<String>> {
    let full = tree.join(path.trim_start_matches('/'));
    let mut start = [0; 4];
    let program = fs::File::open(&full)
        .and_then(|mut file| file.read_exact(&mut start))
        .map(|()| start == ELF)
        .or_else(|err| if err.kind() == ErrorKind::UnexpectedEof { Ok(false) } else { Err(err) })
        .with_context(|| format!("look into {}", full.display()))?;
    if !program {
        return Ok(Vec::new());
    }
    let listed = Run::new("chroot").arg(tree).args([LOADER, "--list", path]).output()?;
    listed_libraries(path, &listed)
}

/// Reads the loader's lines `libx.so.1 => /lib/libx.so.1 (0x...)` and `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn listed_libraries(path: &str, listed: &str) -> Result<Vec<String>> {
    let mut found = vec![LOADER.to_owned()];
    for line in listed.lines() {
        ensure!(!line.contains("not found"), "{path} misses a library: {}", line.trim());
        let words = line.split_whitespace();
        found.extend(words.filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    found.dedup();
    Ok(found)
}

/// Gives each applet of busybox a name, unless a real program has it.
pub(super) fn link_applets(tree: &Path, busybox: &str) -> Result<()> {
    let applets = Run::new("chroot").arg(tree).args([busybox, "--list"]).output()?;
    let taken =
        |name: &str| BIN.iter().any(|dir| tree.join(dir).join(name).symlink_metadata().is_ok());
    for name in applets.lines().filter(|name| !taken(name)) {
        let link = tree.join("bin").join(name);
        symlink(busybox, &link).with_context(|| format!("make the link {}", link.display()))?;
    }
    Ok(())
}

/// A path of a tree as a path of this machine.
fn inside(tree: &Path, path: &str) -> Result<PathBuf> {
    let relative = path.strip_prefix('/').with_context(|| format!("{path} is not absolute"))?;
    let plain = Path::new(relative).components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(plain && !relative.is_empty(), "{path} is not a plain path");
    Ok(tree.join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("neonvm-trim-{name}-{}", std::process::id()));
        let _absent = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("tree/etc")).unwrap();
        dir
    }

    #[test]
    fn only_what_is_listed_stays_and_links_bring_their_targets() {
        let dir = fresh("keep");
        let tree = dir.join("tree");
        fs::create_dir_all(tree.join("usr/lib")).unwrap();
        fs::write(tree.join("usr/lib/os-release"), "x").unwrap();
        fs::write(tree.join("usr/lib/other"), "y").unwrap();
        symlink("../usr/lib/os-release", tree.join("etc/os-release")).unwrap();
        let new = dir.join("new");
        keep_only(&tree, &new, &["/etc/os-release".into()]).unwrap();
        assert_eq!(fs::read_to_string(new.join("etc/os-release")).unwrap(), "x");
        assert!(!new.join("usr/lib/other").exists());
        let mode = fs::metadata(new.join("tmp")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
        let message =
            keep_only(&tree, &dir.join("n2"), &["/absent".into()]).unwrap_err().to_string();
        assert!(message.contains("/absent, which is to stay"), "{message}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_to_go_must_be_there() {
        let dir = fresh("remove");
        let tree = dir.join("tree");
        remove(&tree, "/etc").unwrap();
        assert!(!tree.join("etc").exists());
        assert!(remove(&tree, "/etc").unwrap_err().to_string().contains("/etc, which is to go"));
        for path in ["etc", "/", "/../etc", "/etc/../.."] {
            assert!(remove(&tree, path).is_err(), "{path}");
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn links_are_resolved_inside_the_tree() {
        assert_eq!(resolved("/etc/os-release", Path::new("../usr/lib/os")).unwrap(), "/usr/lib/os");
        assert_eq!(resolved("/a/b", Path::new("/c/./d")).unwrap(), "/c/d");
        assert!(resolved("/a", Path::new("../../x")).is_err());
    }

    #[test]
    fn the_loaders_listing_names_libraries() {
        let listed = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        assert_eq!(listed_libraries("/x", listed).unwrap(), [LOADER, "/lib/libc.so.6", LOADER]);
        let missing = "\tliby.so.1 => not found\n";
        assert!(listed_libraries("/x", missing).unwrap_err().to_string().contains("liby.so.1"));
    }
}
