//! Reads what the kernel counts: kept descriptors, no allocation once the buffers have grown.

mod file;
mod parse;
mod pressure;
mod reader;

pub(crate) use file::Kept;
pub(crate) use parse::{cpu_list, quota};
pub(crate) use pressure::watch;
pub(crate) use reader::{ReadError, Reader};
