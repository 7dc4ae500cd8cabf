//! A file that is there as a whole or not at all: it is written under another name beside it, and renamed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}", path = path.display())]
pub struct DraftProblem {
    path: PathBuf,
    source: io::Error,
}

/// A file that is going to be written. Dropped before that, it leaves nothing.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    draft: PathBuf,
}

impl Draft {
    /// Begins with an empty draft, so that a place where nothing can be written is known before there is anything to write.
    ///
    /// # Errors
    /// The path is that of a folder, or nothing can be written beside it.
    pub fn begin(path: &Path) -> Result<Self, DraftProblem> {
        let problem = |source| DraftProblem { path: path.to_owned(), source };
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
            return Err(problem(io::ErrorKind::IsADirectory.into()));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        let draft = path.with_file_name(hidden);
        fs::write(&draft, "").map_err(problem)?;
        Ok(Self { path: path.to_owned(), draft })
    }

    /// Writes the text and puts the file in its place.
    ///
    /// # Errors
    /// The file cannot be written; one that was there before is as it was.
    pub fn finish(self, text: &str) -> Result<(), DraftProblem> {
        let written =
            fs::write(&self.draft, text).and_then(|()| fs::rename(&self.draft, &self.path));
        written.map_err(|source| DraftProblem { path: self.path.clone(), source })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After the rename there is none.
        let _gone = fs::remove_file(&self.draft);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_as_a_whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("simulate-report-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("out.html");
        let count = || fs::read_dir(&folder).unwrap().count();
        drop(Draft::begin(&path).unwrap());
        assert_eq!(count(), 0);
        Draft::begin(&path).unwrap().finish("one").unwrap();
        Draft::begin(&path).unwrap().finish("two").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), count()), ("two", 1));
        // What was there stays where a file cannot be put in its place.
        let draft = Draft::begin(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir_all(path.join("in the way")).unwrap();
        let text = draft.finish("three").unwrap_err().to_string();
        assert!(text.starts_with("cannot write ") && text.contains("out.html"), "{text}");
        assert_eq!(count(), 1);
        assert!(Draft::begin(&path).is_err());
        let nowhere = folder.join("none").join("out.html");
        assert!(Draft::begin(&nowhere).unwrap_err().to_string().contains("none/out.html"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
