//! Lines from other processes: the guest's console to the pod's log, the helpers' messages to our own.
//!
//! The guest writes what it likes as fast as it likes. So lines have a limit, control characters do not
//! reach a terminal, and the copy in the run directory is bounded.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// A longer line is cut into pieces.
const LINE_LIMIT: usize = 4096;
/// The copy starts anew at this length; the one before it is kept.
const COPY_LIMIT: u64 = 1 << 20;

/// Copies the guest's console to standard output and to a bounded file, until it ends.
pub(crate) async fn copy_console(output: OwnedFd, copy: PathBuf) {
    let mut copy = Copy { path: copy, file: None, length: 0 };
    for_each_line(output, |line| {
        let text = format!("{}\n", printable(line));
        let _nobody_reads = io::stdout().lock().write_all(text.as_bytes());
        if let Err(err) = copy.write(text.as_bytes()) {
            tracing::debug!(error = %err, "cannot copy the console");
        }
    })
    .await;
}

/// Logs what a helper writes, until it ends.
pub(crate) async fn log_lines(process: String, output: OwnedFd) {
    for_each_line(output, |line| {
        tracing::info!(process, line = %printable(line), "helper says");
    })
    .await;
}

async fn for_each_line(output: OwnedFd, mut each: impl FnMut(&[u8])) {
    let Ok(mut output) = pipe::Receiver::from_owned_fd(output) else {
        tracing::warn!("the output of a process is not a pipe");
        return;
    };
    let mut lines = Lines::default();
    let mut chunk = [0; 8192];
    loop {
        match output.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(length) => lines.push(&chunk[..length], &mut each),
        }
    }
    lines.end(&mut each);
}

/// Cuts bytes into lines of at most [`LINE_LIMIT`].
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, bytes: &[u8], each: &mut impl FnMut(&[u8])) {
        for byte in bytes {
            if *byte == b'\n' {
                self.flush(each);
            } else {
                self.0.push(*byte);
                if self.0.len() == LINE_LIMIT {
                    self.flush(each);
                }
            }
        }
    }

    fn end(&mut self, each: &mut impl FnMut(&[u8])) {
        if !self.0.is_empty() {
            self.flush(each);
        }
    }

    fn flush(&mut self, each: &mut impl FnMut(&[u8])) {
        each(self.0.strip_suffix(b"\r").unwrap_or(&self.0));
        self.0.clear();
    }
}

/// Text without control characters other than tabs.
fn printable(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .chars()
        .map(|c| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

struct Copy {
    path: PathBuf,
    file: Option<File>,
    length: u64,
}

impl Copy {
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.file.is_none() || self.length >= COPY_LIMIT {
            if self.file.take().is_some() {
                std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
            }
            let mut options = OpenOptions::new();
            options.create(true).truncate(true).write(true).mode(0o600);
            self.file = Some(options.open(&self.path)?);
            self.length = 0;
        }
        self.length += text.len() as u64;
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let mut found = Vec::new();
        let mut each = |line: &[u8]| found.push(printable(line));
        let mut lines = Lines::default();
        for piece in pieces {
            lines.push(piece, &mut each);
        }
        lines.end(&mut each);
        found
    }

    #[test]
    fn lines_of_a_console() {
        assert_eq!(lines(&[b"one\r\ntw", b"o\n", b"\n", b"rest"]), ["one", "two", "", "rest"]);
        assert_eq!(
            lines(&[b"\x1b[31mred\x07\ttab \xff"]),
            ["\u{fffd}[31mred\u{fffd}\ttab \u{fffd}"]
        );
        let long = vec![b'x'; LINE_LIMIT + 1];
        assert_eq!(lines(&[&long]).iter().map(String::len).collect::<Vec<_>>(), [LINE_LIMIT, 1]);
    }

    #[test]
    fn the_copy_is_bounded() {
        let folder = std::env::temp_dir().join(format!("runner-copy-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("serial.log");
        let mut copy = Copy { path: path.clone(), file: None, length: 0 };
        let line = vec![b'x'; 64 * 1024];
        for _ in 0..40 {
            copy.write(&line).unwrap();
        }
        let sizes = [&path, &folder.join("serial.log.1")]
            .map(|path| std::fs::metadata(path).unwrap().len());
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(sizes[0] <= COPY_LIMIT && sizes[1] == COPY_LIMIT, "{sizes:?}");
    }
}
