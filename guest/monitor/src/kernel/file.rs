//! A file of the kernel that is read again and again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// First size of a buffer.
const BUFFER: usize = 4096;
/// No file of the kernel that we read is longer.
const LONGEST: usize = 1 << 20;

/// A file that stays open between readings.
pub(crate) struct Kept {
    path: PathBuf,
    file: Option<File>,
    buffer: Vec<u8>,
}

impl Kept {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, file: None, buffer: Vec::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds now. A file that went away, as those of a cgroup do, is opened anew once.
    pub(crate) fn read(&mut self) -> io::Result<&[u8]> {
        if self.file.is_some() {
            match self.fill() {
                Ok(length) => return Ok(&self.buffer[..length]),
                Err(_) => self.file = None,
            }
        }
        self.file = Some(File::open(&self.path)?);
        let length = self.fill()?;
        Ok(&self.buffer[..length])
    }

    fn fill(&mut self) -> io::Result<usize> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        if self.buffer.is_empty() {
            self.buffer.resize(BUFFER, 0);
        }
        let mut length = 0;
        loop {
            match file.read_at(&mut self.buffer[length..], length as u64) {
                Ok(0) => return Ok(length),
                Ok(more) => length += more,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
            if length == self.buffer.len() {
                if length >= LONGEST {
                    return Err(io::Error::other("the file is too long"));
                }
                self.buffer.resize(length * 2, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_anew_each_time_and_may_grow_or_be_replaced() {
        let dir = std::env::temp_dir().join(format!("kept-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("file");
        let mut kept = Kept::new(path.clone());
        assert!(kept.read().is_err());
        std::fs::write(&path, "one").unwrap();
        assert_eq!(kept.read().unwrap(), b"one");
        let long = "x".repeat(10_000);
        std::fs::write(&path, &long).unwrap();
        assert_eq!(kept.read().unwrap(), long.as_bytes());
        std::fs::write(&path, "").unwrap();
        assert_eq!(kept.read().unwrap(), b"");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
