//! Files that are replaced while the program runs: certificates and keys in mounted Secrets.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Looked at again at most this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A value made from the content of files, made anew when the content changes.
pub(crate) struct Reloaded<T> {
    paths: Vec<PathBuf>,
    make: fn(&[Vec<u8>]) -> Result<T, FileError>,
    state: Mutex<Option<State<T>>>,
}

struct State<T> {
    looked: Instant,
    contents: Vec<Vec<u8>>,
    value: Arc<T>,
}

/// Files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("read {path}")]
    Read { path: String, source: std::io::Error },
    #[error("use the content of {what}")]
    Content { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
}

impl FileError {
    pub(crate) fn content(
        what: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Content { what, source: source.into() }
    }
}

impl<T> Reloaded<T> {
    pub(crate) fn new(
        paths: impl IntoIterator<Item = PathBuf>,
        make: fn(&[Vec<u8>]) -> Result<T, FileError>,
    ) -> Self {
        Self { paths: paths.into_iter().collect(), make, state: Mutex::new(None) }
    }

    /// The value of the newest usable content. Files that are being replaced keep the old value.
    pub(crate) fn get(&self) -> Result<Arc<T>, FileError> {
        // A panic while holding the lock cannot leave the state half-written.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(known) = state.as_mut().filter(|known| now - known.looked < LOOK_AGAIN) {
            return Ok(Arc::clone(&known.value));
        }
        let read: Result<Vec<_>, _> = self.paths.iter().map(|path| read(path)).collect();
        let made = read.and_then(|contents| {
            if let Some(known) = state.as_ref().filter(|known| known.contents == contents) {
                return Ok((contents, Arc::clone(&known.value)));
            }
            let value = Arc::new((self.make)(&contents)?);
            Ok((contents, value))
        });
        match (made, state.as_mut()) {
            (Ok((contents, value)), _) => {
                *state = Some(State { looked: now, contents, value: Arc::clone(&value) });
                Ok(value)
            }
            (Err(err), Some(known)) => {
                known.looked = now;
                tracing::warn!(error = %guest_units::Chain(&err), "new files not used, the old content stays");
                Ok(Arc::clone(&known.value))
            }
            (Err(err), None) => Err(err),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path)
        .map_err(|source| FileError::Read { path: path.display().to_string(), source })
}
