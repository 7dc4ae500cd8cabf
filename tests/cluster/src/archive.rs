//! Container images without an engine or a registry: a docker archive of one layer, written byte for byte the same each time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use tar::{Builder, EntryType, Header};

use crate::cache::{hash_bytes, hash_file};

const SEARCH_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Folders that every image has; `tmp` is the one that everybody may write to.
const FOLDERS: &[&str] = &["dev", "etc", "proc", "root", "sys", "tmp"];

/// An image to be written.
#[derive(Debug, Default)]
pub struct Image {
    name: String,
    files: Vec<(PathBuf, String)>,
    links: Vec<(String, String)>,
    entrypoint: Vec<String>,
    command: Vec<String>,
}

impl Image {
    /// An empty image of this name and tag.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Adds a file of this machine at an absolute path of the image.
    #[must_use]
    pub fn file(mut self, from: impl Into<PathBuf>, to: &str) -> Self {
        self.files.push((from.into(), to.into()));
        self
    }

    /// Adds a symbolic link at an absolute path of the image.
    #[must_use]
    pub fn link(mut self, target: &str, at: &str) -> Self {
        self.links.push((target.into(), at.into()));
        self
    }

    /// Sets the program that a container runs, with its first arguments.
    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|&word| word.into()).collect();
        self
    }

    /// Sets what is run, or given to the entry point, when the pod says nothing.
    #[must_use]
    pub fn command(mut self, words: &[&str]) -> Self {
        self.command = words.iter().map(|&word| word.into()).collect();
        self
    }

    /// Writes the archive.
    pub fn write(&self, out: &Path) -> Result<()> {
        let layer = out.with_extension("layer");
        self.write_layer(&layer).with_context(|| format!("write the layer of {}", self.name))?;
        let archive = self.write_archive(&layer, out);
        let removed = fs::remove_file(&layer);
        archive.with_context(|| format!("write the image {}", out.display()))?;
        removed.with_context(|| format!("remove {}", layer.display()))
    }

    fn write_layer(&self, to: &Path) -> Result<()> {
        let file = File::create(to).with_context(|| format!("make {}", to.display()))?;
        let mut tar = Builder::new(BufWriter::new(file));
        let mut known = BTreeSet::new();
        for folder in FOLDERS {
            add_folders(&mut tar, &mut known, &format!("{folder}/x"))?;
        }
        for (from, path) in &self.files {
            let path = path.trim_start_matches('/');
            add_folders(&mut tar, &mut known, path)?;
            let file = File::open(from).with_context(|| format!("open {}", from.display()))?;
            let meta = file.metadata().with_context(|| format!("look at {}", from.display()))?;
            let mode = meta.permissions().mode() & 0o777 | 0o444;
            add(&mut tar, path, EntryType::Regular, mode, meta.len(), file)?;
        }
        for (target, path) in &self.links {
            let path = path.trim_start_matches('/');
            add_folders(&mut tar, &mut known, path)?;
            let mut header = header(EntryType::Symlink, 0o777, 0);
            tar.append_link(&mut header, path, target)
                .with_context(|| format!("add the link {path}"))?;
        }
        tar.into_inner().context("end the layer")?.into_inner().context("flush the layer")?;
        Ok(())
    }

    fn write_archive(&self, layer: &Path, out: &Path) -> Result<()> {
        let digest = hash_file(layer)?;
        let config = serde_json::to_vec(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Cmd": self.command, "Env": [SEARCH_PATH]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
            "history": [{}],
        }))
        .context("write the image's configuration")?;
        let config_name = format!("{}.json", hash_bytes(&config));
        let layer_name = format!("{digest}.tar");
        let manifest = serde_json::to_vec(&json!([
            {"Config": config_name, "RepoTags": [self.name], "Layers": [layer_name]}
        ]))
        .context("write the image's manifest")?;
        let file = File::create(out).with_context(|| format!("make {}", out.display()))?;
        let mut tar = Builder::new(BufWriter::new(file));
        let regular = EntryType::Regular;
        add(&mut tar, &config_name, regular, 0o644, length(&config), config.as_slice())?;
        let bytes = File::open(layer).with_context(|| format!("open {}", layer.display()))?;
        let size = bytes.metadata().context("measure the layer")?.len();
        add(&mut tar, &layer_name, regular, 0o644, size, bytes)?;
        add(&mut tar, "manifest.json", regular, 0o644, length(&manifest), manifest.as_slice())?;
        tar.into_inner().context("end the archive")?.into_inner().context("flush the archive")?;
        Ok(())
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

type Tar = Builder<BufWriter<File>>;

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn add(
    tar: &mut Tar,
    path: &str,
    kind: EntryType,
    mode: u32,
    size: u64,
    bytes: impl Read,
) -> Result<()> {
    let mut header = header(kind, mode, size);
    tar.append_data(&mut header, path, bytes).with_context(|| format!("add {path}"))
}

/// Adds the folders above a path that are not there yet.
fn add_folders(tar: &mut Tar, known: &mut BTreeSet<String>, path: &str) -> Result<()> {
    for (end, _) in path.match_indices('/') {
        let folder = &path[..end];
        if known.insert(folder.to_owned()) {
            let mode = if folder == "tmp" { 0o1777 } else { 0o755 };
            add(tar, &format!("{folder}/"), EntryType::Directory, mode, 0, std::io::empty())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_names_its_layer_and_is_the_same_each_time() {
        let dir = std::env::temp_dir().join(format!("neonvm-archive-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let source = dir.join("program");
        fs::write(&source, "content").unwrap();
        let image = Image::new("localhost/x:local")
            .file(&source, "/bin/deep/program")
            .link("program", "/bin/deep/other")
            .entrypoint(&["/bin/deep/program"]);
        let (one, two) = (dir.join("one.tar"), dir.join("two.tar"));
        image.write(&one).unwrap();
        image.write(&two).unwrap();
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());

        let mut archive = tar::Archive::new(File::open(&one).unwrap());
        let mut manifest = String::new();
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            names.push(entry.path().unwrap().display().to_string());
            if names.last().unwrap() == "manifest.json" {
                entry.read_to_string(&mut manifest).unwrap();
            }
        }
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "localhost/x:local");
        assert_eq!(manifest[0]["Config"], names[0]);
        assert_eq!(manifest[0]["Layers"][0], names[1]);
        fs::remove_dir_all(dir).unwrap();
    }
}
