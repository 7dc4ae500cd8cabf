//! What a run needs and builds once: every part in its own file, all kept in the cache by content.

pub mod debian;
pub mod go;
pub mod images;
pub mod kernel;
pub mod rootfs;
pub mod rust;
mod trim;

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::Cache;
use crate::progress::Progress;

/// Builds everything that the system consists of, with a progress of its own; returns the images, name and archive.
pub fn ensure_all() -> Result<Vec<(String, PathBuf)>> {
    let progress = Progress::new(&Cache::open()?, 0);
    let images = images::all(&progress)?;
    progress.note(&format!(
        "{} images ready after {:.0} s",
        images.len(),
        progress.elapsed().as_secs_f64()
    ));
    Ok(images)
}
