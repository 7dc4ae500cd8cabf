//! What a run needs and builds once: every part in its own file, all kept in the cache by content.

pub mod debian;
pub mod go;
pub mod images;
pub mod kernel;
pub mod rootfs;
pub mod rust;
mod trim;
