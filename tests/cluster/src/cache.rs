//! What was built once is kept: a folder per artifact and content key, complete or absent, shared by every run of this tool.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use ring::digest::{Context as Hasher, SHA256};
use rustix::fs::{FlockOperation, flock};

use crate::interrupt;
use crate::progress::{Progress, Step};

/// How many generations of an artifact are kept.
const KEPT: usize = 2;
/// The file whose time says when a generation was last asked for.
const USED: &str = ".used";

/// The folder under which everything that was built is kept.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$NEONVM_CACHE`, else `$XDG_CACHE_HOME/neonvm`, else `~/.cache/neonvm`; made when absent.
    pub fn open() -> Result<Self> {
        let var =
            |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = var("NEONVM_CACHE")
            .or_else(|| var("XDG_CACHE_HOME").map(|home| home.join("neonvm")))
            .or_else(|| var("HOME").map(|home| home.join(".cache/neonvm")))
            .context("none of NEONVM_CACHE, XDG_CACHE_HOME and HOME is set: where to keep what is built?")?;
        Self::at(&root)
    }

    /// A cache in a folder of the caller's choice.
    pub fn at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root.join("logs"))
            .with_context(|| format!("make the cache folder {}", root.display()))?;
        let root =
            root.canonicalize().with_context(|| format!("resolve the cache {}", root.display()))?;
        Ok(Self { root })
    }

    /// The cache's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the log of a step lies.
    pub fn log(&self, step: &str) -> PathBuf {
        self.root.join("logs").join(format!("{}.log", file_name(step)))
    }

    /// Where an artifact of this name and key lies once it is built.
    pub fn place(&self, name: &str, key: &str) -> PathBuf {
        self.root.join(name).join(key)
    }

    /// Waits for a lock of this name; it is given back when the file is dropped, or its holder dies.
    pub fn lock(&self, name: &str) -> Result<File> {
        let path = self.root.join(format!("{}.lock", file_name(name)));
        lock_file(&path)
    }

    /// The folder of an artifact: reused when this key was built before, else built by `build` into an empty folder that
    /// takes the artifact's name only when complete. Is one step of the progress.
    pub fn ensure(
        &self,
        progress: &Progress,
        name: &str,
        key: &str,
        build: impl FnOnce(&Path, &Step) -> Result<()>,
    ) -> Result<PathBuf> {
        let place = self.place(name, key);
        progress.step(name, |step| {
            let family = self.root.join(name);
            fs::create_dir_all(&family)
                .with_context(|| format!("make the folder {}", family.display()))?;
            let _lock = lock_file(&family.join(".lock"))?;
            if place.is_dir() {
                step.reused();
            } else {
                self.build(name, &place, step, build)?;
            }
            touch(&place.join(USED))?;
            prune(&family)
        })?;
        Ok(place)
    }

    fn build(
        &self,
        name: &str,
        place: &Path,
        step: &Step,
        build: impl FnOnce(&Path, &Step) -> Result<()>,
    ) -> Result<()> {
        let family = self.root.join(name);
        remove_partial(&family)?;
        let partial = family.join(format!(".partial-{}", std::process::id()));
        fs::create_dir(&partial).with_context(|| format!("make {}", partial.display()))?;
        let built = build(&partial, step).with_context(|| format!("build {name}"));
        if let Err(err) = built {
            let _next_build_removes_it = fs::remove_dir_all(&partial);
            return Err(err);
        }
        fs::rename(&partial, place)
            .with_context(|| format!("give {} its name {}", partial.display(), place.display()))
    }
}

/// Opens and locks a file, waiting for the holder, unless a stop is asked for.
fn lock_file(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("open the lock {}", path.display()))?;
    let mut told = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(err) => {
                return Err(err).with_context(|| format!("lock {}", path.display()));
            }
        }
        interrupt::check()?;
        if !told {
            eprintln!("  waiting for another run that holds {}", path.display());
            told = true;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn file_name(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' })
        .collect()
}

fn touch(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
    file.set_modified(SystemTime::now()).with_context(|| format!("date {}", path.display()))
}

fn remove_partial(family: &Path) -> Result<()> {
    for entry in entries(family)? {
        if entry.file_name().is_some_and(|name| name.as_bytes().starts_with(b".partial-")) {
            fs::remove_dir_all(&entry).with_context(|| format!("remove {}", entry.display()))?;
        }
    }
    Ok(())
}

/// Removes all but the generations that were used last.
fn prune(family: &Path) -> Result<()> {
    let mut generations: Vec<(SystemTime, PathBuf)> = entries(family)?
        .into_iter()
        .filter(|path| path.is_dir())
        .filter_map(|path| Some((fs::metadata(path.join(USED)).ok()?.modified().ok()?, path)))
        .collect();
    generations.sort();
    let surplus = generations.len().saturating_sub(KEPT);
    for (_, path) in &generations[..surplus] {
        fs::remove_dir_all(path).with_context(|| format!("remove the old {}", path.display()))?;
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut paths = read().with_context(|| format!("list {}", dir.display()))?;
    paths.sort();
    Ok(paths)
}

/// Collects what an artifact is made from into its key.
pub struct Key(Hasher);

impl Default for Key {
    fn default() -> Self {
        Self::new()
    }
}

impl Key {
    /// An empty key.
    pub fn new() -> Self {
        Self(Hasher::new(&SHA256))
    }

    fn part(&mut self, bytes: &[u8]) {
        self.0.update(&bytes.len().to_be_bytes());
        self.0.update(bytes);
    }

    /// Adds a version, an option or a recipe.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.part(text.as_bytes());
        self
    }

    /// Adds files and whole folders below `root`: their paths, modes and contents. Names that start with a dot are left out of folders.
    pub fn files<P: AsRef<Path>>(mut self, root: &Path, paths: &[P]) -> Result<Self> {
        for path in paths {
            self.tree(root, path.as_ref())?;
        }
        Ok(self)
    }

    fn tree(&mut self, root: &Path, path: &Path) -> Result<()> {
        let full = root.join(path);
        if !full.is_dir() {
            return self.file(&full, path);
        }
        for entry in entries(&full)? {
            let name = entry.file_name().unwrap_or_else(|| OsStr::new(""));
            if !name.as_bytes().starts_with(b".") {
                self.tree(root, &path.join(name))?;
            }
        }
        Ok(())
    }

    fn file(&mut self, full: &Path, path: &Path) -> Result<()> {
        let reading = || format!("read {} for a content key", full.display());
        let mut file = File::open(full).with_context(reading)?;
        let meta = file.metadata().with_context(reading)?;
        self.part(path.as_os_str().as_bytes());
        self.part(&(meta.permissions().mode() & 0o111).to_be_bytes());
        self.part(&hash_reader(&mut file).with_context(reading)?);
        Ok(())
    }

    /// The key: 16 hexadecimal digits.
    pub fn finish(self) -> String {
        hex(&self.0.finish().as_ref()[..8])
    }
}

fn hash_reader(from: &mut impl io::Read) -> io::Result<Vec<u8>> {
    let mut hasher = Hasher::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(hasher.finish().as_ref().to_vec());
        }
        hasher.update(&buffer[..count]);
    }
}

/// The SHA-256 of a file, in hexadecimal digits.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    Ok(hex(&hash_reader(&mut file).with_context(|| format!("read {}", path.display()))?))
}

/// The SHA-256 of some bytes, in hexadecimal digits.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

/// The repository that this tool belongs to: the nearest folder upwards that holds this crate, from the working directory first.
pub fn repo_root() -> Result<PathBuf> {
    let here = std::env::current_dir().context("find the working directory")?;
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    for start in [here.as_path(), built] {
        for dir in start.ancestors() {
            if dir.join("tests/cluster/go/go.mod").is_file() {
                return Ok(dir.to_path_buf());
            }
        }
    }
    bail!("{} is not inside the repository", here.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(name: &str) -> (Cache, Progress) {
        let dir = std::env::temp_dir().join(format!("neonvm-cache-{name}-{}", std::process::id()));
        let _absent = fs::remove_dir_all(&dir);
        let cache = Cache::at(&dir).unwrap();
        let progress = Progress::new(&cache, 1);
        (cache, progress)
    }

    #[test]
    fn a_second_ensure_reuses_the_first() {
        let (cache, progress) = fresh("reuse");
        let build = |out: &Path, _: &Step| Ok(fs::write(out.join("file"), "content")?);
        let first = cache.ensure(&progress, "thing", "k1", build).unwrap();
        let second = cache.ensure(&progress, "thing", "k1", |_, _| bail!("built twice")).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(second.join("file")).unwrap(), "content");
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn a_failed_build_leaves_nothing() {
        let (cache, progress) = fresh("failed");
        let failing = |out: &Path, _: &Step| {
            fs::write(out.join("half"), "half")?;
            bail!("no")
        };
        assert!(cache.ensure(&progress, "thing", "k1", failing).is_err());
        assert!(!cache.place("thing", "k1").exists());
        let left: Vec<_> = entries(&cache.root().join("thing"))
            .unwrap()
            .into_iter()
            .filter(|p| p.is_dir())
            .collect();
        assert_eq!(left, Vec::<PathBuf>::new());
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn only_the_two_newest_generations_stay() {
        let (cache, progress) = fresh("prune");
        for key in ["k1", "k2", "k3"] {
            cache.ensure(&progress, "thing", key, |_, _| Ok(())).unwrap();
            let used = File::create(cache.place("thing", key).join(USED)).unwrap();
            let age = Duration::from_secs(if key == "k1" { 2000 } else { 1000 });
            used.set_modified(SystemTime::now() - age).unwrap();
        }
        assert!(!cache.place("thing", "k1").exists());
        assert!(cache.place("thing", "k2").exists() && cache.place("thing", "k3").exists());
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn a_key_follows_content_name_and_order() {
        let (cache, _) = fresh("key");
        let root = cache.root().join("src");
        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(root.join("a/x"), "1").unwrap();
        let key = || Key::new().files(&root, &["a"]).unwrap().finish();
        let before = key();
        assert_eq!(before, key());
        fs::write(root.join("a/.hidden"), "1").unwrap();
        assert_eq!(before, key());
        fs::write(root.join("a/x"), "2").unwrap();
        assert_ne!(before, key());
        assert_ne!(
            Key::new().text("ab").text("c").finish(),
            Key::new().text("a").text("bc").finish()
        );
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn digests_are_written_in_hexadecimal() {
        assert!(hash_bytes(b"").starts_with("e3b0c44298fc1c14"));
    }
}
