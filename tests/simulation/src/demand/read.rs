//! Traces from files: which format a file has, and that it is read whole or not at all.

mod bitbrains;
mod nab;
mod planetlab;
mod row;
mod series;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::problem::{TraceFault, TraceProblem};
use super::trace::Trace;

/// The largest file that is read, in bytes: 60 times the largest known one. Its samples take up to eight times that in memory.
const LARGEST: u64 = 64 << 20;
/// The largest percentage. Hosts measure a little more than 100 now and then, and some count each CPU as 100.
const MOST_PERCENT: f64 = 1000.0;

/// The formats that traces come in; a file's first line tells which.
///
/// Rows of one VM are at equal distances in time, which the first two rows show. Real recordings are not perfect, so a distance may
/// be off by 5 % of that, and up to four samples in a row may be missing: there the last one holds on. Whatever else is irregular is an
/// error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceFormat {
    /// The GWA-T-12 traces: one VM, `;` between columns with names, of which `Timestamp [ms]`, `CPU usage [%]` and
    /// `Memory usage [KB]` are read. Timestamps are seconds since 1970 in spite of their name; those from 10^11 on are
    /// milliseconds. A KB is 1024 bytes.
    Bitbrains,
    /// The Numenta Anomaly Benchmark: one series with the header `timestamp,value`, timestamps like `2014-02-14 14:30:00`. When no
    /// value is above 100 they are CPU in percent. Otherwise they count something, and its 99.9th percentile (nearest rank) is
    /// 100 percent, as is everything above.
    Nab,
    /// One day of PlanetLab: a VM a line, without a header, 288 percentages of CPU five minutes apart.
    Planetlab,
}

impl TraceFormat {
    /// The format of a file with this text; `None` for none that is known.
    #[must_use]
    pub fn detect(text: &str) -> Option<Self> {
        let line = first_line(text);
        let separator = if line.contains(';') { ';' } else { ',' };
        let first = line.split(separator).next().unwrap_or_default().trim();
        match separator {
            ';' => first.to_ascii_lowercase().starts_with("timestamp").then_some(Self::Bitbrains),
            _ if first.eq_ignore_ascii_case("timestamp") => Some(Self::Nab),
            // Numbers that are wrong in a trace are that reader's to refuse.
            _ => first.parse::<f64>().is_ok().then_some(Self::Planetlab),
        }
    }
}

/// The traces of a file, or of all files of a folder, sorted by name.
///
/// In a folder, files named `*.md`, `README*` and `LICENSE*` are about the data and skipped; all others must be traces.
///
/// # Errors
/// The first thing that is wrong with any of them; then nothing is read. A file of more than 64 MiB is refused.
pub fn read_traces(path: &Path) -> Result<Vec<Trace>, TraceProblem> {
    let failed = |source| TraceProblem::Read { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return read_file(path);
    }
    let entries = fs::read_dir(path).map_err(failed)?;
    let entries: io::Result<Vec<PathBuf>> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut files = entries.map_err(failed)?;
    files.retain(|file| is_data(file));
    files.sort();
    let traces: Result<Vec<_>, _> = files.iter().map(|file| read_file(file)).collect();
    let traces = traces?.concat();
    if traces.is_empty() {
        return Err(TraceProblem::Whole { path: path.to_owned(), fault: TraceFault::NoTrace });
    }
    Ok(traces)
}

fn is_data(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let about = name.starts_with("README") || name.starts_with("LICENSE");
    !about && file.extension() != Some(OsStr::new("md"))
}

fn read_file(path: &Path) -> Result<Vec<Trace>, TraceProblem> {
    let failed = |source| TraceProblem::Read { path: path.to_owned(), source };
    let whole = |fault| TraceProblem::Whole { path: path.to_owned(), fault };
    let mut content = Vec::new();
    let file = File::open(path).map_err(failed)?;
    // One more than allowed, to see that there is more.
    file.take(LARGEST + 1).read_to_end(&mut content).map_err(failed)?;
    if u64::try_from(content.len()).map_or(true, |bytes| bytes > LARGEST) {
        return Err(whole(TraceFault::TooLarge { most: LARGEST }));
    }
    let text = String::from_utf8(content).map_err(|_| whole(TraceFault::NotText))?;
    parse_traces(path, &text)
}

/// The traces in the text of a file; the path names them and the problems.
///
/// # Errors
/// The first thing that is wrong with the text.
pub fn parse_traces(path: &Path, text: &str) -> Result<Vec<Trace>, TraceProblem> {
    let whole = |fault| TraceProblem::Whole { path: path.to_owned(), fault };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        return Err(whole(TraceFault::Empty));
    }
    match TraceFormat::detect(text) {
        Some(TraceFormat::Bitbrains) => bitbrains::parse(path, text).map(|trace| vec![trace]),
        Some(TraceFormat::Nab) => nab::parse(path, text).map(|trace| vec![trace]),
        Some(TraceFormat::Planetlab) => planetlab::parse(path, text),
        None => {
            let begins = first_line(text).chars().take(40).collect();
            Err(whole(TraceFault::UnknownFormat { begins }))
        }
    }
}

fn first_line(text: &str) -> &str {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default()
}

/// What a trace is called, after its file.
fn name(path: &Path) -> Arc<str> {
    path.file_stem().unwrap_or_default().to_string_lossy().into()
}

#[cfg(test)]
mod tests;
